//! The boot file's name as firmware reads it: some looks at no option's length, and reads on to a NUL.

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};

use common::*;
use dhcp::*;
use wire::dhcp4::MessageType::{Ack, Inform, Offer, Request};
use wire::dhcp4::{HEADER_BYTES, code};

const CLASS: &[u8] = b"PXEClient:Arch:00007:UNDI:003000";

fn boot(file: &str) -> BootReply<'_> {
    BootReply {
        next_server: Some(SERVER),
        file,
        hostname: "node-1",
        path_prefix: Some("http://10.99.0.1:5248/"),
        ..BootReply::default()
    }
}

/// The options of the options field and where they stand. The walk knows pads and no more, as firmware does.
fn places(octets: &[u8]) -> Vec<(u8, usize)> {
    let (mut at, mut found) = (HEADER_BYTES, Vec::new());
    while octets[at] != code::END {
        if octets[at] == code::PAD {
            at += 1;
        } else {
            found.push((octets[at], at));
            at += 2 + usize::from(octets[at + 1]);
        }
    }
    found
}

/// What stands behind the head of an option, as C reads a text.
fn read_to_nul(octets: &[u8], wanted: u8) -> Option<&[u8]> {
    let (_, at) = places(octets)
        .into_iter()
        .find(|(code, _)| *code == wanted)?;
    let text = &octets[at + 2..];
    let end = text.iter().position(|octet| *octet == 0).expect("a NUL");
    Some(&text[..end])
}

fn relayed(message: Message) -> Message {
    let info = relay_info(&[(1, b"port-7"), (2, b"switch-4")]);
    let giaddr = ip(254);
    Message { giaddr, ..message }.with(code::RELAY_INFO, &info)
}

/// A client whose echoes stand behind the name: its UUID and its client id.
fn firmware(message: Message) -> Message {
    let uuid = [&[0][..], &[7; 16]].concat();
    message
        .with(code::VENDOR_CLASS, CLASS)
        .with(code::MACHINE_UUID, &uuid)
        .with(code::CLIENT_ID, &[1, 2, 3, 4])
}

/// Every kind of reply that says what to boot, to a client that sends `like`.
fn replies(file: &str, like: impl Fn(Message) -> Message) -> Vec<(&'static str, Seen)> {
    let (to, boot) = (Ipv4Addr::BROADCAST, boot(file));
    let only = |mut step: Step| {
        assert_eq!(step.dropped, None);
        assert_eq!(step.replies.len(), 1);
        step.replies.remove(0)
    };
    let mut found = Vec::new();
    let mut rack = Rack::new(8);
    let offer = only(rack.send_octets(&like(discover(mac(2))).octets(), to, &boot));
    let asked = like(request(mac(2), offer.address)).octets();
    found.push(("OFFER", offer));
    let step = rack.send_octets(&asked, to, &boot);
    found.push(("ACK", only(rack.durable(&step))));
    let rapid = like(discover(mac(3)).with(code::RAPID_COMMIT, &[])).octets();
    let step = rack.send_octets(&rapid, to, &boot);
    found.push(("ACK at once", only(rack.durable(&step))));
    let inform = Message {
        ciaddr: ip(30),
        ..message(Inform, mac(4))
    };
    let step = rack.send_octets(&like(inform).octets(), to, &boot);
    found.push(("ACK of an INFORM", only(step)));

    let mut proxied = config();
    for link in &mut proxied.links {
        link.mode = Mode::Proxy;
    }
    let mut rack = Rack::with_rows(proxied, 8, &[]);
    // Beside another server an operator's options are not ours to send.
    let step = rack.send_octets(&like(discover(mac(5))).octets(), to, &boot);
    found.push(("OFFER beside another server", only(step)));
    // The client asks port 4011 itself, with no relay between.
    let client = Message {
        ciaddr: ip(77),
        giaddr: NONE,
        ..like(message(Request, mac(5)))
    };
    let step = rack.ask_proxy(&client, SocketAddrV4::new(ip(77), 68), &boot);
    found.push(("ACK beside another server", only(step)));
    found
}

