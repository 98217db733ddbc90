//! What a shard is told once, at its start.

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
    /// Connections served at a time; the next get 503.
    pub connections_max: usize,
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
        }
    }
}
