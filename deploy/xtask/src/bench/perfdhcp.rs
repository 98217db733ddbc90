//! perfdhcp, the load generator of Kea's project (Debian package kea-admin): its arguments and what it prints.
//!
//! By itself perfdhcp is a relay agent: it sends from an address of its own with `giaddr`, and gets unicast answers.
//! Clients of the local link are made by templates: broadcast DISCOVER and REQUEST with the broadcast flag, and a
//! packet filter rule on the clients' host that hands the broadcast answers to perfdhcp's socket.
//!
//! `-x t` makes it print when each answered message was sent and its answer came: latencies are from that.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lab::LOAD_INTERFACE;
use serde::Serialize;

pub const PROGRAM: &str = "perfdhcp";
/// Clients are numbered from here on. Its last octets count up.
pub const FIRST_MAC: [u8; 6] = [0x00, 0x0c, 0x01, 0x00, 0x00, 0x00];
/// For the one exchange that shows that a server is up.
pub const PROBE_MAC: [u8; 6] = [0x00, 0x0c, 0x02, 0x00, 0x00, 0x00];
/// Circuit id and remote id, as an access switch puts them in.
const RELAY_INFORMATION: &str = "0106000400640105020800060c0102030405";
/// After the last DISCOVER, for what is still under way, in microseconds.
const LAST_ANSWERS: &str = "1000000";
/// The second `-n` is for REQUESTs. With one that is never met perfdhcp waits as long as it was told; with none it
/// would leave as soon as every OFFER is there, and lose the ACKs that are not.
const NEVER: &str = "1000000000";

/// How the clients' messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path4 {
    /// Broadcast on the server's own link.
    Local,
    /// From a relay agent, with option 82.
    Relay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// So many exchanges per second, so many in all.
    Steady { rate: u32, exchanges: u32 },
    /// Every client at once, again and again until it is answered.
    Avalanche,
}

/// What one run of perfdhcp does.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    pub path: Path4,
    pub load: Load,
    pub clients: u32,
    pub first_mac: [u8; 6],
    pub server: Ipv4Addr,
    pub client: Ipv4Addr,
    /// No address may be given twice: only where every client asks once.
    pub unique: bool,
    /// Where the templates are.
    pub folder: &'a Path,
}

impl Plan<'_> {
    pub fn arguments(&self) -> Vec<String> {
        let mut words: Vec<String> = vec!["-4".into()];
        let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
        if self.unique {
            add(&["-u"]);
        }
        match self.load {
            Load::Steady { rate, exchanges } => {
                add(&["-r", &rate.to_string(), "-n", &exchanges.to_string()]);
                add(&["-n", NEVER, "-W", LAST_ANSWERS]);
            }
            Load::Avalanche => add(&["--scenario", "avalanche"]),
        }
        add(&["-R", &self.clients.to_string(), "-x", "t"]);
        add(&["-b", &format!("mac={}", colons(self.first_mac))]);
        match self.path {
            Path4::Relay => add(&[
                "-o",
                &format!("82,{RELAY_INFORMATION}"),
                &self.server.to_string(),
            ]),
            Path4::Local => {
                let templates = Templates::of(self.folder);
                add(&["-B", "-L", "68", "-l", &self.client.to_string()]);
                add(&["-T", &templates.discover.to_string_lossy()]);
                add(&["-T", &templates.request.to_string_lossy()]);
                // Where each message has its xid, the last octet of chaddr, and the options that it fills in.
                add(&["-X", "4", "-X", "4", "-O", "33", "-O", "33", "-E", "8"]);
                add(&[
                    "-S",
                    &SERVER_ID_OFFSET.to_string(),
                    "-I",
                    &REQUESTED_OFFSET.to_string(),
                ]);
                add(&["255.255.255.255"]);
            }
        }
        words
    }
}

