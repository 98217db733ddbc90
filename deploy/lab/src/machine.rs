//! A machine of the lab: QEMU with firmware, two disks and two NICs, powered through its own `ipmi_sim`.
//!
//! The simulator listens on the machine's address of the BMC network, port 623, and runs `bmc/chassis.sh` to
//! start and end QEMU. So power goes the way it goes in a datacenter, and nothing else starts the machine.

use std::fs::{File, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::command::{in_namespace, run};
use crate::kvm::Accelerator;
use crate::oauth::random_hex;
use crate::plan::{self, Firmware};
use crate::process::Process;

const CHASSIS: &str = include_str!("../bmc/chassis.sh");
const EMULATOR: &str = include_str!("../bmc/sim.emu");
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// The squashfs is kept in memory, and half as much again serves as the overlay.
pub const MEMORY_MIB: u32 = 1024;
pub const CPUS: u32 = 2;
const MIB: u64 = 1 << 20;
/// Two sizes, so that they can't be taken for each other.
pub const DISK_BYTES: [u64; 2] = [8192 * MIB, 12288 * MIB];

/// What an operator tells the region about a machine, and where its traces are.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    pub firmware: Firmware,
    /// The boot NIC's first.
    pub macs: [String; 2],
    pub bmc_address: Ipv4Addr,
    pub bmc_user: String,
    pub bmc_password: Secret,
    /// Serial numbers of the disks, in order.
    pub disk_serials: [String; 2],
    pub serial_number: String,
    pub uuid: String,
    pub serial_log: PathBuf,
    pub bmc_log: PathBuf,
    folder: PathBuf,
    namespace: String,
}

/// Does not show itself in Debug output.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where a machine lives: folders of the lab, the switch's namespace.
pub struct Place<'a> {
    pub machines: &'a Path,
    pub logs: &'a Path,
    pub switch: &'a str,
    pub lab: &'a str,
}

impl Machine {
    /// Machine `number` (from 1): its disks, its BMC's configuration, nothing running yet.
    pub fn create(
        number: usize,
        firmware: Firmware,
        accelerator: Accelerator,
        place: &Place<'_>,
    ) -> Result<Self> {
        let name = format!("machine-{number}");
        let folder = place.machines.join(&name);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let unique = random_hex(16)?;
        let machine = Self {
            firmware,
            macs: [0, 1].map(|nic| plan::machine_mac(number, nic)),
            bmc_address: plan::machine_bmc(number).addr(),
            bmc_user: "maas".to_owned(),
            // IPMI 2.0 takes 20 octets, its 1.5 authentication types 16.
            bmc_password: Secret(random_hex(8)?),
            disk_serials: [1, 2].map(|disk| format!("LAB{number:03}DISK{disk}")),
            serial_number: format!("LAB-{}-{number:03}", place.lab),
            uuid: as_uuid(&unique),
            serial_log: place.logs.join(format!("{name}.serial.log")),
            bmc_log: place.logs.join(format!("{name}.bmc.log")),
            namespace: place.switch.to_owned(),
            name,
            folder,
        };
        machine.write_files(number, accelerator)?;
        Ok(machine)
    }

    /// Starts the BMC. The machine stays off until somebody asks the BMC for power.
    pub fn start_bmc(&self) -> Result<Process> {
        // ipmi_sim ends at the end of its stdin: a FIFO that we hold both ends of has none.
        let fifo = self.folder.join("stdin");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .with_context(|| format!("making {}", fifo.display()))?;
        let stdin = rustix::fs::open(&fifo, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("opening {}", fifo.display()))?;
        let mut command = in_namespace(&self.namespace, "ipmi_sim");
        command.arg("-c").arg(self.folder.join("lan.conf"));
        command.arg("-f").arg(self.folder.join("sim.emu"));
        command.arg("-s").arg(self.folder.join("state")).arg("-n");
        Process::start(
            &format!("{}'s BMC", self.name),
            &self.bmc_log,
            &mut command,
            Stdio::from(stdin),
        )
    }

    /// What the power button at the machine does: on, with the network first.
    pub fn press_power(&self) -> Result<()> {
        self.chassis(&["set", "boot", "pxe", "power", "1"])
            .map(drop)
    }

