//! How a shard and the rack's two other threads talk: bounded single-producer queues and a bell.
//!
//! ```text
//!   link thread --ToShard--> +-------+ --ToLink--> link thread
//!   work thread --ToShard--> | shard | --ToWork--> work thread
//!                            +-------+
//! ```
//! Each thread has one [`Bell`] (an eventfd) however many queues end at it. A sender writes it only when the owner has
//! said that it is about to sleep, so that a busy thread costs its peers nothing. A full queue gives the message back:
//! nothing here blocks, and nothing grows.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Instant;

use lease::{Block, Outcome, Row, VlanId, Write};
use rustix::event::{EventfdFlags, eventfd};
use wire::ethernet::Mac;

use crate::choices::Told;
use crate::driver::{Ends, LinkSocket, Service};
use crate::shares::Source;

/// Messages that fit a queue to a shard, from a shard to the link thread, and to the work thread.
pub const TO_SHARD_MAX: usize = 4096;
pub const TO_LINK_MAX: usize = 8192;
pub const TO_WORK_MAX: usize = 1024;
/// Room in the queue to the link thread that is kept for leases: what anybody may cause does not take it.
pub(crate) const KEPT_FOR_LEASES: usize = TO_LINK_MAX / 2;

/// What a shard is told.
#[derive(Debug)]
pub enum ToShard {
    /// The rack's blocks and rows at an attach; each shard takes its own part. `sent`: when the attach left for the
    /// region, from which the rows' times count.
    Attach {
        blocks: Arc<[Block]>,
        rows: Arc<[Row]>,
        sent: Instant,
        until: Instant,
    },
    /// The blocks are no longer ours: mute until the next attach.
    Forget,
    /// The blocks may be served until then.
    Until(Instant),
    /// The answer to a [`ToLink::Lease`].
    Outcome {
        ticket: dhcp::Ticket,
        outcome: Outcome,
    },
    /// The answer to a [`ToLink::BootConfig`].
    Machine {
        ticket: u64,
        answer: BootAnswer,
    },
    /// Pieces or loaders arrived, or a fill failed: look at what waits.
    Progress,
    /// A DHCP message that another shard received.
    HandedOver(Box<HandOver>),
    /// Another shard lacks an address: lend it one, or pass the wish on ([`ToLink::Wish`]).
    Wish(Wish),
    /// Addresses that another shard gave.
    Lent(Vec<dhcp::Lent>),
    /// The answer to a [`ToWork::Probe`].
    Probed {
        vlan: VlanId,
        address: Ipv4Addr,
        probed: dhcp::Probed,
    },
    /// The packet sockets of this shard, in place of those it had.
    Links(Vec<LinkSocket>),
    /// Take nothing new, finish what runs, stop at the deadline at the latest.
    Drain {
        deadline: Instant,
    },
    Stop,
}

/// What a shard asks of the link thread, which owns the region links.
#[derive(Debug)]
pub enum ToLink {
    /// Wants a [`ToShard::Outcome`], unless the ticket is `Ticket::UNAWAITED`.
    Lease {
        ticket: dhcp::Ticket,
        write: Write,
    },
    /// Wants a [`ToShard::Machine`] within seconds. Coalesced: one per machine at a time.
    BootConfig {
        ticket: u64,
        query: BootQuery,
    },
    Event(Event),
    /// What a machine that nobody knows is, so that it gets a configuration of its own architecture. Given up for want of
    /// room: then what its loader says has to do.
    Arch {
        mac: [u8; 6],
        /// Unspecified where somebody else hands out the addresses.
        address: IpAddr,
        /// Debian's name.
        arch: &'static str,
    },
    /// For that shard. Slow, for the few that the kernel cannot steer; dropped rather than kept waiting.
    HandOver {
        shard: u32,
        message: Box<HandOver>,
    },
    /// For the next shard after `borrower + asked`, as a [`ToShard::Wish`]; it ends when it is back.
    Wish(Wish),
    /// This shard begins anew: it has no links, no leases and no questions open.
    Restarted,
    /// For the borrower.
    Lent {
        shard: u32,
        lent: Vec<dhcp::Lent>,
    },
}

/// An address that a shard lacks, on its way around the others.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub borrower: u32,
    /// Shards that had none.
    pub asked: u32,
    pub wish: dhcp::Wish,
}

/// A DHCP message that came to a shard that does not own its client.
#[derive(Debug)]
pub struct HandOver {
    /// As it was received.
    pub service: Service,
    /// Kernel index of the device it came in on.
    pub interface: u32,
    pub source: SocketAddrV4,
    pub destination: Ipv4Addr,
    /// Of a frame, where the device has Ethernet addresses.
    pub ethernet: Option<Mac>,
    /// The UDP payload.
    pub octets: Box<[u8]>,
}

/// A machine that the snapshot does not have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BootQuery {
    /// `None`: the card that has `address`, which the rack knows better than one shard.
    pub mac: Option<[u8; 6]>,
    /// Debian's name of what the loader is built for, "" if the request did not say.
    pub arch: String,
    pub address: IpAddr,
    /// 0 where the link is not known.
    pub vlan: u32,
}

