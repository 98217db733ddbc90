//! proxyDHCP (PXE 2.1 §2.2) on a link whose addresses somebody else hands out: port 67 and port 4011.

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};

use common::*;
use dhcp::*;
use wire::dhcp4::MessageType::{Ack, Inform, Offer, Request};
use wire::dhcp4::{PROXY_PORT, code};

const CLASS: &[u8] = b"PXEClient:Arch:00007:UNDI:003000";
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 77), 68);

fn rack() -> Rack {
    let mut config = config();
    config.links[0].mode = Mode::Proxy;
    config.reservations.push(reservation(mac(1), ip(50)));
    Rack::with_rows(config, 8, &[])
}

fn boot() -> BootReply<'static> {
    BootReply {
        next_server: Some(SERVER),
        file: "bootx64.efi",
        ..BootReply::default()
    }
}

fn tell(rack: &mut Rack, message: &Message) -> Step {
    rack.send_octets(&message.octets(), Ipv4Addr::BROADCAST, &boot())
}

fn firmware() -> Message {
    let uuid = [&[0][..], &[7; 16]].concat();
    discover(mac(1))
        .with(code::VENDOR_CLASS, CLASS)
        .with(code::MACHINE_UUID, &uuid)
}

#[test]
fn firmware_gets_an_offer_of_a_file_and_of_nothing_else() {
    let mut rack = rack();
    let step = tell(&mut rack, &firmware());
    assert_eq!(step.reply(), Some((Offer, NONE)));
    let reply = &step.replies[0];
    assert_eq!(
        (reply.destination, reply.port),
        (Destination::BROADCAST, 67)
    );
    let view = reply.view();
    assert_eq!((view.siaddr(), view.file()), (SERVER, &b"bootx64.efi"[..]));
    assert_eq!(reply.codes(), [53, 54, 60, 43, 97, 67]);
    assert_eq!(view.vendor_class(), Some(&b"PXEClient"[..]));
    // Boot the file named here; no boot server is to be asked.
    assert_eq!(view.option(code::VENDOR_OPTIONS), Some(&[6, 1, 8, 255][..]));
    assert_eq!(view.machine_uuid(), Some(&[7; 16]));
    assert_eq!(step.events[0].kind, EventKind::Proxy);
    assert_eq!((rack.engine.usage().offered, step.writes.len()), (0, 0));
    assert_eq!(rack.engine.counters().sent(Sent::ProxyOffer), 1);
}

#[test]
fn http_boot_gets_its_class_and_its_url() {
    let url = "http://10.99.0.1:5248/images/bootx64.efi";
    let boot = BootReply {
        file: url,
        vendor_class: Some(b"HTTPClient"),
        ..boot()
    };
    let message = discover(mac(1)).with(code::VENDOR_CLASS, b"HTTPClient:Arch:00016:UNDI:003001");
    let step = rack().send_octets(&message.octets(), Ipv4Addr::BROADCAST, &boot);
    let view = step.replies[0].view();
    assert_eq!(view.vendor_class(), Some(&b"HTTPClient"[..]));
    assert_eq!(view.option(code::BOOTFILE), Some(url.as_bytes()));
    assert_eq!(view.option(code::VENDOR_OPTIONS), None);
}

#[test]
fn everybody_else_is_the_other_servers() {
    let mut rack = rack();
    let cases = [
        ("no firmware", discover(mac(1))),
        ("reserved here", init_reboot(mac(1), ip(50))),
        ("its REQUEST", request(mac(1), ip(100)).with(60, CLASS)),
        ("renewal", renew(mac(1), ip(100))),
        ("release", release(mac(1), ip(100))),
        (
            "inform",
            Message {
                ciaddr: ip(77),
                ..message(Inform, mac(1))
            },
        ),
        ("bootp", bootp(mac(1))),
    ];
    for (case, message) in cases {
        let step = tell(&mut rack, &message);
        assert_eq!(step.dropped, Some(Drop::LinkMode), "{case}");
        assert!(step.replies.is_empty(), "{case}");
    }
    // Nothing to boot here: the firmware goes on to its next device.
    let step = rack.send(&firmware());
    assert_eq!(step.dropped, Some(Drop::NoBootFile));
}

