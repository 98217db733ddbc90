//! DHCPv4 messages (RFC 2131 §2, RFC 2132): a view over received octets, and a writer for replies.
//!
//! ```text
//! | op htype hlen hops | xid | secs flags | ciaddr yiaddr siaddr giaddr | chaddr 16 | sname 64 | file 128 | magic | options
//! ```
//!
//! [`View::parse`] checks once that every option fits where it stands; after that no reading can fail. Options in
//! `file` and `sname` (option 52) are walked behind those of the options field, in the order of RFC 2131 §4.1.
//! Where an option came in parts (RFC 3396), [`View::joined`] puts them together in the caller's [`Joined`].
//! The view gives octets and numbers; what they mean is the engine's business. Budget: no allocation, and one walk of
//! the options per question that has an answer.

mod joined;
mod numbers;
mod writer;

use std::fmt;
use std::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use self::joined::{JOINED_BYTES_MAX, Joined};
pub use self::numbers::{MessageType, code, relay};
pub use self::writer::{
    LeaseTimes, MESSAGE_BYTES_MAX, MESSAGE_BYTES_MIN, OVERLOAD_FILE, OVERLOAD_SNAME, WriteError,
    Writer, payload_limit,
};
use crate::ethernet::Mac;

pub const SERVER_PORT: u16 = 67;
pub const CLIENT_PORT: u16 = 68;
/// Where PXE clients ask a proxy or a boot server (PXE 2.1 §2.2).
pub const PROXY_PORT: u16 = 4011;
pub const OP_REQUEST: u8 = 1;
pub const OP_REPLY: u8 = 2;
pub const HTYPE_ETHERNET: u8 = 1;
/// Token ring and the like, with the same addresses (RFC 1700, IEEE 802 networks).
pub const HTYPE_IEEE_802: u8 = 6;
/// The flag by which a client asks for broadcast replies (RFC 2131 §2, figure 2).
pub const FLAG_BROADCAST: u16 = 0x8000;
/// The octets in front of the options, magic cookie included.
pub const HEADER_BYTES: usize = 240;
const MAGIC: u32 = 0x6382_5363;

/// The fixed part of a message (RFC 2131 figure 1), magic cookie included.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    pub op: u8,
    pub htype: u8,
    pub hlen: u8,
    pub hops: u8,
    pub xid: U32,
    pub secs: U16,
    pub flags: U16,
    pub ciaddr: [u8; 4],
    pub yiaddr: [u8; 4],
    pub siaddr: [u8; 4],
    pub giaddr: [u8; 4],
    pub chaddr: [u8; 16],
    pub sname: [u8; 64],
    pub file: [u8; 128],
    magic: U32,
}

impl Header {
    /// A message of all zeros but `op` and the magic cookie.
    pub fn new(op: u8) -> Self {
        let mut header: Self = zerocopy::FromZeros::new_zeroed();
        header.op = op;
        header.magic = U32::new(MAGIC);
        header
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("shorter than a DHCP message")]
    Truncated,
    #[error("neither the magic cookie nor an unused vendor field")]
    BadMagic,
    #[error("hardware address longer than its field")]
    BadHardwareLength,
    #[error("an option is cut off")]
    OptionTruncated,
    #[error("option overload (52) is not 1, 2 or 3")]
    BadOverload,
    #[error("options in parts of more than {JOINED_BYTES_MAX} octets in all")]
    OptionsTooLong,
}

/// A received message. Every option in it fits.
#[derive(Clone, Copy)]
pub struct View<'a> {
    header: &'a Header,
    options: &'a [u8],
    /// Bits of option 52: 1 `file` holds options, 2 `sname` does.
    overload: u8,
    /// Which options there are: most questions are for one that is not.
    codes: Codes,
    /// Where its parts were put together.
    joined: Option<&'a Joined>,
}

