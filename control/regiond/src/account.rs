//! `regiond createadmin` and `regiond apikey`, as MAAS has them.

use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use store::seal::Sealer;
use store::{StoreError, account, token};

use crate::config::Config;
use crate::database::Database;

#[derive(Args)]
pub struct CreateAdmin {
    #[arg(long)]
    username: String,
    /// Others can read arguments: prefer --password-file.
    #[arg(long, conflicts_with = "password_file")]
    password: Option<String>,
    /// A file with the password; `-`, or neither option, reads standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    #[arg(long)]
    email: String,
}

impl CreateAdmin {
    pub async fn run(self, config: &Config) -> anyhow::Result<()> {
        let password = self.password()?;
        if password.is_empty() {
            bail!("the password is empty");
        }
        let password_hash = api::password::hash(&password).context("hashing the password")?;
        let database = Database::open_shared(config).await?;
        let new = account::NewAccount {
            username: &self.username,
            email: &self.email,
            password_hash: &password_hash,
            is_admin: true,
        };
        let made = account::create(&mut *database.pool.acquire().await?, &new).await;
        database.close().await;
        match made {
            Ok(_) => Ok(()),
            Err(StoreError::Constraint { .. }) => {
                bail!("there is an account {} already", self.username)
            }
            Err(error) => Err(error).context("making the account"),
        }
    }

    fn password(&self) -> anyhow::Result<String> {
        if let Some(password) = &self.password {
            return Ok(password.clone());
        }
        let mut text = String::new();
        match self.password_file.as_deref() {
            Some(path) if path.as_os_str() != "-" => {
                text = std::fs::read_to_string(path)
                    .with_context(|| format!("reading {}", path.display()))?;
            }
            _ => {
                std::io::stdin().take(4096).read_to_string(&mut text)?;
            }
        }
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

#[derive(Args)]
pub struct ApiKey {
    #[arg(long)]
    username: String,
}

impl ApiKey {
    pub async fn run(self, config: &Config) -> anyhow::Result<()> {
        let database = Database::open_shared(config).await?;
        let key = self.key(config, &database).await;
        database.close().await;
        // Whoever reads it may have gone: that is no failure, and no panic.
        match writeln!(std::io::stdout(), "{}", key?) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(error).context("writing to standard output")
            }
            _ => Ok(()),
        }
    }

    async fn key(&self, config: &Config, database: &Database) -> anyhow::Result<String> {
        let sealer = Sealer::load_or_create(&config.key_path())?;
        let mut tx = database.pool.begin().await?;
        sealer.verify(&mut tx).await?;
        let Some(account) = account::find(&mut tx, &self.username).await? else {
            bail!("there is no account {}", self.username);
        };
        let credentials = token::find_or_create(&mut tx, &sealer, account.id, "").await?;
        tx.commit().await?;
        Ok(credentials.api_key())
    }
}
