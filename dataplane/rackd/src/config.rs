//! rackd's configuration file (TOML). A rack needs only its enrolment token; the region tells it the rest.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

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
    /// From where `/metrics` is answered beside this host and management networks.
    pub metrics_allow: Vec<ipnet::IpNet>,
    pub tftp_port: u16,
    pub http_port: u16,
    pub dhcp: Dhcp,
    pub tftp: TftpLimits,
    /// A filter as `tracing` has them.
    pub log: String,
}

/// Whom DHCP believes, and how much of it one client and one port of a relay may ask for. Every shard counts for itself: all messages of a client are one
/// shard's, a port's clients may be several shards'.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dhcp {
    /// Messages of one client, on and on; 0: no limit.
    pub client_rate: u32,
    /// Messages of one client at once.
    pub client_burst: u32,
    /// The same of one port of a relay (option 82).
    pub circuit_rate: u32,
    pub circuit_burst: u32,
    /// Addresses that the clients of one port may hold; 0: no limit. Clients with a reservation are never refused.
    pub circuit_leases: u32,
    /// Networks or addresses that relays send from, where that is not their giaddr: they are believed which link their
    /// client is on.
    #[serde(deserialize_with = "networks")]
    pub trusted_relays: Vec<Ipv4Net>,
    /// Devices that DHCP comes through with an Ethernet source that is not its client's (docs/operations/dhcp.md).
    pub any_source_devices: Vec<String>,
}

/// Networks, or single addresses.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Ipv4Net>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let network = |text: &String| {
        text.parse::<Ipv4Net>()
            .or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from))
            .map_err(|_| D::Error::custom(format!("{text:?} is no IPv4 network or address")))
    };
    texts.iter().map(network).collect()
}

impl Default for Dhcp {
    fn default() -> Self {
        let limits = dhcp::Limits::default();
        Self {
            client_rate: limits.mac_rate.per_sec,
            client_burst: limits.mac_rate.burst,
            circuit_rate: limits.circuit_rate.per_sec,
            circuit_burst: limits.circuit_rate.burst,
            circuit_leases: limits.leases_per_circuit_max,
            trusted_relays: Vec::new(),
            any_source_devices: Vec::new(),
        }
    }
}

/// Whom TFTP is served, and how much of it one address may hold of every shard.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TftpLimits {
    /// Networks beside the subnets that the region says this rack serves.
    pub allow: Vec<IpNet>,
    /// Transfers of one address: raise it where many machines are behind one.
    pub transfers_per_client: u16,
}

impl Default for TftpLimits {
    fn default() -> Self {
        let limits = tftp::Limits::default();
        Self {
            allow: vec![],
            transfers_per_client: u16::try_from(limits.transfers_per_client).unwrap_or(u16::MAX),
        }
    }
}

impl TftpLimits {
    /// Of one shard. Half of a share may be unanswered, and as much may wait.
    pub fn of_shard(&self) -> tftp::Limits {
        let share = usize::from(self.transfers_per_client.max(2));
        tftp::Limits {
            transfers_per_client: share,
            unconfirmed_per_client: share / 2,
            pending_per_client: share / 2,
            ..tftp::Limits::default()
        }
    }
}

impl Dhcp {
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
            metrics_allow: Vec::new(),
            tftp_port: 69,
            http_port: 5248,
            dhcp: Dhcp::default(),
            tftp: TftpLimits::default(),
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
    fn trusted_relays_are_networks_and_addresses() {
        let parse = |text: &str| toml::from_str::<Config>(text).map(|config| config.dhcp);
        let dhcp = parse(
            "[dhcp]\ntrusted_relays = [\"10.255.0.0/16\", \"10.1.0.2\"]\nany_source_devices = [\"br0\"]",
        );
        let dhcp = dhcp.expect("parses");
        let wanted = ["10.255.0.0/16", "10.1.0.2/32"].map(|net| net.parse().expect("a network"));
        assert_eq!(dhcp.trusted_relays, wanted);
        assert_eq!(dhcp.any_source_devices, ["br0"]);
        let said = parse("[dhcp]\ntrusted_relays = [\"leaf1\"]")
            .expect_err("a name")
            .to_string();
        assert!(
            said.contains("\"leaf1\" is no IPv4 network or address"),
            "{said}"
        );
        let none = parse("").expect("parses");
        assert!(none.trusted_relays.is_empty() && none.any_source_devices.is_empty());
    }

    #[test]
    fn tftp_allow_takes_networks_of_both_families_and_nothing_else() {
        let config: Config =
            toml::from_str("[tftp]\nallow = [\"10.0.0.0/8\", \"fd00::/8\"]").expect("parses");
        assert_eq!(config.tftp.allow.len(), 2);
        let (unset, many) = (TftpLimits::default().of_shard(), tftp::Limits::default());
        assert_eq!(
            (unset.transfers_per_client, unset.unconfirmed_per_client),
            (many.transfers_per_client, many.unconfirmed_per_client)
        );
        toml::from_str::<Config>("[tftp]\nallow = [\"10.0.0.0\"]").expect_err("no network");
        toml::from_str::<Config>("[tftp]\nallowed = []").expect_err("a typo");
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
