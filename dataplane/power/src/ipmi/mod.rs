//! The `ipmi` driver: a native IPMI v2.0 (RMCP+) client, async, one UDP socket per operation.
//!
//! This file joins the parts: it chooses the suite, opens sessions (again, if a BMC drops one), and turns
//! chassis and boot-option commands into the [`Actuator`] the power scripts use. What a refusal means is
//! `command::verdict`'s to say.

pub mod command;
pub mod crypto;
pub mod handshake;
mod session;
pub mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::parameters::IpmiParameters;
use crate::steps::{Actuator, Switch};
use crate::{PowerError, PowerState};
use command::{
    BootFlags, ChassisControl, ChassisStatus, Command, Purpose, Verdict, completion_name, efi_flag,
    verdict,
};
use crypto::Suite;
use handshake::{status, suites_to_try};
use session::{Fault, Session};

/// Sessions opened for one operation: the first, and again when the BMC forgot it.
const SESSIONS_MAX: u32 = 4;
/// How long a BMC that is away in the middle of an operation is waited for: it holds a place that others wait for.
const AWAY_MAX: Duration = Duration::from_secs(30);
/// Addresses of one host name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Tries of a command or handshake that the BMC is too busy for, and the pause between them.
const BUSY_TRIES_MAX: u32 = 4;
const BUSY_PAUSE: Duration = Duration::from_millis(750);

/// One BMC for the length of one operation.
pub(crate) struct Bmc<'a> {
    parameters: &'a IpmiParameters,
    deadline: Instant,
    address: Option<SocketAddr>,
    session: Option<Session>,
    sessions_opened: u32,
    /// The suite that worked; asked for again without trying others.
    suite: Option<Suite>,
    /// A session of this operation had the privilege level.
    had_privilege: bool,
    answered: bool,
    /// Told once each in the operation's steps; those not told yet.
    remarks: Vec<String>,
    remarked: Vec<String>,
}

/// What a BMC made of a command that the operation can do without.
enum Unset {
    Refused(u8),
    Silent,
}

impl fmt::Display for Unset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(code) => write!(f, "{} ({code:#04x})", completion_name(*code)),
            Self::Silent => f.write_str("no answer"),
        }
    }
}

impl<'a> Bmc<'a> {
    pub fn new(parameters: &'a IpmiParameters, deadline: Instant) -> Self {
        Self {
            parameters,
            deadline,
            address: None,
            session: None,
            sessions_opened: 0,
            suite: parameters.suite,
            had_privilege: false,
            answered: false,
            remarks: Vec::new(),
            remarked: Vec::new(),
        }
    }

    fn remark(&mut self, text: String) {
        if !self.remarked.contains(&text) {
            self.remarked.push(text.clone());
            self.remarks.push(text);
        }
    }

    /// Ends the session, if there is one.
    pub async fn close(&mut self) {
        if let Some(session) = self.session.take() {
            session.close().await;
        }
    }

    fn name(&self) -> String {
        self.parameters.address.to_string()
    }

