//! The codec against captured firmware, against dhcproto, and against noise.

use std::net::Ipv4Addr;

use dhcproto::{Decodable, Encodable, v4};
use proptest::prelude::*;
use wire::dhcp4::{self, Header, LeaseTimes, MessageType, OP_REPLY, View, Writer, code};
use wire::ethernet::Mac;
use wire::udp::{Checksum, Datagram};

const CAPTURES: [(&str, &[u8]); 14] = [
    (
        "ipxe-bios-discover",
        include_bytes!("data/ipxe-bios-discover.bin"),
    ),
    (
        "ipxe-bios-request",
        include_bytes!("data/ipxe-bios-request.bin"),
    ),
    (
        "ipxe-uefi-discover",
        include_bytes!("data/ipxe-uefi-discover.bin"),
    ),
    (
        "ipxe-uefi-request",
        include_bytes!("data/ipxe-uefi-request.bin"),
    ),
    (
        "ovmf-pxe-discover",
        include_bytes!("data/ovmf-pxe-discover.bin"),
    ),
    (
        "ovmf-pxe-request",
        include_bytes!("data/ovmf-pxe-request.bin"),
    ),
    (
        "ovmf-http-discover",
        include_bytes!("data/ovmf-http-discover.bin"),
    ),
    (
        "ovmf-http-request",
        include_bytes!("data/ovmf-http-request.bin"),
    ),
    (
        "ipconfig-discover",
        include_bytes!("data/ipconfig-discover.bin"),
    ),
    (
        "ipconfig-request",
        include_bytes!("data/ipconfig-request.bin"),
    ),
    (
        "dhclient-discover",
        include_bytes!("data/dhclient-discover.bin"),
    ),
    (
        "dhclient-request",
        include_bytes!("data/dhclient-request.bin"),
    ),
    ("dnsmasq-offer", include_bytes!("data/dnsmasq-offer.bin")),
    ("dnsmasq-ack", include_bytes!("data/dnsmasq-ack.bin")),
];

fn capture(name: &str) -> View<'static> {
    let (_, octets) = CAPTURES
        .iter()
        .find(|(found, _)| *found == name)
        .expect("a capture");
    View::parse(octets).unwrap()
}

/// Every field and every option of `octets` reads the same here and in dhcproto.
fn agrees_with_dhcproto(case: &str, octets: &[u8]) {
    let ours = View::parse(octets).unwrap();
    let theirs = v4::Message::from_bytes(octets).unwrap();
    assert_eq!(ours.xid(), theirs.xid(), "{case}");
    assert_eq!(ours.secs(), theirs.secs(), "{case}");
    assert_eq!(ours.flags(), u16::from(theirs.flags()), "{case}");
    assert_eq!(ours.ciaddr(), theirs.ciaddr(), "{case}");
    assert_eq!(ours.yiaddr(), theirs.yiaddr(), "{case}");
    assert_eq!(ours.siaddr(), theirs.siaddr(), "{case}");
    assert_eq!(ours.giaddr(), theirs.giaddr(), "{case}");
    assert_eq!(ours.chaddr(), theirs.chaddr(), "{case}");
    // dhcproto keeps the NUL that ends a name.
    let name = |theirs: Option<&[u8]>| {
        let mut name = theirs.unwrap_or_default().to_vec();
        name.pop_if(|last| *last == 0);
        name
    };
    assert_eq!(ours.file(), name(theirs.fname()), "{case}");
    assert_eq!(ours.sname(), name(theirs.sname()), "{case}");
    let mut codes: Vec<u8> = ours.options().map(|(code, _)| code).collect();
    codes.sort_unstable();
    codes.dedup();
    let their_codes: Vec<u8> = theirs
        .opts()
        .iter()
        .map(|(code, _)| u8::from(*code))
        .filter(|code| ![code::PAD, code::END].contains(code))
        .collect();
    assert_eq!(codes, their_codes, "{case}");
}

#[test]
fn captures_read_as_dhcproto_reads_them() {
    for (name, octets) in CAPTURES {
        agrees_with_dhcproto(name, octets);
    }
}

