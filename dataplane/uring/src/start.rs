//! A shard on its own thread, pinned to its core, and its restart there.
//!
//! A ring that fails, or a panic, ends one shard's engines and connections and nothing else: the thread begins anew with
//! the same sockets, which have never left their groups, and the same mailboxes, after a pause that doubles. The link
//! thread hears of it ([`ToLink::Restarted`](shard::ToLink::Restarted)) and gives the shard what it has to know.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::thread::{CpuSet, sched_setaffinity};
use shard::{Config, Driver, LinkSocket, Shard, ShardMailbox, SharedStats, Snapshot};

use crate::probe::RingError;
use crate::ring::{Ring, RingLimits};
use crate::sockets::ShardSockets;

/// From a shard's end to its next beginning; one that lived longer than the second begins with the first again.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(30);
/// How often a shard that waits to begin looks whether all is to end.
const LOOK: Duration = Duration::from_millis(20);

/// Everything a shard is made of.
#[derive(Debug)]
pub struct Start {
    pub config: Config,
    pub limits: RingLimits,
    /// The core to stay on; `None` leaves it to the scheduler.
    pub core: Option<usize>,
    pub sockets: ShardSockets,
    /// The packet sockets of its links; later ones come by `ToShard::Links`.
    pub links: Vec<LinkSocket>,
    pub mail: ShardMailbox,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("starting the thread of shard {shard}")]
    Thread {
        shard: u32,
        #[source]
        source: io::Error,
    },
    #[error("setting up the ring of shard {shard}")]
    Ring {
        shard: u32,
        #[source]
        source: RingError,
    },
    #[error("the thread of shard {shard} ended before it began")]
    Died { shard: u32 },
}

/// A shard that runs, or is about to run again. It ends by `ToShard::Stop` or `ToShard::Drain`; dropping this does not end it.
#[derive(Debug)]
pub struct Running {
    pub index: u32,
    pub stats: SharedStats,
    thread: JoinHandle<io::Result<()>>,
}

impl Running {
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the shard has ended, as it was told to. `Err`: its thread panicked outside the shard.
    pub fn join(self) -> io::Result<()> {
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the shard panicked")),
        }
    }
}

/// Starts the thread `shard-<index>`, and returns once its ring is up and its sockets are armed.
pub fn start_shard(start: Start) -> Result<Running, StartError> {
    let shard = start.config.index;
    let stats = SharedStats::default();
    let (ready, is_ready) = mpsc::sync_channel(1);
    let thread = thread::Builder::new()
        .name(format!("shard-{shard}"))
        .spawn({
            let stats = stats.clone();
            move || run(start, stats, &ready, Shard::run)
        })
        .map_err(|source| StartError::Thread { shard, source })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(Running {
            index: shard,
            stats,
            thread,
        }),
        Ok(Err(source)) => Err(StartError::Ring { shard, source }),
        Err(mpsc::RecvError) => Err(StartError::Died { shard }),
    }
}

/// A shard's whole life; a test gives it another.
type Life = fn(&mut Shard<Ring>) -> io::Result<()>;

fn run(
    start: Start,
    stats: SharedStats,
    ready: &mpsc::SyncSender<Result<(), RingError>>,
    life: Life,
) -> io::Result<()> {
    let Start {
        mut config,
        limits,
        core,
        sockets,
        links,
        mut mail,
        snapshot,
    } = start;
    let index = config.index;
    if let Some(core) = core
        && let Err(error) = pin(core)
    {
        // It runs elsewhere then: slower, not wrong.
        tracing::warn!(shard = index, core, %error, "cannot pin the shard to its core");
    }
    config.tftp.tids = u16::try_from(sockets.transfers.len()).unwrap_or(u16::MAX);
    let ring = sockets
        .try_clone()
        .map_err(RingError::Arm)
        .and_then(|sockets| Ring::new(limits, sockets, mail.bell()));
    // The ring belongs to the thread that makes it (SINGLE_ISSUER).
    let mut ring = match ring {
        Ok(ring) => ring,
        Err(error) => {
            let _ = ready.send(Err(error));
            return Ok(());
        }
    };
    ring.set_links(links);
    let _ = ready.send(Ok(()));
    let mut ring = Some(ring);
    let mut pause = PAUSE_FIRST;
    loop {
        let begun = Instant::now();
        let mut why = String::from("no ring");
        if let Some(ring) = ring.take() {
            let snapshot = Arc::clone(&snapshot);
            let shard = Shard::new(config.clone(), ring, mail, snapshot, stats.clone());
            let (back, failed) = live(shard, life);
            match failed {
                None => return Ok(()),
                Some(failed) => why = failed,
            }
            mail = back;
        }
        if begun.elapsed() > PAUSE_LONGEST {
            pause = PAUSE_FIRST;
        }
        tracing::error!(
            shard = index,
            why,
            ?pause,
            "the shard ended; it begins anew"
        );
        if !wait(&mut mail, pause) {
            return Ok(());
        }
        pause = (pause * 2).min(PAUSE_LONGEST);
        config.restarts += 1;
        // What others still answer to the shard that was must not look like an answer to this one.
        config.seed = config.seed.wrapping_mul(6_364_136_223_846_793_005) ^ config.restarts;
        match sockets.try_clone() {
            Ok(sockets) => match Ring::new(limits, sockets, mail.bell()) {
                Ok(new) => ring = Some(new),
                Err(error) => {
                    tracing::error!(
                        shard = index,
                        error = &error as &dyn std::error::Error,
                        "no ring"
                    );
                }
            },
            Err(error) => tracing::error!(shard = index, %error, "no descriptors for the sockets"),
        }
    }
}

