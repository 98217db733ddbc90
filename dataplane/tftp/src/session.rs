//! One TFTP read: we send one file to one client. Sans-IO.
//!
//! The caller owns the socket, the file and the clock. It reports what happened with `on_ack` or `on_deadline` and does
//! what the returned [`Step`] says. Nothing here blocks, allocates or reads the time.
//!
//! RFC 1350 §6 (ending), RFC 2347 (OACK), RFC 2348 (blksize), RFC 7440 §4 (windows).

use std::time::Instant;

use crate::terms::Terms;

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
    /// No answer to any resend. Send nothing more.
    GaveUp,
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
    /// The client has answered at least once.
    confirmed: bool,
    deadline: Instant,
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
            deadline: now,
            retries: 0,
        };
        let step = session.send(now);
        (session, step)
    }

    /// The client acknowledged `wire_block`, the low 16 bits of a block number.
    pub fn on_ack(&mut self, wire_block: u16, now: Instant) -> Step {
        let ahead = u64::from(wire_block.wrapping_sub(self.acked as u16)); // low 16 bits
        if self.oack_pending {
            if wire_block != 0 {
                return Step::Wait;
            }
            self.oack_pending = false;
        } else if ahead == 0 || ahead > self.sent - self.acked {
            // Old or repeated. Answering would double the traffic until the end of the transfer (RFC 1123 §4.2.3.1);
            // the deadline covers a real loss, at the cost of one `retry_after` when a window's first block is lost.
            return Step::Wait;
        }
        self.acked += ahead;
        self.confirmed = true;
        self.retries = 0;
        if self.acked == self.last_block {
            Step::Finished
        } else {
            self.send(now)
        }
    }

    /// The last deadline may have passed without an answer.
    pub fn on_deadline(&mut self, now: Instant) -> Step {
        if now < self.deadline {
            return Step::Wait;
        }
        if self.retries == self.terms.retries_max {
            return Step::GaveUp;
        }
        self.retries += 1;
        self.send(now)
    }

    /// The client sent its request once more. `None` if it has answered since the first: then this is another boot of
    /// the same machine, which must see the OACK again.
    pub fn on_repeated_request(&mut self, now: Instant) -> Option<Step> {
        (!self.confirmed).then(|| self.send(now))
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The OACK, or the window after the last confirmed block.
    fn send(&mut self, now: Instant) -> Step {
        self.deadline = now + self.terms.retry_after;
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