impl<'a> View<'a> {
    /// Checks the whole message. A missing end option is accepted (RFC 2131 wants it, some clients forget it);
    /// an option that runs over its field is not. A BOOTP client that does not use its vendor field leaves zeros
    /// where the magic cookie stands: such a message has no options.
    pub fn parse(octets: &'a [u8]) -> Result<Self, ParseError> {
        let (header, options) =
            Header::ref_from_prefix(octets).map_err(|_| ParseError::Truncated)?;
        let options = match header.magic.get() {
            MAGIC => options,
            0 => &[],
            _ => return Err(ParseError::BadMagic),
        };
        if usize::from(header.hlen) > header.chaddr.len() {
            return Err(ParseError::BadHardwareLength);
        }
        let mut seen = Codes::default();
        let mut overload = 0;
        for option in Field(options) {
            let (code, octets) = option?;
            seen.note(code);
            match (code, octets) {
                // The first counts, as of all options that can't come in parts.
                (code::OVERLOAD, _) if overload != 0 => {}
                (code::OVERLOAD, [bits @ 1..=3]) => overload = *bits,
                (code::OVERLOAD, _) => return Err(ParseError::BadOverload),
                _ => {}
            }
        }
        let mut view = Self {
            header,
            options,
            overload,
            codes: Codes::default(),
            joined: None,
        };
        for field in [view.file_options(), view.sname_options()] {
            for option in Field(field) {
                seen.note(option?.0);
            }
        }
        view.codes = seen;
        Ok(view)
    }

