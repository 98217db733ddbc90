//! The webhook driver against a small HTTP service.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use power::{ErrorClass, Operation, PowerCommand, PowerState, Report};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// What the service is and what it was asked.
#[derive(Default)]
struct Service {
    on: bool,
    asked: Vec<String>,
    /// Answers this status to everything.
    status: Option<u16>,
    /// Answers a text that neither pattern knows.
    mumbles: bool,
    /// Never ends an answer.
    rambles: bool,
}

struct Bench {
    address: SocketAddr,
    service: Arc<Mutex<Service>>,
    task: JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bench {
    async fn new(service: Service) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Arc::new(Mutex::new(service));
        let task = tokio::spawn({
            let service = service.clone();
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    answer(stream, &service).await;
                }
            }
        });
        Self {
            address,
            service,
            task,
        }
    }

    async fn run(&self, command: PowerCommand, more: &str) -> Report {
        let uri = format!("http://{}", self.address);
        let json = format!(
            r#"{{"power_on_uri":"{uri}/on?key=hush","power_off_uri":"{uri}/off",
                "power_query_uri":"{uri}/query/hush","power_verify_ssl":"y"{more}}}"#
        );
        let operation = Operation::parse([0; 16], "webhook", command, &json).unwrap();
        let report = power::run(&operation, Instant::now() + Duration::from_secs(10));
        let report = timeout(Duration::from_secs(11), report)
            .await
            .expect("the deadline was kept");
        assert!(!format!("{report:?}").contains("hush"), "{report:?}");
        report
    }

    fn asked(&self) -> Vec<String> {
        self.service.lock().unwrap().asked.clone()
    }
}

async fn answer(mut stream: TcpStream, service: &Mutex<Service>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(octet) => head.push(octet),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let text = {
        let mut service = service.lock().unwrap();
        let line = head.lines().next().unwrap().to_owned();
        let authorization = head
            .lines()
            .find_map(|line| line.strip_prefix("authorization: "))
            .unwrap_or("nobody");
        service.asked.push(format!("{line} {authorization}"));
        if line.starts_with("POST /on") {
            service.on = true;
        } else if line.starts_with("POST /off") {
            service.on = false;
        }
        let state = match (service.mumbles, service.on) {
            (true, _) => "nobody knows",
            (false, true) => r#"{"status": "running"}"#,
            (false, false) => r#"{"status": "stopped"}"#,
        };
        let status = service.status.unwrap_or(200);
        format!(
            "HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{state}",
            if service.rambles {
                1 << 40
            } else {
                state.len()
            }
        )
    };
    let _ = stream.write_all(text.as_bytes()).await;
    while service.lock().unwrap().rambles && stream.write_all(&[b' '; 4096]).await.is_ok() {}
}

#[tokio::test]
async fn power_follows_what_the_service_says() {
    let bench = Bench::new(Service {
        on: true,
        ..Service::default()
    })
    .await;
    let report = bench
        .run(
            PowerCommand::Cycle,
            r#","power_user":"u","power_pass":"hush""#,
        )
        .await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::On);
    let want = [
        "seen on",
        "power off sent",
        "seen off",
        "power on sent",
        "seen on",
    ];
    assert_eq!(report.steps, want);
    let basic = "Basic dTpodXNo";
    assert_eq!(
        bench.asked(),
        [
            format!("GET /query/hush HTTP/1.1 {basic}"),
            format!("POST /off HTTP/1.1 {basic}"),
            format!("GET /query/hush HTTP/1.1 {basic}"),
            format!("POST /on?key=hush HTTP/1.1 {basic}"),
            format!("GET /query/hush HTTP/1.1 {basic}"),
        ]
    );
}

#[tokio::test]
async fn a_token_goes_before_a_password() {
    let bench = Bench::new(Service {
        on: true,
        ..Service::default()
    })
    .await;
    let report = bench
        .run(
            PowerCommand::On,
            r#","power_user":"u","power_pass":"p","power_token":"hush""#,
        )
        .await;
    assert!(report.result.is_ok());
    assert_eq!(
        bench.asked(),
        ["GET /query/hush HTTP/1.1 Bearer hush"],
        "on already"
    );
}

#[tokio::test]
async fn own_patterns_are_used() {
    let bench = Bench::new(Service {
        mumbles: true,
        ..Service::default()
    })
    .await;
    let report = bench
        .run(PowerCommand::Query, r#","power_on_regex":"no.*ws$""#)
        .await;
    assert_eq!(report.state, PowerState::On);
    let report = bench
        .run(PowerCommand::Query, r#","power_off_regex":"^nobody\\s""#)
        .await;
    assert_eq!(report.state, PowerState::Off);
    // Neither: what was asked for is sent, and its effect stays unknown.
    let report = bench.run(PowerCommand::PxeOn, "").await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::Unknown);
}

#[tokio::test]
async fn statuses_have_classes() {
    for (status, class) in [
        (401, ErrorClass::Credentials),
        (403, ErrorClass::Credentials),
        (302, ErrorClass::Refused),
        (500, ErrorClass::Refused),
        (429, ErrorClass::Busy),
        (502, ErrorClass::Busy),
        (503, ErrorClass::Busy),
        (504, ErrorClass::Busy),
    ] {
        let bench = Bench::new(Service {
            status: Some(status),
            ..Service::default()
        })
        .await;
        let report = bench.run(PowerCommand::On, "").await;
        assert_eq!(report.result.unwrap_err().class(), class, "{status}");
        assert_eq!(bench.asked().len(), 1, "a redirect is not followed");
    }
    let bench = Bench::new(Service::default()).await;
    bench.task.abort();
    let report = bench.run(PowerCommand::On, "").await;
    assert!(report.result.unwrap_err().is_transient());
}

/// What is looked at of an answer has an end, whether the answer has one or not.
#[tokio::test]
async fn an_answer_without_end_is_read_as_far_as_it_matters() {
    let bench = Bench::new(Service {
        on: true,
        rambles: true,
        ..Service::default()
    })
    .await;
    let report = bench.run(PowerCommand::Query, "").await;
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.state, PowerState::On);
}
