//! The power scripts: read the state, act if it differs, read until it is as wanted.
//!
//! Everything is asynchronous in a BMC: an accepted command says nothing of when it happens (killing a
//! machine takes seconds), and a command may be lost. So the state is polled, and a command that had no
//! effect for a while is sent again; all of them are idempotent.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{ErrorClass, PowerCommand, PowerError, PowerState, STEPS_MAX};

/// One BMC, seen by the scripts.
pub(crate) trait Actuator {
    fn state(&mut self) -> impl Future<Output = Result<PowerState, PowerError>> + Send;
    fn switch(&mut self, to: Switch) -> impl Future<Output = Result<(), PowerError>> + Send;
    /// Makes the next boot one from the network; says how, for the report.
    fn boot_from_network(&mut self) -> impl Future<Output = Result<String, PowerError>> + Send;
    /// Whether it ever answered: tells a timeout from an unreachable BMC.
    fn answered(&self) -> bool;
    /// What was noticed since the last call and is worth a step.
    fn remarks(&mut self) -> Vec<String> {
        Vec::new()
    }
    /// How the BMC is talked to, for the report.
    fn opening(&self) -> Option<String> {
        None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    On,
    Off,
    SoftOff,
}

impl Switch {
    fn aim(self) -> PowerState {
        match self {
            Self::On => PowerState::On,
            Self::Off | Self::SoftOff => PowerState::Off,
        }
    }

    fn sent(self) -> &'static str {
        match self {
            Self::On => "power on sent",
            Self::Off => "power off sent",
            Self::SoftOff => "soft power off sent",
        }
    }
}

/// How often to look, and when to send a command again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub poll_first: Duration,
    pub poll_longest: Duration,
    pub send_again: Duration,
    /// Looks at a state that cannot be read before it is left at that.
    pub unknown_max: u32,
    /// Looks in a row that the BMC refuses before that is its answer.
    pub refused_max: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            poll_first: Duration::from_millis(200),
            poll_longest: Duration::from_secs(2),
            send_again: Duration::from_secs(10),
            unknown_max: 3,
            refused_max: 5,
        }
    }
}

/// What has happened so far; it outlives a script that is cut off by its deadline.
#[derive(Debug)]
pub(crate) struct Progress {
    pub state: PowerState,
    pub steps: Vec<String>,
    pub waiting_for: &'static str,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            state: PowerState::Unknown,
            steps: Vec::new(),
            waiting_for: "the power state",
        }
    }
}

impl Progress {
    fn step(&mut self, text: impl Into<String>) {
        if self.steps.len() < STEPS_MAX {
            self.steps.push(text.into());
        }
    }

    fn remarks(&mut self, bmc: &mut impl Actuator) {
        bmc.remarks().into_iter().for_each(|text| self.step(text));
    }
}

pub(crate) async fn perform<A: Actuator>(
    bmc: &mut A,
    command: PowerCommand,
    off: Switch,
    pace: Pace,
    progress: &mut Progress,
) -> Result<(), PowerError> {
    let state = bmc.state().await?;
    if let Some(opening) = bmc.opening() {
        progress.step(opening);
    }
    progress.remarks(bmc);
    seen(progress, state);
    match (command, state) {
        (PowerCommand::Query, _) => Ok(()),
        (PowerCommand::On, _) => reach(bmc, Switch::On, pace, progress).await,
        (PowerCommand::Off, _) => reach(bmc, off, pace, progress).await,
        (PowerCommand::Cycle, _) => {
            reach(bmc, Switch::Off, pace, progress).await?;
            reach(bmc, Switch::On, pace, progress).await
        }
        (PowerCommand::PxeOn, _) => {
            reach(bmc, Switch::Off, pace, progress).await?;
            // After the power went off and just before it comes on: some BMCs drop the flags when the
            // power goes, and all do after 60 s without a power command (IPMI v2.0 §28.13).
            progress.waiting_for = "the boot device";
            let how = bmc.boot_from_network().await?;
            progress.remarks(bmc);
            progress.step(how);
            reach(bmc, Switch::On, pace, progress).await
        }
    }
}

