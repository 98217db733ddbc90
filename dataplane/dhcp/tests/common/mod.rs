//! A rack for tests: one engine, a fixed configuration, a clock that only the test moves.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use dhcp::*;
use lease::{Block, BlockId, Client, ClientKey, Epoch, Outcome, Row, Write, WriteKind};
use wire::dhcp4::{FLAG_BROADCAST, Header, Joined, MessageType, OP_REQUEST, View, Writer, code};
use wire::ethernet::Mac;
use wire::udp::{Checksum, Datagram};

pub const VLAN: u32 = 5001;
pub const SUBNET: u32 = 7;
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const LEASE_SECS: u32 = 600;
pub const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

pub fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, last)
}

pub fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 1, last])
}

pub fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

// -------------------------------------------------------------------- configuration

pub struct Fixed {
    pub links: Vec<Link>,
    pub reservations: Vec<Reservation>,
    /// MACs that the region does not know.
    pub strangers: Vec<Mac>,
    /// How many it does.
    pub known: usize,
}

impl Fixed {
    fn reserved_for(
        &self,
        vlan: u32,
        is_key: impl Fn(&ReservationKey) -> bool,
    ) -> Option<&Reservation> {
        self.reservations
            .iter()
            .find(|found| found.vlan == vlan && is_key(&found.key))
    }
}

impl Config for Fixed {
    fn link_of(&self, address: Ipv4Addr) -> Option<&Link> {
        self.links
            .iter()
            .find(|link| link.subnet_of(address).is_some())
    }

    fn reservation(&self, vlan: u32, mac: Mac) -> Option<&Reservation> {
        self.reserved_for(vlan, |key| *key == ReservationKey::Mac(mac))
    }

    fn reservation_by_client_id(&self, vlan: u32, client_id: &[u8]) -> Option<&Reservation> {
        self.reserved_for(
            vlan,
            |key| matches!(key, ReservationKey::ClientId(id) if **id == *client_id),
        )
    }

    fn reservation_by_circuit(
        &self,
        vlan: u32,
        circuit: &[u8],
        remote: &[u8],
    ) -> Option<&Reservation> {
        let exact = ReservationKey::Circuit {
            circuit: circuit.into(),
            remote: remote.into(),
        };
        let any = ReservationKey::Circuit {
            circuit: circuit.into(),
            remote: [].into(),
        };
        self.reserved_for(vlan, |key| *key == exact)
            .or_else(|| self.reserved_for(vlan, |key| *key == any))
    }

    fn reserved(&self, vlan: u32, address: Ipv4Addr) -> Option<&Reservation> {
        self.reservations
            .iter()
            .find(|found| found.vlan == vlan && found.address == address)
    }

    fn is_known(&self, mac: Mac) -> bool {
        !self.strangers.contains(&mac)
    }

    fn known_count(&self) -> usize {
        self.known
    }
}

pub fn subnet() -> Subnet {
    Subnet {
        id: SUBNET,
        net: "10.99.0.0/24".parse().unwrap(),
        gateway: Some(ip(254)),
        dns: vec![ip(1), ip(2)],
        ntp: vec![ip(3)],
        domain: "maas".into(),
        lease: secs(LEASE_SECS.into()),
        ranges: vec![Range {
            id: 1,
            first: ip(100),
            last: ip(199),
            kind: RangeKind::Dynamic,
            lease: None,
            options: [].into(),
        }],
        disabled_archs: vec![],
        client_id_identity: false,
        options: [].into(),
    }
}

/// The rack's own VLAN, and one behind a relay.
pub fn config() -> Fixed {
    let relayed = Subnet {
        id: 8,
        net: "10.100.0.0/24".parse().unwrap(),
        gateway: None,
        ranges: vec![],
        ..subnet()
    };
    let link = |vlan, subnet| Link {
        vlan,
        server: SERVER,
        mtu: 1500,
        mode: Mode::Serve,
        rack: 1,
        peers: vec![],
        subnets: vec![subnet],
    };
    Fixed {
        links: vec![link(VLAN, subnet()), link(5002, relayed)],
        reservations: vec![],
        strangers: vec![],
        known: usize::MAX,
    }
}

