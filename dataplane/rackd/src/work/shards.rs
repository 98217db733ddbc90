//! The shards' queues to the work thread: wants and handed-over connections in, "look again" out.
//!
//! A shard never waits, so neither does anything here for its sake: what finds a full mailbox is refused
//! and counted (a connection with 503; a want is repeated by the next request).

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use shard::{Bell, ToShard, ToWork, WorkMailbox};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, mpsc};

use super::arp::{Answer, Ask};
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

/// Serves until it is dropped.
pub async fn run(
    mut shards: Vec<WorkMailbox>,
    bell: Arc<Bell>,
    mailboxes: Mailboxes,
    progress: Arc<Notify>,
    mut probed: mpsc::Receiver<Answer>,
    counters: Arc<WorkCounters>,
) {
    let ringing = match listen(&bell) {
        Ok(ringing) => ringing,
        Err(error) => {
            tracing::error!(%error, "the work thread cannot hear its shards");
            return;
        }
    };
    loop {
        bell.park();
        if shards.iter().all(|shard| shard.from_shard.is_empty()) {
            tokio::select! {
                rung = wait(&ringing) => {
                    if let Err(error) = rung {
                        tracing::error!(%error, "the work thread cannot hear its shards");
                        return;
                    }
                }
                Some(answer) = probed.recv() => {
                    bell.unpark();
                    tell(&mut shards, answer);
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
        for (index, shard) in shards.iter_mut().enumerate() {
            for _ in 0..MESSAGES_PER_TURN_MAX {
                let Some(message) = shard.from_shard.pop() else {
                    break;
                };
                take(index, message, &mailboxes, &counters);
            }
        }
        while let Ok(answer) = probed.try_recv() {
            tell(&mut shards, answer);
        }
        tokio::task::yield_now().await;
    }
}

/// The bell's eventfd as tokio awaits it: a second descriptor of it, read as a pipe is read. (tokio's
/// `AsyncFd` would do, but its constructor is unsafe.)
fn listen(bell: &Bell) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd_unchecked(bell.as_fd().try_clone_to_owned()?)
}

/// Waits for the bell, and silences it.
async fn wait(ringing: &pipe::Receiver) -> io::Result<()> {
    loop {
        ringing.readable().await?;
        match ringing.try_read(&mut [0; 8]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read.map(drop),
        }
    }
}

/// A full queue: the shard takes it for unanswered.
fn tell(shards: &mut [WorkMailbox], answer: Answer) {
    if let Some(shard) = shards.get_mut(answer.shard) {
        let _ = shard.to_shard.push(ToShard::Probed {
            vlan: answer.probe.vlan,
            address: answer.probe.address,
            probed: answer.probed,
        });
    }
}

fn take(shard: usize, message: ToWork, mailboxes: &Mailboxes, counters: &WorkCounters) {
    match message {
        ToWork::Want(sha256) => {
            counters.shards.wants.add(1);
            if mailboxes.fills.try_send(Letter::Wanted(sha256)).is_err() {
                counters.shards.refused.add(1);
            }
        }
        ToWork::Probe { probe, interface } => {
            let ask = Ask {
                shard,
                probe,
                interface,
            };
            if mailboxes.probes.try_send(ask).is_err() {
                counters.shards.refused.add(1);
            }
        }
        ToWork::HandOff {
            socket,
            ends,
            source,
            read,
        } => {
            counters.shards.hand_offs.add(1);
            let handed = HandedOff {
                socket,
                ends,
                source,
                read,
            };
            if let Err(full) = mailboxes.connections.try_send(handed) {
                counters.shards.refused.add(1);
                proxy::refuse(full.into_inner());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[tokio::test]
    async fn the_bell_is_heard_each_time() {
        let bell = Bell::new().unwrap();
        let ringing = listen(&bell).unwrap();
        for _ in 0..3 {
            let silent = tokio::time::timeout(Duration::from_millis(20), wait(&ringing)).await;
            assert!(silent.is_err());
            // As its sender does, for an owner that sleeps.
            rustix::io::write(&*bell, &1u64.to_ne_bytes()).unwrap();
            rustix::io::write(&*bell, &1u64.to_ne_bytes()).unwrap();
            tokio::time::timeout(Duration::from_secs(1), wait(&ringing))
                .await
                .unwrap()
                .unwrap();
        }
    }

    #[tokio::test]
    async fn what_finds_a_full_mailbox_is_refused() {
        let (mailboxes, mut inbox) = super::super::mailboxes();
        let counters = WorkCounters::default();
        let hand_off = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(address).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let read = b"GET".to_vec();
            (
                client,
                ToWork::HandOff {
                    socket: server.into(),
                    ends: shard::Ends {
                        peer,
                        local: address,
                        frame: None,
                    },
                    source: peer.ip().into(),
                    read,
                },
            )
        };
        take(0, ToWork::Want([7; 32]), &mailboxes, &counters);
        assert!(matches!(inbox.fills.try_recv(), Ok(Letter::Wanted(sha256)) if sha256 == [7; 32]));
        take(0, hand_off().1, &mailboxes, &counters);
        assert_eq!(inbox.connections.try_recv().unwrap().read, b"GET");
        inbox.connections.close();
        let (mut client, message) = hand_off();
        take(0, message, &mailboxes, &counters);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert_eq!(
            (
                counters.shards.hand_offs.get(),
                counters.shards.refused.get()
            ),
            (2, 1)
        );
    }
}
