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
    /// A filter as `tracing` has them.
    pub log: String,
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
    }
}
