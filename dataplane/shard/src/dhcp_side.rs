//! DHCP between the driver and the engine: frames and datagrams in, replies, lease writes and events out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Instant;

use dhcp::{Destination, EventKind, Out, Received, Reply};
use lease::{Outcome, Refusal};
use wire::dhcp4::{MessageType, View};
use wire::ethernet::Mac;
use wire::udp::{self, Checksum};

use crate::config::Config;
use crate::driver::{Datagram, Driver, Service, Target, Train};
use crate::lookup::{Core, Told};
use crate::mailbox::ToLink;

/// Replies between two flushes.
const REPLIES_MAX: usize = 256;
/// Boot choices remembered until their ACK.
const CHOICES_MAX: usize = 4096;

pub(crate) struct DhcpSide {
    pub engine: dhcp::Engine,
    outbox: dhcp::Outbox,
    /// IPv4 identification of the next frame.
    identification: u16,
    /// What a client was told to boot in the REQUEST that its ACK will answer.
    choices: HashMap<Mac, Told>,
    refused: Vec<dhcp::Ticket>,
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
            identification: 0,
            choices: HashMap::new(),
            refused: Vec::new(),
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.engine.next_deadline()
    }

    pub fn has_room(&self) -> bool {
        self.outbox.has_room()
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
        if !self.outbox.has_room() {
            self.flush(core, driver);
        }
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
                Ok(packet) => (packet.payload, *packet.source.ip(), *packet.target.ip()),
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
            (octets, *from.ip(), local)
        };
        let Ok(query) = View::parse(payload) else {
            core.counters.dhcp_unreadable += 1;
            return;
        };
        let snapshot = &*core.snapshot;
        // A relay's message comes in on whatever device leads to it.
        let link = snapshot
            .link_by_interface(datagram.interface)
            .or_else(|| snapshot.link_by_address(query.giaddr()))
            .or_else(|| snapshot.link_by_address(query.ciaddr()));
        let Some(link) = link else {
            core.counters.dhcp_no_link += 1;
            return;
        };
        let received = Received {
            link: &link.dhcp,
            source,
            destination,
        };
        let chosen = crate::lookup::boot_choice(&query, &link.dhcp, snapshot);
        self.engine.on_message(
            &query,
            &received,
            &chosen.reply(),
            snapshot,
            core.now,
            &mut self.outbox,
        );
        if query.message_type() == Some(MessageType::Request)
            && let Some(mac) = query.mac()
            && (self.choices.len() < CHOICES_MAX || self.choices.contains_key(&mac))
            && let Some(told) = chosen.into_told()
        {
            self.choices.insert(mac, told);
        }
    }

    /// Sends and hands over what the engine left.
    pub fn flush(&mut self, core: &mut Core, driver: &mut impl Driver) {
        let (items, buffer) = self.outbox.drain();
        for item in items {
            match item {
                Out::Reply(reply) => {
                    self.identification = self.identification.wrapping_add(1);
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
                    let told = event.mac.and_then(|mac| self.choices.remove(&mac));
                    let (mac, address) = (event.mac.map(|mac| mac.0), event.address.into());
                    let detail = match event.kind {
                        EventKind::Ack => format!("for {} s", event.lease.as_secs()),
                        _ => String::new(),
                    };
                    core.event(event.kind.name(), mac, address, detail);
                    if let (EventKind::Ack, Some(told)) = (event.kind, told) {
                        core.event("BOOT_FILE", mac, address, told.to_string());
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
        (
            reply.payload(buffer),
            Target::Dhcp {
                from: reply.server,
                to,
            },
        )
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