    /// The same message with options that came in parts put together in `room` (RFC 3396 §7). Costs nothing where
    /// none did. Of an option of fixed length the first instance counts: two of them are a mistake, no parts.
    pub fn joined<'b>(self, room: &'b mut Joined) -> Result<View<'b>, ParseError>
    where
        'a: 'b,
    {
        if self.codes.repeated {
            room.fill(self.options())?;
            Ok(View {
                joined: Some(room),
                ..self
            })
        } else {
            Ok(self)
        }
    }

    fn file_options(&self) -> &'a [u8] {
        if self.overload & 1 != 0 {
            &self.header.file
        } else {
            &[]
        }
    }

    fn sname_options(&self) -> &'a [u8] {
        if self.overload & 2 != 0 {
            &self.header.sname
        } else {
            &[]
        }
    }

    // ---------------------------------------------------------------- fields

    pub fn header(&self) -> &'a Header {
        self.header
    }

    pub fn is_request(&self) -> bool {
        self.header.op == OP_REQUEST
    }

    pub fn htype(&self) -> u8 {
        self.header.htype
    }

    /// At most 16.
    pub fn hlen(&self) -> u8 {
        self.header.hlen
    }

    pub fn hops(&self) -> u8 {
        self.header.hops
    }

    pub fn xid(&self) -> u32 {
        self.header.xid.get()
    }

    pub fn secs(&self) -> u16 {
        self.header.secs.get()
    }

    pub fn flags(&self) -> u16 {
        self.header.flags.get()
    }

    pub fn broadcast(&self) -> bool {
        self.flags() & FLAG_BROADCAST != 0
    }

    pub fn ciaddr(&self) -> Ipv4Addr {
        self.header.ciaddr.into()
    }

    pub fn yiaddr(&self) -> Ipv4Addr {
        self.header.yiaddr.into()
    }

    pub fn siaddr(&self) -> Ipv4Addr {
        self.header.siaddr.into()
    }

    pub fn giaddr(&self) -> Ipv4Addr {
        self.header.giaddr.into()
    }

    /// The hardware address, `hlen` octets of it.
    pub fn chaddr(&self) -> &'a [u8] {
        &self.header.chaddr[..usize::from(self.header.hlen)]
    }

    /// The hardware address if it is one of six octets that IEEE hands out: Ethernet's, or another IEEE 802 network's.
    pub fn mac(&self) -> Option<Mac> {
        match self.header.htype {
            HTYPE_ETHERNET | HTYPE_IEEE_802 => self.chaddr().try_into().ok().map(Mac),
            _ => None,
        }
    }

    /// Server host name, up to its first NUL; empty where it holds options.
    pub fn sname(&self) -> &'a [u8] {
        if self.overload & 2 != 0 {
            &[]
        } else {
            until_nul(&self.header.sname)
        }
    }

    /// Boot file name, up to its first NUL; empty where it holds options.
    pub fn file(&self) -> &'a [u8] {
        if self.overload & 1 != 0 {
            &[]
        } else {
            until_nul(&self.header.file)
        }
    }

    // ---------------------------------------------------------------- options

    /// Every option but pad and end, as (code, octets): options field, then `file`, then `sname`. After
    /// [`Self::joined`] one that came in parts is one. Option 82 counts in the options field only, where relays put it
    /// (RFC 3046 §2.1): in the others it is a client's, past a relay that looks where it belongs.
    pub fn options(&self) -> Options<'a> {
        Options {
            fields: [self.options, self.file_options(), self.sname_options()].map(Field),
            joined: self.joined.map(|joined| (joined, 0)),
        }
    }

    /// An option; its first part if it came in parts and they were not [`Self::joined`].
    pub fn option(&self, code: u8) -> Option<&'a [u8]> {
        if !self.codes.have(code) {
            return None;
        }
        self.options()
            .find(|(found, _)| *found == code)
            .map(|(_, octets)| octets)
    }

    /// All instances of one option joined (RFC 3396 §7): borrowed from the message if there is only one, else
    /// copied to `scratch`. None if the option is absent, or its parts are longer than `scratch`.
    pub fn option_joined<'b>(&self, code: u8, scratch: &'b mut [u8]) -> Option<&'b [u8]>
    where
        'a: 'b,
    {
        let mut parts = self
            .options()
            .filter(|(found, _)| *found == code)
            .map(|(_, part)| part);
        let first = parts.next()?;
        let Some(second) = parts.next() else {
            return Some(first);
        };
        let mut length = 0;
        for part in [first, second].into_iter().chain(parts) {
            scratch
                .get_mut(length..length + part.len())?
                .copy_from_slice(part);
            length += part.len();
        }
        Some(&scratch[..length])
    }

    fn option_address(&self, code: u8) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.option(code)?)
            .ok()
            .map(Ipv4Addr::from)
    }

    fn option_u16(&self, code: u8) -> Option<u16> {
        <[u8; 2]>::try_from(self.option(code)?)
            .ok()
            .map(u16::from_be_bytes)
    }

    /// Option 53; None where it is absent or not one of RFC 2132 §9.6.
    pub fn message_type(&self) -> Option<MessageType> {
        match self.option(code::MESSAGE_TYPE)? {
            [octet] => MessageType::from_octet(*octet),
            _ => None,
        }
    }

    /// Without option 53: a plain BOOTP client (RFC 1534 §2).
    pub fn is_bootp(&self) -> bool {
        !self.codes.have(code::MESSAGE_TYPE)
    }

    /// Option 80: the client takes an ACK for its DISCOVER (RFC 4039).
    pub fn rapid_commit(&self) -> bool {
        self.option(code::RAPID_COMMIT).is_some()
    }

    /// Option 118 (RFC 3011).
    pub fn subnet_selection(&self) -> Option<Ipv4Addr> {
        self.option_address(code::SUBNET_SELECTION)
    }

    /// Option 50.
    pub fn requested_address(&self) -> Option<Ipv4Addr> {
        self.option_address(code::REQUESTED_ADDRESS)
    }

    /// Option 54.
    pub fn server_id(&self) -> Option<Ipv4Addr> {
        self.option_address(code::SERVER_ID)
    }

    /// Option 51, seconds.
    pub fn lease_secs(&self) -> Option<u32> {
        <[u8; 4]>::try_from(self.option(code::LEASE_TIME)?)
            .ok()
            .map(u32::from_be_bytes)
    }

    /// Option 57: the longest IP datagram the client takes.
    pub fn message_bytes_max(&self) -> Option<u16> {
        self.option_u16(code::MESSAGE_BYTES_MAX)
    }

    /// Option 61, if not empty.
    pub fn client_id(&self) -> Option<&'a [u8]> {
        self.option(code::CLIENT_ID).filter(|id| !id.is_empty())
    }

    /// Option 55: what the client asks for, in its order.
    pub fn parameter_list(&self) -> Option<&'a [u8]> {
        self.option(code::PARAMETER_LIST)
    }

    /// Option 12.
    pub fn hostname(&self) -> Option<&'a [u8]> {
        self.option(code::HOSTNAME)
    }

    /// Option 60.
    pub fn vendor_class(&self) -> Option<&'a [u8]> {
        self.option(code::VENDOR_CLASS)
    }

    /// Option 77. iPXE sends the bare four octets, not the counted strings of RFC 3004 §4.
    pub fn user_class(&self) -> Option<&'a [u8]> {
        self.option(code::USER_CLASS)
    }

    /// The first architecture of option 93 (RFC 4578 §2.1).
    pub fn arch(&self) -> Option<u16> {
        let octets = self.option(code::CLIENT_ARCH)?.first_chunk::<2>()?;
        Some(u16::from_be_bytes(*octets))
    }

    /// The UUID of option 97 (RFC 4578 §2.3), without its type octet 0.
    pub fn machine_uuid(&self) -> Option<&'a [u8; 16]> {
        match self.option(code::MACHINE_UUID)? {
            [0, uuid @ ..] => uuid.try_into().ok(),
            _ => None,
        }
    }

    /// Option 82, whole (RFC 3046).
    pub fn relay_info(&self) -> Option<&'a [u8]> {
        self.option(code::RELAY_INFO)
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("kind", &self.message_type())
            .field("xid", &self.xid())
            .field("ciaddr", &self.ciaddr())
            .field("yiaddr", &self.yiaddr())
            .field("giaddr", &self.giaddr())
            .field("chaddr", &self.chaddr())
            .field(
                "options",
                &self.options().map(|(code, _)| code).collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    let length = field
        .iter()
        .position(|octet| *octet == 0)
        .unwrap_or(field.len());
    &field[..length]
}

