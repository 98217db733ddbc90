//! The IPMI driver against a model BMC, well-behaved and not; and the model against `ipmitool` and
//! `ipmi-rs`, so that it is not only our own idea of a BMC.

mod bench;
mod model;

use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bench::{Bench, PASSWORD, USER, class, run};
use power::ipmi::crypto::Suite;
use power::{ErrorClass, Operation, PowerCommand, PowerState};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn both_suites_work_and_the_session_is_closed() {
    for (suite, more) in [
        (17, ""),
        (17, r#","cipher_suite_id":"17""#),
        (3, r#","cipher_suite_id":"3""#),
    ] {
        let bench = Bench::new(true).await;
        let report = bench.run(PowerCommand::Query, more).await;
        assert!(report.result.is_ok(), "{report:?}");
        assert_eq!(report.state, PowerState::On);
        assert_eq!(bench.seen.suite.load(Ordering::Relaxed), suite);
        assert_eq!(bench.seen.closed.load(Ordering::Relaxed), 1);
        assert_eq!(
            report.steps,
            [
                format!("session with cipher suite {suite}"),
                "seen on".into()
            ]
        );
    }
}

#[tokio::test]
async fn every_command_ends_in_the_state_it_is_for() {
    let cases: &[(PowerCommand, bool, PowerState, &[u8])] = &[
        (PowerCommand::On, true, PowerState::On, &[]),
        (PowerCommand::On, false, PowerState::On, &[1]),
        (PowerCommand::Off, true, PowerState::Off, &[0]),
        (PowerCommand::Off, false, PowerState::Off, &[]),
        (PowerCommand::Cycle, true, PowerState::On, &[0, 1]),
        (PowerCommand::Cycle, false, PowerState::On, &[1]),
        (PowerCommand::PxeOn, true, PowerState::On, &[0, 1]),
        (PowerCommand::PxeOn, false, PowerState::On, &[1]),
    ];
    for (command, on, state, controls) in cases {
        let bench = Bench::new(*on).await;
        let report = bench.run(*command, r#","power_boot_type":"efi""#).await;
        assert!(report.result.is_ok(), "{command:?} {report:?}");
        assert_eq!(report.state, *state, "{command:?}");
        assert_eq!(
            *bench.seen.controls.lock().unwrap(),
            *controls,
            "{command:?}"
        );
        if *command == PowerCommand::PxeOn {
            assert_eq!(
                *bench.seen.boot_flags.lock().unwrap(),
                [0xa0, 0x04, 0, 0, 0]
            );
            let how = "next boot from the network (efi), read back as such";
            assert!(report.steps.iter().any(|step| step == how), "{report:?}");
        }
    }
}

#[tokio::test]
async fn soft_off_is_for_off_only() {
    let soft = r#","power_off_mode":"soft""#;
    for (command, controls) in [
        (PowerCommand::Off, vec![5]),
        (PowerCommand::Cycle, vec![0, 1]),
    ] {
        let bench = Bench::new(true).await;
        assert!(bench.run(command, soft).await.result.is_ok());
        assert_eq!(*bench.seen.controls.lock().unwrap(), controls);
    }
}

#[tokio::test]
async fn wrong_secrets_are_credentials_errors() {
    for suite in ["3", "17"] {
        let suite = format!(r#","cipher_suite_id":"{suite}""#);
        let bench = Bench::with(true, &[Suite::Sha256, Suite::Sha1], Some(b"board key")).await;
        let right = bench
            .run(
                PowerCommand::Query,
                &format!(r#","k_g":"board key"{suite}"#),
            )
            .await;
        assert!(right.result.is_ok(), "{right:?}");
        let hex = format!(r#","k_g":"0x626f617264206b6579"{suite}"#);
        assert!(bench.run(PowerCommand::Query, &hex).await.result.is_ok());
        for k_g in ["other key", ""] {
            let wrong = bench
                .run(PowerCommand::Query, &format!(r#","k_g":"{k_g}"{suite}"#))
                .await;
            assert_eq!(class(&wrong), ErrorClass::Credentials);
            assert!(format!("{:?}", wrong.result).contains("K_g"));
        }
        for (user, password) in [(USER, "wrong"), ("nobody", PASSWORD)] {
            let json = format!(
                r#"{{"power_address":"{}","power_user":"{user}","power_pass":"{password}"{suite}}}"#,
                bench.address
            );
            let operation = Operation::parse([0; 16], "ipmi", PowerCommand::On, &json).unwrap();
            let report = run(&operation, Duration::from_secs(10)).await;
            assert_eq!(class(&report), ErrorClass::Credentials, "{user}");
            assert_eq!(report.state, PowerState::Error);
        }
    }
}

#[tokio::test]
async fn a_user_without_the_privilege_is_told_so() {
    let bench = Bench::new(false).await;
    let user = bench
        .run(PowerCommand::Query, r#","privilege_level":"USER""#)
        .await;
    assert!(user.result.is_ok(), "{user:?}");
    let user = bench
        .run(PowerCommand::On, r#","privilege_level":"USER""#)
        .await;
    assert_eq!(class(&user), ErrorClass::Refused);
    let text = user.result.unwrap_err().to_string();
    assert!(text.contains("insufficient privilege (0xd4)"), "{text}");
}

#[tokio::test]
async fn a_silent_bmc_is_unreachable_within_the_deadline() {
    let bench = Bench::new(true).await;
    bench.faults.silent.store(1, Ordering::Relaxed);
    let report = bench
        .run_for(PowerCommand::On, "", Duration::from_secs(2))
        .await;
    assert_eq!(class(&report), ErrorClass::Unreachable);
    assert_eq!(report.state, PowerState::Unknown);
    // The same with time enough: it gives up by itself.
    let begin = Instant::now();
    let report = bench
        .run_for(PowerCommand::On, "", Duration::from_secs(60))
        .await;
    assert_eq!(class(&report), ErrorClass::Unreachable);
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
}

/// Nothing listens: the kernel answers with ICMP, which is not yet a verdict.
#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let address = {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.local_addr().unwrap()
    };
    let json = format!(r#"{{"power_address":"{address}"}}"#);
    let operation = Operation::parse([0; 16], "ipmi", PowerCommand::On, &json).unwrap();
    let report = run(&operation, Duration::from_secs(3)).await;
    assert_eq!(class(&report), ErrorClass::Unreachable);
}

#[tokio::test]
async fn silence_in_mid_session_is_noticed() {
    let bench = Bench::new(false).await;
    bench
        .faults
        .silent_after_commands
        .store(2, Ordering::Relaxed);
    let report = bench
        .run_for(PowerCommand::On, "", Duration::from_secs(4))
        .await;
    assert_eq!(
        class(&report),
        ErrorClass::Timeout,
        "it did answer once: {report:?}"
    );
    assert_eq!(report.state, PowerState::Off, "what was seen last stays");
}

#[tokio::test]
async fn a_forgotten_session_is_opened_again() {
    let bench = Bench::new(false).await;
    bench
        .faults
        .forget_after_commands
        .store(3, Ordering::Relaxed);
    let report = bench.run(PowerCommand::On, "").await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::On);
    assert_eq!(bench.seen.sessions.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn suite_17_falls_back_to_3() {
    // Listed as 3 only; no list and an error for 17; no list and silence for 17.
    let bench = Bench::with(true, &[Suite::Sha1], None).await;
    assert!(bench.run(PowerCommand::Query, "").await.result.is_ok());
    bench.faults.no_suite_list.store(1, Ordering::Relaxed);
    assert!(bench.run(PowerCommand::Query, "").await.result.is_ok());
    bench.faults.silent_for_17.store(1, Ordering::Relaxed);
    let begin = Instant::now();
    assert!(bench.run(PowerCommand::Query, "").await.result.is_ok());
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(bench.seen.suite.load(Ordering::Relaxed), 3);
    // A suite that was asked for by name is not traded for a weaker one.
    let report = bench
        .run(PowerCommand::Query, r#","cipher_suite_id":17"#)
        .await;
    assert!(report.result.is_err());
}

/// A BMC that offers only what does not protect: ours are tried, and nothing else is ever used.
#[tokio::test]
async fn a_bmc_that_offers_only_weak_suites_gets_none_of_them() {
    let bench = Bench::with(true, &[], None).await;
    *bench.faults.lists.lock().unwrap() = vec![0, 1, 2, 8, 12];
    let report = bench.run(PowerCommand::Query, "").await;
    let text = report.result.expect_err("no session").to_string();
    assert!(text.contains("no cipher suite in common"), "{text}");
    assert_eq!(bench.seen.sessions.load(Ordering::Relaxed), 0);
    // A list that is wrong, or forged, takes nothing away.
    let bench = Bench::new(true).await;
    *bench.faults.lists.lock().unwrap() = vec![0, 1];
    assert!(bench.run(PowerCommand::Query, "").await.result.is_ok());
    assert_eq!(bench.seen.suite.load(Ordering::Relaxed), 17);
}

const SET_BOOT_OPTIONS: (u8, u8) = (0x00, 0x08);
const GET_BOOT_OPTIONS: (u8, u8) = (0x00, 0x09);
const CHASSIS_CONTROL: (u8, u8) = (0x00, 0x02);
const SET_PRIVILEGE: (u8, u8) = (0x06, 0x3b);

/// What it boots from is the firmware's to say then; the machine comes on all the same, at the first try.
#[tokio::test]
async fn a_refused_boot_option_is_noted_and_the_machine_powered_on() {
    for (code, word) in [
        (0x80, "command-specific code (0x80)"),
        (0xc0, "node busy (0xc0)"),
        (0xc1, "invalid command (0xc1)"),
        (0xcc, "invalid data field in request (0xcc)"),
        (0xd4, "insufficient privilege (0xd4)"),
        (0xd5, "not supported in the present state (0xd5)"),
        (0xff, "unspecified error (0xff)"),
    ] {
        let bench = Bench::new(false).await;
        bench
            .faults
            .refuse
            .lock()
            .unwrap()
            .insert(SET_BOOT_OPTIONS, Some(code));
        let report = bench
            .run_for(PowerCommand::PxeOn, "", Duration::from_secs(60))
            .await;
        assert!(report.result.is_ok(), "{report:?}");
        assert_eq!(report.state, PowerState::On);
        assert_eq!(*bench.seen.controls.lock().unwrap(), [1], "{code:#04x}");
        let step = format!(
            "boot device not set, Set System Boot Options: {word}; the firmware's own order decides"
        );
        assert!(report.steps.contains(&step), "{report:?}");
    }
}

/// The same where it says nothing at all to the command: one wait, a new session, and on.
#[tokio::test]
async fn a_boot_option_without_an_answer_is_noted_and_the_machine_powered_on() {
    for command in [SET_BOOT_OPTIONS, GET_BOOT_OPTIONS] {
        let bench = Bench::new(true).await;
        bench.faults.refuse.lock().unwrap().insert(command, None);
        let report = bench.run(PowerCommand::PxeOn, "").await;
        assert!(report.result.is_ok(), "{report:?}");
        assert_eq!(*bench.seen.controls.lock().unwrap(), [0, 1]);
        let noted = |step: &String| step.ends_with("no answer; the firmware's own order decides");
        assert!(report.steps.iter().any(noted), "{report:?}");
        assert_eq!(bench.seen.sessions.load(Ordering::Relaxed), 2);
    }
}

/// A BMC without privilege levels does what its user may do; one that denies the level is told at once.
#[tokio::test]
async fn a_refused_privilege_level_is_noted_unless_it_is_the_users() {
    let bench = Bench::new(true).await;
    let refuse = |code| {
        bench
            .faults
            .refuse
            .lock()
            .unwrap()
            .insert(SET_PRIVILEGE, code)
    };
    refuse(Some(0xc1));
    let report = bench.run(PowerCommand::Query, "").await;
    assert!(report.result.is_ok(), "{report:?}");
    let noted = "Set Session Privilege Level refused: invalid command (0xc1)";
    assert!(report.steps.iter().any(|step| step == noted), "{report:?}");
    for code in [0x80, 0x81, 0xd4] {
        refuse(Some(code));
        let report = bench.run(PowerCommand::Query, "").await;
        assert_eq!(class(&report), ErrorClass::Credentials, "{code:#04x}");
    }
}

#[tokio::test]
async fn a_refused_power_command_fails_unless_the_machine_is_so_already() {
    for (code, want) in [
        (0xd4, ErrorClass::Refused),
        (0xcc, ErrorClass::Refused),
        (0x81, ErrorClass::Refused),
        (0xc0, ErrorClass::Busy),
        // "Not now" is tried until the deadline.
        (0xd5, ErrorClass::Timeout),
    ] {
        let bench = Bench::new(false).await;
        let refuse = (CHASSIS_CONTROL, Some(code));
        bench.faults.refuse.lock().unwrap().extend([refuse]);
        let report = bench
            .run_for(PowerCommand::On, "", Duration::from_secs(6))
            .await;
        assert_eq!(class(&report), want, "{code:#04x} {report:?}");
        assert_eq!(report.state, PowerState::Off);
    }
}

/// Faults of long ago stay in the chassis status: bit 0 is the power, and off is sent once.
#[tokio::test]
async fn power_fault_bits_are_noted_and_bit_0_decides() {
    for bits in [0x02, 0x04, 0x08, 0x10, 0x1e] {
        let bench = Bench::new(true).await;
        bench.faults.power_bits.store(bits, Ordering::Relaxed);
        let report = bench.run(PowerCommand::Cycle, "").await;
        assert!(report.result.is_ok(), "{report:?}");
        assert_eq!(report.state, PowerState::On);
        assert_eq!(*bench.seen.controls.lock().unwrap(), [0, 1], "{bits:#04x}");
        let remembers = |step: &&String| step.starts_with("the BMC remembers: ");
        assert_eq!(
            report.steps.iter().filter(remembers).count(),
            1,
            "{report:?}"
        );
        let report = bench.run(PowerCommand::Off, "").await;
        assert_eq!(report.state, PowerState::Off, "{report:?}");
    }
}

#[tokio::test]
async fn garbage_and_repeats_change_nothing() {
    let bench = Bench::new(true).await;
    bench.faults.noise.store(1, Ordering::Relaxed);
    for suite in ["3", "17"] {
        let more = format!(r#","cipher_suite_id":"{suite}""#);
        let report = bench.run(PowerCommand::PxeOn, &more).await;
        assert!(report.result.is_ok(), "{report:?}");
        assert_eq!(report.state, PowerState::On);
    }
    assert_eq!(*bench.seen.controls.lock().unwrap(), [0, 1, 0, 1]);
}

#[tokio::test]
async fn lost_packets_are_sent_again() {
    let bench = Bench::new(true).await;
    bench.faults.lose_every.store(3, Ordering::Relaxed);
    let report = bench.run(PowerCommand::Cycle, "").await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::On);
}

#[tokio::test]
async fn a_busy_bmc_is_asked_again_and_then_reported() {
    let bench = Bench::new(true).await;
    // The first command, Set Session Privilege Level, is not repeated.
    let report = {
        bench.faults.busy.store(0, Ordering::Relaxed);
        bench.run(PowerCommand::Query, "").await
    };
    assert!(report.result.is_ok());
    bench.faults.busy.store(2, Ordering::Relaxed);
    let report = bench.run(PowerCommand::Query, "").await;
    assert!(report.result.is_ok(), "{report:?}");
    bench.faults.busy.store(1_000, Ordering::Relaxed);
    let report = bench.run(PowerCommand::Query, "").await;
    assert_eq!(class(&report), ErrorClass::Busy);
}

/// Dropping the future in mid-operation still tells the BMC.
#[tokio::test]
async fn a_dropped_operation_closes_its_session() {
    let bench = Bench::new(true).await;
    // Never off: the script goes on looking until it is dropped.
    bench.faults.stuck.store(1, Ordering::Relaxed);
    let cut = timeout(Duration::from_millis(700), bench.run(PowerCommand::Off, "")).await;
    assert!(cut.is_err());
    let closed = async {
        while bench.seen.closed.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(2), closed)
        .await
        .expect("Close Session arrived");
}

/// A machine that never changes: the deadline ends it, with the reason and what was seen.
#[tokio::test]
async fn a_stuck_machine_is_a_timeout() {
    let bench = Bench::new(true).await;
    bench.faults.stuck.store(1, Ordering::Relaxed);
    let report = bench
        .run_for(PowerCommand::Off, "", Duration::from_secs(3))
        .await;
    assert_eq!(class(&report), ErrorClass::Timeout);
    assert_eq!(report.state, PowerState::On);
    assert!(
        report
            .result
            .unwrap_err()
            .to_string()
            .ends_with("waiting for power off")
    );
    assert_eq!(bench.seen.closed.load(Ordering::Relaxed), 1);
}

/// Many BMCs cost one thread no more than their packets.
#[tokio::test]
async fn two_hundred_bmcs_at_once() {
    let mut benches = Vec::new();
    for _ in 0..200 {
        benches.push(Bench::new(false).await);
    }
    let begin = Instant::now();
    let mut operations = tokio::task::JoinSet::new();
    for bench in benches {
        operations.spawn(async move { bench.run(PowerCommand::PxeOn, "").await });
    }
    while let Some(report) = operations.join_next().await {
        let report = report.unwrap();
        assert!(report.result.is_ok(), "{report:?}");
    }
    eprintln!("200 BMCs, both ends on one thread: {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(10));
}

// ---------------------------------------------------------------- other people's clients

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipmitool_accepts_the_model() {
    for (suite, k_g) in [
        ("17", None),
        ("3", None),
        ("17", Some("board key")),
        ("3", Some("board key")),
    ] {
        let bench = Bench::with(false, &[Suite::Sha256, Suite::Sha1], k_g.map(str::as_bytes)).await;
        for (arguments, want) in [
            (&["chassis", "power", "status"][..], "Chassis Power is off"),
            (&["chassis", "bootdev", "pxe"], "Set Boot Device to pxe"),
            (&["chassis", "power", "on"], "Chassis Power Control: Up/On"),
        ] {
            let mut command = tokio::process::Command::new("ipmitool");
            command.args([
                "-I",
                "lanplus",
                "-H",
                "127.0.0.1",
                "-U",
                USER,
                "-E",
                "-N",
                "2",
                "-R",
                "2",
            ]);
            command.args([
                "-C",
                suite,
                "-p",
                &bench.address.port().to_string(),
                "-L",
                "OPERATOR",
            ]);
            if let Some(k_g) = k_g {
                command.args(["-k", k_g]);
            }
            command
                .args(arguments)
                .env("IPMI_PASSWORD", PASSWORD)
                .env("IPMITOOL_PASSWORD", PASSWORD);
            command.stdin(Stdio::null()).kill_on_drop(true);
            let output = match timeout(Duration::from_secs(20), command.output())
                .await
                .unwrap()
            {
                Ok(output) => output,
                Err(error) => {
                    eprintln!("skipped: ipmitool cannot be run here ({error})");
                    return;
                }
            };
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains(want),
                "suite {suite}: {text} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        assert_eq!(bench.seen.suite.load(Ordering::Relaxed).to_string(), suite);
        assert_eq!(bench.seen.boot_flags.lock().unwrap()[..2], [0x80, 0x04]);
        assert_eq!(*bench.seen.controls.lock().unwrap(), [1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipmi_rs_talks_to_the_model() {
    use ipmi_rs::connection::{
        IpmiConnection, LogicalUnit, Message, Request, RequestTargetAddress,
    };
    use ipmi_rs::rmcp::Rmcp;

    let bench = Bench::new(false).await;
    let address = bench.address;
    let client = tokio::task::spawn_blocking(move || {
        let mut rmcp = Rmcp::new(address, Duration::from_secs(3)).unwrap();
        rmcp.activate(true, Some(USER), Some(PASSWORD.as_bytes()))
            .unwrap();
        let mut ask = |netfn, command, data: Vec<u8>| {
            let message = Message::new_raw(netfn, command, data);
            let target = RequestTargetAddress::Bmc(LogicalUnit::Zero);
            let response = rmcp.send_recv(&mut Request::new(message, target)).unwrap();
            (response.cc(), response.data().to_vec())
        };
        assert_eq!(
            ask(0x00, 0x02, vec![1]).0,
            0xd4,
            "a session starts at the lowest privilege"
        );
        assert_eq!(ask(0x06, 0x3b, vec![4]), (0, vec![4]));
        assert_eq!(ask(0x00, 0x02, vec![1]).0, 0);
        std::thread::sleep(Duration::from_millis(400));
        let (code, data) = ask(0x00, 0x01, vec![]);
        assert_eq!((code, data[0] & 1), (0, 1));

        let mut stranger = Rmcp::new(address, Duration::from_secs(3)).unwrap();
        assert!(stranger.activate(true, Some(USER), Some(b"wrong")).is_err());
    });
    timeout(Duration::from_secs(20), client)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(bench.seen.suite.load(Ordering::Relaxed), 3);
}