#[test]
fn through_a_relay_the_offer_goes_to_the_relay() {
    let mut rack = rack();
    rack.config.links[1].mode = Mode::Proxy;
    let relay = Ipv4Addr::new(10, 100, 0, 1);
    let info = relay_info(&[(1, b"port-7")]);
    let message = Message {
        giaddr: relay,
        ..firmware()
    }
    .with(code::RELAY_INFO, &info);
    let step = tell(&mut rack, &message);
    let to = Destination::Udp {
        ip: relay,
        port: 67,
    };
    assert_eq!(step.replies[0].destination, to);
    assert_eq!(step.replies[0].codes().last(), Some(&code::RELAY_INFO));
}

// -------------------------------------------------------------------- port 4011

fn asks(kind: wire::dhcp4::MessageType) -> Message {
    Message {
        ciaddr: *CLIENT.ip(),
        ..message(kind, mac(1))
    }
    .with(code::VENDOR_CLASS, CLASS)
}

#[test]
fn port_4011_answers_from_itself_to_where_the_client_asked_from() {
    for kind in [Request, Inform] {
        for port in [68, 4011, 50_000] {
            let from = SocketAddrV4::new(*CLIENT.ip(), port);
            let mut rack = rack();
            let step = rack.ask_proxy(&asks(kind), from, &boot());
            assert_eq!(step.reply(), Some((Ack, NONE)), "{kind:?}");
            let reply = &step.replies[0];
            let to = Destination::Udp {
                ip: *from.ip(),
                port,
            };
            assert_eq!((reply.destination, reply.port), (to, PROXY_PORT));
            let view = reply.view();
            assert_eq!(view.ciaddr(), *CLIENT.ip());
            assert_eq!((view.siaddr(), view.file()), (SERVER, &b"bootx64.efi"[..]));
            assert_eq!(view.lease_secs(), None);
            assert_eq!(view.vendor_class(), Some(&b"PXEClient"[..]));
            assert_eq!(rack.engine.counters().sent(Sent::ProxyAck), 1);
        }
    }
}

#[test]
fn the_boot_item_that_was_chosen_comes_back() {
    let message = asks(Request).with(code::VENDOR_OPTIONS, &[71, 4, 0, 15, 0, 0, 255]);
    let step = rack().ask_proxy(&message, CLIENT, &boot());
    let found = step.replies[0].option(code::VENDOR_OPTIONS);
    assert_eq!(found, Some(vec![71, 4, 0, 15, 0, 0, 255]));
    for odd in [&[71, 3, 0, 15, 0, 255][..], &[71], &[255]] {
        let message = asks(Request).with(code::VENDOR_OPTIONS, odd);
        let step = rack().ask_proxy(&message, CLIENT, &boot());
        let found = step.replies[0].option(code::VENDOR_OPTIONS);
        assert_eq!(found, Some(vec![6, 1, 8, 255]), "{odd:?}");
    }
}

#[test]
fn port_4011_is_for_firmware_on_such_a_link() {
    let mut serving = Rack::new(8);
    let step = serving.ask_proxy(&asks(Request), CLIENT, &boot());
    assert_eq!(
        step.dropped,
        Some(Drop::LinkMode),
        "we hand out the addresses"
    );

    let mut rack = rack();
    let plain = Message {
        options: vec![],
        ..asks(Request)
    };
    let step = rack.ask_proxy(&plain, CLIENT, &boot());
    assert_eq!(step.dropped, Some(Drop::LinkMode), "no firmware");
    let step = rack.ask_proxy(&firmware(), CLIENT, &boot());
    assert_eq!(step.dropped, Some(Drop::LinkMode), "DISCOVER");
    let step = rack.ask_proxy(&asks(Request), CLIENT, &BootReply::default());
    assert_eq!(step.dropped, Some(Drop::NoBootFile));
    for from in [
        "0.0.0.0:68",
        "255.255.255.255:68",
        "224.0.0.1:68",
        "10.99.0.9:67",
        "10.99.0.255:68",
        "203.0.113.9:68",
    ] {
        let step = rack.ask_proxy(&asks(Request), from.parse().unwrap(), &boot());
        assert_eq!(step.dropped, Some(Drop::NoAddress), "{from}");
    }
}
