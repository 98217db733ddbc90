//! The Debian packages that build and lab need: says what is missing and installs it, nothing else.
//!
//! No daemon of theirs starts: while apt runs, a `policy-rc.d` forbids it (unless the host has one of its own),
//! and the empty default cluster that PostgreSQL's package makes on a host without any is removed again.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace;

/// (package, a file of it, what it is for). The file tells whether it is there, however it came.
const PACKAGES: &[(&str, &str, &str)] = &[
    (
        "capnproto",
        "/usr/bin/capnp",
        "compiles the schema of the link",
    ),
    ("postgresql", "", "the region's database"),
    (
        "python3",
        "/usr/bin/pydoc3",
        "the scripts that machines run, in tests",
    ),
    ("iproute2", "/usr/sbin/ip", "hosts and networks of the lab"),
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64", "machines"),
    (
        "seabios",
        "/usr/share/seabios/bios-256k.bin",
        "BIOS firmware",
    ),
    (
        "ipxe-qemu",
        "/usr/lib/ipxe/qemu/pxe-virtio.rom",
        "BIOS network boot",
    ),
    ("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd", "UEFI firmware"),
    (
        "pxelinux",
        "/usr/lib/PXELINUX/lpxelinux.0",
        "BIOS boot loader",
    ),
    (
        "syslinux-common",
        "/usr/lib/syslinux/modules/bios/ldlinux.c32",
        "its modules",
    ),
    (
        "shim-signed",
        "/usr/lib/shim/shimx64.efi.signed",
        "UEFI boot loader",
    ),
    (
        "grub-efi-amd64-signed",
        "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
        "UEFI boot loader",
    ),
    (
        "grub-efi-amd64-bin",
        "/usr/lib/grub/x86_64-efi/http.mod",
        "its modules",
    ),
    ("openipmi", "/usr/bin/ipmi_sim", "BMCs"),
    (
        "ipmitool",
        "/usr/bin/ipmitool",
        "a second opinion on BMCs, in tests",
    ),
    ("dnsmasq-base", "/usr/sbin/dnsmasq", "router advertisements"),
    (
        "isc-dhcp-client",
        "/usr/sbin/dhclient",
        "a DHCP client, in tests",
    ),
    ("udhcpc", "/usr/sbin/udhcpc", "a DHCP client, in tests"),
    ("busybox", "/usr/bin/busybox", "its ARP check, in tests"),
    ("dhcpcd-base", "/usr/sbin/dhcpcd", "a DHCP client, in tests"),
    (
        "systemd",
        "/usr/lib/systemd/systemd-networkd",
        "a DHCP client, in tests",
    ),
    (
        "isc-dhcp-relay",
        "/usr/sbin/dhcrelay",
        "a relay agent, in tests",
    ),
    (
        "kea-dhcp4-server",
        "/usr/sbin/kea-dhcp4",
        "the DHCP server that ours is compared with",
    ),
    ("kea-admin", "/usr/sbin/perfdhcp", "DHCP load"),
    (
        "mmdebstrap",
        "/usr/bin/mmdebstrap",
        "builds the ephemeral image",
    ),
    (
        "squashfs-tools",
        "/usr/bin/mksquashfs",
        "builds the ephemeral image",
    ),
    ("zstd", "/usr/bin/zstd", "builds the ephemeral image"),
    ("cpio", "/usr/bin/cpio", "builds the ephemeral image"),
];
/// What only `cargo xtask bench` needs, too.
const BENCH_PACKAGES: &[(&str, &str, &str)] = &[
    (
        "isc-dhcp-server",
        "/usr/sbin/dhcpd",
        "a DHCP server to compare with",
    ),
    ("nftables", "/usr/sbin/nft", "broadcasts to perfdhcp"),
];
const POLICY: &str = "/usr/sbin/policy-rc.d";
const CLUSTERS: &str = "/etc/postgresql";

/// Installs what is missing.
pub fn ensure() -> Result<()> {
    ensure_all(false)
}

/// The same, with what benches need.
pub fn ensure_bench() -> Result<()> {
    ensure_all(true)
}

