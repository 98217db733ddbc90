//! The proxy between real sockets: plain HTTP in front, TLS with client certificates behind.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use super::*;
use crate::attest::tests::{link_of, relayed};
use crate::attest::{Binding, Bindings, Kernel};
use crate::neighbour::Entry;
use crate::work::testing::{Authority, TestPool, TestRegion, dead_region, pool};

struct Bench {
    region: TestRegion,
    links: TestPool,
    bindings: Bindings,
    counters: Arc<WorkCounters>,
    mailbox: mpsc::Sender<HandedOff>,
    proxy: tokio::task::JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.proxy.abort();
    }
}

impl Bench {
    async fn new() -> Self {
        Self::with_room_for(16).await
    }

    async fn with_room_for(connections: usize) -> Self {
        Self::with(connections, connections, 64 << 20).await
    }

    /// Room for so many connections, for those of one source, and for so many octets of strangers.
    async fn with(connections: usize, per_source: usize, bytes: usize) -> Self {
        Self::on(relayed("127.0.0.0/8"), None, connections, per_source, bytes).await
    }

    /// On a link of the rack's own, whose neighbours this kernel knows.
    async fn among_neighbours(kernel: Kernel) -> Self {
        Self::on(link_of("127.0.0.0/8"), Some(kernel), 16, 16, 1 << 20).await
    }

    async fn on(
        link: shard::Link,
        kernel: Option<Kernel>,
        connections: usize,
        per_source: usize,
        bytes: usize,
    ) -> Self {
        let authority = Authority::new();
        let region = TestRegion::start(&authority).await;
        let links = pool(&authority, std::slice::from_ref(&region.region));
        let bindings = Bindings::default();
        let counters = Arc::new(WorkCounters::default());
        let mut snapshot = shard::Snapshot::default();
        snapshot.set_links(vec![link]);
        snapshot.insert_machine(machine());
        let snapshot = Arc::new(snapshot);
        let attester = Attester::new(bindings.clone(), Arc::new(snapshot.into()));
        let (mailbox, inbox) = mpsc::channel(16);
        let proxy = Arc::new(Proxy {
            pool: links.pool.clone(),
            machines: Memory::new(1 << 20, 1 << 20),
            strangers: Memory::new(bytes, 512 << 10),
            turns: Turns::new(ASKING_PER_SOURCE),
            attester: match kernel {
                Some(kernel) => attester.asking(kernel),
                None => attester,
            },
            reports: mpsc::channel(1).0,
            metrics: Arc::new(|ends| {
                // As the rack's own: of this host's loopback only 127.0.0.9 is a stranger here.
                let is_stranger = ends.peer.ip() == std::net::Ipv4Addr::new(127, 0, 0, 9);
                (!is_stranger).then(|| "muster_rack_machines 3\n".to_owned())
            }),
            counters: counters.clone(),
            answer_deadline: Duration::from_secs(2),
        });
        let shares = Shares::new(connections, per_source, Manner::Holds);
        let proxy = tokio::spawn(serve(inbox, proxy, shares));
        Self {
            region,
            links,
            bindings,
            counters,
            mailbox,
            proxy,
        }
    }

    /// A client's connection, of which the shard has read `read` already.
    async fn connect(&self, read: &[u8]) -> TcpStream {
        self.connect_from(1, read).await
    }

    /// From 127.0.0.`last`.
    async fn connect_from(&self, last: u8, read: &[u8]) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::from(([127, 0, 0, last], 0)))
            .unwrap();
        let client = socket
            .connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, peer) = listener.accept().await.unwrap();
        let local = server.local_addr().unwrap();
        let socket = server.into_std().unwrap().into();
        let read = read.to_vec();
        assert!(
            self.mailbox
                .send(HandedOff {
                    socket,
                    ends: shard::Ends {
                        peer,
                        local,
                        frame: None,
                    },
                    source: peer.ip().into(),
                    read
                })
                .await
                .is_ok()
        );
        client
    }

    /// 127.0.0.`last` was given to the card of the machine that the snapshot has.
    fn knows(&self, last: u8) {
        let binding = Binding {
            mac: KNOWN,
            vlan: 5_001,
            end: std::time::Instant::now() + Duration::from_secs(600),
        };
        let address = [127, 0, 0, last].into();
        self.bindings.write().unwrap().insert(address, binding);
    }

    /// Sends the octets, half of them read by the shard, and takes the whole answer.
    async fn ask(&self, request: &str) -> String {
        let (read, rest) = request.as_bytes().split_at(request.len() / 2);
        let mut client = self.connect(read).await;
        client.write_all(rest).await.unwrap();
        answer(&mut client).await
    }

    fn counters(&self) -> &Counters {
        &self.counters.proxy
    }
}

