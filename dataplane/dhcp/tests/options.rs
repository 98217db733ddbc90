//! The options of a reply: which, of which scope, in which order, and what becomes of those that do not fit
//! (RFC 2132, RFC 3396, RFC 2131 §4.3.1).

mod common;

use std::sync::Arc;

use common::*;
use dhcp::*;
use lease::{ClientKey, WriteKind};
use wire::dhcp4::MessageType::{Ack, Offer, Request};
use wire::dhcp4::code;

fn asking(list: &[u8]) -> Message {
    discover(mac(1)).with(code::PARAMETER_LIST, list)
}

/// The OFFER to `message` by a rack with this configuration.
fn offer(config: Fixed, message: &Message) -> Seen {
    let mut rack = Rack::with_rows(config, 8, &[]);
    let mut step = rack.send(message);
    assert_eq!(step.reply().map(|(kind, _)| kind), Some(Offer));
    step.replies.remove(0)
}

/// Options of the subnet, of its range, and of the reservation of mac(1) (address .50).
fn scoped(subnet: &[DhcpOption], range: &[DhcpOption], host: &[DhcpOption]) -> Fixed {
    let mut config = config();
    config.links[0].subnets[0].options = subnet.into();
    config.links[0].subnets[0].ranges[0].options = range.into();
    if !host.is_empty() {
        config.reservations.push(Reservation {
            options: host.into(),
            ..reservation(mac(1), ip(50))
        });
    }
    config
}

// -------------------------------------------------------------------- order

#[test]
fn what_is_asked_for_comes_in_the_order_of_the_client() {
    let lists: [&[u8]; 4] = [
        &[3, 6, 15, 42],
        &[42, 15, 6, 3],
        &[6, 1, 3, 28, 119],
        &[28, 3, 3, 28, 51, 54, 53, 3, 6],
    ];
    for list in lists {
        let codes = offer(config(), &asking(list)).codes();
        assert_eq!(codes[..6], [53, 54, 51, 58, 59, 1], "{list:?}");
        let mut want = vec![];
        for code in list {
            if ![1, 51, 53, 54].contains(code) && !want.contains(code) {
                want.push(*code);
            }
        }
        assert_eq!(codes[6..], want, "{list:?}: each once");
    }
}

#[test]
fn the_mask_stands_before_the_router() {
    let codes = offer(config(), &asking(&[3, 1])).codes();
    let place = |code: u8| codes.iter().position(|found| *found == code);
    assert!(place(code::SUBNET_MASK) < place(code::ROUTERS), "{codes:?}");
}

#[test]
fn what_there_is_no_value_for_is_omitted() {
    let mut config = config();
    config.links[0].subnets[0].gateway = None;
    config.links[0].subnets[0].domain = String::new();
    let codes = offer(config, &asking(&[2, 3, 4, 12, 15, 119, 200, 28])).codes();
    assert_eq!(codes, [53, 54, 51, 58, 59, 1, 28]);
}

#[test]
fn who_asks_for_nothing_in_particular_gets_everything() {
    let config = scoped(&[option(4, &[1, 2, 3, 4])], &[], &[]);
    let codes = offer(config, &discover(mac(1))).codes();
    for code in [1, 3, 6, 15, 28, 42, 119, 4] {
        assert!(codes.contains(&code), "{code} of {codes:?}");
    }
}

// -------------------------------------------------------------------- operators' options

#[test]
fn the_closest_scope_wins() {
    let (subnet, range, host) = ([1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]);
    let all = |of: &[u8]| vec![option(7, of)];
    let none = vec![];
    let other = vec![option(9, &host)];
    let cases = [
        (
            "subnet",
            all(&subnet),
            none.clone(),
            none.clone(),
            Some(subnet),
        ),
        ("range", all(&subnet), all(&range), other, Some(subnet)),
        ("host", all(&subnet), all(&range), all(&host), Some(host)),
        (
            "range alone",
            none.clone(),
            all(&range),
            none.clone(),
            Some(range),
        ),
        ("nobody", none.clone(), none.clone(), none, None),
    ];
    for (case, subnet, range, host, want) in cases {
        // The host's address is outside the range, so the range's options are not its.
        let offer = offer(scoped(&subnet, &range, &host), &asking(&[7]));
        let found = offer.option(7);
        assert_eq!(found.as_deref(), want.as_ref().map(|of| &of[..]), "{case}");
    }
}

