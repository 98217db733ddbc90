//! A private PostgreSQL cluster in a folder: the region's default database when no URL is configured.
//!
//! Real PostgreSQL from the installed binaries, on a unix socket only, never as root (user `postgres` then).
//! The server outlives a killed regiond; whoever holds the folder's lock next adopts it. A second process on
//! the same folder is refused.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

/// Longest path of a unix socket (`sun_path` less its terminator, unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("{folder} is in use by another process: one regiond per folder")]
    InUse { folder: PathBuf },
    #[error(
        "no PostgreSQL server binaries found: install the Debian package postgresql, or set database.url"
    )]
    NoBinaries,
    #[error("there is no user `postgres`, and PostgreSQL does not run as root: set database.url")]
    NoUser,
    #[error("{folder} is too long a path for a unix socket")]
    PathTooLong { folder: PathBuf },
    #[error(
        "user {user} can't enter {folder}: give the folders above the state folder a mode that lets every user pass"
    )]
    NotTraversable { folder: PathBuf, user: String },
    #[error("{program} failed: {output}")]
    Program {
        program: &'static str,
        output: String,
    },
    #[error("{doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A running private cluster. Dropping it leaves the server running; [`Cluster::stop`] ends it.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    binaries: PathBuf,
    user: Option<(u32, u32)>,
    /// Whether the server was already running when we came.
    adopted: bool,
    /// Held as long as we live: the kernel releases it however we end.
    _lock: File,
}

impl Cluster {
    /// Starts the cluster in `folder`, making it first when it is new, or adopts the running one.
    pub async fn start(folder: &Path) -> Result<Self, ClusterError> {
        let fail = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| ClusterError::Io {
                doing,
                path,
                source,
            }
        };
        std::fs::create_dir_all(folder).map_err(fail("creating", folder))?;
        let folder = folder.canonicalize().map_err(fail("resolving", folder))?;
        if folder.as_os_str().len() + "/.s.PGSQL.5432".len() > SOCKET_PATH_BYTES_MAX {
            return Err(ClusterError::PathTooLong { folder });
        }

        let lock_path = folder.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(fail("opening", &lock_path))?;
        if lock.try_lock().is_err() {
            return Err(ClusterError::InUse { folder });
        }

        let binaries = server_binaries().ok_or(ClusterError::NoBinaries)?;
        let user = if is_root() {
            Some(postgres_user().ok_or(ClusterError::NoUser)?)
        } else {
            None
        };
        if let Some((uid, gid)) = user {
            chown(&folder, Some(uid), Some(gid)).map_err(fail("changing the owner of", &folder))?;
        }
        std::fs::set_permissions(&folder, Permissions::from_mode(0o700))
            .map_err(fail("changing the mode of", &folder))?;