const KNOWN: [u8; 6] = [0x52, 0x54, 0, 0, 9, 9];

fn machine() -> Arc<boot::Machine> {
    Arc::new(boot::Machine {
        system_id: "known1".into(),
        hostname: "known".into(),
        domain: String::new(),
        macs: vec![wire::ethernet::Mac(KNOWN)],
        purpose: boot::Purpose::Local,
        arch: "amd64".into(),
        subarch: "generic".into(),
        osystem: String::new(),
        release: String::new(),
        label: String::new(),
        kernel: String::new(),
        initrd: String::new(),
        squashfs: String::new(),
        extra_options: String::new(),
        ephemeral_options: String::new(),
        boot_window: false,
    })
}

async fn answer(client: &mut TcpStream) -> String {
    let mut octets = Vec::new();
    let read = client.read_to_end(&mut octets);
    timeout(Duration::from_secs(10), read)
        .await
        .expect("the connection is closed")
        .unwrap();
    String::from_utf8(octets).unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n")
}

#[tokio::test]
async fn a_request_reaches_the_region_with_the_racks_word_and_not_the_clients() {
    let bench = Bench::new().await;
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let binding = Binding {
        mac: [0x52, 0x54, 0, 0, 1, 0xfe],
        vlan: 5_001,
        end,
    };
    bench
        .bindings
        .write()
        .unwrap()
        .insert("127.0.0.1".parse().unwrap(), binding);
    let text = bench
        .ask(
            "GET /MAAS/metadata/latest/by-id/abc/?op=get_preseed HTTP/1.1\r\nHost: 10.0.0.1:5248\r\n\
             X-Muster-Client-Mac: aa:aa:aa:aa:aa:aa\r\nx-muster-anything: 1\r\nX-Forwarded-For: 9.9.9.9\r\n\
             Forwarded: for=9.9.9.9\r\nConnection: keep-alive, X-Secret-Hop\r\nX-Secret-Hop: 1\r\n\
             Authorization: OAuth oauth_token=\"t\"\r\nExpect: 100-continue\r\n\r\n",
        )
        .await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert!(
        head.contains("connection: close") && !head.contains("keep-alive"),
        "{head}"
    );
    assert!(head.contains("x-region: yes"));
    assert!(
        body.starts_with("GET /MAAS/metadata/latest/by-id/abc/?op=get_preseed\n"),
        "{body}"
    );
    for line in [
        "x-muster-client-address: 127.0.0.1",
        "x-muster-client-mac: 52:54:00:00:01:fe",
        "x-muster-client-vlan: 5001",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: 10.0.0.1:5248",
        "authorization: OAuth oauth_token=\"t\"",
    ] {
        assert!(
            body.lines().any(|other| other == line),
            "no {line:?} in\n{body}"
        );
    }
    for text in [
        "aa:aa",
        "9.9.9.9",
        "x-muster-anything",
        "x-secret-hop",
        "expect",
    ] {
        assert!(!body.contains(text), "{text} in\n{body}");
    }
    assert_eq!(bench.counters().attested.get(), 1);
}

