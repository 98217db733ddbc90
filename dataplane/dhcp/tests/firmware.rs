//! Captured firmware against the engine: what it asks for, what it insists on, one address for one machine.

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::{BootReply, Destination, Sent};
use wire::dhcp4::MessageType::{Ack, Offer};
use wire::dhcp4::{HEADER_BYTES, View, code};

macro_rules! capture {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../wire/tests/data/", $name, "-discover.bin")),
            include_bytes!(concat!("../../wire/tests/data/", $name, "-request.bin")),
        )
    };
}

type Capture = (&'static str, &'static [u8], &'static [u8]);

/// What one machine (52:54:00:00:01:00) sends in a boot, in order: BIOS or UEFI, then Linux.
const BIOS: [Capture; 3] = [
    capture!("ipxe-bios"),
    capture!("ipconfig"),
    capture!("dhclient"),
];
const UEFI: [Capture; 4] = [
    capture!("ipxe-uefi"),
    capture!("ovmf-pxe"),
    capture!("ipconfig"),
    capture!("dhclient"),
];
const OVMF_HTTP: Capture = capture!("ovmf-http");

fn pxe() -> BootReply<'static> {
    BootReply {
        next_server: Some(SERVER),
        file: "bootx64.efi",
        hostname: "node-1",
        ..BootReply::default()
    }
}

/// The captured REQUEST, asking for what was offered here instead of what dnsmasq offered then.
fn asking_for(octets: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let mut octets = octets.to_vec();
    let mut at = HEADER_BYTES;
    while octets[at] != code::REQUESTED_ADDRESS {
        at += 2 + usize::from(octets[at + 1]);
    }
    octets[at + 2..at + 6].copy_from_slice(&address.octets());
    octets
}

/// One exchange of four; gives the OFFER, the ACK and the address.
fn exchange(rack: &mut Rack, capture: Capture, boot: &BootReply<'_>) -> (Seen, Seen, Ipv4Addr) {
    let (name, discover, request) = capture;
    let mut step = rack.send_octets(discover, Ipv4Addr::BROADCAST, boot);
    let (kind, address) = step.reply().expect(name);
    assert_eq!(kind, Offer, "{name}");
    let offer = step.replies.remove(0);
    let request = asking_for(request, address);
    let step = rack.send_octets(&request, Ipv4Addr::BROADCAST, boot);
    assert_eq!(step.dropped, None, "{name}");
    let mut step = if step.writes.is_empty() {
        step
    } else {
        rack.durable(&step)
    };
    assert_eq!(step.reply(), Some((Ack, address)), "{name}");
    (offer, step.replies.remove(0), address)
}

#[test]
fn a_machine_keeps_one_address_through_a_boot_for_one_write() {
    for boot in [&BIOS[..], &UEFI[..]] {
        let mut rack = Rack::new(64);
        let addresses: Vec<Ipv4Addr> = boot
            .iter()
            .enumerate()
            .map(|(step, capture)| {
                rack.at(step as u64 * 15);
                exchange(&mut rack, *capture, &pxe()).2
            })
            .collect();
        assert!(
            addresses.iter().all(|address| *address == addresses[0]),
            "{addresses:?}"
        );
        assert_eq!(rack.engine.counters().sent(Sent::Grant), 1);
        assert_eq!(rack.engine.usage().bound, 1);
    }
}

#[test]
fn repeated_discovers_of_ipxe_get_the_same_offer() {
    let mut rack = Rack::new(64);
    let (_, discover, _) = BIOS[0];
    let first = rack
        .send_octets(discover, Ipv4Addr::BROADCAST, &pxe())
        .reply();
    rack.boot(mac(77));
    rack.at(6);
    assert_eq!(
        rack.send_octets(discover, Ipv4Addr::BROADCAST, &pxe())
            .reply(),
        first
    );
}

#[test]
fn pxe_firmware_gets_its_file_in_both_places_and_no_pxeclient() {
    for capture in [BIOS[0], UEFI[0], UEFI[1]] {
        let (name, discover, _) = capture;
        let asked = View::parse(discover).unwrap();
        let mut rack = Rack::new(64);
        let (offer, ack, _) = exchange(&mut rack, capture, &pxe());
        for reply in [offer, ack] {
            let view = reply.view();
            assert_eq!(view.file(), b"bootx64.efi", "{name}");
            assert_eq!(
                view.option(code::BOOTFILE),
                Some(&b"bootx64.efi"[..]),
                "{name}"
            );
            assert_eq!(
                view.option(code::TFTP_SERVER),
                Some(&b"10.99.0.1"[..]),
                "{name}"
            );
            assert_eq!(view.siaddr(), SERVER, "{name}");
            assert_eq!(view.server_id(), Some(SERVER), "{name}");
            assert_eq!(view.xid() != 0, asked.xid() != 0);
            assert_eq!(view.chaddr(), asked.chaddr(), "{name}");
            assert_eq!(
                view.option(code::MACHINE_UUID),
                asked.option(code::MACHINE_UUID),
                "{name}"
            );
            // "PXEClient" here would send EDK2 to port 4011.
            assert_eq!(view.vendor_class(), None, "{name}");
            for code in [1, 3, 51, 53, 54, 58, 59] {
                assert!(view.option(code).is_some(), "{name} lacks {code}");
            }
            assert_eq!(
                view.option(code::INTERFACE_MTU),
                None,
                "1500 goes without saying"
            );
        }
    }
}

