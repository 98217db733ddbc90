//! File descriptors: as many as the system allows, and some kept from connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept for files, the database, timers and whatever else is no connection.
pub const RESERVE: u64 = 512;

/// Raises the soft limit to the hard one. Returns what holds then.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum;
    if limit.current != maximum {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "raising the limit of open files");
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many of `wanted` connections there may be when `limit` descriptors are to be had; `share` of `shares` parts.
pub fn connections(limit: u64, wanted: u64, share: u64, shares: u64) -> u64 {
    let free = limit.saturating_sub(RESERVE.min(limit / 2));
    wanted.min(free / shares.max(1) * share).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert_eq!(raise_limit(), hard);
    }

    #[test]
    fn connections_leave_descriptors_in_reserve() {
        for (limit, wanted, want) in [
            (1 << 20, 4096, 4096),
            (1024, 4096, 256),
            (4096, 4096, 1792),
            (0, 4096, 1),
        ] {
            assert_eq!(connections(limit, wanted, 2, 4), want, "{limit}");
        }
    }
}
