//! What a machine does next: pure rules over what is known of it.
//!
//! `decide` is asked on every signal, on every failure of power and by the monitor's timer, always with the whole
//! state; asking twice changes nothing. The caller holds the machine's row lock and carries out the actions.

use std::time::Duration;

use model::{EventType, MachineStatus, PowerCommand, PowerState, ScriptStatus};

/// Over a script's own timeout, as in MAAS: its runner kills it first and says so.
pub const SCRIPT_GRACE: Duration = Duration::from_secs(300);
/// All results are in, and the final signal did not come for so long: it was lost.
pub const QUIET: Duration = Duration::from_secs(60);
/// How long a machine whose boot ended may take to switch itself off.
pub const SETTLE: Duration = Duration::from_secs(120);

/// One script of the boot.
#[derive(Clone, Debug)]
pub struct ScriptFact<'a> {
    pub id: i32,
    pub name: &'a str,
    pub status: ScriptStatus,
    /// Zero: no limit.
    pub timeout: Duration,
    pub running_for: Option<Duration>,
    pub idle_for: Duration,
}

/// Why the rules are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause<'a> {
    /// The machine says that it has finished, well.
    SignalledOk,
    /// The machine says that it could not, with its reason.
    SignalledFailed(&'a str),
    /// It said something else, or it is time to look.
    Look,
    /// Its power could not be switched, with the reason; no more attempts are left.
    PowerFailed(&'a str),
}

/// What is known of a machine in Commissioning.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    pub cause: Cause<'a>,
    pub scripts: &'a [ScriptFact<'a>],
    /// It has asked for metadata in this boot.
    pub booted: bool,
    pub deadline_passed: bool,
}

/// What is to be done besides the change of status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// This script ran out of time.
    TimeOutScript {
        id: i32,
    },
    /// Results that are still open get this status with the reason; the set is finished.
    EndScripts {
        status: ScriptStatus,
        reason: String,
    },
    /// Queued commands of this boot are no longer wanted.
    CancelPower,
    /// The boot is over: its tokens end now.
    RevokeTokens,
    /// Nobody on the machine will switch it off.
    PowerOff,
    Record {
        event: EventType,
        text: String,
    },
}

/// The next status of a commissioning machine, and what goes with it. In any other status nothing happens.
pub fn decide(status: MachineStatus, facts: &Facts<'_>) -> (MachineStatus, Vec<Action>) {
    if status != MachineStatus::Commissioning {
        return (status, Vec::new());
    }
    let open = |script: &&ScriptFact<'_>| !script.status.is_finished();
    let failures = names(
        facts
            .scripts
            .iter()
            .filter(|script| script.status.is_failure()),
    );
    let missing = names(facts.scripts.iter().filter(open));
    let finished = |reason: &str| {
        if !failures.is_empty() {
            failed(
                format!("Failed scripts: {failures}"),
                ScriptStatus::Aborted,
                true,
            )
        } else if !missing.is_empty() {
            failed(
                format!("{reason} without a result of: {missing}"),
                ScriptStatus::Aborted,
                true,
            )
        } else {
            ready()
        }
    };
    match &facts.cause {
        Cause::SignalledOk => finished("The machine finished"),
        Cause::SignalledFailed(said) => {
            let reason = match (failures.is_empty(), said.is_empty()) {
                (false, _) => format!("Failed scripts: {failures}"),
                (true, false) => format!("The machine reported: {said}"),
                (true, true) => "The machine reported a failure".to_owned(),
            };
            failed(reason, ScriptStatus::Aborted, true)
        }
        // A machine that talks has power, whatever its BMC says.
        Cause::PowerFailed(_) if facts.booted => (status, Vec::new()),
        Cause::PowerFailed(reason) => {
            failed(format!("Power: {reason}"), ScriptStatus::Aborted, true)
        }
        Cause::Look => look(status, facts, finished),
    }
}

