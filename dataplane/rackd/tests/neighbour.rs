//! Whose card is behind an address, as a real kernel says it: two network namespaces, the rack's questions in the one, a
//! host in the other that answers, is silent, is somebody else, and goes.

mod support;

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rackd::attest::{Attester, Binding, Bindings, Card, Unclear, Verdict};
use shard::Snapshot;
use support::{HOST, Wire, enter, ip};

const VLAN: u32 = 5001;
const RACK: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);

/// The whole of 10.66/16 is the link's subnet, of which the device has 10.66.0/24 and a router the rest.
fn snapshot(device: u32) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_links(vec![shard::Link {
        dhcp: dhcp::Link {
            vlan: VLAN,
            server: RACK,
            mtu: 1500,
            mode: dhcp::Mode::Serve,
            rack: 1,
            peers: vec![],
            subnets: vec![dhcp::Subnet {
                id: 1,
                net: "10.66.0.0/16".parse().unwrap(),
                gateway: None,
                dns: vec![],
                ntp: vec![],
                domain: String::new(),
                lease: Duration::from_secs(600),
                ranges: vec![],
                disabled_archs: vec![],
                client_id_identity: false,
                options: [].into(),
            }],
        },
        interface: "eth0".into(),
        index: Some(device),
    }]);
    snapshot
}

/// Asks until the kernel's answer is this one.
fn until<T: PartialEq + std::fmt::Debug>(want: &T, mut ask: impl FnMut() -> T) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let got = ask();
        if got == *want {
            return;
        }
        assert!(Instant::now() < deadline, "{got:?} and not {want:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_neighbour_is_somebody_nobody_or_not_known_now() {
    let Some(wire) = Wire::new() else { return };
    let (rack, host, mac) = (wire.rack.clone(), wire.host.clone(), wire.mac().0);
    let test = move || {
        enter(&rack);
        let on_rack = |arguments: &str| ip(&format!("-n {rack} {arguments}")).unwrap();
        let on_host = |arguments: &str| ip(&format!("-n {host} {arguments}")).unwrap();
        on_rack(&format!("address add {RACK}/24 dev eth0"));
        on_rack(&format!("route add 10.66.1.0/24 via {HOST}"));
        let device = uring::interface_index("eth0").unwrap();
        let bindings = Bindings::default();
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot(device)));
        let attester = Attester::new(bindings.clone(), snapshot);
        let now = Instant::now();
        let address = IpAddr::from(HOST);
        let attest = |frame| attester.attest(address, frame, now);
        let card = Verdict::Card(Card { mac, vlan: VLAN });

        // Never heard of: no proof of anything, and for a client of TCP no word at all.
        assert_eq!(attester.card(address, now), Ok(None));
        assert_eq!(attest(None), Verdict::Unclear);
        // Behind a router, and this host itself: nobody is a neighbour there.
        let routed = IpAddr::from([10, 66, 1, 5]);
        assert_eq!(attester.attest(routed, Some([7; 6]), now), Verdict::Unknown);
        assert_eq!(attester.attest(RACK.into(), None, now), Verdict::Unknown);

        // A connection makes it known.
        let listener = TcpListener::bind((RACK, 0)).unwrap();
        let to = listener.local_addr().unwrap();
        let namespace = host.clone();
        let client = std::thread::spawn(move || {
            enter(&namespace);
            TcpStream::connect(to).unwrap()
        });
        let (_server, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), address);
        let _client = client.join().unwrap();
        until(&card, || attest(Some(mac)));
        assert_eq!(attester.card(address, now), Ok(Some(mac)));

        // Gratuitous ARP in the middle of the connection: the frame that opened it still speaks.
        on_rack(&format!(
            "neigh replace {HOST} lladdr 52:54:00:66:66:66 dev eth0"
        ));
        assert!(matches!(attest(Some(mac)), Verdict::Disputed(_)));

        // It answers no ARP any more, and is asked: not known now. A frame that contradicts a lease does all the same.
        on_host("link set eth0 arp off");
        on_rack(&format!("neigh delete {HOST} dev eth0"));
        let udp = UdpSocket::bind((RACK, 0)).unwrap();
        udp.send_to(b"x", (HOST, 9)).unwrap();
        until(&Err(Unclear), || attester.card(address, now));
        assert_eq!(attest(Some(mac)), Verdict::Unclear);
        let binding = Binding {
            mac: [0xaa; 6],
            vlan: VLAN,
            end: now + Duration::from_secs(60),
        };
        bindings.write().unwrap().insert(address, binding);
        assert!(matches!(attest(Some(mac)), Verdict::Disputed(_)));
        bindings.write().unwrap().clear();
        // The kernel gives up: still nobody that can be named, and no reason to believe that there is nobody.
        until(&Ok(None), || attester.card(address, now));
        assert_eq!(attest(Some(mac)), Verdict::Unclear);

        // The device is gone.
        on_rack("link delete eth0");
        assert_eq!(attester.card(address, now), Err(Unclear));
        assert_eq!(attest(Some(mac)), Verdict::Unclear);
    };
    std::thread::spawn(test).join().unwrap();
}

