//! Writes one DHCPv4 message into the caller's buffer.
//!
//! Options that do not fit are refused one by one, so a caller writes what must be there first. Long options are
//! split (RFC 3396 §6). [`Writer::overload`] opens `file` and `sname` as further room (RFC 2132 §9.3). A message is
//! never shorter than 300 octets: older BOOTP clients drop shorter ones.
//!
//! Names that firmware reads to a NUL have one behind them ([`Writer::name`]).

use std::net::Ipv4Addr;
use std::ops::Range;

use zerocopy::IntoBytes;

use super::{HEADER_BYTES, Header, MessageType, code};
use crate::udp;

/// Octets of the shortest message sent (RFC 1542 §2.1).
pub const MESSAGE_BYTES_MIN: usize = 300;
/// Octets of the longest message sent: what an IPv4 packet on plain Ethernet carries in UDP.
pub const MESSAGE_BYTES_MAX: usize = 1500 - udp::HEADROOM_BYTES;
/// Every client takes an IP datagram this long (RFC 2131 §2).
const DATAGRAM_BYTES_MIN: u16 = 576;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("no room for option {code}")]
    NoRoom { code: u8 },
    #[error("buffer shorter than a DHCP message")]
    BufferTooShort,
}

/// How long a message to a client may be, without IP and UDP headers. `asked` is option 57, which counts them.
/// Never below 548 (576 with headers), never above what the link carries in one packet: OVMF asks for 65,280.
pub fn payload_limit(asked: Option<u16>, mtu: u16) -> usize {
    let link = mtu.max(DATAGRAM_BYTES_MIN);
    let datagram = asked
        .unwrap_or(DATAGRAM_BYTES_MIN)
        .clamp(DATAGRAM_BYTES_MIN, link);
    (usize::from(datagram) - udp::HEADROOM_BYTES).min(MESSAGE_BYTES_MAX)
}

/// The values of options 51, 58 and 59, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    pub lease: u32,
    pub renewal: u32,
    pub rebinding: u32,
}

impl LeaseTimes {
    /// T1 at a half, T2 at seven eighths of the lease (RFC 2131 §4.4.5).
    pub fn of(lease: u32) -> Self {
        let rebinding = u64::from(lease) * 7 / 8;
        Self {
            lease,
            renewal: lease / 2,
            rebinding: rebinding as u32,
        } // below `lease`
    }

    const BYTES: usize = 18;

    fn octets(self) -> [u8; Self::BYTES] {
        let mut octets = [0; Self::BYTES];
        let values = [
            (code::LEASE_TIME, self.lease),
            (code::RENEWAL_TIME, self.renewal),
            (code::REBINDING_TIME, self.rebinding),
        ];
        for (chunk, (code, secs)) in octets.as_chunks_mut::<6>().0.iter_mut().zip(values) {
            chunk[..2].copy_from_slice(&[code, 4]);
            chunk[2..].copy_from_slice(&secs.to_be_bytes());
        }
        octets
    }

    /// Changes the times of a finished message at the position that [`Writer::lease_times`] gave.
    /// A position of another message changes nothing.
    pub fn patch(self, message: &mut [u8], position: usize) {
        if let Some(octets) = message.get_mut(position..position + Self::BYTES)
            && octets.starts_with(&[code::LEASE_TIME, 4])
        {
            octets.copy_from_slice(&self.octets());
        }
    }
}

/// Bits of option 52: which fields hold options.
pub const OVERLOAD_FILE: u8 = 1;
pub const OVERLOAD_SNAME: u8 = 2;

/// Where the two fields stand in a message (RFC 2131 figure 1).
const FILE: Range<usize> = 108..236;
const SNAME: Range<usize> = 44..108;

/// Room for options: the next octet goes to `at`, and `end` is left for the end option.
#[derive(Clone, Copy)]
struct Room {
    at: usize,
    end: usize,
}

impl Room {
    const CLOSED: Self = Self { at: 0, end: 0 };

    fn of(field: Range<usize>) -> Self {
        Self {
            at: field.start,
            end: field.end - 1,
        }
    }

    fn octets(self) -> usize {
        self.end - self.at
    }