/// What is said of such a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootAnswer {
    Machine(Arc<boot::Machine>),
    /// Nothing boots there.
    Nothing,
    /// No region answers, or too many ask: it may be asked again.
    Busy,
}

/// Something for the machine's event log.
#[derive(Clone, Debug)]
pub struct Event {
    /// `model::EventType` name.
    pub kind: &'static str,
    /// `None`: the rack finds the machine by its address.
    pub mac: Option<[u8; 6]>,
    pub address: IpAddr,
    pub detail: Detail,
    pub at: Instant,
}

/// What an event says beside its kind, machine and address. Shards on a packet's way leave it unwritten: whoever
/// reports it formats it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    None,
    /// An ACK's.
    Lease {
        secs: u64,
    },
    BootFile(Told),
    Plain(&'static str),
    Text(Box<str>),
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Lease { secs } => write!(f, "for {secs} s"),
            Self::BootFile(told) => told.fmt(f),
            Self::Plain(text) => f.write_str(text),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl From<String> for Detail {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Told> for Detail {
    fn from(told: Told) -> Self {
        Self::BootFile(told)
    }
}

/// What a shard asks of the work thread.
#[derive(Debug)]
pub enum ToWork {
    /// A client waits for this file.
    Want([u8; 32]),
    /// Wants a [`ToShard::Probed`] in about half a second: whether anybody on this device uses the address.
    Probe {
        probe: dhcp::Probe,
        /// Kernel index of the device.
        interface: u32,
    },
    /// A connection that is not the shard's, with the octets already read.
    HandOff {
        socket: OwnedFd,
        ends: Ends,
        /// Whose share it takes.
        source: Source,
        read: Vec<u8>,
    },
}

/// Wakes one thread. Its owner's loop, with the descriptor polled or awaited (`AsRawFd`: fit for tokio's `AsyncFd`):
///
/// ```text
/// loop { bell.park();
///        if every queue is empty { wait until the descriptor is readable; bell.silence() }
///        bell.unpark();
///        take what the queues hold }
/// ```
#[derive(Debug)]
pub struct Bell {
    fd: OwnedFd,
    /// The owner is asleep or about to be.
    parked: AtomicBool,
}

impl Bell {
    pub fn new() -> io::Result<Arc<Self>> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self {
            fd,
            parked: AtomicBool::new(false),
        }))
    }

    /// Owner: "I sleep once my queues are empty". Look at every queue after this, and sleep only if all are empty.
    pub fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        // Either we see the sender's message, or the sender sees the flag.
        fence(Ordering::SeqCst);
    }

    /// Owner: awake again.
    pub fn unpark(&self) {
        self.parked.store(false, Ordering::SeqCst);
    }

    /// Owner: the descriptor was readable; it is not any more.
    pub fn silence(&self) {
        let mut count = [0; 8];
        // EAGAIN: nobody rang.
        let _ = rustix::io::read(&self.fd, &mut count);
    }

    /// Sender: after the message is in the queue.
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::SeqCst) {
            // An eventfd's write fails only when 2^64 - 2 rings are unread.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The sending end of a queue.
#[derive(Debug)]
pub struct Sender<T> {
    queue: rtrb::Producer<T>,
    bell: Arc<Bell>,
}

impl<T> Sender<T> {
    /// Leaves a message and wakes the owner if it sleeps. A full queue gives the message back.
    pub fn push(&mut self, message: T) -> Result<(), T> {
        self.queue
            .push(message)
            .map_err(|rtrb::PushError::Full(message)| message)?;
        self.bell.ring();
        Ok(())
    }

    pub fn free_slots(&self) -> usize {
        self.queue.slots()
    }

    /// The other end is gone.
    pub fn is_abandoned(&self) -> bool {
        self.queue.is_abandoned()
    }
}

/// The receiving end of a queue.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: rtrb::Consumer<T>,
}

impl<T> Receiver<T> {
    pub fn pop(&mut self) -> Option<T> {
        self.queue.pop().ok()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The other end is gone; what it left can still be taken.
    pub fn is_abandoned(&self) -> bool {
        self.queue.is_abandoned()
    }
}

/// The shard's end of its mailboxes.
#[derive(Debug)]
pub struct ShardMailbox {
    pub(crate) bell: Arc<Bell>,
    pub(crate) from_link: Receiver<ToShard>,
    pub(crate) from_work: Receiver<ToShard>,
    pub(crate) to_link: Sender<ToLink>,
    pub(crate) to_work: Sender<ToWork>,
}

impl ShardMailbox {
    /// What the driver watches for [`crate::Completion::Mail`].
    pub fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// About to wait: false if there is something to do first.
    pub(crate) fn park(&self) -> bool {
        self.bell.park();
        self.from_link.is_empty() && self.from_work.is_empty()
    }

    /// Takes and drops all messages, which were for a shard that is no more. True: all is to end.
    pub fn discard(&mut self) -> bool {
        let mut ends = self.from_link.is_abandoned();
        while let Some(message) = self.pop() {
            ends |= matches!(message, ToShard::Stop | ToShard::Drain { .. });
        }
        ends
    }

