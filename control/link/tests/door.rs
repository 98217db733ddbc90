//! The rack-facing ports against strangers, revoked racks and malformed bytes, with a real database.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use axum::routing::get;
use axum::{Extension, Router};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use futures::AsyncReadExt as _;
use link::https::{self, RackIdentity};
use link::{LinkConfig, LinkError, PowerCommand, PowerOperation, Racks};
use rcgen::{CertificateParams, KeyPair};
use rpc::muster_capnp::{door, rack, session};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use store::seal::Sealer;
use store::testing::TestDatabase;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio_util::compat::TokioAsyncReadCompatExt as _;
use tokio_util::sync::CancellationToken;

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

// ---------------------------------------------------------------- a region, and a client made by hand

struct Region {
    db: TestDatabase,
    racks: Racks,
    address: SocketAddr,
    cancel: CancellationToken,
}

impl Region {
    async fn start() -> Region {
        let db = store::testing::database().await;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let config = LinkConfig {
            listener,
            names: vec!["127.0.0.1".into()],
            hostname: "region1".into(),
            rack_http_port: 5251,
            database_connections: 4,
        };
        let cancel = CancellationToken::new();
        let (racks, _) = link::start(config, &db.pool, &Sealer::ephemeral(), cancel.clone())
            .await
            .unwrap();
        Region {
            db,
            racks,
            address,
            cancel,
        }
    }

    async fn token(&self) -> String {
        let mut db = self.db.pool.acquire().await.unwrap();
        self.racks
            .create_token(&mut db, None, None)
            .await
            .unwrap()
            .text()
            .to_owned()
    }

    async fn connect(&self, who: Option<&Credentials>) -> std::io::Result<Tls> {
        connect(self.address, who).await
    }

