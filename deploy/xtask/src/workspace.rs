//! Where things are, cargo, and root's rights.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use lab::image::{self, Image};
use lab::kvm::{self, Accelerator};

/// Passed to the part that runs as root.
const ROOT_VARIABLE: &str = "MUSTER_WORKSPACE";
const KEPT_VARIABLES: [&str; 4] = ["MUSTER_LAB_CACHE", "MUSTER_CACHE", "NO_COLOR", "TERM"];
/// The binaries of a lab, by package, as users build them.
const PACKAGES: [&str; 3] = ["regiond", "rackd", "cli"];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// The workspace's root.
pub fn root() -> Result<PathBuf> {
    if let Some(root) = std::env::var_os(ROOT_VARIABLE) {
        return Ok(root.into());
    }
    let here = match std::env::var_os("CARGO_MANIFEST_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::current_dir().context("the current folder")?,
    };
    let root = here
        .ancestors()
        .find(|folder| folder.join("deploy/xtask/Cargo.toml").exists());
    Ok(root
        .context("this is not Muster's workspace: use `cargo xtask`")?
        .to_owned())
}

/// Cargo's target folder: this program stands in TARGET/debug.
pub fn target() -> Result<PathBuf> {
    let program = std::env::current_exe().context("this program's own path")?;
    Ok(program
        .ancestors()
        .nth(2)
        .context("this program stands in no target folder")?
        .to_owned())
}

pub fn binaries(profile: Profile) -> Result<PathBuf> {
    Ok(target()?.join(if profile == Profile::Release {
        "release"
    } else {
        "debug"
    }))
}

pub fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root()?);
    Ok(command)
}

/// Builds what a lab runs.
pub fn build(profile: Profile) -> Result<PathBuf> {
    let start = Instant::now();
    let mut command = cargo()?;
    command.arg("build");
    if profile == Profile::Release {
        command.arg("--release");
        for package in PACKAGES {
            command.args(["--package", package]);
        }
    } else {
        // All at once, as the tests' own build does it: a part of it alone has other features, and builds anew.
        // Not this program, which runs.
        command.args(["--workspace", "--exclude", "xtask", "--bins", "--examples"]);
    }
    let status = command.status().context("starting cargo")?;
    ensure!(status.success(), "the build failed ({status})");
    eprintln!(
        "built regiond, rackd and muster in {:.0} s",
        start.elapsed().as_secs_f64()
    );
    binaries(profile)
}

/// Images and probe results: they outlive a lab, and a clone where MUSTER_CACHE names a folder outside of it.
pub fn lab_cache() -> Result<PathBuf> {
    let folder = if let Some(folder) = std::env::var_os("MUSTER_LAB_CACHE") {
        PathBuf::from(folder)
    } else if let Some(folder) = std::env::var_os("MUSTER_CACHE") {
        PathBuf::from(folder).join("lab")
    } else {
        target()?.join("lab/cache")
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// Where labs keep their state: PostgreSQL's own user must get there, so it is not below a home folder.
pub fn lab_base() -> PathBuf {
    std::env::var_os("MUSTER_LAB_STATE").map_or_else(|| "/var/tmp/muster-lab".into(), PathBuf::from)
}

pub fn lab_logs(name: &str) -> Result<PathBuf> {
    Ok(target()?.join("lab/logs").join(name))
}

/// The ephemeral image, built if it must be.
pub fn image() -> Result<Image> {
    let start = Instant::now();
    let mut built = false;
    let image = image::ensure(&root()?.join("deploy/lab/image"), &lab_cache()?, |line| {
        built = true;
        eprintln!("{line}");
    })?;
    if built {
        eprintln!(
            "built the ephemeral image in {:.0} s",
            start.elapsed().as_secs_f64()
        );
    }
    Ok(image)
}

pub fn accelerator(image: &Image) -> Result<Accelerator> {
    kvm::probe(image, &lab_cache()?)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs this program again as root, with other arguments. Only for those who are not.
pub fn as_root(arguments: &[String]) -> Result<ExitCode> {
    let sudo = Path::new("/usr/bin/sudo");
    if !sudo.exists() {
        bail!("this needs root (namespaces, taps, packages), and there is no sudo: run it as root");
    }
    eprintln!("this part needs root: asking sudo");
    let mut command = Command::new(sudo);
    command
        .arg("env")
        .arg(format!("{ROOT_VARIABLE}={}", root()?.display()));
    for name in KEPT_VARIABLES {
        if let Ok(value) = std::env::var(name) {
            command.arg(format!("{name}={value}"));
        }
    }
    let program = std::env::current_exe().context("this program's own path")?;
    let status = command
        .arg(program)
        .args(arguments)
        .status()
        .context("starting sudo")?;
    // What root made in the target folder is its owner's again, so that `cargo clean` works.
    let target = target()?;
    Command::new(sudo)
        .args(["chown", "-R", "--reference"])
        .arg(&target)
        .arg(target.join("lab"))
        .stderr(std::process::Stdio::null())
        .status()
        .ok();
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