#[test]
fn http_boot_gets_the_class_it_insists_on() {
    let boot = BootReply {
        file: "http://10.99.0.1:5248/images/bootx64.efi",
        vendor_class: Some(b"HTTPClient"),
        ..pxe()
    };
    let (offer, ..) = exchange(&mut Rack::new(64), OVMF_HTTP, &boot);
    assert_eq!(offer.view().vendor_class(), Some(&b"HTTPClient"[..]));
    assert_eq!(
        offer.view().option(code::BOOTFILE),
        Some(boot.file.as_bytes())
    );
    assert_eq!(offer.destination, Destination::BROADCAST);
}

#[test]
fn linux_gets_what_it_asks_for_and_nothing_else() {
    let (_, ack, _) = exchange(&mut Rack::new(64), capture!("dhclient"), &pxe());
    let view = ack.view();
    assert_eq!(
        view.option(code::DNS_SERVERS),
        Some(&[10, 99, 0, 1, 10, 99, 0, 2][..])
    );
    assert_eq!(view.option(code::NTP_SERVERS), Some(&ip(3).octets()[..]));
    assert_eq!(view.option(code::DOMAIN), Some(&b"maas"[..]));
    assert_eq!(view.option(code::DOMAIN_SEARCH), Some(&b"\x04maas\0"[..]));
    assert_eq!(view.hostname(), Some(&b"node-1"[..]));
    assert_eq!(
        view.option(code::BROADCAST_ADDRESS),
        Some(&ip(255).octets()[..])
    );
    assert_eq!(view.option(code::BOOTFILE), None, "not asked for");
    let (_, ack, _) = exchange(&mut Rack::new(64), capture!("ipconfig"), &pxe());
    assert_eq!(ack.view().option(code::NTP_SERVERS), None, "not asked for");
}

#[test]
fn file_names_too_long_for_the_field_go_by_option() {
    let file = "x".repeat(128);
    let boot = BootReply {
        file: &file,
        path_prefix: Some("http://10.99.0.1:5248/"),
        ..pxe()
    };
    let message = discover(mac(1)).with(code::PARAMETER_LIST, &[1, 3]);
    let step = Rack::new(4).send_octets(&message.octets(), Ipv4Addr::BROADCAST, &boot);
    let view = step.replies[0].view();
    assert_eq!(view.file(), b"");
    assert_eq!(view.option(code::BOOTFILE), Some(file.as_bytes()));
    assert_eq!(
        view.option(code::PATH_PREFIX),
        Some(&b"http://10.99.0.1:5248/"[..]),
        "forced"
    );
    assert_eq!(view.option(code::DNS_SERVERS), None, "not asked for");
}

#[test]
fn a_small_message_loses_the_least_and_keeps_the_echoes() {
    let mut config = config();
    config.links[0].subnets[0].domain = "a-rather-long-label".repeat(3) + ".example";
    config.links[0].subnets[0].ntp = (1..=60).map(ip).collect();
    config.links[0].mtu = 9000;
    let mut rack = Rack::with_rows(config, 4, &[]);
    let id = [1; 100];
    let step = rack.send(&discover(mac(1)).with(code::CLIENT_ID, &id));
    let reply = &step.replies[0];
    assert!(reply.octets.len() <= 548, "{}", reply.octets.len());
    assert_eq!(reply.view().client_id(), Some(&id[..]));
    assert_eq!(reply.view().option(code::NTP_SERVERS), None, "did not fit");
    assert_eq!(
        reply.view().option(code::INTERFACE_MTU),
        Some(&9000u16.to_be_bytes()[..])
    );
    assert_eq!(rack.engine.counters().sent(Sent::OptionLeftOut), 1);
    let big = discover(mac(1)).with(code::MESSAGE_BYTES_MAX, &1472u16.to_be_bytes());
    assert!(
        rack.send(&big).replies[0]
            .view()
            .option(code::NTP_SERVERS)
            .is_some()
    );
}

#[test]
fn captures_cut_anywhere_never_panic_the_engine() {
    let mut rack = Rack::new(64);
    for (_, discover, request) in BIOS.into_iter().chain(UEFI).chain([OVMF_HTTP]) {
        for octets in [discover, request] {
            for length in 0..octets.len() {
                if View::parse(&octets[..length]).is_ok() {
                    rack.send_octets(&octets[..length], Ipv4Addr::BROADCAST, &pxe());
                }
            }
        }
    }
}
