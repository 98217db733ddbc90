//! A whole commissioning over HTTP: the real router and database, and the real script runner on this host as the
//! machine. A layer stands where the racks' listener is and attests what the test says.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use api::{App, Attestation};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use library::Library;
use model::{MachineStatus, PowerType, SystemId};
use reqwest::StatusCode;
use store::lifecycle;
use store::seal::Sealer;
use store::testing::TestDatabase;
use tokio::task::JoinSet;
use workflow::CommissionOptions;

const MAC: &str = "52:54:00:00:00:01";
/// Which card the layer attests for a request; "none": the rack knows none; "direct": not through a rack.
const TEST_MAC: &str = "x-test-mac";
const TEST_ADDRESS: &str = "x-test-address";

struct Region {
    db: TestDatabase,
    sealer: Arc<Sealer>,
    address: SocketAddr,
    machine: SystemId,
    client: reqwest::Client,
    _folder: tempfile::TempDir,
    _server: JoinSet<()>,
}

/// As the racks' listener does from what a rack says.
async fn attest(mut request: Request, next: Next) -> Response {
    if let Some(attestation) = attestation_of(&request) {
        request.extensions_mut().insert(attestation);
    }
    next.run(request).await
}

fn attestation_of(request: &Request) -> Option<Attestation> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    // A machine that enlists has a card that the region does not know; its client sends no header of ours.
    let enlists = request.uri().path().starts_with("/MAAS/api/");
    let mac = header(TEST_MAC).unwrap_or(if enlists { "52:54:00:00:00:77" } else { MAC });
    (mac != "direct").then(|| Attestation {
        rack: "rack01".to_owned(),
        client_address: header(TEST_ADDRESS)
            .unwrap_or("10.0.0.5")
            .parse()
            .expect("an address"),
        client_mac: mac.parse().ok(),
        vlan: None,
    })
}