/// Runs a shard to its end. Its mailbox, and why it ended; `None`: it was told to.
fn live(mut shard: Shard<Ring>, life: Life) -> (ShardMailbox, Option<String>) {
    // What is left in the middle of a turn goes: engines, connections and the ring. The mailbox's queues are whole at
    // any time.
    let ended = catch_unwind(AssertUnwindSafe(|| life(&mut shard)));
    let failed = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("it panicked".to_owned()),
    };
    let (mail, ring) = shard.into_parts();
    if catch_unwind(AssertUnwindSafe(|| drop(ring))).is_err() {
        tracing::error!("closing a ring panicked");
    }
    (mail, failed)
}

/// Waits and then says that the shard begins anew. False: all is to end.
fn wait(mail: &mut ShardMailbox, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    loop {
        if mail.discard() {
            return false;
        }
        if Instant::now() >= until && mail.tell_restarted() {
            return true;
        }
        thread::sleep(LOOK);
    }
}

fn pin(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use shard::{Bell, ToLink, ToShard, mailboxes};

    use super::*;
    use crate::sockets::{Places, open};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn wait_for(what: &str, mut seen: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !seen() {
            assert!(Instant::now() < end, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Two lives end by a panic in the middle of their turns, with a client connected; the third one serves.
    #[test]
    fn a_shard_that_panics_begins_anew_on_the_ports_it_had() {
        static LIVES: AtomicUsize = AtomicUsize::new(0);
        fn life(shard: &mut Shard<Ring>) -> io::Result<()> {
            if LIVES.fetch_add(1, Ordering::Relaxed) < 2 {
                for _ in 0..3 {
                    shard.turn()?;
                }
                panic!("as a fault of ours would");
            }
            shard.run()
        }
        let places = Places {
            dhcp: None,
            proxy_dhcp: None,
            tftp: None,
            http: Some(([127, 0, 0, 1], 0).into()),
        };
        let sockets = open(&places, 1).unwrap().remove(0);
        let address = sockets.http_address.unwrap();
        let (link_bell, work_bell) = (Bell::new().unwrap(), Bell::new().unwrap());
        let (mail, mut link, _work) = mailboxes(&link_bell, &work_bell).unwrap();
        let start = Start {
            config: Config::default(),
            limits: RingLimits::default(),
            core: None,
            sockets,
            links: Vec::new(),
            mail,
            snapshot: Arc::default(),
        };
        let stats = SharedStats::default();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = thread::spawn({
            let stats = stats.clone();
            move || run(start, stats, &ready, life)
        });
        is_ready.recv().unwrap().unwrap();
        // A turn ends with whatever happens: a connection, here.
        let mut before = Vec::new();
        wait_for("it begins anew, twice", || {
            before.push(TcpStream::connect(address).unwrap());
            stats.get().shard.restarts == 2
        });
        let restarted = std::iter::from_fn(|| link.from_shard.pop())
            .filter(|message| matches!(message, ToLink::Restarted))
            .count();
        assert_eq!(restarted, 2);
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
            .write_all(b"GET /images/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        link.to_shard.push(ToShard::Stop).unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(LIVES.load(Ordering::Relaxed), 3);
    }
}