#[tokio::test]
async fn an_ended_or_unknown_binding_attests_nothing() {
    let bench = Bench::new().await;
    assert!(!bench.ask(&get("/MAAS/a")).await.contains("client-mac"));
    let binding = Binding {
        mac: [1; 6],
        vlan: 1,
        end: std::time::Instant::now(),
    };
    bench
        .bindings
        .write()
        .unwrap()
        .insert("127.0.0.1".parse().unwrap(), binding);
    let text = bench.ask(&get("/MAAS/a")).await;
    assert!(!text.contains("client-mac") && text.contains("x-muster-client-address: 127.0.0.1"));
}

/// Whatever frames a body, the region gets one request with the length of what is here, or none at all.
#[tokio::test]
async fn nothing_is_smuggled_behind_a_request() {
    let bench = Bench::new().await;
    let asked = |bench: &Bench| bench.region.behaviour.requests.load(Ordering::Relaxed);
    let second = "GET /MAAS/second HTTP/1.1\r\nHost: h\r\n\r\n";
    for (fields, rest, body, why) in [
        ("Content-Length: 3\r\n", "abc", Some("abc"), "a length"),
        (
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "abc",
            Some("abc"),
            "the same length twice",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 99\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            Some("abc"),
            "TE and CL",
        ),
        (
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            Some("abc"),
            "CL and TE",
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "3;x=y\r\nabc\r\n0\r\nX-Muster-Client-Mac: 1\r\n\r\n",
            Some("abc"),
            "an extension and a trailer",
        ),
        ("", "", Some(""), "no body at all"),
        (
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "abc",
            None,
            "two lengths",
        ),
        ("Content-Length: +3\r\n", "abc", None, "a sign"),
        (
            "Content-Length: 0x3\r\n",
            "abc",
            None,
            "a hexadecimal length",
        ),
        ("Content-Length: -1\r\n", "", None, "a negative length"),
        (
            "Transfer-Encoding: xchunked\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            None,
            "another coding",
        ),
        (
            "Transfer-Encoding: chunked, identity\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            None,
            "a coding that is not the last",
        ),
        (
            "Transfer-Encoding : chunked\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            None,
            "a space before the colon",
        ),
        (
            "X: y\r\n Transfer-Encoding: chunked\r\n",
            "",
            None,
            "a folded field",
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "-3\r\nabc\r\n0\r\n\r\n",
            None,
            "a negative chunk",
        ),
        (
            "Transfer-Encoding: chunked\r\n",
            "ffffffffffffffff1\r\nabc",
            None,
            "a chunk of more than 64 bits",
        ),
    ] {
        let before = asked(&bench);
        let text = bench
            .ask(&format!(
                "POST /MAAS/first HTTP/1.1\r\nHost: h\r\n{fields}\r\n{rest}{second}"
            ))
            .await;
        assert!(!text.contains("second"), "{why}: {text}");
        let answers = text.matches("HTTP/1.1 ").count();
        assert!(answers <= 1, "{why}: {text}");
        match body {
            Some(body) => {
                assert!(text.starts_with("HTTP/1.1 200 "), "{why}: {text}");
                assert!(text.ends_with(&format!("\n\n{body}")), "{why}: {text}");
                let text = text.to_lowercase();
                let (_, echo) = text.split_once("\r\n\r\n").unwrap();
                assert!(!echo.contains("transfer-encoding"), "{why}: {echo}");
                let lengths = echo.matches("content-length: ").count();
                assert!(lengths <= 1, "{why}: {echo}");
                assert!(!echo.contains("client-mac"), "{why}: {echo}");
                assert_eq!(asked(&bench), before + 1, "{why}");
            }
            None => {
                assert!(!text.starts_with("HTTP/1.1 2"), "{why}: {text}");
                assert_eq!(asked(&bench), before, "{why}");
            }
        }
    }
}

