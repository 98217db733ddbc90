//! Whether KVM really works here, found by booting: a device that opens proves nothing (nested and
//! paravirtualised hosts have one on which stock kernels hang).

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::command::run;
use crate::image::Image;

/// A boot to the initrd's shell takes 4 s emulated, and 1 s with KVM.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// QEMU's software emulation.
    Tcg,
    Kvm,
}

impl Accelerator {
    /// The best flags found for each: `tb-size` in MiB is the translation cache.
    pub fn qemu_arguments(self) -> &'static [&'static str] {
        match self {
            Accelerator::Tcg => &[
                "-accel",
                "tcg,thread=multi,tb-size=512",
                "-cpu",
                "qemu64,-svm",
            ],
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
        }
    }
}

/// Probes once per kernel, QEMU and image; the answer is kept in `cache`.
pub fn probe(image: &Image, cache: &Path) -> Result<Accelerator> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accelerator::Tcg);
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find(|line| line.starts_with("model name"))
        .unwrap_or_default();
    let qemu = run(Command::new("qemu-system-x86_64").arg("--version")).unwrap_or_default();
    let subject = format!(
        "{}|{model}|{}|{}",
        kernel.trim(),
        qemu.lines().next().unwrap_or(""),
        image.key
    );
    let file = cache.join("kvm-probe");
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    if let Some(answer) = known.strip_prefix(&format!("{subject}\n")) {
        return Ok(if answer.trim() == "kvm" {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg
        });
    }
    let works = boots(image, cache)?;
    let (found, word) = if works {
        (Accelerator::Kvm, "kvm")
    } else {
        (Accelerator::Tcg, "tcg")
    };
    std::fs::write(&file, format!("{subject}\n{word}\n"))
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(found)
}

/// Boots the ephemeral kernel into its initrd's shell: that is kernel and user space.
fn boots(image: &Image, cache: &Path) -> Result<bool> {
    let serial = cache.join(format!("kvm-probe-{}.serial", std::process::id()));
    let mut child = Command::new("qemu-system-x86_64")
        .args(Accelerator::Kvm.qemu_arguments())
        .args([
            "-m",
            "512",
            "-display",
            "none",
            "-nodefaults",
            "-no-reboot",
            "-serial",
        ])
        .arg(format!("file:{}", serial.display()))
        .arg("-kernel")
        .arg(image.kernel())
        .arg("-initrd")
        .arg(image.initrd())
        .args(["-append", "console=ttyS0 break=top"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting QEMU for the KVM probe")?;
    let start = Instant::now();
    let mut works = false;
    while !works && start.elapsed() < PROBE_LIMIT && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(100));
        let said = std::fs::read(&serial).unwrap_or_default();
        works = String::from_utf8_lossy(&said).contains("Spawning shell within the initramfs");
    }
    child.kill().ok();
    child.wait().ok();
    std::fs::remove_file(&serial).ok();
    Ok(works)
}
