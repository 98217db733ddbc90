//! What clients send: mostly what RFC 2131 has them send, with the flaws that firmware and attackers have.

use std::net::Ipv4Addr;

use arbitrary::Unstructured;
use wire::dhcp4::{HEADER_BYTES, code};
use wire::ethernet::Mac;

use super::check::Known;
use super::site::{RELAY, SERVERS, message_circuit};
use crate::{octets, one_of, pick};

const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// Known to the engine as firmware sends them: xid and MAC are changed.
const CAPTURES: [&[u8]; 6] = [
    include_bytes!("../../../../dataplane/wire/tests/data/ipxe-bios-discover.bin"),
    include_bytes!("../../../../dataplane/wire/tests/data/ipxe-uefi-request.bin"),
    include_bytes!("../../../../dataplane/wire/tests/data/ovmf-pxe-discover.bin"),
    include_bytes!("../../../../dataplane/wire/tests/data/ovmf-pxe-request.bin"),
    include_bytes!("../../../../dataplane/wire/tests/data/ovmf-http-discover.bin"),
    include_bytes!("../../../../dataplane/wire/tests/data/dhclient-request.bin"),
];

pub(super) const CLIENTS: u32 = 8;

pub(super) fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 1, last])
}

/// A message on the wire.
pub(super) struct Message {
    pub octets: Vec<u8>,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
}

/// Where the client sends from.
struct Place {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ciaddr: Ipv4Addr,
}

const BROADCAST: Place = Place {
    source: NONE,
    destination: Ipv4Addr::BROADCAST,
    ciaddr: NONE,
};

impl Message {
    /// Clients 1 to 5 are on the rack's own link, 6 and 7 behind a relay, 8 has no hardware address.
    pub fn arbitrary(input: &mut Unstructured<'_>, who: u8, xid: u32, known: &Known) -> Self {
        if pick(input, 16) == 15 {
            return Self::captured(input, who, xid);
        }
        let server = one_of(input, &[SERVERS[0], SERVERS[0], SERVERS[1], RELAY]);
        // What an honest client does, now and then what another would.
        let stray = pick(input, 6) == 5;
        let chooses = stray || known.offered.is_some();
        let (offered, by) = known.offered.filter(|_| !stray).unwrap_or_else(|| {
            let address = address(input, known.promised);
            (address, server)
        });
        let own = known.own.filter(|_| !stray).unwrap_or(offered);
        let unicast = Place {
            source: own,
            destination: if stray { server } else { by },
            ciaddr: own,
        };
        let rebinding = Place {
            source: own,
            ciaddr: own,
            ..BROADCAST
        };
        // Option 53, the way, options 50 and 54.
        let (kind, place, asks, names) = match pick(input, 32) {
            0..=8 => (1, BROADCAST, (pick(input, 4) == 0).then_some(own), None),
            9..=19 if chooses => (3, BROADCAST, Some(offered), Some(by)),
            9..=19 => (1, BROADCAST, None, None),
            20 | 21 => (3, BROADCAST, Some(own), None),
            22 | 23 => (3, unicast, None, None),
            24 | 25 => (3, rebinding, None, None),
            26 | 27 => (7, unicast, None, Some(by)),
            28 => (4, BROADCAST, Some(own), Some(by)),
            29 => (8, rebinding, None, None),
            // A BOOTP client, or what no client sends.
            _ => (one_of(input, &[0, 0, 2, 5, 9]), BROADCAST, None, None),
        };
        let mut options = vec![];
        if kind > 0 {
            put(&mut options, code::MESSAGE_TYPE, &[kind]);
        }
        if let Some(address) = asks {
            put(&mut options, code::REQUESTED_ADDRESS, &address.octets());
        }
        if let Some(server) = names {
            put(&mut options, code::SERVER_ID, &server.octets());
        }
        further(input, who, &mut options);

        let mut octets = vec![0; HEADER_BYTES];
        octets[..4].copy_from_slice(&[1, 1, if who == 8 { 0 } else { 6 }, 0]);
        octets[4..8].copy_from_slice(&xid.to_be_bytes());
        octets[10] = one_of(input, &[0, 0x80]);
        octets[12..16].copy_from_slice(&place.ciaddr.octets());
        octets[28..34].copy_from_slice(&mac(who).0);
        octets[236..240].copy_from_slice(&dhcproto::v4::MAGIC);
        octets.extend(options);
        let mut message = Self {
            octets,
            source: place.source,
            destination: place.destination,
        };
        if who == 6 || who == 7 {
            message.relay(input, who);
        }
        octets_end(input, &mut message.octets);
        message
    }

    fn captured(input: &mut Unstructured<'_>, who: u8, xid: u32) -> Self {
        let mut octets = one_of(input, &CAPTURES).to_vec();
        octets[4..8].copy_from_slice(&xid.to_be_bytes());
        octets[28..34].copy_from_slice(&mac(who).0);
        Self {
            octets,
            source: NONE,
            destination: Ipv4Addr::BROADCAST,
        }
    }