/// A region sees the path as it was sent, and only what is below /MAAS; what the client says of hosts is a hint.
#[tokio::test]
async fn paths_hosts_and_forms_that_deceive_reach_nothing_else() {
    let bench = Bench::new().await;
    for (target, seen) in [
        ("/MAAS", Some("/MAAS")),
        ("/MAAS?op=x", Some("/MAAS?op=x")),
        ("/MAAS/a//b", Some("/MAAS/a//b")),
        // Not resolved here, nor by a region: they name nothing there.
        ("/MAAS/../images/x", Some("/MAAS/../images/x")),
        ("/MAAS/%2e%2e/images/x", Some("/MAAS/%2e%2e/images/x")),
        ("/MAAS/..%2fimages", Some("/MAAS/..%2fimages")),
        ("/MAAS/a;x=1", Some("/MAAS/a;x=1")),
        ("http://other/MAAS/a?b", Some("/MAAS/a?b")),
        ("//MAAS/a", None),
        ("//evil/MAAS/a", None),
        ("/maas/a", None),
        ("/%4dAAS/a", None),
        ("/MAAS;/a", None),
        ("/MAAS%2fa", None),
        ("/MAASX", None),
        ("/images/../MAAS/a", None),
        ("http://other", None),
        ("*", None),
    ] {
        let text = bench.ask(&get(target)).await;
        match seen {
            Some(seen) => {
                let line = format!("\r\n\r\nGET {seen}\n");
                assert!(text.contains(&line), "{target}: {text}");
            }
            None => assert!(text.starts_with("HTTP/1.1 40"), "{target}: {text}"),
        }
    }
    let connect = "CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n";
    assert!(bench.ask(connect).await.starts_with("HTTP/1.1 404 "));
    // The oldest clients name no host: the rack's own address is as good.
    let old = bench.ask("GET /MAAS/a HTTP/1.0\r\n\r\n").await;
    assert!(old.contains(" 200 OK\r\n"), "{old}");
    assert!(old.contains("x-forwarded-host: 127.0.0.1:"), "{old}");
}

/// Hop-by-hop fields go before the rack says its word, so a client cannot name that word for removal; nor add to it.
#[tokio::test]
async fn a_client_neither_removes_nor_adds_to_the_racks_word() {
    let bench = Bench::new().await;
    let binding = Binding {
        mac: [0x52, 0x54, 0, 0, 1, 7],
        vlan: 5_001,
        end: std::time::Instant::now() + Duration::from_secs(60),
    };
    let address = "127.0.0.1".parse().unwrap();
    bench.bindings.write().unwrap().insert(address, binding);
    let text = bench
        .ask(
            "GET /MAAS/a HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 8.8.8.8\r\n\
             X-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 7.7.7.7\r\nForwarded: for=6.6.6.6\r\n\
             X-MUSTER-CLIENT-ADDRESS: 5.5.5.5\r\nX-Muster-Client-Mac: aa:aa:aa:aa:aa:aa\r\n\
             Connection: X-Muster-Client-Mac, X-Muster-Client-Address, X-Forwarded-For, close\r\n\r\n",
        )
        .await;
    let (_, echo) = text.split_once("\r\n\r\n").unwrap();
    for (name, value) in [
        ("x-muster-client-mac", "52:54:00:00:01:07"),
        ("x-muster-client-address", "127.0.0.1"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "h"),
        ("x-forwarded-proto", "http"),
    ] {
        let line = format!("{name}: ");
        let lines: Vec<&str> = echo
            .lines()
            .filter_map(|text| text.strip_prefix(&line))
            .collect();
        assert_eq!(lines, [value], "{name} in {echo}");
    }
    for claim in ["9.9.9.9", "8.8.8.8", "6.6.6.6", "5.5.5.5", "aa:aa", "evil"] {
        assert!(!echo.contains(claim), "{claim} in {echo}");
    }
}