/// Walks the options of a message: see [`View::options`].
#[derive(Clone)]
pub struct Options<'a> {
    fields: [Field<'a>; 3],
    joined: Option<(&'a Joined, usize)>,
}

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((joined, index)) = &mut self.joined {
            let option = joined.get(*index)?;
            *index += 1;
            return Some(option);
        }
        // Faults cannot be: parse saw to it.
        let [options, overloaded @ ..] = &mut self.fields;
        if let Some(option) = options.next() {
            return option.ok();
        }
        overloaded.iter_mut().find_map(|field| {
            field
                .filter_map(Result::ok)
                .find(|(code, _)| *code != code::RELAY_INFO)
        })
    }
}

/// The codes met so far, one bit each.
#[derive(Clone, Copy, Default)]
struct Codes {
    bits: [u64; 4],
    /// One that may come in parts was met twice.
    repeated: bool,
}

impl Codes {
    fn have(&self, code: u8) -> bool {
        self.bits[usize::from(code >> 6)] & (1 << (code & 63)) != 0
    }

    fn note(&mut self, code: u8) {
        let word = &mut self.bits[usize::from(code >> 6)];
        let bit = 1 << (code & 63);
        self.repeated |= *word & bit != 0 && !joined::is_single(code);
        *word |= bit;
    }
}

/// Walks the options of one field; ends at the end option, at the field's end, or at the first fault. Also walks
/// sub-options of the same form (code, length, octets): options 43, 82 and 175.
#[derive(Clone)]
pub struct Field<'a>(pub &'a [u8]);