#[test]
fn operators_override_what_the_rack_knows_but_not_the_protocol() {
    let config = scoped(
        &[
            option(code::DNS_SERVERS, &[9, 9, 9, 9]),
            option(code::SUBNET_MASK, &[255, 255, 255, 255]),
            always(code::LEASE_TIME, &[0, 0, 0, 1]),
            always(code::SERVER_ID, &[6, 6, 6, 6]),
            always(code::MESSAGE_TYPE, &[6]),
            always(code::RELAY_INFO, &[1, 1, 1]),
        ],
        &[],
        &[],
    );
    let offer = offer(config, &asking(&[6, 51, 54]));
    assert_eq!(offer.option(6).as_deref(), Some(&[9, 9, 9, 9][..]));
    assert_eq!(offer.option(1).as_deref(), Some(&[255; 4][..]));
    let view = offer.view();
    assert_eq!(view.server_id(), Some(SERVER));
    assert_eq!((offer.lease(), view.relay_info()), (LEASE_SECS, None));
}

#[test]
fn an_empty_value_leaves_an_option_out() {
    let host = [option(code::ROUTERS, &[]), option(7, &[])];
    let config = scoped(&[always(7, &[1, 1, 1, 1])], &[], &host);
    let codes = offer(config, &asking(&[3, 7, 6])).codes();
    assert_eq!(codes, [53, 54, 51, 58, 59, 1, 6]);
}

#[test]
fn always_is_sent_unasked_and_last() {
    let subnet = [always(7, &[1; 4]), option(9, &[2; 4]), always(4, &[3; 4])];
    let host = [option(4, &[4; 4])];
    let codes = offer(scoped(&subnet, &[], &[]), &asking(&[6])).codes();
    assert_eq!(codes, [53, 54, 51, 58, 59, 1, 6, 7, 4]);
    let codes = offer(scoped(&subnet, &[], &host), &asking(&[6])).codes();
    assert_eq!(
        codes,
        [53, 54, 51, 58, 59, 1, 6, 7],
        "the closest scope says whether"
    );
}

#[test]
fn an_operators_boot_file_stands_in_for_the_racks() {
    let config = scoped(&[option(code::BOOTFILE, b"custom.efi")], &[], &[]);
    let boot = BootReply {
        next_server: Some(SERVER),
        file: "bootx64.efi",
        ..BootReply::default()
    };
    let mut rack = Rack::with_rows(config, 8, &[]);
    let step = rack.send_octets(&asking(&[67]).octets(), NONE, &boot);
    let view = step.replies[0].view();
    assert_eq!(view.file(), b"custom.efi");
    assert_eq!(view.option(code::BOOTFILE), Some(&b"custom.efi"[..]));
}

#[test]
fn lists_of_any_length_are_split_and_come_together() {
    let routes: Vec<u8> = (0..400).map(|n| n as u8).collect();
    let config = scoped(&[option(121, &routes)], &[], &[]);
    let message = asking(&[121, 6]).with(code::MESSAGE_BYTES_MAX, &1472u16.to_be_bytes());
    let offer = offer(config, &message);
    assert_eq!(offer.codes().iter().filter(|code| **code == 121).count(), 2);
    assert_eq!(offer.option(121), Some(routes));
}

// -------------------------------------------------------------------- what does not fit

#[test]
fn what_does_not_fit_goes_to_sname_and_file_before_it_is_left_out() {
    let long = |code, octets| option(code, &vec![code; octets]);
    // 548 - 240 - 1 octets, less 53 54 51 58 59 1: 307 - 3 - 6 - 18 - 6 = 274.
    let cases = [
        // case                       options               overload  left out
        ("all fits", vec![long(200, 250)], None, 0),
        (
            "to its last octet",
            vec![long(200, 250), long(201, 20)],
            None,
            0,
        ),
        (
            "one too many",
            vec![long(200, 250), long(201, 21)],
            Some(2),
            0,
        ),
        (
            "sname and file",
            vec![long(200, 250), long(201, 61), long(202, 60)],
            Some(3),
            0,
        ),
        (
            "no room at all",
            vec![long(200, 250), long(201, 60), long(202, 100), long(203, 90)],
            Some(3),
            1,
        ),
    ];
    for (case, options, overload, left_out) in cases {
        let list: Vec<u8> = options.iter().map(|option| option.code).collect();
        let mut rack = Rack::with_rows(scoped(&options, &[], &[]), 8, &[]);
        let step = rack.send(&asking(&list));
        let reply = &step.replies[0];
        assert!(reply.octets.len() <= 548, "{case}");
        let found = reply.view().option(code::OVERLOAD).map(|bits| bits[0]);
        assert_eq!(found, overload, "{case}");
        let there = list.iter().filter(|code| reply.option(**code).is_some());
        assert_eq!(there.count(), list.len() - left_out, "{case}");
        assert_eq!(
            rack.engine.counters().sent(Sent::OptionLeftOut),
            left_out as u64,
            "{case}"
        );
    }
}