    /// The address that answered, or those that the name has.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, PowerError> {
        if let Some(address) = self.address {
            return Ok(vec![address]);
        }
        let target = (
            self.parameters.address.host.as_str(),
            self.parameters.address.port,
        );
        let unreachable = |source| PowerError::Unreachable {
            bmc: self.name(),
            source,
        };
        match timeout_at(self.deadline, tokio::net::lookup_host(target)).await {
            Ok(Ok(found)) => Ok(found.take(ADDRESSES_MAX).collect()),
            Ok(Err(error)) => Err(unreachable(Some(error))),
            Err(_) => Err(unreachable(None)),
        }
    }

    /// Opens a session at the wanted privilege, at the first address of the BMC's name where one answers: a name may
    /// have an IPv6 address that leads nowhere.
    async fn open(&mut self) -> Result<(), PowerError> {
        let mut last = PowerError::Unreachable {
            bmc: self.name(),
            source: None,
        };
        for address in self.resolve().await? {
            match self.open_at(address).await {
                Err(error) if !self.answered && Instant::now() < self.deadline => last = error,
                opened => {
                    self.address = Some(address);
                    return opened;
                }
            }
        }
        Err(last)
    }

    /// With no suite given: those the BMC lists, best first; if it lists none of ours, each of ours (some BMCs answer
    /// 17 with silence, some with an error).
    async fn open_at(&mut self, address: SocketAddr) -> Result<(), PowerError> {
        let (suites, others_only) = match self.suite {
            Some(suite) => (vec![suite], false),
            None => {
                let socket = session::connect(address)
                    .await
                    .map_err(|fault| self.session_error(fault))?;
                let offered = session::offered_suites(&socket, self.deadline).await;
                let offered = offered.map_err(|fault| self.session_error(fault))?;
                self.answered |= offered.is_some();
                let others_only = offered.as_ref().is_some_and(Vec::is_empty);
                (suites_to_try(offered), others_only)
            }
        };
        let mut last = PowerError::NoCipherSuite { bmc: self.name() };
        for suite in suites {
            match self.open_with(address, suite).await {
                Ok(session) => {
                    if session.password_is_cut() {
                        let text = "the BMC keeps only the first 16 octets of its password";
                        self.remark(text.to_owned());
                    }
                    self.suite = Some(suite);
                    self.session = Some(session);
                    return self.raise_privilege().await;
                }
                // It said that it has none of ours, and that is how it is.
                Err(fault) if fault.is_about_the_suite() && others_only => {}
                // Another suite may still work; an answer about credentials is final.
                Err(fault) if fault.is_about_the_suite() => last = self.session_error(fault),
                Err(fault) => return Err(self.session_error(fault)),
            }
            if Instant::now() >= self.deadline {
                break;
            }
        }
        Err(last)
    }

    /// Again after it was lost. A BMC that restarts in the middle of an operation is waited for: what was begun is better
    /// ended.
    async fn reopen(&mut self) -> Result<(), PowerError> {
        let until = self.deadline.min(Instant::now() + AWAY_MAX);
        loop {
            match self.open().await {
                Err(error) if error.is_transient() && Instant::now() < until => {
                    tracing::debug!(bmc = %self.parameters.address, %error, "no new session yet");
                    self.session = None;
                    sleep(BUSY_PAUSE).await;
                }
                opened => return opened,
            }
        }
    }

    /// One suite; a BMC without room for a session is asked again for a while.
    async fn open_with(&mut self, address: SocketAddr, suite: Suite) -> Result<Session, Fault> {
        let mut tries = 1;
        loop {
            let socket = session::connect(address).await?;
            let opened = Session::open(socket, self.parameters, suite, self.deadline).await;
            if !matches!(opened, Err(Fault::NoAnswer | Fault::Io(_))) {
                self.answered = true;
            }
            match opened {
                Err(Fault::Status(
                    status::NO_RESOURCES
                    | status::NO_RESOURCES_FOR_ROLE
                    // A RAKP 3 that was repeated because its answer was lost: start over.
                    | status::INVALID_SESSION
                    | status::INACTIVE_SESSION,
                )) if tries < BUSY_TRIES_MAX => {
                    tries += 1;
                    sleep(BUSY_PAUSE).await;
                }
                opened => return opened,
            }
        }
    }

    /// A session starts at the lowest privilege (§6.8).
    async fn raise_privilege(&mut self) -> Result<(), PowerError> {
        let command = Command::session_privilege(self.parameters.privilege);
        let mut tries = 1;
        loop {
            let Some(session) = self.session.as_mut() else {
                return Err(self.session_error(Fault::NoAnswer));
            };
            let answer = session
                .ask(&command, self.parameters.skip_checksums, self.deadline)
                .await;
            let code = match answer {
                Ok((code, _)) => code,
                Err(fault) => return Err(self.session_error(fault)),
            };
            match verdict(command.purpose(), code) {
                Verdict::Done => {
                    self.had_privilege = true;
                    return Ok(());
                }
                Verdict::Again if tries <= BUSY_TRIES_MAX => {
                    tries += 1;
                    sleep(BUSY_PAUSE).await;
                }
                Verdict::Noted => {
                    let why = Unset::Refused(code);
                    self.remark(format!("{} refused: {why}", command.name));
                    self.had_privilege = true;
                    return Ok(());
                }
                // What this user had a moment ago is not refused for good: the BMC is starting.
                Verdict::Credentials if self.had_privilege => {
                    return Err(PowerError::Busy {
                        bmc: self.name(),
                        reason: "it refuses the privilege level that it gave before",
                    });
                }
                Verdict::Credentials => {
                    return Err(PowerError::Credentials {
                        bmc: self.name(),
                        reason: "this user may not have the privilege level",
                    });
                }
                Verdict::Again | Verdict::Refused => return Err(self.refusal(&command, code)),
            }
        }
    }

    fn refusal(&self, command: &Command, code: u8) -> PowerError {
        let bmc = self.name();
        if command::is_busy(code) {
            let reason = completion_name(code);
            return PowerError::Busy { bmc, reason };
        }
        PowerError::Refused {
            bmc,
            command: command.name,
            code,
        }
    }

    /// Sends one command, opening a session if there is none. Every command used is idempotent, so one
    /// whose answer is lost together with its session is simply sent in the next.
    ///
    /// The inner error: the operation goes on without it.
    async fn ask(&mut self, command: &Command) -> Result<Result<Vec<u8>, Unset>, PowerError> {
        let mut tries = 1;
        loop {
            let answer = match self.session.as_mut() {
                None => {
                    if self.sessions_opened == SESSIONS_MAX {
                        return Err(self.session_error(Fault::NoAnswer));
                    }
                    match self.had_privilege {
                        true => self.reopen().await?,
                        false => self.open().await?,
                    }
                    self.sessions_opened += 1;
                    continue;
                }
                Some(session) => {
                    session
                        .ask(command, self.parameters.skip_checksums, self.deadline)
                        .await
                }
            };
            let optional = command.purpose() == Purpose::BootDevice;
            let (code, data) = match answer {
                Ok(answer) => answer,
                Err(Fault::NoAnswer) if Instant::now() < self.deadline => {
                    tracing::debug!(bmc = %self.parameters.address, "session lost");
                    self.session = None;
                    if optional {
                        return Ok(Err(Unset::Silent));
                    }
                    continue;
                }
                Err(fault) => return Err(self.session_error(fault)),
            };
            match verdict(command.purpose(), code) {
                Verdict::Done => return Ok(Ok(data)),
                Verdict::Again if tries <= BUSY_TRIES_MAX => {
                    tries += 1;
                    sleep(BUSY_PAUSE).await;
                }
                Verdict::Noted => return Ok(Err(Unset::Refused(code))),
                Verdict::Again if optional => return Ok(Err(Unset::Refused(code))),
                Verdict::Again | Verdict::Refused | Verdict::Credentials => {
                    return Err(self.refusal(command, code));
                }
            }
        }
    }

    fn session_error(&self, fault: Fault) -> PowerError {
        let bmc = self.name();
        match fault {
            Fault::NoAnswer if self.answered => PowerError::Timeout {
                bmc,
                waiting_for: "an answer in mid-operation",
            },
            Fault::NoAnswer => PowerError::Unreachable { bmc, source: None },
            Fault::Mute(to) => PowerError::Mute { bmc, to },
            Fault::UserRefused => PowerError::Credentials {
                bmc,
                reason: "unknown user, or one without the privilege level",
            },
            Fault::Io(source) => PowerError::Unreachable {
                bmc,
                source: Some(source),
            },
            Fault::WrongPassword => PowerError::Credentials {
                bmc,
                reason: "wrong password",
            },
            Fault::WrongKey => PowerError::Credentials {
                bmc,
                reason: "wrong K_g",
            },
            Fault::Status(status::UNAUTHORIZED_NAME | status::INVALID_NAME_LENGTH) => {
                PowerError::Credentials {
                    bmc,
                    reason: "unknown user",
                }
            }
            Fault::Status(status::UNAUTHORIZED_ROLE | status::INVALID_ROLE) => {
                PowerError::Credentials {
                    bmc,
                    reason: "this user may not have the privilege level",
                }
            }
            // The BMC's word for our RAKP 3 proof.
            Fault::Status(status::INVALID_CHECK_VALUE) => PowerError::Credentials {
                bmc,
                reason: "wrong password",
            },
            Fault::Status(status::NO_RESOURCES | status::NO_RESOURCES_FOR_ROLE) => {
                PowerError::Busy {
                    bmc,
                    reason: "it has no room for a session",
                }
            }
            Fault::Status(status) => PowerError::SessionRefused { bmc, status },
            Fault::OtherSuite => PowerError::Protocol {
                bmc,
                what: "it answered with a cipher suite not asked for",
            },
            Fault::Malformed => PowerError::Protocol {
                bmc,
                what: "a malformed answer",
            },
        }
    }
}