fn look<'a>(
    status: MachineStatus,
    facts: &Facts<'a>,
    finished: impl Fn(&str) -> (MachineStatus, Vec<Action>),
) -> (MachineStatus, Vec<Action>) {
    let overdue: Vec<&ScriptFact<'a>> = facts
        .scripts
        .iter()
        .filter(|script| {
            !script.status.is_finished()
                && !script.timeout.is_zero()
                && script
                    .running_for
                    .is_some_and(|time| time > script.timeout + SCRIPT_GRACE)
        })
        .collect();
    if !overdue.is_empty() {
        let reason = format!("Timed out: {}", names(overdue.iter().copied()));
        let (to, mut actions) = failed(reason, ScriptStatus::Aborted, false);
        let marks = overdue
            .iter()
            .map(|script| Action::TimeOutScript { id: script.id });
        actions.splice(0..0, marks);
        return (to, actions);
    }
    let all_in = !facts.scripts.is_empty()
        && facts
            .scripts
            .iter()
            .all(|script| script.status.is_finished());
    if all_in && facts.scripts.iter().all(|script| script.idle_for >= QUIET) {
        return finished("The machine went quiet");
    }
    if facts.deadline_passed {
        let reason = if facts.booted {
            "The machine stopped reporting before it had finished"
        } else {
            "The machine did not start in time"
        };
        return failed(reason.to_owned(), ScriptStatus::TimedOut, false);
    }
    (status, Vec::new())
}

fn ready() -> (MachineStatus, Vec<Action>) {
    let actions = vec![
        Action::EndScripts {
            status: ScriptStatus::Skipped,
            reason: String::new(),
        },
        Action::CancelPower,
        Action::Record {
            event: EventType::Commissioned,
            text: String::new(),
        },
    ];
    (MachineStatus::Ready, actions)
}

/// `lives`: the machine itself will end its boot; otherwise its tokens and its power are taken away.
fn failed(reason: String, open: ScriptStatus, lives: bool) -> (MachineStatus, Vec<Action>) {
    let mut actions = vec![
        Action::EndScripts {
            status: open,
            reason: reason.clone(),
        },
        Action::CancelPower,
    ];
    if !lives {
        actions.push(Action::Record {
            event: EventType::StatusTimeout,
            text: reason.clone(),
        });
        actions.push(Action::RevokeTokens);
        actions.push(Action::PowerOff);
    }
    actions.push(Action::Record {
        event: EventType::CommissioningFailed,
        text: reason,
    });
    (MachineStatus::FailedCommissioning, actions)
}

/// The reason in a decision that failed the machine.
pub fn failure_reason(actions: &[Action]) -> &str {
    actions
        .iter()
        .find_map(|action| match action {
            Action::Record {
                event: EventType::CommissioningFailed,
                text,
            } => Some(text.as_str()),
            _ => None,
        })
        .unwrap_or_default()
}

fn names<'a, 'b: 'a>(scripts: impl Iterator<Item = &'a ScriptFact<'b>>) -> String {
    let mut names = Vec::new();
    for script in scripts {
        let note = match script.status {
            ScriptStatus::TimedOut => " (timed out)",
            ScriptStatus::Degraded => " (degraded)",
            _ => "",
        };
        names.push(format!("{}{note}", script.name));
    }
    names.join(", ")
}

/// What a machine whose boot ended needs so that its power is known to be off; asked every few seconds for
/// machines that were last seen on. `None`: it is off, or was given up.
pub fn settle_power(power: PowerState, since_change: Duration) -> Option<PowerCommand> {
    match power {
        PowerState::Off | PowerState::Unknown => None,
        // The BMC went away: looking is all that can help.
        PowerState::Error => Some(PowerCommand::Query),
        PowerState::On if since_change < SETTLE => Some(PowerCommand::Query),
        PowerState::On => Some(PowerCommand::Off),
    }
}

/// A script's status by the word of its runner.
///
/// | signal    | exit status | its YAML            | status    |
/// |-----------|-------------|---------------------|-----------|
/// | TIMEDOUT  | any         | any                 | Timed out |
/// | any other | none        | any                 | running (installing, applying netconf) |
/// | any other | 0           | status: failed, ... | as it says |
/// | any other | 0           | none                | Passed    |
/// | any other | other       | any                 | Failed    |
pub fn script_status(
    signal: model::Signal,
    exit_status: Option<i32>,
    yaml_status: Option<&str>,
) -> ScriptStatus {
    use model::Signal;
    match (signal, exit_status) {
        (Signal::TimedOut, _) => ScriptStatus::TimedOut,
        (Signal::Installing, None) => ScriptStatus::Installing,
        (Signal::Installing, Some(status)) if status != 0 => ScriptStatus::FailedInstalling,
        (Signal::ApplyingNetconf, None) => ScriptStatus::ApplyingNetconf,
        (Signal::ApplyingNetconf, Some(status)) if status != 0 => {
            ScriptStatus::FailedApplyingNetconf
        }
        (_, None) => ScriptStatus::Running,
        (_, Some(0)) => match yaml_status {
            Some("failed") => ScriptStatus::Failed,
            Some("degraded") => ScriptStatus::Degraded,
            Some("skipped") => ScriptStatus::Skipped,
            Some("timedout") => ScriptStatus::TimedOut,
            _ => ScriptStatus::Passed,
        },
        (_, Some(_)) => ScriptStatus::Failed,
    }
}

