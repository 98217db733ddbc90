//! The command line against what is no region, a region in trouble, and words that are not to be trusted.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// Whatever answers: each request's first line goes in, the whole answer comes out.
struct Odd {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Odd {
    fn new(answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut head = [0; 8192];
                let length = stream.read(&mut head).unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                let line = head.lines().next().unwrap_or_default().to_owned();
                let answer = answer(&line);
                seen.lock().unwrap().push(line);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Odd { url, asked }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        muster(arguments)
            .env("MUSTER_URL", &self.url)
            .env("MUSTER_API_KEY", "a:b:c")
            .output()
            .unwrap()
    }

    fn asked(&self, method: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|line| line.starts_with(method)).count()
    }
}

/// In a home of its own, with nothing set.
fn muster(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command
        .args(arguments)
        .env_remove("MUSTER_URL")
        .env_remove("MUSTER_API_KEY")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .stdin(Stdio::null());
    command
}

fn http(status: u16, more: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n{body}"
    )
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One line of each kind of command.
const COMMANDS: &[&[&str]] = &[
    &["machine", "list"],
    &["machine", "show", "web1"],
    &["machine", "power", "web1", "status"],
    &["machine", "commission", "web1"],
    &["machine", "delete", "web1"],
    &["rack", "list"],
    &["rack", "token"],
    &["image", "list"],
    &["vlan", "list"],
    &["vlan", "dhcp-off", "5001"],
    &["subnet", "list"],
    &["subnet", "create", "10.0.0.0/24"],
    &["subnet", "delete", "7", "--yes"],
    &["range", "list"],
    &["range", "delete", "7"],
    &["dhcp", "leases"],
    &["dhcp", "ranges"],
    &["dhcp", "stats"],
    &["dhcp", "option", "list"],
    &["dhcp", "reservation", "list"],
    &["dhcp", "reservation", "delete", "7"],
    &["events"],
];

/// A page of a proxy, a switch or a login wall, and what is cut off: never an empty list, never "is gone".
#[test]
fn what_is_no_region_is_told_and_exits_1() {
    let page = "<!DOCTYPE html>\n<html><body>Welcome to nginx</body></html>";
    let answers = [
        http(200, "Content-Type: text/html\r\n", page),
        http(502, "Content-Type: text/html\r\n", page),
        http(200, "", "{\"machines\": "),
        http(401, "", "Authorization Error: 'Invalid API key.'"),
        http(503, "Retry-After: 5\r\n", ""),
        "HTTP/1.1 200 x\r\nContent-Length: 500\r\n\r\n[]".to_owned(),
        "220 mail.example ESMTP\r\n".to_owned(),
        String::new(),
    ];
    for answer in answers {
        let copy = answer.clone();
        let odd = Odd::new(move |_| copy.clone());
        for arguments in COMMANDS {
            let ended = odd.run(arguments);
            assert_eq!(ended.status.code(), Some(1), "{arguments:?} {answer}");
            assert_eq!(out(&ended), "", "{arguments:?} {answer}");
            let said = err(&ended);
            assert!(
                said.starts_with("muster: ") && !said.contains("<html>"),
                "{arguments:?} {answer}: {said}"
            );
        }
    }
    // JSON of somebody else.
    for body in ["{}", "\"OK\"", "5", "null", "[]"] {
        let odd = Odd::new(move |_| http(200, "", body));
        for arguments in [
            &["machine", "show", "web1"][..],
            &["dhcp", "leases"],
            &["events"],
            &["login", &odd.url],
        ] {
            let ended = odd.run(arguments);
            assert_eq!(ended.status.code(), Some(1), "{arguments:?} {body}");
        }
    }
}

#[test]
fn a_region_that_cannot_be_reached_is_told_and_exits_1() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for arguments in COMMANDS {
        let ended = muster(arguments)
            .env("MUSTER_URL", &closed)
            .env("MUSTER_API_KEY", "a:b:c")
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}");
        assert!(
            err(&ended).contains(&format!("asking {closed}")),
            "{}",
            err(&ended)
        );
    }
}

/// A redirected POST or DELETE would be sent as a GET, which changes nothing and answers 200.
#[test]
fn a_redirect_is_told_and_not_followed() {
    let row = json!([{"system_id": "abc123", "hostname": "web1"}]).to_string();
    let elsewhere = Odd::new(move |_| http(200, "", &row));
    for status in [301, 302, 303, 307, 308] {
        let location = format!("Location: {}/\r\n", elsewhere.url);
        let odd = Odd::new(move |_| http(status, &location, ""));
        for arguments in [
            &["machine", "list"][..],
            &["range", "delete", "7"],
            &["vlan", "dhcp-off", "5001"],
        ] {
            let ended = odd.run(arguments);
            assert_eq!(ended.status.code(), Some(1), "{status} {arguments:?}");
            assert!(err(&ended).contains(&elsewhere.url), "{}", err(&ended));
        }
    }
    assert_eq!(elsewhere.asked(""), 0);
}