/// Block 1 of epoch 3: `count` addresses from 10.99.0.100.
pub fn block(count: u32) -> Block {
    Block {
        id: BlockId(1),
        epoch: Epoch(3),
        vlan: VLAN,
        subnet: SUBNET,
        first: ip(100).into(),
        count,
    }
}

pub fn client(mac: Mac) -> Client {
    Client {
        vlan: VLAN,
        key: ClientKey::Mac(mac.0),
    }
}

pub fn row(address: Ipv4Addr, holder: Mac, remaining_ms: i64) -> Row {
    Row {
        block: BlockId(1),
        address: address.into(),
        client: Some(client(holder)),
        remaining_ms,
        quarantine: Duration::ZERO,
        released: false,
    }
}

// -------------------------------------------------------------------- messages

/// A client's message. Start with [`discover`], [`request`] and the like.
#[derive(Clone)]
pub struct Message {
    pub kind: MessageType,
    pub mac: Mac,
    pub htype: u8,
    pub hlen: u8,
    pub xid: u32,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub broadcast: bool,
    pub unicast: bool,
    /// The IP header's source.
    pub source: Ipv4Addr,
    pub secs: u16,
    pub hops: u8,
    /// A BOOTREQUEST: no option 53, whatever `kind` says.
    pub bootp: bool,
    pub requested: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
    pub options: Vec<(u8, Vec<u8>)>,
}

pub fn message(kind: MessageType, mac: Mac) -> Message {
    Message {
        kind,
        mac,
        htype: 1,
        hlen: 6,
        xid: 0x1234_5678,
        ciaddr: NONE,
        giaddr: NONE,
        broadcast: false,
        unicast: false,
        source: NONE,
        secs: 0,
        hops: 0,
        bootp: false,
        requested: None,
        server: None,
        options: vec![],
    }
}

pub fn discover(mac: Mac) -> Message {
    message(MessageType::Discover, mac)
}

/// REQUEST in SELECTING.
pub fn request(mac: Mac, address: Ipv4Addr) -> Message {
    Message {
        requested: Some(address),
        server: Some(SERVER),
        ..message(MessageType::Request, mac)
    }
}

pub fn init_reboot(mac: Mac, address: Ipv4Addr) -> Message {
    Message {
        requested: Some(address),
        ..message(MessageType::Request, mac)
    }
}

pub fn renew(mac: Mac, address: Ipv4Addr) -> Message {
    Message {
        ciaddr: address,
        unicast: true,
        ..message(MessageType::Request, mac)
    }
}

pub fn rebind(mac: Mac, address: Ipv4Addr) -> Message {
    Message {
        ciaddr: address,
        ..message(MessageType::Request, mac)
    }
}

pub fn release(mac: Mac, address: Ipv4Addr) -> Message {
    Message {
        ciaddr: address,
        unicast: true,
        server: Some(SERVER),
        ..message(MessageType::Release, mac)
    }
}

pub fn decline(mac: Mac, address: Ipv4Addr) -> Message {
    Message {
        requested: Some(address),
        server: Some(SERVER),
        ..message(MessageType::Decline, mac)
    }
}

/// A BOOTREQUEST (RFC 951).
pub fn bootp(mac: Mac) -> Message {
    Message {
        bootp: true,
        ..discover(mac)
    }
}

/// Sub-options of option 82, as a relay writes them.
pub fn relay_info(sub_options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut octets = vec![];
    for (code, value) in sub_options {
        octets.extend([*code, value.len() as u8]);
        octets.extend(*value);
    }
    octets
}

pub fn option(code: u8, value: &[u8]) -> DhcpOption {
    DhcpOption {
        code,
        value: value.into(),
        always: false,
    }
}

/// Sent whether asked for or not.
pub fn always(code: u8, value: &[u8]) -> DhcpOption {
    DhcpOption {
        always: true,
        ..option(code, value)
    }
}

