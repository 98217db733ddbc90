//! BMCs as they are met: what others' bug reports tell of, against the model.

mod bench;
mod model;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bench::{Bench, class};
use model::Mood;
use power::ipmi::crypto::Suite;
use power::ipmi::handshake::status;
use power::{ErrorClass, PowerCommand, PowerState};

const CHASSIS_STATUS: (u8, u8) = (0x00, 0x01);
const SET_PRIVILEGE: (u8, u8) = (0x06, 0x3b);

/// Silence to a user is not the silence of a BMC that is away: it names its reason, and is no "unreachable".
#[tokio::test]
async fn a_bmc_that_says_nothing_to_its_user_is_told_from_one_that_is_away() {
    let bench = Bench::with(true, &[Suite::Sha1], None).await;
    bench.faults.rakp1.lock().unwrap().insert(3, None);
    let report = bench
        .run(PowerCommand::Query, r#","cipher_suite_id":"3""#)
        .await;
    assert_eq!(class(&report), ErrorClass::Timeout);
    let text = report.result.unwrap_err().to_string();
    assert!(text.contains("says nothing to RAKP 1"), "{text}");
}

/// "Illegal parameter" in RAKP 2 is what many say to an unknown user: no second try, which might lock the account.
#[tokio::test]
async fn each_refusal_in_rakp_2_has_its_class() {
    for (code, want) in [
        (status::ILLEGAL_PARAMETER, ErrorClass::Credentials),
        (status::UNAUTHORIZED_NAME, ErrorClass::Credentials),
        (status::INVALID_NAME_LENGTH, ErrorClass::Credentials),
        (status::UNAUTHORIZED_ROLE, ErrorClass::Credentials),
        (status::INVALID_ROLE, ErrorClass::Credentials),
        (status::NO_RESOURCES_FOR_ROLE, ErrorClass::Busy),
        (status::INACTIVE_SESSION, ErrorClass::Refused),
    ] {
        let bench = Bench::new(true).await;
        let refuse = [(3, Some(code)), (17, Some(code))];
        bench.faults.rakp1.lock().unwrap().extend(refuse);
        let report = bench.run(PowerCommand::Query, "").await;
        assert_eq!(class(&report), want, "{code:#04x}: {report:?}");
    }
}

/// A suite that is kept for other privilege levels, or that does not work although it is listed.
#[tokio::test]
async fn a_suite_that_is_refused_in_rakp_2_is_followed_by_the_other() {
    for odd in [
        Some(status::UNAUTHORIZED_ROLE),
        Some(status::INVALID_ROLE),
        Some(status::ILLEGAL_PARAMETER),
        Some(status::NO_SUITE),
        None,
    ] {
        let bench = Bench::new(true).await;
        bench.faults.rakp1.lock().unwrap().insert(17, odd);
        let report = bench.run(PowerCommand::Query, "").await;
        assert!(report.result.is_ok(), "{odd:?}: {report:?}");
        assert_eq!(bench.seen.suite.load(Ordering::Relaxed), 3);
    }
}

/// Two octets, tag and status, are a refusal: nothing is sent again, and the next suite is tried.
#[tokio::test]
async fn a_refusal_of_two_octets_is_one() {
    let bench = Bench::with(true, &[Suite::Sha1], None).await;
    bench.faults.no_suite_list.store(1, Ordering::Relaxed);
    bench.faults.short_refusals.store(1, Ordering::Relaxed);
    let report = bench.run(PowerCommand::Query, "").await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(bench.seen.opens.load(Ordering::Relaxed), 2);
}

/// IPMI 1.5 had passwords of 16 octets, and some BMCs drop the rest in silence when a longer one is set.
#[tokio::test]
async fn a_password_of_which_the_bmc_kept_16_octets_is_taken() {
    for suite in ["3", "17"] {
        let kept = Bench::of(
            true,
            &[Suite::Sha256, Suite::Sha1],
            None,
            "0123456789abcdef",
        )
        .await;
        let more =
            |password: &str| format!(r#","power_pass":"{password}","cipher_suite_id":"{suite}""#);
        let report = kept
            .run(PowerCommand::Query, &more("0123456789abcdefghij"))
            .await;
        assert!(report.result.is_ok(), "{report:?}");
        let told = "the BMC keeps only the first 16 octets of its password";
        assert!(report.steps.iter().any(|step| step == told), "{report:?}");
        for wrong in [
            "0123456789abcdeX",
            "0123456789abcdeXghij",
            "0123456789abcde",
        ] {
            let report = kept.run(PowerCommand::Query, &more(wrong)).await;
            assert_eq!(class(&report), ErrorClass::Credentials, "{wrong}");
        }
    }
}

/// A BMC that just started denies for a moment what it allowed before.
#[tokio::test]
async fn a_privilege_level_that_is_refused_for_a_moment_is_asked_for_again() {
    let bench = Bench::new(false).await;
    bench
        .faults
        .forget_after_commands
        .store(3, Ordering::Relaxed);
    let mood = Mood {
        after: 1,
        times: 2,
        code: 0xd4,
    };
    bench
        .faults
        .moods
        .lock()
        .unwrap()
        .insert(SET_PRIVILEGE, mood);
    let report = bench.run(PowerCommand::On, "").await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::On);
}

/// While the power changes many BMCs cannot say what it is; what has no state in it says nothing either.
#[tokio::test]
async fn a_state_that_is_refused_while_the_power_changes_is_looked_for_again() {
    for (code, times) in [(0xff, 7), (0xc0, 7), (0xd3, 7), (0xd5, 3), (0x00, 3)] {
        let bench = Bench::new(true).await;
        let mood = Mood {
            after: 1,
            times,
            code,
        };
        bench
            .faults
            .moods
            .lock()
            .unwrap()
            .insert(CHASSIS_STATUS, mood);
        let report = bench
            .run_for(PowerCommand::Cycle, "", Duration::from_secs(60))
            .await;
        assert!(report.result.is_ok(), "{code:#04x}: {report:?}");
        assert_eq!(report.state, PowerState::On);
    }
    // For good it is its answer, with the reason.
    let bench = Bench::new(true).await;
    let mood = Mood {
        after: 1,
        times: 1000,
        code: 0xd5,
    };
    bench
        .faults
        .moods
        .lock()
        .unwrap()
        .insert(CHASSIS_STATUS, mood);
    let report = bench
        .run_for(PowerCommand::Off, "", Duration::from_secs(60))
        .await;
    assert_eq!(class(&report), ErrorClass::Refused, "{report:?}");
}

/// A BMC that shares its port with the machine, or restarts, is away for a while in the middle of an operation.
#[tokio::test]
async fn a_bmc_that_is_away_in_mid_operation_is_waited_for() {
    let bench = Bench::new(true).await;
    bench.faults.outage_ms.store(14_000, Ordering::Relaxed);
    bench
        .faults
        .outage_after_commands
        .store(3, Ordering::Relaxed);
    let report = bench
        .run_for(PowerCommand::Cycle, "", Duration::from_secs(60))
        .await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::On);
    assert_eq!(bench.seen.sessions.load(Ordering::Relaxed), 2);
}