#[test]
fn who_reads_the_boot_files_name_to_a_nul_gets_the_name_in_every_reply() {
    let list = [1, 3, 66, 67, 15, 97];
    let listed = |message: Message| firmware(message).with(code::PARAMETER_LIST, &list);
    let longest = "x".repeat(127);
    let too_long = "x".repeat(200);
    type Like<'a> = &'a dyn Fn(Message) -> Message;
    let cases: [(&str, Like<'_>); 4] = [
        ("on the link", &listed),
        ("by a relay", &|message| relayed(listed(message))),
        ("without a list", &firmware),
        ("relayed without a list", &|message| {
            relayed(firmware(message))
        }),
    ];
    for file in ["lpxelinux.0", "bootx64.efi", &longest, &too_long] {
        for (case, like) in cases {
            for (kind, reply) in replies(file, like) {
                let octets = &reply.octets;
                let read = read_to_nul(octets, code::BOOTFILE);
                assert_eq!(read, Some(file.as_bytes()), "{kind} {case}");
                assert_eq!(
                    reply.option(code::BOOTFILE),
                    Some(file.into()),
                    "{kind} {case}"
                );
                let field = octets[108..236].split(|octet| *octet == 0).next().unwrap();
                let in_field = if file.len() < 128 { file } else { "" };
                assert_eq!(field, in_field.as_bytes(), "{kind} {case}");
                let server = read_to_nul(octets, code::TFTP_SERVER);
                assert!(
                    server.is_none_or(|name| name == b"10.99.0.1"),
                    "{kind} {case}"
                );
                // Behind it there is nothing that is the client's to read.
                let behind: Vec<u8> = places(octets)
                    .into_iter()
                    .map(|(code, _)| code)
                    .skip_while(|code| *code != code::BOOTFILE)
                    .skip(1)
                    .collect();
                let is_relayed = case.contains("relay");
                assert_eq!(
                    behind,
                    &[code::RELAY_INFO][..usize::from(is_relayed)],
                    "{kind} {case}"
                );
            }
        }
    }
}

#[test]
fn an_operators_name_ends_in_a_nul_too_and_is_sent_though_nobody_asks_for_it() {
    for list in [&[1, 3, 66][..], &[66, 67, 1]] {
        let mut config = config();
        config.links[0].subnets[0].options = vec![
            always(code::BOOTFILE, b"custom.efi"),
            option(code::TFTP_SERVER, b"tftp.example"),
        ]
        .into();
        let message = relayed(discover(mac(1))).with(code::PARAMETER_LIST, list);
        let mut rack = Rack::with_rows(config, 8, &[]);
        let octets = message.octets();
        let step = rack.send_octets(&octets, Ipv4Addr::BROADCAST, &boot("bootx64.efi"));
        let octets = &step.replies[0].octets;
        assert_eq!(
            read_to_nul(octets, code::BOOTFILE),
            Some(&b"custom.efi"[..])
        );
        assert_eq!(
            read_to_nul(octets, code::TFTP_SERVER),
            Some(&b"tftp.example"[..])
        );
    }
}

#[test]
fn the_name_ends_in_a_nul_however_full_the_message_is() {
    let like = |message: Message| {
        relayed(firmware(message)).with(code::PARAMETER_LIST, &[200, 67, 201, 202])
    };
    for filler in 0..=255 {
        let mut config = config();
        config.links[0].subnets[0].options = vec![
            option(200, &vec![1; filler]),
            option(201, &[2; 60]),
            option(202, &[3; 60]),
        ]
        .into();
        let mut rack = Rack::with_rows(config, 8, &[]);
        let message = like(discover(mac(1))).octets();
        let step = rack.send_octets(&message, Ipv4Addr::BROADCAST, &boot("bootx64.efi"));
        assert_eq!(step.reply().map(|(kind, _)| kind), Some(Offer), "{filler}");
        let reply = &step.replies[0];
        let read = read_to_nul(&reply.octets, code::BOOTFILE);
        assert_eq!(read, Some(&b"bootx64.efi"[..]), "{filler}");
        assert!(reply.octets.len() <= 548, "{filler}");
        assert!(reply.option(code::RELAY_INFO).is_some(), "{filler}");
    }
}

#[test]
fn a_name_that_has_no_room_beside_the_echoes_stands_in_its_field() {
    let name = "http://10.99.0.1:5248/images/grub/bootx64.efi";
    let message = discover(mac(1)).with(code::CLIENT_ID, &[1; 240]);
    let mut rack = Rack::new(8);
    let step = rack.send_octets(&message.octets(), Ipv4Addr::BROADCAST, &boot(name));
    let reply = &step.replies[0];
    assert_eq!(reply.kind, Offer);
    assert_eq!(reply.view().file(), name.as_bytes());
    assert_eq!(reply.option(code::BOOTFILE), None);
    assert_eq!(rack.engine.counters().sent(Sent::OptionLeftOut), 1);
    // A request of the same client is answered, too.
    let asked = request(mac(1), reply.address).with(code::CLIENT_ID, &[1; 240]);
    let step = rack.send_octets(&asked.octets(), Ipv4Addr::BROADCAST, &boot(name));
    assert_eq!(rack.durable(&step).reply().map(|(kind, _)| kind), Some(Ack));
}