pub fn colons(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// The MAC of client `number` of those that begin with `first`.
pub fn mac_of(first: [u8; 6], number: u32) -> [u8; 6] {
    let [_, _, a, b, c, d] = first;
    let [a, b, c, d] = (u32::from_be_bytes([a, b, c, d]) + number).to_be_bytes();
    [first[0], first[1], a, b, c, d]
}

// ---------------------------------------------------------------- templates

const MAGIC_COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
const HEADER: usize = 236;
/// Behind the cookie and option 53.
const SERVER_ID_OFFSET: usize = HEADER + 4 + 3;
const REQUESTED_OFFSET: usize = SERVER_ID_OFFSET + 6;
/// The least that a BOOTP message has (RFC 1542 §2.1).
const MESSAGE: usize = 300;
/// What dhclient asks for, and T1 and T2.
const PARAMETERS: [u8; 9] = [1, 3, 6, 15, 28, 42, 51, 58, 59];

struct Templates {
    discover: PathBuf,
    request: PathBuf,
}

impl Templates {
    fn of(folder: &Path) -> Self {
        Self {
            discover: folder.join("discover.hex"),
            request: folder.join("request.hex"),
        }
    }
}

/// Writes the local clients' templates into `folder`.
pub fn write_templates(folder: &Path) -> Result<()> {
    let templates = Templates::of(folder);
    for (file, octets) in [
        (&templates.discover, message(1)),
        (&templates.request, message(3)),
    ] {
        let text: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// A DISCOVER (1) or REQUEST (3) of an Ethernet client that wants its answer by broadcast.
fn message(message_type: u8) -> Vec<u8> {
    let mut octets = vec![0; HEADER];
    octets[0] = 1; // BOOTREQUEST
    octets[1] = 1; // Ethernet
    octets[2] = 6;
    octets[10] = 0x80;
    octets.extend(MAGIC_COOKIE);
    octets.extend([53, 1, message_type]);
    if message_type == 3 {
        octets.extend([54, 4, 0, 0, 0, 0]);
        octets.extend([50, 4, 0, 0, 0, 0]);
    }
    octets.extend([55, PARAMETERS.len() as u8]);
    octets.extend(PARAMETERS);
    octets.push(255);
    octets.resize(MESSAGE, 0);
    octets
}

/// Rules for the clients' host: nft(8) input. Of 100 messages, `lost` are dropped on the cable, each way; before and behind every
/// socket, so that none of the servers' ways of listening sees them.
pub fn client_rules(client: Ipv4Addr, lost: u8) -> String {
    let answers = format!(
        "table ip bench {{\n chain answers {{\n  type filter hook prerouting priority raw;\n  \
         udp dport 68 ip daddr 255.255.255.255 ip daddr set {client} meta pkttype set host\n }}\n}}\n"
    );
    if lost == 0 {
        return answers;
    }
    let loss = |hook, port| {
        format!(
            " chain {hook} {{\n  type filter hook {hook} device \"{LOAD_INTERFACE}\" priority 0;\n  \
             udp dport {port} numgen random mod 100 < {lost} drop\n }}\n"
        )
    };
    let (to_clients, from_clients) = (loss("ingress", 68), loss("egress", 67));
    format!("{answers}table netdev bench {{\n{to_clients}{from_clients}}}\n")
}

// ---------------------------------------------------------------- output

/// What perfdhcp said of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    pub discover: Exchange,
    pub request: Exchange,
    /// Of an avalanche: until the last client had its address, and messages sent again.
    pub avalanche: Option<Avalanche>,
}

/// DISCOVER and OFFER, or REQUEST and ACK.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exchange {
    pub sent: u64,
    pub received: u64,
    pub non_unique: u64,
    pub orphans: u64,
    /// When it was sent and when its answer came, in seconds since the start, of each answered message.
    pub times: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Avalanche {
    pub seconds: f64,
    pub sent_again: u64,
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Exchange {
    pub fn latency(&self) -> Option<Latency> {
        let mut all: Vec<f64> = self
            .times
            .iter()
            .map(|(sent, answered)| (answered - sent) * 1e3)
            .collect();
        all.sort_by(f64::total_cmp);
        let last = all.len().checked_sub(1)?;
        let at = |share: f64| all[(share * last as f64).round() as usize];
        Some(Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: all[last],
        })
    }
}

impl Output {
    /// From the first message to the last answer, in seconds.
    pub fn seconds(&self) -> Option<f64> {
        let first = self
            .discover
            .times
            .iter()
            .map(|(sent, _)| *sent)
            .reduce(f64::min)?;
        let last = self
            .request
            .times
            .iter()
            .map(|(_, answered)| *answered)
            .reduce(f64::max)?;
        (last > first).then_some(last - first)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let mut output = Self::default();
        let mut section = None;
        let mut again = None;
        let mut took = None;
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("***") {
                section = Section::of(title);
                continue;
            }
            if let Some(rest) = line.strip_prefix("It took ") {
                let clock = rest.split_whitespace().next().unwrap_or_default();
                took = Some(clock_seconds(clock).with_context(|| format!("no time: {line:?}"))?);
                continue;
            }
            if let Some(count) = line.strip_prefix("Requests resent: ") {
                again = Some(
                    count
                        .trim()
                        .parse()
                        .with_context(|| format!("no number: {line:?}"))?,
                );
                continue;
            }
            let exchange = match section {
                Some(Section::Discover) => &mut output.discover,
                Some(Section::Request) => &mut output.request,
                None => continue,
            };
            exchange.line(line)?;
        }
        ensure!(
            output.discover.sent > 0,
            "perfdhcp reports no DISCOVER: {}",
            last_lines(text)
        );
        output.avalanche = match (took, again) {
            (Some(seconds), Some(sent_again)) => Some(Avalanche {
                seconds,
                sent_again,
            }),
            (None, None) => None,
            _ => bail!("half an avalanche: {}", last_lines(text)),
        };
        Ok(output)
    }
}

#[derive(Clone, Copy)]
enum Section {
    Discover,
    Request,
}

impl Section {
    fn of(title: &str) -> Option<Self> {
        let words = ["Statistics for: ", "Timestamps for packets: "];
        let name = words.iter().find_map(|word| title.strip_prefix(word))?;
        match name.trim_end_matches('*') {
            "DISCOVER-OFFER" => Some(Section::Discover),
            "REQUEST-ACK" => Some(Section::Request),
            _ => None,
        }
    }
}

impl Exchange {
    fn line(&mut self, line: &str) -> Result<()> {
        let Some((name, value)) = line.split_once(": ") else {
            return Ok(());
        };
        let count = || {
            value
                .trim()
                .parse()
                .with_context(|| format!("no number: {line:?}"))
        };
        match name {
            "sent packets" => self.sent = count()?,
            "received packets" => self.received = count()?,
            "non unique addresses" => self.non_unique = count()?,
            "orphans" => self.orphans = count()?,
            "sent / received" => {
                let times = value.split_once(" / ").and_then(|(sent, answered)| {
                    Some((sent.trim().parse().ok()?, answered.trim().parse().ok()?))
                });
                self.times
                    .push(times.with_context(|| format!("no times: {line:?}"))?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// `00:00:17.171801`
fn clock_seconds(text: &str) -> Option<f64> {
    let mut parts = text.split(':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = hours.parse::<u32>().ok()? * 3600 + minutes.parse::<u32>().ok()? * 60;
    Some(f64::from(whole) + seconds.parse::<f64>().ok()?)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As perfdhcp 2.2.0 prints it, shortened.
    const STEADY: &str = "\
Running: perfdhcp -4 -u -r 1000 -n 3 -R 2000 -x t 10.99.0.2
Scenario: basic.
Multi-thread mode enabled.
***Rate statistics***
Rate: 999.164 4-way exchanges/second, expected rate: 1000

***Malformed Packets***
Malformed packets: 0
***Statistics for: DISCOVER-OFFER***
sent packets: 3
received packets: 2
drops: 1
drops ratio: 33.3333 %
orphans: 4
rejected leases: 0
non unique addresses: 0

min delay: 0.043 ms
avg delay: 0.230 ms
max delay: 4.926 ms
std deviation: 0.466 ms
collected packets: 0

***Statistics for: REQUEST-ACK***
sent packets: 2
received packets: 2
drops: 0
drops ratio: 0.000 %
orphans: 0
rejected leases: 0
non unique addresses: 1

min delay: 0.077 ms
avg delay: 0.196 ms
max delay: 5.561 ms
std deviation: 0.356 ms
collected packets: 0

***Timestamps for packets: DISCOVER-OFFER***
sent / received: 000000.000065 / 000000.000545
sent / received: 000000.002097 / 000000.002197

***Timestamps for packets: REQUEST-ACK***
sent / received: 000000.000600 / 000000.001600
sent / received: 000001.002300 / 000001.004300
";

    const AVALANCHE_END: &str = "
It took 00:01:17.171801 to provision 10000 clients. 
Requests sent + resent: 47108
Requests resent: 27108
Responses received: 20000
";

    #[test]
    fn a_steady_run_is_read() {
        let output = Output::parse(STEADY).expect("it parses");
        let counts = |e: &Exchange| (e.sent, e.received, e.non_unique, e.orphans, e.times.len());
        assert_eq!(counts(&output.discover), (3, 2, 0, 4, 2));
        assert_eq!(counts(&output.request), (2, 2, 1, 0, 2));
        assert_eq!(output.avalanche, None);
        let seconds = output.seconds().expect("times");
        assert!((seconds - 1.004_235).abs() < 1e-9, "{seconds}");
        let latency = output.request.latency().expect("times");
        assert!((latency.max - 2.0).abs() < 1e-6, "{latency:?}");
        assert!((latency.p50 - 2.0).abs() < 1e-6, "{latency:?}");
    }

    #[test]
    fn an_avalanche_is_read() {
        let output = Output::parse(&format!("{STEADY}{AVALANCHE_END}")).expect("it parses");
        let avalanche = output.avalanche.expect("an avalanche");
        assert!((avalanche.seconds - 77.171_801).abs() < 1e-9);
        assert_eq!(avalanche.sent_again, 27_108);
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        for bad in [
            "",
            "ERROR: running perfdhcp: unable to open socket",
            "***Statistics for: DISCOVER-OFFER***\nsent packets: many",
            "***Statistics for: DISCOVER-OFFER***\nsent packets: 0",
            "***Timestamps for packets: DISCOVER-OFFER***\nsent / received: 1",
        ] {
            assert!(Output::parse(bad).is_err(), "{bad:?}");
        }
        let half = format!("{STEADY}It took 00:00:01.000000 to provision 1 clients. ");
        assert!(Output::parse(&half).is_err());
        assert!(Exchange::default().latency().is_none());
    }

    #[test]
    fn templates_have_their_fields_where_perfdhcp_is_told() {
        let request = message(3);
        assert_eq!(request.len(), 300);
        assert_eq!(request[SERVER_ID_OFFSET..][..2], [54, 4]);
        assert_eq!(request[REQUESTED_OFFSET..][..2], [50, 4]);
        assert_eq!(
            message(1)[HEADER..][..7],
            [0x63, 0x82, 0x53, 0x63, 53, 1, 1]
        );
    }

    #[test]
    fn clients_are_counted_as_perfdhcp_counts_them() {
        assert_eq!(mac_of(FIRST_MAC, 0), FIRST_MAC);
        assert_eq!(mac_of(FIRST_MAC, 0x01_0203), [0x00, 0x0c, 0x01, 1, 2, 3]);
        assert_eq!(colons(mac_of(FIRST_MAC, 256)), "00:0c:01:00:01:00");
    }

    #[test]
    fn each_path_has_its_arguments() {
        let mut plan = Plan {
            path: Path4::Relay,
            load: Load::Steady {
                rate: 100,
                exchanges: 7,
            },
            clients: 9,
            first_mac: FIRST_MAC,
            server: Ipv4Addr::new(10, 0, 0, 2),
            client: Ipv4Addr::new(10, 0, 0, 1),
            unique: true,
            folder: Path::new("/x"),
        };
        let relay = plan.arguments().join(" ");
        assert!(
            relay.starts_with("-4 -u -r 100 -n 7 -n 1000000000 -W ") && relay.ends_with("10.0.0.2"),
            "{relay}"
        );
        plan.path = Path4::Local;
        plan.load = Load::Avalanche;
        let local = plan.arguments().join(" ");
        assert!(local.contains("--scenario avalanche -R 9"), "{local}");
        assert!(
            local.contains("-T /x/request.hex") && !local.contains("82,"),
            "{local}"
        );
    }
}
