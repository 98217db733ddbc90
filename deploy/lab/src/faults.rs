//! What a test does to a running lab: kills, restarts, and looks into the region's database.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::command::{in_namespace, on_host, run};
use crate::instance::{Lab, rack_process, write_secret};
use crate::process::Process;

/// For the end of a killed server's last processes, and the recovery of its data.
const DATABASE_LIMIT: Duration = Duration::from_secs(30);

impl Lab {
    /// Whether regiond was started and has not been killed.
    pub fn has_region(&self) -> bool {
        self.region_process.is_some()
    }

    pub fn has_rack(&self, number: usize) -> bool {
        let name = rack_process(number);
        self.processes.iter().any(|process| process.name == name)
    }

    /// SIGKILL, as in a crash.
    pub fn kill_rack(&mut self, number: usize) -> Result<()> {
        let name = rack_process(number);
        let index = self
            .processes
            .iter()
            .position(|process| process.name == name);
        let index = index.with_context(|| format!("{name} does not run"))?;
        self.processes.swap_remove(index).kill()
    }

    /// Starts rackd again after [`Lab::kill_rack`]. It has its certificate; nothing is waited for.
    pub fn run_rack(&mut self, binaries: &Path, number: usize) -> Result<()> {
        let process = self.spawn_rack(binaries, number)?;
        self.processes.push(process);
        Ok(())
    }

    /// Daemons that start from now on may have so many files open; without: as many as the host lets them.
    pub fn limit_files(&mut self, files_max: Option<u32>) {
        self.files_max = files_max;
    }

    /// One more rackd on the host of rack `number`, with a state of its own and that rack's token.
    pub fn start_second_rack(&self, binaries: &Path, number: usize) -> Result<Process> {
        let token = self.folder.join(format!("rack{number}.token"));
        self.start_other_rack(binaries, &self.names.rack(number), "second-rack", &token)
    }

    /// A rackd of its own name, state and host, with a new token. It ends with the lab, or when it is killed.
    pub fn start_new_rack(&self, binaries: &Path, host: &str, name: &str) -> Result<Process> {
        let answer = self
            .region()
            .post("rackcontrollers/", "create_token", &[("hostname", name)])
            .context("asking for an enrolment token")?;
        let token = answer.get("token").and_then(serde_json::Value::as_str);
        let file = self.folder.join(format!("{name}.token"));
        write_secret(&file, token.context("the region's answer has no token")?)?;
        self.start_other_rack(binaries, host, name, &file)
    }

    fn start_other_rack(
        &self,
        binaries: &Path,
        host: &str,
        name: &str,
        token: &Path,
    ) -> Result<Process> {
        let config = self.folder.join(format!("{name}.toml"));
        let text = format!(
            "state_dir = {:?}\ntoken_file = {token:?}\ntftp_port = 1069\nhttp_port = 1248\n",
            self.folder.join(name),
        );
        std::fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let mut command = on_host(host, name, binaries.join("rackd"));
        command.arg("run").arg("--config").arg(&config);
        let title = format!("rackd of {name}");
        let log = self.log(&format!("rackd-{name}"));
        Process::start(&title, &log, &mut command, Stdio::null())
    }

    /// Where rack `number` keeps its state.
    pub fn rack_state(&self, number: usize) -> PathBuf {
        self.folder.join(format!("rack{number}"))
    }

    /// Restarts the region's PostgreSQL under it; `mode` is `fast` or `immediate` (a crash).
    pub fn restart_database(&self, mode: &str) -> Result<()> {
        let folder = self.database_folder();
        // pg_ctl's server keeps its descriptors: a pipe of ours would never see their end.
        let said = self.log("pg_ctl");
        let output =
            std::fs::File::create(&said).with_context(|| format!("writing {}", said.display()))?;
        let mut command = in_namespace(&self.names.region(), "setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        command.arg(postgres_binaries()?.join("pg_ctl"));
        command.arg("-D").arg(folder.join("data"));
        command.arg("-l").arg(folder.join("log"));
        command.args(["-m", mode, "-w", "-t", "60", "restart"]);
        let status = command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("a second handle of the log")?)
            .stderr(output)
            .status()
            .context("starting pg_ctl")?;
        let text = std::fs::read_to_string(&said).unwrap_or_default();
        ensure!(
            status.success(),
            "pg_ctl failed ({status}): {}",
            text.trim()
        );
        Ok(())
    }

    /// SIGKILL to PostgreSQL's postmaster; its children end when they notice. [`Lab::start_database`] brings it back.
    pub fn kill_database(&self) -> Result<()> {
        let file = self.database_folder().join("data/postmaster.pid");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("reading {}", file.display()))?;
        let number = text.lines().next().unwrap_or_default().trim();
        let pid = number.parse().ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.with_context(|| format!("{} holds no process id", file.display()))?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)
            .context("killing the postmaster")
    }

    /// Starts PostgreSQL after [`Lab::kill_database`], as whatever supervises it would: again and again, because while
    /// one process of the old server lives the new one refuses.
    pub fn start_database(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            // With no server, `restart` is a start with the options of the last time.
            match self.restart_database("immediate") {
                Err(error) if start.elapsed() > DATABASE_LIMIT => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Lines of the answer to `sql`, columns parted by `|`. Works without regiond, too.
    pub fn query(&self, sql: &str) -> Result<Vec<String>> {
        let mut command = Command::new("psql");
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", "--host"]);
        command.arg(self.database_folder());
        command.args(["--username=muster", "--dbname=postgres", "--command", sql]);
        let text = run(&mut command).with_context(|| format!("asking PostgreSQL: {sql}"))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn database_folder(&self) -> PathBuf {
        self.folder.join("region/postgres")
    }
}

/// Of the newest installed server, which is the one that regiond takes.
fn postgres_binaries() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").context("looking for PostgreSQL")?;
    let newest = versions
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse::<u32>().ok()?,
                entry.path(),
            ))
        })
        .max();
    Ok(newest.context("no PostgreSQL here")?.1.join("bin"))
}