/// Opens a connection in the way that its first argument says, and holds it until its input ends.
const CLIENT: &str = r#"
import socket, struct, sys
kind, to, port, rack = sys.argv[1], sys.argv[2], int(sys.argv[3]), bytes.fromhex(sys.argv[4])

def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    total += total >> 16
    return struct.pack("!H", ~total & 0xffff)

def by_hand():
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    wire.bind(("eth0", 0x0800))
    wire.settimeout(10)
    own = wire.getsockname()[4]
    source, target = socket.inet_aton("10.66.0.77"), socket.inet_aton(to)

    def tcp(seq, ack, flags, options=b""):
        offset = (20 + len(options)) // 4 << 4
        head = struct.pack("!HHIIBBHHH", 4000, port, seq, ack, offset, flags, 65000, 0, 0) + options
        pseudo = source + target + struct.pack("!HH", 6, len(head))
        return head[:16] + checksum(pseudo + head) + head[18:]

    def send(payload, at, more):
        place = (0x2000 if more else 0) | at // 8
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 77, place, 64, 6, 0) + source + target
        head = head[:10] + checksum(head) + head[12:]
        wire.send(rack + own + b"\x08\x00" + head + payload)

    syn = tcp(1000, 0, 0x02, b"\x01" * 20)
    send(syn[:24], 0, True)
    send(syn[24:], 24, False)
    while True:
        frame = wire.recv(2000)
        if frame[23] == 6 and frame[30:34] == source and frame[47] == 0x12:
            break
    seq = struct.unpack("!I", frame[38:42])[0]
    send(tcp(1001, (seq + 1) & 0xffffffff, 0x10), 0, False)
    return wire

if kind == "fragments":
    held = by_hand()
else:
    held = socket.socket()
    if kind == "options":
        held.setsockopt(socket.IPPROTO_IP, 4, b"\x01" * 40)
    if kind == "fastopen":
        held.sendto(b"GET", 0x20000000, (to, port))
    else:
        held.connect((to, port))
sys.stdin.read()
"#;

/// A SYN full of options, in fragments, with octets behind it, or with a VLAN's tag: it is read from whom it came.
#[test]
fn the_frame_that_opened_a_connection_is_its_senders_in_whatever_shape() {
    let Some(wire) = Wire::new() else { return };
    let (rack, host, mac) = (wire.rack.clone(), wire.host.clone(), wire.mac());
    let test = move || {
        enter(&rack);
        let on_rack = |arguments: &str| ip(&format!("-n {rack} {arguments}"));
        let on_host = |arguments: &str| ip(&format!("-n {host} {arguments}"));
        on_rack(&format!("address add {RACK}/24 dev eth0")).unwrap();
        // The client by hand answers no ARP.
        on_rack(&format!("neigh replace 10.66.0.77 lladdr {mac} dev eth0")).unwrap();
        let mut ways = vec![
            ("plain", RACK),
            ("options", RACK),
            ("fastopen", RACK),
            ("fragments", RACK),
        ];
        let tagged = on_rack("link add link eth0 name eth0.5 type vlan id 5")
            .and_then(|()| on_rack("address add 10.67.0.1/24 dev eth0.5"))
            .and_then(|()| on_rack("link set eth0.5 up"))
            .and_then(|()| on_host("link add link eth0 name eth0.5 type vlan id 5"))
            .and_then(|()| on_host("address add 10.67.0.9/24 dev eth0.5"))
            .and_then(|()| on_host("link set eth0.5 up"));
        match tagged {
            Ok(()) => ways.push(("plain", Ipv4Addr::new(10, 67, 0, 1))),
            Err(error) => eprintln!("no VLAN here: {error}"),
        }
        let places = uring::Places {
            dhcp: None,
            proxy_dhcp: None,
            tftp: None,
            http: Some("0.0.0.0:0".parse().unwrap()),
        };
        let listening = uring::open(&places, 1).unwrap().remove(0).http.unwrap();
        let listener = TcpListener::from(listening);
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let (_, own) = uring::open_arp(uring::interface_index("eth0").unwrap()).unwrap();
        let own: String = own.iter().map(|octet| format!("{octet:02x}")).collect();
        for (kind, to) in ways {
            let mut client = std::process::Command::new("ip")
                .args(["netns", "exec", &host, "/usr/bin/python3", "-c", CLIENT])
                .args([kind, &to.to_string(), &port, &own])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            let (server, peer) = loop {
                match listener.accept() {
                    Ok(accepted) => break accepted,
                    Err(error) => assert!(Instant::now() < deadline, "{kind}: {error}"),
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            assert_eq!(uring::opened_by(&server), Some(mac.0), "{kind} by {peer}");
            drop(client.stdin.take());
            client.wait().unwrap();
        }
    };
    std::thread::spawn(test).join().unwrap();
}
