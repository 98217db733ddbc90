//! Captured boots, message by message: whatever the firmware sent then gets the answer it was waiting for from us.

mod common;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use common::*;
use dhcp::{BootReply, Destination};
use wire::dhcp4::MessageType::{Ack, Discover, Offer, Request};
use wire::dhcp4::{HEADER_BYTES, MessageType, View, code};
use wire::ethernet::Mac;
use wire::udp::{Checksum, Datagram};

macro_rules! capture {
    ($name:literal) => {
        ($name, include_bytes!(concat!("data/", $name, ".pcap")))
    };
}

const CAPTURES: [(&str, &[u8]); 6] = [
    capture!("bios-commissioning"),
    capture!("bios-ipxe-lpxelinux"),
    capture!("linux-initramfs-dhclient"),
    capture!("uefi-ipxe-rom-then-pxev4-shim-grub"),
    capture!("uefi-native-pxev4-shim-grub"),
    capture!("uefi-pxev4fail-pxev6-httpv4"),
];

/// One DHCP message of a capture, and when it was seen.
struct Captured {
    at_secs: u64,
    octets: Vec<u8>,
}

/// Reads a pcap file of Ethernet frames (little-endian, microseconds).
fn read(mut pcap: &[u8]) -> Vec<Captured> {
    let word = |octets: &[u8], at: usize| {
        u32::from_le_bytes(octets[at..at + 4].try_into().unwrap()) as usize
    };
    assert_eq!(
        (word(pcap, 0), word(pcap, 20)),
        (0xa1b2_c3d4, 1),
        "Ethernet"
    );
    pcap = &pcap[24..];
    let mut all = vec![];
    while !pcap.is_empty() {
        let (at_secs, length) = (word(pcap, 0) as u64, word(pcap, 8));
        let frame = &pcap[16..16 + length];
        pcap = &pcap[16 + length..];
        // Half of them were caught before a virtual NIC filled in the checksum.
        let packet = Datagram::parse_packet(&frame[14..], Checksum::NotReady).unwrap();
        let octets = packet.payload.to_vec();
        all.push(Captured { at_secs, octets });
    }
    all
}

/// The same message, asking for `address` where it asked for one.
fn asking_for(octets: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let mut octets = octets.to_vec();
    let mut at = HEADER_BYTES;
    while octets[at] != code::REQUESTED_ADDRESS {
        if octets[at] == code::END {
            return octets;
        }
        at += if octets[at] == code::PAD {
            1
        } else {
            2 + usize::from(octets[at + 1])
        };
    }
    octets[at + 2..at + 6].copy_from_slice(&address.octets());
    octets
}

fn boot() -> BootReply<'static> {
    BootReply {
        next_server: Some(SERVER),
        file: "bootx64.efi",
        ..BootReply::default()
    }
}

#[test]
fn every_message_of_every_boot_is_answered_and_a_machine_keeps_its_address() {
    for (name, pcap) in CAPTURES {
        let messages = read(pcap);
        let start = messages[0].at_secs;
        let mut rack = Rack::new(64);
        let mut addresses: HashMap<Mac, Ipv4Addr> = HashMap::new();
        let mut bound = HashSet::new();
        let mut answered = HashMap::<MessageType, usize>::new();
        for Captured { at_secs, octets } in &messages {
            let view = View::parse(octets).unwrap();
            if !view.is_request() {
                continue; // dnsmasq's
            }
            let (mac, kind) = (view.mac().unwrap(), view.message_type().unwrap());
            let own = addresses.get(&mac).copied();
            let octets = asking_for(octets, own.unwrap_or(NONE));
            rack.at(at_secs - start).tick();
            let mut step = rack.send_octets(&octets, Ipv4Addr::BROADCAST, &boot());
            assert_eq!(step.dropped, None, "{name}: {kind:?}");
            if !step.writes.is_empty() {
                step = rack.durable(&step);
            }
            let (answer, address) = step.reply().expect(name);
            let want = if kind == Discover { Offer } else { Ack };
            assert_eq!(answer, want, "{name}");
            assert_eq!(own.unwrap_or(address), address, "{name}: {mac}");
            addresses.insert(mac, address);
            fits(name, &octets, &step.replies[0]);
            *answered.entry(kind).or_default() += 1;
            if kind == Request {
                bound.insert(mac);
            }
        }
        assert!(answered[&Discover] > 0 && answered[&Request] > 0, "{name}");
        // One of them had gone no further than its DISCOVER.
        assert_eq!(rack.engine.usage().bound, bound.len(), "{name}");
        assert_eq!(rack.engine.counters().dropped_in_all(), 0, "{name}");
    }
}

/// A reply is one that this very message waits for.
fn fits(name: &str, query: &[u8], reply: &Seen) {
    let (asked, given) = (View::parse(query).unwrap(), reply.view());
    assert_eq!(given.xid(), asked.xid(), "{name}");
    assert_eq!(given.chaddr(), asked.chaddr(), "{name}");
    assert_eq!(given.flags(), asked.flags(), "{name}");
    assert_eq!(given.server_id(), Some(SERVER), "{name}");
    assert_eq!(given.client_id(), asked.client_id(), "{name}");
    assert_eq!(given.machine_uuid(), asked.machine_uuid(), "{name}");
    let limit = asked.message_bytes_max().unwrap_or(576).clamp(576, 1500);
    assert!(reply.octets.len() + 28 <= usize::from(limit), "{name}");
    let broadcast = reply.destination == Destination::BROADCAST;
    assert_eq!(broadcast, asked.broadcast(), "{name}");
    // What is asked for and known comes in the order of the list, but for the boot file's name, which comes last.
    let list = asked.parameter_list().unwrap_or_default();
    let places: Vec<usize> = given
        .options()
        .filter(|(code, _)| ![1, 51, 53, 54, 58, 59, 60, 61, 67, 97].contains(code))
        .map(|(code, _)| list.iter().position(|asked| *asked == code).unwrap())
        .collect();
    assert!(places.is_sorted(), "{name}: {places:?}");
}
