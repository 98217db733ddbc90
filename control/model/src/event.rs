//! What happened: the event types that regions and racks record, with their stable names.
//!
//! The twelve steps of a commissioning have numbers; the timeline is the first event of each step.

use std::str::FromStr;

use crate::ParseError;

/// How much an event matters. MAAS's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Level {
    Audit = 0,
    Debug = 10,
    Info = 20,
    Warning = 30,
    Error = 40,
    Critical = 50,
}

impl Level {
    pub const ALL: [Level; 6] = [
        Level::Audit,
        Level::Debug,
        Level::Info,
        Level::Warning,
        Level::Error,
        Level::Critical,
    ];

    pub fn number(self) -> i32 {
        self as i32
    }

    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.number() == number)
    }

    pub fn name(self) -> &'static str {
        match self {
            Level::Audit => "AUDIT",
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
            Level::Critical => "CRITICAL",
        }
    }
}

impl FromStr for Level {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::ALL
            .into_iter()
            .find(|level| level.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| ParseError::new(text, "an event level"))
    }
}

macro_rules! event_types {
    ($($variant:ident $name:literal $level:ident $text:literal,)*) => {
        /// The kind of an event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventType { $(#[doc = $text] $variant,)* }

        impl EventType {
            pub const ALL: &'static [EventType] = &[$(EventType::$variant,)*];

            /// The stable name, as stored and sent.
            pub fn name(self) -> &'static str {
                match self { $(EventType::$variant => $name,)* }
            }

            /// The text that people and MAAS's `type` field get.
            pub fn description(self) -> &'static str {
                match self { $(EventType::$variant => $text,)* }
            }

            pub fn level(self) -> Level {
                match self { $(EventType::$variant => Level::$level,)* }
            }
        }
    };
}

event_types! {
    // The twelve steps of a commissioning, in order.
    CommissioningRequested "COMMISSIONING_REQUESTED" Info "Commissioning requested",
    WorkQueued "WORK_QUEUED" Info "Work queued",
    RackChosen "RACK_CHOSEN" Info "Rack chosen for the BMC",
    PoweredOn "POWERED_ON" Info "Powered on",
    DhcpAck "DHCP_ACK" Info "Address given",
    BootFile "BOOT_FILE" Info "Boot file chosen",
    BootParameters "BOOT_PARAMETERS" Info "Boot parameters found",
    BootConfig "BOOT_CONFIG" Info "Boot config served",
    ImageServed "IMAGE_SERVED" Info "Image served",
    MetadataServed "METADATA_SERVED" Info "Metadata served",
    ScriptResult "SCRIPT_RESULT" Info "Script result stored",
    Commissioned "COMMISSIONED" Info "Commissioned",

    // A machine's life.
    MachineCreated "MACHINE_CREATED" Audit "Machine created",
    MachineEnlisted "MACHINE_ENLISTED" Info "Machine enlisted",
    EnlistRefused "ENLIST_REFUSED" Warning "Enlistment refused",
    EnlistedGone "ENLISTED_GONE" Warning "An enlisted machine made room for another",
    CardShared "CARD_SHARED" Warning "Another machine has a network card of this address",
    ReservationTaken "RESERVATION_TAKEN" Warning "A user's reservation no longer names a machine's card",
    MachineChanged "MACHINE_CHANGED" Audit "Machine changed",
    MachineDeleted "MACHINE_DELETED" Audit "Machine deleted",
    CommissioningFailed "COMMISSIONING_FAILED" Error "Commissioning failed",
    CommissioningAborted "COMMISSIONING_ABORTED" Warning "Commissioning aborted",
    ScriptStarted "SCRIPT_STARTED" Debug "Script started",
    ScriptFailed "SCRIPT_FAILED" Error "Script failed",
    StatusTimeout "STATUS_TIMEOUT" Error "Status timed out",
    InventoryNoted "INVENTORY_NOTED" Info "Inventory read with remarks",
    InventoryRefused "INVENTORY_REFUSED" Error "Inventory not understood",

    // Power.
    PowerRequested "POWER_REQUESTED" Info "Power command requested",
    PowerRetried "POWER_RETRIED" Warning "Power command tried again",
    PowerFailed "POWER_FAILED" Error "Power command failed",
    PoweredOff "POWERED_OFF" Info "Powered off",
    PowerQueried "POWER_QUERIED" Debug "Power state queried",

    // What racks see.
    DhcpNak "DHCP_NAK" Warning "Address request refused",
    DhcpDecline "DHCP_DECLINE" Warning "Address declined by the client",
    DhcpRelease "DHCP_RELEASE" Debug "Address given back",
    DhcpExhausted "DHCP_EXHAUSTED" Error "No free address",
    BootpReply "BOOTP_REPLY" Info "Reserved address given to a BOOTP client",
    ProxyDhcp "PROXY_DHCP" Info "Boot file told beside another DHCP server",
    AddressInUse "ADDRESS_IN_USE" Warning "Address used without a lease",
    AddressDisputed "ADDRESS_DISPUTED" Warning "Address used by another network card",
    RogueDhcpServer "ROGUE_DHCP_SERVER" Error "Unknown DHCP server on the network",
    DhcpForeignSource "DHCP_FOREIGN_SOURCE" Warning "DHCP in a machine's name from another network card",
    DhcpRangeDisputed "DHCP_RANGE_DISPUTED" Error "Half of an address range is claimed by others",
    DhcpUntrustedRelay "DHCP_UNTRUSTED_RELAY" Warning "DHCP relay that the rack does not trust",
    DhcpTrace "DHCP_TRACE" Debug "DHCP message of a traced machine",
    RangeFilling "DHCP_RANGE_FILLING" Warning "Address range is 80 % full",
    RangeNearlyFull "DHCP_RANGE_NEARLY_FULL" Error "Address range is 95 % full",
    RangeEased "DHCP_RANGE_EASED" Info "Address range has room again",
    LoaderServed "LOADER_SERVED" Info "Boot loader served",
    BootFileMissing "BOOT_FILE_MISSING" Warning "Boot file not found",
    BootNoLoader "BOOT_NO_LOADER" Warning "No boot loader for this firmware",
    BootUnknown "BOOT_UNKNOWN" Info "Unknown machine booting",
    PreseedServed "PRESEED_SERVED" Debug "Preseed served",
    PreseedRefused "PRESEED_REFUSED" Warning "Preseed refused",
    ImageFillFailed "IMAGE_FILL_FAILED" Error "Image could not be fetched",

    // Racks.
    RackEnrolled "RACK_ENROLLED" Audit "Rack enrolled",
    RackConnected "RACK_CONNECTED" Info "Rack connected",
    RackDisconnected "RACK_DISCONNECTED" Warning "Rack disconnected",
    ShardRestarted "SHARD_RESTARTED" Error "A rack's packet thread began anew",
    RackRevoked "RACK_REVOKED" Audit "Rack revoked",
    RackTokenCreated "RACK_TOKEN_CREATED" Audit "Rack token created",

    // The region.
    NetworkChanged "NETWORK_CHANGED" Audit "Network changed",
    AccountChanged "ACCOUNT_CHANGED" Audit "Account changed",
    ImageImported "IMAGE_IMPORTED" Audit "Image imported",
    LeaseConflict "LEASE_CONFLICT" Critical "Lease of another client",
}