impl Region {
    /// One machine "abc123" (card MAC, manual power) and one "zzz999" (another card).
    async fn new() -> Self {
        // reqwest wants one, though nothing here is encrypted.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let db = store::testing::database().await;
        let folder = tempfile::tempdir().unwrap();
        let sealer = Arc::new(Sealer::ephemeral());
        let library = Library::open(folder.path(), db.pool.clone()).unwrap();
        let app = App::new(
            db.pool.clone(),
            sealer.clone(),
            library,
            link::Racks::default(),
        );
        for (id, mac) in [("abc123", MAC), ("zzz999", "52:54:00:00:00:99")] {
            for sql in [
                "insert into machine (system_id, hostname) values ($1, 'node-' || $1) returning $2",
                "insert into interface (machine, name, mac) values ($1, 'eth0', $2::macaddr)",
            ] {
                sqlx::query(sql)
                    .bind(id)
                    .bind(mac)
                    .execute(&db.pool)
                    .await
                    .unwrap();
            }
            let id: SystemId = id.parse().unwrap();
            let none = PowerType::Manual.split(&serde_json::Map::new()).unwrap();
            let mut connection = db.pool.acquire().await.unwrap();
            store::bmc::set_for_machine(&mut connection, &sealer, &id, PowerType::Manual, &none)
                .await
                .unwrap();
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = api::router(app).layer(from_fn(attest));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Region {
            db,
            sealer,
            address,
            machine: "abc123".parse().unwrap(),
            client: reqwest::Client::new(),
            _folder: folder,
            _server: server,
        }
    }

    async fn commission(&self, id: &SystemId) {
        let mut tx = self.db.pool.begin().await.unwrap();
        workflow::commission(&mut tx, id, "admin", &CommissionOptions::default())
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/MAAS/metadata{path}", self.address)
    }

    async fn preseed(&self, id: &str, mac: &str) -> (StatusCode, String) {
        let url = self.url(&format!("/latest/by-id/{id}/?op=get_preseed"));
        answer(self.client.get(url).header(TEST_MAC, mac)).await
    }

    /// This boot's credentials.
    async fn token(&self) -> Token {
        let (status, preseed) = self.preseed("abc123", MAC).await;
        assert_eq!(status, StatusCode::OK, "{preseed}");
        Token::of(&preseed)
    }

    async fn get(&self, path: &str, token: &Token) -> (StatusCode, String) {
        answer(
            self.client
                .get(self.url(path))
                .header("authorization", token.sign()),
        )
        .await
    }

    async fn status(&self) -> MachineStatus {
        lifecycle::get(&self.db.pool, &self.machine)
            .await
            .unwrap()
            .status
    }

    async fn events(&self, kind: &str) -> i64 {
        sqlx::query_scalar("select count(*) from event where type = $1")
            .bind(kind)
            .fetch_one(&self.db.pool)
            .await
            .unwrap()
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, String) {
    let response = request.send().await.expect("the region answers");
    (
        response.status(),
        response.text().await.expect("a whole body"),
    )
}

#[derive(Clone)]
struct Token {
    consumer_key: String,
    token_key: String,
    token_secret: String,
}

impl Token {
    fn of(preseed: &str) -> Self {
        let value = |key: &str| {
            let line = preseed
                .lines()
                .find_map(|line| line.trim().strip_prefix(&format!("{key}: ")));
            line.expect(key).trim_matches('"').to_owned()
        };
        Token {
            consumer_key: value("consumer_key"),
            token_key: value("token_key"),
            token_secret: value("token_secret"),
        }
    }

    fn sign(&self) -> String {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        format!(
            "OAuth oauth_nonce=\"{}\", oauth_timestamp=\"{now}\", oauth_version=\"1.0\", \
             oauth_signature_method=\"PLAINTEXT\", oauth_consumer_key=\"{}\", oauth_token=\"{}\", \
             oauth_signature=\"%26{}\"",
            uuid::Uuid::new_v4().simple(),
            self.consumer_key,
            self.token_key,
            self.token_secret
        )
    }
}

fn machine_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/machine")
}

/// The runner as cloud-init would start it, with the preseed that cloud-init would have kept.
async fn run_scripts(preseed: &str) -> Output {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    config.write_all(preseed.as_bytes()).unwrap();
    let mut command = Command::new(machine_folder().join("maas-run-scripts"));
    command
        .arg("--config")
        .arg(config.path())
        .args(["--retry-unit", "0.01"]);
    let output = tokio::task::spawn_blocking(move || (command.output(), config))
        .await
        .unwrap()
        .0;
    output.expect("python3 runs")
}

#[tokio::test]
async fn a_machine_is_commissioned_over_http() {
    let region = Region::new().await;
    region.commission(&region.machine).await;

    // cloud-init asks twice a boot: init-local, then init.
    region.token().await;
    let (status, preseed) = region.preseed("abc123", MAC).await;
    assert_eq!(status, StatusCode::OK);
    assert!(preseed.starts_with("#cloud-config\n"), "{preseed}");
    let base = format!("metadata_url: \"http://{}/MAAS/metadata/\"", region.address);
    assert!(preseed.contains(&base), "{preseed}");
    assert!(
        preseed.contains("mode: poweroff") && !preseed.contains("packages"),
        "{preseed}"
    );
    let token = Token::of(&preseed);

    // What DataSourceMAAS asks, in its order.
    let ask = async |path: &str| region.get(&format!("/2012-03-01/{path}"), &token).await;
    assert_eq!(
        ask("meta-data/instance-id").await,
        (StatusCode::OK, "abc123".into())
    );
    assert_eq!(
        ask("meta-data/instance-id").await,
        (StatusCode::OK, "abc123".into())
    );
    assert_eq!(
        ask("meta-data/local-hostname").await,
        (StatusCode::OK, "node-abc123.maas".into())
    );
    assert_eq!(ask("meta-data/public-keys").await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask("meta-data/vendor-data").await.0, StatusCode::NOT_FOUND);
    let (status, user_data) = ask("user-data").await;
    assert_eq!(status, StatusCode::OK);
    let runner = std::fs::read_to_string(machine_folder().join("maas-run-scripts")).unwrap();
    assert_eq!(user_data, runner);
    assert_eq!(region.events("METADATA_SERVED").await, 1, "once a boot");
    // cloud-init joins its URL with one slash too many.
    let doubled = region
        .get("//2012-03-01/meta-data/instance-id", &token)
        .await;
    assert_eq!(doubled, (StatusCode::OK, "abc123".into()));
    assert_eq!(region.get("/", &token).await.1, "latest\n2012-03-01");
    assert_eq!(
        ask("").await.1,
        "maas-commissioning-scripts\nmeta-data\nuser-data"
    );

    let output = run_scripts(&preseed).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(region.status().await, MachineStatus::Ready);
    let (cpus, memory): (i32, i64) =
        sqlx::query_as("select cpu_count, memory_mib from machine where system_id = 'abc123'")
            .fetch_one(&region.db.pool)
            .await
            .unwrap();
    assert!(cpus > 0 && memory > 0, "{cpus} {memory}");
    assert_eq!(region.events("SCRIPT_RESULT").await, 3);
    assert_eq!(region.events("COMMISSIONED").await, 1);
    let results = store::script::latest_set(&region.db.pool, &region.machine, "commissioning")
        .await
        .unwrap()
        .unwrap();
    for result in store::script::results(&region.db.pool, results.id)
        .await
        .unwrap()
    {
        let outputs = store::script::outputs(&region.db.pool, result.id)
            .await
            .unwrap();
        assert_eq!(
            outputs.combined.len(),
            outputs.stdout.len() + outputs.stderr.len(),
            "{result:?}"
        );
    }

    // The boot is over: no new preseed, nothing to run. A late final word is still taken.
    let (status, why) = region.preseed("abc123", MAC).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(why.contains("Ready"), "{why}");
    assert_eq!(region.events("PRESEED_REFUSED").await, 1);
    assert_eq!(ask("maas-scripts").await.0, StatusCode::NO_CONTENT);
    assert_eq!(ask("user-data").await.0, StatusCode::NOT_FOUND);
    assert_eq!(
        signal(&region, &token, &[("op", "signal"), ("status", "OK")])
            .await
            .0,
        StatusCode::OK
    );
}

async fn signal(region: &Region, token: &Token, fields: &[(&str, &str)]) -> (StatusCode, String) {
    let request = region.client.post(region.url("/2012-03-01/")).form(&fields);
    answer(request.header("authorization", token.sign())).await
}

#[tokio::test]
async fn a_preseed_is_answered_only_where_it_belongs() {
    let region = Region::new().await;
    let refused = async |id: &str, mac: &str, part: &str| {
        let (status, why) = region.preseed(id, mac).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{id} {mac}: {why}");
        assert!(
            why.contains(part) && !why.contains("token_secret"),
            "{id} {mac}: {why}"
        );
    };
    refused("abc123", MAC, "not expected to boot").await;
    region.commission(&region.machine).await;
    refused("abc123", "direct", "through a rack").await;
    refused("abc123", "none", "whose address").await;
    refused("abc123", "52:54:00:00:00:99", "no network card").await;
    // Whether there is such a machine is nobody's to learn.
    refused("nobody", MAC, "no network card").await;
    refused("zzz999", MAC, "no network card").await;
    assert_eq!(region.preseed("ABC", MAC).await.0, StatusCode::NOT_FOUND);
    assert_eq!(region.preseed("abc123", MAC).await.0, StatusCode::OK);
    let url = region.url("/latest/by-id/abc123/?op=other");
    assert_eq!(
        answer(region.client.get(url)).await.0,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn a_token_holds_where_and_as_long_as_it_was_given() {
    let region = Region::new().await;
    region.commission(&region.machine).await;
    let token = region.token().await;
    let path = "/latest/meta-data/instance-id";
    let ask = async |token: &Token, mac: &str, address: &str| {
        let request = region
            .client
            .get(region.url(path))
            .header("authorization", token.sign());
        answer(request.header(TEST_MAC, mac).header(TEST_ADDRESS, address))
            .await
            .0
    };
    assert_eq!(ask(&token, MAC, "10.0.0.5").await, StatusCode::OK);
    assert_eq!(
        ask(&token, MAC, "10.0.0.6").await,
        StatusCode::OK,
        "the card counts"
    );
    assert_eq!(
        ask(&token, "none", "10.0.0.5").await,
        StatusCode::OK,
        "the address, without a card"
    );
    assert_eq!(ask(&token, "none", "10.0.0.6").await, StatusCode::FORBIDDEN);
    assert_eq!(
        ask(&token, "52:54:00:00:00:99", "10.0.0.5").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        ask(&token, "direct", "10.0.0.5").await,
        StatusCode::FORBIDDEN
    );
    let second =
        "insert into interface (machine, name, mac) values ('abc123', 'eth1', '52:54:00:00:00:02')";
    sqlx::query(second).execute(&region.db.pool).await.unwrap();
    assert_eq!(
        ask(&token, "52:54:00:00:00:02", "10.0.0.7").await,
        StatusCode::OK,
        "its own second card"
    );
    let wrong = Token {
        token_secret: "x".repeat(32),
        ..token.clone()
    };
    assert_eq!(ask(&wrong, MAC, "10.0.0.5").await, StatusCode::UNAUTHORIZED);
    let unsigned = answer(region.client.get(region.url(path))).await;
    assert_eq!(unsigned.0, StatusCode::UNAUTHORIZED);
    assert_eq!(
        answer(region.client.get(region.url("/latest/maas-scripts")))
            .await
            .0,
        StatusCode::UNAUTHORIZED
    );

    // At most eight alive: the oldest goes.
    for _ in 0..8 {
        region.token().await;
    }
    assert_eq!(ask(&token, MAC, "10.0.0.5").await, StatusCode::UNAUTHORIZED);
    let alive: i64 = sqlx::query_scalar("select count(*) from machine_token where revoked is null")
        .fetch_one(&region.db.pool)
        .await
        .unwrap();
    assert_eq!(alive, 8);

    // The next boot's token ends those of the last.
    let old = region.token().await;
    let mut tx = region.db.pool.begin().await.unwrap();
    workflow::abort(&mut tx, &region.machine, "admin", "")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    region.commission(&region.machine).await;
    assert_eq!(ask(&old, MAC, "10.0.0.5").await, StatusCode::UNAUTHORIZED);
    let new = region.token().await;
    assert_eq!(ask(&new, MAC, "10.0.0.5").await, StatusCode::OK);
}

#[tokio::test]
async fn bad_signals_get_a_clear_answer_and_change_nothing() {
    let region = Region::new().await;
    region.commission(&region.machine).await;
    let token = region.token().await;
    let other: SystemId = "zzz999".parse().unwrap();
    region.commission(&other).await;
    let foreign: i32 = sqlx::query_scalar(
        "select r.id from script_result r join script_set s on s.id = r.set_id
         where s.machine = 'zzz999' limit 1",
    )
    .fetch_one(&region.db.pool)
    .await
    .unwrap();
    let foreign = foreign.to_string();
    type Case<'a> = (&'a [(&'a str, &'a str)], u16, &'a str);
    #[rustfmt::skip]
    let cases: [Case<'_>; 8] = [
        (&[], 400, "op=None"),
        (&[("op", "other")], 400, "op=other"),
        (&[("op", "signal")], 400, "required"),
        (&[("op", "signal"), ("status", "fine")], 400, "Unknown commissioning status"),
        (&[("op", "signal"), ("status", "WORKING"), ("script_result_id", "one")], 400, "whole number"),
        (&[("op", "signal"), ("status", "WORKING"), ("script_result_id", "99999999999")], 400, "whole number"),
        (&[("op", "signal"), ("status", "WORKING"), ("script_result_id", "2147483647")], 404, "script result"),
        (&[("op", "signal"), ("status", "WORKING"), ("script_result_id", &foreign)], 404, "script result"),
    ];
    for (fields, want, part) in cases {
        let (status, why) = signal(&region, &token, fields).await;
        assert_eq!(status.as_u16(), want, "{fields:?}: {why}");
        assert!(why.contains(part), "{fields:?}: {why}");
    }
    let post = async |content_type: &str, body: Vec<u8>| {
        let request = region.client.post(region.url("/2012-03-01/")).body(body);
        answer(
            request
                .header("authorization", token.sign())
                .header("content-type", content_type),
        )
        .await
        .0
    };
    assert_eq!(
        post("multipart/form-data; boundary=B", b"--B\r\nno end".to_vec()).await,
        400
    );
    assert_eq!(post("multipart/form-data", b"x".to_vec()).await, 400);
    assert_eq!(post("text/xml", b"<a/>".to_vec()).await, 400);
    assert_eq!(
        post(
            "multipart/form-data; boundary=B",
            vec![b'x'; (16 << 20) + 1]
        )
        .await,
        413
    );
    assert_eq!(region.status().await, MachineStatus::Commissioning);
    let touched: i64 = sqlx::query_scalar("select count(*) from script_result where status <> 0")
        .fetch_one(&region.db.pool)
        .await
        .unwrap();
    assert_eq!(touched, 0);
}

#[tokio::test]
async fn all_files_of_a_result_are_kept() {
    let region = Region::new().await;
    region.commission(&region.machine).await;
    let token = region.token().await;
    let id: i32 = sqlx::query_scalar("select id from script_result where name = 'maas-lshw'")
        .fetch_one(&region.db.pool)
        .await
        .unwrap();
    let file = |name: &str, content: &'static [u8]| {
        reqwest::multipart::Part::bytes(content).file_name(name.to_owned())
    };
    for _ in 0..2 {
        let form = reqwest::multipart::Form::new()
            .text("op", "signal")
            .text("status", "WORKING")
            .text("script_result_id", id.to_string())
            .text("exit_status", "0")
            .part("maas-lshw", file("maas-lshw", b"both\0\xff"))
            .part("maas-lshw.out", file("maas-lshw.out", b"out"))
            .part("maas-lshw.err", file("maas-lshw.err", b"err"))
            .part(
                "maas-lshw.yaml",
                file("maas-lshw.yaml", b"status: degraded\n"),
            );
        let request = region
            .client
            .post(region.url("/2012-03-01/"))
            .multipart(form);
        let (status, text) = answer(request.header("authorization", token.sign())).await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "OK"));
    }
    let outputs = store::script::outputs(&region.db.pool, id).await.unwrap();
    assert_eq!(outputs.combined, b"both\0\xff");
    assert_eq!(
        (outputs.stdout.as_slice(), outputs.stderr.as_slice()),
        (&b"out"[..], &b"err"[..])
    );
    assert_eq!(outputs.result, b"status: degraded\n");
    let status: i32 = sqlx::query_scalar("select status from script_result where id = $1")
        .bind(id)
        .fetch_one(&region.db.pool)
        .await
        .unwrap();
    assert_eq!(status, model::ScriptStatus::Degraded.number());
    assert_eq!(
        region.events("SCRIPT_FAILED").await,
        1,
        "told once, though it was sent twice"
    );
}

