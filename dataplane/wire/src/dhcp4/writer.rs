//! Writes one DHCPv4 message into the caller's buffer.
//!
//! Options that do not fit are refused one by one, so a caller writes what must be there first. Long options are
//! split (RFC 3396 §5). A message is never shorter than 300 octets: older BOOTP clients drop shorter ones.

use std::net::Ipv4Addr;

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

/// A message being written.
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    length: usize,
    /// Options end here at the latest, so that the end option still fits.
    limit: usize,
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
        buffer[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        let mut writer = Self {
            buffer,
            length: HEADER_BYTES,
            limit: room - 1,
        };
        writer.option(code::MESSAGE_TYPE, &[kind as u8])?;
        Ok(writer)
    }

    /// Octets still free for options.
    pub fn room(&self) -> usize {
        self.limit - self.length
    }

    /// Keeps `bytes` back from all options but those behind [`Self::release`]: for what must come last.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), WriteError> {
        if bytes > self.room() {
            return Err(WriteError::NoRoom { code: code::END });
        }
        self.limit -= bytes;
        Ok(())
    }

    /// Gives back what [`Self::reserve`] kept.
    pub fn release(&mut self, bytes: usize) {
        self.limit = (self.limit + bytes).min(self.buffer.len() - 1);
    }

    /// Adds an option, split into several where longer than 255 octets. All of it or nothing.
    pub fn option(&mut self, code: u8, octets: &[u8]) -> Result<(), WriteError> {
        let parts = octets.len().div_ceil(255).max(1);
        if octets.len() + 2 * parts > self.room() {
            return Err(WriteError::NoRoom { code });
        }
        if octets.is_empty() {
            self.put(&[code, 0]);
        }
        for part in octets.chunks(255) {
            self.put(&[code, part.len() as u8]); // at most 255
            self.put(part);
        }
        Ok(())
    }

    pub fn address(&mut self, code: u8, address: Ipv4Addr) -> Result<(), WriteError> {
        self.option(code, &address.octets())
    }

    /// An option of one or more addresses: as many as fit one option; nothing for none.
    pub fn addresses(&mut self, code: u8, addresses: &[Ipv4Addr]) -> Result<(), WriteError> {
        let addresses = &addresses[..addresses.len().min(63)];
        if addresses.is_empty() {
            return Ok(());
        }
        if addresses.len() * 4 + 2 > self.room() {
            return Err(WriteError::NoRoom { code });
        }
        self.put(&[code, (addresses.len() * 4) as u8]); // at most 252
        for address in addresses {
            self.put(&address.octets());
        }
        Ok(())
    }

    /// Options 51, 58 and 59 together; gives their position for [`LeaseTimes::patch`].
    pub fn lease_times(&mut self, times: LeaseTimes) -> Result<usize, WriteError> {
        if LeaseTimes::BYTES > self.room() {
            return Err(WriteError::NoRoom {
                code: code::LEASE_TIME,
            });
        }
        let position = self.length;
        self.put(&times.octets());
        Ok(position)
    }

    fn put(&mut self, octets: &[u8]) {
        self.buffer[self.length..self.length + octets.len()].copy_from_slice(octets);
        self.length += octets.len();
    }

    /// Ends the options and pads to 300 octets; gives the length of the message.
    pub fn finish(self) -> usize {
        let Self { buffer, length, .. } = self;
        buffer[length] = code::END;
        let end = (length + 1).max(MESSAGE_BYTES_MIN);
        buffer[length + 1..end].fill(code::PAD);
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