#[test]
fn captures_say_what_the_firmware_meant() {
    let ipxe = capture("ipxe-bios-discover");
    assert_eq!(ipxe.message_type(), Some(MessageType::Discover));
    assert_eq!(ipxe.mac(), Some(Mac([0x52, 0x54, 0, 0, 1, 0])));
    assert_eq!(ipxe.user_class(), Some(&b"iPXE"[..]));
    assert_eq!(
        (ipxe.arch(), ipxe.message_bytes_max(), ipxe.secs()),
        (Some(0), Some(1472), 4)
    );
    assert!(!ipxe.broadcast());

    let ovmf = capture("ovmf-pxe-request");
    assert_eq!(
        ovmf.vendor_class(),
        Some(&b"PXEClient:Arch:00007:UNDI:003000"[..])
    );
    assert_eq!(
        (ovmf.arch(), ovmf.message_bytes_max()),
        (Some(7), Some(65_280))
    );
    assert!(ovmf.broadcast());
    assert_eq!(ovmf.machine_uuid(), Some(&[0; 16]));
    assert_eq!(ovmf.server_id(), Some(Ipv4Addr::new(10, 99, 0, 1)));
    assert_eq!(
        ovmf.requested_address(),
        Some(Ipv4Addr::new(10, 99, 0, 193))
    );

    assert_eq!(capture("ovmf-http-discover").arch(), Some(16));
    assert_eq!(
        capture("dhclient-request")
            .client_id()
            .map(|id| (id[0], id.len())),
        Some((255, 19))
    );
    assert_eq!(
        capture("ipconfig-discover").hostname(),
        Some(&b"node-1"[..])
    );
    assert_eq!(capture("dnsmasq-ack").lease_secs(), Some(600));
}

#[test]
fn captures_cut_anywhere_never_panic() {
    for (name, octets) in CAPTURES {
        for length in 0..octets.len() {
            match View::parse(&octets[..length]) {
                Ok(view) => assert!(view.options().count() < 64, "{name}"),
                Err(_) => assert!(length < octets.len()),
            }
        }
    }
}

#[test]
fn captured_packets_pass_their_checksums() {
    let packets: [(&str, &[u8], u16); 5] = [
        ("ipxe", include_bytes!("data/ipxe-bios-discover.ip.bin"), 67),
        ("ovmf", include_bytes!("data/ovmf-pxe-discover.ip.bin"), 67),
        (
            "ipconfig sends none",
            include_bytes!("data/ipconfig-discover.ip.bin"),
            67,
        ),
        (
            "dhclient",
            include_bytes!("data/dhclient-request.ip.bin"),
            67,
        ),
        // A host's own answer, caught before the (virtual) NIC computed its checksum.
        (
            "dnsmasq, not ready",
            include_bytes!("data/dnsmasq-offer.ip.bin"),
            68,
        ),
    ];
    for (case, octets, port) in packets {
        let checksum = if port == 68 {
            Checksum::NotReady
        } else {
            Checksum::Verify
        };
        let datagram = Datagram::parse_packet(octets, checksum).expect(case);
        assert_eq!(datagram.target.port(), port, "{case}");
        View::parse(datagram.payload).expect(case);
    }
}

#[test]
fn dhcproto_reads_what_we_write() {
    let mut header = Header::new(OP_REPLY);
    header.htype = 1;
    header.hlen = 6;
    header.xid.set(0xdead_beef);
    header.flags.set(dhcp4::FLAG_BROADCAST);
    header.yiaddr = [10, 99, 0, 193];
    header.chaddr[..6].copy_from_slice(&[0x52, 0x54, 0, 0, 1, 0]);
    header.file[..11].copy_from_slice(b"bootx64.efi");
    let mut buffer = [0; 1472];
    let mut writer = Writer::new(&mut buffer, 1472, &header, MessageType::Offer).unwrap();
    writer.lease_times(LeaseTimes::of(600)).unwrap();
    writer
        .address(code::SERVER_ID, Ipv4Addr::new(10, 99, 0, 1))
        .unwrap();
    let dns = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
    writer.addresses(code::DNS_SERVERS, &dns).unwrap();
    let length = writer.finish();
    agrees_with_dhcproto("ours", &buffer[..length]);
    let theirs = v4::Message::from_bytes(&buffer[..length]).unwrap();
    let option = |code| theirs.opts().get(code);
    assert_eq!(
        option(v4::OptionCode::DomainNameServer),
        Some(&v4::DhcpOption::DomainNameServer(dns.to_vec()))
    );
    assert_eq!(
        option(v4::OptionCode::AddressLeaseTime),
        Some(&v4::DhcpOption::AddressLeaseTime(600))
    );
    assert_eq!(
        option(v4::OptionCode::Rebinding),
        Some(&v4::DhcpOption::Rebinding(525))
    );
}

