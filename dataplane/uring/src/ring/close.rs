//! A ring's end: nothing may be in flight when its memory goes.

use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use super::Ring;
use crate::queue::{Kind, Reaped};

/// How long a drop waits for what is in flight before it gives the memory up instead.
const DRAIN_WAIT: Duration = Duration::from_secs(2);

impl Drop for Ring {
    /// Ends everything in flight before its memory goes. What cannot be ended keeps its memory: a leak is harmless.
    fn drop(&mut self) {
        let deadline = Instant::now() + DRAIN_WAIT;
        // Cancellation sees only what was submitted.
        let _ = self.queue.submit();
        let _ = self.queue.cancel_all(DRAIN_WAIT);
        loop {
            let mut reaped = Vec::new();
            if self
                .queue
                .reap(Duration::from_millis(10), Duration::ZERO, &mut reaped)
                .is_err()
            {
                break;
            }
            for completion in reaped {
                self.on_drained(completion);
            }
            let armed = self.sockets.iter().any(|(_, socket)| socket.armed)
                || self
                    .listener
                    .as_ref()
                    .is_some_and(|listener| listener.armed)
                || self.bell_armed;
            let memory = &*self.memory;
            let in_flight = memory.small.in_flight_count()
                + memory.large.in_flight_count()
                + memory.streams.in_flight_count();
            if !armed && in_flight == 0 {
                // SAFETY: nothing is in flight, so the kernel no longer uses `memory`; it is not used after this.
                unsafe { ManuallyDrop::drop(&mut self.memory) };
                return;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        // Not drained in time: the memory stays, for the kernel may still write to it.
        tracing::warn!(
            "operations of a closed io_uring did not end; their memory is left to the kernel"
        );
    }
}

impl Ring {
    /// Like `on_reaped`, while everything ends: only what is in flight matters.
    fn on_drained(&mut self, reaped: Reaped) {
        if reaped.goes_on() {
            return;
        }
        match reaped.kind {
            Kind::Bell => self.bell_armed = false,
            Kind::Datagrams => {
                if let Some(socket) = self.sockets.get_mut(reaped.index as usize) {
                    socket.armed = false;
                }
            }
            Kind::Accept => {
                if let Some(listener) = &mut self.listener {
                    listener.armed = false;
                }
                if reaped.result >= 0 {
                    drop(crate::streams::adopt(reaped.result));
                }
            }
            Kind::SendSmall => self.memory.small.free(reaped.index),
            Kind::SendLarge => self.memory.large.free(reaped.index),
            Kind::StreamReceive | Kind::StreamSend | Kind::StreamWritable | Kind::StreamCancel => {
                self.memory.streams.on_drained(reaped.index);
            }
            Kind::Cancel => {}
        }
    }
}