/// Records a state the first time it is seen in a row.
fn seen(progress: &mut Progress, state: PowerState) {
    progress.state = state;
    let text = match state {
        PowerState::On => "seen on",
        PowerState::Off => "seen off",
        PowerState::Unknown => "state not readable",
        PowerState::Error => "seen in error",
    };
    if progress.steps.last().map(String::as_str) != Some(text) {
        progress.step(text);
    }
}

/// Acts unless the state is as wanted, and looks until it is.
async fn reach<A: Actuator>(
    bmc: &mut A,
    switch: Switch,
    pace: Pace,
    progress: &mut Progress,
) -> Result<(), PowerError> {
    if progress.state == switch.aim() {
        return Ok(());
    }
    progress.waiting_for = match switch.aim() {
        PowerState::On => "power on",
        _ => "power off",
    };
    let (mut unknown, mut refusals) = (0, 0);
    loop {
        match bmc.switch(switch).await {
            Ok(()) => progress.step(switch.sent()),
            Err(refusal) if refusal.class() == ErrorClass::Refused => {
                return refused(bmc, switch, refusal, progress).await;
            }
            Err(error) => return Err(error),
        }
        progress.remarks(bmc);
        let again = Instant::now() + pace.send_again;
        let mut pause = pace.poll_first;
        while Instant::now() < again {
            let looked = bmc.state().await;
            progress.remarks(bmc);
            let state = match looked {
                Ok(state) => state,
                // Many BMCs cannot say while the power changes.
                Err(error) if error.is_not_now() && refusals < pace.refused_max => {
                    refusals += 1;
                    sleep(pause).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            refusals = 0;
            seen(progress, state);
            if state == switch.aim() {
                return Ok(());
            }
            if state == PowerState::Unknown {
                unknown += 1;
                if unknown == pace.unknown_max {
                    return Ok(());
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(pace.poll_longest);
        }
    }
}

/// A BMC may refuse to do what is so already, each with a code of its own: the state decides.
async fn refused<A: Actuator>(
    bmc: &mut A,
    switch: Switch,
    refusal: PowerError,
    progress: &mut Progress,
) -> Result<(), PowerError> {
    let state = bmc.state().await?;
    progress.remarks(bmc);
    if state != switch.aim() {
        seen(progress, state);
        return Err(refusal);
    }
    progress.step("refused, because it is so already");
    seen(progress, state);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A BMC that answers from a list and notes what it is told.
    struct Script {
        states: VecDeque<PowerState>,
        told: Vec<Switch>,
        network: u32,
        /// Refuses every switch.
        refuses: bool,
    }

    impl Actuator for Script {
        async fn state(&mut self) -> Result<PowerState, PowerError> {
            // The last state stays.
            match self.states.len() {
                1 => Ok(self.states[0]),
                _ => Ok(self.states.pop_front().unwrap_or_default()),
            }
        }
        async fn switch(&mut self, to: Switch) -> Result<(), PowerError> {
            self.told.push(to);
            match self.refuses {
                false => Ok(()),
                true => Err(PowerError::Refused {
                    bmc: String::new(),
                    command: "switch",
                    code: 0x80,
                }),
            }
        }
        async fn boot_from_network(&mut self) -> Result<String, PowerError> {
            self.network += 1;
            Ok("network".to_owned())
        }
        fn answered(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn scripts_act_only_where_the_state_differs() {
        use PowerState::{Off, On, Unknown};
        let pace = Pace {
            poll_first: Duration::from_millis(1),
            poll_longest: Duration::from_millis(1),
            send_again: Duration::from_millis(20),
            unknown_max: 3,
            refused_max: 3,
        };
        type Case = (
            PowerCommand,
            Switch,
            &'static [PowerState],
            &'static [Switch],
            &'static [&'static str],
        );
        let cases: &[Case] = &[
            (PowerCommand::Query, Switch::Off, &[On], &[], &["seen on"]),
            (PowerCommand::On, Switch::Off, &[On], &[], &["seen on"]),
            (PowerCommand::Off, Switch::Off, &[Off], &[], &["seen off"]),
            (
                PowerCommand::On,
                Switch::Off,
                &[Off, Off, Off, On],
                &[Switch::On],
                &["seen off", "power on sent", "seen off", "seen on"],
            ),
            (
                PowerCommand::Off,
                Switch::SoftOff,
                &[On, On, Off],
                &[Switch::SoftOff],
                &["seen on", "soft power off sent", "seen on", "seen off"],
            ),
            (
                PowerCommand::Cycle,
                Switch::Off,
                &[On, On, Off, On],
                &[Switch::Off, Switch::On],
                &[
                    "seen on",
                    "power off sent",
                    "seen on",
                    "seen off",
                    "power on sent",
                    "seen on",
                ],
            ),
            (
                PowerCommand::Cycle,
                Switch::Off,
                &[Off, On],
                &[Switch::On],
                &["seen off", "power on sent", "seen on"],
            ),
            (
                PowerCommand::PxeOn,
                Switch::Off,
                &[On, Off, On],
                &[Switch::Off, Switch::On],
                &[
                    "seen on",
                    "power off sent",
                    "seen off",
                    "network",
                    "power on sent",
                    "seen on",
                ],
            ),
            (
                PowerCommand::On,
                Switch::Off,
                &[Unknown],
                &[Switch::On],
                &["state not readable", "power on sent", "state not readable"],
            ),
        ];
        for (command, off, states, told, steps) in cases {
            let mut bmc = Script {
                states: states.iter().copied().collect(),
                told: Vec::new(),
                network: 0,
                refuses: false,
            };
            let mut progress = Progress::default();
            perform(&mut bmc, *command, *off, pace, &mut progress)
                .await
                .unwrap();
            assert_eq!(bmc.told, *told, "{command:?} {states:?}");
            assert_eq!(progress.steps, *steps, "{command:?} {states:?}");
            assert_eq!(bmc.network, u32::from(*command == PowerCommand::PxeOn));
        }
    }

    /// "Already on", in a BMC's own words, is no failure; any other refusal is.
    #[tokio::test]
    async fn a_refused_switch_is_judged_by_the_state() {
        use PowerState::{Off, On};
        for (command, states, is_ok) in [
            (PowerCommand::On, [Off, On], true),
            (PowerCommand::Off, [On, Off], true),
            (PowerCommand::On, [Off, Off], false),
            (PowerCommand::PxeOn, [Off, On], true),
            (PowerCommand::Cycle, [On, On], false),
        ] {
            let mut bmc = Script {
                states: states.into(),
                told: Vec::new(),
                network: 0,
                refuses: true,
            };
            let mut progress = Progress::default();
            let pace = Pace::default();
            let done = perform(&mut bmc, command, Switch::Off, pace, &mut progress).await;
            assert_eq!(done.is_ok(), is_ok, "{command:?} {states:?}");
            assert_eq!(bmc.told.len(), 1, "{command:?} {states:?}");
            assert_eq!(progress.state, states[1], "{command:?} {states:?}");
        }
    }

    /// A command without effect is sent again, not believed.
    #[tokio::test]
    async fn a_lost_command_is_sent_again() {
        let pace = Pace {
            poll_first: Duration::from_millis(5),
            poll_longest: Duration::from_millis(5),
            send_again: Duration::from_millis(12),
            unknown_max: 3,
            refused_max: 3,
        };
        let mut states = vec![PowerState::Off; 12];
        states.push(PowerState::On);
        let mut bmc = Script {
            states: states.into(),
            told: Vec::new(),
            network: 0,
            refuses: false,
        };
        let mut progress = Progress::default();
        perform(&mut bmc, PowerCommand::On, Switch::Off, pace, &mut progress)
            .await
            .unwrap();
        assert!(bmc.told.len() >= 2, "{:?}", bmc.told);
        assert_eq!(progress.state, PowerState::On);
    }
}
