//! Which region to talk to, and as whom: `muster login` writes it, every command reads it.
//!
//! `MUSTER_URL` and `MUSTER_API_KEY` go before the file, for programs that keep no home.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::client::Client;

#[derive(Serialize, Deserialize)]
pub struct Profile {
    pub url: String,
    pub api_key: String,
}

fn path() -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))
        .context("neither XDG_CONFIG_HOME nor HOME is set: where should the login be kept?")?;
    Ok(folder.join("muster").join("login.toml"))
}

impl Profile {
    pub fn load() -> anyhow::Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (set("MUSTER_URL"), set("MUSTER_API_KEY")) {
            (Some(url), Some(api_key)) => return Ok(Self { url, api_key }),
            (None, None) => {}
            // Another region than the one meant, or a key for another, would be worse than none.
            _ => bail!("MUSTER_URL and MUSTER_API_KEY go together: one of them is not set"),
        }
        let path = path()?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("not logged in: run `muster login URL`, or set MUSTER_URL and MUSTER_API_KEY")
            }
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
        };
        // The parser's message shows the line, which may be the key's.
        toml::from_str(&text).map_err(|_| {
            let path = path.display();
            anyhow::anyhow!("{path} is not as `muster login` writes it: log in again")
        })
    }

    /// Readable by its owner only: it holds the key.
    pub fn save(&self) -> anyhow::Result<PathBuf> {
        let path = path()?;
        let folder = path.parent().context("the login file has no folder")?;
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let fresh = path.with_extension("toml.new");
        fs::write(&fresh, "").with_context(|| format!("writing {}", fresh.display()))?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        fs::write(&fresh, toml::to_string(self)?)?;
        fs::rename(&fresh, &path).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    pub fn forget() -> anyhow::Result<()> {
        match fs::remove_file(path()?) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.url, Some(self.api_key.parse()?))
    }
}
