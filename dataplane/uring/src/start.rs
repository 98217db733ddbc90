//! A shard on its own thread, pinned to its core.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use arc_swap::ArcSwap;
use rustix::thread::{CpuSet, sched_setaffinity};
use shard::{Config, Driver, LinkSocket, Shard, ShardMailbox, SharedStats, Snapshot};

use crate::probe::RingError;
use crate::ring::{Ring, RingLimits};
use crate::sockets::ShardSockets;

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

/// A shard that runs. It ends by `ToShard::Stop` or `ToShard::Drain`; dropping this does not end it.
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

    /// Waits until the shard has ended. `Err`: its ring failed, or it panicked (then the panic was printed).
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
            move || run(start, stats, &ready)
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

fn run(
    start: Start,
    stats: SharedStats,
    ready: &mpsc::SyncSender<Result<(), RingError>>,
) -> io::Result<()> {
    let Start {
        config,
        limits,
        core,
        sockets,
        links,
        mail,
        snapshot,
    } = start;
    let index = config.index;
    if let Some(core) = core
        && let Err(error) = pin(core)
    {
        // It runs elsewhere then: slower, not wrong.
        tracing::warn!(shard = index, core, %error, "cannot pin the shard to its core");
    }
    // The ring belongs to the thread that makes it (SINGLE_ISSUER).
    let mut ring = match Ring::new(limits, sockets, mail.bell()) {
        Ok(ring) => ring,
        Err(error) => {
            let _ = ready.send(Err(error));
            return Ok(());
        }
    };
    ring.set_links(links);
    let mut shard = Shard::new(config, ring, mail, snapshot, stats);
    let _ = ready.send(Ok(()));
    let result = shard.run();
    if let Err(error) = &result {
        tracing::error!(shard = index, %error, "the shard's ring failed");
    }
    result
}

fn pin(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}