/// Outside the dynamic range: answered from the snapshot.
pub fn reservation(mac: Mac, address: Ipv4Addr) -> Reservation {
    Reservation {
        vlan: VLAN,
        subnet: SUBNET,
        key: ReservationKey::Mac(mac),
        address,
        hostname: String::new(),
        lease: None,
        options: [].into(),
    }
}

impl Message {
    /// Where a well-behaved one sends from; a relay is one that the operator trusts.
    pub fn sender(&self) -> Sender {
        match (self.giaddr == NONE, self.unicast && self.ciaddr != NONE) {
            (false, _) => Sender::TrustedRelay,
            (true, true) => Sender::Datagram,
            (true, false) => Sender::Frame,
        }
    }

    fn sent_from(&self) -> Ipv4Addr {
        match self.source {
            NONE if self.unicast => self.ciaddr,
            source => source,
        }
    }

    pub fn with(mut self, code: u8, octets: &[u8]) -> Self {
        self.options.push((code, octets.to_vec()));
        self
    }

    pub fn octets(&self) -> Vec<u8> {
        let mut header = Header::new(OP_REQUEST);
        header.htype = self.htype;
        header.hlen = self.hlen;
        header.hops = self.hops;
        header.xid.set(self.xid);
        header.secs.set(self.secs);
        header
            .flags
            .set(if self.broadcast { FLAG_BROADCAST } else { 0 });
        header.ciaddr = self.ciaddr.octets();
        header.giaddr = self.giaddr.octets();
        header.chaddr[..6].copy_from_slice(&self.mac.0);
        let mut buffer = vec![0; 1472];
        let started = if self.bootp {
            Writer::bootp(&mut buffer, &header, 0)
        } else {
            Writer::new(&mut buffer, 1472, &header, self.kind)
        };
        let mut writer = started.unwrap();
        if let Some(address) = self.requested {
            writer.address(code::REQUESTED_ADDRESS, address).unwrap();
        }
        if let Some(address) = self.server {
            writer.address(code::SERVER_ID, address).unwrap();
        }
        for (code, octets) in &self.options {
            writer.option(*code, octets).unwrap();
        }
        let length = writer.finish();
        buffer.truncate(length);
        buffer
    }
}

// -------------------------------------------------------------------- what came out

/// A reply as it went to the wire: framed, checked, and parsed again.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: MessageType,
    pub address: Ipv4Addr,
    /// It came from.
    pub port: u16,
    pub destination: Destination,
    pub octets: Vec<u8>,
}

impl Seen {
    pub fn view(&self) -> View<'_> {
        View::parse(&self.octets).unwrap()
    }

    pub fn lease(&self) -> u32 {
        self.view().lease_secs().unwrap()
    }

    /// An option, its parts together (RFC 3396).
    pub fn option(&self, code: u8) -> Option<Vec<u8>> {
        let mut room = Joined::default();
        let view = self.view().joined(&mut room).unwrap();
        view.option(code).map(<[u8]>::to_vec)
    }

    /// The codes in the order in which they stand.
    pub fn codes(&self) -> Vec<u8> {
        self.view().options().map(|(code, _)| code).collect()
    }
}

/// What one step made the engine do.
#[derive(Default)]
pub struct Step {
    pub replies: Vec<Seen>,
    pub writes: Vec<(Ticket, Write)>,
    pub events: Vec<Event>,
    pub dropped: Option<Drop>,
}

impl Step {
    /// (kind, yiaddr) of the only reply; None if there was none.
    pub fn reply(&self) -> Option<(MessageType, Ipv4Addr)> {
        assert!(self.replies.len() <= 1, "{:?}", self.replies);
        self.replies
            .first()
            .map(|reply| (reply.kind, reply.address))
    }

    /// The only write.
    pub fn write(&self) -> &(Ticket, Write) {
        assert_eq!(self.writes.len(), 1, "dropped: {:?}", self.dropped);
        &self.writes[0]
    }
}

pub struct Rack {
    pub engine: Engine,
    pub config: Fixed,
    pub now: Instant,
    pub start: Instant,
    out: Outbox,
}