fn machines(rows: Value) -> Odd {
    let rows = rows.to_string();
    Odd::new(move |line| match line.starts_with("GET") {
        true => http(200, "", &rows),
        false => http(204, "", ""),
    })
}

/// A region that knows no such filter answers with every machine; the first of them is not the one that was meant.
#[test]
fn only_the_machine_that_was_named_is_touched() {
    let two = json!([
        {"system_id": "abc123", "hostname": "web1", "fqdn": "web1.a"},
        {"system_id": "def456", "hostname": "web2", "fqdn": "web2.a"},
    ]);
    for (name, is_found) in [
        ("", false),
        (" ", false),
        ("web", false),
        ("web3", false),
        ("web2", true),
        ("WEB2", true),
        ("web2.a", true),
        ("def456", true),
    ] {
        let region = machines(two.clone());
        let ended = region.run(&["machine", "delete", name]);
        assert_eq!(ended.status.success(), is_found, "{name:?}");
        assert_eq!(region.asked("DELETE"), usize::from(is_found), "{name:?}");
    }
    let twins = json!([
        {"system_id": "abc123", "hostname": "web1", "fqdn": "web1.a"},
        {"system_id": "def456", "hostname": "web1", "fqdn": "web1.b"},
    ]);
    let region = machines(twins);
    let ended = region.run(&["machine", "delete", "web1"]);
    assert!(
        err(&ended).contains("say one of abc123, def456"),
        "{}",
        err(&ended)
    );
    assert_eq!(region.asked("DELETE"), 0);
    assert!(
        region
            .run(&["machine", "delete", "web1.b"])
            .status
            .success()
    );
}

/// Names, events and host names of leases come from whoever sends a packet.
#[test]
fn a_terminal_is_not_sent_what_it_would_obey() {
    let odd = "\u{1b}[2J\u{9b}31m\u{202e}web\u{7}";
    let rows = json!([{"system_id": "abc123", "hostname": odd, "status_name": odd}]);
    let shown = out(&machines(rows).run(&["machine", "list"]));
    assert!(
        shown.contains("web") && !shown.contains(|c: char| c.is_control() && c != '\n'),
        "{shown:?}"
    );
    assert!(!shown.contains('\u{202e}'), "{shown:?}");
    let events = json!({"events": [{"id": 1, "description": odd, "hostname": odd}]}).to_string();
    let region = Odd::new(move |_| http(200, "", &events));
    let shown = out(&region.run(&["events"]));
    assert!(
        !shown.contains(|c: char| c.is_control() && c != '\n'),
        "{shown:?}"
    );
    let odd = odd.to_owned();
    let refuses = Odd::new(move |_| http(400, "", &odd));
    let said = err(&refuses.run(&["machine", "list"]));
    assert!(
        !said.contains(|c: char| c.is_control() && c != '\n'),
        "{said:?}"
    );
}

#[test]
fn no_secret_comes_by_argument_or_goes_into_an_error() {
    let region = machines(json!([]));
    for name in ["power_pass", "power_token", "k_g"] {
        let ended = region.run(&[
            "machine",
            "create",
            "web1",
            "--mac",
            "52:54:00:00:00:01",
            "--power",
            &format!("{name}=hush"),
        ]);
        assert_eq!(ended.status.code(), Some(1));
        assert!(
            err(&ended).contains("--power-parameters-file") && !err(&ended).contains("hush"),
            "{}",
            err(&ended)
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("power.json");
    for text in [
        "\"hush\"",
        "hush",
        "[\"hush\"]",
        "{\"power_pass\": hush}",
        "{\"power_pass\": \"hush\"",
        "",
    ] {
        std::fs::write(&file, text).unwrap();
        let ended = region.run(&[
            "machine",
            "create",
            "web1",
            "--mac",
            "52:54:00:00:00:01",
            "--power-parameters-file",
            file.to_str().unwrap(),
        ]);
        assert_eq!(ended.status.code(), Some(1), "{text}");
        assert!(!err(&ended).contains("hush"), "{}", err(&ended));
    }
    assert_eq!(region.asked("POST"), 0);
    // The login's file.
    std::fs::create_dir(folder.path().join("muster")).unwrap();
    let login = folder.path().join("muster/login.toml");
    for text in [
        "url = \"http://region\"\napi_key = \"a:b:hush",
        "api_key = \"a:b:hush\"",
        "api_key = hush",
    ] {
        std::fs::write(&login, text).unwrap();
        let ended = muster(&["machine", "list"])
            .env("XDG_CONFIG_HOME", folder.path())
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(1));
        assert!(
            err(&ended).contains("log in again") && !err(&ended).contains("hush"),
            "{}",
            err(&ended)
        );
    }
}

/// A region without its key, or a key without its region, must not become those of the last login.
#[test]
fn half_of_the_environment_is_not_filled_up_from_the_file() {
    let region = machines(json!([]));
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("muster")).unwrap();
    let text = format!("url = \"{}\"\napi_key = \"a:b:c\"", region.url);
    std::fs::write(folder.path().join("muster/login.toml"), text).unwrap();
    let run = |name: &str, value: &str| {
        muster(&["machine", "list"])
            .env("XDG_CONFIG_HOME", folder.path())
            .env(name, value)
            .output()
            .unwrap()
    };
    for (name, value) in [
        ("MUSTER_URL", "http://127.0.0.1:1"),
        ("MUSTER_API_KEY", "d:e:f"),
    ] {
        let ended = run(name, value);
        assert_eq!(ended.status.code(), Some(1));
        assert!(err(&ended).contains("go together"), "{}", err(&ended));
    }
    assert_eq!(region.asked(""), 0);
    assert!(
        run("MUSTER_URL", "").status.success(),
        "empty is as not set"
    );
    let ended = muster(&["machine", "list"]).output().unwrap();
    assert!(err(&ended).contains("not logged in"), "{}", err(&ended));
    let ended = muster(&["machine", "list"])
        .env("MUSTER_URL", "region:5240")
        .env("MUSTER_API_KEY", "a:b:c")
        .output()
        .unwrap();
    assert!(err(&ended).contains("http://HOST:5240"), "{}", err(&ended));
}

