//! The command line against a region of a few fixed answers: what it asks, says, and ends with.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// "GET machines/" -> status and answer; the query is not looked at unless the key has one.
type Answers = BTreeMap<String, (u16, Value)>;

struct Region {
    url: String,
    /// "POST subnets/ cidr=10.0.0.0%2F24&vlan=5002"
    asked: Arc<Mutex<Vec<String>>>,
}

impl Region {
    fn new(answers: &[(&str, u16, Value)]) -> Self {
        let answers: Answers = answers
            .iter()
            .map(|(key, status, answer)| ((*key).to_owned(), (*status, answer.clone())))
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                serve(stream, &answers, &seen);
            }
        });
        Region { url, asked }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command
            .args(arguments)
            .env("MUSTER_URL", &self.url)
            .env("MUSTER_API_KEY", "a:b:c")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// One request a connection.
fn serve(mut stream: TcpStream, answers: &Answers, seen: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return;
    };
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if header.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let target = target.trim_start_matches("/MAAS/api/2.0/");
    let path = target.split('?').next().unwrap_or_default();
    let body = String::from_utf8(body).unwrap();
    let asked = format!("{method} {target} {body}").trim_end().to_owned();
    seen.lock().unwrap().push(asked);
    let answer = answers
        .get(&format!("{method} {target}"))
        .or_else(|| answers.get(&format!("{method} {path}")));
    let (status, answer) = answer.cloned().unwrap_or((404, json!("no such path")));
    let body = answer.to_string();
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all((head + &body).as_bytes());
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn machine(more: Value) -> Value {
    let mut machine = json!({"system_id": "abc123", "hostname": "web1", "power_type": "ipmi",
        "boot_interface": {"mac_address": "52:54:00:00:00:01", "vlan":
            {"id": 5001, "fabric": "fabric-0", "dhcp_on": true, "primary_rack": "rack01", "relay_vlan": null}}});
    machine
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    machine
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let rows: Vec<Value> = (0..5000)
        .map(|n| machine(json!({"hostname": format!("m{n}")})))
        .collect();
    let region = Region::new(&[("GET machines/", 200, json!(rows))]);
    for arguments in [
        &["machine", "list"][..],
        &["--output", "json", "machine", "list"],
        &["completion", "bash"],
        &["--help"],
    ] {
        let mut child = region
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert_eq!(err(&ended), "", "{arguments:?}");
        assert!(ended.status.success(), "{arguments:?} {:?}", ended.status);
    }
    // A disk that is full is another matter.
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let ended = region
        .command(&["machine", "list"])
        .stdout(full)
        .output()
        .unwrap();
    assert!(
        !ended.status.success() && err(&ended).contains("standard output"),
        "{}",
        err(&ended)
    );
}

/// On a terminal of its own (Python's standard library makes one).
#[test]
fn passwords_and_keys_are_not_echoed() {
    let home = tempfile::tempdir().unwrap();
    let region = Region::new(&[
        ("GET users/", 200, json!({"username": "admin"})),
        (
            "POST /MAAS/accounts/authenticate/",
            200,
            json!({"consumer_key": "a", "token_key": "b", "token_secret": "c"}),
        ),
    ]);
    let terminal = "import os, pty, sys\n\
        pid, fd = pty.fork()\n\
        if pid == 0: os.execv(sys.argv[1], sys.argv[1:])\n\
        seen = b''\n\
        while not seen.endswith(b': '): seen += os.read(fd, 1)\n\
        os.write(fd, b'hush:hush:hush\\n')\n\
        try:\n\
        \x20   while chunk := os.read(fd, 4096): seen += chunk\n\
        except OSError: pass\n\
        sys.stdout.buffer.write(seen)\n\
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n";
    for (more, prompt) in [
        (&[][..], "API key: "),
        (&["--username", "admin"], "Password: "),
    ] {
        let ended = Command::new("python3")
            .args([
                "-c",
                terminal,
                env!("CARGO_BIN_EXE_muster"),
                "login",
                &region.url,
            ])
            .args(more)
            .env("XDG_CONFIG_HOME", home.path())
            .output()
            .unwrap();
        assert!(ended.status.success(), "{} {}", out(&ended), err(&ended));
        assert!(
            out(&ended).contains(prompt) && out(&ended).contains("Logged in as admin"),
            "{}",
            out(&ended)
        );
        assert!(!out(&ended).contains("hush"), "{}", out(&ended));
    }
    assert!(
        region
            .asked()
            .iter()
            .any(|asked| asked.contains("hush%3Ahush%3Ahush")),
        "the password arrived"
    );
}

