//! Statuses of scripts, and the words by which a machine signals.

use std::str::FromStr;

use crate::ParseError;

/// A script result's status: MAAS's numbers and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum ScriptStatus {
    Pending = 0,
    Running = 1,
    Passed = 2,
    Failed = 3,
    TimedOut = 4,
    Aborted = 5,
    Degraded = 6,
    Installing = 7,
    FailedInstalling = 8,
    Skipped = 9,
    ApplyingNetconf = 10,
    FailedApplyingNetconf = 11,
}

impl ScriptStatus {
    /// In the order of their numbers.
    pub const ALL: [ScriptStatus; 12] = [
        ScriptStatus::Pending,
        ScriptStatus::Running,
        ScriptStatus::Passed,
        ScriptStatus::Failed,
        ScriptStatus::TimedOut,
        ScriptStatus::Aborted,
        ScriptStatus::Degraded,
        ScriptStatus::Installing,
        ScriptStatus::FailedInstalling,
        ScriptStatus::Skipped,
        ScriptStatus::ApplyingNetconf,
        ScriptStatus::FailedApplyingNetconf,
    ];

    pub fn number(self) -> i32 {
        self as i32
    }

    pub fn from_number(number: i32) -> Option<Self> {
        usize::try_from(number)
            .ok()
            .and_then(|index| Self::ALL.get(index))
            .copied()
    }

    pub fn name(self) -> &'static str {
        match self {
            ScriptStatus::Pending => "Pending",
            ScriptStatus::Running => "Running",
            ScriptStatus::Passed => "Passed",
            ScriptStatus::Failed => "Failed",
            ScriptStatus::TimedOut => "Timed out",
            ScriptStatus::Aborted => "Aborted",
            ScriptStatus::Degraded => "Degraded",
            ScriptStatus::Installing => "Installing dependencies",
            ScriptStatus::FailedInstalling => "Failed installing dependencies",
            ScriptStatus::Skipped => "Skipped",
            ScriptStatus::ApplyingNetconf => "Applying custom network configuration",
            ScriptStatus::FailedApplyingNetconf => "Failed to apply custom network configuration",
        }
    }

    /// Whether nothing more is expected of the script.
    pub fn is_finished(self) -> bool {
        !matches!(
            self,
            ScriptStatus::Pending
                | ScriptStatus::Running
                | ScriptStatus::Installing
                | ScriptStatus::ApplyingNetconf
        )
    }

    /// Whether the machine can't be Ready with it.
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            ScriptStatus::Failed
                | ScriptStatus::TimedOut
                | ScriptStatus::Aborted
                | ScriptStatus::Degraded
                | ScriptStatus::FailedInstalling
                | ScriptStatus::FailedApplyingNetconf
        )
    }

    /// The status of one or more scripts taken together, as `commissioning_status` shows it; -1 is
    /// MAAS's number for "none has run". A script that works outranks a failure, a failure the rest.
    pub fn summary(statuses: impl IntoIterator<Item = ScriptStatus>) -> Option<ScriptStatus> {
        fn rank(status: ScriptStatus) -> u8 {
            match status {
                ScriptStatus::Skipped => 0,
                ScriptStatus::Passed => 1,
                ScriptStatus::Degraded => 2,
                ScriptStatus::Aborted => 3,
                ScriptStatus::TimedOut => 4,
                ScriptStatus::FailedApplyingNetconf => 5,
                ScriptStatus::FailedInstalling => 6,
                ScriptStatus::Failed => 7,
                ScriptStatus::Pending => 8,
                ScriptStatus::ApplyingNetconf => 9,
                ScriptStatus::Installing => 10,
                ScriptStatus::Running => 11,
            }
        }
        statuses.into_iter().max_by_key(|status| rank(*status))
    }
}

/// The `status` of `op=signal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    Ok,
    Failed,
    Working,
    Commissioning,
    Testing,
    TimedOut,
    Installing,
    ApplyingNetconf,
    Releasing,
    Deploying,
}

impl Signal {
    pub const ALL: [Signal; 10] = [
        Signal::Ok,
        Signal::Failed,
        Signal::Working,
        Signal::Commissioning,
        Signal::Testing,
        Signal::TimedOut,
        Signal::Installing,
        Signal::ApplyingNetconf,
        Signal::Releasing,
        Signal::Deploying,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Signal::Ok => "OK",
            Signal::Failed => "FAILED",
            Signal::Working => "WORKING",
            Signal::Commissioning => "COMMISSIONING",
            Signal::Testing => "TESTING",
            Signal::TimedOut => "TIMEDOUT",
            Signal::Installing => "INSTALLING",
            Signal::ApplyingNetconf => "APPLYING_NETCONF",
            Signal::Releasing => "RELEASING",
            Signal::Deploying => "DEPLOYING",
        }
    }
}

impl FromStr for Signal {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::ALL
            .into_iter()
            .find(|signal| signal.as_str() == text)
            .ok_or_else(|| ParseError::new(text, "a signal status"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words_come_back() {
        for status in ScriptStatus::ALL {
            assert_eq!(ScriptStatus::from_number(status.number()), Some(status));
        }
        assert_eq!(ScriptStatus::from_number(-1), None);
        assert_eq!(ScriptStatus::from_number(12), None);
        for signal in Signal::ALL {
            assert_eq!(signal.as_str().parse(), Ok(signal));
        }
        assert!("ok".parse::<Signal>().is_err());
    }

    #[test]
    fn a_summary_shows_what_matters_most() {
        use ScriptStatus::*;
        let cases: [(&[ScriptStatus], Option<ScriptStatus>); 5] = [
            (&[], None),
            (&[Passed, Skipped], Some(Passed)),
            (&[Passed, Failed, TimedOut], Some(Failed)),
            (&[Failed, Running, Pending], Some(Running)),
            (&[Passed, Pending], Some(Pending)),
        ];
        for (statuses, want) in cases {
            assert_eq!(
                ScriptStatus::summary(statuses.iter().copied()),
                want,
                "{statuses:?}"
            );
        }
    }
}
