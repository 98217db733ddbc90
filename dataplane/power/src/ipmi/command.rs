//! The IPMI commands a power driver needs: requests, what their answers say, and completion codes by
//! name. Pure.
//!
//! IPMI v2.0 §5.2 (completion codes), §22.15 (cipher suites), §22.18 (privilege), §22.19 (close),
//! §28.2 (chassis status), §28.3 (chassis control), §28.12 to §28.14 (boot options).

use crate::parameters::{BootType, Privilege};

pub const NETFN_CHASSIS: u8 = 0x00;
pub const NETFN_APP: u8 = 0x06;

pub const GET_CHASSIS_STATUS: u8 = 0x01;
pub const CHASSIS_CONTROL: u8 = 0x02;
pub const SET_BOOT_OPTIONS: u8 = 0x08;
pub const GET_BOOT_OPTIONS: u8 = 0x09;
pub const GET_CHANNEL_AUTHENTICATION_CAPABILITIES: u8 = 0x38;
pub const SET_SESSION_PRIVILEGE: u8 = 0x3b;
pub const CLOSE_SESSION: u8 = 0x3c;
pub const GET_CHANNEL_CIPHER_SUITES: u8 = 0x54;

/// "This channel" (§6.3).
pub const CHANNEL_CURRENT: u8 = 0x0e;

/// Completion codes we act on.
pub mod completion {
    pub const OK: u8 = 0x00;
    pub const NODE_BUSY: u8 = 0xc0;
    pub const INVALID_COMMAND: u8 = 0xc1;
    pub const TIMEOUT: u8 = 0xc3;
    pub const OUT_OF_SPACE: u8 = 0xc4;
    pub const INVALID_FIELD: u8 = 0xcc;
    pub const NO_RESPONSE: u8 = 0xce;
    pub const DUPLICATE_REQUEST: u8 = 0xcf;
    pub const FIRMWARE_UPDATE: u8 = 0xd1;
    pub const INITIALIZING: u8 = 0xd2;
    pub const DESTINATION_UNAVAILABLE: u8 = 0xd3;
    pub const INSUFFICIENT_PRIVILEGE: u8 = 0xd4;
    pub const NOT_IN_THIS_STATE: u8 = 0xd5;
    pub const UNSPECIFIED: u8 = 0xff;
}

/// The standard's words for a completion code (table 5-2).
pub fn completion_name(code: u8) -> &'static str {
    match code {
        0x00 => "completed normally",
        0xc0 => "node busy",
        0xc1 => "invalid command",
        0xc2 => "invalid for this LUN",
        0xc3 => "timed out while processing",
        0xc4 => "out of space",
        0xc5 => "reservation cancelled or invalid",
        0xc6 => "request data truncated",
        0xc7 => "request data length invalid",
        0xc8 => "request data field length limit exceeded",
        0xc9 => "parameter out of range",
        0xca => "cannot return the requested number of octets",
        0xcb => "requested sensor, data or record not present",
        0xcc => "invalid data field in request",
        0xcd => "command illegal for this sensor or record",
        0xce => "response could not be provided",
        0xcf => "duplicated request",
        0xd0 => "SDR repository in update mode",
        0xd1 => "device in firmware update mode",
        0xd2 => "BMC initialization in progress",
        0xd3 => "destination unavailable",
        0xd4 => "insufficient privilege",
        0xd5 => "not supported in the present state",
        0xd6 => "sub-function disabled or unavailable",
        0xff => "unspecified error",
        0x01..=0x7e => "device-specific (OEM) code",
        0x80..=0xbe => "command-specific code",
        _ => "reserved code",
    }
}

/// What an operation wants of a command: that decides what a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The session's privilege level.
    Privilege,
    /// Whether the machine is on.
    State,
    /// Powering it on or off.
    Switch,
    /// What it boots from the next time: a firmware with the network first in its own order needs none of it.
    BootDevice,
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Done,
    /// It may work a moment later.
    Again,
    /// Told to the operator; the operation goes on.
    Noted,
    /// The user may not do it: no second try.
    Credentials,
    /// Refused. A refused switch counts only if the state is not as wanted: many BMCs refuse what is so already.
    Refused,
}

