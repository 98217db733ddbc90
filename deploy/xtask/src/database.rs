//! One private PostgreSQL for all database tests of a run: on a unix socket, without durability, gone at the end.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace;

/// Waits for the end of the pipe that this process holds, however it ends; $1 is pg_ctl, $2 the folder.
const REAPER: &str = "trap '' INT TERM HUP; read -r _; $3 \"$1\" -D \"$2/data\" -m immediate stop >/dev/null 2>&1; \
                      rm -rf \"$2\"";
/// Not root: PostgreSQL refuses.
const AS_POSTGRES: &str = "setpriv --reuid postgres --regid postgres --clear-groups --";

pub struct TestDatabase {
    reaper: Child,
    url: String,
}

impl TestDatabase {
    pub fn start() -> Result<Self> {
        let folder = PathBuf::from(format!("/var/tmp/muster-test-{}", std::process::id()));
        let binaries = newest_server()?;
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let prefix = if workspace::is_root() {
            AS_POSTGRES
        } else {
            ""
        };
        let reaper = Command::new("sh")
            .args(["-c", REAPER, "reaper"])
            .arg(binaries.join("pg_ctl"))
            .arg(&folder)
            .arg(prefix)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the database's reaper")?;
        let database = Self {
            reaper,
            url: format!(
                "postgres:///postgres?host={}&user=postgres",
                folder.display()
            ),
        };
        if workspace::is_root() {
            let (uid, gid) = postgres_user()?;
            chown(&folder, Some(uid), Some(gid)).context("giving the folder to user postgres")?;
        }
        let data = folder.join("data");
        let run = |program: &str, arguments: &[&str]| -> Result<()> {
            let mut words = prefix
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>();
            words.push(binaries.join(program).display().to_string());
            let status = Command::new(&words[0])
                .args(&words[1..])
                .arg("-D")
                .arg(&data)
                .args(arguments)
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status()
                .with_context(|| format!("starting {program}"))?;
            ensure!(
                status.success(),
                "{program} failed ({status}): see {}",
                folder.display()
            );
            Ok(())
        };
        run(
            "initdb",
            &[
                "--auth=trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ],
        )?;
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -c max_connections=400 -c fsync=off \
             -c full_page_writes=off",
            folder.display()
        );
        let log = folder.join("log").display().to_string();
        run("pg_ctl", &["-w", "-l", &log, "-o", &options, "start"])?;
        Ok(database)
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        drop(self.reaper.stdin.take());
        self.reaper.wait().ok();
    }
}

fn newest_server() -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            let folder = entry.path().join("bin");
            Path::new(&folder)
                .join("initdb")
                .exists()
                .then_some((version, folder))
        })
        .collect();
    versions.sort();
    Ok(versions
        .pop()
        .context("PostgreSQL's server is not installed: `cargo xtask packages`")?
        .1)
}

fn postgres_user() -> Result<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let Some(line) = users.lines().find(|line| line.starts_with("postgres:")) else {
        bail!("there is no user postgres, and PostgreSQL does not run as root");
    };
    let field = |index: usize| line.split(':').nth(index).and_then(|id| id.parse().ok());
    field(2)
        .zip(field(3))
        .context("user postgres has no numbers in /etc/passwd")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_database_starts_and_leaves_nothing() {
        if newest_server().is_err() {
            eprintln!("skipped: PostgreSQL is not installed (`cargo xtask packages` installs it)");
            return;
        }
        let database = TestDatabase::start().expect("it starts");
        let folder = format!("/var/tmp/muster-test-{}", std::process::id());
        assert!(database.url().contains(&folder));
        assert!(
            Path::new(&folder).join(".s.PGSQL.5432").exists(),
            "it listens"
        );
        drop(database);
        assert!(!Path::new(&folder).exists());
    }
}
