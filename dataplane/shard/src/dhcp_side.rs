//! DHCP between the driver and the engine: frames and datagrams in, replies, lease writes and events out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use dhcp::{Config as _, Destination, EventKind, Out, Received, Reply};
use lease::{Outcome, Refusal, VlanId};
use wire::dhcp4::{Joined, MessageType, PROXY_PORT, View};
use wire::ethernet::Mac;
use wire::udp::{self, Checksum};

use crate::buckets::{Buckets, Rate};
use crate::choices::Choices;
use crate::config::Config;
use crate::driver::{Datagram, Driver, Service, Target, Train};
use crate::kept::Kept;
use crate::lookup::Core;
use crate::mailbox::{Detail, HandOver, KEPT_FOR_LEASES, ToLink, ToWork, Wish};
use crate::snapshot::{Link, Snapshot};
use crate::trace;

/// Messages that one source may have handed to other shards: far more than its clients send when all of a relay's boot.
const HAND_OVERS: Rate = Rate {
    burst: 512,
    every: Duration::from_millis(4),
};
const HAND_OVER_SOURCES: usize = 1_024;
/// Replies between two flushes.
const REPLIES_MAX: usize = 256;

pub(crate) struct DhcpSide {
    pub engine: dhcp::Engine,
    outbox: dhcp::Outbox,
    /// Where options that came in parts are put together.
    joined: Joined,
    /// IPv4 identification of the next frame.
    identification: u16,
    /// What a client was told to boot in the REQUEST that its ACK will answer.
    choices: Choices,
    refused: Vec<dhcp::Ticket>,
    /// Messages whose answer will come in a moment.
    kept: Kept,
    shards: u32,
    hand_overs: Buckets<Way>,
    traced: trace::Budget,
}

/// How a message came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    service: Service,
    interface: u32,
    source: SocketAddrV4,
    destination: Ipv4Addr,
    /// Of a frame, where the device has Ethernet addresses.
    ethernet: Option<Mac>,
    /// By another shard.
    handed_over: bool,
    /// It was looked at then, and kept.
    pub kept_since: Option<Instant>,
}

/// By which way a message came: the Ethernet source of its frame, or who sent the datagram, which is a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    Card(Mac),
    At(Ipv4Addr),
}

impl Arrival {
    fn way(&self) -> Way {
        match self.ethernet {
            Some(source) => Way::Card(source),
            None => Way::At(*self.source.ip()),
        }
    }

    pub fn kept(mut self, since: Instant) -> Self {
        self.kept_since = Some(since);
        self
    }

    #[cfg(test)]
    pub fn of_frame(interface: u32, source: SocketAddrV4, destination: Ipv4Addr) -> Self {
        Self {
            service: Service::DhcpFrame,
            interface,
            source,
            destination,
            ethernet: None,
            handed_over: false,
            kept_since: None,
        }
    }
}

