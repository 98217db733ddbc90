//! What was asked, answered and promised, and whether that may be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use dhcp::{Config, Destination, Engine, Mode, Reply, Sent};
use lease::ClientKey;
use wire::dhcp4::{Joined, MessageType, OP_REPLY, SERVER_PORT, View, code, payload_limit};
use wire::udp::{Checksum, Datagram};

use super::region::Region;
use super::site::Site;
use crate::pick;

/// What an engine has sent at once or later: the counters say the same as the outbox.
pub(super) fn replies(engine: &Engine) -> u64 {
    let sent = |what| engine.counters().sent(what);
    let dhcp = sent(Sent::Offer) + sent(Sent::Ack) + sent(Sent::Nak);
    dhcp + sent(Sent::Bootp) + sent(Sent::ProxyOffer) + sent(Sent::ProxyAck)
}

/// Messages whose answer was left to a write.
pub(super) fn waits(engine: &Engine) -> u64 {
    let sent = |what| engine.counters().sent(what);
    sent(Sent::Grant) + sent(Sent::Joined) + sent(Sent::Extend)
}

/// What was seen of one engine.
#[derive(Default)]
pub(super) struct Tally {
    pub replies: u64,
    /// Without the option 82 of their queries: it did not fit, and that is counted.
    pub relay_info_left_out: u64,
}

/// A promise made by an ACK.
struct Hold {
    key: ClientKey,
    end: Instant,
}

/// What a client goes by.
#[derive(Clone, Copy, Default)]
pub(super) struct Known {
    /// Of the last OFFER: the address, and the server.
    pub offered: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Of the last ACK.
    pub own: Option<Ipv4Addr>,
    /// Some client's, perhaps its own.
    pub promised: Option<Ipv4Addr>,
}

/// Everything that clients asked and were told.
#[derive(Default)]
pub(super) struct Ledger {
    /// Who asked what, by xid.
    queries: Vec<(u8, Vec<u8>)>,
    clients: BTreeMap<u8, Known>,
    /// By rack and xid.
    answered: BTreeSet<(usize, u32)>,
    holds: BTreeMap<Ipv4Addr, Hold>,
}

/// Who answers, and what is true then.
pub(super) struct World<'a> {
    pub rack: usize,
    pub site: &'a Site,
    pub until: Instant,
    pub region: &'a Region,
    pub now: Instant,
    /// Replies without the option 82 of their queries.
    pub relay_info_left_out: &'a mut u64,
}

impl Ledger {
    /// A number of its own for every query.
    pub fn next_xid(&self) -> u32 {
        self.queries.len() as u32
    }

    pub fn ask(&mut self, who: u8, octets: Vec<u8>) {
        self.queries.push((who, octets));
    }

    pub fn known(&self, who: u8, input: &mut Unstructured<'_>) -> Known {
        let held = self.holds.len() as u32;
        let chosen = if held > 0 { pick(input, held) } else { 0 };
        Known {
            promised: self.holds.keys().nth(chosen as usize).copied(),
            ..self.clients.get(&who).copied().unwrap_or_default()
        }
    }

    /// A reply leaves.
    pub fn answer(&mut self, reply: &Reply, buffer: &mut [u8], world: World<'_>) {
        let payload = reply.payload(buffer).to_vec();
        let packet = reply.frame(buffer, 1).expect("room for the headers");
        let datagram = Datagram::parse_packet(packet, Checksum::Verify).expect("our own packet");
        assert_eq!(datagram.payload, payload);
        assert_eq!(*datagram.source.ip(), reply.server);
        let mut room = Joined::default();
        let view = View::parse(&payload).expect("our own message");
        let view = view.joined(&mut room).expect("short enough");

        let rack = world.rack;
        assert!(self.answered.insert((rack, view.xid())), "answered twice");
        let octets = self.queries.get(view.xid() as usize);
        let (who, octets) = octets.expect("an answer to nobody").clone();
        let mut room = Joined::default();
        let query = View::parse(&octets).expect("parsed when it came in");
        let query = query.joined(&mut room).expect("likewise");
        echoes(&query, &view, reply);
        let left_out = query.relay_info().is_some() && view.relay_info().is_none();
        *world.relay_info_left_out += u64::from(left_out);
        goes_to(&query, reply);
        let limit = payload_limit(query.message_bytes_max(), u16::MAX);
        assert!(
            payload.len() <= limit.max(300),
            "longer than the client takes"
        );

        let client = self.clients.entry(who).or_default();
        match reply.kind {
            MessageType::Offer => client.offered = view.server_id().map(|by| (view.yiaddr(), by)),
            MessageType::Ack if view.lease_secs().is_some() => client.own = Some(view.yiaddr()),
            MessageType::Nak => client.own = None,
            _ => {}
        }
        match reply.kind {
            MessageType::Nak => {
                assert!(view.yiaddr().is_unspecified() && view.lease_secs().is_none());
            }
            _ if view.yiaddr().is_unspecified() => assert_eq!(view.lease_secs(), None),
            _ if query.is_bootp() => self.may_have(&query, &view, &world),
            MessageType::Offer => {
                assert!(view.lease_secs().is_some());
                self.is_free_for(&query, &view, &world);
            }
            MessageType::Ack => self.promise(&query, &view, reply, &world),
            other => panic!("a server says no {other:?}"),
        }
    }

