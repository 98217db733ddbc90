//! One TFTP read: we send one file to one client. Sans-IO.
//!
//! The caller owns the socket, the file and the clock. It reports what happened with `on_ack` or `on_deadline` and does
//! what the returned [`Step`] says. Nothing here blocks, allocates or reads the time.
//!
//! Until the client's first ACK nothing shows that it receives: then one packet (the OACK, or block 1) is sent at most
//! [`FIRST_SENDS_MAX`] times of our own accord, and the transfer ends after [`FIRST_LIFE`], whatever the client asked
//! for. After it, each window is sent again as the terms say, and all ends at the end of a lifetime that grows with
//! the file.
//!
//! RFC 1350 §6 (ending), RFC 2347 (OACK), RFC 2348 (blksize), RFC 7440 §4 (windows).

use std::time::{Duration, Instant};

use crate::terms::Terms;

/// Before the first ACK: times the first packet is sent without another request, and the time from one to the next.
const FIRST_SENDS_MAX: u8 = 3;
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// However often the request is repeated.
const FIRST_LIFE: Duration = Duration::from_secs(5);
/// After it: a minute, and a quarter of a second for each block, which leaves room for a slow path and loss.
const LIFE: Duration = Duration::from_secs(60);
const LIFE_PER_BLOCK: Duration = Duration::from_millis(250);
const LIFE_MAX: Duration = Duration::from_secs(3600);
/// So much has to be confirmed before that counts as progress: one block now and then keeps no place that another wants.
const PACE_BYTES: u64 = 16 * 1024;

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send the OACK, then wait until `deadline`.
    SendOack { deadline: Instant },
    /// Send DATA `first..=last` in order, then wait until `deadline`. Blocks count from 1 and don't wrap; the wire
    /// carries the low 16 bits.
    SendBlocks {
        first: u64,
        last: u64,
        deadline: Instant,
    },
    /// Keep waiting for the deadline already given.
    Wait,
    /// The client has the whole file.
    Finished,
    /// No answer to any resend, or the transfer has taken too long. Send nothing more.
    GaveUp,
}

/// What an ACK would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Old, repeated, or of no block that was sent.
    Nothing,
    /// So many blocks more are confirmed.
    Progress(u64),
    /// The last one is.
    End,
}

#[derive(Debug)]
pub struct ReadSession {
    terms: Terms,
    /// The final block: shorter than `block_bytes`, perhaps empty. At least 1.
    last_block: u64,
    /// Highest block the client confirmed; `acked <= sent <= last_block`.
    acked: u64,
    sent: u64,
    /// The OACK is out and its ACK (block 0) is still due.
    oack_pending: bool,
    /// The client has answered, and the transfer went on.
    confirmed: bool,
    /// When [`PACE_BYTES`] were last complete, and what was confirmed since.
    progress: Instant,
    since: u64,
    deadline: Instant,
    /// All is over by then.
    ends: Instant,
    retries: u8,
}

impl ReadSession {
    pub fn start(terms: Terms, file_bytes: u64, oack: bool, now: Instant) -> (Self, Step) {
        let mut session = Self {
            terms,
            // The end is marked by a short block, so a file that divides evenly ends with an empty one (RFC 1350 §6).
            last_block: file_bytes / u64::from(terms.block_bytes) + 1,
            acked: 0,
            sent: 0,
            oack_pending: oack,
            confirmed: false,
            progress: now,
            since: 0,
            deadline: now,
            ends: now + FIRST_LIFE,
            retries: 0,
        };
        let step = session.send(now);
        (session, step)
    }

    /// What the ACK of `wire_block`, the low 16 bits of a block number, would do.
    pub fn answer(&self, wire_block: u16) -> Answer {
        if self.oack_pending {
            return match wire_block {
                0 => Answer::Progress(0),
                _ => Answer::Nothing,
            };
        }
        let ahead = u64::from(wire_block.wrapping_sub(self.acked as u16)); // low 16 bits
        if ahead == 0 || ahead > self.sent - self.acked {
            // Old or repeated. Answering would double the traffic until the end of the transfer (RFC 1123 §4.2.3.1);
            // the deadline covers a real loss, at the cost of one `retry_after` when a window's first block is lost.
            Answer::Nothing
        } else if self.acked + ahead == self.last_block {
            Answer::End
        } else {
            Answer::Progress(ahead)
        }
    }

    /// The client acknowledged `wire_block`.
    pub fn on_ack(&mut self, wire_block: u16, now: Instant) -> Step {
        if now >= self.ends {
            return Step::GaveUp;
        }
        let ahead = match self.answer(wire_block) {
            Answer::Nothing => return Step::Wait,
            Answer::End => {
                self.acked = self.last_block;
                return Step::Finished;
            }
            Answer::Progress(ahead) => ahead,
        };
        if !self.confirmed {
            let blocks = u32::try_from(self.last_block).unwrap_or(u32::MAX);
            self.ends = now + LIFE_MAX.min(LIFE + LIFE_PER_BLOCK.saturating_mul(blocks));
            self.progress = now;
        }
        self.oack_pending = false;
        self.acked += ahead;
        self.confirmed = true;
        self.since += ahead * u64::from(self.terms.block_bytes);
        if self.since >= PACE_BYTES {
            self.since = 0;
            self.progress = now;
        }
        self.retries = 0;
        self.send(now)
    }

    /// The last deadline may have passed without an answer.
    pub fn on_deadline(&mut self, now: Instant) -> Step {
        if now >= self.ends {
            return Step::GaveUp;
        }
        if now < self.deadline {
            return Step::Wait;
        }
        let retries_max = match self.confirmed {
            true => self.terms.retries_max,
            false => FIRST_SENDS_MAX - 1,
        };
        if self.retries >= retries_max {
            return Step::GaveUp;
        }
        self.retries += 1;
        self.send(now)
    }

    /// The client sent its request once more. `None` if it has answered since the first, or this transfer has had its
    /// time: then this is another boot of the same machine, which must see the OACK again.
    pub fn on_repeated_request(&mut self, now: Instant) -> Option<Step> {
        (!self.confirmed && now < self.ends).then(|| self.send(now))
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The highest block that the client has confirmed.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// How long nothing was confirmed that is worth a place.
    pub fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.progress)
    }

    /// The OACK, or the window after the last confirmed block.
    fn send(&mut self, now: Instant) -> Step {
        let wait = match self.confirmed {
            true => self.terms.retry_after,
            false => FIRST_WAIT,
        };
        self.deadline = self.ends.min(now + wait);
        if self.oack_pending {
            return Step::SendOack {
                deadline: self.deadline,
            };
        }
        let first = self.acked + 1;
        self.sent = self
            .last_block
            .min(self.acked + u64::from(self.terms.window_blocks));
        Step::SendBlocks {
            first,
            last: self.sent,
            deadline: self.deadline,
        }
    }
}
