//! A long-running program on a host of the lab, with its output in a log file.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A started program. Dropping this does not end it: the reaper ends everything on the lab's hosts.
#[derive(Debug)]
pub struct Process {
    pub name: String,
    pub log: PathBuf,
    child: Child,
}

impl Process {
    pub fn start(name: &str, log: &Path, command: &mut Command, stdin: Stdio) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let errors = file.try_clone().context("a second handle of the log")?;
        let child = command
            .env("NO_COLOR", "1")
            .stdin(stdin)
            .stdout(file)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
        })
    }

    /// An error when it has ended, with its last words.
    pub fn check(&mut self) -> Result<()> {
        match self
            .child
            .try_wait()
            .with_context(|| format!("looking after {}", self.name))?
        {
            None => Ok(()),
            Some(status) => {
                bail!("{} ended ({status}); {}", self.name, last_words(&self.log))
            }
        }
    }

    /// SIGTERM, and the end of it within `limit`; its exit status.
    pub fn terminate(mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(rustix::process::Signal::TERM)?;
        self.wait_end(limit)
    }

    /// Waits for its own end.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait();
            if let Some(status) = ended.with_context(|| format!("looking after {}", self.name))? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                let seconds = limit.as_secs();
                bail!(
                    "{} did not end within {seconds} s; {}",
                    self.name,
                    last_words(&self.log)
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Of the program itself: nothing stands between it and us.
    pub fn pid(&self) -> Result<rustix::process::Pid> {
        let pid = i32::try_from(self.child.id()).context("a process id is an i32")?;
        rustix::process::Pid::from_raw(pid).context("no process has id 0")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        rustix::process::kill_process(self.pid()?, signal)
            .with_context(|| format!("signalling {}", self.name))
    }

    /// SIGKILL, and the end of it.
    pub fn kill(mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("killing {}", self.name))?;
        self.child
            .wait()
            .with_context(|| format!("waiting for {}", self.name))?;
        Ok(())
    }

    /// Waits until `ready` says something, the program ends, or the time is over.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            self.check()?;
            let last = match ready() {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => "not yet".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if start.elapsed() > limit {
                let seconds = limit.as_secs();
                bail!(
                    "{}: {what}: {last}, after {seconds} s; {}",
                    self.name,
                    last_words(&self.log)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // If it has ended, the kernel need not remember it.
        self.child.try_wait().ok();
    }
}

/// The last lines of a log, for an error.
pub fn last_words(log: &Path) -> String {
    const LINES: usize = 12;
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LINES)..].join("\n    ");
    format!("the end of its log, {}:\n    {tail}", log.display())
}
