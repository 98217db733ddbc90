//! The shards' queues to the work thread: wants and handed-over connections in, "look again" out.
//!
//! A shard never waits, so neither does anything here for its sake: what finds a full mailbox is refused
//! and counted (a connection with 503; a want is repeated by the next request).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use shard::{Bell, ToShard, ToWork, WorkMailbox};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::fill::Letter;
use super::proxy::{self, HandedOff};
use super::{Counter, Counters as WorkCounters, Mailboxes};

/// Taken from one shard before the next has its turn.
const MESSAGES_PER_TURN_MAX: usize = 64;
/// Pieces arrive in bursts; a shard is told of them at most so often.
const PROGRESS_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
pub struct Counters {
    pub wants: Counter,
    pub hand_offs: Counter,
    /// Found a full mailbox.
    pub refused: Counter,
}

struct BellFd(Arc<Bell>);

impl std::os::fd::AsRawFd for BellFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// Serves until it is dropped.
pub async fn run(
    mut shards: Vec<WorkMailbox>,
    bell: Arc<Bell>,
    mailboxes: Mailboxes,
    progress: Arc<Notify>,
    counters: Arc<WorkCounters>,
) {
    let readable = match AsyncFd::new(BellFd(bell.clone())) {
        Ok(readable) => readable,
        Err(error) => {
            tracing::error!(%error, "the work thread cannot hear its shards");
            return;
        }
    };
    loop {
        bell.park();
        if shards.iter().all(|shard| shard.from_shard.is_empty()) {
            tokio::select! {
                rung = wait(&readable) => {
                    if let Err(error) = rung {
                        tracing::error!(%error, "the work thread cannot hear its shards");
                        return;
                    }
                    bell.silence();
                }
                () = progress.notified() => {
                    bell.unpark();
                    for shard in &mut shards {
                        // A full queue: the shard has plenty to look at, and looks again by itself.
                        let _ = shard.to_shard.push(ToShard::Progress);
                    }
                    tokio::time::sleep(PROGRESS_PAUSE).await;
                }
            }
        }
        bell.unpark();
        for shard in &mut shards {
            for _ in 0..MESSAGES_PER_TURN_MAX {
                let Some(message) = shard.from_shard.pop() else { break };
                take(message, &mailboxes, &counters);
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn wait(readable: &AsyncFd<BellFd>) -> io::Result<()> {
    // The bell is silenced by its owner; what is cleared here is only tokio's note of it.
    readable.readable().await?.clear_ready();
    Ok(())
}

fn take(message: ToWork, mailboxes: &Mailboxes, counters: &WorkCounters) {
    match message {
        ToWork::Want(sha256) => {
            counters.shards.wants.add(1);
            if mailboxes.fills.try_send(Letter::Wanted(sha256)).is_err() {
                counters.shards.refused.add(1);
            }
        }
        ToWork::HandOff { socket, peer, local, read } => {
            counters.shards.hand_offs.add(1);
            let handed = HandedOff { socket, peer, local, read };
            if let Err(full) = mailboxes.connections.try_send(handed) {
                counters.shards.refused.add(1);
                proxy::refuse(full.into_inner());
            }
        }
    }
}
