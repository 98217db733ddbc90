//! How much may be arriving at once. Pure but for the counters.

use std::sync::atomic::{AtomicU64, Ordering};

use store::image::Uploads;

use crate::LibraryError;

/// Files that may be arriving at once, and their octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Budget {
    files: u64,
    bytes: u64,
}

const ALL: Budget = Budget {
    files: 1024,
    bytes: 256 << 30,
};
const OF_ACCOUNT: Budget = Budget {
    files: 512,
    bytes: 128 << 30,
};
/// Of the disk, for everything else.
const DISK_RESERVE: u64 = 1 << 30;

impl Budget {
    fn holds(self, uploads: Uploads) -> bool {
        uploads.files <= self.files && uploads.bytes <= self.bytes
    }
}

/// Whether these uploads, the new one among them, may go on; `free` octets are left on the disk.
pub(crate) fn admit(
    all: Uploads,
    own: Uploads,
    size_bytes: u64,
    free: u64,
) -> Result<(), LibraryError> {
    if !OF_ACCOUNT.holds(own) {
        return Err(LibraryError::NoRoom { of_account: true });
    }
    if !ALL.holds(all) {
        return Err(LibraryError::NoRoom { of_account: false });
    }
    if all.missing_bytes.saturating_add(DISK_RESERVE) > free {
        return Err(LibraryError::DiskFull { size_bytes });
    }
    Ok(())
}

/// What uploads were refused, from the start of the process; and what they held when one was last announced.
#[derive(Debug, Default)]
pub struct Counters {
    pub announced: AtomicU64,
    pub held_bytes: AtomicU64,
    pub refused_account: AtomicU64,
    pub refused_all: AtomicU64,
    pub disk_full: AtomicU64,
    pub given_up: AtomicU64,
    pub unused_removed: AtomicU64,
}

impl Counters {
    /// (name, what it counts, value)
    pub fn read(&self) -> [(&'static str, &'static str, u64); 3] {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        [
            (
                "disk_full",
                "uploads refused because of the disk",
                read(&self.disk_full),
            ),
            (
                "given_up",
                "uploads given up after a day without a chunk",
                read(&self.given_up),
            ),
            (
                "unused_removed",
                "files removed that nothing named for a week",
                read(&self.unused_removed),
            ),
        ]
    }

    /// Octets that may be arriving at once.
    pub const fn bytes_max() -> u64 {
        ALL.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_at_once_has_a_bound_in_all_for_each_account_and_by_the_disk() {
        const GIB: u64 = 1 << 30;
        let uploads = |files, gib, missing| Uploads {
            files,
            bytes: gib * GIB,
            missing_bytes: missing * GIB,
        };
        let none = uploads(0, 0, 0);
        let full = |of_account| Err(format!("{:?}", LibraryError::NoRoom { of_account }));
        let disk = Err(format!("{:?}", LibraryError::DiskFull { size_bytes: 7 }));
        for (all, own, free, want) in [
            (none, none, 10, Ok(())),
            (uploads(1024, 256, 99), uploads(512, 128, 99), 100, Ok(())),
            (uploads(1, 129, 1), uploads(1, 129, 1), 100, full(true)),
            (uploads(513, 1, 1), uploads(513, 1, 1), 100, full(true)),
            (uploads(3, 257, 1), uploads(1, 1, 1), 100, full(false)),
            (uploads(1025, 1, 1), uploads(1, 1, 1), 100, full(false)),
            (uploads(2, 60, 60), uploads(1, 30, 30), 60, disk.clone()),
            (uploads(2, 60, 60), uploads(1, 30, 30), 61, Ok(())),
        ] {
            let got = admit(all, own, 7, free * GIB).map_err(|error| format!("{error:?}"));
            assert_eq!(got, want, "{all:?} {own:?} {free}");
        }
    }
}
