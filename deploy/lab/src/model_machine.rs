//! A model machine: the network half of a machine, without QEMU, for tests that need many boots or odd ones.
//!
//! It stands in a network namespace of its own with one NIC on the machines' VLAN. A BMC starts and kills it through
//! `model/chassis.sh`, and `model/model-machine` does what firmware, loaders, Linux and cloud-init do over the network.
//! What it proves is protocol and recovery; that a real firmware boots what it is given is for the QEMU machines.

use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command::{in_namespace, run, run_with_input};
use crate::image::Image;
use crate::instance::{Lab, write_secret};
use crate::machine::{Secret, as_uuid, lan_conf};
use crate::oauth::random_hex;
use crate::plan::{self, MACHINES_MAX};
use crate::process::Process;

const PROGRAM: &str = include_str!("../model/model-machine");
const FIRMWARE: &str = include_str!("../model/firmware.py");
const CHASSIS: &str = include_str!("../model/chassis.sh");
const EMULATOR: &str = include_str!("../bmc/sim.emu");

/// What a model machine has for a BMC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BmcKind {
    /// OpenIPMI's simulator, up to cipher suite 3.
    IpmiSim,
    /// Our own model, cipher suites 17 and 3. `silent_after`: answers so many commands and then no more.
    Model { silent_after: Option<u32> },
    /// The address is there, and nobody listens.
    Off,
    /// Not even the address is there.
    Absent,
}

/// What all model machines of a lab need.
#[derive(Clone, Debug)]
pub struct ModelSetup {
    /// The example program of the power crate.
    pub bmc_model: PathBuf,
    /// Size and SHA-256 of what a boot must fetch, as `machine.json` has them.
    files: Value,
}

impl ModelSetup {
    pub fn new(bmc_model: PathBuf, image: &Image) -> Result<Self> {
        ensure!(bmc_model.exists(), "{} is not built", bmc_model.display());
        let about = |path: PathBuf| -> Result<Value> {
            let octets =
                std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(json!([octets.len(), hex::encode(Sha256::digest(&octets))]))
        };
        let files = json!({
            "kernel": about(image.kernel())?,
            "initrd": about(image.initrd())?,
            "squashfs": about(image.squashfs())?,
        });
        Ok(Self { bmc_model, files })
    }
}

#[derive(Clone, Debug)]
pub struct ModelMachine {
    pub name: String,
    pub macs: [String; 2],
    pub bmc: BmcKind,
    pub bmc_address: Ipv4Addr,
    pub bmc_user: String,
    pub bmc_password: Secret,
    pub namespace: String,
    folder: PathBuf,
    switch: String,
}

/// One line of what a machine did.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub step: String,
    /// Unix time.
    pub at_secs: f64,
    /// The whole line.
    pub line: Value,
}

