//! TFTP through the real ring, on loopback.

mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use shard::{BootAnswer, BootQuery, ToLink, ToShard};
use support::*;
use wire::ethernet::Mac;
use wire::tftp::{ErrorCode, Options, Packet};

fn options(block: Option<u16>, window: Option<u16>) -> Options {
    Options {
        block_bytes: block,
        window_blocks: window,
        transfer_bytes: Some(0),
        ..Options::default()
    }
}

#[test]
fn files_arrive_whole_in_every_shape() {
    let (small, large) = (content(1024), content(3_800_001));
    let rack = Rack::start(
        snapshot(&[("small", &small), ("large", &large), ("empty", b"")], &[]),
        Setup {
            shards: 2,
            ..Setup::default()
        },
    );
    for place in ["127.0.0.1", "127.0.0.2"] {
        for (block, window) in [
            (None, None),
            (Some(1432), None),
            (Some(1468), Some(4)),
            (Some(512), Some(4)),
            (Some(1468), Some(16)),
        ] {
            // Another client port each time: both shards get their share.
            let socket = tftp_socket("127.0.0.1:0");
            let server = SocketAddr::new(place.parse().unwrap(), rack.tftp.port());
            let asked = options(block, window);
            for (name, want) in [("small", &small), ("/large", &large), ("empty", &vec![])] {
                let got = download(&socket, server, name, asked).unwrap();
                assert!(
                    got == *want,
                    "{name} by {block:?} x {window:?} from {place}"
                );
            }
        }
    }
    let socket = tftp_socket("127.0.0.1:0");
    for (name, want) in [
        ("nothing", ErrorCode::FileNotFound),
        ("../etc/passwd", ErrorCode::AccessViolation),
        ("pxelinux.cfg/0A6300C1", ErrorCode::FileNotFound),
    ] {
        assert_eq!(
            download(&socket, rack.tftp, name, Options::default()),
            Err(want),
            "{name}"
        );
    }
    let stats: Vec<_> = {
        rack.stats();
        rack.shards.iter().map(|shard| shard.stats.get()).collect()
    };
    let finished: u64 = stats.iter().map(|stats| stats.tftp.finished).sum();
    assert_eq!(finished, 30);
    assert!(
        stats.iter().all(|stats| stats.driver.sends_failed == 0),
        "{stats:?}"
    );
    assert_eq!(
        stats
            .iter()
            .map(|stats| stats.driver.trains_split)
            .sum::<u64>(),
        0
    );
    rack.stop();
}

#[test]
fn ipv6_clients_are_served_too() {
    let file = content(100_000);
    let rack = Rack::start(snapshot(&[("f", &file)], &[]), Setup::default());
    let socket = tftp_socket("[::1]:0");
    let server: SocketAddr = format!("[::1]:{}", rack.tftp.port()).parse().unwrap();
    assert!(download(&socket, server, "f", options(Some(1468), Some(8))).unwrap() == file);
    rack.stop();
}

/// An independent client.
#[test]
fn curl_downloads_by_tftp() {
    let version = Command::new("curl").arg("--version").output();
    if !version.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(" tftp")) {
        eprintln!("skipped: no curl with TFTP here");
        return;
    }
    let file = content(500_000);
    let mut rack = Rack::start(snapshot(&[("lpxelinux.0", &file)], &[]), Setup::default());
    for block in ["512", "1468"] {
        let out = Command::new("curl")
            .args(["-s", "--max-time", "20", "--tftp-blksize", block])
            .arg(format!("tftp://{}/lpxelinux.0", rack.tftp))
            .output()
            .unwrap();
        assert!(
            out.stdout == file,
            "{block}: {:?} {}",
            out.status,
            out.stdout.len()
        );
        let event = rack.event("LOADER_SERVED");
        assert_eq!(
            event.detail.to_string(),
            "lpxelinux.0 500000 octets by TFTP"
        );
        assert_eq!(event.address, std::net::IpAddr::from([127, 0, 0, 1]));
    }
    rack.stop();
}