impl Rack {
    pub fn unattached(config: Fixed) -> Self {
        Self::unattached_within(Limits::default(), config)
    }

    /// Attached for a day, with these limits.
    pub fn limited(limits: Limits, count: u32) -> Self {
        let mut rack = Self::unattached_within(limits, config());
        rack.attach(count, &[]);
        rack
    }

    /// Attached for a day to a block of `count`, on a wire that is asked for addresses.
    pub fn probing(config: Fixed, count: u32) -> Self {
        let limits = Limits {
            probe_stock: 8,
            ..Limits::default()
        };
        let mut rack = Self::unattached_within(limits, config);
        rack.attach(count, &[]);
        rack
    }

    /// One shard of several, attached for a day.
    pub fn sharded(shard: Shard, config: Fixed, count: u32, rows: &[Row]) -> Self {
        let mut rack = Self::unattached_shard(shard, Limits::default(), config);
        rack.attach(count, rows);
        rack
    }

    fn unattached_within(limits: Limits, config: Fixed) -> Self {
        Self::unattached_shard(Shard { index: 0, count: 1 }, limits, config)
    }

    fn unattached_shard(shard: Shard, limits: Limits, config: Fixed) -> Self {
        let now = Instant::now();
        let engine = Engine::new(shard, limits, 42, now);
        Self {
            engine,
            config,
            now,
            start: now,
            out: Outbox::new(64),
        }
    }

    /// Attached for a day, with a block of `count` addresses and these rows.
    pub fn with_rows(config: Fixed, count: u32, rows: &[Row]) -> Self {
        let mut rack = Self::unattached(config);
        rack.attach(count, rows);
        rack
    }

    pub fn new(count: u32) -> Self {
        Self::with_rows(config(), count, &[])
    }

    pub fn attach(&mut self, count: u32, rows: &[Row]) {
        let until = self.now + secs(86_400);
        self.engine.attach(
            &[block(count)],
            rows,
            until,
            self.now,
            &self.config,
            self.now,
        );
    }

    /// The clock shows this many seconds since the start.
    pub fn at(&mut self, secs: u64) -> &mut Self {
        self.now = self.start + Duration::from_secs(secs);
        self
    }

    pub fn send(&mut self, message: &Message) -> Step {
        let destination = if message.unicast || message.giaddr != NONE {
            SERVER
        } else {
            Ipv4Addr::BROADCAST
        };
        let boot = BootReply::default();
        let source = message.sent_from();
        self.send_from(
            source,
            message.sender(),
            &message.octets(),
            destination,
            &boot,
        )
    }

    /// The same, as it really came: from this IP source, and so far as the engine can know from this sender.
    pub fn send_as(&mut self, source: Ipv4Addr, sender: Sender, message: &Message) -> Step {
        let destination = match sender {
            Sender::Ethernet(_) | Sender::Frame => Ipv4Addr::BROADCAST,
            Sender::Datagram | Sender::TrustedRelay => SERVER,
        };
        let boot = BootReply::default();
        self.send_from(source, sender, &message.octets(), destination, &boot)
    }

    /// A datagram from and to these addresses.
    pub fn send_datagram(&mut self, source: Ipv4Addr, to: Ipv4Addr, octets: &[u8]) -> Step {
        self.send_from(source, Sender::Datagram, octets, to, &BootReply::default())
    }

    pub fn send_octets(
        &mut self,
        octets: &[u8],
        destination: Ipv4Addr,
        boot: &BootReply<'_>,
    ) -> Step {
        let relayed = octets[24..28] != [0; 4];
        let sender = if relayed {
            Sender::TrustedRelay
        } else {
            Sender::Frame
        };
        self.send_from(NONE, sender, octets, destination, boot)
    }

