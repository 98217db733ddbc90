//! The queue of submissions and completions, and the inventory of what can be in flight ([`Kind`]).
//!
//! User data of every operation is `kind (8 bits) | unused (24) | index (32)`. Completions are copied out of the queue
//! before any is handled.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// Everything that can be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Bell = 1,
    /// Multishot receive of datagrams; index: socket.
    Datagrams,
    /// Multishot accept.
    Accept,
    /// A datagram or train; index: slot.
    SendSmall,
    SendLarge,
    /// Index: stream.
    StreamReceive,
    StreamSend,
    StreamWritable,
    StreamCancel,
    /// A cancellation whose own answer does not matter.
    Cancel,
}

impl Kind {
    fn from_octet(octet: u8) -> Option<Self> {
        const ALL: [Kind; 10] = [
            Kind::Bell,
            Kind::Datagrams,
            Kind::Accept,
            Kind::SendSmall,
            Kind::SendLarge,
            Kind::StreamReceive,
            Kind::StreamSend,
            Kind::StreamWritable,
            Kind::StreamCancel,
            Kind::Cancel,
        ];
        ALL.get(usize::from(octet).checked_sub(1)?).copied()
    }
}

/// The user data of an operation.
pub(crate) fn user_data(kind: Kind, index: u32) -> u64 {
    (kind as u64) << 56 | u64::from(index)
}

/// One completion, copied out of the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reaped {
    pub kind: Kind,
    pub index: u32,
    /// As the kernel says it: a count, or a negated errno.
    pub result: i32,
    flags: u32,
}

impl Reaped {
    /// The operation goes on: more completions will come.
    pub fn goes_on(&self) -> bool {
        cqueue::more(self.flags)
    }

    pub fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// The submission side with what it needs, apart from the tables it serves.
pub(crate) struct Queue {
    ring: IoUring,
    /// The kernel can gather (6.12 on).
    gathers: bool,
    enters: u64,
    refused: u64,
}

/// How long a thread waits that has nothing to do and to whom the kernel has no memory to give.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(1);

/// EINTR: a signal. EBUSY: completions must be taken first. EAGAIN: no memory for a request now. What was not submitted
/// stays queued; everything else is the ring's end.
fn passes(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)
    )
}

/// Completions that end a gathering wait early.
const GATHERED_MAX: usize = 64;

impl Queue {
    pub fn new(ring: IoUring) -> Self {
        let gathers = ring.params().is_feature_min_timeout();
        Self {
            ring,
            gathers,
            enters: 0,
            refused: 0,
        }
    }

    /// Calls into the kernel so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Of them, those that the kernel could not serve just then.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// What is not submitted for a passing reason stays queued.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enters += 1;
        match self.ring.submit() {
            Err(error) if passes(&error) => {
                self.refused += 1;
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// Asks the kernel to end everything that was submitted, and waits for it at most so long.
    pub fn cancel_all(&mut self, wait: Duration) -> io::Result<()> {
        let wait = Some(Timespec::from(wait));
        self.ring
            .submitter()
            .register_sync_cancel(wait, CancelBuilder::any())
    }

    /// Queues one operation. If the queue is full it is submitted first; `WouldBlock`: it is full even so, which passes.
    ///
    /// # Safety
    /// Everything `entry` points at must stay valid and untouched until its last completion.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        for _ in 0..2 {
            // SAFETY: the caller's promise is that of `push`: pointers stay valid until the completion.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Queues an operation that points at nothing: receives into provided buffers, accepts, polls, cancellations.
    pub fn push_plain(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: `entry` holds no pointer; its buffers are the provided rings, which outlive all operations
        // (`Ring::drop`). Callers are `arm_*`, `cancel` and streams.rs, which build only such operations.
        unsafe { self.push(entry) }
    }

    pub fn cancel_fd(&mut self, fd: RawFd, answer: u64) -> io::Result<()> {
        let builder = CancelBuilder::fd(Fd(fd)).all();
        self.push_plain(&opcode::AsyncCancel2::new(builder).build().user_data(answer))
    }

    pub fn cancel(&mut self, target: u64, answer: u64) -> io::Result<()> {
        let builder = CancelBuilder::user_data(target);
        self.push_plain(&opcode::AsyncCancel2::new(builder).build().user_data(answer))
    }

    /// Submits, waits at most `wait` for one completion, and copies all there are into `reaped`. A wait lasts `gather`
    /// at least, unless [`GATHERED_MAX`] completions came: each wake-up costs as much as several datagrams.
    pub fn reap(
        &mut self,
        wait: Duration,
        gather: Duration,
        reaped: &mut Vec<Reaped>,
    ) -> io::Result<()> {
        let result = if wait.is_zero() || !self.ring.completion().is_empty() {
            let queued = !self.ring.submission().is_empty();
            let waiting = self.ring.submission().taskrun() || self.ring.submission().cq_overflow();
            if queued || waiting {
                self.enters += 1;
                self.ring.submit().map(drop)
            } else {
                Ok(())
            }
        } else {
            self.enters += 1;
            let time = Timespec::from(wait);
            let args = SubmitArgs::new().timespec(&time);
            let gather = gather.min(wait).as_micros() as u32; // far below an hour
            let (want, args) = if gather > 0 && self.gathers {
                (GATHERED_MAX, args.min_wait_usec(gather))
            } else {
                (1, args)
            };
            self.ring
                .submitter()
                .submit_with_args(want, &args)
                .map(drop)
        };
        match result {
            Ok(()) => {}
            // Nothing happened.
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
            Err(error) if passes(&error) => {
                self.refused += 1;
                // A lack of memory does not pass by asking again at once.
                if error.raw_os_error() == Some(libc::EAGAIN) && self.ring.completion().is_empty() {
                    std::thread::sleep(NO_MEMORY_PAUSE.min(wait));
                }
            }
            Err(error) => return Err(error),
        }
        for entry in self.ring.completion() {
            let data = entry.user_data();
            if let Some(kind) = Kind::from_octet((data >> 56) as u8) {
                let index = (data & 0xffff_ffff) as u32;
                let (result, flags) = (entry.result(), entry.flags());
                reaped.push(Reaped {
                    kind,
                    index,
                    result,
                    flags,
                });
            }
        }
        Ok(())
    }
}
