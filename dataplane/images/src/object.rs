//! One file of the image cache as all shards see it, complete or being filled.
//!
//! The rack's work thread writes it: it puts a verified piece into the file, then sets the piece's bit. Shards only
//! read: a set bit means that the piece's octets are in the file for good. Shards never wait on it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Known, and not here. A shard that needs it asks the work thread once per request.
    Absent,
    Filling,
    Complete,
    /// The last fill failed; the next request asks again.
    Failed,
    /// It was complete, and its file no longer holds what it did (a disk that fails, a file cut short). Nothing of it is
    /// served any more; the work thread puts another object in its place.
    Damaged,
}

#[derive(Debug)]
pub struct Object {
    sha256: [u8; 32],
    size_bytes: u64,
    /// Octets of every piece but the last. Never 0.
    piece_bytes: u32,
    /// One bit per piece.
    present: Box<[AtomicU64]>,
    state: AtomicU8,
    /// Fills that failed. A waiting request gives up when it grows.
    failures: AtomicU32,
    /// Requests served, for the work thread's choice of what to evict.
    uses: AtomicU64,
    file: OnceLock<OwnedFd>,
}

impl Object {
    /// A file that is known and not here yet. `piece_bytes` of 0 counts as one piece for the whole file.
    pub fn absent(sha256: [u8; 32], size_bytes: u64, piece_bytes: u32) -> Self {
        let piece_bytes = if piece_bytes == 0 {
            u32::MAX
        } else {
            piece_bytes
        };
        let pieces = size_bytes.div_ceil(u64::from(piece_bytes));
        Self {
            sha256,
            size_bytes,
            piece_bytes,
            present: (0..pieces.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            state: AtomicU8::new(State::Absent as u8),
            failures: AtomicU32::new(0),
            uses: AtomicU64::new(0),
            file: OnceLock::new(),
        }
    }

    /// A file whose content was verified before.
    pub fn complete(sha256: [u8; 32], size_bytes: u64, piece_bytes: u32, file: OwnedFd) -> Self {
        let object = Self::absent(sha256, size_bytes, piece_bytes);
        object.open(file);
        object.set_complete();
        object
    }

    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    pub fn piece_count(&self) -> u32 {
        u32::try_from(self.size_bytes.div_ceil(u64::from(self.piece_bytes))).unwrap_or(u32::MAX)
    }

    /// The piece that holds the octet at `offset`.
    pub fn piece_at(&self, offset: u64) -> u32 {
        u32::try_from(offset / u64::from(self.piece_bytes)).unwrap_or(u32::MAX)
    }

    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Absent,
            1 => State::Filling,
            2 => State::Complete,
            3 => State::Failed,
            _ => State::Damaged,
        }
    }

    /// Gives the open file, once. Returns whether it was taken; later ones are dropped.
    pub fn open(&self, file: OwnedFd) -> bool {
        self.file.set(file).is_ok()
    }

    /// The open file; present before the first piece is.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.get().map(AsFd::as_fd)
    }

    /// A fill starts. Returns false when one runs already or the object is complete.
    pub fn set_filling(&self) -> bool {
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                (state == State::Absent as u8 || state == State::Failed as u8)
                    .then_some(State::Filling as u8)
            })
            .is_ok()
    }

    /// `piece` is verified and in the file. The last missing piece completes the object.
    pub fn set_present(&self, piece: u32) {
        if piece >= self.piece_count() {
            return;
        }
        // Release: whoever sees the bit sees the file too.
        self.present[piece as usize / 64].fetch_or(1 << (piece % 64), Ordering::Release);
        if (0..self.piece_count()).all(|piece| self.has_bit(piece)) {
            self.state.store(State::Complete as u8, Ordering::Release);
        }
    }

    pub fn set_complete(&self) {
        self.state.store(State::Complete as u8, Ordering::Release);
    }

    /// The fill ended without the whole file. What is present stays present.
    pub fn set_failed(&self) {
        self.state.store(State::Failed as u8, Ordering::Release);
        self.give_up();
    }

    /// The file of a complete object could not be read: whoever serves it says so.
    pub fn set_damaged(&self) {
        let (complete, damaged) = (State::Complete as u8, State::Damaged as u8);
        let was = (Ordering::AcqRel, Ordering::Acquire);
        let done = self
            .state
            .compare_exchange(complete, damaged, was.0, was.1)
            .is_ok();
        if done {
            self.give_up();
        }
    }

    /// Requests that wait for it give up.
    pub fn give_up(&self) {
        self.failures.fetch_add(1, Ordering::AcqRel);
    }

    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Acquire)
    }

    pub fn has_piece(&self, piece: u32) -> bool {
        let state = self.state();
        piece < self.piece_count()
            && state != State::Damaged
            && (state == State::Complete || self.has_bit(piece))
    }

    fn has_bit(&self, piece: u32) -> bool {
        self.present[piece as usize / 64].load(Ordering::Acquire) & (1 << (piece % 64)) != 0
    }

    /// Octets that may be served from `offset` on without a gap, at most `limit`.
    pub fn available(&self, offset: u64, limit: u64) -> u64 {
        let end = self.size_bytes.min(offset.saturating_add(limit));
        if offset >= end || self.file.get().is_none() {
            return 0;
        }
        match self.state() {
            State::Complete => return end - offset,
            State::Damaged => return 0,
            State::Absent | State::Filling | State::Failed => {}
        }
        let mut reached = offset;
        while reached < end && self.has_bit(self.piece_at(reached)) {
            reached = (u64::from(self.piece_at(reached)) + 1) * u64::from(self.piece_bytes);
        }
        reached.min(end) - offset
    }

    pub(crate) fn count_use(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    pub fn uses(&self) -> u64 {
        self.uses.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn only_what_is_present_without_a_gap_is_available() {
        let object = Object::absent([0; 32], 95, 10);
        assert_eq!((object.piece_count(), object.available(0, 99)), (10, 0));
        assert!(object.set_filling());
        assert!(!object.set_filling());
        object.set_present(0);
        assert_eq!(object.available(0, 99), 0, "no file yet");
        object.open(file());
        object.set_present(1);
        object.set_present(3);
        object.set_present(10); // no such piece
        let cases = [
            (0, 99, 20),
            (0, 5, 5),
            (15, 99, 5),
            (20, 99, 0),
            (35, 99, 5),
            (95, 9, 0),
        ];
        for (offset, limit, want) in cases {
            assert_eq!(object.available(offset, limit), want, "{offset} {limit}");
        }
        object.set_failed();
        assert_eq!((object.state(), object.failures()), (State::Failed, 1));
        assert_eq!(object.available(0, 99), 20, "what is there stays");
        assert!(object.set_filling());
        (0..10).for_each(|piece| object.set_present(piece));
        assert_eq!(object.state(), State::Complete);
        assert_eq!(object.available(90, 99), 5);
    }

    #[test]
    fn nothing_of_a_damaged_file_is_served_and_it_is_not_filled_again() {
        let object = Object::absent([0; 32], 20, 10);
        object.set_damaged();
        assert_eq!(object.state(), State::Absent, "only what was complete");
        object.open(file());
        (0..2).for_each(|piece| object.set_present(piece));
        assert_eq!(
            (object.state(), object.available(0, 99)),
            (State::Complete, 20)
        );
        object.set_damaged();
        object.set_damaged();
        assert_eq!((object.state(), object.failures()), (State::Damaged, 1));
        assert_eq!((object.available(0, 99), object.has_piece(0)), (0, false));
        assert!(!object.set_filling());
    }

    #[test]
    fn odd_sizes() {
        let empty = Object::complete([0; 32], 0, 4, file());
        assert_eq!((empty.piece_count(), empty.available(0, 9)), (0, 0));
        let whole = Object::complete([0; 32], 7, 0, file());
        assert_eq!((whole.piece_count(), whole.available(2, 9)), (1, 5));
        let many = Object::absent([0; 32], 65 * 4, 4);
        many.open(file());
        (0..65).for_each(|piece| many.set_present(piece));
        assert_eq!(many.available(0, u64::MAX), 260);
    }
}