    /// How much of an option this long stands here, in parts of at most 255.
    fn takes(self, mut octets: usize) -> usize {
        let (mut room, mut taken) = (self.octets(), 0);
        while octets > 0 && room > 2 {
            let part = octets.min(255).min(room - 2);
            (octets, room, taken) = (octets - part, room - part - 2, taken + part);
        }
        taken
    }
}

/// A message being written.
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    options: Room,
    file: Room,
    sname: Room,
}

impl<'a> Writer<'a> {
    /// Starts a message of at most `limit` octets (see [`payload_limit`]) with this fixed part. An error if the
    /// buffer does not hold even the shortest message.
    pub fn new(
        buffer: &'a mut [u8],
        limit: usize,
        header: &Header,
        kind: MessageType,
    ) -> Result<Self, WriteError> {
        let room = buffer.len().min(limit);
        if room < MESSAGE_BYTES_MIN {
            return Err(WriteError::BufferTooShort);
        }
        let mut writer = Self::started(buffer, room, header);
        writer.option(code::MESSAGE_TYPE, &[kind as u8])?;
        Ok(writer)
    }

    /// Starts a BOOTREPLY for a client that speaks no DHCP: 300 octets, and `more` for what a relay wants back. No
    /// message type, and no option of DHCP's own (RFC 1534 §2).
    pub fn bootp(buffer: &'a mut [u8], header: &Header, more: usize) -> Result<Self, WriteError> {
        let room = buffer.len().min(MESSAGE_BYTES_MIN + more);
        if room < MESSAGE_BYTES_MIN {
            return Err(WriteError::BufferTooShort);
        }
        Ok(Self::started(buffer, room, header))
    }

    fn started(buffer: &'a mut [u8], room: usize, header: &Header) -> Self {
        buffer[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        Self {
            buffer,
            options: Room::of(HEADER_BYTES..room),
            file: Room::CLOSED,
            sname: Room::CLOSED,
        }
    }

    /// Opens `file`, `sname` or both (bits of option 52) for options that do not fit the options field. What stood
    /// in these fields is gone.
    pub fn overload(&mut self, bits: u8) -> Result<(), WriteError> {
        self.option(code::OVERLOAD, &[bits])?;
        if bits & OVERLOAD_FILE != 0 {
            self.buffer[FILE].fill(code::PAD);
            self.file = Room::of(FILE);
        }
        if bits & OVERLOAD_SNAME != 0 {
            self.buffer[SNAME].fill(code::PAD);
            self.sname = Room::of(SNAME);
        }
        Ok(())
    }

    /// Octets still free in the options field.
    pub fn room(&self) -> usize {
        self.options.octets()
    }

    /// Keeps `bytes` of the options field back from all options but those behind [`Self::release`]: for what must
    /// come last.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), WriteError> {
        if bytes > self.room() {
            return Err(WriteError::NoRoom { code: code::END });
        }
        self.options.end -= bytes;
        Ok(())
    }

    /// Gives back what [`Self::reserve`] kept.
    pub fn release(&mut self, bytes: usize) {
        self.options.end = (self.options.end + bytes).min(self.buffer.len() - 1);
    }

    /// Adds an option, all of it or nothing. One of up to 255 octets stands whole in the first field that has room;
    /// a longer one is split, and may go on in the next field (RFC 3396 §6).
    pub fn option(&mut self, code: u8, octets: &[u8]) -> Result<(), WriteError> {
        let rooms = [self.options, self.file, self.sname];
        if octets.len() <= 255 {
            // `sname` before `file`: the smaller one first wastes less.
            let field = [0, 2, 1]
                .into_iter()
                .find(|field| rooms[*field].octets() >= octets.len() + 2)
                .ok_or(WriteError::NoRoom { code })?;
            self.put(field, code, octets);
            return Ok(());
        }
        let taken = |left: usize, room: &Room| left - room.takes(left);
        if rooms.iter().fold(octets.len(), taken) > 0 {
            return Err(WriteError::NoRoom { code });
        }
        let mut rest = octets;
        for (field, room) in rooms.into_iter().enumerate() {
            let (here, later) = rest.split_at(room.takes(rest.len()));
            for part in here.chunks(255) {
                self.put(field, code, part);
            }
            rest = later;
        }
        Ok(())
    }

