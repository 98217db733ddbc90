//! The lab's hosts, networks, machines and BMCs without region and racks: real namespaces, QEMU and `ipmi_sim`.
//!
//! Needs root and the lab's packages; says so and passes where they are missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lab::kvm::Accelerator;
use lab::{BootNetwork, Firmware, Lab, LabConfig};

struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    /// None, with the reason on stderr, where a lab can't run.
    fn new() -> Option<Self> {
        let reason = lab::missing_rights().map(str::to_owned).or_else(|| {
            let programs = [
                "/usr/bin/qemu-system-x86_64",
                "/usr/bin/ipmi_sim",
                "/usr/sbin/dnsmasq",
            ];
            let missing = programs
                .iter()
                .find(|program| !Path::new(program).exists())?;
            Some(format!(
                "{missing} is not installed (`cargo xtask packages` installs it)"
            ))
        });
        if let Some(reason) = reason {
            eprintln!("skipped: {reason}");
            return None;
        }
        Some(Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        })
    }

    fn config(&self, name: &str, racks: usize, machines: &[Firmware]) -> LabConfig {
        LabConfig {
            name: name.to_owned(),
            racks,
            machines: machines.to_vec(),
            network: BootNetwork::default(),
            base: self.folder.path().join("labs"),
            logs: self.folder.path().join("logs").join(name),
            accelerator: Accelerator::Tcg,
        }
    }
}

/// Unique among the test processes of this host.
fn name(what: &str) -> String {
    format!("t{}-{what}", std::process::id())
}

fn on(namespace: &str, program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("ip")
        .args(["netns", "exec", namespace, program])
        .args(arguments)
        .output()
        .expect("ip runs");
    let both = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&both).into_owned(),
    )
}

/// What a connection to a port that nobody listens on says: "refused" means that the host is there.
fn reaches(namespace: &str, address: &str) -> bool {
    let script = format!("timeout 3 bash -c '</dev/tcp/{address}/9'");
    on(namespace, "sh", &["-c", &script]).1.contains("refused")
}

fn namespaces() -> BTreeSet<String> {
    let output = Command::new("ip")
        .args(["netns", "list"])
        .output()
        .expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect()
}

fn until(what: &str, limit_secs: u64, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(limit_secs),
            "{what}: not within {limit_secs} s"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    start.elapsed()
}