/// What an answer's completion code means (table 5-2; 80h to BEh are each command's own).
pub fn verdict(purpose: Purpose, code: u8) -> Verdict {
    use completion::*;
    match (purpose, code) {
        (_, OK) => Verdict::Done,
        (
            _,
            NODE_BUSY
            | TIMEOUT
            | OUT_OF_SPACE
            | NO_RESPONSE
            | DUPLICATE_REQUEST
            | FIRMWARE_UPDATE
            | INITIALIZING
            | DESTINATION_UNAVAILABLE
            | UNSPECIFIED,
        ) => Verdict::Again,
        // 80h: not for this user; 81h: exceeds what the user or the channel may have (§22.18).
        (Purpose::Privilege, 0x80 | 0x81 | INSUFFICIENT_PRIVILEGE) => Verdict::Credentials,
        // A BMC without levels: what it refuses next for want of one says so.
        (Purpose::Privilege | Purpose::BootDevice, _) => Verdict::Noted,
        // On its way from one state to the other, or there already: the state that is read next decides.
        (Purpose::Switch, NOT_IN_THIS_STATE) => Verdict::Noted,
        (Purpose::State | Purpose::Switch, _) => Verdict::Refused,
    }
}

/// Whether a code that did not pass says "busy", for whoever is told.
pub fn is_busy(code: u8) -> bool {
    use completion::*;
    matches!(
        code,
        NODE_BUSY
            | TIMEOUT
            | OUT_OF_SPACE
            | NO_RESPONSE
            | DUPLICATE_REQUEST
            | FIRMWARE_UPDATE
            | INITIALIZING
            | DESTINATION_UNAVAILABLE
    )
}

/// A command to send: its name for people, and what goes on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub name: &'static str,
    pub netfn: u8,
    pub command: u8,
    pub data: Vec<u8>,
}

impl Command {
    pub fn purpose(&self) -> Purpose {
        match (self.netfn, self.command) {
            (NETFN_CHASSIS, GET_BOOT_OPTIONS | SET_BOOT_OPTIONS) => Purpose::BootDevice,
            (NETFN_CHASSIS, CHASSIS_CONTROL) => Purpose::Switch,
            (NETFN_CHASSIS, _) => Purpose::State,
            _ => Purpose::Privilege,
        }
    }

    fn chassis(name: &'static str, command: u8, data: &[u8]) -> Self {
        Self {
            name,
            netfn: NETFN_CHASSIS,
            command,
            data: data.to_vec(),
        }
    }

    fn app(name: &'static str, command: u8, data: &[u8]) -> Self {
        Self {
            name,
            netfn: NETFN_APP,
            command,
            data: data.to_vec(),
        }
    }

    pub fn chassis_status() -> Self {
        Self::chassis("Get Chassis Status", GET_CHASSIS_STATUS, &[])
    }

    pub fn chassis_control(control: ChassisControl) -> Self {
        Self::chassis(control.name(), CHASSIS_CONTROL, &[control as u8])
    }

    /// `index`: which 16 octets of the records (§22.15).
    pub fn cipher_suites(index: u8) -> Self {
        let data = [CHANNEL_CURRENT, 0x00, 0x80 | index & 0x3f];
        Self::app(
            "Get Channel Cipher Suites",
            GET_CHANNEL_CIPHER_SUITES,
            &data,
        )
    }

    pub fn session_privilege(privilege: Privilege) -> Self {
        Self::app(
            "Set Session Privilege Level",
            SET_SESSION_PRIVILEGE,
            &[privilege as u8],
        )
    }

    pub fn close_session(system_id: u32) -> Self {
        Self::app("Close Session", CLOSE_SESSION, &system_id.to_le_bytes())
    }

    pub fn boot_flags() -> Self {
        Self::chassis(
            "Get System Boot Options",
            GET_BOOT_OPTIONS,
            &[BOOT_FLAGS, 0, 0],
        )
    }