    /// Octets that a name takes with its pad: see [`Self::name`].
    pub fn name_bytes(octets: &[u8]) -> usize {
        match octets.len() {
            0 => 0,
            length => length + 2 * length.div_ceil(255) + 1,
        }
    }

    /// Adds a text that some firmware reads as C does, to a NUL: a pad option (0) stands behind it, in the same field.
    /// Nothing for none.
    pub fn name(&mut self, code: u8, octets: &[u8]) -> Result<(), WriteError> {
        if octets.is_empty() {
            return Ok(());
        }
        let bytes = Self::name_bytes(octets);
        for room in [&mut self.options, &mut self.sname, &mut self.file] {
            if room.octets() >= bytes {
                for part in octets.chunks(255) {
                    let end = room.at + 2 + part.len();
                    self.buffer[room.at..room.at + 2].copy_from_slice(&[code, part.len() as u8]); // at most 255
                    self.buffer[room.at + 2..end].copy_from_slice(part);
                    room.at = end;
                }
                self.buffer[room.at] = code::PAD;
                room.at += 1;
                return Ok(());
            }
        }
        Err(WriteError::NoRoom { code })
    }

    pub fn address(&mut self, code: u8, address: Ipv4Addr) -> Result<(), WriteError> {
        self.option(code, &address.octets())
    }

    /// An option of one or more addresses: as many as fit one option; nothing for none.
    pub fn addresses(&mut self, code: u8, addresses: &[Ipv4Addr]) -> Result<(), WriteError> {
        if addresses.is_empty() {
            return Ok(());
        }
        let mut octets = [0; 252];
        let mut length = 0;
        for (place, address) in octets.as_chunks_mut::<4>().0.iter_mut().zip(addresses) {
            *place = address.octets();
            length += 4;
        }
        self.option(code, &octets[..length])
    }

    /// Options 51, 58 and 59 together, in the options field; gives their position for [`LeaseTimes::patch`].
    pub fn lease_times(&mut self, times: LeaseTimes) -> Result<usize, WriteError> {
        if LeaseTimes::BYTES > self.room() {
            return Err(WriteError::NoRoom {
                code: code::LEASE_TIME,
            });
        }
        let position = self.options.at;
        self.buffer[position..position + LeaseTimes::BYTES].copy_from_slice(&times.octets());
        self.options.at += LeaseTimes::BYTES;
        Ok(position)
    }

    /// One option of at most 255 octets into a field that has room for it.
    fn put(&mut self, field: usize, code: u8, octets: &[u8]) {
        let room = match field {
            0 => &mut self.options,
            1 => &mut self.file,
            _ => &mut self.sname,
        };
        let end = room.at + 2 + octets.len();
        let place = &mut self.buffer[room.at..end];
        place[..2].copy_from_slice(&[code, octets.len() as u8]); // at most 255
        place[2..].copy_from_slice(octets);
        room.at = end;
    }

