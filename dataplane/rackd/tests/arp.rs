//! ARP probes on a real wire: two network namespaces, a host that answers in one of them, the rack's prober and the
//! DHCP engine in the other.

mod support;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhcp::{BootReply, Engine, EventKind, Limits, Out, Outbox, Probed, Received, Sent};
use lease::{Block, BlockId, Epoch};
use rackd::work::Counters;
use rackd::work::arp::{self, Answer, Ask};
use shard::Snapshot;
use support::{HOST, Wire, enter};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use wire::dhcp4::{Header, MessageType, OP_REQUEST, View, Writer};
use wire::ethernet::Mac;

const VLAN: u32 = 5001;

/// Runs `test` on a thread inside the rack's namespace, with a prober beside it. Says why if there can be none.
fn on_a_wire<F: Future<Output = ()>>(
    test: impl FnOnce(u32, Mac, mpsc::Sender<Ask>, mpsc::Receiver<Answer>, Arc<Counters>) -> F
    + Send
    + 'static,
) {
    let Some(wire) = Wire::new() else { return };
    let (namespace, mac) = (wire.rack.clone(), wire.mac());
    let run = move || {
        enter(&namespace);
        let device = uring::interface_index("eth0").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async move {
            let (asks, inbox) = mpsc::channel(64);
            let (answers, outbox) = mpsc::channel(64);
            let counters = Arc::<Counters>::default();
            tokio::task::spawn_local(arp::run(inbox, answers, counters.clone()));
            test(device, mac, asks, outbox, counters).await;
        });
    };
    std::thread::spawn(run).join().unwrap();
}

async fn answer(answers: &mut mpsc::Receiver<Answer>) -> Answer {
    let answer = tokio::time::timeout(Duration::from_secs(10), answers.recv());
    answer.await.expect("in time").expect("the prober runs")
}

#[test]
fn a_host_that_answers_is_found_and_silence_is_free() {
    on_a_wire(|device, mac, asks, mut answers, counters| async move {
        let ask = |last, interface| Ask {
            shard: 3,
            probe: dhcp::Probe {
                vlan: VLAN,
                address: [10, 66, 0, last].into(),
            },
            interface,
        };
        let start = Instant::now();
        for last in [9, 10, 11] {
            asks.send(ask(last, device)).await.unwrap();
        }
        let first = answer(&mut answers).await;
        assert_eq!((first.shard, first.probe.address), (3, HOST));
        assert_eq!(first.probed, Probed::InUse(mac));
        for last in [10, 11] {
            let silent = answer(&mut answers).await;
            assert_eq!(silent.probe.address, Ipv4Addr::new(10, 66, 0, last));
            assert_eq!(silent.probed, Probed::Unused);
        }
        let took = start.elapsed();
        assert!(
            took >= Duration::from_millis(500),
            "{took:?}: they were listened for"
        );
        // Again, after the device's socket was closed.
        tokio::time::sleep(Duration::from_secs(3)).await;
        asks.send(ask(9, device)).await.unwrap();
        assert_eq!(answer(&mut answers).await.probed, Probed::InUse(mac));
        // A device that is not there.
        asks.send(ask(9, 65_000)).await.unwrap();
        assert_eq!(answer(&mut answers).await.probed, Probed::Unknown);
        let arp = &counters.arp;
        assert_eq!(
            (arp.asked.get(), arp.in_use.get(), arp.failed.get()),
            (5, 2, 1)
        );
    });
}

fn snapshot(device: u32) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_links(vec![shard::Link {
        dhcp: dhcp::Link {
            vlan: VLAN,
            server: [10, 66, 0, 1].into(),
            mtu: 1500,
            mode: dhcp::Mode::Serve,
            rack: 1,
            peers: vec![],
            subnets: vec![dhcp::Subnet {
                id: 1,
                net: "10.66.0.0/24".parse().unwrap(),
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

fn discover(number: u8, buffer: &mut [u8]) -> usize {
    let mut header = Header::new(OP_REQUEST);
    (header.htype, header.hlen) = (1, 6);
    header.chaddr[..6].copy_from_slice(&[0x52, 0x54, 0, 0, 2, number]);
    let writer = Writer::new(buffer, 576, &header, MessageType::Discover);
    writer.unwrap().finish()
}

/// The engine asks ahead of demand; the address of the host that answers is dealt to nobody.
#[test]
fn an_address_in_use_is_not_dealt() {
    on_a_wire(|device, mac, asks, mut answers, _| async move {
        let snapshot = snapshot(device);
        let now = Instant::now();
        let limits = Limits {
            probe_stock: 16,
            ..Limits::default()
        };
        let mut engine = Engine::new(dhcp::Shard { index: 0, count: 1 }, limits, 7, now);
        let block = Block {
            id: BlockId(1),
            epoch: Epoch(1),
            vlan: VLAN,
            subnet: 1,
            first: [10, 66, 0, 8].into(),
            count: 8,
        };
        let until = now + Duration::from_secs(3600);
        engine.attach(&[block], &[], until, now, &snapshot, now);
        let mut out = Outbox::new(16);
        let mut asked = 0;
        while let Some(probe) = engine.next_probe(&snapshot, Instant::now()) {
            let ask = Ask {
                shard: 0,
                probe,
                interface: device,
            };
            asks.send(ask).await.unwrap();
            asked += 1;
        }
        assert_eq!(asked, 8);
        for _ in 0..asked {
            let Answer { probe, probed, .. } = answer(&mut answers).await;
            engine.on_probed(probe.vlan, probe.address, probed, Instant::now(), &mut out);
        }
        let events: Vec<_> = out
            .drain()
            .0
            .filter_map(|item| match item {
                Out::Event(event) => Some((event.kind, event.address, event.mac)),
                _ => None,
            })
            .collect();
        assert_eq!(events, [(EventKind::AddressInUse, HOST, Some(mac))]);
        let mut offered = vec![];
        for number in 0..4 {
            let mut buffer = [0; 576];
            let length = discover(number, &mut buffer);
            let query = View::parse(&buffer[..length]).unwrap();
            let received = Received {
                link: &snapshot.links()[0].dhcp,
                source: Ipv4Addr::UNSPECIFIED,
                destination: Ipv4Addr::BROADCAST,
                sender: dhcp::Sender::Frame,
            };
            let boot = BootReply::default();
            engine.on_message(
                &query,
                &received,
                &boot,
                &snapshot,
                Instant::now(),
                &mut out,
            );
            let (items, octets) = out.drain();
            for item in items {
                if let Out::Reply(reply) = item {
                    let view = View::parse(reply.payload(octets)).unwrap();
                    offered.push(view.yiaddr());
                }
            }
        }
        // Strangers get half of eight; none of them the host's.
        let want: Vec<Ipv4Addr> = [8, 10, 11, 12].map(|last| [10, 66, 0, last].into()).into();
        assert_eq!(offered, want);
        assert_eq!(engine.counters().sent(Sent::OfferUnprobed), 0);
    });
}