proptest! {
    #[test]
    fn noise_never_panics_and_always_ends(
        mut octets in proptest::collection::vec(any::<u8>(), 0..700),
        magic in any::<bool>(),
    ) {
        if magic && octets.len() >= 240 {
            octets[2] %= 17;
            octets[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        }
        if let Ok(view) = View::parse(&octets) {
            let mut scratch = [0; 512];
            for (code, _) in view.options() {
                let _ = view.option_joined(code, &mut scratch);
            }
            let mut room = dhcp4::Joined::default();
            if let Ok(joined) = view.joined(&mut room) {
                prop_assert!(joined.options().count() <= view.options().count());
            }
            let _ = (view.mac(), view.arch(), view.machine_uuid(), view.file(), view.sname());
        }
        let _ = Datagram::parse_packet(&octets, Checksum::Verify);
        let _ = wire::ethernet::Header::parse(&octets);
    }

    /// What does not fit one option or one field is split, and reads as it was: here and in dhcproto.
    #[test]
    fn long_options_of_ours_are_read_alike(
        // Codes whose form is free in both codecs.
        options in proptest::collection::btree_map(
            224u8..=254, proptest::collection::vec(any::<u8>(), 0..400), 0..6),
        limit in 300usize..1472,
        overload in 0u8..=3,
    ) {
        let mut buffer = [0; 1472];
        let header = Header::new(OP_REPLY);
        let mut writer = Writer::new(&mut buffer, limit, &header, MessageType::Ack).unwrap();
        if overload > 0 {
            writer.overload(overload).unwrap();
        }
        let mut written = vec![];
        for (code, octets) in &options {
            if writer.option(*code, octets).is_ok() {
                written.push((*code, octets));
            }
        }
        let length = writer.finish();
        prop_assert!(length <= limit);
        let view = View::parse(&buffer[..length]).unwrap();
        let mut room = dhcp4::Joined::default();
        let view = view.joined(&mut room).unwrap();
        for (code, octets) in &written {
            prop_assert_eq!(view.option(*code), Some(&octets[..]));
        }
        let extra = 1 + usize::from(overload > 0);
        prop_assert_eq!(view.options().count(), written.len() + extra);
        // dhcproto leaves the two fields to its caller.
        if overload == 0 {
            let theirs = v4::Message::from_bytes(&buffer[..length]).unwrap();
            for (code, octets) in written {
                let found = theirs.opts().get(v4::OptionCode::from(code));
                let Some(v4::DhcpOption::Unknown(found)) = found else {
                    panic!("{code}: {found:?}");
                };
                prop_assert_eq!(found.data(), &octets[..]);
            }
        }
    }

    /// The parts of an option come together in the order of RFC 3396 §5, however they are spread.
    #[test]
    fn parts_are_joined_as_a_simple_model_does(
        parts in proptest::collection::vec(
            (0usize..3, 200u8..205, proptest::collection::vec(any::<u8>(), 0..12)), 0..24),
    ) {
        let mut octets = vec![0; 240];
        (octets[0], octets[2]) = (1, 6);
        octets[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        octets.extend([52, 1, 3]);
        let mut fields = [vec![], vec![], vec![]];
        let room = [1000, 127, 63];
        let mut want = std::collections::BTreeMap::<u8, Vec<u8>>::new();
        for field in 0..3 {
            for (_, code, part) in parts.iter().filter(|(of, ..)| *of == field) {
                if fields[field].len() + part.len() + 2 <= room[field] {
                    fields[field].extend([*code, part.len() as u8]);
                    fields[field].extend(part);
                    want.entry(*code).or_default().extend(part);
                }
            }
            fields[field].push(255);
        }
        octets.extend(&fields[0]);
        octets[108..108 + fields[1].len()].copy_from_slice(&fields[1]);
        octets[44..44 + fields[2].len()].copy_from_slice(&fields[2]);
        let view = View::parse(&octets).unwrap();
        let mut room = dhcp4::Joined::default();
        let view = view.joined(&mut room).unwrap();
        for code in 200..205 {
            prop_assert_eq!(view.option(code), want.get(&code).map(|octets| &octets[..]));
        }
        prop_assert_eq!(view.options().count(), want.len() + 1);
    }

    #[test]
    fn what_dhcproto_writes_is_read_alike(
        xid in any::<u32>(),
        requested in any::<u32>(),
        class in "[ -~]{1,300}",
        name in "[a-z]{1,60}",
    ) {
        let mut message = v4::Message::default();
        message.set_xid(xid).set_chaddr(&[0x52, 0x54, 0, 0, 1, 5]);
        let options = message.opts_mut();
        options.insert(v4::DhcpOption::MessageType(v4::MessageType::Request));
        options.insert(v4::DhcpOption::RequestedIpAddress(Ipv4Addr::from(requested)));
        options.insert(v4::DhcpOption::ClassIdentifier(class.clone().into_bytes()));
        options.insert(v4::DhcpOption::Hostname(name.clone()));
        let octets = message.to_vec().unwrap();
        agrees_with_dhcproto("theirs", &octets);
        let view = View::parse(&octets).unwrap();
        prop_assert_eq!(view.requested_address(), Some(Ipv4Addr::from(requested)));
        prop_assert_eq!(view.hostname(), Some(name.as_bytes()));
        let mut scratch = [0; 400];
        prop_assert_eq!(view.option_joined(60, &mut scratch), Some(class.as_bytes()));
        let mut room = dhcp4::Joined::default();
        prop_assert_eq!(view.joined(&mut room).unwrap().vendor_class(), Some(class.as_bytes()));
    }
}