    /// Ends the options of every field in use and pads to 300 octets; gives the length of the message.
    pub fn finish(self) -> usize {
        let Self {
            buffer,
            options,
            file,
            sname,
        } = self;
        for room in [file, sname] {
            // Padded already, by `overload`.
            if room.at > 0 {
                buffer[room.at] = code::END;
            }
        }
        buffer[options.at] = code::END;
        let end = (options.at + 1).max(MESSAGE_BYTES_MIN);
        buffer[options.at + 1..end].fill(code::PAD);
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp4::{OP_REPLY, View};

    #[test]
    fn limit_is_clamped_on_both_sides() {
        let cases = [
            ("not said", None, 1500, 548),
            ("less than allowed", Some(0), 1500, 548),
            ("iPXE", Some(1472), 1500, 1444),
            ("OVMF", Some(65_280), 1500, 1472),
            ("small link", Some(1472), 1000, 972),
            (
                "jumbo link: our buffers are for 1,500",
                Some(9000),
                9000,
                1472,
            ),
            ("nonsense link", Some(1472), 0, 548),
        ];
        for (case, asked, mtu, want) in cases {
            assert_eq!(payload_limit(asked, mtu), want, "{case}");
        }
    }

    #[test]
    fn short_message_is_padded_to_300() {
        let mut buffer = [0xaa; 548];
        let header = Header::new(OP_REPLY);
        let writer = Writer::new(&mut buffer, 548, &header, MessageType::Nak).unwrap();
        assert_eq!(writer.finish(), 300);
        assert!(buffer[244..300].iter().all(|octet| *octet == 0));
        let view = View::parse(&buffer[..300]).unwrap();
        assert_eq!(view.message_type(), Some(MessageType::Nak));
    }

    #[test]
    fn what_does_not_fit_is_refused_whole_and_the_end_still_fits() {
        let mut buffer = [0; 400];
        let mut writer =
            Writer::new(&mut buffer, 300, &Header::new(OP_REPLY), MessageType::Ack).unwrap();
        assert_eq!(writer.room(), 300 - 240 - 3 - 1);
        writer.reserve(10).unwrap();
        assert_eq!(
            writer.option(12, &[7; 45]),
            Err(WriteError::NoRoom { code: 12 })
        );
        assert_eq!(writer.option(12, &[7; 44]), Ok(()));
        assert_eq!(
            writer.address(3, Ipv4Addr::LOCALHOST),
            Err(WriteError::NoRoom { code: 3 })
        );
        writer.release(10);
        assert_eq!(writer.option(82, &[8; 8]), Ok(()));
        assert_eq!(writer.room(), 0);
        assert_eq!(writer.finish(), 300);
        let view = View::parse(&buffer[..300]).unwrap();
        assert_eq!(
            view.options().map(|(code, _)| code).collect::<Vec<_>>(),
            [53, 12, 82]
        );
    }

    #[test]
    fn long_option_is_split_and_joined_again() {
        let mut buffer = [0; 1472];
        let long: Vec<u8> = (0..600).map(|n| n as u8).collect();
        let mut writer =
            Writer::new(&mut buffer, 1472, &Header::new(OP_REPLY), MessageType::Ack).unwrap();
        writer.option(119, &long).unwrap();
        let length = writer.finish();
        let view = View::parse(&buffer[..length]).unwrap();
        assert_eq!(view.options().filter(|(code, _)| *code == 119).count(), 3);
        assert_eq!(view.option_joined(119, &mut [0; 1000]), Some(&long[..]));
    }

    #[test]
    fn overloaded_fields_take_what_does_not_fit() {
        let mut buffer = [0; 548];
        let mut header = Header::new(OP_REPLY);
        header.file[..4].copy_from_slice(b"boot");
        header.sname[..4].copy_from_slice(b"name");
        let mut writer = Writer::new(&mut buffer, 300, &header, MessageType::Ack).unwrap();
        writer.overload(OVERLOAD_FILE | OVERLOAD_SNAME).unwrap();
        assert_eq!(writer.room(), 53);
        writer.reserve(4).unwrap();
        writer.option(43, &[9; 61]).unwrap(); // sname, to its last octet
        writer.option(12, &[7; 60]).unwrap(); // file
        writer.option(15, &[8; 60]).unwrap(); // file still: 124 of 127
        writer.option(6, &[5; 47]).unwrap(); // options: 49 of 53 - 4
        assert!(writer.option(3, &[1]).is_ok(), "3 octets are left in file");
        assert_eq!(writer.option(3, &[]), Err(WriteError::NoRoom { code: 3 }));
        writer.release(4);
        writer.option(82, &[4; 2]).unwrap();
        let length = writer.finish();
        assert_eq!(length, 300);
        let view = View::parse(&buffer[..length]).unwrap();
        let codes: Vec<u8> = view.options().map(|(code, _)| code).collect();
        assert_eq!(codes, [53, 52, 6, 82, 12, 15, 3, 43], "file before sname");
        assert_eq!((view.file(), view.sname()), (&b""[..], &b""[..]));
        assert_eq!((buffer[235], buffer[107]), (code::END, code::END));
    }

    #[test]
    fn a_long_option_goes_on_in_the_next_field() {
        let long: Vec<u8> = (0..300).map(|n| n as u8).collect();
        for (limit, bits, fits) in [
            (500, OVERLOAD_FILE, true),
            (500, OVERLOAD_SNAME, true),
            (300, OVERLOAD_FILE | OVERLOAD_SNAME, false),
            (400, OVERLOAD_SNAME, false),
        ] {
            let mut buffer = [0; 548];
            let header = Header::new(OP_REPLY);
            let mut writer = Writer::new(&mut buffer, limit, &header, MessageType::Ack).unwrap();
            writer.overload(bits).unwrap();
            assert_eq!(writer.option(119, &long).is_ok(), fits, "{limit} {bits}");
            let length = writer.finish();
            assert!(length <= limit);
            let view = View::parse(&buffer[..length]).unwrap();
            let mut room = crate::dhcp4::Joined::default();
            let found = view.joined(&mut room).unwrap();
            assert_eq!(found.option(119), fits.then_some(&long[..]));
        }
    }

    #[test]
    fn a_bootp_reply_has_no_message_type_and_300_octets() {
        let mut buffer = [0xaa; 548];
        let mut writer = Writer::bootp(&mut buffer, &Header::new(OP_REPLY), 0).unwrap();
        assert_eq!(writer.room(), 59);
        writer.address(1, Ipv4Addr::BROADCAST).unwrap();
        assert!(writer.option(12, &[7; 60]).is_err());
        assert_eq!(writer.finish(), 300);
        let view = View::parse(&buffer[..300]).unwrap();
        assert!(view.is_bootp());
        assert_eq!(view.options().count(), 1);
    }

    #[test]
    fn a_name_has_a_nul_behind_it_in_its_own_field() {
        let mut buffer = [0xaa; 548];
        let header = Header::new(OP_REPLY);
        let mut writer = Writer::new(&mut buffer, 300, &header, MessageType::Ack).unwrap();
        writer.overload(OVERLOAD_SNAME).unwrap();
        writer.name(66, b"10.0.0.1").unwrap();
        writer.name(66, b"").unwrap(); // nothing
        // With its pad it is one octet too long for the options field.
        let rest = vec![b'x'; writer.room() - 2];
        writer.name(67, &rest).unwrap();
        assert!(writer.name(67, &[b'y'; 63]).is_err());
        writer.option(12, &[7; 4]).unwrap();
        let length = writer.finish();
        let view = View::parse(&buffer[..length]).unwrap();
        assert_eq!(view.option(67), Some(&rest[..]));
        assert_eq!(view.option(12), Some(&[7; 4][..]));
        assert_eq!(buffer[246..][..11], *b"\x42\x0810.0.0.1\0");
        assert_eq!(buffer[44 + 2 + rest.len()], 0);
        let mut buffer = [0xaa; 1472];
        let mut writer = Writer::new(&mut buffer, 1472, &header, MessageType::Ack).unwrap();
        let long = [b'z'; 300];
        writer.name(67, &long).unwrap();
        writer.option(12, &[7]).unwrap();
        let at = 243 + Writer::name_bytes(&long);
        let length = writer.finish();
        assert_eq!(buffer[at - 1..at + 3], [0, 12, 1, 7]);
        let view = View::parse(&buffer[..length]).unwrap();
        assert_eq!(view.option_joined(67, &mut [0; 400]), Some(&long[..]));
    }

    #[test]
    fn lease_times_are_changed_in_place() {
        let mut buffer = [0; 548];
        let mut writer =
            Writer::new(&mut buffer, 548, &Header::new(OP_REPLY), MessageType::Ack).unwrap();
        let position = writer.lease_times(LeaseTimes::of(600)).unwrap();
        let length = writer.finish();
        LeaseTimes::of(480).patch(&mut buffer[..length], position);
        LeaseTimes::of(1).patch(&mut buffer[..length], position + 1); // not a position: no change
        let view = View::parse(&buffer[..length]).unwrap();
        assert_eq!(view.lease_secs(), Some(480));
        assert_eq!(view.option(58), Some(&240u32.to_be_bytes()[..]));
        assert_eq!(view.option(59), Some(&420u32.to_be_bytes()[..]));
    }
}
