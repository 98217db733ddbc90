//! Connections by script: what arrives, what must leave.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use images::{Asked, Catalog, Connection, Counters, Found, Limits, Object, Step};

#[derive(Default)]
struct Files(HashMap<String, Found>);

impl Catalog for Files {
    fn find(&mut self, asked: &Asked<'_>) -> Found {
        if asked.path.starts_with("/MAAS/") {
            return Found::NotOurs;
        }
        self.0.get(asked.path).cloned().unwrap_or(Found::NotFound)
    }
}

struct Script {
    files: Files,
    connection: Connection,
    counters: Counters,
    now: Instant,
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

impl Script {
    fn new() -> Self {
        let mut files = HashMap::new();
        let text = Found::Bytes {
            body: Bytes::from_static(b"0123456789"),
            content_type: "t/p",
        };
        files.insert("/text".into(), text);
        let big = Bytes::from(vec![b'x'; 1_200_000]);
        files.insert(
            "/big".into(),
            Found::Bytes {
                body: big,
                content_type: "t/p",
            },
        );
        files.insert("/later".into(), Found::Later);
        files.insert("/busy".into(), Found::Busy);
        let object = Arc::new(Object::complete([7; 32], 1_000_000, 400_000, null()));
        files.insert("/object".into(), Found::Object(object));
        let now = Instant::now();
        Self {
            files: Files(files),
            connection: Connection::new(Limits::default(), now),
            counters: Counters::default(),
            now,
        }
    }

    fn bytes(&mut self, text: &str) -> Step {
        self.connection
            .on_bytes(text.as_bytes(), &mut self.counters);
        self.step()
    }

    fn step(&mut self) -> Step {
        self.connection
            .step(self.now, &mut self.files, &mut self.counters)
    }

    /// All that leaves until the connection waits or ends. File octets show as `<offset+length>`.
    fn drain(&mut self, mut step: Step) -> (String, &'static str) {
        let mut text = String::new();
        loop {
            let sent = match step {
                Step::SendBytes { bytes, .. } => {
                    text += str::from_utf8(&bytes).unwrap();
                    bytes.len() as u64
                }
                Step::SendFile { offset, length, .. } => {
                    text += &format!("<{offset}+{length}>");
                    length
                }
                Step::Receive => return (text, "receive"),
                Step::Busy => return (text, "busy"),
                Step::WaitAnswer => return (text, "answer"),
                Step::WaitFor { want: true, .. } => return (text, "want"),
                Step::WaitFor { piece, .. } => return (text + &format!("?{piece}"), "wait"),
                Step::HandOff { read } => {
                    return (text + &String::from_utf8(read).unwrap(), "hand off");
                }
                Step::Close => return (text, "close"),
                Step::Abort => return (text, "abort"),
            };
            self.connection.on_sent(sent, &mut self.counters);
            step = self.step();
        }
    }

