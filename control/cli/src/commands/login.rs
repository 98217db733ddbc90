//! `muster login`: an API key, or a user name and password that the region turns into one.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::client::{ApiKey, Client};
use crate::output::{Output, text};
use crate::profile::Profile;
use crate::secret;

#[derive(Args)]
pub struct Login {
    /// The region: http://HOST:5240
    url: String,
    /// A file with the API key; `-` or nothing reads it from standard input.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Log in with this name and a password instead (asked from standard input).
    #[arg(long, conflicts_with = "api_key_file")]
    username: Option<String>,
}

impl Login {
    /// Secrets come by file or standard input, never by argument: others can read those.
    pub async fn run(self, output: Output) -> anyhow::Result<()> {
        let api_key = match &self.username {
            Some(username) => self.authenticate(username).await?,
            None => self.read_key()?,
        };
        let key: ApiKey = api_key.parse()?;
        let who = Client::new(&self.url, Some(key))?
            .get("users/", &[("op", "whoami".to_owned())])
            .await
            .context("the region does not accept the key")?;
        let name = text(&who, "/username");
        if name.is_empty() {
            bail!(
                "what answers at {} is no region: it does not say who you are",
                self.url
            );
        }
        let path = Profile {
            url: self.url.clone(),
            api_key,
        }
        .save()?;
        output.done(
            &who,
            &format!("Logged in as {name}; kept in {}.", path.display()),
        );
        Ok(())
    }

    fn read_key(&self) -> anyhow::Result<String> {
        let text = match self.api_key_file.as_deref() {
            Some(path) if path.as_os_str() != "-" => std::fs::read_to_string(path)
                .with_context(|| format!("reading {}", path.display()))?,
            _ => secret::read("API key: ")?,
        };
        Ok(text.trim().to_owned())
    }

    async fn authenticate(&self, username: &str) -> anyhow::Result<String> {
        let password = secret::read("Password: ")?;
        let fields = [
            ("username", username.to_owned()),
            (
                "password",
                password.trim_end_matches(['\r', '\n']).to_owned(),
            ),
            ("consumer", format!("muster@{}", hostname())),
        ];
        let answer = Client::new(&self.url, None)?
            .post("/MAAS/accounts/authenticate/", &fields)
            .await?;
        let part = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        match (
            part("consumer_key"),
            part("token_key"),
            part("token_secret"),
        ) {
            (Some(consumer), Some(token), Some(secret)) => {
                Ok(format!("{consumer}:{token}:{secret}"))
            }
            _ => bail!("the region's answer holds no API key"),
        }
    }
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