impl Progress {
    pub fn text(&self, name: &str) -> &str {
        self.line
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

impl Lab {
    /// One more model machine, off, with its BMC running. The region does not know it.
    pub fn add_model(&mut self, setup: &ModelSetup, bmc: BmcKind) -> Result<ModelMachine> {
        self.models += 1;
        let number = self.machines().len() + self.models;
        ensure!(number <= MACHINES_MAX, "at most {MACHINES_MAX} machines");
        let name = format!("model-{number}");
        let folder = self.folder.join("machines").join(&name);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let machine = ModelMachine {
            macs: [0, 1].map(|nic| plan::machine_mac(number, nic)),
            bmc,
            bmc_address: plan::machine_bmc(number).addr(),
            bmc_user: "maas".to_owned(),
            bmc_password: Secret(random_hex(8)?),
            namespace: format!("{}-m{number}", self.names.lab),
            switch: self.names.switch(),
            name,
            folder,
        };
        self.reaper.add(&self.folder, &machine.namespace)?;
        machine.plug(number)?;
        machine.write_files(setup, number)?;
        let log = self.log(&format!("{}.bmc", machine.name));
        if let Some(process) = machine.start_bmc(setup, &log)? {
            self.processes.push(process);
        }
        Ok(machine)
    }
}

impl ModelMachine {
    /// What it did, of all its boots.
    pub fn progress(&self) -> Vec<Progress> {
        let text = std::fs::read_to_string(self.folder.join("progress")).unwrap_or_default();
        let parse = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some(Progress {
                step: line.get("step")?.as_str()?.to_owned(),
                at_secs: line.get("at")?.as_f64()?,
                line,
            })
        };
        // The last line may be half written.
        text.lines().filter_map(parse).collect()
    }

    /// How its next boots behave: see `model/model-machine`.
    pub fn set_options(&self, options: &Value) -> Result<()> {
        self.write("options.json", &options.to_string(), 0o644)
            .map(drop)
    }

    /// Lets a held step go on.
    pub fn go(&self, step: &str) -> Result<()> {
        self.write(&format!("go-{step}"), "", 0o644).map(drop)
    }

    /// The credentials of its boot, as the preseed gave them.
    pub fn preseed(&self) -> Result<String> {
        std::fs::read_to_string(self.folder.join("preseed"))
            .with_context(|| format!("{} got no preseed", self.name))
    }

    pub fn press_power(&self) -> Result<()> {
        self.chassis(&["set", "boot", "pxe", "power", "1"])
            .map(drop)
    }

    pub fn pull_plug(&self) -> Result<()> {
        self.chassis(&["set", "power", "0"]).map(drop)
    }

    pub fn is_on(&self) -> Result<bool> {
        Ok(self.chassis(&["get", "power"])?.trim() == "power:1")
    }

    /// What its parts print, and what its BMC was asked.
    pub fn logs(&self) -> [PathBuf; 3] {
        ["progress", "console.log", "chassis.log"].map(|name| self.folder.join(name))
    }

    fn chassis(&self, arguments: &[&str]) -> Result<String> {
        let mut command = in_namespace(&self.switch, self.folder.join("chassis.sh"));
        run(command.arg("0x20").args(arguments))
    }

    /// The machine's namespace, its NIC's cable to the machines' VLAN, and the BMC's address.
    fn plug(&self, number: usize) -> Result<()> {
        run(Command::new("ip").args(["netns", "add", &self.namespace]))
            .with_context(|| format!("making the namespace {}", self.namespace))?;
        // The loader's ports are its own: the kernel neither uses them nor answers for them, not even with RST.
        let setup = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up; \
                     echo 49152-49153 >/proc/sys/net/ipv4/ip_local_reserved_ports; \
                     ip rule add pref 10 ipproto tcp sport 49152-49153 blackhole";
        run(in_namespace(&self.namespace, "sh").args(["-ec", setup]))?;
        let mut batch = format!(
            "link add {port} type veth peer name boot address {mac} netns {namespace}\n\
             link set {port} master br-boot\n",
            port = port(number),
            mac = self.macs[0],
            namespace = self.namespace,
        );
        if self.bmc != BmcKind::Absent {
            batch += &format!("address add {} dev br-bmc\n", plan::machine_bmc(number));
        }
        run_with_input(
            Command::new("ip").args(["-n", &self.switch, "-batch", "-"]),
            &batch,
        )
        .with_context(|| format!("connecting {}", self.name))?;
        Ok(())
    }

    fn write_files(&self, setup: &ModelSetup, number: usize) -> Result<()> {
        let shared = self
            .folder
            .parent()
            .context("a machine's folder is in another")?;
        for (name, content) in [("model-machine", PROGRAM), ("firmware.py", FIRMWARE)] {
            let path = shared.join(name);
            if !path.exists() {
                write(&path, content, 0o755)?;
            }
        }
        std::fs::create_dir_all(self.folder.join("state"))
            .context("making the BMC's state folder")?;
        let chassis = self.write("chassis.sh", CHASSIS, 0o755)?;
        self.write(
            "host",
            &format!("{} {}\n", self.namespace, port(number)),
            0o644,
        )?;
        let uuid = as_uuid(&random_hex(16)?);
        let about = json!({"macs": self.macs, "uuid": uuid, "image": setup.files});
        self.write("machine.json", &about.to_string(), 0o644)?;
        self.write("sim.emu", EMULATOR, 0o644)?;
        let Secret(password) = &self.bmc_password;
        let account = (self.bmc_user.as_str(), password.as_str());
        let conf = lan_conf(&self.name, self.bmc_address, &uuid, account, &chassis);
        write_secret(&self.folder.join("lan.conf"), &conf)?;
        let credentials = format!("user={}\npassword={password}\n", self.bmc_user);
        write_secret(&self.folder.join("credentials"), &credentials)
    }

    fn start_bmc(&self, setup: &ModelSetup, log: &Path) -> Result<Option<Process>> {
        let title = format!("{}'s BMC", self.name);
        let (mut command, stdin) = match &self.bmc {
            BmcKind::Off | BmcKind::Absent => return Ok(None),
            BmcKind::IpmiSim => {
                // ipmi_sim ends at the end of its stdin: a FIFO that we hold both ends of has none.
                let fifo = self.folder.join("stdin");
                rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                    .with_context(|| format!("making {}", fifo.display()))?;
                let stdin = rustix::fs::open(&fifo, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                    .with_context(|| format!("opening {}", fifo.display()))?;
                let mut command = in_namespace(&self.switch, "ipmi_sim");
                command.arg("-c").arg(self.folder.join("lan.conf"));
                command.arg("-f").arg(self.folder.join("sim.emu"));
                command.arg("-s").arg(self.folder.join("state")).arg("-n");
                (command, Stdio::from(stdin))
            }
            BmcKind::Model { silent_after } => {
                let mut command = in_namespace(&self.switch, &setup.bmc_model);
                let chassis = self.folder.join("chassis.sh");
                command.arg(format!("{}:623", self.bmc_address));
                command
                    .arg("--exec")
                    .arg(format!("{} 0x20", chassis.display()));
                command
                    .arg("--credentials")
                    .arg(self.folder.join("credentials"));
                if let Some(commands) = silent_after {
                    command.arg("--silent-after").arg(commands.to_string());
                }
                (command, Stdio::null())
            }
        };
        Process::start(&title, log, &mut command, stdin).map(Some)
    }

    fn write(&self, name: &str, content: &str, mode: u32) -> Result<PathBuf> {
        let path = self.folder.join(name);
        write(&path, content, mode)?;
        Ok(path)
    }
}

/// By way of another name: a reader sees the old file or the new one.
fn write(path: &Path, content: &str, mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, content)
        .and_then(|()| std::fs::set_permissions(&new, Permissions::from_mode(mode)))
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// The machine's port of the switch.
fn port(number: usize) -> String {
    format!("model{number}")
}