    /// False: the queue is full, so the link thread does not know yet.
    pub fn tell_restarted(&mut self) -> bool {
        self.to_link.push(ToLink::Restarted).is_ok()
    }

    /// The next message.
    pub fn pop(&mut self) -> Option<ToShard> {
        self.from_link.pop().or_else(|| self.from_work.pop())
    }
}

/// The link thread's end for one shard. Its bell is the one given to [`mailboxes`].
#[derive(Debug)]
pub struct LinkMailbox {
    pub to_shard: Sender<ToShard>,
    pub from_shard: Receiver<ToLink>,
}

/// The work thread's end for one shard.
#[derive(Debug)]
pub struct WorkMailbox {
    pub to_shard: Sender<ToShard>,
    pub from_shard: Receiver<ToWork>,
}

/// The mailboxes of one shard. `link` and `work` are the bells of those threads, shared by all shards' mailboxes.
pub fn mailboxes(
    link: &Arc<Bell>,
    work: &Arc<Bell>,
) -> io::Result<(ShardMailbox, LinkMailbox, WorkMailbox)> {
    mailboxes_of(link, work, TO_LINK_MAX)
}

/// The same, with this much room for the link thread.
pub fn mailboxes_of(
    link: &Arc<Bell>,
    work: &Arc<Bell>,
    to_link: usize,
) -> io::Result<(ShardMailbox, LinkMailbox, WorkMailbox)> {
    let bell = Bell::new()?;
    let (link_to_shard, from_link) = queue(TO_SHARD_MAX, &bell);
    let (work_to_shard, from_work) = queue(TO_SHARD_MAX, &bell);
    let (to_link, link_from_shard) = queue(to_link, link);
    let (to_work, work_from_shard) = queue(TO_WORK_MAX, work);
    Ok((
        ShardMailbox {
            bell,
            from_link,
            from_work,
            to_link,
            to_work,
        },
        LinkMailbox {
            to_shard: link_to_shard,
            from_shard: link_from_shard,
        },
        WorkMailbox {
            to_shard: work_to_shard,
            from_shard: work_from_shard,
        },
    ))
}

fn queue<T>(capacity: usize, bell: &Arc<Bell>) -> (Sender<T>, Receiver<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    (
        Sender {
            queue: producer,
            bell: Arc::clone(bell),
        },
        Receiver { queue: consumer },
    )
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn rings(bell: &Bell, wait: i64) -> bool {
        let mut fds = [PollFd::new(bell, PollFlags::IN)];
        let wait = Timespec {
            tv_sec: wait,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&wait)).unwrap() == 1
    }

    #[test]
    fn the_bell_rings_only_for_a_sleeper() {
        let bell = Bell::new().unwrap();
        let (mut sender, mut receiver) = queue(2, &bell);
        sender.push(1).unwrap();
        assert!(!rings(&bell, 0));
        bell.park();
        assert!(!receiver.is_empty(), "whoever parks looks again");
        sender.push(2).unwrap();
        assert!(rings(&bell, 0));
        bell.silence();
        bell.unpark();
        assert!(!rings(&bell, 0));
        assert_eq!(sender.push(3), Err(3));
        assert_eq!(
            (receiver.pop(), receiver.pop(), receiver.pop()),
            (Some(1), Some(2), None)
        );
    }

    /// What waited was for the shard that was; that all is to end is for whoever hears it.
    #[test]
    fn a_shard_that_begins_anew_drops_its_mail_but_hears_the_end() {
        let (link, work) = (Bell::new().unwrap(), Bell::new().unwrap());
        let (mut shard, mut of_link, mut of_work) = mailboxes_of(&link, &work, 1).unwrap();
        of_link.to_shard.push(ToShard::Forget).unwrap();
        of_work.to_shard.push(ToShard::Progress).unwrap();
        assert!(!shard.discard());
        assert!(shard.pop().is_none());
        // Told only when there is room: the link thread must not miss it.
        assert!(shard.tell_restarted() && !shard.tell_restarted());
        assert!(matches!(of_link.from_shard.pop(), Some(ToLink::Restarted)));
        assert!(shard.tell_restarted());
        of_link.to_shard.push(ToShard::Stop).unwrap();
        of_link.to_shard.push(ToShard::Forget).unwrap();
        assert!(shard.discard());
        drop(of_link);
        assert!(shard.discard(), "nobody is left to say it");
    }

    #[test]
    fn no_wake_up_is_lost() {
        const COUNT: u32 = 20_000;
        let bell = Bell::new().unwrap();
        let (mut sender, mut receiver) = queue(16, &bell);
        let pusher = thread::spawn(move || {
            for number in 0..COUNT {
                while sender.push(number).is_err() {
                    thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < COUNT {
            bell.park();
            if receiver.is_empty() {
                assert!(rings(&bell, 10), "stuck at {expected}");
                bell.silence();
            }
            bell.unpark();
            while let Some(number) = receiver.pop() {
                assert_eq!(number, expected);
                expected += 1;
            }
        }
        pusher.join().unwrap();
    }
}
