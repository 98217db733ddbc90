//! What the engine wants done: replies, writes, events. One reusable value, no allocation per packet.
//!
//! A reply stands in the outbox's buffer with room for IPv4 and UDP headers in front of it, so that the driver
//! frames it in place ([`Reply::frame`]) or sends the bare payload through a UDP socket ([`Reply::payload`]).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;
use std::vec::Drain;

use lease::{VlanId, Write};
use wire::dhcp4::{MESSAGE_BYTES_MAX, MessageType, SERVER_PORT};
use wire::ethernet::Mac;
use wire::udp::{self, HEADROOM_BYTES, UdpError};

use crate::destination::Destination;

/// Names a write until its outcome. A ticket of an earlier attach names nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub(crate) u64);

impl Ticket {
    /// Of writes whose outcome changes nothing here: quarantine and release.
    pub const UNAWAITED: Self = Self(u64::MAX);
}

#[derive(Debug)]
pub enum Out {
    Reply(Reply),
    /// To the region (or the spool); [`crate::Engine::on_outcome`] wants the outcome.
    Lease {
        ticket: Ticket,
        write: Write,
    },
    Event(Event),
}

/// A message to send: its place in the outbox's buffer and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What option 53 says; a BOOTREPLY, which has none, counts as an ACK.
    pub kind: MessageType,
    pub vlan: VlanId,
    /// Source address.
    pub server: Ipv4Addr,
    /// Source port: 67, or 4011 for what was asked there.
    pub port: u16,
    pub destination: Destination,
    start: usize,
    payload_bytes: usize,
}

impl Reply {
    /// The DHCP message.
    pub fn payload<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        let start = self.start + HEADROOM_BYTES;
        &buffer[start..start + self.payload_bytes]
    }

    /// The message as an IPv4 packet, headers and checksums written in front of it: for an AF_PACKET
    /// SOCK_DGRAM socket, where the kernel adds the Ethernet header.
    pub fn frame<'a>(
        &self,
        buffer: &'a mut [u8],
        identification: u16,
    ) -> Result<&'a [u8], UdpError> {
        let packet = &mut buffer[self.start..self.start + HEADROOM_BYTES + self.payload_bytes];
        let source = SocketAddrV4::new(self.server, self.port);
        let target = SocketAddrV4::new(self.destination.ip(), self.destination.port());
        udp::frame(packet, source, target, identification)?;
        Ok(packet)
    }
}

/// Something worth a line in the machine's event log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub vlan: VlanId,
    pub mac: Option<Mac>,
    pub address: Ipv4Addr,
    /// What the ACK promised; zero for other kinds.
    pub lease: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    Ack,
    Nak,
    Decline,
    Release,
    /// The region says that another client holds an address we were about to ACK: a bug or a stranger.
    Conflict,
    /// The range has no free address left.
    Exhausted,
    /// A host nobody told us of answers for an address of a dynamic range; the MAC is that host's.
    AddressInUse,
    /// A DHCP server nobody told us of, at this address; the MAC is the client's that named it.
    RogueServer,
    /// A host with this Ethernet address speaks as the client.
    ForeignSource {
        from: Mac,
    },
    /// A relay that the operator does not trust, at this address, asked in the name of another.
    UntrustedRelay {
        giaddr: Ipv4Addr,
    },
    /// Hosts and clients say of so many addresses of a range that they are in use that no more is believed.
    RangeDisputed,
    /// A BOOTP client got its reserved address.
    Bootp,
    /// Firmware was told what to boot, on a link whose addresses somebody else hands out.
    Proxy,
}

impl EventKind {
    /// The event's name in the region's log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ack => "DHCP_ACK",
            Self::Nak => "DHCP_NAK",
            Self::Decline => "DHCP_DECLINE",
            Self::Release => "DHCP_RELEASE",
            Self::Conflict => "LEASE_CONFLICT",
            Self::Exhausted => "DHCP_EXHAUSTED",
            Self::AddressInUse => "ADDRESS_IN_USE",
            Self::RogueServer => "ROGUE_DHCP_SERVER",
            Self::ForeignSource { .. } => "DHCP_FOREIGN_SOURCE",
            Self::UntrustedRelay { .. } => "DHCP_UNTRUSTED_RELAY",
            Self::RangeDisputed => "DHCP_RANGE_DISPUTED",
            Self::Bootp => "BOOTP_REPLY",
            Self::Proxy => "PROXY_DHCP",
        }
    }
}

/// Where the engine leaves its wishes. Make it once; drain it after every batch.
#[derive(Debug)]
pub struct Outbox {
    items: Vec<Out>,
    buffer: Box<[u8]>,
    used: usize,
    items_max: usize,
}

impl Outbox {
    /// Room for `replies_max` replies between two drains, and twice as many writes and events.
    pub fn new(replies_max: usize) -> Self {
        let items_max = replies_max * 3;
        Self {
            items: Vec::with_capacity(items_max),
            buffer: vec![0; replies_max * (HEADROOM_BYTES + MESSAGE_BYTES_MAX)].into(),
            used: 0,
            items_max,
        }
    }

    /// Takes everything out. [`Reply::payload`] and [`Reply::frame`] want the buffer given beside the items.
    pub fn drain(&mut self) -> (Drain<'_, Out>, &mut [u8]) {
        self.used = 0;
        (self.items.drain(..), &mut self.buffer)
    }

    /// Whether another message can surely be handled: one reply, one write, one event.
    pub fn has_room(&self) -> bool {
        self.has_item_room(3) && self.buffer.len() - self.used >= HEADROOM_BYTES + MESSAGE_BYTES_MAX
    }

    pub(crate) fn has_item_room(&self, items: usize) -> bool {
        self.items_max - self.items.len() >= items
    }

    /// Where the next reply's message is to be written. Only after [`Self::has_room`].
    pub(crate) fn message_buffer(&mut self) -> &mut [u8] {
        let start = self.used + HEADROOM_BYTES;
        &mut self.buffer[start..start + MESSAGE_BYTES_MAX]
    }

    /// Keeps what was written to [`Self::message_buffer`].
    pub(crate) fn reply(
        &mut self,
        kind: MessageType,
        vlan: VlanId,
        server: Ipv4Addr,
        destination: Destination,
        payload_bytes: usize,
    ) {
        self.reply_from(SERVER_PORT, kind, vlan, server, destination, payload_bytes);
    }

    /// The same, from another port.
    pub(crate) fn reply_from(
        &mut self,
        port: u16,
        kind: MessageType,
        vlan: VlanId,
        server: Ipv4Addr,
        destination: Destination,
        payload_bytes: usize,
    ) {
        let start = self.used;
        self.used += HEADROOM_BYTES + payload_bytes;
        self.items.push(Out::Reply(Reply {
            kind,
            vlan,
            server,
            port,
            destination,
            start,
            payload_bytes,
        }));
    }

    pub(crate) fn lease(&mut self, ticket: Ticket, write: Write) {
        self.items.push(Out::Lease { ticket, write });
    }

    /// False if there was no room.
    pub(crate) fn event(&mut self, event: Event) -> bool {
        let room = self.has_item_room(1);
        if room {
            self.items.push(Out::Event(event));
        }
        room
    }
}