        let mut cluster = Self {
            folder,
            binaries,
            user,
            adopted: false,
            _lock: lock,
        };
        cluster.check_traversable().await?;
        if cluster.is_running().await {
            cluster.adopted = true;
            return Ok(cluster);
        }
        if !cluster.data().join("PG_VERSION").exists() {
            cluster.initialise().await?;
        }
        cluster.launch().await?;
        Ok(cluster)
    }

    pub fn url(&self) -> String {
        url(&self.folder)
    }

    /// Whether the server was found running: a predecessor was killed.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Ends the server: open transactions are rolled back, everything committed stays.
    pub async fn stop(&mut self) -> Result<(), ClusterError> {
        let data = self.data();
        self.run(
            "pg_ctl",
            &["-D", &data.to_string_lossy(), "-m", "fast", "-w", "stop"],
        )
        .await
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// PostgreSQL's own word for it: `pg_ctl status` reads the pid file and asks the kernel.
    async fn is_running(&self) -> bool {
        let data = self.data();
        self.run("pg_ctl", &["-D", &data.to_string_lossy(), "status"])
            .await
            .is_ok()
    }

    async fn check_traversable(&self) -> Result<(), ClusterError> {
        let Some((uid, gid)) = self.user else {
            return Ok(());
        };
        let mut command = Command::new("/usr/bin/test");
        command
            .arg("-x")
            .arg(&self.folder)
            .uid(uid)
            .gid(gid)
            .current_dir("/");
        match command.status().await {
            Ok(status) if status.success() => Ok(()),
            _ => Err(ClusterError::NotTraversable {
                folder: self.folder.clone(),
                user: "postgres".to_owned(),
            }),
        }
    }

    async fn initialise(&self) -> Result<(), ClusterError> {
        // A half-made cluster of an interrupted start has no PG_VERSION: initdb wants the folder empty.
        let data = self.data();
        if data.exists() {
            std::fs::remove_dir_all(&data).map_err(|source| ClusterError::Io {
                doing: "removing the half-made",
                path: data.clone(),
                source,
            })?;
        }
        let data = data.to_string_lossy().into_owned();
        self.run(
            "initdb",
            &[
                "-D",
                &data,
                "--auth=trust",
                "--username=muster",
                "--encoding=UTF8",
                "--no-locale",
            ],
        )
        .await
    }

    async fn launch(&self) -> Result<(), ClusterError> {
        let folder = self.folder.to_string_lossy();
        let data = self.data();
        let log = self.folder.join("log");
        // The socket's folder is 0700: who may enter it is root or the server's own user.
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{folder}' -c max_connections=200 \
             -c shared_buffers=256MB -c wal_compression=on -c password_encryption=scram-sha-256"
        );
        self.run(
            "pg_ctl",
            &[
                "-D",
                &data.to_string_lossy(),
                "-l",
                &log.to_string_lossy(),
                "-o",
                &options,
                "-w",
                "-t",
                "60",
                "start",
            ],
        )
        .await
    }

    async fn run(&self, program: &'static str, arguments: &[&str]) -> Result<(), ClusterError> {
        let mut command = Command::new(self.binaries.join(program));
        // PostgreSQL looks at its working directory; ours may be closed to its user.
        command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        // pg_ctl's child keeps inherited descriptors: pipes would never see their end. A file will do.
        let output_path = self.folder.join(format!("{program}.out"));
        let fail = |source| ClusterError::Io {
            doing: "writing",
            path: output_path.clone(),
            source,
        };
        let output = File::create(&output_path).map_err(fail)?;
        command
            .stdout(output.try_clone().map_err(fail)?)
            .stderr(output);
        let status = command.status().await.map_err(|source| ClusterError::Io {
            doing: "running",
            path: self.binaries.join(program),
            source,
        })?;
        if status.success() {
            return Ok(());
        }
        let output = std::fs::read_to_string(&output_path).unwrap_or_default();
        Err(ClusterError::Program {
            program,
            output: output.trim().to_owned(),
        })
    }
}

/// The URL of the cluster in `folder` (absolute): its superuser, over its socket.
pub fn url(folder: &Path) -> String {
    let socket = percent_encode(&folder.to_string_lossy());
    format!("postgres:///postgres?host={socket}&user=muster")
}

/// The group of the user that a private cluster runs as, where that is not our own: root has one.
pub fn server_group() -> Option<u32> {
    let (_, group) = is_root().then(postgres_user).flatten()?;
    Some(group)
}

fn is_root() -> bool {
    // The owner of our own /proc entry is our effective user.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

fn postgres_user() -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The newest installed server: Debian keeps one folder per major version.
fn server_binaries() -> Option<PathBuf> {
    let newest = std::fs::read_dir("/usr/lib/postgresql")
        .ok()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let folder = entry.path().join("bin");
            folder.join("initdb").exists().then_some((version, folder))
        })
        .max();
    newest.map(|(_, folder)| folder).or_else(|| {
        std::env::split_paths(&std::env::var_os("PATH")?)
            .find(|folder| folder.join("initdb").exists() && folder.join("pg_ctl").exists())
    })
}

fn percent_encode(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => {
                (byte as char).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cluster_is_adopted_and_not_shared() {
        let folder =
            std::env::temp_dir().join(format!("muster-test-{}", uuid::Uuid::new_v4().simple()));
        let first = Cluster::start(&folder).await.expect("starts");
        assert!(!first.adopted());
        let second = Cluster::start(&folder).await;
        assert!(
            matches!(second, Err(ClusterError::InUse { .. })),
            "{second:?}"
        );

        drop(first); // as when regiond is killed: the lock goes, the server stays
        let mut third = Cluster::start(&folder).await.expect("adopts");
        assert!(third.adopted());
        let pool = crate::connect(&third.url(), 2)
            .await
            .expect("migrates and answers");
        pool.close().await;
        third.stop().await.expect("stops");
        assert!(!third.is_running().await);
        std::fs::remove_dir_all(&folder).expect("removes the folder");
    }
}