    /// Tells the BMC that the boot initiator information is ours to set: "set in progress", and
    /// "acknowledged by the BIOS" for all. BMCs that know neither refuse them, which does no harm.
    pub fn boot_options_preamble() -> [Self; 2] {
        let set = |data: &[u8]| Self::chassis("Set System Boot Options", SET_BOOT_OPTIONS, data);
        [
            set(&[SET_IN_PROGRESS, 0x01]),
            set(&[BOOT_INFO_ACKNOWLEDGE, 0x01, 0x01]),
        ]
    }

    pub fn boot_options_done() -> Self {
        Self::chassis(
            "Set System Boot Options",
            SET_BOOT_OPTIONS,
            &[SET_IN_PROGRESS, 0x00],
        )
    }

    /// Boot the next time, and only then, from the network.
    pub fn boot_from_network(efi: bool) -> Self {
        let valid = 0x80 | if efi { BOOT_EFI } else { 0 };
        let data = [BOOT_FLAGS, valid, BOOT_DEVICE_PXE, 0, 0, 0];
        Self::chassis("Set System Boot Options", SET_BOOT_OPTIONS, &data)
    }
}

/// Boot option parameters (table 28-14).
const SET_IN_PROGRESS: u8 = 0;
const BOOT_INFO_ACKNOWLEDGE: u8 = 4;
const BOOT_FLAGS: u8 = 5;
const BOOT_EFI: u8 = 0x20;
const BOOT_DEVICE_PXE: u8 = 0x04;

/// Chassis Control (table 28-4). Hardware's own cycle and reset are listed for completeness; the driver
/// does not use them, because a repeated cycle cycles twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChassisControl {
    Off = 0,
    On = 1,
    Cycle = 2,
    Reset = 3,
    SoftOff = 5,
}

impl ChassisControl {
    fn name(self) -> &'static str {
        match self {
            Self::Off => "Chassis Control: power down",
            Self::On => "Chassis Control: power up",
            Self::Cycle => "Chassis Control: power cycle",
            Self::Reset => "Chassis Control: hard reset",
            Self::SoftOff => "Chassis Control: soft shutdown",
        }
    }
}

/// What Get Chassis Status says of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChassisStatus {
    pub power_on: bool,
    /// Bits 1 to 4 of the power state. They say that something happened at some time, and stay until somebody
    /// clears them: whether the machine is on is bit 0's alone to say (§28.2).
    pub faults: u8,
}

const FAULTS: [(u8, &str); 4] = [
    (0x02, "overload"),
    (0x04, "interlock"),
    (0x08, "power fault"),
    (0x10, "power control fault"),
];

impl ChassisStatus {
    pub fn parse(data: &[u8]) -> Option<Self> {
        // Current power state, last power event, misc. chassis state.
        let power = *data.first().filter(|_| data.len() >= 3)?;
        Some(Self {
            power_on: power & 0x01 != 0,
            faults: power & 0x1e,
        })
    }

    /// The faults in words; `None`: there are none.
    pub fn faults(self) -> Option<String> {
        let names: Vec<&str> = FAULTS
            .iter()
            .filter(|(bit, _)| self.faults & bit != 0)
            .map(|(_, name)| *name)
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// Boot flags as read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootFlags {
    pub valid: bool,
    pub efi: bool,
    pub device: u8,
}

impl BootFlags {
    pub fn parse(data: &[u8]) -> Option<Self> {
        match data {
            // Parameter version, parameter (bit 7: locked or invalid), then its data.
            [_, parameter, flags, device, ..] if parameter & 0x7f == BOOT_FLAGS => Some(Self {
                valid: flags & 0x80 != 0,
                efi: flags & BOOT_EFI != 0,
                device: device & 0x3c,
            }),
            _ => None,
        }
    }