    /// A relay passes it on: giaddr, and option 82 at the end.
    fn relay(&mut self, input: &mut Unstructured<'_>, who: u8) {
        self.octets[24..28].copy_from_slice(&RELAY.octets());
        self.octets[3] = 1;
        let mut info = vec![];
        put(&mut info, 1, &message_circuit(who));
        if pick(input, 3) == 1 {
            put(&mut info, 2, b"remote");
        }
        if pick(input, 4) == 1 {
            let selected = one_of(input, &[[10, 100, 0, 0], [10, 99, 0, 0], [9, 9, 9, 9]]);
            put(&mut info, 5, &selected);
        }
        if pick(input, 4) == 1 {
            put(&mut info, 11, &RELAY.octets());
        }
        put(&mut self.octets, code::RELAY_INFO, &info);
        self.source = RELAY;
        self.destination = SERVERS[pick(input, 2) as usize];
    }
}

fn address(input: &mut Unstructured<'_>, promised: Option<Ipv4Addr>) -> Ipv4Addr {
    let last = |input: &mut Unstructured<'_>, count| pick(input, count) as u8;
    match (pick(input, 8), promised) {
        (0..=4, Some(promised)) => promised,
        (5, _) => Ipv4Addr::new(10, 100, 0, 99 + last(input, 5)),
        (6, _) => one_of(
            input,
            &[
                Ipv4Addr::new(10, 99, 0, 50),
                Ipv4Addr::new(10, 100, 0, 50),
                Ipv4Addr::new(192, 168, 1, 9),
                Ipv4Addr::BROADCAST,
                NONE,
                SERVERS[0],
            ],
        ),
        _ => Ipv4Addr::new(10, 99, 0, 99 + last(input, 12)),
    }
}

fn put(options: &mut Vec<u8>, code: u8, octets: &[u8]) {
    options.extend([code, octets.len() as u8]); // never above 255 here
    options.extend(octets);
}

/// What clients add, and what they should not.
fn further(input: &mut Unstructured<'_>, who: u8, options: &mut Vec<u8>) {
    let flags: u16 = input.arbitrary().unwrap_or_default();
    let has = |bit: u16| flags & (1 << bit) != 0;
    if has(0) || who == 8 {
        // Firmware, its loader and the system have ids of their own.
        let id = one_of(input, &[[0, 1, 2], [0, 1, 3], [1, who, who]]);
        put(options, code::CLIENT_ID, &id);
    }
    if has(1) {
        let lists: [&[u8]; 4] = [
            &[1, 3, 6, 67, 43],
            &[1, 2, 3, 4, 5, 6, 119, 42, 66],
            &[],
            &[255, 0, 53, 82],
        ];
        put(options, code::PARAMETER_LIST, one_of(input, &lists));
    }
    if has(2) {
        let bytes: u16 = one_of(input, &[576, 1472, 65_280, 0, 300]);
        put(options, code::MESSAGE_BYTES_MAX, &bytes.to_be_bytes());
    }
    if has(3) {
        put(options, code::RAPID_COMMIT, &[]);
    }
    if has(4) {
        put(
            options,
            code::HOSTNAME,
            one_of(input, &[&b"node"[..], b"a b\0", b""]),
        );
    }
    if has(5) {
        let secs: u32 = one_of(input, &[0, 20, 120, u32::MAX]);
        put(options, code::LEASE_TIME, &secs.to_be_bytes());
    }
    if has(6) {
        put(options, code::CLIENT_ARCH, &[0, one_of(input, &[0, 7, 16])]);
        put(
            options,
            code::VENDOR_CLASS,
            one_of(input, &[&b"PXEClient:Arch:00007"[..], b"HTTPClient"]),
        );
    }
    if has(7) {
        put(options, code::MACHINE_UUID, &[0; 17]);
    }
    if has(8) {
        let net = one_of(input, &[[10, 99, 0, 0], [10, 100, 0, 0], [9, 9, 9, 9]]);
        put(options, code::SUBNET_SELECTION, &net);
    }
    if has(9) {
        // In parts, or twice.
        let (code, length) = (one_of(input, &[61, 77, 82, 53, 50, 54]), pick(input, 9));
        let octets = octets(input, length as usize);
        put(options, code, octets);
    }
    if has(10) {
        let raw = pick(input, 24) as usize;
        options.extend(octets(input, raw));
    }
}

/// The end option, and now and then a few octets that are not what they were. The xid stays: it names the query.
fn octets_end(input: &mut Unstructured<'_>, message: &mut Vec<u8>) {
    if pick(input, 8) != 7 {
        message.push(code::END);
    }
    if pick(input, 8) == 7 {
        for _ in 0..1 + pick(input, 4) {
            let at = pick(input, message.len() as u32) as usize;
            if !(4..8).contains(&at) {
                message[at] = input.arbitrary().unwrap_or_default();
            }
        }
    }
}
