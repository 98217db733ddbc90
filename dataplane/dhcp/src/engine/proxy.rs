//! proxyDHCP (PXE 2.1 §2.2): on a link whose addresses somebody else hands out, firmware is told what to boot.
//!
//! | comes to                    | from                   | gets                                          |
//! |-----------------------------|------------------------|-----------------------------------------------|
//! | port 67: DISCOVER           | PXEClient, HTTPClient  | OFFER without address and lease, with a file  |
//! | port 67: anything else      | anybody                | nothing                                       |
//! | port 4011: REQUEST, INFORM  | PXEClient, HTTPClient  | ACK with the file, to its own address and port |
//!
//! The OFFER says by discovery control (option 43, sub-option 6, bit 3) that its file may be booted at once. Firmware
//! that asks port 4011 all the same gets the same file there. No state, so any shard may answer.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use wire::dhcp4::{Field, MessageType, PROXY_PORT, SERVER_PORT, View, Writer, code, payload_limit};

use super::{Engine, choose_link};
use crate::clock::Ms;
use crate::config::{BootReply, Config, Link, Mode, Received};
use crate::counters::{Drop, Sent};
use crate::destination::{Destination, reply_destination};
use crate::outbox::{Event, EventKind, Outbox};
use crate::reply::{Tail, answer_header, fill_boot};

/// PXE_DISCOVERY_CONTROL with bit 3: boot the file named here, without asking for a boot server.
const BOOT_AT_ONCE: [u8; 4] = [6, 1, 8, code::END];
/// PXE_BOOT_ITEM: which of a boot server's files is meant. The answer repeats it.
const BOOT_ITEM: u8 = 71;

/// What kind of firmware asks: the class that its answer must carry.
fn firmware_class(query: &View<'_>) -> Option<&'static [u8]> {
    let class = query.vendor_class()?;
    let known: [&[u8]; 2] = [b"PXEClient", b"HTTPClient"];
    known.into_iter().find(|known| class.starts_with(known))
}

impl Engine {
    /// A message to port 67 of a link in [`Mode::Proxy`].
    pub(super) fn on_proxied_link(
        &mut self,
        query: &View<'_>,
        link: &Link,
        boot: &BootReply<'_>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        if query.message_type() != Some(MessageType::Discover) {
            return Err(Drop::LinkMode);
        }
        let mut destination = reply_destination(query, MessageType::Offer, Ipv4Addr::UNSPECIFIED);
        if matches!(destination, Destination::Frame { .. }) {
            // It has no address, and none is given here.
            destination = Destination::BROADCAST;
        }
        let port = SERVER_PORT;
        self.send_boot(
            MessageType::Offer,
            query,
            link,
            boot,
            port,
            destination,
            out,
        )
    }

    /// A message to port 4011, from `from`. Call it for every such message; what is not answered is counted.
    #[allow(
        clippy::too_many_arguments,
        reason = "a sans-IO engine is handed its whole world"
    )]
    pub fn on_proxy_request<C: Config>(
        &mut self,
        query: &View<'_>,
        received: &Received<'_>,
        from: SocketAddrV4,
        boot: &BootReply<'_>,
        config: &C,
        now: Instant,
        out: &mut Outbox,
    ) -> Option<Drop> {
        let now = self.scale.ms(now);
        let handled = if out.has_room() {
            self.handle_proxy_request(query, received, from, boot, config, now, out)
        } else {
            Err(Drop::OutboxFull)
        };
        let reason = handled.err()?;
        self.counters.drop(reason);
        Some(reason)
    }

    #[allow(clippy::too_many_arguments, reason = "as above")]
    fn handle_proxy_request<C: Config>(
        &mut self,
        query: &View<'_>,
        received: &Received<'_>,
        from: SocketAddrV4,
        boot: &BootReply<'_>,
        config: &C,
        now: Ms,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        if !query.is_request() {
            return Err(Drop::NotARequest);
        }
        let (link, _) = choose_link(query, received, config)?;
        self.check_rates(query, received, link, now)?;
        let asks = matches!(
            query.message_type(),
            Some(MessageType::Request | MessageType::Inform)
        );
        if link.mode != Mode::Proxy || !asks {
            return Err(Drop::LinkMode);
        }
        // An answer to everybody, to another network or to another server would be a weapon.
        let (ip, port) = (*from.ip(), from.port());
        let subnet = link.subnet_of(ip).filter(|subnet| !subnet.is_end(ip));
        if subnet.is_none() || port == SERVER_PORT {
            return Err(Drop::NoAddress);
        }
        let destination = Destination::Udp { ip, port };
        let port = PROXY_PORT;
        self.send_boot(MessageType::Ack, query, link, boot, port, destination, out)
    }

    #[allow(clippy::too_many_arguments, reason = "one reply, all of its parts")]
    fn send_boot(
        &mut self,
        kind: MessageType,
        query: &View<'_>,
        link: &Link,
        boot: &BootReply<'_>,
        port: u16,
        destination: Destination,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let class = firmware_class(query).ok_or(Drop::LinkMode)?;
        if boot.file.is_empty() {
            return Err(Drop::NoBootFile);
        }
        let mut tail = Tail::of(query, None).named(boot.file.as_bytes());
        let buffer = out.message_buffer();
        let length = match write(kind, class, query, link, boot, &tail, buffer) {
            Err(Drop::ReplyTooLong) if tail.leave_out_relay(&mut self.counters) => {
                write(kind, class, query, link, boot, &tail, buffer)?
            }
            first => first?,
        };
        out.reply_from(port, kind, link.vlan, link.server, destination, length);
        self.counters.count(match kind {
            MessageType::Offer => Sent::ProxyOffer,
            _ => Sent::ProxyAck,
        });
        if !out.event(Event {
            kind: EventKind::Proxy,
            vlan: link.vlan,
            mac: query.mac(),
            address: query.ciaddr(),
            lease: Duration::ZERO,
        }) {
            self.counters.count(Sent::EventLost);
        }
        Ok(())
    }
}