    pub fn is_network(self) -> bool {
        self.device == BOOT_DEVICE_PXE
    }
}

/// The EFI flag to set, given what the BMC has.
pub fn efi_flag(wanted: BootType, current: Option<BootFlags>) -> bool {
    match wanted {
        BootType::Auto => current.is_some_and(|flags| flags.efi),
        BootType::Legacy => false,
        BootType::Efi => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_the_standard_has_them() {
        assert_eq!(
            Command::boot_from_network(false).data,
            [5, 0x80, 4, 0, 0, 0]
        );
        assert_eq!(Command::boot_from_network(true).data, [5, 0xa0, 4, 0, 0, 0]);
        assert_eq!(Command::cipher_suites(1).data, [0x0e, 0, 0x81]);
        assert_eq!(Command::close_session(0x0102_0304).data, [4, 3, 2, 1]);
        assert_eq!(Command::chassis_control(ChassisControl::SoftOff).data, [5]);
    }

    #[test]
    fn answers_are_read_or_refused() {
        let on = ChassisStatus {
            power_on: true,
            faults: 0,
        };
        assert_eq!(ChassisStatus::parse(&[0x21, 0, 0]), Some(on));
        assert_eq!(ChassisStatus::parse(&[0x21, 0]), None);
        assert_eq!(ChassisStatus::parse(&[]), None);
        let flags = BootFlags::parse(&[1, 5, 0xa0, 4, 0, 0, 0]).unwrap();
        assert!(flags.valid && flags.efi && flags.is_network());
        assert!(efi_flag(BootType::Auto, Some(flags)) && !efi_flag(BootType::Legacy, Some(flags)));
        assert!(!efi_flag(BootType::Auto, None));
        assert_eq!(BootFlags::parse(&[1, 4, 0, 0]), None);
        assert_eq!(BootFlags::parse(&[1, 5]), None);
    }

    #[test]
    fn codes_have_names() {
        for code in 0..=255u8 {
            assert!(!completion_name(code).is_empty());
        }
        assert_eq!(completion_name(0xd4), "insufficient privilege");
    }

    #[test]
    fn faults_are_words_and_bit_0_alone_is_the_power() {
        for (octet, on, faults) in [
            (0x00, false, None),
            (0x01, true, None),
            (0x60, false, None),
            (0x08, false, Some("power fault")),
            (0x10, false, Some("power control fault")),
            (0x09, true, Some("power fault")),
            (0x11, true, Some("power control fault")),
            (
                0x1e,
                false,
                Some("overload, interlock, power fault, power control fault"),
            ),
            (0x70, false, Some("power control fault")),
        ] {
            let status = ChassisStatus::parse(&[octet, 0, 0]).unwrap();
            assert_eq!(
                (status.power_on, status.faults().as_deref()),
                (on, faults),
                "{octet:#04x}"
            );
        }
    }

    #[test]
    fn each_completion_code_of_each_command_has_its_consequence() {
        use Purpose::*;
        use Verdict::*;
        #[rustfmt::skip]
        let rows: &[(&[u8], [Verdict; 4])] = &[
            // code                                 Privilege    State    Switch   BootDevice
            (&[0x00],                              [Done,        Done,    Done,    Done]),
            (&[0xc0, 0xc3, 0xc4, 0xce, 0xcf, 0xd1, 0xd2, 0xd3, 0xff],
                                                   [Again,       Again,   Again,   Again]),
            (&[0x80, 0x81, 0xd4],                  [Credentials, Refused, Refused, Noted]),
            (&[0xd5],                              [Noted,       Refused, Noted,   Noted]),
            (&[0x01, 0x7e, 0x82, 0xbe, 0xc1, 0xc2, 0xc7, 0xc9, 0xcb, 0xcc, 0xcd, 0xd6, 0xf0],
                                                   [Noted,       Refused, Refused, Noted]),
        ];
        for (codes, verdicts) in rows {
            for code in *codes {
                for (purpose, want) in [Privilege, State, Switch, BootDevice]
                    .into_iter()
                    .zip(verdicts)
                {
                    assert_eq!(verdict(purpose, *code), *want, "{purpose:?} {code:#04x}");
                }
            }
        }
        // None of them ends an operation for the sake of a boot device.
        for code in 0..=255 {
            assert!(matches!(verdict(BootDevice, code), Done | Again | Noted));
        }
        assert_eq!(Command::boot_from_network(true).purpose(), BootDevice);
        assert_eq!(Command::boot_flags().purpose(), BootDevice);
        assert_eq!(Command::chassis_status().purpose(), State);
        assert_eq!(
            Command::chassis_control(ChassisControl::On).purpose(),
            Switch
        );
        assert_eq!(
            Command::session_privilege(crate::Privilege::Operator).purpose(),
            Privilege
        );
    }
}
