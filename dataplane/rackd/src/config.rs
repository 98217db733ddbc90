//! rackd's configuration file (TOML). A rack needs only its enrolment token; the region tells it the rest.

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Certificate, spool and image cache live here; wiping it costs a new enrolment, nothing else.
    pub state_dir: PathBuf,
    /// The one-time token of `muster rack token`; read only until the rack is enrolled.
    pub token_file: Option<PathBuf>,
    /// The name the rack enrols under; the host's own when not given.
    pub hostname: Option<String>,
    /// Packet threads; without it one less than the host's cores, at least one.
    pub shards: Option<NonZeroU16>,
    /// Disk that images may use.
    pub cache_bytes: u64,
    pub tftp_port: u16,
    pub http_port: u16,
    pub dhcp: DhcpLimits,
    /// A filter as `tracing` has them.
    pub log: String,
}

/// How much of DHCP one client and one port of a relay may ask for. Every shard counts for itself: all messages of a client are one
/// shard's, a port's clients may be several shards'.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DhcpLimits {
    /// Messages of one client, on and on; 0: no limit.
    pub client_rate: u32,
    /// Messages of one client at once.
    pub client_burst: u32,
    /// The same of one port of a relay (option 82).
    pub circuit_rate: u32,
    pub circuit_burst: u32,
    /// Addresses that the clients of one port may hold; 0: no limit. Clients with a reservation are never refused.
    pub circuit_leases: u32,
}

impl Default for DhcpLimits {
    fn default() -> Self {
        let limits = dhcp::Limits::default();
        Self {
            client_rate: limits.mac_rate.per_sec,
            client_burst: limits.mac_rate.burst,
            circuit_rate: limits.circuit_rate.per_sec,
            circuit_burst: limits.circuit_rate.burst,
            circuit_leases: limits.leases_per_circuit_max,
        }
    }
}

impl DhcpLimits {
    /// Of one shard. A rate without a burst lets one second of it through at once.
    pub fn of_shard(&self, probe_stock: usize) -> dhcp::Limits {
        let rate = |per_sec, burst| dhcp::Rate {
            per_sec,
            burst: if burst == 0 { per_sec } else { burst },
        };
        dhcp::Limits {
            mac_rate: rate(self.client_rate, self.client_burst),
            circuit_rate: rate(self.circuit_rate, self.circuit_burst),
            leases_per_circuit_max: self.circuit_leases,
            probe_stock,
            ..dhcp::Limits::default()
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/muster/rack".into(),
            token_file: None,
            hostname: None,
            shards: None,
            cache_bytes: 20 << 30,
            tftp_port: 69,
            http_port: 5248,
            dhcp: DhcpLimits::default(),
            log: "info".to_owned(),
        }
    }
}

impl Config {
    /// Reads `path`; the defaults when it is the default path and there is none.
    pub fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let (path, needed) = match path {
            Some(path) => (path, true),
            None => (Path::new("/etc/muster/rackd.toml"), false),
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if !needed && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
        };
        toml::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    pub fn shard_count(&self) -> u16 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let default = u16::try_from(cores.saturating_sub(1).max(1)).unwrap_or(u16::MAX);
        self.shards.map_or(default, NonZeroU16::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults_and_a_typo_is_an_error() {
        let config: Config = toml::from_str("").expect("parses");
        assert_eq!(config.http_port, 5248);
        assert!(config.shard_count() >= 1);
        toml::from_str::<Config>("shard = 2").expect_err("a typo");
        toml::from_str::<Config>("shards = 0").expect_err("no shards at all");
        toml::from_str::<Config>("[dhcp]\ncircuit = 2").expect_err("a typo in a table");
    }

    #[test]
    fn ports_are_limited_when_the_file_says_so() {
        let limits = |text: &str| {
            let config: Config = toml::from_str(text).expect("parses");
            config.dhcp.of_shard(7)
        };
        let default = dhcp::Limits {
            probe_stock: 7,
            ..dhcp::Limits::default()
        };
        assert_eq!(limits(""), default);
        let of_port = limits("[dhcp]\ncircuit_rate = 50\ncircuit_leases = 4");
        let rate = dhcp::Rate {
            burst: 50,
            per_sec: 50,
        };
        assert_eq!(of_port.circuit_rate, rate);
        assert_eq!(of_port.leases_per_circuit_max, 4);
        assert_eq!(of_port.mac_rate, default.mac_rate);
    }
}