impl DhcpSide {
    pub fn new(config: &Config, now: Instant) -> Self {
        let shard = dhcp::Shard {
            index: config.index,
            count: config.count,
        };
        Self {
            engine: dhcp::Engine::new(shard, config.dhcp, config.seed, now),
            outbox: dhcp::Outbox::new(REPLIES_MAX),
            joined: Joined::default(),
            identification: 0,
            choices: Choices::new(config.seed),
            refused: Vec::new(),
            kept: Kept::new(),
            shards: config.count,
            hand_overs: Buckets::new(HAND_OVER_SOURCES, HAND_OVERS),
            traced: trace::Budget::new(now),
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let due = [self.engine.next_deadline(), self.kept.next_deadline()];
        due.into_iter().flatten().min()
    }

    /// Another look at the messages that waited for an address.
    pub fn retry(&mut self, core: &mut Core, driver: &mut impl Driver) {
        let came = self.engine.take_came();
        // Each once: what still has to wait is kept anew.
        for _ in 0..self.kept.count() {
            let Some(message) = self.kept.next(came, core.now) else {
                break;
            };
            self.make_room(core, driver);
            self.on_message(&message.arrival, &message.octets, core);
            self.kept.give_back(message);
        }
    }

    /// Whatever is handled next can leave its reply, its write and its event.
    pub fn make_room(&mut self, core: &mut Core, driver: &mut impl Driver) {
        if !self.outbox.has_room() {
            self.flush(core, driver);
        }
    }

    pub fn tick(&mut self, now: Instant) {
        self.engine.tick(now, &mut self.outbox);
    }

    pub fn on_outcome(
        &mut self,
        ticket: dhcp::Ticket,
        outcome: Outcome,
        core: &mut Core,
        driver: &mut impl Driver,
    ) {
        self.make_room(core, driver);
        self.engine
            .on_outcome(ticket, outcome, core.now, &mut self.outbox);
    }

    /// One received message. The replies wait for `flush`.
    pub fn on_datagram(&mut self, datagram: &Datagram, octets: &[u8], core: &mut Core) {
        let (payload, source, destination) = if datagram.service == Service::DhcpFrame {
            let checksum = if datagram.checksum_missing {
                Checksum::NotReady
            } else {
                Checksum::Verify
            };
            match udp::Datagram::parse_packet(octets, checksum) {
                Ok(packet) => (packet.payload, packet.source, *packet.target.ip()),
                Err(_) => {
                    core.counters.dhcp_unreadable += 1;
                    return;
                }
            }
        } else {
            let (SocketAddr::V4(from), IpAddr::V4(local)) = (datagram.from, datagram.local) else {
                core.counters.dhcp_unreadable += 1;
                return;
            };
            (octets, from, local)
        };
        let arrival = Arrival {
            service: datagram.service,
            interface: datagram.interface,
            source,
            destination,
            ethernet: datagram.ethernet.map(Mac),
            handed_over: false,
            kept_since: None,
        };
        self.on_message(&arrival, payload, core);
    }

    /// A message that another shard received and this one owns.
    pub fn on_handed_over(&mut self, message: &HandOver, core: &mut Core) {
        core.counters.dhcp_taken_over += 1;
        let arrival = Arrival {
            service: message.service,
            interface: message.interface,
            source: message.source,
            destination: message.destination,
            ethernet: message.ethernet,
            handed_over: true,
            kept_since: None,
        };
        self.on_message(&arrival, &message.octets, core);
    }

    fn on_message(&mut self, arrival: &Arrival, payload: &[u8], core: &mut Core) {
        let parsed = View::parse(payload).and_then(|view| view.joined(&mut self.joined));
        let Ok(query) = parsed else {
            core.counters.dhcp_unreadable += 1;
            return;
        };
        let snapshot = &*core.snapshot;
        // A relay's message comes in on whatever device leads to it.
        let link = snapshot
            .link_by_interface(arrival.interface)
            .or_else(|| snapshot.link_by_address(query.giaddr()))
            .or_else(|| snapshot.link_by_address(query.ciaddr()));
        let Some(link) = link else {
            core.counters.dhcp_no_link += 1;
            return;
        };
        if arrival.service == Service::DhcpFrame && !is_for_us(arrival.destination, snapshot) {
            core.counters.dhcp_no_link += 1;
            return;
        }
        let received = Received {
            link: &link.dhcp,
            source: *arrival.source.ip(),
            destination: arrival.destination,
            sender: sender(arrival, link, &core.config),
        };
        let chosen = crate::lookup::boot_choice(&query, &received, snapshot);
        let (boot, out) = (chosen.reply(), &mut self.outbox);
        let dropped = if arrival.service == Service::ProxyDhcp {
            self.engine.on_proxy_request(
                &query,
                &received,
                arrival.source,
                &boot,
                snapshot,
                core.now,
                out,
            )
        } else {
            self.engine
                .on_message(&query, &received, &boot, snapshot, core.now, out)
        };
        let traced = query
            .mac()
            .filter(|mac| snapshot.is_traced(*mac, core.now))
            .map(|mac| (mac, trace::received(&query, link.dhcp.vlan, dropped)));
        let is_told = chosen.is_proxied || query.message_type() == Some(MessageType::Request);
        let unserved = chosen
            .unserved()
            .filter(|_| matches!(dropped, None | Some(dhcp::Drop::NoBootFile)))
            .and_then(|why| Some((query.mac()?, why)));
        if is_told
            && dropped.is_none()
            && let Some(mac) = query.mac()
            && let Some(told) = chosen.told()
        {
            self.choices.put(mac, told);
        }
        // The kernel steers by MAC; a client that is known by its client id may be another shard's.
        if dropped == Some(dhcp::Drop::OtherShard)
            && !arrival.handed_over
            && let Ok(owner) = dhcp::owner(&query, &received, snapshot, self.shards)
        {
            let is_known = query.mac().is_some_and(|mac| core.snapshot.is_known(mac));
            if self.hand_overs.take(arrival.way(), core.now) {
                hand_over(owner, arrival, payload, is_known, core);
            } else {
                core.counters.dhcp_hand_overs_refused += 1;
            }
        }
        if dropped.is_some_and(dhcp::Drop::waits) {
            let is_known = query.mac().is_some_and(|mac| core.snapshot.is_known(mac));
            let client = (query.htype(), query.header().chaddr);
            if !self.kept.keep(arrival, client, is_known, payload, core.now) {
                core.counters.dhcp_not_kept += 1;
            }
        }
        if let Some((mac, why)) = unserved {
            core.tell_unserved(mac, why);
        }
        if let Some((mac, text)) = traced {
            tell(&mut self.traced, mac, Ipv4Addr::UNSPECIFIED, text, core);
        }
    }

    pub fn on_probed(
        &mut self,
        vlan: VlanId,
        address: Ipv4Addr,
        probed: dhcp::Probed,
        core: &mut Core,
        driver: &mut impl Driver,
    ) {
        self.make_room(core, driver);
        self.engine
            .on_probed(vlan, address, probed, core.now, &mut self.outbox);
    }

    /// Has the addresses asked for by ARP that the engine wants to know of.
    fn ask_for_addresses(&mut self, core: &mut Core) {
        while let Some(probe) = self.engine.next_probe(&*core.snapshot, core.now) {
            let link = core.snapshot.link_by_vlan(probe.vlan);
            let Some(interface) = link.and_then(|link| link.index) else {
                let unknown = dhcp::Probed::Unknown;
                let (vlan, address) = (probe.vlan, probe.address);
                self.engine
                    .on_probed(vlan, address, unknown, core.now, &mut self.outbox);
                continue;
            };
            let ask = ToWork::Probe { probe, interface };
            if core.mail.to_work.push(ask).is_err() {
                // The engine counts it as unanswered.
                core.counters.probes_lost += 1;
            }
        }
    }

    /// Sends and hands over what the engine left.
    pub fn flush(&mut self, core: &mut Core, driver: &mut impl Driver) {
        let (items, buffer) = self.outbox.drain();
        for item in items {
            match item {
                Out::Reply(reply) => {
                    self.identification = self.identification.wrapping_add(1);
                    trace_reply(&reply, buffer, &mut self.traced, core);
                    send(&reply, buffer, self.identification, core, driver);
                }
                Out::Lease { ticket, write } => {
                    if core
                        .mail
                        .to_link
                        .push(ToLink::Lease { ticket, write })
                        .is_err()
                    {
                        core.counters.leases_refused += 1;
                        self.refused.push(ticket);
                    }
                }
                Out::Event(event) => {
                    let told = match (event.kind, event.mac) {
                        (EventKind::Ack | EventKind::Proxy, Some(mac)) => self.choices.take(mac),
                        _ => None,
                    };
                    // A stranger that boots from its disk is no machine of ours; its lease is written down already.
                    let is_machine =
                        told.is_some() || event.mac.is_some_and(|mac| core.snapshot.is_known(mac));
                    if matches!(event.kind, EventKind::Ack | EventKind::Release) && !is_machine {
                        continue;
                    }
                    let (mac, address) = (event.mac.map(|mac| mac.0), event.address.into());
                    core.event(event.kind.name(), mac, address, detail(&event));
                    let Some(told) = told else {
                        continue;
                    };
                    if let (Some(arch), Some(mac)) = (told.arch, mac) {
                        core.tell_arch(mac, address, arch);
                    }
                    if told.file.is_some() {
                        core.event("BOOT_FILE", mac, address, told);
                    }
                }
            }
        }
        // Nobody will answer these; their clients ask again.
        for ticket in self.refused.drain(..) {
            let outcome = Outcome::Refused(Refusal::Mute);
            self.engine
                .on_outcome(ticket, outcome, core.now, &mut self.outbox);
        }
        self.ask_for_addresses(core);
        while let Some(wish) = self.engine.next_wish() {
            let wish = Wish {
                borrower: core.config.index,
                asked: 0,
                wish,
            };
            // Wished again by the next client in need.
            let _ = core.mail.to_link.push(ToLink::Wish(wish));
        }
    }

    /// Another shard lacks an address.
    pub fn on_wish(&mut self, wish: Wish, core: &mut Core) {
        // Without room there would be no way to say what was given.
        let lent = match core.mail.to_link.free_slots() {
            0 => Vec::new(),
            _ => self.engine.lend(&wish.wish, &*core.snapshot),
        };
        let answer = if lent.is_empty() {
            ToLink::Wish(Wish {
                asked: wish.asked + 1,
                ..wish
            })
        } else {
            ToLink::Lent {
                shard: wish.borrower,
                lent,
            }
        };
        let _ = core.mail.to_link.push(answer);
    }
}

/// A packet socket also hears what is sent to other addresses through this host.
fn is_for_us(destination: Ipv4Addr, snapshot: &Snapshot) -> bool {
    if destination.is_broadcast() {
        return true;
    }
    let link = snapshot.link_by_address(destination);
    link.is_some_and(|link| {
        let subnet = link.dhcp.subnet_of(destination);
        link.dhcp.server == destination
            || subnet.is_some_and(|subnet| subnet.net.broadcast() == destination)
    })
}

/// What is known of who sent a message.
fn sender(arrival: &Arrival, link: &Link, config: &Config) -> dhcp::Sender {
    if arrival.service != Service::DhcpFrame {
        return match config.is_trusted_relay(*arrival.source.ip()) {
            true => dhcp::Sender::TrustedRelay,
            false => dhcp::Sender::Datagram,
        };
    }
    match arrival.ethernet {
        Some(source) if !config.is_any_source(&link.interface) => dhcp::Sender::Ethernet(source),
        _ => dhcp::Sender::Frame,
    }
}

fn trace_reply(reply: &Reply, buffer: &[u8], budget: &mut trace::Budget, core: &mut Core) {
    if core.snapshot.traces.is_empty() {
        return;
    }
    let Ok(view) = View::parse(reply.payload(buffer)) else {
        return;
    };
    let traced = view
        .mac()
        .filter(|mac| core.snapshot.is_traced(*mac, core.now));
    if let Some(mac) = traced {
        tell(budget, mac, view.yiaddr(), trace::sent(&view), core);
    }
}

/// An event of a traced machine.
fn tell(budget: &mut trace::Budget, mac: Mac, address: Ipv4Addr, text: String, core: &mut Core) {
    if budget.take(core.now) {
        core.event(trace::KIND, Some(mac.0), address.into(), text);
    } else {
        core.counters.events_lost += 1;
    }
}

fn detail(event: &dhcp::Event) -> Detail {
    match event.kind {
        EventKind::Ack => Detail::Lease {
            secs: event.lease.as_secs(),
        },
        EventKind::AddressInUse => Detail::Plain("is used by this host, which has no lease for it"),
        EventKind::ForeignSource { from } => Detail::Text(
            format!("a host with the Ethernet address {from} sent DHCP in this machine's name: not answered").into(),
        ),
        EventKind::UntrustedRelay { giaddr } => Detail::Text(
            format!(
                "sent DHCP as a relay for {giaddr}, and is no relay that this rack trusts: not answered (trusted_relays in rackd.toml)"
            )
            .into(),
        ),
        EventKind::RangeDisputed => Detail::Plain(
            "and so many more of its range are said to be in use, by ARP or by DECLINE, that no more is believed",
        ),
        EventKind::RogueServer => {
            Detail::Plain("is a DHCP server that nobody told us of; this client was answered by it")
        }
        _ => Detail::None,
    }
}

/// Counted, and refused rather than in the way of leases. Unknown clients' fill half of what there is.
fn hand_over(shard: u32, arrival: &Arrival, payload: &[u8], is_known: bool, core: &mut Core) {
    let kept = match is_known {
        true => KEPT_FOR_LEASES,
        false => KEPT_FOR_LEASES + KEPT_FOR_LEASES / 2,
    };
    if core.mail.to_link.free_slots() <= kept {
        core.counters.dhcp_hand_overs_refused += 1;
        return;
    }
    let message = Box::new(HandOver {
        service: arrival.service,
        interface: arrival.interface,
        source: arrival.source,
        destination: arrival.destination,
        ethernet: arrival.ethernet,
        octets: payload.into(),
    });
    match core.mail.to_link.push(ToLink::HandOver { shard, message }) {
        Ok(()) => core.counters.dhcp_handed_over += 1,
        Err(_) => core.counters.dhcp_hand_overs_refused += 1,
    }
}

fn send(
    reply: &Reply,
    buffer: &mut [u8],
    identification: u16,
    core: &mut Core,
    driver: &mut impl Driver,
) {
    let mac = match reply.destination {
        Destination::Frame { mac, .. } => Some(mac),
        Destination::Udp {
            ip: Ipv4Addr::BROADCAST,
            ..
        } => Some(Mac::BROADCAST),
        Destination::Udp { .. } => None,
    };
    let (octets, target) = if let Some(mac) = mac {
        let device = core
            .snapshot
            .link_by_vlan(reply.vlan)
            .and_then(|link| link.index);
        let Some(interface) = device else {
            core.counters.dhcp_no_device += 1;
            return;
        };
        let Ok(packet) = reply.frame(buffer, identification) else {
            core.counters.dhcp_no_device += 1;
            return;
        };
        (
            packet,
            Target::Frame {
                interface,
                mac: mac.0,
            },
        )
    } else {
        let to = SocketAddrV4::new(reply.destination.ip(), reply.destination.port());
        let from = reply.server;
        let target = match reply.port {
            PROXY_PORT => Target::ProxyDhcp { from, to },
            _ => Target::Dhcp { from, to },
        };
        (reply.payload(buffer), target)
    };
    let train = Train {
        bytes: octets.len(),
        segment_bytes: octets.len(),
    };
    if driver
        .send(&target, train, &mut |slot| slot.copy_from_slice(octets))
        .is_err()
    {
        core.counters.dhcp_no_slot += 1;
    }
}
