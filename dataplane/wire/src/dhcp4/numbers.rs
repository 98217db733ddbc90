//! Option codes and message types: the numbers this rack reads or writes (RFC 2132 unless said).

/// Option codes.
pub mod code {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTERS: u8 = 3;
    pub const DNS_SERVERS: u8 = 6;
    pub const HOSTNAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const INTERFACE_MTU: u8 = 26;
    pub const BROADCAST_ADDRESS: u8 = 28;
    pub const NTP_SERVERS: u8 = 42;
    pub const VENDOR_OPTIONS: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETER_LIST: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MESSAGE_BYTES_MAX: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const TFTP_SERVER: u8 = 66;
    pub const BOOTFILE: u8 = 67;
    /// RFC 3004.
    pub const USER_CLASS: u8 = 77;
    /// RFC 4039.
    pub const RAPID_COMMIT: u8 = 80;
    /// RFC 3046.
    pub const RELAY_INFO: u8 = 82;
    /// RFC 4578 §2.1.
    pub const CLIENT_ARCH: u8 = 93;
    /// RFC 4578 §2.3.
    pub const MACHINE_UUID: u8 = 97;
    /// RFC 3011.
    pub const SUBNET_SELECTION: u8 = 118;
    /// RFC 3397.
    pub const DOMAIN_SEARCH: u8 = 119;
    /// RFC 3925 §4.
    pub const VENDOR_IDENTIFYING: u8 = 125;
    /// iPXE's encapsulated options.
    pub const IPXE: u8 = 175;
    /// RFC 5071 §5.
    pub const PATH_PREFIX: u8 = 210;
    pub const END: u8 = 255;
}

/// Sub-options of option 82.
pub mod relay {
    /// RFC 3046 §3.1.
    pub const CIRCUIT_ID: u8 = 1;
    /// RFC 3046 §3.2.
    pub const REMOTE_ID: u8 = 2;
    /// RFC 3527.
    pub const LINK_SELECTION: u8 = 5;
    /// RFC 5107.
    pub const SERVER_ID_OVERRIDE: u8 = 11;
}

/// Option 53 (RFC 2132 §9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageType {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
    Inform = 8,
}

impl MessageType {
    pub fn from_octet(octet: u8) -> Option<Self> {
        Some(match octet {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }
}
