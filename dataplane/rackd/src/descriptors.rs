//! How many files the rack may have open, and what of it connections may take.
//!
//! The soft limit that systemd gives is 1,024, for programs that use select(2); rackd raises its own to the hard one.
//! Connections take eleven sixteenths of what it is then at most: the rest is kept for sockets of links, ARP probes,
//! neighbour look-ups, regions, images and the spool, so that no number of connections stops those.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

/// What connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of each shard: every connection, those that are closing included.
    pub streams_max: usize,
    /// Of each shard: connections that are served, of one source, and on their way to the work thread.
    pub connections_max: usize,
    pub connections_per_source_max: usize,
    pub hand_offs_max: usize,
    /// The proxy's.
    pub proxied_max: usize,
}

/// Where it could not be asked: what systemd gives.
pub const LIMIT_UNKNOWN: u64 = 1_024;
/// Fewer would be a rack that serves nobody.
const LIMIT_MIN: u64 = 256;
/// What there is use for; above this a limit is as good as none.
const STREAMS_MAX: u64 = 8_192;
const HAND_OFFS_MAX: u64 = 512;
const PROXIED_MAX: u64 = crate::work::proxy::CONNECTIONS_MAX as u64;

/// Raises the soft limit of open files to the hard one; what it is now.
pub fn raise() -> io::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
    }
    // None: no limit.
    Ok(limit.current.unwrap_or(u64::MAX))
}

/// Connections within a limit of open files.
pub fn budget(limit: u64, shards: u16) -> Budget {
    let limit = limit.max(LIMIT_MIN);
    let each = |part: u64, most: u64| (part / u64::from(shards.max(1))).clamp(8, most) as usize;
    let streams_max = each(limit / 2, STREAMS_MAX);
    let connections_max = streams_max / 2;
    Budget {
        streams_max,
        connections_max,
        connections_per_source_max: (connections_max / 8).max(4),
        hand_offs_max: each(limit / 16, HAND_OFFS_MAX),
        proxied_max: (limit / 8).min(PROXIED_MAX) as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_rest_of_the_daemon() {
        for (limit, shards) in [
            (256, 1),
            (1_024, 1),
            (1_024, 2),
            (1_024, 7),
            (4_096, 3),
            (524_288, 63),
        ] {
            let budget = budget(limit, shards);
            let each = budget.streams_max + budget.hand_offs_max;
            let taken = each as u64 * u64::from(shards) + budget.proxied_max as u64;
            assert!(taken <= limit * 11 / 16, "{taken} of {limit}");
            // The kinds of places of a shard, and those that linger, fit its table.
            let places = budget.connections_max + 2 * (budget.connections_max / 4).max(1);
            assert!(places + budget.streams_max / 8 < budget.streams_max);
        }
    }

    #[test]
    fn what_systemd_gives_is_enough_and_a_high_limit_changes_nothing() {
        let small = budget(1_024, 2);
        assert_eq!((small.connections_max, small.proxied_max), (128, 128));
        let large = Budget {
            streams_max: 8_192,
            connections_max: 4_096,
            connections_per_source_max: 512,
            hand_offs_max: 512,
            proxied_max: 2_048,
        };
        assert_eq!(budget(524_288, 16), large);
        assert_eq!(budget(u64::MAX, 1), large);
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        let mut low = before;
        low.current = Some(200);
        setrlimit(Resource::Nofile, low).unwrap();
        assert_eq!(raise().unwrap(), before.maximum.unwrap_or(u64::MAX));
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    }
}
