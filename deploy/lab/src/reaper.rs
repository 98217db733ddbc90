//! The end of a lab, in one place: `reaper.sh`, a separate process that waits for the end of a pipe.
//!
//! The lab holds the pipe's other end. When the lab ends in an orderly way, panics, or its process is killed,
//! the kernel closes it and the reaper removes everything: processes, namespaces, the lab's folder. What a lab
//! left behind although its reaper was killed too is removed by the same script ([`remove`]).

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command::run;

const SCRIPT: &str = include_str!("../reaper.sh");
const NAMESPACES: &str = "namespaces";

/// A waiting reaper. Dropping it removes the lab, and returns when that is done.
#[derive(Debug)]
pub struct Reaper {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Reaper {
    /// Starts it for the lab in `dir`, which must exist. From here on the lab can't be left behind.
    pub fn start(dir: &Path, namespaces: &[String]) -> Result<Self> {
        let list = dir.join(NAMESPACES);
        std::fs::write(&list, namespaces.join("\n") + "\n")
            .with_context(|| format!("writing {}", list.display()))?;
        let mut child = command(dir)?
            .stdin(Stdio::piped())
            .spawn()
            .context("starting the reaper")?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// One more namespace that goes with the lab in `dir`. Call it before the namespace is made.
    pub fn add(&self, dir: &Path, namespace: &str) -> Result<()> {
        let list = dir.join(NAMESPACES);
        File::options()
            .append(true)
            .open(&list)
            .and_then(|mut file| writeln!(file, "{namespace}"))
            .with_context(|| format!("writing {}", list.display()))
    }

    /// Lets the lab stand after this process: somebody will call [`remove`].
    pub fn keep(mut self) -> Result<()> {
        let mut pipe = self.pipe.take().context("the reaper's pipe is gone")?;
        pipe.write_all(b"keep\n")
            .context("telling the reaper to keep the lab")?;
        self.child.wait().context("waiting for the reaper")?;
        Ok(())
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.pipe.take());
        self.child.wait().ok();
    }
}

/// Removes a lab that stands in `dir`, whoever started it.
pub fn remove(dir: &Path) -> Result<()> {
    let status = command(dir)?
        .stdin(Stdio::null())
        .status()
        .context("running the reaper")?;
    ensure!(
        status.success(),
        "the reaper failed ({status}): {}",
        dir.display()
    );
    Ok(())
}

/// Folders of labs that stand, or that something left behind.
pub fn labs(base: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(base)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(NAMESPACES).exists())
        .collect();
    found.sort();
    found
}

/// What runs on each host of the lab in `dir`: host and program names. For `status`.
pub fn programs(dir: &Path) -> Vec<(String, String)> {
    let hosts = std::fs::read_to_string(dir.join(NAMESPACES)).unwrap_or_default();
    let names = |host: &str| -> String {
        let pids = run(Command::new("ip").args(["netns", "pids", host])).unwrap_or_default();
        let mut names: Vec<String> = pids
            .lines()
            .filter_map(|pid| std::fs::read_to_string(format!("/proc/{}/comm", pid.trim())).ok())
            .map(|name| name.trim().to_owned())
            .collect();
        names.sort();
        names.dedup();
        names.join(", ")
    };
    hosts
        .lines()
        .map(|host| (host.to_owned(), names(host)))
        .collect()
}

fn command(dir: &Path) -> Result<Command> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("reaper.log"))
        .with_context(|| format!("opening the reaper's log in {}", dir.display()))?;
    // A file, so that a list of processes shows its name and not its text.
    let script = dir.join("reaper.sh");
    std::fs::write(&script, SCRIPT).with_context(|| format!("writing {}", script.display()))?;
    let mut command = Command::new("bash");
    // In a process group of its own, so that a Ctrl-C on the terminal is not for it.
    command
        .arg(script)
        .arg(dir)
        .current_dir("/")
        .stdout(
            log.try_clone()
                .context("a second handle of the reaper's log")?,
        )
        .stderr(log)
        .process_group(0);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_folder_goes_when_its_owner_goes_and_stays_when_kept() {
        let outer = tempfile::tempdir().expect("a temporary folder");
        let base = outer.path().join("labs");
        let dir = base.join("one");
        std::fs::create_dir_all(&dir).expect("a folder");
        let none = ["muster-test-none".to_owned()];
        drop(Reaper::start(&dir, &none).expect("a reaper"));
        assert!(
            !dir.exists() && !base.exists(),
            "the last lab takes the base with it"
        );

        std::fs::create_dir_all(&dir).expect("a folder");
        Reaper::start(&dir, &none)
            .expect("a reaper")
            .keep()
            .expect("it stays");
        assert_eq!(labs(&base), std::slice::from_ref(&dir));
        remove(&dir).expect("removed");
        assert!(labs(&base).is_empty() && !dir.exists());
    }
}