#[tokio::test]
async fn reports_and_netboot_are_of_the_machine_itself() {
    let region = Region::new().await;
    region.commission(&region.machine).await;
    let token = region.token().await;
    let report = async |id: &str, body: &str| {
        let request = region
            .client
            .post(region.url(&format!("/status/{id}")))
            .body(body.to_owned());
        answer(request.header("authorization", token.sign()))
            .await
            .0
            .as_u16()
    };
    let good = r#"{"event_type": "start", "origin": "cloudinit", "name": "init-local",
                   "description": "searching", "timestamp": 1.5}"#;
    assert_eq!(report("abc123", good).await, 204);
    assert_eq!(report("zzz999", good).await, 403);
    for bad in ["", "[]", "{}", r#"{"event_type": 1}"#, "\u{0}"] {
        assert_eq!(report("abc123", bad).await, 400, "{bad}");
    }
    let message: String =
        sqlx::query_scalar("select status_message from machine where system_id = 'abc123'")
            .fetch_one(&region.db.pool)
            .await
            .unwrap();
    assert_eq!(message, "init-local: searching");

    let netboot = async || -> bool {
        sqlx::query_scalar("select netboot from machine where system_id = 'abc123'")
            .fetch_one(&region.db.pool)
            .await
            .unwrap()
    };
    assert_eq!(
        signal(&region, &token, &[("op", "netboot_off")]).await.0,
        StatusCode::OK
    );
    assert!(!netboot().await);
    assert_eq!(
        signal(&region, &token, &[("op", "netboot_on")]).await.0,
        StatusCode::OK
    );
    assert!(netboot().await);
    let by_id = async |mac: &str| {
        let url = region.url("/latest/by-id/abc123/");
        let request = region
            .client
            .post(url)
            .form(&[("op", "netboot_off")])
            .header(TEST_MAC, mac);
        answer(request).await.0
    };
    assert_eq!(by_id("52:54:00:00:00:99").await, StatusCode::FORBIDDEN);
    assert!(netboot().await);
    assert_eq!(by_id(MAC).await, StatusCode::OK);
    assert!(!netboot().await);
}

