//! The IPMI driver against OpenIPMI's `ipmi_sim`, a BMC that is not ours (cipher suite 3).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use power::{ErrorClass, Operation, PowerCommand, PowerState, Report};
use tokio::time::{Instant, timeout};

/// The machine is two files; killing it takes a moment, as with a real virtual machine. The program must
/// return at once: ipmi_sim waits for it.
const CHASSIS: &str = r#"#!/bin/sh
d=$(dirname "$0"); shift
op=$1; shift
case $op in
get|check) for n in "$@"; do case $n in
    power) if [ -f $d/on ]; then echo power:1; else echo power:0; fi;;
    boot) echo boot:$(cat $d/boot);;
    *) echo $n:0;; esac; done;;
set) while [ $# -gt 0 ]; do echo "$1 $2" >> $d/log; case $1 in
    power) if [ $2 = 1 ]; then touch $d/on; else (sleep 0.7; rm -f $d/on) >/dev/null 2>&1 </dev/null & fi;;
    boot) echo $2 > $d/boot;;
    esac; shift 2; done;;
esac
exit 0
"#;

const EMULATION: &str = "mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
";

struct Simulator {
    child: Child,
    // ipmi_sim ends at the end of its input.
    _input: ChildStdin,
    folder: tempfile::TempDir,
    port: u16,
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Simulator {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let port = std::net::UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        write(path, "chassis.sh", CHASSIS);
        std::fs::set_permissions(path.join("chassis.sh"), PermissionsExt::from_mode(0o755))
            .unwrap();
        write(path, "sim.emu", EMULATION);
        write(path, "boot", "default\n");
        let allowed: String = ["callback", "user", "operator", "admin"]
            .map(|level| format!("allowed_auths_{level} none md2 md5 straight\n"))
            .concat();
        write(
            path,
            "lan.conf",
            &format!(
                "name \"node1\"\nset_working_mc 0x20\nstartlan 1\naddr 127.0.0.1 {port}\n\
                 priv_limit admin\n{allowed}guid a123456789abcdefa123456789abcdef\nendlan\n\
                 chassis_control \"{}/chassis.sh 0x20\"\n\
                 user 1 true \"\" \"test\" user 10 none md2 md5 straight\n\
                 user 2 true \"maas\" \"secret\" admin 10 none md2 md5 straight\n",
                path.display()
            ),
        );
        std::fs::create_dir(path.join("state")).unwrap();
        let mut command = Command::new("ipmi_sim");
        command
            .arg("-c")
            .arg(path.join("lan.conf"))
            .arg("-f")
            .arg(path.join("sim.emu"));
        command.arg("-s").arg(path.join("state")).arg("-n");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                eprintln!("skipped: ipmi_sim cannot be run here ({error})");
                return None;
            }
        };
        let _input = child.stdin.take().unwrap();
        Some(Self {
            child,
            _input,
            folder,
            port,
        })
    }

    async fn run(&self, command: PowerCommand, password: &str, limit: Duration) -> Report {
        let json = format!(
            r#"{{"power_address":"127.0.0.1:{}","power_user":"maas","power_pass":"{password}",
                "privilege_level":"ADMIN"}}"#,
            self.port
        );
        let operation = Operation::parse([0; 16], "ipmi", command, &json).unwrap();
        let report = power::run(&operation, Instant::now() + limit);
        timeout(limit + Duration::from_secs(1), report)
            .await
            .expect("the deadline was kept")
    }

    fn log(&self) -> Vec<String> {
        match std::fs::File::open(self.folder.path().join("log")) {
            Ok(file) => BufReader::new(file).lines().map(Result::unwrap).collect(),
            Err(_) => Vec::new(),
        }
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::File::create(folder.join(name))
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
}

#[tokio::test]
async fn ipmi_sim_is_switched() {
    let Some(simulator) = Simulator::start() else {
        return;
    };
    let limit = Duration::from_secs(20);
    // It needs a moment to listen: the retries cover that.
    let report = simulator.run(PowerCommand::Query, "secret", limit).await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::Off);
    assert!(report.steps[0].contains("cipher suite 3"), "{report:?}");

    let report = simulator.run(PowerCommand::PxeOn, "secret", limit).await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::On);
    let log = simulator.log();
    let boot = log
        .iter()
        .position(|line| line == "boot pxe")
        .expect("the boot device was set");
    let on = log
        .iter()
        .position(|line| line == "power 1")
        .expect("it was powered on");
    assert!(boot < on, "{log:?}");

    let report = simulator.run(PowerCommand::Cycle, "secret", limit).await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::On);
    let report = simulator.run(PowerCommand::PxeOn, "secret", limit).await;
    assert!(report.result.is_ok(), "{report:?}");
    let report = simulator.run(PowerCommand::Off, "secret", limit).await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::Off);
    assert!(
        report.steps.iter().any(|step| step == "seen on"),
        "killing takes a moment: {report:?}"
    );

    let report = simulator.run(PowerCommand::Query, "wrong", limit).await;
    assert_eq!(report.result.unwrap_err().class(), ErrorClass::Credentials);
}
