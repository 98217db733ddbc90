//! Ordinary clients (`lab/hostile/client`): they ask again and again for what a boot needs, and say how long they waited.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::CLIENT_INTERFACE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::attack::hostile;
use super::bench::{Bench, Known, Stop};

const KNOWN: u8 = 8;
/// Of the clients of one case: the next has others.
const NEW_EACH: u64 = 1000;

/// One try of an ordinary client.
#[derive(Clone, Debug, Deserialize)]
pub struct Try {
    pub kind: String,
    /// How long it waited; none where it failed.
    pub ms: Option<f64>,
    pub failed: Option<String>,
}

/// The programs that play ordinary clients. Dropped, they end.
#[derive(Default)]
pub struct Clients {
    running: Vec<(Child, ChildStdin)>,
    kinds: Vec<String>,
    tries: Arc<Mutex<Vec<Try>>>,
}

impl Clients {
    pub fn start(
        &mut self,
        bench: &Bench,
        host: &str,
        kinds: &[&str],
        setup: &Value,
    ) -> Result<()> {
        let rack = bench.lab.network().rack(1).addr().to_string();
        let mut command = hostile(host, "client")?;
        command.args([CLIENT_INTERFACE, &rack]).args(kinds);
        let mut child = command.spawn().context("starting a client")?;
        let mut stdin = child.stdin.take().context("a client has a stdin")?;
        writeln!(stdin, "{setup}").context("telling a client what to ask for")?;
        let stdout = child.stdout.take().context("a client has a stdout")?;
        let tries = self.tries.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let made = serde_json::from_str(&line).unwrap_or_else(|_| Try {
                    kind: "client".to_owned(),
                    ms: None,
                    failed: Some(line),
                });
                if let Ok(mut tries) = tries.lock() {
                    tries.push(made);
                }
            }
        });
        self.running.push((child, stdin));
        self.kinds
            .extend(kinds.iter().map(|kind| (*kind).to_owned()));
        Ok(())
    }

    /// The tries since the last call.
    pub fn take(&self) -> Vec<Try> {
        self.tries
            .lock()
            .map(|mut tries| std::mem::take(&mut *tries))
            .unwrap_or_default()
    }

    /// Waits until each kind asked so often from now on. None may have failed since the last call. The longest wait in
    /// milliseconds, by kind.
    pub fn expect(
        &self,
        bench: &mut Bench,
        when: &str,
        often: usize,
        limit: Duration,
    ) -> Result<BTreeMap<String, f64>> {
        let what = format!("{often} tries of {:?} {when}", self.kinds);
        let (mut seen, mut slowest) = (BTreeMap::new(), BTreeMap::new());
        bench.until(&what, limit, |_| {
            for one in self.take() {
                let Some(ms) = one.ms else {
                    let why = one.failed.unwrap_or_default();
                    return Err(Stop(format!("{} {when}: {why}", one.kind)).into());
                };
                *seen.entry(one.kind.clone()).or_insert(0) += 1;
                let longest = slowest.entry(one.kind).or_insert(ms);
                *longest = ms.max(*longest);
            }
            let enough = |kind: &String| seen.get(kind).is_some_and(|count| *count >= often);
            if self.kinds.iter().all(enough) {
                return Ok(Some(()));
            }
            bail!("{seen:?}")
        })?;
        Ok(slowest)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for (mut child, stdin) in self.running.drain(..) {
            drop(stdin);
            child.wait().ok();
        }
    }
}

/// What clients on the lab's client host ask for, every `period` seconds.
pub fn setup(bench: &mut Bench, period: f64) -> Result<Value> {
    if bench.known_macs.is_empty() {
        bench.known_macs = known(bench)?;
    }
    bench.new_macs += NEW_EACH;
    Ok(json!({
        "known": bench.known_macs,
        "first": bench.new_macs,
        "tftp": "lpxelinux.0",
        "http": "/images/bootx64.efi",
        "period": period,
    }))
}

/// Clients of these kinds on the lab's client host, each of which has had its answer once.
pub fn clients(bench: &mut Bench, kinds: &[&str], period: f64) -> Result<Clients> {
    let setup = setup(bench, period)?;
    let host = bench.lab.names().client();
    let mut clients = Clients::default();
    clients.start(bench, &host, kinds, &setup)?;
    clients.expect(bench, "in quiet", 1, Duration::from_secs(30))?;
    Ok(clients)
}

/// Machines that the region knows by their MACs.
fn known(bench: &Bench) -> Result<Vec<String>> {
    (1..=KNOWN)
        .map(|number| {
            let mac = format!("02:6b:6e:6f:77:{number:02x}");
            let fields = [
                ("hostname", format!("known{number}")),
                ("architecture", "amd64/generic".to_owned()),
                ("mac_addresses", mac.clone()),
                ("power_type", "manual".to_owned()),
                ("commission", "false".to_owned()),
            ];
            let fields: Vec<(&str, &str)> = fields
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            bench.lab.region().post("machines/", "", &fields)?;
            Ok(mac)
        })
        .collect()
}

/// How a booting machine asks for its metadata: its preseed's token.
pub fn metadata(known: &Known) -> Result<Value> {
    let preseed = known.machine.preseed()?;
    let value = |key: &str| {
        let line = preseed
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'));
        line.map(|text| text.trim().trim_matches('"').to_owned())
            .with_context(|| format!("the preseed has no {key}"))
    };
    let key = [
        value("consumer_key")?,
        value("token_key")?,
        value("token_secret")?,
    ];
    Ok(json!({"metadata": "/MAAS/metadata/2012-03-01/meta-data/local-hostname", "key": key}))
}