    fn ask(&mut self, text: &str) -> (String, &'static str) {
        let step = self.bytes(text);
        self.drain(step)
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")
}

#[test]
fn answers() {
    let cases = [
        // request, what the answer starts with, what it ends with, what follows
        (
            get("/text"),
            "HTTP/1.1 200",
            "\r\n\r\n0123456789",
            "receive",
        ),
        (
            "GET /text HTTP/1.0\r\n\r\n".into(),
            "HTTP/1.1 200",
            "close\r\n\r\n0123456789",
            "close",
        ),
        (
            "GET /text HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".into(),
            "HTTP/1.1 200",
            "0123456789",
            "close",
        ),
        (
            "HEAD /text HTTP/1.1\r\nHost: h\r\n\r\n".into(),
            "HTTP/1.1 200",
            "\r\n\r\n",
            "receive",
        ),
        (
            "GET /text HTTP/1.1\r\nHost: h\r\nRange: bytes=2-4\r\n\r\n".into(),
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nContent-Range: bytes 2-4/10\r\n",
            "\r\n\r\n234",
            "receive",
        ),
        (
            "GET /text HTTP/1.1\r\nHost: h\r\nRange: bytes=10-\r\n\r\n".into(),
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nContent-Range: bytes */10\r\n",
            "\r\n\r\n",
            "receive",
        ),
        (
            get("/object"),
            "HTTP/1.1 200",
            "\r\n\r\n<0+524288><524288+475712>",
            "receive",
        ),
        (
            "GET /object HTTP/1.1\r\nHost: h\r\nRange: bytes=-100\r\n\r\n".into(),
            "HTTP/1.1 206",
            "\r\n\r\n<999900+100>",
            "receive",
        ),
        (
            "HEAD /object HTTP/1.1\r\nHost: h\r\n\r\n".into(),
            "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n",
            "\r\n\r\n",
            "receive",
        ),
        (get("/none"), "HTTP/1.1 404", "\r\n\r\n", "receive"),
        (get("/busy"), "HTTP/1.1 503", "\r\n\r\n", "receive"),
        (
            "POST /text HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab".into(),
            "HTTP/1.1 405",
            "\r\n\r\n",
            "close",
        ),
        (
            "GET /text HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab".into(),
            "HTTP/1.1 400",
            "\r\n\r\n",
            "close",
        ),
        (
            "GET /text HTTP/1.1\r\n\r\n".into(),
            "HTTP/1.1 400",
            "\r\n\r\n",
            "close",
        ),
        (
            "\x16\x03\x01\x02".into(),
            "HTTP/1.1 400",
            "\r\n\r\n",
            "close",
        ),
        (
            format!("GET /{}", "a".repeat(9_000)),
            "HTTP/1.1 431",
            "\r\n\r\n",
            "close",
        ),
        ("GET /text HTTP/1.1\r\nHost".into(), "", "", "receive"),
    ];
    for (request, starts, ends, then) in cases {
        let mut script = Script::new();
        let (answer, after) = script.ask(&request);
        assert!(answer.starts_with(starts), "{request:?}: {answer}");
        assert!(answer.ends_with(ends), "{request:?}: {answer}");
        assert_eq!(after, then, "{request:?}");
    }
}

#[test]
fn a_large_body_leaves_in_chunks() {
    let mut script = Script::new();
    let (answer, after) = script.ask(&get("/big"));
    assert_eq!((answer.matches('x').count(), after), (1_200_000, "receive"));
    assert_eq!(script.connection.take_served().unwrap().bytes, 1_200_000);
    assert_eq!(script.connection.take_served(), None);
    assert_eq!(
        (script.counters.served, script.counters.body_bytes),
        (1, 1_200_000)
    );
}

#[test]
fn a_partial_send_goes_on_where_it_stopped() {
    let mut script = Script::new();
    let step = script.bytes(&get("/object"));
    let Step::SendBytes { bytes, more: true } = step else {
        panic!("{step:?}")
    };
    script
        .connection
        .on_sent(bytes.len() as u64, &mut script.counters);
    let step = script.step();
    assert!(matches!(
        step,
        Step::SendFile {
            offset: 0,
            length: 524_288,
            ..
        }
    ));
    assert!(matches!(script.step(), Step::Busy));
    script.connection.on_sent(1_000, &mut script.counters);
    let step = script.step();
    assert!(
        matches!(
            step,
            Step::SendFile {
                offset: 1_000,
                length: 524_288,
                ..
            }
        ),
        "{step:?}"
    );
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut script = Script::new();
    let (answer, after) = script.ask(&(get("/text") + &get("/none") + &get("/object") + "GET /te"));
    let at = |what: &str| {
        answer
            .find(what)
            .unwrap_or_else(|| panic!("{what}: {answer}"))
    };
    assert!(at("200 OK") < at("404") && at("404") < at("<0+524288>"));
    assert_eq!(after, "receive");
    let (answer, _) = script.ask("xt HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.ends_with("0123456789"));
}

#[test]
fn what_is_not_ours_is_handed_off_with_every_octet() {
    let mut script = Script::new();
    assert_eq!(script.ask(&get("/text")).1, "receive");
    let post =
        "POST /MAAS/metadata/2012-03-01/ HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nop=si";
    assert_eq!(script.ask(post), (post.to_string(), "hand off"));
    assert_eq!(script.counters.handed_off, 1);
}

#[test]
fn an_answer_that_comes_late_is_waited_for() {
    let mut script = Script::new();
    assert_eq!(script.ask(&get("/later")), (String::new(), "answer"));
    let found = Found::Bytes {
        body: Bytes::from_static(b"here"),
        content_type: "t/p",
    };
    script.files.0.insert("/later".into(), found);
    let step = script.step();
    assert!(script.drain(step).0.ends_with("here"));

    let mut script = Script::new();
    assert_eq!(script.ask(&get("/later")).1, "answer");
    script.now += Limits::default().find;
    assert_eq!(script.connection.deadline(), script.now);
    let step = script.step();
    let (answer, after) = script.drain(step);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("Retry-After: 2\r\n"));
    assert_eq!((after, script.counters.unavailable), ("receive", 1));
}

#[test]
fn pieces_are_served_as_they_appear() {
    let mut script = Script::new();
    let object = Arc::new(Object::absent([1; 32], 1_000, 400));
    script
        .files
        .0
        .insert("/object".into(), Found::Object(Arc::clone(&object)));
    assert_eq!(script.ask(&get("/object")), (String::new(), "want"));
    assert!(object.set_filling());
    object.open(null());
    let step = script.step();
    assert_eq!(script.drain(step), ("?0".to_string(), "wait"));
    object.set_present(0);
    let step = script.step();
    let (answer, after) = script.drain(step);
    assert!(answer.ends_with("\r\n\r\n<0+400>?1"), "{answer}");
    assert_eq!(after, "wait");
    object.set_present(2);
    let step = script.step();
    assert_eq!(script.drain(step), ("?1".to_string(), "wait"));
    object.set_present(1);
    let step = script.step();
    assert_eq!(script.drain(step), ("<400+600>".to_string(), "receive"));
    let served = script.connection.take_served().unwrap();
    assert_eq!(
        (served.bytes, served.whole, served.sha256),
        (1_000, true, Some([1; 32]))
    );
}

/// Before the head has left a failed fill is a 503; in mid-body only a broken connection is honest.
#[test]
fn a_fill_that_fails() {
    for (pieces, answer_is, after) in [(0, "HTTP/1.1 503", "receive"), (1, "", "abort")] {
        let mut script = Script::new();
        let object = Arc::new(Object::absent([1; 32], 1_000, 400));
        object.open(null());
        object.set_failed(); // an older failure is no reason to refuse
        script
            .files
            .0
            .insert("/object".into(), Found::Object(Arc::clone(&object)));
        assert_eq!(script.ask(&get("/object")).1, "want");
        object.set_filling();
        (0..pieces).for_each(|piece| object.set_present(piece));
        let step = script.step();
        assert_eq!(script.drain(step).1, "wait");
        object.set_failed();
        let step = script.step();
        let (answer, then) = script.drain(step);
        assert!(answer.starts_with(answer_is), "{answer}");
        assert_eq!(then, after);
    }
}

#[test]
fn silence_has_limits() {
    let limits = Limits::default();
    // The first head: its octets do not move the deadline.
    let mut script = Script::new();
    script.now += limits.head - Duration::from_secs(1);
    assert_eq!(script.ask("GET /").1, "receive");
    script.now += Duration::from_secs(1);
    assert_eq!(script.ask("t").1, "close");
    assert_eq!(script.counters.heads_late, 1);
    // Between requests, and the next head, in one time limit.
    for (half, counted) in [("", (0, 1)), ("GET /", (1, 0))] {
        let mut script = Script::new();
        assert_eq!(script.ask(&get("/text")).1, "receive");
        script.now += limits.idle - Duration::from_secs(1);
        assert_eq!(script.ask(half).1, "receive");
        script.now += Duration::from_secs(1);
        let step = script.step();
        assert_eq!(script.drain(step).1, "close");
        let counters = script.counters;
        assert_eq!((counters.heads_late, counters.idle), counted);
    }
    // A client that takes nothing.
    let mut script = Script::new();
    let step = script.bytes(&get("/text"));
    assert!(matches!(step, Step::SendBytes { .. }));
    script.now += limits.stall;
    assert!(matches!(script.step(), Step::Abort));
    assert_eq!(script.counters.stalled, 1);
    // A piece that never comes.
    let mut script = Script::new();
    let object = Arc::new(Object::absent([1; 32], 10, 4));
    script
        .files
        .0
        .insert("/object".into(), Found::Object(object));
    assert_eq!(script.ask(&get("/object")).1, "want");
    script.now += limits.fill;
    let step = script.step();
    assert!(script.drain(step).0.starts_with("HTTP/1.1 503"));
    // Nor one in mid-body, which counts from the wait and not from the last send.
    let mut script = Script::new();
    let object = Arc::new(Object::absent([1; 32], 10, 4));
    object.open(null());
    object.set_filling();
    object.set_present(0);
    script
        .files
        .0
        .insert("/object".into(), Found::Object(object));
    assert_eq!(script.ask(&get("/object")).1, "wait");
    script.now += limits.fill - Duration::from_secs(1);
    let step = script.step();
    assert_eq!(script.drain(step).1, "wait");
    script.now += Duration::from_secs(1);
    assert!(matches!(script.step(), Step::Abort));
    assert_eq!(script.counters.broken, 1);
}

#[test]
fn a_client_that_ends_is_still_answered() {
    let mut script = Script::new();
    script.connection.on_end();
    let (answer, after) = script.ask(&get("/text"));
    assert!(answer.ends_with("0123456789"));
    assert_eq!(after, "close");
}

#[test]
fn a_flood_while_we_send_is_cut() {
    let mut script = Script::new();
    assert!(matches!(
        script.bytes(&get("/object")),
        Step::SendBytes { .. }
    ));
    for _ in 0..5 {
        script
            .connection
            .on_bytes(&[b'x'; 4096], &mut script.counters);
    }
    assert!(matches!(script.step(), Step::Abort));
    assert_eq!(script.counters.flooded, 1);
}

/// A send that failed is not one that sent nothing yet: the connection ends, in the head as in the body.
#[test]
fn a_send_of_nothing_ends_the_connection() {
    for (path, sends) in [("/big", 0), ("/big", 1), ("/big", 2), ("/object", 1)] {
        let mut script = Script::new();
        let mut step = script.bytes(&get(path));
        for _ in 0..sends {
            let sent = match step {
                Step::SendBytes { bytes, .. } => bytes.len() as u64,
                Step::SendFile { length, .. } => length,
                other => panic!("{other:?}"),
            };
            script.connection.on_sent(sent, &mut script.counters);
            step = script.step();
        }
        script.connection.on_sent(0, &mut script.counters);
        let step = script.step();
        assert!(matches!(step, Step::Abort), "{path} {sends}: {step:?}");
    }
}

/// Octet by octet, head and body: every octet leaves once and in order.
#[test]
fn a_send_may_take_any_part() {
    for part in [1, 7, 4_096, 30_000] {
        let mut script = Script::new();
        let mut step = script.bytes(&get("/big"));
        let mut text = Vec::new();
        while let Step::SendBytes { bytes, .. } = step {
            let sent = bytes
                .len()
                .min(if text.len() < 20_000 { part } else { 300_000 });
            text.extend_from_slice(&bytes[..sent]);
            script.connection.on_sent(sent as u64, &mut script.counters);
            step = script.step();
        }
        let (whole, _) = Script::new().ask(&get("/big"));
        assert!(text == whole.as_bytes(), "by {part}");
        assert_eq!(script.counters.body_bytes, 1_200_000);
    }
}

/// What a client takes decides, and not what left for its socket: a slow one is served, one that takes an octet now and
/// then holds no place for ever.
#[test]
fn a_client_has_to_take_a_little_in_each_stretch() {
    let limits = Limits::default();
    for (per_stretch, lives) in [
        (limits.take_bytes_min, true),
        (limits.take_bytes_min - 1, false),
        (1, false),
        (0, false),
    ] {
        let mut script = Script::new();
        let (mut left, mut taken) = (0, 0);
        let mut step = script.bytes(&get("/big"));
        // The head and a chunk are in the socket; what the client takes makes room for as much.
        for _ in 0..2 {
            let Step::SendBytes { bytes, .. } = step else {
                panic!("{step:?}")
            };
            left += bytes.len() as u64;
            script
                .connection
                .on_sent(bytes.len() as u64, &mut script.counters);
            step = script.step();
        }
        script.connection.on_sent(1, &mut script.counters);
        left += 1;
        for stretch in 1..=4 {
            let step = script.step();
            assert!(matches!(step, Step::SendBytes { .. }), "{step:?}");
            script.now += limits.stall - Duration::from_millis(1);
            assert!(!script.connection.wants_queued(script.now));
            assert!(matches!(script.step(), Step::Busy));
            script.now += Duration::from_millis(1);
            assert!(script.connection.wants_queued(script.now));
            taken += per_stretch;
            script.connection.on_queued(left - taken);
            let step = script.step();
            if !lives {
                assert!(matches!(step, Step::Abort), "{per_stretch}: {step:?}");
                assert_eq!(script.counters.stalled, 1);
                break;
            }
            assert!(matches!(step, Step::Busy), "{stretch}: {step:?}");
            script.connection.on_sent(per_stretch, &mut script.counters);
            left += per_stretch;
        }
    }
}
