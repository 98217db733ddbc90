//! Asks by ARP whether anybody uses an address that a shard is about to deal in (RFC 5227 §2.1.1).
//!
//! Two probes, a quarter of a second apart, and half a second of listening: a host that answers later is caught by its
//! client's own check and a DECLINE. A device's socket is open only while something is asked on it, so that the ARP
//! of a large network costs the rack nothing.
//!
//! Who is asked: everybody on the device's wire. What says "in use": any ARP packet whose sender claims the address.
//! Not here: which addresses are asked for, and what becomes of one that is in use (`dhcp`).

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use dhcp::{Probe, Probed};
use rustix::net::{SendFlags, send};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wire::arp;
use wire::ethernet::Mac;

use super::{Counter, Counters as WorkCounters};
use crate::rarely::Rarely;

/// From the first probe to the second, and to the verdict.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
const LISTEN: Duration = Duration::from_millis(500);
/// Addresses asked for at one time, on all devices together.
const ASKED_MAX: usize = 1024;
/// A device without questions keeps its socket so long.
const IDLE: Duration = Duration::from_secs(2);
/// A frame with an ARP packet, padded.
const FRAME_BYTES_MAX: usize = 128;

#[derive(Debug, Default)]
pub struct Counters {
    pub asked: Counter,
    pub in_use: Counter,
    /// No socket, or the device did not take the frame.
    pub failed: Counter,
    /// Refused: too many at a time.
    pub refused: Counter,
}

/// A question of a shard's.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub shard: usize,
    pub probe: Probe,
    /// Kernel index of the device.
    pub interface: u32,
}

/// Its answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub shard: usize,
    pub probe: Probe,
    pub probed: Probed,
}

type Key = (u32, Ipv4Addr);

/// What is asked, shared with the tasks that listen.
type Asked = Rc<RefCell<HashMap<Key, (usize, Probe)>>>;