    pub fn pull_plug(&self) -> Result<()> {
        self.chassis(&["set", "power", "0"]).map(drop)
    }

    /// Whether QEMU runs.
    pub fn is_on(&self) -> Result<bool> {
        Ok(self.chassis(&["get", "power"])?.trim() == "power:1")
    }

    /// What the BMC was asked, and QEMU's complaints.
    pub fn chassis_log(&self) -> PathBuf {
        self.folder.join("chassis.log")
    }

    fn chassis(&self, arguments: &[&str]) -> Result<String> {
        let mut command = in_namespace(&self.namespace, self.folder.join("chassis.sh"));
        run(command.arg("0x20").args(arguments))
    }

    fn write_files(&self, number: usize, accelerator: Accelerator) -> Result<()> {
        let write = |name: &str, content: &str, mode: u32| -> Result<PathBuf> {
            let path = self.folder.join(name);
            std::fs::write(&path, content)
                .with_context(|| format!("writing {}", path.display()))?;
            std::fs::set_permissions(&path, Permissions::from_mode(mode))
                .with_context(|| format!("changing the mode of {}", path.display()))?;
            Ok(path)
        };
        std::fs::create_dir_all(self.folder.join("state"))
            .context("making the BMC's state folder")?;
        let chassis = write("chassis.sh", CHASSIS, 0o755)?;
        write("sim.emu", EMULATOR, 0o644)?;
        write("boot", "default\n", 0o644)?;
        let Secret(password) = &self.bmc_password;
        let account = (self.bmc_user.as_str(), password.as_str());
        let conf = lan_conf(&self.name, self.bmc_address, &self.uuid, account, &chassis);
        write("lan.conf", &conf, 0o600)?;
        write(
            "qemu.args",
            &(self.qemu_arguments(number, accelerator).join("\n") + "\n"),
            0o644,
        )?;
        for (disk, bytes) in (1..).zip(DISK_BYTES) {
            let path = self.disk(disk);
            File::create(&path)
                .and_then(|file| file.set_len(bytes))
                .with_context(|| format!("making {}", path.display()))?;
        }
        if self.firmware == Firmware::Uefi {
            std::fs::copy(OVMF_VARS, self.folder.join("vars.fd"))
                .context("copying OVMF's variables")?;
        }
        Ok(())
    }

    fn disk(&self, number: usize) -> PathBuf {
        self.folder.join(format!("disk{number}.raw"))
    }

    /// One argument per line of `qemu.args`; `@NIC@` and `@DISK@` are boot positions, filled in at each start.
    fn qemu_arguments(&self, number: usize, accelerator: Accelerator) -> Vec<String> {
        let folder = self.folder.display();
        let mut arguments: Vec<String> = accelerator
            .qemu_arguments()
            .iter()
            .map(|text| (*text).to_owned())
            .collect();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-name", self.name.clone());
        match self.firmware {
            // graphics=off gives SeaBIOS, and iPXE behind it, the serial port as console.
            Firmware::Bios => add("-machine", "pc,graphics=off".to_owned()),
            Firmware::Uefi => {
                add("-machine", "q35,graphics=off".to_owned());
                add(
                    "-drive",
                    format!("if=pflash,format=raw,readonly=on,file={OVMF_CODE}"),
                );
                add(
                    "-drive",
                    format!("if=pflash,format=raw,file={folder}/vars.fd"),
                );
            }
        }
        add("-m", MEMORY_MIB.to_string());
        add("-smp", CPUS.to_string());
        add("-display", "none".to_owned());
        add(
            "-chardev",
            format!(
                "file,id=console,append=on,path={}",
                self.serial_log.display()
            ),
        );
        add("-serial", "chardev:console".to_owned());
        add("-uuid", self.uuid.clone());
        add(
            "-smbios",
            format!(
                "type=1,manufacturer=Muster,product=Lab machine,version=1,serial={},uuid={},sku=LAB-{},family=Lab",
                self.serial_number, self.uuid, self.firmware
            ),
        );
        add(
            "-smbios",
            format!("type=2,manufacturer=Muster,product=Lab board,serial=B{number:03}"),
        );
        add(
            "-smbios",
            format!("type=3,manufacturer=Muster,serial=C{number:03}"),
        );
        for (disk, serial) in (1..).zip(&self.disk_serials) {
            let file = self.disk(disk).display().to_string();
            add(
                "-drive",
                format!("if=none,id=disk{disk},format=raw,cache=unsafe,file={file}"),
            );
            let position = if disk == 1 { ",bootindex=@DISK@" } else { "" };
            add(
                "-device",
                format!("virtio-blk-pci,drive=disk{disk},serial={serial}{position}"),
            );
        }
        // The iPXE ROM would replace OVMF's own network stack, and shim does not work through it.
        let rom = if self.firmware == Firmware::Uefi {
            ",romfile="
        } else {
            ""
        };
        for (nic, tap, mac, rest) in [
            (
                "boot",
                "tap",
                &self.macs[0],
                format!(",bootindex=@NIC@{rom}"),
            ),
            ("spare", "spare", &self.macs[1], ",romfile=".to_owned()),
        ] {
            add(
                "-netdev",
                format!("tap,id={nic},ifname={tap}{number},script=no,downscript=no"),
            );
            add(
                "-device",
                format!("virtio-net-pci,netdev={nic},mac={mac}{rest}"),
            );
        }
        add("-device", "virtio-rng-pci".to_owned());
        arguments.extend(["-nodefaults".to_owned(), "-no-user-config".to_owned()]);
        arguments
    }
}

