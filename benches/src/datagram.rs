//! A UDP echo on several engines, and the load that all of them get.
//!
//! The load is a closed loop: 64 datagrams of 300 octets in flight from one connected socket on loopback. A server
//! measures its own thread's processor time between the end of a warm-up and its last request; so a generator that is
//! slower than it costs it wake-ups, and nothing else.

mod epoll;
mod peers;
mod ring;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use crate::{go_first, stay_on, thread_cpu_ns};

/// Like a DHCP message.
pub const DATAGRAM: usize = 300;
pub const IN_FLIGHT: usize = 64;
const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;
/// Of the generator: what has not come back by then was lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// An echo server: answers at `at` until `meter` has enough.
pub type Engine = fn(at: SocketAddr, meter: &mut Meter) -> Result<()>;

/// Ours first.
pub const ENGINES: &[(&str, Engine)] = &[
    ("uring", ring::serve),
    ("epoll", epoll::serve),
    ("blocking", epoll::serve_blocking),
    ("glommio", peers::glommio),
    ("tokio", peers::tokio),
    ("tokio-uring", peers::tokio_uring_one),
    ("tokio-uring, 16 tasks", peers::tokio_uring_many),
];

/// Counts requests, and reads the clock at two of them.
#[derive(Debug)]
pub struct Meter {
    warm_up: u64,
    end: u64,
    count: u64,
    /// Processor time when the warm-up was over, and wall-clock time.
    from: Option<(u64, Instant)>,
    taken: Option<(u64, Duration)>,
}

impl Meter {
    fn new(warm_up: u64, requests: u64) -> Self {
        Self {
            warm_up,
            end: warm_up + requests,
            count: 0,
            from: None,
            taken: None,
        }
    }

    /// So many more requests were answered. True: that is enough.
    pub fn add(&mut self, requests: usize) -> bool {
        self.count += requests as u64;
        if self.from.is_none() && self.count >= self.warm_up {
            // What came above the warm-up in this batch is not measured.
            self.end += self.count - self.warm_up;
            self.warm_up = self.count;
            self.from = Some((thread_cpu_ns(), Instant::now()));
        }
        if self.count < self.end {
            return false;
        }
        if let (None, Some((cpu, start))) = (self.taken, self.from) {
            self.taken = Some((thread_cpu_ns() - cpu, start.elapsed()));
        }
        true
    }
}

#[derive(Debug, Serialize)]
pub struct Run {
    pub engine: &'static str,
    pub round: u32,
    pub requests: u64,
    /// Of the server's thread, per request.
    pub cpu_ns: f64,
    pub seconds: f64,
}

/// One engine under load.
pub fn measure(name: &'static str, engine: Engine, round: u32, requests: u64) -> Result<Run> {
    let at = free_port()?;
    let over = Arc::new(AtomicBool::new(false));
    let server = std::thread::Builder::new()
        .name("server".to_owned())
        .spawn({
            let over = Arc::clone(&over);
            move || -> Result<Meter> {
                go_first();
                stay_on(SERVER_CORE)?;
                let mut meter = Meter::new(requests / 10, requests);
                let served = engine(at, &mut meter);
                over.store(true, Ordering::Release);
                served.map(|()| meter)
            }
        });
    let server = server.context("starting the server's thread")?;
    go_first();
    stay_on(CLIENT_CORE)?;
    let loaded = epoll::load(at, &over);
    let meter = server
        .join()
        .map_err(|_| anyhow!("{name}: the server panicked"))?;
    let meter = meter.with_context(|| format!("serving with {name}"))?;
    loaded?;
    let (cpu, time) = meter
        .taken
        .with_context(|| format!("{name} ended too early"))?;
    let measured = meter.count - meter.warm_up;
    Ok(Run {
        engine: name,
        round,
        requests: measured,
        cpu_ns: cpu as f64 / measured as f64,
        seconds: time.as_secs_f64(),
    })
}

/// A port that is free now.
fn free_port() -> Result<SocketAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    socket.local_addr().context("asking for a socket's port")
}

fn raw(socket: &UdpSocket) -> i32 {
    socket.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_leaves_the_warm_up_out() {
        let mut meter = Meter::new(10, 20);
        assert!(!meter.add(5));
        assert!(!meter.add(7), "12: measured from here");
        assert!(!meter.add(19), "31 of 32");
        assert!(meter.add(1));
        assert_eq!(meter.count - meter.warm_up, 20);
        assert!(meter.taken.is_some());
    }

    /// Each takes well below a second.
    const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

    #[test]
    fn every_engine_echoes() {
        for (name, engine) in ENGINES {
            // An engine that loses a datagram waits for ever.
            let (done, is_done) = std::sync::mpsc::channel();
            std::thread::spawn(move || done.send(measure(name, *engine, 1, 2_000)));
            let Ok(measured) = is_done.recv_timeout(TIME_LIMIT) else {
                panic!("{name} has not echoed 2,000 datagrams in {TIME_LIMIT:?}");
            };
            match measured {
                Ok(run) => assert!(run.requests >= 2_000 && run.cpu_ns > 0.0, "{run:?}"),
                // A sandbox without io_uring, or without locked memory for glommio.
                Err(error) if *name == "epoll" || *name == "blocking" => {
                    panic!("{name}: {error:#}")
                }
                Err(error) => eprintln!("skipped: {name}: {error:#}"),
            }
        }
    }
}