/// OVMF: size probe, ERROR 8, and the real request from the same port. And a client that lost its power in
/// mid-transfer, and asks again from the same port.
#[test]
fn the_same_port_may_begin_again() {
    let file = content(1_000_000);
    let rack = Rack::start(snapshot(&[("f", &file)], &[]), Setup::default());
    let socket = tftp_socket("127.0.0.1:0");
    let asked = options(Some(1468), Some(4));
    let mut buffer = [0; 2048];
    for abort in [true, false] {
        socket
            .send_to(&read_request("f", asked), rack.tftp)
            .unwrap();
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        let Ok(Packet::Oack(agreed)) = Packet::parse(&buffer[..length]) else {
            panic!()
        };
        assert_eq!(agreed.transfer_bytes, Some(1_000_000));
        if abort {
            send_error(&socket, from);
        } else {
            socket.send_to(&[0, 4, 0, 0], from).unwrap();
            for number in 1..=4 {
                socket.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..4], [0, 3, 0, number]);
            }
        }
    }
    assert!(download(&socket, rack.tftp, "f", asked).unwrap() == file);
    rack.stop();
}

#[test]
fn a_loader_that_is_on_its_way_is_waited_for() {
    let file = content(5_000);
    let mut with = snapshot(&[], &[]);
    let loader = Arc::new(shard::Loader::absent([5; 32]));
    with.loaders
        .insert("bootx64.efi".into(), Arc::clone(&loader));
    let mut rack = Rack::start(with, Setup::default());
    let server = rack.tftp;
    let client = std::thread::spawn(move || {
        download(
            &tftp_socket("127.0.0.1:0"),
            server,
            "bootx64.efi",
            options(None, None),
        )
    });
    let wanted = rack.next_to_work(|message| match message {
        shard::ToWork::Want(sha256) => Some(sha256),
        _ => None,
    });
    assert_eq!(wanted, [5; 32]);
    loader.bytes.set(file.clone().into()).unwrap();
    rack.work[0].to_shard.push(ToShard::Progress).unwrap();
    assert!(client.join().unwrap().unwrap() == file);
    rack.stop();
}

fn machine() -> boot::Machine {
    boot::Machine {
        system_id: "abc123".into(),
        hostname: "node-1".into(),
        domain: "maas".into(),
        macs: vec![Mac([0x52, 0x54, 0, 0, 1, 0])],
        purpose: boot::Purpose::Local,
        arch: "amd64".into(),
        subarch: "generic".into(),
        osystem: "ubuntu".into(),
        release: "noble".into(),
        label: "stable".into(),
        kernel: String::new(),
        initrd: String::new(),
        squashfs: String::new(),
        extra_options: String::new(),
        ephemeral_options: String::new(),
        boot_window: true,
    }
}

/// One call to the region serves every request of that machine; its answer is kept.
#[test]
fn an_unknown_machine_costs_one_call() {
    let mut rack = Rack::start(snapshot(&[], &[]), Setup::default());
    let server = rack.tftp;
    let ask = move || {
        let socket = tftp_socket("127.0.0.1:0");
        download(
            &socket,
            server,
            "/grub/grub.cfg-52:54:00:00:01:00",
            options(Some(1024), None),
        )
    };
    let clients = [std::thread::spawn(ask), std::thread::spawn(ask)];
    let (ticket, query) = rack.next_to_link(|message| match message {
        ToLink::BootConfig { ticket, query } => Some((ticket, query)),
        _ => None,
    });
    let want = BootQuery {
        mac: Some([0x52, 0x54, 0, 0, 1, 0]),
        arch: String::new(),
        address: [127, 0, 0, 1].into(),
        vlan: 0,
    };
    assert_eq!(query, want);
    std::thread::sleep(std::time::Duration::from_millis(100)); // for the second client to wait as well
    let answer = BootAnswer::Machine(Arc::new(machine()));
    rack.tell(0, ToShard::Machine { ticket, answer });
    let scripts = clients.map(|client| client.join().unwrap().unwrap());
    assert!(!scripts[0].is_empty() && scripts[0] == scripts[1]);
    assert_eq!(ask().unwrap(), scripts[0]);
    assert_eq!(
        rack.event("BOOT_PARAMETERS").detail.to_string(),
        "local from the region"
    );
    while let Some(message) = rack.link[0].from_shard.pop() {
        assert!(!matches!(message, ToLink::BootConfig { .. }), "asked again");
    }
    // GRUB's first script needs nobody.
    let preloader = download(
        &tftp_socket("127.0.0.1:0"),
        server,
        "grub/grub.cfg",
        options(None, None),
    );
    assert!(
        String::from_utf8(preloader.unwrap())
            .unwrap()
            .contains("grub.cfg-")
    );
    rack.stop();
}