/// The message: no yiaddr, no lease, nothing that is the other server's to say.
fn write(
    kind: MessageType,
    class: &[u8],
    query: &View<'_>,
    link: &Link,
    boot: &BootReply<'_>,
    tail: &Tail<'_>,
    buffer: &mut [u8],
) -> Result<usize, Drop> {
    let mut header = answer_header(query);
    if kind == MessageType::Ack {
        header.ciaddr = query.header().ciaddr;
    }
    fill_boot(&mut header, boot, boot.file.as_bytes());
    let limit = payload_limit(query.message_bytes_max(), link.mtu);
    let mut writer = Writer::new(buffer, limit, &header, kind).map_err(|_| Drop::ReplyTooLong)?;
    let mut must = || {
        writer.address(code::SERVER_ID, link.server)?;
        writer.reserve(tail.bytes())?;
        writer.option(code::VENDOR_CLASS, class)?;
        if class == b"PXEClient" {
            match boot_item(query).filter(|_| kind == MessageType::Ack) {
                Some([a, b, c, d]) => {
                    let item = [BOOT_ITEM, 4, a, b, c, d, code::END];
                    writer.option(code::VENDOR_OPTIONS, &item)?;
                }
                None => writer.option(code::VENDOR_OPTIONS, &BOOT_AT_ONCE)?,
            }
        }
        match boot.path_prefix {
            Some(prefix) => writer.option(code::PATH_PREFIX, prefix.as_bytes()),
            None => Ok(()),
        }
    };
    must().map_err(|_| Drop::ReplyTooLong)?;
    tail.write(&mut writer)?;
    Ok(writer.finish())
}

fn boot_item(query: &View<'_>) -> Option<[u8; 4]> {
    Field(query.option(code::VENDOR_OPTIONS)?)
        .map_while(Result::ok)
        .find(|(code, _)| *code == BOOT_ITEM)
        .and_then(|(_, octets)| octets.try_into().ok())
}