/// The top-level `status` of a script's result YAML, which is a plain word in MAAS's contract. A line scan: the file
/// is a machine's, and nothing else of it is needed here.
pub fn yaml_status(yaml: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(yaml.get(..4096).unwrap_or(yaml)).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("status:"))
        .map(|word| word.trim().trim_matches(['"', '\'']).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use model::{MachineStatus as S, ScriptStatus as T, Signal};

    use super::*;

    fn script(name: &'static str, status: T) -> ScriptFact<'static> {
        ScriptFact {
            id: 1,
            name,
            status,
            timeout: Duration::from_secs(60),
            running_for: Some(Duration::from_secs(10)),
            idle_for: Duration::from_secs(10),
        }
    }

    fn late(name: &'static str, status: T) -> ScriptFact<'static> {
        let late = Duration::from_secs(361);
        ScriptFact {
            running_for: Some(late),
            idle_for: late,
            ..script(name, status)
        }
    }

    #[test]
    fn a_commissioning_machine_goes_where_the_facts_say() {
        use Cause::*;
        let ok = || vec![script("50-a", T::Passed), script("60-b", T::Skipped)];
        let bad = || vec![script("50-a", T::Passed), script("60-b", T::Failed)];
        let open = || vec![script("50-a", T::Passed), script("60-b", T::Running)];
        let quiet = || vec![late("50-a", T::Passed), late("60-b", T::Passed)];
        type Case<'a> = (
            &'a str,
            Vec<ScriptFact<'a>>,
            Cause<'a>,
            bool,
            bool,
            S,
            &'a str,
        );
        // case, scripts, cause, booted, deadline passed, next status, part of the reason
        #[rustfmt::skip]
        let cases: [Case<'_>; 18] = [
            ("all passed, OK",       ok(),    SignalledOk,             true,  false, S::Ready, ""),
            ("OK after a failure",   bad(),   SignalledOk,             true,  false, S::FailedCommissioning, "Failed scripts: 60-b"),
            ("OK with one open",     open(),  SignalledOk,             true,  false, S::FailedCommissioning, "without a result of: 60-b"),
            ("OK, nothing to run",   vec![],  SignalledOk,             true,  false, S::Ready, ""),
            ("FAILED, script known", bad(),   SignalledFailed("x"),    true,  false, S::FailedCommissioning, "60-b"),
            ("FAILED, with words",   ok(),    SignalledFailed("disk"), true,  false, S::FailedCommissioning, "reported: disk"),
            ("FAILED, no words",     ok(),    SignalledFailed(""),     true,  false, S::FailedCommissioning, "a failure"),
            ("working",              open(),  Look,                    true,  false, S::Commissioning, ""),
            ("all in, just now",     ok(),    Look,                    true,  false, S::Commissioning, ""),
            ("all in, then quiet",   quiet(), Look,                    true,  false, S::Ready, ""),
            ("quiet, one failed",    vec![late("a", T::Failed)], Look, true,  false, S::FailedCommissioning, "Failed scripts: a"),
            ("one over its time",    vec![late("a", T::Running)], Look, true, false, S::FailedCommissioning, "Timed out: a"),
            ("went silent",          open(),  Look,                    true,  true,  S::FailedCommissioning, "stopped reporting"),
            ("never came",           open(),  Look,                    false, true,  S::FailedCommissioning, "did not start"),
            ("no scripts, waiting",  vec![],  Look,                    false, false, S::Commissioning, ""),
            ("no power",             open(),  PowerFailed("refused"),  false, false, S::FailedCommissioning, "Power: refused"),
            ("no power, yet it runs", open(), PowerFailed("refused"),  true,  false, S::Commissioning, ""),
            ("timed out by runner",  vec![script("a", T::TimedOut)], SignalledFailed(""), true, false, S::FailedCommissioning, "a (timed out)"),
        ];
        for (case, scripts, cause, booted, deadline_passed, want, reason) in cases {
            let facts = Facts {
                cause,
                scripts: &scripts,
                booted,
                deadline_passed,
            };
            let (to, actions) = decide(S::Commissioning, &facts);
            assert_eq!(to, want, "{case}");
            assert!(
                failure_reason(&actions).contains(reason),
                "{case}: {actions:?}"
            );
            assert_eq!(
                to == S::Commissioning,
                actions.is_empty(),
                "{case}: {actions:?}"
            );
            assert!(
                model::can_move(S::Commissioning, to) || actions.is_empty(),
                "{case}"
            );
            // Only a machine that can't end its own boot loses power and tokens.
            let silent =
                matches!(facts.cause, Look) && to == S::FailedCommissioning && !quiet_end(&scripts);
            assert_eq!(actions.contains(&Action::PowerOff), silent, "{case}");
            assert_eq!(actions.contains(&Action::RevokeTokens), silent, "{case}");
        }
    }

    fn quiet_end(scripts: &[ScriptFact<'_>]) -> bool {
        scripts.iter().all(|script| script.status.is_finished())
    }

    #[test]
    fn other_statuses_do_not_move() {
        let scripts = [script("a", T::Failed)];
        let facts = Facts {
            cause: Cause::SignalledOk,
            scripts: &scripts,
            booted: true,
            deadline_passed: true,
        };
        for status in S::ALL
            .into_iter()
            .filter(|status| *status != S::Commissioning)
        {
            assert_eq!(decide(status, &facts), (status, Vec::new()), "{status}");
        }
    }

    #[test]
    fn an_overdue_script_is_marked_before_the_rest_ends() {
        let scripts = [late("a", T::Running), script("b", T::Pending)];
        let facts = Facts {
            cause: Cause::Look,
            scripts: &scripts,
            booted: true,
            deadline_passed: false,
        };
        let (_, actions) = decide(S::Commissioning, &facts);
        assert_eq!(actions[0], Action::TimeOutScript { id: 1 });
        assert!(matches!(
            actions[1],
            Action::EndScripts {
                status: T::Aborted,
                ..
            }
        ));
    }

    #[test]
    fn power_settles() {
        let (soon, later) = (Duration::from_secs(5), SETTLE + Duration::from_secs(1));
        for (power, since, want) in [
            (PowerState::Off, later, None),
            (PowerState::Unknown, later, None),
            (PowerState::On, soon, Some(PowerCommand::Query)),
            (PowerState::On, later, Some(PowerCommand::Off)),
            (PowerState::Error, later, Some(PowerCommand::Query)),
        ] {
            assert_eq!(settle_power(power, since), want, "{power:?} {since:?}");
        }
    }

    #[test]
    fn a_script_ends_as_its_runner_says() {
        for (signal, exit, yaml, want) in [
            (Signal::Working, None, None, T::Running),
            (Signal::Installing, None, None, T::Installing),
            (Signal::Installing, Some(1), None, T::FailedInstalling),
            (
                Signal::ApplyingNetconf,
                Some(2),
                None,
                T::FailedApplyingNetconf,
            ),
            (Signal::Working, Some(0), None, T::Passed),
            (Signal::Working, Some(0), Some("degraded"), T::Degraded),
            (Signal::Working, Some(0), Some("skipped"), T::Skipped),
            (Signal::Working, Some(0), Some("passed"), T::Passed),
            (Signal::Working, Some(1), Some("passed"), T::Failed),
            (Signal::Working, Some(-9), None, T::Failed),
            (Signal::TimedOut, None, None, T::TimedOut),
            (Signal::Failed, Some(3), None, T::Failed),
        ] {
            assert_eq!(
                script_status(signal, exit, yaml),
                want,
                "{signal:?} {exit:?} {yaml:?}"
            );
        }
    }

    #[test]
    fn the_yaml_status_is_found_or_not() {
        for (yaml, want) in [
            (&b"status: failed\n"[..], Some("failed")),
            (b"results:\n  status: failed\n", None),
            (b"results: {}\nstatus: \"Degraded\"\n", Some("degraded")),
            (b"\xff\xfe", None),
            (b"", None),
        ] {
            assert_eq!(yaml_status(yaml).as_deref(), want, "{yaml:?}");
        }
    }
}
