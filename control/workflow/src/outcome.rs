//! What follows from a rack's answer to a power operation: done, another rack, again later, or failed. Pure.

use std::time::Duration;

use link::{LinkError, PowerFailureClass, PowerReport};
use model::{PowerCommand, PowerState};

/// Claims of one piece of work before it has failed for good.
pub const ATTEMPTS_MAX: u32 = 6;
/// Before the second attempt; doubled for each further one.
const BACKOFF: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How long a rack may take for a command, sessions and waiting for the state included.
pub fn time_limit(command: PowerCommand) -> Duration {
    Duration::from_secs(match command {
        PowerCommand::Query => 20,
        PowerCommand::On | PowerCommand::Off => 45,
        PowerCommand::Cycle | PowerCommand::PxeOn => 75,
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Done(PowerState),
    /// This rack got no answer: it learned something, the next one may do better.
    OtherRack {
        reason: String,
    },
    Retry {
        delay: Duration,
        reason: String,
    },
    Fail {
        reason: String,
    },
}

/// Decides on the answer of one rack. `attempts` counts this one; `others`: connected racks are left to try.
pub fn next(
    answer: &Result<PowerReport, LinkError>,
    command: PowerCommand,
    attempts: u32,
    others: bool,
) -> Next {
    let again = |reason: String, least: Duration| {
        if attempts >= ATTEMPTS_MAX {
            Next::Fail { reason }
        } else {
            Next::Retry {
                delay: backoff(attempts).max(least),
                reason,
            }
        }
    };
    let report = match answer {
        Ok(report) => report,
        // Nobody else may act until this rack can't any more.
        Err(error @ (LinkError::Lost | LinkError::Malformed)) => {
            return again(error.to_string(), time_limit(command));
        }
        Err(error @ LinkError::Deadline) => return again(error.to_string(), Duration::ZERO),
        Err(error) if others => {
            return Next::OtherRack {
                reason: error.to_string(),
            };
        }
        Err(error) => return again(error.to_string(), Duration::ZERO),
    };
    let Some(failure) = &report.failure else {
        return Next::Done(state_of(report.state));
    };
    let reason = failure.message.clone();
    match failure.class {
        PowerFailureClass::Unreachable if others => Next::OtherRack { reason },
        PowerFailureClass::Unreachable => again(reason, Duration::ZERO),
        // No rack and no time makes a password right.
        PowerFailureClass::Credentials | PowerFailureClass::Parameters => Next::Fail { reason },
        PowerFailureClass::Busy if others => Next::OtherRack { reason },
        PowerFailureClass::Refused | PowerFailureClass::Timeout | PowerFailureClass::Busy => {
            again(reason, Duration::ZERO)
        }
    }
}

/// Whether a failed answer shows that the rack did not reach the BMC, that it did, or nothing.
pub fn reached(answer: &Result<PowerReport, LinkError>) -> Option<bool> {
    match answer
        .as_ref()
        .ok()?
        .failure
        .as_ref()
        .map(|failure| failure.class)
    {
        None | Some(PowerFailureClass::Credentials | PowerFailureClass::Refused) => Some(true),
        Some(PowerFailureClass::Unreachable) => Some(false),
        Some(
            PowerFailureClass::Timeout | PowerFailureClass::Parameters | PowerFailureClass::Busy,
        ) => None,
    }
}

pub fn state_of(state: link::PowerState) -> PowerState {
    match state {
        link::PowerState::On => PowerState::On,
        link::PowerState::Off => PowerState::Off,
        link::PowerState::Unknown => PowerState::Unknown,
        link::PowerState::Error => PowerState::Error,
    }
}

/// What `power_boot_type` "auto" is for a machine whose firmware asked for an address: that firmware, whatever the BMC
/// has in its flag. `None`: the operator's choice stands, or nothing is known and the BMC's flag is kept.
pub fn boot_type(
    parameters: &serde_json::Map<String, serde_json::Value>,
    bios_boot_method: &str,
) -> Option<&'static str> {
    let chosen = parameters.get("power_boot_type");
    match chosen.and_then(serde_json::Value::as_str) {
        None | Some("" | "auto") => match bios_boot_method {
            "uefi" => Some("efi"),
            "pxe" => Some("legacy"),
            _ => None,
        },
        Some(_) => None,
    }
}

fn backoff(attempts: u32) -> Duration {
    (BACKOFF * 2u32.saturating_pow(attempts.saturating_sub(1).min(8))).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use link::PowerFailure;

    use super::*;

    fn failed(class: PowerFailureClass) -> Result<PowerReport, LinkError> {
        let failure = Some(PowerFailure {
            class,
            message: "why".to_owned(),
        });
        Ok(PowerReport {
            state: link::PowerState::Unknown,
            steps: Vec::new(),
            failure,
        })
    }

    #[test]
    fn each_answer_has_its_consequence() {
        use PowerFailureClass as C;
        let done = Ok(PowerReport {
            state: link::PowerState::On,
            steps: Vec::new(),
            failure: None,
        });
        let why = || "why".to_owned();
        let secs = Duration::from_secs;
        let other = || Next::OtherRack { reason: why() };
        let retry = |delay| Next::Retry {
            delay: secs(delay),
            reason: why(),
        };
        let fail = || Next::Fail { reason: why() };
        #[rustfmt::skip]
        let cases = [
            ("done",                     done,                   1, true,  Next::Done(PowerState::On)),
            ("unreachable, others left", failed(C::Unreachable), 1, true,  other()),
            ("unreachable by all",       failed(C::Unreachable), 1, false, retry(2)),
            ("second time",              failed(C::Unreachable), 2, false, retry(4)),
            ("backs off to a limit",     failed(C::Timeout),     5, false, retry(30)),
            ("bounded",                  failed(C::Unreachable), ATTEMPTS_MAX, false, fail()),
            ("password: at once",        failed(C::Credentials), 1, true,  fail()),
            ("parameters: at once",      failed(C::Parameters),  1, true,  fail()),
            ("refused: same rack later", failed(C::Refused),     1, true,  retry(2)),
            ("timeout: later",           failed(C::Timeout),     1, true,  retry(2)),
            ("busy: another",            failed(C::Busy),        1, true,  other()),
            ("busy, alone",              failed(C::Busy),        1, false, retry(2)),
        ];
        for (case, answer, attempts, others, want) in cases {
            assert_eq!(
                next(&answer, PowerCommand::On, attempts, others),
                want,
                "{case}"
            );
        }
    }

    #[test]
    fn a_rack_that_may_still_act_is_waited_for() {
        let limit = time_limit(PowerCommand::PxeOn);
        for (error, others, least) in [
            (LinkError::Lost, true, limit),
            (LinkError::Malformed, true, limit),
            (LinkError::Deadline, true, Duration::from_secs(2)),
            (LinkError::NotConnected, false, Duration::from_secs(2)),
        ] {
            let text = error.to_string();
            match next(&Err(error), PowerCommand::PxeOn, 1, others) {
                Next::Retry { delay, .. } => assert_eq!(delay, least, "{text}"),
                next => panic!("{text}: {next:?}"),
            }
        }
        assert!(matches!(
            next(&Err(LinkError::NotConnected), PowerCommand::On, 1, true),
            Next::OtherRack { .. }
        ));
    }

    #[test]
    fn boot_type_auto_is_what_the_machines_own_firmware_asked_with() {
        for (chosen, learnt, want) in [
            (Some("auto"), "uefi", Some("efi")),
            (Some("auto"), "pxe", Some("legacy")),
            (Some(""), "uefi", Some("efi")),
            (None, "pxe", Some("legacy")),
            (Some("auto"), "", None),
            (Some("auto"), "powernv", None),
            (Some("legacy"), "uefi", None),
            (Some("efi"), "pxe", None),
        ] {
            let mut parameters = serde_json::Map::new();
            parameters.extend(chosen.map(|chosen| ("power_boot_type".to_owned(), chosen.into())));
            assert_eq!(boot_type(&parameters, learnt), want, "{chosen:?} {learnt}");
        }
    }

    #[test]
    fn routes_learn_from_what_was_seen() {
        use PowerFailureClass as C;
        assert_eq!(reached(&failed(C::Unreachable)), Some(false));
        assert_eq!(reached(&failed(C::Credentials)), Some(true));
        assert_eq!(reached(&failed(C::Busy)), None);
        assert_eq!(reached(&Err(LinkError::Lost)), None);
    }
}