/// "No neighbour" would go to the region unattested, and a preseed would be refused for good.
#[tokio::test]
async fn a_client_whose_neighbour_is_not_known_now_waits_and_is_told_to_come_back() {
    static ASKED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let late = Kernel {
        entry: |_, _| match ASKED.fetch_add(1, Ordering::Relaxed) {
            0 => Err(rustix::io::Errno::NOBUFS.into()),
            1 => Ok(Entry::Asking),
            2 => Ok(Entry::None),
            _ => Ok(Entry::Card([0x52, 0x54, 0, 0, 1, 7])),
        },
        is_direct: |_, _| Ok(true),
    };
    let bench = Bench::among_neighbours(late).await;
    let text = bench.ask(&get("/MAAS/a")).await;
    assert!(
        text.contains("x-muster-client-mac: 52:54:00:00:01:07"),
        "{text}"
    );
    assert_eq!(ASKED.load(Ordering::Relaxed), 4);
    let silent = Kernel {
        entry: |_, _| Ok(Entry::None),
        is_direct: |_, _| Ok(true),
    };
    let bench = Bench::among_neighbours(silent).await;
    let text = bench.ask(&get("/MAAS/a")).await.to_lowercase();
    assert!(
        text.starts_with("http/1.1 503 ") && text.contains("retry-after: "),
        "{text}"
    );
    assert_eq!(bench.region.behaviour.requests.load(Ordering::Relaxed), 0);
    assert_eq!(bench.counters().unclear.get(), 1);
}

/// The address is another's now: whoever still talks from it, over a connection of before, is that other.
#[tokio::test]
async fn a_connection_that_outlives_its_lease_is_disputed() {
    let kernel = Kernel {
        entry: |_, _| Ok(Entry::Card([0x52, 0x54, 0, 0, 1, 7])),
        is_direct: |_, _| Ok(true),
    };
    let bench = Bench::among_neighbours(kernel).await;
    let mut client = bench.connect(b"GET /MAAS/a HTTP/1.1\r\n").await;
    let binding = Binding {
        mac: [0x52, 0x54, 0, 0, 1, 8],
        vlan: 5_001,
        end: std::time::Instant::now() + Duration::from_secs(60),
    };
    let address = "127.0.0.1".parse().unwrap();
    bench.bindings.write().unwrap().insert(address, binding);
    client.write_all(b"Host: h\r\n\r\n").await.unwrap();
    let text = answer(&mut client).await;
    assert!(text.starts_with("HTTP/1.1 403 "), "{text}");
    assert_eq!(bench.region.behaviour.requests.load(Ordering::Relaxed), 0);
    assert_eq!(bench.counters().disputed.get(), 1);
}

