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
        if let (Ok(url), Ok(api_key)) =
            (std::env::var("MUSTER_URL"), std::env::var("MUSTER_API_KEY"))
        {
            return Ok(Self { url, api_key });
        }
        let path = path()?;
        let Ok(text) = fs::read_to_string(&path) else {
            bail!("not logged in: run `muster login URL`, or set MUSTER_URL and MUSTER_API_KEY");
        };
        toml::from_str(&text).with_context(|| format!("reading {}", path.display()))
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