    /// Nobody else was promised the address up to now.
    fn is_free_for(&self, query: &View<'_>, reply: &View<'_>, world: &World<'_>) {
        let address = reply.yiaddr();
        if let Some(hold) = self.holds.get(&address) {
            let theirs = !keys(query).contains(&hold.key) && hold.end > world.now;
            assert!(!theirs, "{address} is {:?}'s, and offered", hold.key);
        }
    }

    /// A reservation, which nothing is written for.
    fn may_have(&self, query: &View<'_>, reply: &View<'_>, world: &World<'_>) {
        let address = reply.yiaddr();
        let link = world.site.link_of(address).expect("an address of a link");
        let reserved = world.site.reserved(link.vlan, address);
        let reserved = reserved.unwrap_or_else(|| panic!("{address} is nobody's: {query:?}"));
        assert!(link.mode == Mode::Serve || reserved.vlan == link.vlan);
    }

    fn promise(&mut self, query: &View<'_>, view: &View<'_>, reply: &Reply, world: &World<'_>) {
        let (address, now) = (view.yiaddr(), world.now);
        let secs = view.lease_secs().expect("an ACK of an address has a lease");
        let lease = Duration::from_secs(secs.into());
        if !world.region.has(address) {
            assert!(lease <= world.site.lease_max());
            return self.may_have(query, view, world);
        }
        let (client, durable) = world
            .region
            .holder(address, now)
            .unwrap_or_else(|| panic!("{address} is promised, and nobody has it"));
        assert_eq!(client.vlan, reply.vlan);
        assert!(keys(query).contains(&client.key), "{client:?}'s address");
        assert!(lease <= durable, "{lease:?}, and durable for {durable:?}");
        let until = world.until.saturating_duration_since(now);
        assert!(lease <= until, "{lease:?}, and until is in {until:?}");
        let key = client.key.clone();
        if let Some(hold) = self.holds.get(&address) {
            let free = hold.key == key || hold.end <= now;
            assert!(
                free,
                "{address} is {:?}'s, and promised to {key:?}",
                hold.key
            );
        }
        let before = self.holds.get(&address).filter(|hold| hold.key == key);
        let end = before.map_or(now + lease, |hold| hold.end.max(now + lease));
        self.holds.insert(address, Hold { key, end });
    }
}

/// Who a client may be known as.
fn keys(query: &View<'_>) -> Vec<ClientKey> {
    let mac = query.mac().map(|mac| ClientKey::Mac(mac.0));
    let id = query.client_id().map(|id| ClientKey::ClientId(id.into()));
    mac.into_iter().chain(id).collect()
}

/// What every answer has from its query (RFC 2131 §4.3.1 table 3, RFC 3046 §2.2, RFC 6842).
fn echoes(query: &View<'_>, view: &View<'_>, reply: &Reply) {
    let (asked, said) = (query.header(), view.header());
    assert_eq!((asked.op, said.op), (1, OP_REPLY));
    assert_eq!((asked.htype, asked.hlen), (said.htype, said.hlen));
    assert_eq!(asked.chaddr, said.chaddr);
    assert_eq!(asked.giaddr, said.giaddr);
    let relay_info = view.relay_info();
    assert!(relay_info.is_none() || relay_info == query.relay_info());
    if query.is_bootp() {
        assert!(view.is_bootp() && reply.kind == MessageType::Ack);
        return;
    }
    assert_eq!(query.client_id(), view.client_id());
    assert_eq!(view.message_type(), Some(reply.kind));
    assert!(view.server_id().is_some());
    let rapid = view.option(code::RAPID_COMMIT).is_some();
    let fits = match query.message_type() {
        Some(MessageType::Discover) if rapid => {
            reply.kind == MessageType::Ack && query.rapid_commit()
        }
        Some(MessageType::Discover) => reply.kind == MessageType::Offer,
        Some(MessageType::Request) => matches!(reply.kind, MessageType::Ack | MessageType::Nak),
        Some(MessageType::Inform) => reply.kind == MessageType::Ack,
        _ => false,
    };
    assert!(fits, "{:?} for {query:?}", reply.kind);
}

fn goes_to(query: &View<'_>, reply: &Reply) {
    if reply.port == SERVER_PORT && !query.giaddr().is_unspecified() {
        let relay = Destination::Udp {
            ip: query.giaddr(),
            port: SERVER_PORT,
        };
        assert_eq!(reply.destination, relay);
    }
}