impl Actuator for Bmc<'_> {
    async fn state(&mut self) -> Result<PowerState, PowerError> {
        let data = self.ask(&Command::chassis_status()).await?;
        let status = data.ok().as_deref().and_then(ChassisStatus::parse);
        let status = status.ok_or_else(|| PowerError::Protocol {
            bmc: self.name(),
            what: "a short chassis status",
        })?;
        if let Some(faults) = status.faults() {
            self.remark(format!("the BMC remembers: {faults}"));
        }
        Ok(match status.power_on {
            true => PowerState::On,
            false => PowerState::Off,
        })
    }

    async fn switch(&mut self, to: Switch) -> Result<(), PowerError> {
        let control = match to {
            Switch::On => ChassisControl::On,
            Switch::Off => ChassisControl::Off,
            Switch::SoftOff => ChassisControl::SoftOff,
        };
        let command = Command::chassis_control(control);
        if let Err(why) = self.ask(&command).await? {
            self.remark(format!("{} answered with: {why}", command.name));
        }
        Ok(())
    }

    async fn boot_from_network(&mut self) -> Result<String, PowerError> {
        let not_set = |what: &Command, why: Unset| {
            let command = what.name;
            format!("boot device not set, {command}: {why}; the firmware's own order decides")
        };
        let read = Command::boot_flags();
        let current = match self.ask(&read).await? {
            Ok(data) => BootFlags::parse(&data),
            // One that is silent to this is not asked five more times.
            Err(why @ Unset::Silent) => return Ok(not_set(&read, why)),
            Err(Unset::Refused(_)) => None,
        };
        let efi = efi_flag(self.parameters.boot_type, current);
        for command in Command::boot_options_preamble() {
            if let Err(why @ Unset::Silent) = self.ask(&command).await? {
                return Ok(not_set(&command, why));
            }
        }
        let set = Command::boot_from_network(efi);
        let refused = self.ask(&set).await?.err();
        if let Some(why @ Unset::Silent) = refused {
            return Ok(not_set(&set, why));
        }
        // Also after a refusal: what the preamble began is ended.
        self.ask(&Command::boot_options_done()).await?.ok();
        if let Some(why) = refused {
            return Ok(not_set(&set, why));
        }
        // Told, not judged: some BMCs lose bits on reading back what they nevertheless do.
        let flags = self.ask(&read).await?.ok();
        let seen = match flags.as_deref().map(BootFlags::parse) {
            Some(Some(flags)) if flags.is_network() => "read back as such",
            Some(Some(_)) => "read back as another device",
            _ => "not readable",
        };
        let firmware = if efi { "efi" } else { "legacy" };
        Ok(format!("next boot from the network ({firmware}), {seen}"))
    }

    fn remarks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.remarks)
    }

    fn answered(&self) -> bool {
        self.answered
    }

    fn opening(&self) -> Option<String> {
        let session = self.session.as_ref()?;
        let unused = match self.parameters.flags_unused.as_slice() {
            [] => String::new(),
            flags => format!(", workaround flags not used: {}", flags.join(" ")),
        };
        Some(format!(
            "session with cipher suite {}{unused}",
            session.suite().id()
        ))
    }
}