/// The twelve steps of a commissioning, in order; the index + 1 is the step's number.
pub const STEPS: [EventType; 12] = [
    EventType::CommissioningRequested,
    EventType::WorkQueued,
    EventType::RackChosen,
    EventType::PoweredOn,
    EventType::DhcpAck,
    EventType::BootFile,
    EventType::BootParameters,
    EventType::BootConfig,
    EventType::ImageServed,
    EventType::MetadataServed,
    EventType::ScriptResult,
    EventType::Commissioned,
];

impl EventType {
    /// The step of a commissioning that this event shows, 1 to 12.
    pub fn step(self) -> Option<u8> {
        (1u8..)
            .zip(STEPS)
            .find(|(_, step)| *step == self)
            .map(|(number, _)| number)
    }
}

impl FromStr for EventType {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::ALL
            .iter()
            .copied()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| ParseError::new(text, "an event type"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_are_unique() {
        for (index, kind) in EventType::ALL.iter().enumerate() {
            assert_eq!(kind.name().parse(), Ok(*kind));
            assert!(
                !EventType::ALL[..index]
                    .iter()
                    .any(|other| other.name() == kind.name())
            );
        }
        assert!("commissioned".parse::<EventType>().is_err());
    }

    #[test]
    fn steps_count_from_one_to_twelve() {
        assert_eq!(EventType::CommissioningRequested.step(), Some(1));
        assert_eq!(EventType::DhcpAck.step(), Some(5));
        assert_eq!(EventType::Commissioned.step(), Some(12));
        assert_eq!(EventType::PowerFailed.step(), None);
    }

    #[test]
    fn levels_come_back() {
        for level in Level::ALL {
            assert_eq!(Level::from_number(level.number()), Some(level));
            assert_eq!(level.name().parse(), Ok(level));
        }
    }
}
