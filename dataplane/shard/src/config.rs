//! What a shard is told once, at its start.

use crate::mailbox::TO_WORK_MAX;

/// Limits and places of one shard. `Default` is one shard with the production limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// This shard, `0..count`.
    pub index: u32,
    /// Shards of the rack, at least 1.
    pub count: u32,
    /// The port in boot files: where this rack's HTTP is reached.
    pub http_port: u16,
    pub dhcp: dhcp::Limits,
    /// Random: DHCP's tables are keyed by what strangers send.
    pub seed: u64,
    pub tftp: tftp::Limits,
    pub http: images::Limits,
    /// Connections served at a time, and of them one source's; the next get 503. A quarter as many more may have sent no
    /// whole head yet, and a quarter may be idle between requests.
    pub connections_max: usize,
    pub connections_per_source_max: usize,
    /// Connections on their way to the work thread.
    pub hand_offs_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            index: 0,
            count: 1,
            http_port: 5248,
            dhcp: dhcp::Limits::default(),
            seed: 0,
            tftp: tftp::Limits::default(),
            http: images::Limits::default(),
            connections_max: 4096,
            connections_per_source_max: 512,
            hand_offs_max: TO_WORK_MAX / 2,
        }
    }
}