struct Device {
    socket: Rc<OwnedFd>,
    mac: Mac,
    /// Ends with the device.
    listener: JoinHandle<()>,
    used: Instant,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

struct Prober {
    asked: Asked,
    devices: HashMap<u32, Device>,
    /// When each is asked again, and when each is found unused. In order: the waits are always the same.
    again: VecDeque<(Instant, Key)>,
    ends: VecDeque<(Instant, Key)>,
    answers: mpsc::Sender<Answer>,
    counters: std::sync::Arc<WorkCounters>,
}

/// Serves until nobody can ask any more. On a `LocalSet`.
pub async fn run(
    mut asks: mpsc::Receiver<Ask>,
    answers: mpsc::Sender<Answer>,
    counters: std::sync::Arc<WorkCounters>,
) {
    let mut prober = Prober {
        asked: Asked::default(),
        devices: HashMap::new(),
        again: VecDeque::new(),
        ends: VecDeque::new(),
        answers,
        counters,
    };
    loop {
        let wait = prober.next_due();
        tokio::select! {
            ask = asks.recv() => match ask {
                Some(ask) => prober.begin(ask),
                None => return,
            },
            () = sleep_until(wait) => prober.on_time(Instant::now()),
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Prober {
    fn next_due(&self) -> Option<Instant> {
        let first = |queue: &VecDeque<(Instant, Key)>| queue.front().map(|(at, _)| *at);
        let idle = self.devices.values().map(|device| device.used + IDLE).min();
        [first(&self.again), first(&self.ends), idle]
            .into_iter()
            .flatten()
            .min()
    }

    fn begin(&mut self, ask: Ask) {
        let key = (ask.interface, ask.probe.address);
        if self.asked.borrow().len() >= ASKED_MAX || self.asked.borrow().contains_key(&key) {
            self.counters.arp.refused.add(1);
            return; // the shard takes it for unanswered
        }
        self.counters.arp.asked.add(1);
        self.asked.borrow_mut().insert(key, (ask.shard, ask.probe));
        let now = Instant::now();
        if let Err(error) = self.send(key, now) {
            static RARELY: Rarely = Rarely::new();
            if let Some(left_out) = RARELY.may(std::time::Instant::now()) {
                let (device, address) = (ask.interface, ask.probe.address);
                tracing::warn!(device, %address, %error, left_out, "an ARP probe");
            }
            self.counters.arp.failed.add(1);
            return finish(&self.asked, &self.answers, key, Probed::Unknown);
        }
        self.again.push_back((now + AGAIN_AFTER, key));
        self.ends.push_back((now + LISTEN, key));
    }

    fn on_time(&mut self, now: Instant) {
        while let Some((_, key)) = self.again.pop_front_if(|(at, _)| *at <= now) {
            // Not there any more: answered.
            let is_asked = self.asked.borrow().contains_key(&key);
            if is_asked && self.send(key, now).is_err() {
                // Who was asked once may not have heard it: silence would say nothing.
                self.counters.arp.failed.add(1);
                finish(&self.asked, &self.answers, key, Probed::Unknown);
            }
        }
        while let Some((_, key)) = self.ends.pop_front_if(|(at, _)| *at <= now) {
            finish(&self.asked, &self.answers, key, Probed::Unused);
        }
        self.devices.retain(|_, device| now < device.used + IDLE);
    }

    fn send(&mut self, (interface, address): Key, now: Instant) -> io::Result<()> {
        let device = self.device(interface)?;
        device.used = now;
        let frame = arp::probe(device.mac, address);
        let sent = send(&*device.socket, &frame, SendFlags::DONTWAIT)?;
        if sent < frame.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn device(&mut self, interface: u32) -> io::Result<&mut Device> {
        use std::collections::hash_map::Entry;
        if self
            .devices
            .get(&interface)
            .is_some_and(|device| device.listener.is_finished())
        {
            self.devices.remove(&interface);
        }
        match self.devices.entry(interface) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let (socket, mac) = uring::open_arp(interface).map_err(io::Error::other)?;
                // A second descriptor of it, read as a pipe is read.
                let readable =
                    pipe::Receiver::from_owned_fd_unchecked(socket.as_fd().try_clone_to_owned()?)?;
                let listener = Listener {
                    interface,
                    own: Mac(mac),
                    asked: Rc::clone(&self.asked),
                    answers: self.answers.clone(),
                    counters: self.counters.clone(),
                };
                Ok(place.insert(Device {
                    socket: Rc::new(socket),
                    mac: Mac(mac),
                    listener: tokio::task::spawn_local(listener.run(readable)),
                    used: Instant::now(),
                }))
            }
        }
    }
}

struct Listener {
    interface: u32,
    own: Mac,
    asked: Asked,
    answers: mpsc::Sender<Answer>,
    counters: std::sync::Arc<WorkCounters>,
}

impl Listener {
    /// Until the device is gone or the socket closes. Then nobody listens for what is asked, which is no silence of those
    /// who are asked: nothing is known of them.
    async fn run(self, socket: pipe::Receiver) {
        self.listen(socket).await;
        let asked = self.asked.borrow();
        let own = asked.keys().filter(|(device, _)| *device == self.interface);
        let own: Vec<Key> = own.copied().collect();
        drop(asked);
        for key in own {
            self.counters.arp.failed.add(1);
            finish(&self.asked, &self.answers, key, Probed::Unknown);
        }
    }

    async fn listen(&self, socket: pipe::Receiver) {
        let mut frame = [0; FRAME_BYTES_MAX];
        loop {
            if socket.readable().await.is_err() {
                return;
            }
            match socket.try_read(&mut frame) {
                Ok(length) => self.on_frame(&frame[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The device went down.
                Err(_) => return,
            }
        }
    }

    fn on_frame(&self, frame: &[u8]) {
        let Some(sender) = arp::sender(frame) else {
            return;
        };
        let key = (self.interface, sender.address);
        if sender.mac != self.own && self.asked.borrow().contains_key(&key) {
            self.counters.arp.in_use.add(1);
            finish(&self.asked, &self.answers, key, Probed::InUse(sender.mac));
        }
    }
}

fn finish(asked: &Asked, answers: &mpsc::Sender<Answer>, key: Key, probed: Probed) {
    if let Some((shard, probe)) = asked.borrow_mut().remove(&key) {
        // A full mailbox: the shard takes it for unanswered.
        let _ = answers.try_send(Answer {
            shard,
            probe,
            probed,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first probe left and the second did not: nobody's silence is an answer.
    #[tokio::test]
    async fn a_second_probe_that_fails_leaves_what_is_asked_unknown() {
        let test = async {
            let (answers, mut told) = mpsc::channel(8);
            let counters = std::sync::Arc::new(WorkCounters::default());
            let now = Instant::now();
            let (interface, address) = (7, Ipv4Addr::new(10, 0, 0, 1));
            let key = (interface, address);
            let asked = Asked::default();
            asked
                .borrow_mut()
                .insert(key, (0, Probe { vlan: 1, address }));
            // A send without a destination fails.
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let device = Device {
                socket: Rc::new(socket.into()),
                mac: Mac([2; 6]),
                listener: tokio::task::spawn_local(std::future::pending()),
                used: now,
            };
            let mut prober = Prober {
                asked,
                devices: HashMap::from([(interface, device)]),
                again: VecDeque::from([(now, key)]),
                ends: VecDeque::from([(now, key)]),
                answers,
                counters: counters.clone(),
            };
            prober.on_time(now);
            assert!(matches!(told.recv().await.unwrap().probed, Probed::Unknown));
            assert!(told.try_recv().is_err(), "one answer for one question");
            assert_eq!(counters.arp.failed.get(), 1);
        };
        tokio::task::LocalSet::new().run_until(test).await;
    }

    /// A listener that breaks is no silence: what is asked then would be given to two.
    #[tokio::test]
    async fn a_device_that_fails_leaves_what_is_asked_unknown() {
        let asked = Asked::default();
        let (answers, mut told) = mpsc::channel(8);
        for (interface, last) in [(7, 1), (7, 2), (8, 3)] {
            let address = Ipv4Addr::new(10, 0, 0, last);
            let probe = Probe { vlan: 1, address };
            asked.borrow_mut().insert((interface, address), (0, probe));
        }
        // A read of this socket fails: nobody is where its datagram went.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(gone.local_addr().unwrap()).unwrap();
        // Something to read, which the error comes before.
        gone.send_to(b"frame", socket.local_addr().unwrap())
            .unwrap();
        drop(gone);
        socket.send(b"x").unwrap();
        socket.set_nonblocking(true).unwrap();
        let counters = std::sync::Arc::new(WorkCounters::default());
        let listener = Listener {
            interface: 7,
            own: Mac([2; 6]),
            asked: Rc::clone(&asked),
            answers,
            counters: counters.clone(),
        };
        let socket = pipe::Receiver::from_owned_fd_unchecked(socket.into()).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), listener.run(socket));
        ended.await.expect("it ends");
        for _ in 0..2 {
            assert!(matches!(told.recv().await.unwrap().probed, Probed::Unknown));
        }
        assert!(told.try_recv().is_err(), "another device's goes on");
        assert_eq!((asked.borrow().len(), counters.arp.failed.get()), (1, 2));
    }
}