#[tokio::test]
async fn an_unknown_machine_enlists() {
    let region = Region::new().await;
    let url = region.url("/latest/enlist-preseed/?op=get_enlist_preseed");
    let (status, preseed) = answer(region.client.get(url)).await;
    assert_eq!(status, StatusCode::OK);
    let base = format!("http://{}/MAAS/metadata/enlist/", region.address);
    assert!(
        preseed.contains(&base) && !preseed.contains("token"),
        "{preseed}"
    );
    let ask = async |path: &str| {
        let url = region.url(&format!("/enlist/2012-03-01/{path}"));
        answer(region.client.get(url)).await
    };
    assert_eq!(ask("meta-data/instance-id").await.1, "i-maas-enlistment");
    assert_eq!(
        ask("meta-data/local-hostname").await.1,
        "maas-enlisting-node"
    );
    assert_eq!(ask("maas-scripts").await.0, StatusCode::NO_CONTENT);
    let (status, user_data) = ask("user-data").await;
    assert_eq!(status, StatusCode::OK);

    // What it would run, on cards of its own.
    let sysfs = tempfile::tempdir().unwrap();
    let card = sysfs.path().join("class/net/eth0");
    std::fs::create_dir_all(card.join("device")).unwrap();
    std::fs::write(card.join("address"), "52:54:00:00:00:77\n").unwrap();
    std::fs::write(card.join("type"), "1\n").unwrap();
    let script = sysfs.path().join("enlist");
    std::fs::write(&script, user_data).unwrap();
    let url = format!("http://{}/MAAS/api/2.0/machines/", region.address);
    let mut command = Command::new("python3");
    command
        .args(["-IS"])
        .arg(&script)
        .args(["--url", &url, "--retry-unit", "0.01", "--sys"]);
    command.arg(sysfs.path());
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(region.events("MACHINE_ENLISTED").await, 1);
    let (status, architecture): (i32, String) = sqlx::query_as(
        "select m.status, m.architecture from machine m join interface i on i.machine = m.system_id
         where i.mac = '52:54:00:00:00:77'",
    )
    .fetch_one(&region.db.pool)
    .await
    .unwrap();
    assert_eq!(
        (status, architecture.ends_with("/generic")),
        (MachineStatus::New.number(), true)
    );
}