/// A region that restarts does not end a watch; one that says no does.
#[test]
fn a_watch_outlives_a_region_that_restarts() {
    let count = Mutex::new(0);
    let region = Odd::new(move |line| {
        let mut count = count.lock().unwrap();
        *count += 1;
        let found = json!([{"system_id": "abc123", "hostname": "web1"}]).to_string();
        match (line.contains("events/"), *count) {
            (false, 1) => http(200, "", &found),
            (true, 4) => http(
                200,
                "",
                r#"{"events": [{"id": 7, "description": "booted"}]}"#,
            ),
            (true, 2) => http(200, "", r#"{"events": []}"#),
            (true, 3) => http(503, "", "no database"),
            _ => http(404, "", "Not Found"),
        }
    });
    let ended = region.run(&["machine", "events", "web1", "--watch"]);
    assert_eq!(ended.status.code(), Some(1), "404 ends it");
    assert!(out(&ended).contains("booted"), "{}", out(&ended));
    assert!(
        err(&ended).contains("no database (503); trying again"),
        "{}",
        err(&ended)
    );
}

/// Racks that answer are shown although one does not.
#[test]
fn one_rack_that_does_not_answer_hides_no_other() {
    let region = Odd::new(|line| {
        let path = line.split_whitespace().nth(1).unwrap_or_default();
        if path.contains("rackcontrollers/rack1/") {
            return http(503, "", "rack1 is not connected");
        }
        let body = if path.contains("rackcontrollers/rack2/") {
            json!({"hostname": "two", "counters": {"dhcp_acks_total": 3}})
        } else {
            json!([{"system_id": "rack1", "hostname": "one", "connected": true},
                   {"system_id": "rack2", "hostname": "two", "connected": true}])
        };
        http(200, "", &body.to_string())
    });
    let ended = region.run(&["dhcp", "stats"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(out(&ended).contains("dhcp_acks_total"), "{}", out(&ended));
    assert!(
        err(&ended).contains("asking the rack one"),
        "{}",
        err(&ended)
    );
}

/// Wrong arguments are told with exit status 2, help and version with 0, in every command.
#[test]
fn every_command_has_help_and_refuses_what_it_does_not_know() {
    fn walk(path: &[&str]) {
        let run = |more: &str| {
            let arguments: Vec<&str> = path.iter().copied().chain([more]).collect();
            muster(&arguments).output().unwrap()
        };
        let help = run("--help");
        assert!(help.status.success() && err(&help).is_empty(), "{path:?}");
        assert_eq!(run("--nonsense").status.code(), Some(2), "{path:?}");
        let text = out(&help);
        let inner = text.split("Commands:\n").nth(1).unwrap_or_default();
        let names = inner.lines().take_while(|line| !line.is_empty());
        for name in names.filter_map(|line| line.split_whitespace().next()) {
            if name != "help" && path.len() < 3 {
                let inner: Vec<&str> = path.iter().copied().chain([name]).collect();
                walk(&inner);
            }
        }
    }
    walk(&[]);
    assert_eq!(muster(&[]).output().unwrap().status.code(), Some(2));
    assert!(muster(&["--version"]).output().unwrap().status.success());
}
