//! A set of receive buffers that the kernel takes from on its own (IORING_REGISTER_PBUF_RING).
//!
//! A buffer is the kernel's until a completion names it, then ours (`held`) until `give_back`. The two never overlap,
//! and `held` makes it so: only a held buffer is read or given back.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

const PAGE_BYTES: usize = 4096;

pub(crate) struct Buffers {
    group: u16,
    /// A power of two.
    count: u16,
    buffer_bytes: usize,
    /// The ring of free buffers, shared with the kernel: `count` entries, page-aligned.
    ring: NonNull<BufRingEntry>,
    ring_layout: Layout,
    /// `count` buffers of `buffer_bytes`.
    memory: NonNull<u8>,
    memory_layout: Layout,
    /// Ours at the moment.
    held: Box<[bool]>,
    held_count: usize,
    /// Entries ever added, as the kernel reads it.
    tail: u16,
}

impl Buffers {
    /// Registers the set under `group`. `count` must be a power of two, at most 32768.
    pub fn register(
        submitter: &Submitter<'_>,
        group: u16,
        count: u16,
        buffer_bytes: usize,
    ) -> io::Result<Self> {
        assert!(
            count.is_power_of_two() && buffer_bytes > 0,
            "a set of buffers"
        );
        let layouts = (
            Layout::from_size_align(usize::from(count) * size_of::<BufRingEntry>(), PAGE_BYTES),
            Layout::from_size_align(usize::from(count) * buffer_bytes, PAGE_BYTES),
        );
        let (Ok(ring_layout), Ok(memory_layout)) = layouts else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut buffers = Self {
            group,
            count,
            buffer_bytes,
            ring: allocate(ring_layout).cast(),
            ring_layout,
            memory: allocate(memory_layout),
            memory_layout,
            // So that the first `give_back` of each is in order.
            held: vec![true; usize::from(count)].into(),
            held_count: usize::from(count),
            tail: 0,
        };
        let ring = buffers.ring.as_ptr() as u64;
        // SAFETY: `ring` is `count` entries long, page-aligned and zeroed, and stays allocated until `Drop`, which the
        // owner runs only after the io_uring is closed or has nothing in flight (ring.rs, `Drop`).
        unsafe { submitter.register_buf_ring_with_flags(ring, count, group, 0)? };
        for index in 0..count {
            buffers.give_back(index);
        }
        Ok(buffers)
    }

    pub fn group(&self) -> u16 {
        self.group
    }

    /// Every buffer is ours, so a receive would fail.
    pub fn is_exhausted(&self) -> bool {
        self.held_count == usize::from(self.count)
    }

    /// A completion named this buffer: it is ours now.
    pub fn take(&mut self, index: u16) {
        let held = &mut self.held[usize::from(index)];
        assert!(!*held, "the kernel gives a buffer once");
        *held = true;
        self.held_count += 1;
    }

    /// The octets of a held buffer; empty for one that is not held.
    pub fn bytes(&self, index: u16) -> &[u8] {
        if !self.held.get(usize::from(index)).copied().unwrap_or(false) {
            return &[];
        }
        // SAFETY: index < count (checked above), so the range lies in `memory`, which is initialised (zeroed at first)
        // and stays allocated as long as self. The kernel does not write it: it is held, and leaves `held` only in
        // `give_back`, which needs `&mut self`.
        unsafe {
            let start = self
                .memory
                .as_ptr()
                .add(usize::from(index) * self.buffer_bytes);
            std::slice::from_raw_parts(start, self.buffer_bytes)
        }
    }

    /// Gives a held buffer back to the kernel; nothing happens to one that is not held.
    pub fn give_back(&mut self, index: u16) {
        let Some(held) = self.held.get_mut(usize::from(index)).filter(|held| **held) else {
            return;
        };
        *held = false;
        self.held_count -= 1;
        let place = usize::from(self.tail & (self.count - 1));
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `place < count`, so the entry lies in `ring`; the kernel reads entries only below the tail it sees,
        // and this one is published by the Release store that follows. Of `count` buffers never more than `count` are
        // in the ring, so an entry not yet consumed is not overwritten. The address is that of a buffer that nobody
        // else uses. `tail` is the ring's 16-bit tail, aligned, and written by us alone.
        unsafe {
            let entry = self.ring.as_ptr().add(place);
            let start = self
                .memory
                .as_ptr()
                .add(usize::from(index) * self.buffer_bytes);
            (*entry).set_addr(start as u64);
            (*entry).set_len(self.buffer_bytes as u32);
            (*entry).set_bid(index);
            let tail = BufRingEntry::tail(self.ring.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: both were allocated in `register` with these layouts; the kernel no longer uses them (see there).
        unsafe {
            dealloc(self.ring.as_ptr().cast(), self.ring_layout);
            dealloc(self.memory.as_ptr(), self.memory_layout);
        }
    }
}

/// Zeroed memory.
fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: the layout's size is not zero: `count` and `buffer_bytes` are at least 1.
    let pointer = unsafe { alloc_zeroed(layout) };
    NonNull::new(pointer).unwrap_or_else(|| handle_alloc_error(layout))
}