#[test]
fn the_boot_files_field_is_not_overloaded() {
    let options = [
        option(200, &[1; 250]),
        option(201, &[2; 60]),
        option(202, &[3; 60]),
    ];
    let boot = BootReply {
        next_server: Some(SERVER),
        file: "bootx64.efi",
        ..BootReply::default()
    };
    let mut rack = Rack::with_rows(scoped(&options, &[], &[]), 8, &[]);
    let message = asking(&[200, 201, 202, 67]);
    let step = rack.send_octets(&message.octets(), NONE, &boot);
    let reply = &step.replies[0];
    assert_eq!(reply.view().file(), b"bootx64.efi");
    let copy = reply.option(code::BOOTFILE);
    assert_eq!(
        copy.as_deref(),
        Some(&b"bootx64.efi"[..]),
        "its room was kept"
    );
    assert_eq!(reply.option(code::OVERLOAD), Some(vec![2]));
    assert_eq!(rack.engine.counters().sent(Sent::OptionLeftOut), 1);
}

#[test]
fn the_relays_option_stays_last_of_the_options_field() {
    let options = [option(200, &[1; 250]), option(201, &[2; 60])];
    let mut rack = Rack::with_rows(scoped(&options, &[], &[]), 8, &[]);
    let info = relay_info(&[(1, b"port-7")]);
    let message = Message {
        giaddr: ip(254),
        ..asking(&[200, 201])
    }
    .with(code::RELAY_INFO, &info);
    let reply = rack.send(&message).replies.remove(0);
    assert_eq!(reply.codes(), [53, 54, 51, 58, 59, 52, 1, 200, 82, 201]);
    assert_eq!(reply.view().relay_info(), Some(&info[..]));
}

#[test]
fn no_message_is_longer_than_the_client_takes_nor_shorter_than_it_must_take() {
    let options = [
        option(200, &[1; 255]),
        option(201, &[2; 255]),
        option(202, &[3; 255]),
    ];
    let cases = [
        // option 57, octets of the longest message
        (None, 548),
        (Some(100u16), 548),
        (Some(576), 548),
        (Some(900), 872),
        (Some(1472), 1444),
        (Some(65_280), 1472),
    ];
    for (asked, limit) in cases {
        let mut message = asking(&[200, 201, 202]);
        if let Some(bytes) = asked {
            message = message.with(code::MESSAGE_BYTES_MAX, &bytes.to_be_bytes());
        }
        let reply = offer(scoped(&options, &[], &[]), &message);
        assert!(reply.octets.len() <= limit, "{asked:?}");
        assert!(reply.option(200).is_some(), "{asked:?}: the first fits");
    }
}

// -------------------------------------------------------------------- lease time

#[test]
fn the_lease_is_the_closest_scopes() {
    let cases = [
        // subnet, range, host, with a reservation
        (600, None, None, false, 600),
        (600, Some(300), None, false, 300),
        (600, Some(300), None, true, 600),
        (600, Some(300), Some(120), true, 120),
        (60, None, Some(1200), true, 1200),
    ];
    for (subnet, range, host, reserved, want) in cases {
        let mut config = config();
        config.links[0].subnets[0].lease = secs(subnet);
        config.links[0].subnets[0].ranges[0].lease = range.map(secs);
        if reserved {
            config.reservations.push(Reservation {
                lease: host.map(secs),
                ..reservation(mac(1), ip(50))
            });
        }
        let found = offer(config, &discover(mac(1))).lease();
        assert_eq!(found, want, "{subnet} {range:?} {host:?} {reserved}");
    }
}