#[test]
fn ranges_show_what_hosts_claim() {
    let usage = json!([{"id": 3, "subnet": "10.0.0.0/24", "start_ip": "10.0.0.1", "end_ip": "10.0.0.100", "total": 100,
        "bound": 11, "resting": 12, "claimed": 47, "ended": 0, "free": 30, "percent": 70.0}]);
    let region = Region::new(&[("GET ipranges/", 200, usage)]);
    let ended = region.run(&["dhcp", "ranges"]);
    let shown = String::from_utf8_lossy(&ended.stdout).into_owned();
    let lines: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let at = lines[0]
        .iter()
        .position(|column| column.eq_ignore_ascii_case("claimed"));
    assert_eq!(at.map(|at| lines[1][at]), Some("47"), "{shown}");
}

#[test]
fn a_subnet_says_what_goes_with_it_and_is_not_deleted_unasked() {
    let goes = "the range 10.0.0.10 to 10.0.0.99, the reserved address 10.0.0.5, the DHCP option 42, the link of eth0 on web1";
    let region = Region::new(&[
        (
            "GET subnets/",
            200,
            json!([{"id": 7, "cidr": "10.0.0.0/24", "name": "net"}]),
        ),
        (
            "DELETE subnets/7/",
            400,
            json!(format!(
                "Cannot delete a subnet that has IP addresses in use: with it would go {goes}. (Use the 'force' parameter to override.)"
            )),
        ),
        ("DELETE subnets/7/?force=true", 200, json!("")),
    ]);
    let forced = || {
        let asked = region.asked();
        asked.iter().filter(|asked| asked.contains("force")).count()
    };
    let ended = region.run(&["subnet", "delete", "net"]);
    assert!(!ended.status.success());
    assert!(
        err(&ended).contains(goes) && err(&ended).contains("--yes"),
        "{}",
        err(&ended)
    );
    assert_eq!(forced(), 0);
    let ended = region.run(&["subnet", "delete", "net", "--yes"]);
    assert!(ended.status.success(), "{}", err(&ended));
    assert!(
        out(&ended).contains(&format!("and with it {goes}.")),
        "{}",
        out(&ended)
    );
    assert_eq!(forced(), 1);
}

#[test]
fn a_subnet_that_dhcp_needs_is_not_deleted_by_force() {
    let why = "Cannot delete a subnet that is actively servicing a dynamic IP range. (Disable DHCP first.)";
    let region = Region::new(&[("DELETE subnets/7/", 400, json!(why))]);
    let ended = region.run(&["subnet", "delete", "7", "--yes"]);
    assert!(!ended.status.success());
    assert!(
        err(&ended).contains("actively servicing"),
        "{}",
        err(&ended)
    );
    assert_eq!(region.asked().len(), 1);
}

#[test]
fn a_subnet_without_a_vlan_gets_the_default_vlan_of_a_new_fabric() {
    let answers = |status| {
        [
            (
                "POST fabrics/",
                200,
                json!({"id": 3, "vlans": [{"id": 5009}]}),
            ),
            ("POST subnets/", status, json!({"cidr": "10.0.0.0/24"})),
            ("DELETE fabrics/3/", 200, json!("")),
        ]
    };
    let region = Region::new(&answers(200));
    assert!(
        region
            .run(&["subnet", "create", "10.0.0.0/24"])
            .status
            .success()
    );
    assert_eq!(
        region.asked(),
        [
            "POST fabrics/",
            "POST subnets/ cidr=10.0.0.0%2F24&vlan=5009"
        ]
    );
    // A refused subnet leaves no fabric behind; a VLAN that was said needs none.
    let region = Region::new(&answers(400));
    assert!(
        !region
            .run(&["subnet", "create", "10.0.0.0/24"])
            .status
            .success()
    );
    assert_eq!(region.asked().last().unwrap(), "DELETE fabrics/3/");
    let region = Region::new(&answers(200));
    assert!(
        region
            .run(&["subnet", "create", "10.0.0.0/24", "--vlan", "5001"])
            .status
            .success()
    );
    assert_eq!(
        region.asked(),
        ["POST subnets/ cidr=10.0.0.0%2F24&vlan=5001"]
    );
}

#[test]
fn the_power_status_of_an_unreachable_bmc_says_why_and_exits_1() {
    let status = |answer: Value| {
        let region = Region::new(&[
            ("GET machines/", 200, json!([machine(json!({}))])),
            ("GET machines/abc123/", 200, answer),
        ]);
        region.run(&["machine", "power", "web1", "status"])
    };
    let ended = status(json!({"state": "error", "reason": "no answer from BMC 10.0.0.9"}));
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        err(&ended).contains("no answer from BMC 10.0.0.9"),
        "{}",
        err(&ended)
    );
    let ended = status(json!({"state": "error"}));
    assert_eq!(ended.status.code(), Some(1));
    let ended = status(json!({"state": "off"}));
    assert!(
        ended.status.success() && out(&ended).contains("web1 is off."),
        "{}",
        out(&ended)
    );
}