    /// A rack of its own, enrolled; also anew.
    async fn enrolled(&self, hostname: &str) -> Credentials {
        let mut db = self.db.pool.acquire().await.unwrap();
        let token = self.racks.create_token(&mut db, Some(hostname), None).await;
        let client = Client::open(self.connect(None).await.unwrap());
        client.enrol(token.unwrap().text(), hostname).await.unwrap()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

struct Credentials {
    rack: String,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// Takes any server for the region: what is tested here is the server.
#[derive(Debug)]
struct Trusting;

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

async fn connect(address: SocketAddr, who: Option<&Credentials>) -> std::io::Result<Tls> {
    connect_over(TcpStream::connect(address).await?, who).await
}

async fn connect_over(tcp: TcpStream, who: Option<&Credentials>) -> std::io::Result<Tls> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting));
    let config = match who {
        Some(who) => builder
            .with_client_auth_cert(vec![who.certificate.clone()], who.key.clone_key())
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from("muster-region").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

fn key_and_csr() -> (PrivateKeyDer<'static>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .der()
        .to_vec();
    (PrivateKeyDer::Pkcs8(key.serialize_der().into()), csr)
}

struct Client {
    door: door::Client,
    ended: tokio::task::JoinHandle<Result<(), capnp::Error>>,
}

impl Client {
    fn open(stream: Tls) -> Client {
        let (reader, writer) = stream.compat().split();
        let network = twoparty::VatNetwork::new(reader, writer, Side::Client, Default::default());
        let mut system = RpcSystem::new(Box::new(network), None);
        let door = system.bootstrap(Side::Server);
        Client {
            door,
            ended: tokio::task::spawn_local(system),
        }
    }

    async fn enrol(&self, token: &str, hostname: &str) -> Result<Credentials, capnp::Error> {
        let (key, csr) = key_and_csr();
        let mut request = self.door.enrol_request();
        request.get().set_token(token);
        request.get().set_hostname(hostname);
        request.get().set_csr(&csr);
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        let certificate = CertificateDer::from(answer.get_certificate()?.to_vec());
        Ok(Credentials {
            rack: answer.get_rack()?.to_string()?,
            certificate,
            key,
        })
    }

    async fn hello(&self) -> Result<session::Client, capnp::Error> {
        self.hello_as(capnp_rpc::new_client(Silent)).await
    }

    async fn hello_as(&self, rack: rack::Client) -> Result<session::Client, capnp::Error> {
        let mut request = self.door.hello_request();
        let mut hello = request.get().init_hello();
        hello.set_protocol(1);
        hello.set_version("0.1");
        hello.set_rack(rack);
        let mut interface = hello.init_interfaces(1).get(0);
        interface.set_name("eth0");
        let mut prefix = interface.init_addresses(1).get(0);
        prefix.set_address(
            &std::net::Ipv4Addr::new(10, 77, 0, 2)
                .to_ipv6_mapped()
                .octets(),
        );
        prefix.set_length(24);
        request.send().promise.await?.get()?.get_session()
    }
}

/// A rack that answers pings and what it counts, and never a power call.
struct Silent;

impl rack::Server for Silent {
    async fn power(
        self: Rc<Self>,
        _: rack::PowerParams,
        _: rack::PowerResults,
    ) -> Result<(), capnp::Error> {
        std::future::pending().await
    }

    async fn ping(
        self: Rc<Self>,
        _: rack::PingParams,
        _: rack::PingResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }

    async fn stats(
        self: Rc<Self>,
        _: rack::StatsParams,
        mut results: rack::StatsResults,
    ) -> Result<(), capnp::Error> {
        let mut stats = results.get().init_stats(2);
        stats
            .reborrow()
            .get(0)
            .set_name("dhcp_acks_total{shard=\"0\"}");
        stats.reborrow().get(0).set_value(7);
        stats.reborrow().get(1).set_name("machines");
        Ok(())
    }

    async fn claimed(
        self: Rc<Self>,
        _: rack::ClaimedParams,
        mut results: rack::ClaimedResults,
    ) -> Result<(), capnp::Error> {
        let mut blocks = results.get().init_blocks(1);
        blocks.reborrow().get(0).set_block(1);
        blocks.reborrow().get(0).set_addresses(5);
        Ok(())
    }
}

/// A rack that leaves pings without answer while it sleeps.
struct Sleeper {
    asleep: Rc<Cell<bool>>,
}

impl rack::Server for Sleeper {
    async fn power(
        self: Rc<Self>,
        _: rack::PowerParams,
        _: rack::PowerResults,
    ) -> Result<(), capnp::Error> {
        std::future::pending().await
    }

    async fn ping(
        self: Rc<Self>,
        _: rack::PingParams,
        _: rack::PingResults,
    ) -> Result<(), capnp::Error> {
        while self.asleep.get() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// Runs a test on one thread that may spawn Cap'n Proto tasks.
async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..200 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within two seconds");
}

// ---------------------------------------------------------------- enrolment and hello

#[tokio::test]
async fn of_two_racks_with_one_token_one_enrols() {
    local(async {
        let region = Region::start().await;
        let token = region.token().await;
        let (one, two) = (
            Client::open(region.connect(None).await.unwrap()),
            Client::open(region.connect(None).await.unwrap()),
        );
        let (one, two) = tokio::join!(one.enrol(&token, "r1"), two.enrol(&token, "r2"));
        let refused = match (one, two) {
            (Ok(_), Err(error)) | (Err(error), Ok(_)) => error.extra,
            (one, two) => panic!("{} and {}", one.is_ok(), two.is_ok()),
        };
        assert!(refused.contains("used already"), "{refused}");
        let client = Client::open(region.connect(None).await.unwrap());
        for (token, hostname, why) in [
            ("nonsense", "r3", "not an enrolment token"),
            (token.as_str(), "no such host!", "no hostname"),
        ] {
            let error = client.enrol(token, hostname).await.err().unwrap();
            assert!(error.extra.contains(why), "{}", error.extra);
        }
        let error = client.enrol(&token, "r3").await.err().unwrap();
        assert!(error.extra.contains("used already"), "{}", error.extra);
        let error = client
            .enrol(&region.token().await, "r3")
            .await
            .err()
            .unwrap();
        assert!(error.extra.contains("too many tries"), "{}", error.extra);
    })
    .await;
}

#[tokio::test]
async fn without_our_certificate_there_is_no_session() {
    local(async {
        let region = Region::start().await;
        let stranger = Client::open(region.connect(None).await.unwrap());
        let error = stranger.hello().await.err().unwrap();
        assert!(
            error.extra.ends_with(rpc::refusal::NOT_ENROLLED),
            "{}",
            error.extra
        );

        // A certificate with a rack's name, signed by somebody else.
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uri = "muster:rack:abc123".try_into().unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        let forged = Credentials {
            rack: "abc123".into(),
            certificate: params.self_signed(&key).unwrap().der().clone(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        };
        // TLS 1.3: the client hears of the refusal with the first thing it reads.
        let refused = match region.connect(Some(&forged)).await {
            Err(_) => true,
            Ok(stream) => Client::open(stream).hello().await.is_err(),
        };
        assert!(refused);
        assert!(region.racks.connected().is_empty());

        let good = region.enrolled("r1").await;
        let client = Client::open(region.connect(Some(&good)).await.unwrap());
        let _session = client.hello().await.unwrap();
        assert_eq!(region.racks.connected(), std::slice::from_ref(&good.rack));
        assert!(client.hello().await.is_err(), "once a connection");

        // Re-enrolment ends the older certificate.
        let newer = region.enrolled("r1").await;
        assert_eq!(newer.rack, good.rack);
        tokio::time::timeout(Duration::from_secs(1), client.ended)
            .await
            .unwrap()
            .ok();
        let again = Client::open(region.connect(Some(&good)).await.unwrap());
        let error = again.hello().await.err().unwrap();
        assert!(
            error.extra.ends_with(rpc::refusal::REVOKED),
            "{}",
            error.extra
        );
        let client = Client::open(region.connect(Some(&newer)).await.unwrap());
        client.hello().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn malformed_bytes_end_their_connection_and_no_other() {
    local(async {
        let region = Region::start().await;
        let good = region.enrolled("r1").await;
        let client = Client::open(region.connect(Some(&good)).await.unwrap());
        let _session = client.hello().await.unwrap();

        let mut raw = TcpStream::connect(region.address).await.unwrap();
        raw.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let closed = raw.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_secs(2), closed)
            .await
            .unwrap()
            .ok();
        let counters = region.racks.counters();
        eventually("counted", || counters.handshake_failed.load(Relaxed) == 1).await;

        // Inside TLS: no frame, a frame of 2^31 words, too many segments, a message that is none of RPC's, noise.
        let mut seed = 1u32;
        let noise: Vec<u8> = (0..400)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .collect();
        let odd: [&[u8]; 5] = [
            &[0xff; 64],
            &[0, 0, 0, 0, 0, 0, 0, 0x80, 1, 2, 3],
            &[0, 4, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9],
            &[
                0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff,
            ],
            &noise,
        ];
        for (i, bytes) in odd.into_iter().enumerate() {
            let mut stream = region.connect(Some(&good)).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream.flush().await.unwrap();
            let mut answer = Vec::new();
            let closed = stream.read_to_end(&mut answer);
            let closed = tokio::time::timeout(Duration::from_secs(2), closed).await;
            assert!(closed.is_ok(), "case {i} is still open");
        }
        let counted = || counters.malformed.load(Relaxed) + counters.panicked.load(Relaxed);
        eventually("counted", || counted() == 5).await;
        assert_eq!(region.racks.connected(), [good.rack]);
        assert!(!client.ended.is_finished());
    })
    .await;
}

// ---------------------------------------------------------------- strangers without end

/// More of them than there are places, from one address and from many, silent and with TLS.
#[tokio::test]
async fn silent_strangers_and_tls_without_certificate_keep_no_rack_away() {
    local(async {
        let region = Region::start().await;
        let good = region.enrolled("r1").await;
        let client = Client::open(region.connect(Some(&good)).await.unwrap());
        let _session = client.hello().await.unwrap();
        drop(client);
        let mut silent = Vec::new();
        let mut tls = Vec::new();
        for number in 0..600_u32 {
            let from = std::net::Ipv4Addr::from(0x7f01_0000 + number / 4);
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((from, 0).into()).unwrap();
            let stream = socket.connect(region.address).await.unwrap();
            if number % 8 == 0 {
                tls.push(connect_over(stream, None).await);
            } else {
                silent.push(stream);
            }
        }
        let counters = region.racks.counters();
        eventually("displaced", || counters.displaced.load(Relaxed) > 0).await;
        // The rack comes back, and a new one enrols from an address that nobody knows.
        let again = Client::open(region.connect(Some(&good)).await.unwrap());
        again.hello().await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 2, 0, 1], 0).into()).unwrap();
        let stream = socket.connect(region.address).await.unwrap();
        let newcomer = Client::open(connect_over(stream, None).await.unwrap());
        newcomer.enrol(&region.token().await, "r2").await.unwrap();
        let held: u64 = region.racks.places().iter().map(|room| room.held).sum();
        assert!(held < 300, "{held}");
    })
    .await;
}

#[tokio::test]
async fn a_rack_that_shows_its_certificate_and_says_nothing_is_not_firm() {
    local(async {
        let region = Region::start().await;
        let good = region.enrolled("r1").await;
        let client = Client::open(region.connect(Some(&good)).await.unwrap());
        let _session = client.hello().await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..40 {
            silent.push(region.connect(Some(&good)).await.unwrap());
        }
        let counters = region.racks.counters();
        eventually("displaced", || counters.displaced.load(Relaxed) > 20).await;
        assert!(!client.ended.is_finished(), "the session has its place");
    })
    .await;
}

// ---------------------------------------------------------------- a session

#[tokio::test]
async fn a_session_renews_reports_asks_and_leases() {
    local(async {
        let region = Region::start().await;
        let pool = &region.db.pool;
        let vlan: i32 = sqlx::query_scalar(
            "with f as (insert into fabric (name) values ('f') returning id),
                  v as (insert into vlan (fabric_id, vid) select id, 10 from f returning id),
                  s as (insert into subnet (vlan_id, name, cidr)
                        select id, 's', '10.77.0.0/24' from v returning vlan_id)
             select vlan_id from s",
        )
        .fetch_one(pool)
        .await
        .unwrap();
        sqlx::query(
            "with m as (insert into machine (system_id, hostname, status) values ('mmmmmm', 'm1', 1)
                        returning system_id)
             insert into interface (machine, name, mac, vlan_id)
             select system_id, 'e', '02:00:00:00:00:01', $1 from m",
        )
        .bind(vlan)
        .execute(pool)
        .await
        .unwrap();
        let good = region.enrolled("r1").await;
        let client = Client::open(region.connect(Some(&good)).await.unwrap());
        let session = client.hello().await.unwrap();

        // A renewed certificate is the same rack's, and works.
        let (key, csr) = key_and_csr();
        let mut request = session.renew_request();
        request.get().set_csr(&csr);
        let answer = request.send().promise.await.unwrap();
        let certificate = answer.get().unwrap().get_certificate().unwrap().to_vec();
        let renewed = Credentials {
            rack: good.rack.clone(),
            certificate: certificate.into(),
            key,
        };
        let second = Client::open(region.connect(Some(&renewed)).await.unwrap());
        let session = second.hello().await.unwrap();

        // bootConfig: not of a VLAN that this rack does not serve; a known machine, an unknown one.
        let boot = |mac: [u8; 6]| {
            let mut request = session.boot_config_request();
            let mut query = request.get().init_query();
            query.set_mac(&mac);
            query.set_vlan(vlan.unsigned_abs());
            request.send().promise
        };
        let error = boot([2, 0, 0, 0, 0, 1]).await.err().unwrap();
        assert!(error.extra.contains("does not serve"), "{}", error.extra);
        sqlx::query("update vlan set dhcp_on = true, primary_rack = $1")
            .bind(&good.rack)
            .execute(pool)
            .await
            .unwrap();
        for (mac, id, purpose) in [
            (
                [2, 0, 0, 0, 0, 1],
                "mmmmmm",
                // New, and nobody asked it to boot.
                rpc::muster_capnp::BootPurpose::Poweroff,
            ),
            (
                [2, 0, 0, 0, 0, 9],
                "",
                rpc::muster_capnp::BootPurpose::Enlist,
            ),
        ] {
            let answer = boot(mac).await.unwrap();
            let machine = answer.get().unwrap().get_machine().unwrap();
            assert_eq!(machine.get_system_id().unwrap().to_str().unwrap(), id);
            assert_eq!(machine.get_purpose().unwrap(), purpose);
        }

        // Events find their machine; repeats are left out.
        for _ in 0..2 {
            let mut request = session.report_request();
            let mut events = request.get().init_events(2);
            for (i, mac) in [1u8, 9].into_iter().enumerate() {
                let mut event = events.reborrow().get(i as u32);
                event.set_kind("DHCP_ACK");
                event.set_mac(&[2, 0, 0, 0, 0, mac]);
                event.set_ago_ms(1_000);
            }
            request.send().promise.await.unwrap();
        }
        let stored: Vec<(Option<String>, String)> = sqlx::query_as(
            "select machine, mac::text from event where type = 'DHCP_ACK' order by mac",
        )
        .fetch_all(pool)
        .await
        .unwrap();
        let expected = [
            (Some("mmmmmm".into()), "02:00:00:00:00:01".into()),
            (None, "02:00:00:00:00:09".into()),
        ];
        assert_eq!(stored, expected);

        // Leases: an attach without blocks, a write to a block that is not there.
        let mut request = session.attach_request();
        request.get().set_spool_id(&[5; 16]);
        request.get().set_spool_seq(1);
        let answer = request.send().promise.await.unwrap();
        let attachment = answer.get().unwrap().get_attachment().unwrap();
        assert!(attachment.get_until_ms() > 23 * 3_600_000);
        assert_eq!(attachment.get_blocks().unwrap().len(), 0);
        let mut request = session.heartbeat_request();
        request.get().set_spool_id(&[5; 16]);
        request.get().set_digest(&lease::digest([]));
        let answer = request.send().promise.await.unwrap();
        let reply = answer.get().unwrap().get_reply().unwrap();
        use rpc::muster_capnp::heartbeat_reply::Which;
        assert!(matches!(reply.which().unwrap(), Which::UntilMs(ms) if ms > 23 * 3_600_000));
        let mut request = session.commit_leases_request();
        let mut batch = request.get().init_batch();
        batch.set_spool_id(&[5; 16]);
        batch.set_seq(2);
        let mut write = batch.init_writes(1).get(0);
        write.set_block(77);
        write.set_address(
            &std::net::Ipv4Addr::new(10, 77, 0, 9)
                .to_ipv6_mapped()
                .octets(),
        );
        write.set_duration_ms(600_000);
        let mut key = write.init_client();
        key.set_vlan(vlan.unsigned_abs());
        key.set_mac(&[2, 0, 0, 0, 0, 1]);
        let answer = request.send().promise.await.unwrap();
        let outcomes = answer.get().unwrap().get_outcomes().unwrap();
        use rpc::muster_capnp::lease_outcome;
        assert!(matches!(
            outcomes.get(0).which().unwrap(),
            lease_outcome::Which::Refused(_)
        ));

        // What cannot be read is that call's error; the session goes on.
        let mut request = session.heartbeat_request();
        request.get().set_spool_id(&[5; 3]);
        assert!(request.send().promise.await.is_err());
        let answer = session.regions_request().send().promise.await.unwrap();
        assert_eq!(answer.get().unwrap().get_regions().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_rack_that_never_answers_costs_a_power_call_its_deadline() {
    local(async {
        let region = Region::start().await;
        let good = region.enrolled("r1").await;
        let client = Client::open(region.connect(Some(&good)).await.unwrap());
        let _session = client.hello().await.unwrap();
        let operation = PowerOperation {
            id: [1; 16],
            driver: "manual".into(),
            command: PowerCommand::Query,
            parameters: String::from(r#"{"power_pass":"hidden"}"#).into(),
            deadline: Duration::from_millis(200),
        };
        assert!(!format!("{operation:?}").contains("hidden"));
        let start = Instant::now();
        let error = region
            .racks
            .power(&good.rack, operation.clone())
            .await
            .unwrap_err();
        assert!(
            matches!(error, LinkError::Deadline) && error.may_have_acted(),
            "{error}"
        );
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{:?}",
            start.elapsed()
        );
        // A link that breaks is told at once.
        let racks = region.racks.clone();
        let long = PowerOperation {
            deadline: Duration::from_secs(60),
            ..operation
        };
        let rack = good.rack.clone();
        let call = tokio::spawn(async move { racks.power(&rack, long).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.ended.abort();
        let error = tokio::time::timeout(Duration::from_secs(2), call)
            .await
            .unwrap()
            .unwrap();
        assert!(matches!(error, Err(LinkError::Lost)), "{error:?}");
        eventually("unlinked", || region.racks.connected().is_empty()).await;
    })
    .await;
}

#[tokio::test]
async fn a_rack_says_which_addresses_are_claimed() {
    local(async {
        let region = Region::start().await;
        let rack = region.enrolled("r1").await;
        let block = "insert into lease_block (id, vlan_id, first, count, owner, longest_lease_secs)
                     overriding system value values (1, 5001, '10.0.0.0', 64, $1, 600)";
        sqlx::query(block)
            .bind(&rack.rack)
            .execute(&region.db.pool)
            .await
            .unwrap();
        let client = Client::open(region.connect(Some(&rack)).await.unwrap());
        let _session = client.hello().await.unwrap();
        for _ in 0..200 {
            let claimed: i32 = sqlx::query_scalar("select claimed from lease_block where id = 1")
                .fetch_one(&region.db.pool)
                .await
                .unwrap();
            if claimed == 5 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("nobody noted it");
    })
    .await;
}

#[tokio::test]
async fn a_rack_says_what_it_counts_and_one_that_cannot_is_told_apart() {
    local(async {
        let region = Region::start().await;
        let (good, old) = (region.enrolled("r1").await, region.enrolled("r2").await);
        let client = Client::open(region.connect(Some(&good)).await.unwrap());
        let _session = client.hello().await.unwrap();
        let stats = region.racks.stats(&good.rack).await.unwrap();
        let want = [("dhcp_acks_total{shard=\"0\"}", 7), ("machines", 0)];
        assert_eq!(stats, want.map(|(name, value)| (name.to_owned(), value)));
        let error = region.racks.stats(&old.rack).await.unwrap_err();
        assert!(matches!(error, LinkError::NotConnected), "{error:?}");
        // A rack of a version without the call.
        let client = Client::open(region.connect(Some(&old)).await.unwrap());
        let asleep = Rc::new(Cell::new(false));
        let _session = client
            .hello_as(capnp_rpc::new_client(Sleeper { asleep }))
            .await
            .unwrap();
        let error = region.racks.stats(&old.rack).await.unwrap_err();
        assert!(matches!(error, LinkError::Refused(_)), "{error:?}");
    })
    .await;
}

// ---------------------------------------------------------------- HTTPS

async fn get_root(stream: &mut Tls) -> std::io::Result<String> {
    stream
        .write_all(b"GET /who HTTP/1.1\r\nhost: muster-region\r\n\r\n")
        .await?;
    let mut answer = vec![0; 4096];
    let n = stream.read(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}

#[tokio::test]
async fn https_knows_its_rack_and_closes_on_revocation() {
    local(async {
        let region = Region::start().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let who = |Extension(rack): Extension<RackIdentity>| async move { rack.system_id };
        let router = Router::new().route("/who", get(who));
        let pool = region.db.pool.clone();
        let serving = https::serve(
            listener,
            region.racks.clone(),
            pool,
            router,
            region.cancel.clone(),
        );
        let serving = tokio::spawn(serving);

        let good = region.enrolled("r1").await;
        let mut stream = connect(address, Some(&good)).await.unwrap();
        for _ in 0..2 {
            let answer = get_root(&mut stream).await.unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.ends_with(&good.rack),
                "{answer}"
            );
        }
        let stranger = match connect(address, None).await {
            Ok(mut stream) => get_root(&mut stream).await.map(|answer| answer.is_empty()),
            Err(error) => Err(error),
        };
        assert!(!matches!(stranger, Ok(false)), "answered a stranger");

        let mut tx = region.db.pool.begin().await.unwrap();
        store::rack::revoke(&mut tx, &good.rack).await.unwrap();
        tx.commit().await.unwrap();
        let start = Instant::now();
        let mut rest = Vec::new();
        tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut rest))
            .await
            .unwrap()
            .ok();
        assert!(start.elapsed() < Duration::from_secs(1));
        let mut stream = connect(address, Some(&good)).await.unwrap();
        let answer = get_root(&mut stream).await.unwrap_or_default();
        assert_eq!(answer, "");
        region.cancel.cancel();
        serving.await.unwrap().unwrap();
    })
    .await;
}

/// The authority is one for all processes, and roots that do not know it refuse the region.
#[tokio::test]
async fn every_process_shows_the_same_authority_and_no_other_root_takes_it() {
    let db = store::testing::database().await;
    let sealer = Sealer::ephemeral();
    let one = link::Authority::open(&db.pool, &sealer).await.unwrap();
    let two = link::Authority::open(&db.pool, &sealer).await.unwrap();
    assert_eq!(one.fingerprint(), two.fingerprint());

    let region = Region::start().await;
    let mut roots = RootCertStore::empty();
    roots.add(one.certificate().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(region.address).await.unwrap();
    let name = ServerName::try_from("muster-region").unwrap();
    let refused = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
}

// ---------------------------------------------------------------- liveness

/// For racks that share a VLAN: a silent one is noticed in time for its peer to serve its clients within 5 s, and one that
/// answers again is let back in over the same link.
#[tokio::test]
async fn a_rack_that_falls_silent_is_believed_dead_by_its_peers() {
    local(async {
        let region = Region::start().await;
        let asleep = Rc::new(Cell::new(false));
        let mut ids = vec![];
        let mut links = vec![];
        for hostname in ["r1", "r2"] {
            let who = region.enrolled(hostname).await;
            let client = Client::open(region.connect(Some(&who)).await.unwrap());
            let sleeper = Sleeper {
                asleep: match hostname {
                    "r1" => Rc::clone(&asleep),
                    _ => Rc::default(),
                },
            };
            let session = client
                .hello_as(capnp_rpc::new_client(sleeper))
                .await
                .unwrap();
            ids.push(who.rack);
            links.push((client, session));
        }
        sqlx::query(
            "with f as (insert into fabric (name) values ('f') returning id)
             insert into vlan (fabric_id, vid, dhcp_on, primary_rack, secondary_rack)
             select id, 10, true, $1, $2 from f",
        )
        .bind(&ids[0])
        .bind(&ids[1])
        .execute(&region.db.pool)
        .await
        .unwrap();
        let alive = async |rack: &str, want: bool, limit: u64| {
            let begin = Instant::now();
            loop {
                let alive: Option<bool> =
                    sqlx::query_scalar("select alive from rack_liveness where rack = $1")
                        .bind(rack)
                        .fetch_optional(&region.db.pool)
                        .await
                        .unwrap();
                if alive == Some(want) {
                    return begin.elapsed();
                }
                let waited = begin.elapsed();
                assert!(
                    waited < Duration::from_secs(limit),
                    "{rack}: {alive:?} after {waited:?}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Linked is not enough: it may be mute.
        alive(&ids[0], false, 15).await;
        for (n, (_, session)) in links.iter().enumerate() {
            let mut request = session.attach_request();
            request.get().set_spool_id(&[n as u8; 16]);
            request.get().set_spool_seq(1);
            request.send().promise.await.unwrap();
        }
        for id in &ids {
            alive(id, true, 2).await;
        }
        asleep.set(true);
        let noticed = alive(&ids[0], false, 5).await;
        println!("silence noticed after {noticed:?}");
        asleep.set(false);
        alive(&ids[0], true, 2).await;
        let mut racks = region.racks.connected();
        racks.sort();
        let mut both = ids.clone();
        both.sort();
        assert_eq!(racks, both, "its link was not closed");
        // A closed link is noticed at once.
        let (client, session) = links.remove(0);
        client.ended.abort();
        drop((client, session));
        let noticed = alive(&ids[0], false, 3).await;
        println!("closed link noticed after {noticed:?}");
        alive(&ids[1], true, 1).await;
    })
    .await;
}