#[test]
fn a_client_may_ask_for_less_but_not_for_more() {
    let cases = [
        (None, 600),
        (Some(300), 300),
        (Some(601), 600),
        (Some(u32::MAX), 600),
        (Some(0), 30),
    ];
    for (asked, want) in cases {
        let mut rack = Rack::new(4);
        let with = |message: Message| match asked {
            Some(secs) => message.with(code::LEASE_TIME, &u32::to_be_bytes(secs)),
            None => message,
        };
        let step = rack.send(&with(discover(mac(1))));
        assert_eq!(step.replies[0].lease(), want, "{asked:?}");
        let step = rack.send(&with(request(mac(1), ip(100))));
        // Made durable is what is configured: the next renewals then write nothing.
        let lease::WriteKind::Grant { lease, .. } = &step.write().1.kind else {
            panic!("{:?}", step.write());
        };
        assert_eq!(*lease, secs(600));
        let step = rack.durable(&step);
        assert_eq!(step.reply(), Some((Ack, ip(100))));
        let view = step.replies[0].view();
        assert_eq!(view.lease_secs(), Some(want), "{asked:?}");
        assert_eq!(view.option(58), Some(&(want / 2).to_be_bytes()[..]), "T1");
        assert_eq!(
            view.option(59),
            Some(&(want * 7 / 8).to_be_bytes()[..]),
            "T2"
        );
    }
}

// -------------------------------------------------------------------- echoes and names

#[test]
fn the_client_id_comes_back_in_every_reply() {
    let id: Arc<[u8]> = Arc::from(&[255, 1, 2, 3, 4, 5][..]);
    let with = |message: Message| message.with(code::CLIENT_ID, &id);
    let mut rack = Rack::new(4);
    let step = rack.send(&with(discover(mac(1))));
    assert_eq!(step.replies[0].view().client_id(), Some(&id[..]), "OFFER");
    let step = rack.send(&with(request(mac(1), ip(100))));
    let step = rack.durable(&step);
    assert_eq!(step.replies[0].view().client_id(), Some(&id[..]), "ACK");
    let step = rack.send(&with(init_reboot(mac(1), [10, 1, 1, 1].into())));
    assert_eq!(step.replies[0].view().client_id(), Some(&id[..]), "NAK");
    let step = rack.send(&discover(mac(2)));
    assert_eq!(
        step.replies[0].view().client_id(),
        None,
        "not sent, not answered"
    );
}

#[test]
fn the_hostname_is_the_reservations_then_the_machines_and_never_the_clients() {
    let boot = |hostname| BootReply {
        hostname,
        ..BootReply::default()
    };
    let cases = [
        // reservation's, machine's, by option 12 if asked for
        ("web-1", "node-1", true, Some("web-1")),
        ("", "node-1", true, Some("node-1")),
        ("", "", true, None),
        ("web-1", "node-1", false, None),
    ];
    for (reserved, machine, asked, want) in cases {
        let mut config = config();
        config.reservations.push(Reservation {
            hostname: reserved.into(),
            ..reservation(mac(1), ip(50))
        });
        let list: &[u8] = if asked { &[12] } else { &[6] };
        let message = asking(list).with(code::HOSTNAME, b"my-own-name");
        let mut rack = Rack::with_rows(config, 8, &[]);
        let step = rack.send_octets(&message.octets(), NONE, &boot(machine));
        let found = step.replies[0].view().hostname();
        assert_eq!(found, want.map(str::as_bytes), "{reserved} {machine}");
    }
}

#[test]
fn a_client_id_in_parts_is_read_and_echoed_whole() {
    // One of more than 255 octets is echoed, and its client known by its MAC.
    for (octets, part, is_identity) in [(255, 100, true), (300, 255, false)] {
        let id: Vec<u8> = (0..octets).map(|n| n as u8).collect();
        let mut config = config();
        config.links[0].subnets[0].client_id_identity = is_identity;
        let asks = discover(mac(1)).with(code::MESSAGE_BYTES_MAX, &1400u16.to_be_bytes());
        let asks = id
            .chunks(part)
            .fold(asks, |asks, part| asks.with(code::CLIENT_ID, part));
        let mut rack = Rack::with_rows(config, 8, &[]);
        let step = rack.send(&asks);
        assert_eq!(step.replies[0].option(code::CLIENT_ID), Some(id.clone()));
        let asks = Message {
            kind: Request,
            requested: Some(step.replies[0].address),
            server: Some(SERVER),
            ..asks
        };
        let key = match is_identity {
            true => ClientKey::ClientId(id.into()),
            false => ClientKey::Mac(mac(1).0),
        };
        let WriteKind::Grant { client, .. } = &rack.send(&asks).writes[0].1.kind else {
            panic!("no grant")
        };
        assert_eq!(client.key, key);
    }
}
