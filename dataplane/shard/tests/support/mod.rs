//! A driver that touches no memory but its own: one datagram in, the last one out.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use images::Object;
use shard::{
    Buffer, Close, Completion, Driver, DriverCounters, LinkSocket, NoSlot, StreamId, Target, Train,
};

const SENT_BYTES: usize = 2048;

/// One datagram in, the last one sent out; the buffers are its own.
pub struct Still {
    pub now: Instant,
    pub arrived: Option<Completion>,
    pub received: Box<[u8]>,
    pub sent: Box<[u8; SENT_BYTES]>,
    pub sent_bytes: usize,
    pub sends: usize,
}

impl Still {
    pub fn new() -> Self {
        Self {
            now: Instant::now(),
            arrived: None,
            received: Box::default(),
            sent: Box::new([0; SENT_BYTES]),
            sent_bytes: 0,
            sends: 0,
        }
    }
}

impl Driver for Still {
    fn poll(&mut self, _: Duration, done: &mut Vec<Completion>) -> io::Result<()> {
        done.extend(self.arrived.take());
        Ok(())
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        &self.received[..buffer.length as usize]
    }

    fn release(&mut self, _: Buffer) {}

    fn send(
        &mut self,
        _: &Target,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot> {
        fill(&mut self.sent[..train.bytes]);
        self.sent_bytes = train.bytes;
        self.sends += 1;
        Ok(())
    }

    fn set_links(&mut self, _: Vec<LinkSocket>) {}
    fn stop_accepting(&mut self) {}
    fn stream_send(&mut self, _: StreamId, _: Bytes, _: bool) {}
    fn stream_send_file(&mut self, _: StreamId, _: Arc<Object>, _: u64, _: u64) {}
    fn stream_take(&mut self, _: StreamId) {}
    fn stream_close(&mut self, _: StreamId, _: Close) {}

    fn counters(&self) -> DriverCounters {
        DriverCounters::default()
    }
}
