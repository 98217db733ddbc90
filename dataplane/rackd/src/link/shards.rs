//! The link thread's end of the shards' mailboxes. What does not fit a full mailbox waits here, in order.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use shard::{Bell, LinkMailbox, Receiver, Sender, ToLink, ToShard};
use tokio::net::unix::pipe;

/// Messages waiting for one shard; past it answers are dropped and counted (a shard that takes none is dead).
const WAITING_MAX: usize = 65_536;

pub(super) struct Shards {
    ends: Vec<End>,
    /// Messages dropped because a shard took none.
    pub dropped: u64,
}

struct End {
    to: Sender<ToShard>,
    from: Receiver<ToLink>,
    waiting: VecDeque<ToShard>,
}

impl Shards {
    pub fn new(mailboxes: Vec<LinkMailbox>) -> Shards {
        let end = |LinkMailbox {
                       to_shard,
                       from_shard,
                   }| End {
            to: to_shard,
            from: from_shard,
            waiting: VecDeque::new(),
        };
        Shards {
            ends: mailboxes.into_iter().map(end).collect(),
            dropped: 0,
        }
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    pub fn send(&mut self, shard: usize, message: ToShard) {
        let Some(end) = self.ends.get_mut(shard) else {
            return;
        };
        end.waiting.push_back(message);
        end.flush();
        if end.waiting.len() > WAITING_MAX {
            end.waiting.pop_front();
            self.dropped += 1;
        }
    }

    /// Drops and counts what would have to wait: its sender's client asks again.
    pub fn send_if_room(&mut self, shard: usize, message: ToShard) {
        let Some(end) = self.ends.get_mut(shard) else {
            return;
        };
        if !end.flush() || end.to.push(message).is_err() {
            self.dropped += 1;
        }
    }

    /// `message` is made once for each.
    pub fn send_all(&mut self, mut message: impl FnMut() -> ToShard) {
        for shard in 0..self.ends.len() {
            self.send(shard, message());
        }
    }

    /// Tries again what waits. `true`: something still does.
    pub fn flush(&mut self) -> bool {
        let mut waits = false;
        for end in &mut self.ends {
            waits |= !end.flush();
        }
        waits
    }

    /// The next message of any shard, each in turn.
    pub fn pop(&mut self, turn: &mut usize) -> Option<(usize, ToLink)> {
        for _ in 0..self.ends.len() {
            let shard = *turn % self.ends.len();
            *turn = turn.wrapping_add(1);
            if let Some(message) = self.ends[shard].from.pop() {
                return Some((shard, message));
            }
        }
        None
    }

    pub fn is_empty(&self) -> bool {
        self.ends.iter().all(|end| end.from.is_empty())
    }
}

impl End {
    /// `true`: nothing waits.
    fn flush(&mut self) -> bool {
        while let Some(message) = self.waiting.pop_front() {
            if let Err(message) = self.to.push(message) {
                self.waiting.push_front(message);
                return false;
            }
        }
        true
    }
}

/// The bell as tokio awaits it: a second descriptor of its eventfd, read as a pipe is (the constructor of `AsyncFd` is
/// unsafe).
pub(super) struct Ringing {
    bell: Arc<Bell>,
    readable: pipe::Receiver,
}

impl Ringing {
    pub fn new(bell: Arc<Bell>) -> io::Result<Ringing> {
        let second = bell.as_fd().try_clone_to_owned()?;
        Ok(Ringing {
            readable: pipe::Receiver::from_owned_fd_unchecked(second)?,
            bell,
        })
    }

    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Waits for the bell and silences it. May be dropped at any time.
    pub async fn wait(&self) -> io::Result<()> {
        loop {
            self.readable.readable().await?;
            match self.readable.try_read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use shard::{Bell, TO_SHARD_MAX, mailboxes};

    use super::*;

    #[test]
    fn what_does_not_fit_waits_and_is_bounded() {
        let bell = Bell::new().unwrap();
        let (_shard, link, _work) = mailboxes(&bell, &bell).unwrap();
        let mut shards = Shards::new(vec![link]);
        for _ in 0..TO_SHARD_MAX {
            shards.send(0, ToShard::Forget);
        }
        assert!(!shards.flush());
        shards.send(0, ToShard::Until(Instant::now()));
        assert!(shards.flush(), "one waits");
        shards.send_all(|| ToShard::Forget);
        for _ in 0..WAITING_MAX {
            shards.send(0, ToShard::Progress);
        }
        assert_eq!(shards.dropped, 2);
        shards.send(7, ToShard::Forget);
        assert!(shards.is_empty() && shards.pop(&mut 0).is_none());
    }
}
