//! What a shard is told once, at its start.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net};

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
    /// Where relays send from that the operator trusts to say which link a client is on.
    pub trusted_relays: Arc<[Ipv4Net]>,
    /// Devices that clients' messages come through with an Ethernet source that is not the client's.
    pub any_source_devices: Arc<[String]>,
    /// Random: DHCP's tables are keyed by what strangers send.
    pub seed: u64,
    /// How often it has begun anew.
    pub restarts: u64,
    pub tftp: tftp::Limits,
    /// Networks that are served by TFTP beside the subnets of the snapshot.
    pub tftp_allow: Arc<[IpNet]>,
    pub http: images::Limits,
    /// Connections served at a time, and of them one source's; the next get 503. A quarter as many more may have sent no
    /// whole head yet, and a quarter may be idle between requests.
    pub connections_max: usize,
    pub connections_per_source_max: usize,
    /// Connections on their way to the work thread.
    pub hand_offs_max: usize,
    pub bound: Bound,
}

type MacAt = dyn Fn(IpAddr, Instant) -> Option<[u8; 6]> + Send + Sync;

/// Which card an address was given to, as far as the whole rack knows: a shard knows its own leases only, and its HTTP
/// and TFTP clients have theirs from any.
#[derive(Clone)]
pub struct Bound(Arc<MacAt>);

impl Bound {
    /// `mac_at` is called once for each request and may not block for long.
    pub fn new(
        mac_at: impl Fn(IpAddr, Instant) -> Option<[u8; 6]> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(mac_at))
    }

    pub(crate) fn mac_at(&self, address: IpAddr, now: Instant) -> Option<[u8; 6]> {
        (self.0)(address, now)
    }
}

impl Default for Bound {
    fn default() -> Self {
        Self::new(|_, _| None)
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bound")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            index: 0,
            count: 1,
            http_port: 5248,
            dhcp: dhcp::Limits::default(),
            trusted_relays: Arc::from([]),
            any_source_devices: Arc::from([]),
            seed: 0,
            restarts: 0,
            tftp: tftp::Limits::default(),
            tftp_allow: [].into(),
            http: images::Limits::default(),
            connections_max: 4096,
            connections_per_source_max: 512,
            hand_offs_max: TO_WORK_MAX / 2,
            bound: Bound::default(),
        }
    }
}

impl Config {
    pub(crate) fn is_trusted_relay(&self, source: Ipv4Addr) -> bool {
        self.trusted_relays.iter().any(|net| net.contains(&source))
    }

    pub(crate) fn is_any_source(&self, device: &str) -> bool {
        self.any_source_devices.iter().any(|name| name == device)
    }
}