impl<'a> Iterator for Field<'a> {
    type Item = Result<(u8, &'a [u8]), ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match *self.0 {
                [] | [code::END, ..] => return None,
                [code::PAD, ref rest @ ..] => self.0 = rest,
                [code, length, ref rest @ ..] => {
                    let Some((octets, rest)) = rest.split_at_checked(usize::from(length)) else {
                        self.0 = &[];
                        return Some(Err(ParseError::OptionTruncated));
                    };
                    self.0 = rest;
                    return Some(Ok((code, octets)));
                }
                [_] => {
                    self.0 = &[];
                    return Some(Err(ParseError::OptionTruncated));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with these octets as its options field.
    fn message(options: &[u8]) -> Vec<u8> {
        let mut header = Header::new(OP_REQUEST);
        header.htype = HTYPE_ETHERNET;
        header.hlen = 6;
        header.chaddr[..6].copy_from_slice(&[0x52, 0x54, 0, 0, 1, 5]);
        [header.as_bytes(), options].concat()
    }

    #[test]
    fn options_are_walked_over_pads_to_the_end() {
        let octets = message(&[0, 0, 53, 1, 1, 0, 12, 0, 255, 50, 4, 1, 2, 3, 4]);
        let view = View::parse(&octets).unwrap();
        let found: Vec<_> = view.options().collect();
        assert_eq!(found, [(53, &[1][..]), (12, &[])]);
        assert_eq!(view.message_type(), Some(MessageType::Discover));
        assert_eq!(view.requested_address(), None, "behind the end");
    }

    #[test]
    fn overloaded_fields_follow_in_order() {
        let mut octets = message(&[52, 1, 3, 53, 1, 3, 255]);
        octets[108..108 + 6].copy_from_slice(&[50, 4, 10, 0, 0, 9]);
        octets[114] = 255;
        octets[44..44 + 4].copy_from_slice(&[12, 2, b'n', b'1']);
        let view = View::parse(&octets).unwrap();
        assert_eq!(
            view.options().map(|(code, _)| code).collect::<Vec<_>>(),
            [52, 53, 50, 12]
        );
        assert_eq!(view.requested_address(), Some(Ipv4Addr::new(10, 0, 0, 9)));
        assert_eq!((view.file(), view.sname()), (&b""[..], &b""[..]));
    }

    #[test]
    fn option_52_counts_once_and_option_82_in_its_own_field() {
        let mut octets = message(&[52, 1, 1, 82, 3, 1, 1, b'a', 52, 1, 2, 52, 0, 255]);
        octets[108..115].copy_from_slice(&[82, 3, 1, 1, b'b', 12, 0]);
        octets[115] = 255;
        let view = View::parse(&octets).unwrap();
        let mut room = Joined::default();
        for view in [view, view.joined(&mut room).unwrap()] {
            assert_eq!(view.relay_info(), Some(&[1, 1, b'a'][..]));
            assert_eq!(view.hostname(), Some(&b""[..]), "`file` holds options");
        }
    }

    #[test]
    fn faults_are_named() {
        let mut overrun_in_file = message(&[52, 1, 1, 255]);
        overrun_in_file[108..236].fill(1); // code 1, length 1: 42 options, then a cut one
        let mut bad_magic = message(&[255]);
        bad_magic[236] = 0;
        let mut long_address = message(&[255]);
        long_address[2] = 17;
        let cases = [
            ("short", vec![0; 239], ParseError::Truncated),
            ("magic", bad_magic, ParseError::BadMagic),
            ("hlen", long_address, ParseError::BadHardwareLength),
            (
                "no length octet",
                message(&[53]),
                ParseError::OptionTruncated,
            ),
            (
                "cut octets",
                message(&[53, 2, 1]),
                ParseError::OptionTruncated,
            ),
            ("overload 0", message(&[52, 1, 0]), ParseError::BadOverload),
            (
                "overload of 2 octets",
                message(&[52, 2, 1, 1]),
                ParseError::BadOverload,
            ),
            ("cut in file", overrun_in_file, ParseError::OptionTruncated),
        ];
        for (case, octets, want) in cases {
            assert_eq!(View::parse(&octets).unwrap_err(), want, "{case}");
        }
    }

    #[test]
    fn split_options_are_joined() {
        let octets = message(&[43, 2, 1, 2, 12, 1, b'a', 43, 1, 3, 255]);
        let view = View::parse(&octets).unwrap();
        let mut scratch = [0; 16];
        assert_eq!(view.option_joined(43, &mut scratch), Some(&[1, 2, 3][..]));
        assert_eq!(view.option_joined(12, &mut scratch), Some(&b"a"[..]));
        assert_eq!(view.option_joined(99, &mut scratch), None);
        assert_eq!(
            view.option_joined(43, &mut [0; 2]),
            None,
            "longer than the scratch"
        );
    }

    #[test]
    fn parts_in_all_three_fields_become_one_option() {
        let mut octets = message(&[52, 1, 3, 77, 2, 1, 2, 53, 1, 3, 53, 1, 8, 255]);
        octets[108..108 + 8].copy_from_slice(&[12, 1, b'a', 77, 1, 3, 255, 0]);
        octets[44..44 + 4].copy_from_slice(&[77, 1, 4, 255]);
        let view = View::parse(&octets).unwrap();
        assert_eq!(view.option(77), Some(&[1, 2][..]), "not joined yet");
        let mut room = Joined::default();
        let joined = view.joined(&mut room).unwrap();
        assert_eq!(joined.option(77), Some(&[1, 2, 3, 4][..]));
        assert_eq!(joined.hostname(), Some(&b"a"[..]));
        assert_eq!(
            joined.message_type(),
            Some(MessageType::Request),
            "of a fixed length: the first"
        );
        assert_eq!(
            joined.options().map(|(code, _)| code).collect::<Vec<_>>(),
            [52, 77, 53, 12]
        );
        // Nothing in parts: nothing is copied.
        let whole = message(&[12, 1, b'a', 255]);
        let view = View::parse(&whole).unwrap().joined(&mut room).unwrap();
        assert!(view.joined.is_none());
    }

    #[test]
    fn parts_that_are_too_much_are_refused() {
        let mut options = vec![];
        for _ in 0..9 {
            options.extend([77, 255]);
            options.extend([7; 255]);
        }
        let octets = message(&options);
        let view = View::parse(&octets).unwrap();
        let room = &mut Joined::default();
        assert_eq!(view.joined(room).unwrap_err(), ParseError::OptionsTooLong);
    }

    #[test]
    fn bootp_without_vendor_field_has_no_options() {
        let mut octets = message(&[53, 1, 1, 255]);
        octets[236..240].fill(0);
        let view = View::parse(&octets).unwrap();
        assert_eq!((view.is_bootp(), view.options().count()), (true, 0));
        let octets = message(&[1, 4, 255, 255, 255, 0, 255]);
        assert!(View::parse(&octets).unwrap().is_bootp(), "cookie, no 53");
        let octets = message(&[53, 2, 1, 1, 255]);
        let view = View::parse(&octets).unwrap();
        assert_eq!((view.is_bootp(), view.message_type()), (false, None));
    }

    #[test]
    fn options_of_the_wrong_length_read_as_absent() {
        let options = [
            50, 3, 1, 2, 3, 57, 1, 9, 93, 1, 0, 97, 2, 0, 1, 61, 0, 53, 1, 99, 255,
        ];
        let octets = message(&options);
        let view = View::parse(&octets).unwrap();
        assert_eq!(view.requested_address(), None);
        assert_eq!((view.message_bytes_max(), view.arch()), (None, None));
        assert_eq!((view.machine_uuid(), view.client_id()), (None, None));
        assert_eq!(view.message_type(), None);
    }
}
