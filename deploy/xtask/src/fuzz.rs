//! `cargo xtask fuzz`: libFuzzer over parsers and engines, with nightly Rust and cargo-fuzz.
//!
//! What it finds is kept in the target folder and goes on from there the next time. An input that breaks a promise is
//! printed, and stands in fuzz/artifacts. `--keep` chooses anew which inputs fuzz/corpus has: few, small, together
//! reaching what all of them reach as far as that goes. Every test run replays those (fuzz/stories).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::workspace;

/// Of each target's corpus, beside the seeds that have a name.
const KEPT_FILES_MAX: usize = 30;
const KEPT_BYTES_MAX: u64 = 64 << 10;
/// An input that takes longer is a finding, too.
const INPUT_SECS_MAX: u32 = 20;

#[derive(Args)]
pub struct Fuzz {
    /// Only these targets [default: all]
    targets: Vec<String>,
    /// How long each of them is run.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Afterwards, choose the kept corpora anew from all that was found.
    #[arg(long)]
    keep: bool,
}

impl Fuzz {
    pub fn run(self) -> Result<ExitCode> {
        check_tools()?;
        let folders = Folders::new()?;
        let all = targets(&folders.fuzz)?;
        let chosen: Vec<&String> = match &self.targets[..] {
            [] => all.iter().collect(),
            some => some.iter().collect(),
        };
        for target in &chosen {
            ensure!(
                all.contains(target),
                "no target {target}: there are {}",
                all.join(" ")
            );
        }
        folders.build()?;
        let mut clean = true;
        for target in chosen {
            clean &= folders.fuzz(target, self.seconds)?;
            if self.keep {
                folders.keep(target)?;
            }
        }
        Ok(if clean {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// One file of fuzz_targets each.
fn targets(fuzz: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(fuzz.join("fuzz_targets")).context("fuzz/fuzz_targets")? {
        let path = file?.path();
        names.extend(
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}

fn check_tools() -> Result<()> {
    let found = nightly(&["--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        bail!(
            "this needs nightly Rust and cargo-fuzz: rustup toolchain install nightly && cargo install cargo-fuzz"
        );
    }
    Ok(())
}

/// `cargo +nightly fuzz`, whatever toolchain runs this program.
fn nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo", "fuzz"])
        .args(arguments)
        .env_remove("CARGO_TARGET_DIR")
        .stdin(Stdio::null());
    command
}

struct Folders {
    fuzz: PathBuf,
    target: PathBuf,
}

impl Folders {
    fn new() -> Result<Self> {
        Ok(Self {
            fuzz: workspace::root()?.join("fuzz"),
            target: workspace::target()?.join("fuzz"),
        })
    }

    /// Without a sanitizer: there is no unsafe code in what is run, and it is twice as fast.
    fn command(&self, verb: &str) -> Command {
        let mut command = nightly(&[verb, "--sanitizer", "none", "--target-dir"]);
        command.arg(&self.target).current_dir(&self.fuzz);
        command
    }

    fn build(&self) -> Result<()> {
        let status = self.command("build").status().context("starting cargo")?;
        ensure!(status.success(), "the build failed ({status})");
        Ok(())
    }

    /// A folder of this target below the target folder.
    fn folder(&self, kind: &str, target: &str) -> Result<PathBuf> {
        let folder = self.target.join(kind).join(target);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }

    fn kept(&self, target: &str) -> PathBuf {
        self.fuzz.join("corpus").join(target)
    }

    /// Whether nothing was found. The whole story is in the log.
    fn fuzz(&self, target: &str, seconds: u64) -> Result<bool> {
        let start = Instant::now();
        let log = self.folder("logs", target)?.join("fuzz.log");
        let status = self
            .command("run")
            .arg(target)
            .arg(self.folder("found", target)?)
            .arg(self.kept(target))
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECS_MAX}"))
            .arg("-print_final_stats=1")
            .stdout(Stdio::null())
            .stderr(File::create(&log).context("the log")?)
            .status()
            .context("starting cargo")?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let inputs = stat(&text, "number_of_executed_units").unwrap_or(0);
        let seconds = start.elapsed().as_secs_f64();
        let verdict = if status.success() { "clean" } else { "FAILED" };
        println!(
            "{target:18} {seconds:>6.0} s {inputs:>12} inputs {:>9.0}/s  {verdict}",
            inputs as f64 / seconds
        );
        if !status.success() {
            for line in text.lines().filter(|line| is_telling(line)) {
                println!("    {line}");
            }
            println!("    all of it: {}", log.display());
        }
        Ok(status.success())
    }

    /// Fills the kept corpus anew: the seeds with names, and a few of those that cover most.
    fn keep(&self, target: &str) -> Result<()> {
        let chosen = self.folder("chosen", target)?;
        for file in fs::read_dir(&chosen)? {
            fs::remove_file(file?.path())?;
        }
        let log = self.folder("logs", target)?.join("merge.log");
        let status = self
            .command("run")
            .arg(target)
            .args([&chosen, &self.kept(target), &self.folder("found", target)?])
            .args(["--", "-set_cover_merge=1"])
            .stdout(Stdio::null())
            .stderr(File::create(&log).context("the log")?)
            .status()
            .context("starting cargo")?;
        ensure!(status.success(), "merging failed: {}", log.display());
        let kept = self.kept(target);
        for (name, _) in files(&kept)?.iter().filter(|(name, _)| is_hash(name)) {
            fs::remove_file(kept.join(name))?;
        }
        let mut candidates = files(&chosen)?;
        candidates.retain(|(name, bytes)| is_hash(name) && *bytes <= KEPT_BYTES_MAX);
        // The longest reach most.
        candidates.sort_by_key(|(name, bytes)| (std::cmp::Reverse(*bytes), name.clone()));
        let mut room = KEPT_BYTES_MAX;
        let mut count = 0;
        for (name, bytes) in candidates {
            if count < KEPT_FILES_MAX && bytes <= room {
                fs::copy(chosen.join(&name), kept.join(&name))?;
                (room, count) = (room - bytes, count + 1);
            }
        }
        println!("{target:18} keeps {count} inputs beside its seeds");
        Ok(())
    }
}

/// Names and sizes of a folder's files.
fn files(folder: &Path) -> Result<Vec<(String, u64)>> {
    let listing = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let file = |file: std::io::Result<fs::DirEntry>| {
        let file = file?;
        Ok((
            file.file_name().to_string_lossy().into_owned(),
            file.metadata()?.len(),
        ))
    };
    listing.map(file).collect()
}

/// libFuzzer names inputs by their SHA-1; people name seeds.
fn is_hash(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|octet| octet.is_ascii_hexdigit())
}

/// `stat::number_of_executed_units: 387710`
fn stat(log: &str, name: &str) -> Option<u64> {
    let line = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
    line?.trim_start_matches(':').trim().parse().ok()
}

/// What a person wants to see of a failure: the panic, and where its input is.
fn is_telling(line: &str) -> bool {
    [
        "panicked at",
        "assertion",
        "  left:",
        " right:",
        "ERROR: libFuzzer",
        "Test unit written",
    ]
    .iter()
    .any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_and_names_are_read() {
        let log =
            "#9 DONE\nstat::number_of_executed_units: 387710\nstat::average_exec_per_sec:     12\n";
        assert_eq!(stat(log, "number_of_executed_units"), Some(387_710));
        assert_eq!(stat(log, "average_exec_per_sec"), Some(12));
        assert_eq!(stat(log, "peak_rss_mb"), None);
        assert!(is_hash("7262b379ead765e430fa1ca59432a1baad1509ec"));
        assert!(!is_hash("uefi-native-pxev4-shim-grub-01"));
        assert!(is_telling(
            "thread '<unnamed>' (1) panicked at stories/src/tftp.rs:93:9:"
        ));
        assert!(!is_telling("#65211 DONE cov: 650"));
    }

    #[test]
    fn every_target_has_a_corpus() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        let targets = targets(&fuzz).unwrap();
        assert!(targets.contains(&"dhcp_engine".to_owned()));
        for target in targets {
            assert!(
                !files(&fuzz.join("corpus").join(&target))
                    .unwrap()
                    .is_empty(),
                "{target}"
            );
        }
    }
}