#[tokio::test]
async fn results_are_shown_to_operators() {
    let region = Region::new().await;
    region.commission(&region.machine).await;
    let (_, preseed) = region.preseed("abc123", MAC).await;
    assert!(run_scripts(&preseed).await.status.success());
    let mut db = region.db.pool.acquire().await.unwrap();
    let account: i32 = sqlx::query_scalar(
        "insert into account (username, password_hash) values ('viewer', '') returning id",
    )
    .fetch_one(&mut *db)
    .await
    .unwrap();
    let key = store::token::create(&mut db, &region.sealer, account, "test")
        .await
        .unwrap();
    let key = Token {
        consumer_key: key.consumer_key,
        token_key: key.token_key,
        token_secret: key.token_secret,
    };
    let get = async |path: &str| {
        let url = format!("http://{}/MAAS/api/2.0/nodes/{path}", region.address);
        answer(region.client.get(url).header("authorization", key.sign())).await
    };
    let json = async |path: &str| -> serde_json::Value {
        let (status, text) = get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    };
    let sets = json("abc123/results/").await;
    assert_eq!(sets[0]["status_name"], "Passed");
    assert_eq!(sets[0]["type_name"], "Commissioning");
    assert_eq!(sets[0]["results"].as_array().map(Vec::len), Some(3));
    assert!(sets[0]["results"][0].get("output").is_none());
    assert_eq!(
        json("abc123/results/?type=testing").await,
        serde_json::json!([])
    );
    let id = sets[0]["id"].as_i64().unwrap();
    let path = format!("abc123/results/{id}/?include_output=1&filters=maas-kernel-cmdline");
    let set = json(&path).await;
    assert_eq!(set["results"].as_array().map(Vec::len), Some(1));
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap();
    let download = "abc123/results/current-commissioning/?op=download&filters=maas-kernel-cmdline";
    assert_eq!(get(download).await, (StatusCode::OK, cmdline));
    // Of this machine only, and only to look at.
    assert_eq!(
        get(&format!("zzz999/results/{id}/")).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(get("nobody/results/").await.0, StatusCode::NOT_FOUND);
    assert_eq!(
        get("abc123/results/current-testing/").await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        get("abc123/results/?type=odd").await.0,
        StatusCode::BAD_REQUEST
    );
    let url = format!(
        "http://{}/MAAS/api/2.0/nodes/abc123/results/{id}/",
        region.address
    );
    let delete = region
        .client
        .delete(url)
        .header("authorization", key.sign());
    assert_eq!(answer(delete).await.0, StatusCode::FORBIDDEN);
}
