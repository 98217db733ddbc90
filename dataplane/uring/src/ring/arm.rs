//! What is armed all the time: the bell, the listener and the receives of datagrams, and when each is tried again.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::opcode;
use io_uring::types::Fd;
use shard::Service;

use super::{Ring, SET_DHCP, SET_TFTP, Socket};
use crate::queue::{Kind, user_data};

/// When what ended with an error may be armed again: at once after the first time, later if it goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    not_before: Option<Instant>,
}

/// What fails again and again is tried so often.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);

impl Retry {
    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = (self.failures > 1).then_some(now + RETRY_AFTER);
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }
}

pub(super) struct Listener {
    pub(super) fd: OwnedFd,
    pub(super) armed: bool,
    pub(super) leaving: bool,
    pub(super) retry: Retry,
}

impl Listener {
    pub(super) fn wants_arming(&self) -> bool {
        !self.armed && !self.leaving
    }
}

impl Ring {
    pub(super) fn add_socket(&mut self, fd: OwnedFd, service: Service, interface: u32) -> u32 {
        let socket = Socket {
            fd,
            service,
            interface,
            armed: false,
            leaving: false,
            retry: Retry::default(),
        };
        let index = self.sockets.insert(socket) as u32; // far fewer sockets than that
        self.unarmed.push(index);
        index
    }

    /// Arms what is not armed: at start, and what ended since the last poll. What finds no room in the queue is armed in
    /// the next poll; an error is the ring's end.
    pub(super) fn arm(&mut self) -> io::Result<()> {
        match self.try_to_arm() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.arms_failed += 1;
                Ok(())
            }
            result => result,
        }
    }

    fn try_to_arm(&mut self) -> io::Result<()> {
        while let Some(target) = self.uncancelled.last() {
            self.queue.cancel(*target, user_data(Kind::Cancel, 0))?;
            self.uncancelled.pop();
        }
        if !self.bell_armed && self.bell_retry.is_due(self.now) {
            let poll = opcode::PollAdd::new(Fd(self.bell.as_raw_fd()), libc::POLLIN as u32)
                .multi(true)
                .build()
                .user_data(user_data(Kind::Bell, 0));
            self.queue.push_plain(&poll)?;
            self.bell_armed = true;
        }
        if let Some(listener) = &mut self.listener
            && listener.wants_arming()
            && listener.retry.is_due(self.now)
        {
            let accept = opcode::AcceptMulti::new(Fd(listener.fd.as_raw_fd()))
                .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                .build()
                .user_data(user_data(Kind::Accept, 0));
            self.queue.push_plain(&accept)?;
            listener.armed = true;
        }
        let mut later = Vec::new();
        while let Some(index) = self.unarmed.pop() {
            let Some(socket) = self.sockets.get_mut(index as usize) else {
                continue;
            };
            if socket.armed || socket.leaving {
                continue;
            }
            if !socket.retry.is_due(self.now) {
                later.push(index);
                continue;
            }
            let set = match socket.service {
                Service::DhcpFrame | Service::Dhcp | Service::ProxyDhcp => SET_DHCP,
                Service::TftpRequest | Service::TftpTransfer(_) => SET_TFTP,
            };
            let group = self.memory.sets[set].group();
            let template = &raw const *self.memory.template;
            let receive = opcode::RecvMsgMulti::new(Fd(socket.fd.as_raw_fd()), template, group)
                .build()
                .user_data(user_data(Kind::Datagrams, index));
            // SAFETY: `template` is boxed in `memory`, never written after `new`, and outlives every operation (`drop`).
            let pushed = unsafe { self.queue.push(&receive) };
            if let Err(error) = pushed {
                self.unarmed.push(index);
                self.unarmed.append(&mut later);
                return Err(error);
            }
            socket.armed = true;
        }
        self.unarmed = later;
        Ok(())
    }

    pub(super) fn needs_arming(&self) -> bool {
        !self.bell_armed
            || !self.unarmed.is_empty()
            || !self.uncancelled.is_empty()
            || self.listener.as_ref().is_some_and(Listener::wants_arming)
    }

    pub(super) fn cancel(&mut self, target: u64) {
        let answer = user_data(Kind::Cancel, 0);
        if self.queue.cancel(target, answer).is_err() {
            self.uncancelled.push(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bell, the listener and every socket have one.
    #[test]
    fn what_fails_is_tried_at_once_then_with_pauses_and_a_success_begins_anew() {
        let (mut retry, start) = (Retry::default(), Instant::now());
        assert!(retry.is_due(start));
        retry.failed(start);
        assert!(retry.is_due(start), "the first time at once");
        for round in 1..4 {
            let at = start + RETRY_AFTER * round;
            retry.failed(at);
            assert!(!retry.is_due(at + RETRY_AFTER / 2), "{round}");
            assert!(retry.is_due(at + RETRY_AFTER), "{round}");
        }
        retry.succeeded();
        retry.failed(start);
        assert!(retry.is_due(start));
    }
}