#[test]
fn the_power_of_a_manual_machine_is_a_persons_to_switch() {
    let manual = machine(json!({"power_type": "manual"}));
    let region = Region::new(&[
        ("GET machines/", 200, json!([manual.clone()])),
        ("GET machines/abc123/", 200, json!({"state": "unknown"})),
        ("POST machines/abc123/", 200, manual),
        ("GET events/", 200, json!({"events": []})),
    ]);
    for (action, said) in [
        ("on", "a person must switch it on"),
        ("off", "a person must switch it off"),
    ] {
        let ended = region.run(&["machine", "power", "web1", action]);
        assert!(out(&ended).contains(said), "{}", out(&ended));
    }
    let ended = region.run(&["machine", "power", "web1", "status"]);
    assert!(
        out(&ended).contains("unknown: its power is manual"),
        "{}",
        out(&ended)
    );
    let ended = region.run(&["machine", "commission", "web1"]);
    assert!(
        err(&ended).contains("switch it on, so that it boots from the network"),
        "{}",
        err(&ended)
    );
}

#[test]
fn a_commission_on_a_vlan_that_no_rack_serves_warns_at_once() {
    let rack = |id: &str, connected: bool| json!({"system_id": id, "hostname": id, "connected": connected});
    let commission_with = |vlan: Value, racks: Value| {
        let card = json!({"boot_interface": {"mac_address": "52:54:00:00:00:01", "vlan": vlan}});
        let found = machine(card);
        let region = Region::new(&[
            ("GET machines/", 200, json!([found.clone()])),
            ("GET events/", 200, json!({"events": []})),
            ("GET rackcontrollers/", 200, racks),
            ("POST machines/abc123/", 200, found),
        ]);
        let ended = region.run(&["machine", "commission", "web1"]);
        assert!(ended.status.success(), "{}", err(&ended));
        err(&ended)
    };
    let commission = |vlan| commission_with(vlan, json!([rack("rack01", true)]));
    let served = json!({"id": 5001, "dhcp_on": true, "primary_rack": "rack01"});
    assert_eq!(commission(served.clone()), "");
    assert_eq!(
        commission(json!({"id": 5002, "dhcp_on": false, "relay_vlan": served})),
        "",
        "relayed"
    );
    for vlan in [
        json!({"id": 5002, "dhcp_on": false, "primary_rack": null, "relay_vlan": null}),
        json!({"id": 5002, "dhcp_on": true, "primary_rack": null}),
    ] {
        let said = commission(vlan);
        assert!(said.contains("warning: no rack serves VLAN 5002"), "{said}");
    }
    assert!(commission(Value::Null).contains("no rack has seen 52:54:00:00:00:01"));
    // A rack that is named and not there serves nobody.
    let both =
        json!({"id": 5001, "dhcp_on": true, "primary_rack": "rack01", "secondary_rack": "rack02"});
    for (vlan, racks, want) in [
        (
            &served,
            json!([rack("rack01", false)]),
            "is connected (rack01)",
        ),
        (
            &json!({"id": 5001, "dhcp_on": false, "relay_vlan": served}),
            json!([rack("rack01", false)]),
            "is connected (rack01)",
        ),
        (&served, json!([]), "is connected ()"),
        (
            &both,
            json!([rack("rack01", false), rack("rack02", true)]),
            "",
        ),
        (
            &both,
            json!([rack("rack01", false), rack("rack02", false)]),
            "is connected (rack01, rack02)",
        ),
    ] {
        let said = commission_with(vlan.clone(), racks.clone());
        match want {
            "" => assert_eq!(said, "", "{vlan} {racks}"),
            want => assert!(said.contains(want), "{vlan} {racks}: {said}"),
        }
    }
}

#[test]
fn events_are_filtered_and_paged() {
    let events: Vec<Value> = (0..3)
        .map(|n| json!({"id": 40 - n, "level": "INFO", "type": "Powered on", "hostname": "web1", "description": "x"}))
        .collect();
    let region = Region::new(&[
        ("GET machines/", 200, json!([machine(json!({}))])),
        ("GET events/", 200, json!({"events": events})),
    ]);
    let ended = region.run(&[
        "events",
        "--machine",
        "web1",
        "--mac",
        "52:54:00:00:00:01",
        "--type",
        "POWERED_ON",
        "--by",
        "admin",
        "--level",
        "debug",
        "--limit",
        "3",
        "--before",
        "99",
    ]);
    assert!(ended.status.success(), "{}", err(&ended));
    assert_eq!(
        region.asked().last().unwrap(),
        "GET events/?op=query&level=DEBUG&limit=3&id=abc123&mac_address=52%3A54%3A00%3A00%3A00%3A01\
         &type=POWERED_ON&owner=admin&before=99"
    );
    let lines = out(&ended);
    let ids: Vec<&str> = lines
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(ids, ["38", "39", "40"], "oldest first");
    assert!(
        err(&ended).contains("older ones: --before 38"),
        "{}",
        err(&ended)
    );
    // The last page says nothing of others; a program reads one object a line.
    let ended = region.run(&["--output", "json", "events"]);
    assert_eq!((out(&ended).lines().count(), err(&ended).as_str()), (3, ""));
    assert!(!region.run(&["events", "--limit", "2000"]).status.success());
}