#[tokio::test]
async fn bodies_pass_in_both_directions() {
    let bench = Bench::new().await;
    let large = "x".repeat(300_000);
    let request = format!(
        "POST /MAAS/metadata/2012-03-01/ HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{large}",
        large.len()
    );
    let text = bench.ask(&request).await;
    assert!(text.ends_with(&large) && text.contains("content-length: 300000"));
    let text = bench
        .ask("POST /MAAS/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    assert!(text.ends_with("\n\nabc"), "{text}");
    // Both went over one connection to the region.
    assert_eq!(
        bench.region.behaviour.connections.load(Ordering::Relaxed),
        1
    );
}

#[tokio::test]
async fn what_is_not_the_regions_stays_here() {
    let bench = Bench::new().await;
    for path in ["/", "/MAASX", "/images/x"] {
        assert!(
            bench.ask(&get(path)).await.starts_with("HTTP/1.1 404 "),
            "{path}"
        );
    }
    let huge = "POST /MAAS/x HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n";
    assert!(bench.ask(huge).await.starts_with("HTTP/1.1 413 "));
    assert!(
        bench
            .ask("no http at all\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 400 ")
    );
    assert_eq!(bench.region.behaviour.requests.load(Ordering::Relaxed), 0);
    assert_eq!(bench.counters().rejected.get(), 4);
}

#[tokio::test]
async fn another_region_answers_where_one_does_not() {
    let bench = Bench::new().await;
    // Wherever the order starts, the living one is found, also for a POST of which nothing was sent.
    for dead_first in [true, false] {
        let mut regions = vec![bench.region.region.clone(), dead_region(), dead_region()];
        if dead_first {
            regions.rotate_left(1);
        }
        bench.links.regions.send(Arc::from(regions)).unwrap();
        assert!(bench.ask(&get("/MAAS/a")).await.starts_with("HTTP/1.1 200"));
        let post = "POST /MAAS/x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
        assert!(bench.ask(post).await.ends_with("abc"));
    }
    // A region that says 503 is passed over if there is another, else asked again, and in the end believed.
    let authority = Authority::new();
    let second = TestRegion::start(&authority).await; // of another authority: never trusted
    *bench.region.behaviour.status.lock().unwrap() = StatusCode::SERVICE_UNAVAILABLE;
    bench
        .links
        .regions
        .send(Arc::from([bench.region.region.clone()]))
        .unwrap();
    bench.region.behaviour.failing.store(1, Ordering::Relaxed);
    assert!(bench.ask(&get("/MAAS/a")).await.starts_with("HTTP/1.1 200"));
    bench
        .region
        .behaviour
        .failing
        .store(1_000, Ordering::Relaxed);
    assert!(bench.ask(&get("/MAAS/a")).await.starts_with("HTTP/1.1 503"));
    bench.region.behaviour.failing.store(0, Ordering::Relaxed);
    assert_eq!(
        bench.counters().unavailable.get(),
        0,
        "that was the region's own answer"
    );
    bench
        .links
        .regions
        .send(Arc::from([second.region.clone()]))
        .unwrap();
    assert!(bench.ask(&get("/MAAS/a")).await.starts_with("HTTP/1.1 503"));
    assert_eq!(second.behaviour.requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_region_that_restarts_is_waited_for() {
    let bench = Bench::new().await;
    bench
        .links
        .regions
        .send(Arc::from([dead_region()]))
        .unwrap();
    let post = "POST /MAAS/x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
    let (request, body) = (get("/MAAS/a"), post.to_owned());
    let back = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let regions = Arc::from([bench.region.region.clone()]);
        bench.links.regions.send(regions).unwrap();
    };
    let (got, posted, ()) = tokio::join!(bench.ask(&request), bench.ask(&body), back);
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    assert!(posted.ends_with("abc"), "{posted}");
    assert_eq!(bench.counters().unavailable.get(), 0);
}

#[tokio::test]
async fn without_a_region_the_client_is_told_to_come_back() {
    let bench = Bench::new().await;
    for regions in [vec![], vec![dead_region()]] {
        bench.links.regions.send(regions.into()).unwrap();
        let text = bench.ask(&get("/MAAS/a")).await.to_lowercase();
        assert!(
            text.starts_with("http/1.1 503 ") && text.contains("retry-after: "),
            "{text}"
        );
    }
    // A region that hangs: the deadline of 2 s ends it.
    bench
        .links
        .regions
        .send(Arc::from([bench.region.region.clone()]))
        .unwrap();
    *bench.region.behaviour.delay.lock().unwrap() = Duration::from_secs(30);
    let begin = Instant::now();
    assert!(bench.ask(&get("/MAAS/a")).await.starts_with("HTTP/1.1 503"));
    assert!(begin.elapsed() < Duration::from_secs(4));
    // Before it is enrolled a rack has no certificate.
    bench.links.tls.send(None).unwrap();
    assert!(bench.ask(&get("/MAAS/a")).await.starts_with("HTTP/1.1 503"));
    assert_eq!(bench.counters().unavailable.get(), 4);
}

#[tokio::test]
async fn connections_are_bounded_and_slow_heads_end() {
    let bench = Bench::with_room_for(2).await;
    let _first = bench.connect(b"GET /MAAS/a HT").await;
    let mut second = bench.connect(b"GET /MAAS/a HT").await;
    let mut third = bench.connect(get("/MAAS/a").as_bytes()).await;
    assert!(answer(&mut third).await.starts_with("HTTP/1.1 503 "));
    assert_eq!(bench.counters().refused.get(), 1);
    let mut octets = Vec::new();
    let ended = timeout(
        HEAD_TIMEOUT + Duration::from_secs(3),
        second.read_to_end(&mut octets),
    );
    ended
        .await
        .expect("a head that never comes ends the connection")
        .unwrap();
    assert!(bench.ask(&get("/MAAS/a")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_region_has_at_most_32_connections() {
    let bench = Bench::with_room_for(200).await;
    *bench.region.behaviour.delay.lock().unwrap() = Duration::from_millis(50);
    let request = get("/MAAS/a");
    let mut clients = Vec::new();
    for last in 1..=100 {
        clients.push(bench.connect_from(last, request.as_bytes()).await);
    }
    for client in &mut clients {
        assert!(answer(client).await.starts_with("HTTP/1.1 200"));
    }
    let most = bench.region.behaviour.open_most.load(Ordering::Relaxed);
    let connections = bench.region.behaviour.connections.load(Ordering::Relaxed);
    assert!((8..=32).contains(&most), "{most}");
    assert!(connections <= 32, "{connections}");
}

/// Forty POSTs whose bodies hardly come: they hold no lane to a region, so all others are answered at once, and each ends
/// by its own slowness.
#[tokio::test]
async fn slow_bodies_take_no_lane_of_a_region() {
    let bench = Bench::with_room_for(200).await;
    let slow =
        "POST /MAAS/metadata/2012-03-01/ HTTP/1.1\r\nHost: h\r\nContent-Length: 900\r\n\r\n1";
    let mut posts = Vec::new();
    for _ in 0..40 {
        posts.push(bench.connect(slow.as_bytes()).await);
    }
    for _ in 0..20 {
        assert!(bench.ask(&get("/MAAS/a")).await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(bench.region.behaviour.open_most.load(Ordering::Relaxed), 1);
    let asked = bench.region.behaviour.requests.load(Ordering::Relaxed);
    assert_eq!(asked, 20, "the region hears of whole requests only");
    for mut post in posts {
        // An octet now and then buys no time.
        post.write_all(b"2").await.unwrap();
        let mut octets = Vec::new();
        let ended = timeout(Duration::from_secs(30), post.read_to_end(&mut octets));
        ended.await.expect("it ends").unwrap();
        assert!(octets.starts_with(b"HTTP/1.1 408 "));
    }
    assert_eq!(bench.counters().slow.get(), 40);
}

/// Clients that take nothing of a long answer hold no lane either.
#[tokio::test]
async fn slow_takers_take_no_lane_of_a_region() {
    let bench = Bench::with_room_for(200).await;
    let large = "x".repeat(400_000);
    let post = format!(
        "POST /MAAS/x HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{large}",
        large.len()
    );
    let mut silent = Vec::new();
    for last in 1..=40 {
        let mut client = bench.connect_from(last, b"").await;
        let socket = socket2::SockRef::from(&client);
        socket.set_recv_buffer_size(4_096).unwrap();
        client.write_all(post.as_bytes()).await.unwrap();
        silent.push(client);
    }
    let counters = bench.counters();
    let deadline = Instant::now() + Duration::from_secs(10);
    while counters.answered.get() < 40 {
        assert!(
            Instant::now() < deadline,
            "{} answered",
            counters.answered.get()
        );
        sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        assert!(bench.ask(&get("/MAAS/a")).await.starts_with("HTTP/1.1 200"));
    }
}

/// What bodies hold is bounded in all and for each source; small ones go on.
#[tokio::test]
async fn bodies_have_a_budget_and_small_ones_need_none() {
    let bench = Bench::with(200, 200, 1 << 20).await;
    let head = |bytes: usize| {
        format!("POST /MAAS/x HTTP/1.1\r\nHost: h\r\nContent-Length: {bytes}\r\n\r\n")
    };
    // Beyond a source's share at once; beyond it by and by; and beyond all.
    let mut large = bench.connect(head(600 << 10).as_bytes()).await;
    assert!(answer(&mut large).await.starts_with("HTTP/1.1 413 "));
    let mut held = Vec::new();
    for last in 1..=3 {
        let mut client = bench.connect_from(last, head(400_000).as_bytes()).await;
        client.write_all(&vec![b'x'; 399_999]).await.unwrap();
        held.push(client);
    }
    let mut refused = 0;
    let mut waiting = Vec::new();
    for mut client in held {
        let mut octets = [0; 12];
        match timeout(Duration::from_millis(500), client.read_exact(&mut octets)).await {
            Ok(read) => {
                read.unwrap();
                assert_eq!(&octets, b"HTTP/1.1 503");
                refused += 1;
            }
            Err(_) => waiting.push(client),
        }
    }
    assert!(refused >= 1 && !waiting.is_empty(), "{refused} refused");
    assert_eq!(bench.counters().no_memory.get(), refused);
    let small = format!("{}{}", head(1_000), "y".repeat(1_000));
    assert!(bench.ask(&small).await.ends_with("yyy"));
    // The last octet makes the others' whole, and gives their memory back.
    for mut client in waiting {
        client.write_all(b"x").await.unwrap();
        assert!(answer(&mut client).await.ends_with("xxx"));
    }
    let again = format!("{}{}", head(400_000), "z".repeat(400_000));
    assert!(bench.ask(&again).await.ends_with("zzz"));
}

/// A source has a share of the connections; a source with fewer displaces the oldest of the one with the most.
#[tokio::test]
async fn connections_have_a_share_per_source() {
    let bench = Bench::with(6, 4, 1 << 20).await;
    let mut first = bench.connect_from(1, b"GET /MAAS/a HT").await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(bench.connect_from(1, b"GET /MAAS/a HT").await);
    }
    let mut beyond = bench.connect_from(1, get("/MAAS/a").as_bytes()).await;
    assert!(answer(&mut beyond).await.starts_with("HTTP/1.1 503 "));
    let _second = bench.connect_from(2, b"GET").await;
    let _third = bench.connect_from(3, b"GET").await;
    let mut fourth = bench.connect_from(4, get("/MAAS/a").as_bytes()).await;
    assert!(answer(&mut fourth).await.starts_with("HTTP/1.1 200 "));
    let mut octets = Vec::new();
    let ended = timeout(Duration::from_secs(2), first.read_to_end(&mut octets));
    let _ = ended.await.expect("the oldest of the first source went");
    assert_eq!(
        (
            bench.counters().refused.get(),
            bench.counters().displaced.get()
        ),
        (1, 1)
    );
}

/// Addresses are cheap: with one for each place a host keeps out other strangers, and no machine that the region knows.
#[tokio::test]
async fn a_known_machine_is_passed_on_though_many_addresses_hold_every_connection() {
    let bench = Bench::with(3, 4, 1 << 20).await;
    bench.knows(9);
    let mut first = bench.connect_from(1, b"GET /MAAS/a HT").await;
    let _second = bench.connect_from(2, b"GET").await;
    let _third = bench.connect_from(3, b"GET").await;
    let mut stranger = bench.connect_from(4, get("/MAAS/a").as_bytes()).await;
    assert!(answer(&mut stranger).await.starts_with("HTTP/1.1 503 "));
    let mut known = bench.connect_from(9, get("/MAAS/a").as_bytes()).await;
    assert!(answer(&mut known).await.starts_with("HTTP/1.1 200 "));
    let mut octets = Vec::new();
    let ended = timeout(Duration::from_secs(2), first.read_to_end(&mut octets));
    let _ = ended.await.expect("the oldest stranger went");
}

/// A region that answers slowly to one source, or to strangers, answers the others meanwhile.
#[tokio::test]
async fn one_source_has_a_few_requests_at_the_regions_at_a_time() {
    let bench = Bench::with_room_for(200).await;
    *bench.region.behaviour.delay.lock().unwrap() = Duration::from_millis(300);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(bench.connect_from(1, get("/MAAS/a").as_bytes()).await);
    }
    let mut other = bench.connect_from(2, get("/MAAS/b").as_bytes()).await;
    assert!(answer(&mut other).await.starts_with("HTTP/1.1 200 "));
    let asked = bench.region.behaviour.requests.load(Ordering::Relaxed);
    assert!(asked <= 2 * ASKING_PER_SOURCE as u32 + 1, "{asked}");
    let most = bench.region.behaviour.open_most.load(Ordering::Relaxed);
    assert!(most <= ASKING_PER_SOURCE as u32 + 1, "{most}");
}