    fn send_from(
        &mut self,
        source: Ipv4Addr,
        sender: Sender,
        octets: &[u8],
        destination: Ipv4Addr,
        boot: &BootReply<'_>,
    ) -> Step {
        let mut room = Joined::default();
        let query = View::parse(octets).and_then(|view| view.joined(&mut room));
        let query = query.unwrap();
        let received = Received {
            link: &self.config.links[0],
            source,
            destination,
            sender,
        };
        let dropped = self.engine.on_message(
            &query,
            &received,
            boot,
            &self.config,
            self.now,
            &mut self.out,
        );
        Step {
            dropped,
            ..self.collect()
        }
    }

    /// To port 4011, from this address and port.
    pub fn ask_proxy(
        &mut self,
        message: &Message,
        from: SocketAddrV4,
        boot: &BootReply<'_>,
    ) -> Step {
        let octets = message.octets();
        let query = View::parse(&octets).unwrap();
        let received = Received {
            link: &self.config.links[0],
            source: *from.ip(),
            destination: SERVER,
            sender: Sender::Datagram,
        };
        let (config, out) = (&self.config, &mut self.out);
        let engine = &mut self.engine;
        let dropped = engine.on_proxy_request(&query, &received, from, boot, config, self.now, out);
        Step {
            dropped,
            ..self.collect()
        }
    }

    pub fn outcome(&mut self, ticket: Ticket, outcome: Outcome) -> Step {
        self.engine
            .on_outcome(ticket, outcome, self.now, &mut self.out);
        self.collect()
    }

    /// What is to be asked for by ARP now.
    pub fn probes(&mut self) -> Vec<Ipv4Addr> {
        std::iter::from_fn(|| self.engine.next_probe(&self.config, self.now))
            .map(|probe| probe.address)
            .collect()
    }

    pub fn probed(&mut self, address: Ipv4Addr, probed: Probed) -> Step {
        self.engine
            .on_probed(VLAN, address, probed, self.now, &mut self.out);
        self.collect()
    }

    pub fn tick(&mut self) -> Step {
        self.engine.tick(self.now, &mut self.out);
        self.collect()
    }

    fn collect(&mut self) -> Step {
        let mut step = Step::default();
        let (items, buffer) = self.out.drain();
        for item in items {
            match item {
                Out::Reply(reply) => {
                    let packet = reply.frame(buffer, 1).unwrap();
                    let datagram = Datagram::parse_packet(packet, Checksum::Verify).unwrap();
                    assert_eq!(datagram.payload, &packet[28..]);
                    let octets = datagram.payload.to_vec();
                    assert!(octets.len() >= 300);
                    let view = View::parse(&octets).unwrap();
                    if !view.is_bootp() {
                        assert_eq!(view.message_type(), Some(reply.kind));
                    }
                    assert_eq!(datagram.source.port(), reply.port);
                    step.replies.push(Seen {
                        kind: reply.kind,
                        address: view.yiaddr(),
                        port: reply.port,
                        destination: reply.destination,
                        octets: octets.clone(),
                    });
                }
                Out::Lease { ticket, write } => step.writes.push((ticket, write)),
                Out::Event(event) => step.events.push(event),
            }
        }
        step
    }

    /// The region makes the only write of `step` durable for two leases.
    pub fn durable(&mut self, step: &Step) -> Step {
        let (ticket, write) = step.write().clone();
        assert!(matches!(write.kind, WriteKind::Grant { .. }), "{write:?}");
        self.outcome(
            ticket,
            Outcome::Durable {
                remaining: secs(2 * u64::from(LEASE_SECS)),
            },
        )
    }

    /// DISCOVER, OFFER, REQUEST, grant, ACK; gives the address.
    pub fn boot(&mut self, mac: Mac) -> Ipv4Addr {
        let step = self.send(&discover(mac));
        let (kind, offered) = step.reply().expect("an OFFER");
        assert_eq!(kind, MessageType::Offer);
        let step = self.send(&request(mac, offered));
        let step = if step.writes.is_empty() {
            step
        } else {
            self.durable(&step)
        };
        assert_eq!(step.reply(), Some((MessageType::Ack, offered)));
        offered
    }

    pub fn dropped(&self, reason: Drop) -> u64 {
        self.engine.counters().dropped(reason)
    }
}

pub type Holders = HashMap<Ipv4Addr, Mac>;