fn ensure_all(bench: bool) -> Result<()> {
    let bench_packages = if bench { BENCH_PACKAGES } else { &[] };
    let wanted = || PACKAGES.iter().chain(bench_packages);
    let missing: Vec<&str> = wanted()
        .filter(|(package, file, _)| !is_there(package, file))
        .map(|(package, _, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("these Debian packages are needed and missing:");
    for (package, _, purpose) in wanted().filter(|(package, ..)| missing.contains(package)) {
        eprintln!("    {package:24} {purpose}");
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("there is no apt-get here: install their like by hand, or use Debian 12");
    }
    if !workspace::is_root() {
        let mut arguments = vec!["packages".to_owned()];
        arguments.extend(bench.then(|| "--bench".to_owned()));
        let done = workspace::as_root(&arguments)?;
        ensure!(done == ExitCode::SUCCESS, "installing the packages failed");
        return Ok(());
    }
    eprintln!("installing them");
    let had_clusters = cluster_names();
    let policy = NoDaemons::begin()?;
    let done = install(&missing);
    drop(policy);
    done?;
    remove_new_clusters(&had_clusters);
    let left: Vec<&str> = wanted()
        .filter(|(p, file, _)| !is_there(p, file))
        .map(|(p, ..)| *p)
        .collect();
    ensure!(
        left.is_empty(),
        "still missing after their installation: {}",
        left.join(", ")
    );
    Ok(())
}

/// One file of a package that is not to be installed: fetched and unpacked below the lab's cache.
pub fn file_of(package: &str, file: &str) -> Result<PathBuf> {
    let folder = workspace::lab_cache()?.join("packages").join(package);
    let wanted = folder.join(file);
    if wanted.exists() {
        return Ok(wanted);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let download = || -> Result<bool> {
        let mut command = Command::new("apt-get");
        let status = command
            .args([
                "download",
                "--quiet=2",
                "--option=APT::Sandbox::User=root",
                package,
            ])
            .current_dir(&folder);
        Ok(status.status().context("starting apt-get")?.success())
    };
    if !download()? {
        // Its lists are old, or there are none.
        apt(&["update".to_owned()])?;
        ensure!(download()?, "apt-get can't download {package}");
    }
    for entry in
        std::fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?
    {
        let path = entry.context("listing a folder")?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let mut command = Command::new("dpkg-deb");
            let status = command.arg("--extract").arg(&path).arg(&folder).status();
            ensure!(
                status.context("starting dpkg-deb")?.success(),
                "unpacking {package} failed"
            );
        }
    }
    ensure!(wanted.exists(), "{package} has no {file}");
    Ok(wanted)
}

fn is_there(package: &str, file: &str) -> bool {
    if package == "postgresql" {
        return std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .any(|version| version.path().join("bin/initdb").exists());
    }
    // /sbin and /usr/sbin are one on merged systems, and ip has lived in both.
    Path::new(file).exists() || Path::new(file.trim_start_matches("/usr")).exists()
}

fn install(missing: &[&str]) -> Result<()> {
    apt(&["update".to_owned()])?;
    let mut arguments: Vec<String> = ["install", "--yes", "--no-install-recommends"]
        .map(str::to_owned)
        .into();
    arguments.extend(missing.iter().map(|package| (*package).to_owned()));
    if !would_work(&arguments) {
        // Known trap: a qemu-utils from backports, left without its source, breaks this release's QEMU.
        let release = release_name()?;
        eprintln!(
            "qemu-utils of another release stands in the way: replacing it with {release}'s own version"
        );
        arguments.push("--allow-downgrades".to_owned());
        arguments.push(format!("qemu-utils/{release}"));
        if !would_work(&arguments) {
            arguments.truncate(arguments.len() - 2);
        }
    }
    apt(&arguments)
}

fn would_work(arguments: &[String]) -> bool {
    let simulated = Command::new("apt-get")
        .arg("--simulate")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    simulated.is_ok_and(|status| status.success())
}

fn apt(arguments: &[String]) -> Result<()> {
    let status = Command::new("apt-get")
        .arg("--quiet=2")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .context("starting apt-get")?;
    ensure!(
        status.success(),
        "apt-get {} failed ({status})",
        arguments.join(" ")
    );
    Ok(())
}

fn release_name() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name
        .context("/etc/os-release names no release")?
        .trim_matches('"')
        .to_owned())
}

/// While this lives, packages can't start their services (Debian policy §9.3.3.1).
struct NoDaemons {
    ours: bool,
}

impl NoDaemons {
    fn begin() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("writing {POLICY}"))?;
        let guard = Self { ours: true };
        std::fs::set_permissions(POLICY, Permissions::from_mode(0o755))
            .with_context(|| format!("changing the mode of {POLICY}"))?;
        Ok(guard)
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours {
            std::fs::remove_file(POLICY).ok();
        }
    }
}

/// VERSION/NAME of each configured PostgreSQL cluster.
fn cluster_names() -> Vec<(String, String)> {
    let children = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let versions = children(Path::new(CLUSTERS));
    let pairs = versions.into_iter().flat_map(|version| {
        let names = children(&Path::new(CLUSTERS).join(&version));
        names.into_iter().map(move |name| (version.clone(), name))
    });
    pairs.collect()
}

/// The package makes an empty cluster that would start with the host. Only where there was none at all before.
fn remove_new_clusters(before: &[(String, String)]) {
    if !before.is_empty() {
        return;
    }
    for (version, name) in cluster_names() {
        eprintln!(
            "removing the empty PostgreSQL cluster {version}/{name} that the package made: Muster has its own"
        );
        Command::new("pg_dropcluster")
            .args([&version, &name])
            .status()
            .ok();
    }
}
