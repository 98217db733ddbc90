//! regiond's configuration file (TOML). Every field has a default that works for one region on one host.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The private PostgreSQL cluster, the sealing key and the image library live here.
    pub state_dir: PathBuf,
    /// REST API, metadata, for operators and API clients.
    pub api_listen: SocketAddr,
    /// Cap'n Proto over TLS, for racks.
    pub rpc_listen: SocketAddr,
    /// HTTPS for racks only: image pieces, and what machines ask through their rack.
    pub rack_http_listen: SocketAddr,
    /// The addresses by which racks reach this process; those of the host when empty.
    pub advertise: Vec<IpAddr>,
    /// From where `GET /MAAS/metrics` is answered without a key, beside this host itself.
    pub metrics_allow: Vec<IpNet>,
    /// Connections to the API at once; fewer where the system allows fewer open files.
    pub api_connections: u32,
    /// Of one address.
    pub api_connections_each: u32,
    pub database: Database,
    pub power: Power,
    /// A filter as `tracing` has them: `info`, `debug,sqlx=warn`.
    pub log: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// A PostgreSQL URL. Without one regiond runs a private cluster in its state folder.
    pub url: Option<String>,
    pub connections_max: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Power {
    /// Between two looks at the power of a machine that nobody switches through Muster. 0: none.
    pub sweep_secs: u64,
}

impl Default for Power {
    fn default() -> Self {
        Self { sweep_secs: 300 }
    }
}

impl Power {
    /// At least half a minute: BMCs are slow, and there are thousands of them.
    pub fn sweep(&self) -> Duration {
        match self.sweep_secs {
            0 => Duration::ZERO,
            secs => Duration::from_secs(secs.clamp(30, 86_400)),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            state_dir: "/var/lib/muster/region".into(),
            api_listen: any(5240),
            rpc_listen: any(5250),
            rack_http_listen: any(5251),
            advertise: Vec::new(),
            metrics_allow: Vec::new(),
            api_connections: 4096,
            api_connections_each: 256,
            database: Database::default(),
            power: Power::default(),
            log: "info,sqlx=warn".to_owned(),
        }
    }
}

impl Config {
    /// Reads `path`; the defaults when it is the default path and there is none.
    pub fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let (path, needed) = match path {
            Some(path) => (path, true),
            None => (Path::new("/etc/muster/regiond.toml"), false),
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

    pub fn database_dir(&self) -> PathBuf {
        self.state_dir.join("postgres")
    }

    pub fn key_path(&self) -> PathBuf {
        self.state_dir.join("seal.key")
    }

    pub fn library_dir(&self) -> PathBuf {
        self.state_dir.join("library")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults_and_a_typo_is_an_error() {
        let config: Config = toml::from_str("").expect("parses");
        assert_eq!(config.api_listen.port(), 5240);
        let error = toml::from_str::<Config>("api_lisen = \"[::]:80\"").expect_err("a typo");
        assert!(error.to_string().contains("api_lisen"), "{error}");
        let config: Config = toml::from_str("metrics_allow = [\"10.0.0.0/8\"]").expect("ok");
        assert_eq!(config.metrics_allow.len(), 1);
        toml::from_str::<Config>("metrics_allow = [\"10.0.0.0\"]").expect_err("no network");
        let config: Config = toml::from_str("[database]\nurl = \"postgres://h/db\"").expect("ok");
        assert_eq!(config.database.url.as_deref(), Some("postgres://h/db"));
    }

    #[test]
    fn power_is_looked_at_every_five_minutes_unless_told_otherwise() {
        for (text, secs) in [
            ("", 300),
            ("[power]\nsweep_secs = 60", 60),
            ("[power]\nsweep_secs = 1", 30),
            ("[power]\nsweep_secs = 0", 0),
        ] {
            let config: Config = toml::from_str(text).expect("parses");
            assert_eq!(config.power.sweep(), Duration::from_secs(secs), "{text}");
        }
    }
}