fn interfaces_of_the_host() -> BTreeSet<String> {
    std::fs::read_dir("/sys/class/net")
        .expect("/sys/class/net")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[test]
fn two_labs_stand_side_by_side_and_leave_nothing() {
    let Some(stage) = Stage::new() else { return };
    let before = interfaces_of_the_host();
    let (first, second) = (name("a"), name("b"));
    let one = Lab::start(&stage.config(&first, 2, &[Firmware::Bios])).expect("a lab");
    let two = Lab::start(&stage.config(&second, 1, &[])).expect("a second lab");
    assert!(
        Lab::start(&stage.config(&first, 1, &[])).is_err(),
        "a name is taken once"
    );
    assert_eq!(
        interfaces_of_the_host(),
        before,
        "the host's network is not touched"
    );

    let rack = |number: usize| format!("{first}-rack{number}");
    assert!(
        reaches(&rack(1), "10.98.0.1") && reaches(&rack(2), "10.98.0.1"),
        "racks reach the region"
    );
    assert!(
        reaches(&rack(1), "10.99.0.1"),
        "rack 1 is on the machines' VLAN"
    );
    assert!(
        !reaches(&rack(1), "10.97.0.101"),
        "rack 1 does not reach the BMCs"
    );
    assert!(reaches(&rack(2), "10.97.0.101"), "rack 2 reaches the BMCs");
    assert!(
        !reaches(&rack(2), "10.99.0.1"),
        "rack 2 is not on the machines' VLAN"
    );
    let alone = format!("{second}-rack1");
    assert!(
        reaches(&alone, "10.99.0.1") && reaches(&alone, "10.97.0.11"),
        "a lone rack is on both"
    );
    assert!(
        !reaches(&alone, "10.97.0.101"),
        "labs don't reach each other"
    );

    let folder = one.folder().to_owned();
    drop(one);
    drop(two);
    assert!(!folder.exists());
    let left: Vec<String> = namespaces()
        .into_iter()
        .filter(|found| found.starts_with(&first) || found.starts_with(&second))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_bmc_starts_and_ends_its_machine() {
    let Some(stage) = Stage::new() else { return };
    let lab = Lab::start(&stage.config(&name("bmc"), 1, &[Firmware::Bios])).expect("a lab");
    let machine = &lab.machines()[0];
    let rack = lab.names().rack(1);
    let ipmi = |password: &str, command: &[&str]| {
        let file = stage.folder.path().join("password");
        std::fs::write(&file, password).expect("written");
        let address = machine.bmc_address.to_string();
        let user = machine.bmc_user.as_str();
        let mut arguments = vec!["-I", "lanplus", "-C", "3", "-H", &address, "-U", user, "-f"];
        let file = file.to_string_lossy().into_owned();
        arguments.push(&file);
        arguments.extend(["-N", "1", "-R", "4"]);
        arguments.extend(command);
        on(&rack, "ipmitool", &arguments)
    };
    let right = machine.bmc_password.0.as_str();
    until("the BMC answers", 20, || {
        ipmi(right, &["power", "status"]).1.contains("is off")
    });
    assert!(
        !ipmi("wrong", &["power", "status"]).0,
        "a wrong password is refused"
    );
    assert!(!machine.is_on().expect("its state"));

    let (done, said) = ipmi(right, &["chassis", "bootdev", "pxe"]);
    assert!(done, "{said}");
    assert!(ipmi(right, &["power", "on"]).0);
    let on_after = until("it is on", 20, || {
        ipmi(right, &["power", "status"]).1.contains("is on")
    });
    until("it says something", 30, || {
        std::fs::metadata(&machine.serial_log).is_ok_and(|log| log.len() > 0)
    });
    assert!(ipmi(right, &["power", "on"]).0, "twice is no error");
    assert!(ipmi(right, &["power", "cycle"]).0);
    until("it is on again", 30, || {
        std::thread::sleep(Duration::from_secs(1));
        machine.is_on().expect("its state")
    });
    assert!(ipmi(right, &["power", "off"]).0);
    let off_after = until("it is off", 20, || !machine.is_on().expect("its state"));
    eprintln!("on after {on_after:?}, off after {off_after:?}");

    // Left on: the end of the lab is the end of the machine.
    machine.press_power().expect("on");
    until("it is on", 20, || machine.is_on().expect("its state"));
    let pid =
        std::fs::read_to_string(lab.folder().join("machines/machine-1/pid")).expect("a pid file");
    drop(lab);
    // Ended, though perhaps not yet waited for by whoever adopted it.
    until("QEMU went with the lab", 5, || {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}

/// Runs only as the child of the next test, which kills it.
#[test]
#[ignore = "a helper of the_lab_of_a_killed_process_goes"]
fn owner_to_be_killed() {
    let (Some(stage), Ok(marker)) = (Stage::new(), std::env::var("LAB_TEST_MARKER")) else {
        return;
    };
    let lab_name = std::env::var("LAB_TEST_NAME").expect("a name");
    let lab = Lab::start(&stage.config(&lab_name, 1, &[Firmware::Uefi])).expect("a lab");
    lab.machines()[0].press_power().expect("on");
    std::fs::write(marker, lab.folder().to_string_lossy().as_bytes()).expect("a marker");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn the_lab_of_a_killed_process_goes() {
    let Some(stage) = Stage::new() else { return };
    let (marker, lab_name) = (stage.folder.path().join("marker"), name("killed"));
    // Its own temporary folder would outlive it: it gets a place in ours.
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "owner_to_be_killed", "--ignored", "--nocapture"])
        .env("LAB_TEST_MARKER", &marker)
        .env("LAB_TEST_NAME", &lab_name)
        .env("TMPDIR", stage.folder.path())
        .spawn()
        .expect("the test program runs again");
    until("its lab stands", 40, || {
        std::fs::metadata(&marker).is_ok_and(|file| file.len() > 0)
    });
    let folder = PathBuf::from(std::fs::read_to_string(&marker).expect("the marker"));
    assert!(namespaces().contains(&format!("{lab_name}-sw")));
    child.kill().expect("SIGKILL");
    child.wait().expect("its end");
    until("namespaces and folder are gone", 30, || {
        !folder.exists()
            && !namespaces()
                .iter()
                .any(|found| found.starts_with(&lab_name))
    });
}