/// `ipmi_sim`'s configuration: a BMC at `address`, port 623, with one account, whose chassis is the program `chassis`.
pub(crate) fn lan_conf(
    name: &str,
    address: Ipv4Addr,
    uuid: &str,
    (user, password): (&str, &str),
    chassis: &Path,
) -> String {
    let levels: String = ["callback", "user", "operator", "admin"]
        .map(|level| format!("    allowed_auths_{level} none md2 md5 straight\n"))
        .concat();
    format!(
        "name \"{name}\"\nset_working_mc 0x20\n  startlan 1\n    addr {address} 623\n    priv_limit admin\n\
         {levels}    guid {}\n  endlan\n  chassis_control \"{} 0x20\"\n\
         \x20 user 1 false \"\" \"\" user 1 none\n\
         \x20 user 2 true \"{user}\" \"{password}\" admin 10 none md2 md5 straight\n",
        uuid.replace('-', ""),
        chassis.display(),
    )
}

/// Random digits in the shape of a version 4 UUID (RFC 9562 §5.4).
pub(crate) fn as_uuid(digits: &str) -> String {
    format!(
        "{}-{}-4{}-8{}-{}",
        &digits[0..8],
        &digits[8..12],
        &digits[13..16],
        &digits[17..20],
        &digits[20..32]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_version_and_variant() {
        let uuid = as_uuid("00112233445566778899aabbccddeeff");
        assert_eq!(uuid, "00112233-4455-4677-8899-aabbccddeeff");
    }

    #[test]
    fn a_machine_keeps_its_password_to_itself() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let place = Place {
            machines: dir.path(),
            logs: dir.path(),
            switch: "none",
            lab: "test",
        };
        let machine =
            Machine::create(3, Firmware::Bios, Accelerator::Tcg, &place).expect("a machine");
        assert!(!format!("{machine:?}").contains(&machine.bmc_password.0));
        let folder = dir.path().join("machine-3");
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect(name);
        assert!(read("lan.conf").contains("addr 10.97.0.103 623"));
        let mode = std::fs::metadata(folder.join("lan.conf"))
            .expect("lan.conf")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let arguments = read("qemu.args");
        assert!(arguments.contains("ifname=tap3,") && arguments.contains("mac=52:54:00:4d:00:03"));
        assert!(
            arguments.lines().all(|line| !line.is_empty()),
            "one argument a line"
        );
        let size = std::fs::metadata(folder.join("disk2.raw"))
            .expect("a disk")
            .len();
        assert_eq!(size, DISK_BYTES[1]);
    }
}
