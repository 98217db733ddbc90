//! Octets held for others: a budget in all, and a share of it for each source.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shard::Source;

/// What a body takes for nothing: small ones are served whatever large ones hold. Connections bound how often.
pub const FREE_BYTES: usize = 8 << 10;

#[derive(Debug)]
pub struct Memory {
    bytes_max: usize,
    share_max: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    bytes: usize,
    by_source: HashMap<Source, usize>,
}

impl Memory {
    pub fn new(bytes_max: usize, share_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            share_max,
            used: Mutex::default(),
        })
    }

    /// The most that one source may hold.
    pub fn share_max(&self) -> usize {
        self.share_max
    }

    pub fn used(&self) -> usize {
        self.lock().bytes
    }

    /// A buffer that grows as the budget allows.
    pub fn buffer(self: &Arc<Self>, source: Source) -> Buffer {
        Buffer {
            memory: Arc::clone(self),
            source,
            charged: 0,
            octets: Vec::new(),
        }
    }

    /// Plain sums: whole whoever panicked.
    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, source: Source, bytes: usize) -> bool {
        let mut used = self.lock();
        let own = used.by_source.get(&source).copied().unwrap_or(0);
        if used.bytes + bytes > self.bytes_max || own + bytes > self.share_max {
            return false;
        }
        used.bytes += bytes;
        used.by_source.insert(source, own + bytes);
        true
    }

    fn give_back(&self, source: Source, bytes: usize) {
        let mut used = self.lock();
        used.bytes -= bytes;
        if let Some(own) = used.by_source.get_mut(&source) {
            *own -= bytes;
            if *own == 0 {
                used.by_source.remove(&source);
            }
        }
    }
}

/// Octets that a budget pays for; it is given back when this goes.
#[derive(Debug)]
pub struct Buffer {
    memory: Arc<Memory>,
    source: Source,
    charged: usize,
    octets: Vec<u8>,
}

impl Buffer {
    pub fn bytes(&self) -> usize {
        self.octets.len()
    }

    /// False, and unchanged: the budget or the source's share of it is used up.
    pub fn push(&mut self, octets: &[u8]) -> bool {
        let length = self.octets.len() + octets.len();
        if length > self.octets.capacity() {
            let doubled = self.octets.capacity() * 2;
            let granted = [doubled.max(length), length]
                .into_iter()
                .find(|capacity| self.charge(*capacity));
            let Some(capacity) = granted else {
                return false;
            };
            self.octets.reserve_exact(capacity - self.octets.len());
        }
        self.octets.extend_from_slice(octets);
        true
    }

    fn charge(&mut self, capacity: usize) -> bool {
        let more = capacity.saturating_sub(FREE_BYTES + self.charged);
        let granted = more == 0 || self.memory.take(self.source, more);
        if granted {
            self.charged += more;
        }
        granted
    }

    /// The octets; what they are charged stays charged until the second goes.
    pub fn finish(mut self) -> (Vec<u8>, Self) {
        (std::mem::take(&mut self.octets), self)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.charged > 0 {
            self.memory.give_back(self.source, self.charged);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn source(last: u8) -> Source {
        IpAddr::from([10, 0, 0, last]).into()
    }

    #[test]
    fn a_source_has_a_share_and_all_have_a_budget() {
        let kib = |n: usize| n << 10;
        let memory = Memory::new(kib(40), kib(16));
        let mut one = memory.buffer(source(1));
        let filled =
            |buffer: &mut Buffer| (0..1_000).take_while(|_| buffer.push(&[0; 1024])).count();
        // Its share and what is free.
        assert_eq!(filled(&mut one), 24);
        let mut again = memory.buffer(source(1));
        assert_eq!(filled(&mut again), 8, "small bodies go on");
        let mut two = memory.buffer(source(2));
        assert_eq!(filled(&mut two), 24);
        let mut three = memory.buffer(source(3));
        assert!(filled(&mut three) >= 8);
        assert!(memory.used() <= kib(40));
        let (octets, charge) = two.finish();
        assert_eq!(octets.len(), kib(24));
        drop(octets);
        assert!(
            memory.used() >= kib(32),
            "charged while its request is under way"
        );
        drop((charge, one, again, three));
        assert_eq!(memory.used(), 0);
        assert!(memory.lock().by_source.is_empty());
    }
}
