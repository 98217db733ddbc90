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
