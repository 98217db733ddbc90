//! A hostile host at full strength: `lab/hostile/attacker` on a host of its own, and what rack and region say of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use lab::{CLIENT_INTERFACE, plan, usage};

use super::bench::Bench;
use super::network::{RACK_HTTP, http};
use crate::workspace;

/// For an attack to stand, and for what it took to be given back.
pub const ATTACK_LIMIT: Duration = Duration::from_secs(60);
pub const REGION_API: u16 = 5240;
/// From here on attackers have their addresses in the machines' subnet, below the dynamic range.
const NEIGHBOURS: u32 = 1 << 8;

/// A new host on the machines' VLAN, with so many addresses; its namespace.
pub fn neighbour(bench: &mut Bench, addresses: u32) -> Result<String> {
    let host = bench.lab.add_client()?;
    let subnet = bench.lab.network().subnet;
    for _ in 0..addresses {
        bench.neighbours += 1;
        let address = Ipv4Addr::from(u32::from(subnet.network()) + NEIGHBOURS + bench.neighbours);
        add_address(
            &host.namespace,
            &Ipv4Net::new(address, subnet.prefix_len())?,
        )?;
    }
    Ok(host.namespace)
}

/// A new host on the management network, with so many addresses; its namespace.
pub fn outsider(bench: &mut Bench, addresses: usize) -> Result<String> {
    let host = bench.lab.add_outsider()?;
    for _ in 0..addresses {
        bench.outsiders += 1;
        add_address(&host.namespace, &plan::outsider_mgmt(bench.outsiders))?;
    }
    Ok(host.namespace)
}

fn add_address(namespace: &str, address: &Ipv4Net) -> Result<()> {
    let done = Command::new("ip")
        .args(["-n", namespace, "address", "add", &address.to_string()])
        .args(["dev", CLIENT_INTERFACE])
        .status()
        .context("starting ip")?;
    ensure!(done.success(), "{namespace} got no address {address}");
    Ok(())
}

/// Numbers by name.
pub type Numbers = BTreeMap<String, u64>;

/// A running attacker. Dropped, it ends, and what it holds is closed.
pub struct Attack {
    child: Child,
    stdin: Option<ChildStdin>,
    said: BufReader<ChildStdout>,
}

impl Attack {
    /// `kinds` as the program has them; none: all of a host on the machines' VLAN.
    pub fn start(host: &str, server: impl Into<IpAddr>, kinds: &[&str]) -> Result<Self> {
        let mut child = hostile(host, "attacker")?
            .args([CLIENT_INTERFACE, &server.into().to_string()])
            .args(kinds)
            .spawn()
            .context("starting the attacker")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the attacker has a stdout")?;
        Ok(Self {
            child,
            stdin,
            said: BufReader::new(stdout),
        })
    }

    /// How often it did what, and how often it was turned away (`KIND refused`).
    pub fn counts(&mut self) -> Result<Numbers> {
        let stdin = self
            .stdin
            .as_mut()
            .context("the attacker was told to end")?;
        writeln!(stdin).context("asking the attacker")?;
        let mut line = String::new();
        self.said
            .read_line(&mut line)
            .context("reading what the attacker says")?;
        serde_json::from_str(&line).with_context(|| format!("the attacker says {line:?}"))
    }

    /// Waits until it did something so often, whether it was turned away or not.
    pub fn wait_for(&mut self, bench: &mut Bench, kind: &str, often: u64) -> Result<()> {
        let refused = format!("{kind} refused");
        let what = format!("{often} {kind}");
        bench.until(&what, ATTACK_LIMIT, |_| {
            let counts = self.counts()?;
            let count = |name: &str| counts.get(name).copied().unwrap_or_default();
            Ok((count(kind) + count(&refused) >= often).then_some(()))
        })
    }

    /// What it did.
    pub fn end(mut self) -> Result<String> {
        self.stdin = None;
        let mut said = String::new();
        self.said
            .read_line(&mut said)
            .context("reading what the attacker says")?;
        Ok(said.trim().to_owned())
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stdin = None;
        self.child.wait().ok();
    }
}

/// One of the programs in `deploy/lab/hostile`, on a host of the lab.
pub fn hostile(namespace: &str, program: &str) -> Result<Command> {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace])
        .arg(workspace::root()?.join("deploy/lab/hostile").join(program))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    Ok(command)
}

// ---------------------------------------------------------------- what the daemons say

/// What rack 1 counts, with labels, shards summed.
pub fn rack_numbers(bench: &Bench) -> Result<Numbers> {
    let host = bench.lab.names().rack(1);
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, RACK_HTTP));
    let page = page(&host, server, "/metrics")?;
    Ok(sums(&page, "muster_rack_"))
}

/// What the region counts, with labels.
pub fn region_numbers(bench: &Bench) -> Result<Numbers> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, REGION_API));
    let page = page(&bench.lab.names().region(), server, "/MAAS/metrics")?;
    Ok(sums(&page, "muster_"))
}

fn page(host: &str, server: SocketAddr, path: &str) -> Result<String> {
    let (status, text) = http(host, server, path, "")?;
    ensure!(status == 200, "{path}: {status}");
    Ok(text)
}

fn sums(page: &str, prefix: &str) -> Numbers {
    let mut sums = Numbers::new();
    for line in page.lines() {
        let number = line.strip_prefix(prefix).and_then(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name, value.parse::<u64>().ok()?))
        });
        if let Some((name, value)) = number {
            *sums.entry(without_shard(name)).or_default() += value;
        }
    }
    sums
}

/// `a{shard="1",b="c"}` as `a{b="c"}`.
fn without_shard(name: &str) -> String {
    let Some((start, rest)) = name.split_once("{shard=\"") else {
        return name.to_owned();
    };
    match rest.split_once("\",") {
        Some((_, others)) => format!("{start}{{{others}"),
        None => start.to_owned(),
    }
}

/// One of the numbers; one that is not there is a fault of the test.
pub fn number(numbers: &Numbers, name: &str) -> Result<u64> {
    numbers
        .get(name)
        .copied()
        .with_context(|| format!("no {name} is counted"))
}

/// Waits until the rack has counted so many more than before. What it shows is up to a second old.
pub fn wait_heard(bench: &mut Bench, before: &Numbers, name: &str, more: u64) -> Result<()> {
    let first = number(before, name)?;
    bench.until(&format!("{more} more {name}"), ATTACK_LIMIT, |bench| {
        let heard = number(&rack_numbers(bench)?, name)? - first;
        ensure!(heard >= more, "the rack heard {heard}: nothing is tested");
        Ok(Some(()))
    })
}

/// Waits until a number of the rack is small enough.
pub fn wait_given_back(bench: &mut Bench, name: &str, most: u64, limit: Duration) -> Result<()> {
    bench.until(
        &format!("{name} of the rack is {most} at most"),
        limit,
        |bench| {
            let numbers = rack_numbers(bench)?;
            let now = number(&numbers, name)?;
            ensure!(now <= most, "it is {now}");
            Ok(Some(()))
        },
    )
}

/// How far the memory of a daemon grew over what it was when this was made, at its highest.
pub struct Growth {
    pid: String,
    before: u64,
}

impl Growth {
    pub fn of(host: &str, program: &str) -> Result<Self> {
        let pid = usage::process_named(host, program)?;
        usage::forget_peak(&pid)?;
        let before = usage::peak_bytes(&pid)?;
        Ok(Self { pid, before })
    }

    pub fn of_rack(bench: &Bench) -> Result<Self> {
        Self::of(&bench.lab.names().rack(1), "rackd")
    }

    pub fn of_region(bench: &Bench) -> Result<Self> {
        Self::of(&bench.lab.names().region(), "regiond")
    }

    pub fn mib(&self) -> Result<u64> {
        Ok(usage::peak_bytes(&self.pid)?.saturating_sub(self.before) >> 20)
    }

    pub fn ensure_below(&self, what: &str, mib: u64) -> Result<()> {
        let grown = self.mib()?;
        ensure!(grown < mib, "{what} grew by {grown} MiB");
        println!("     {what} grew by {grown} MiB");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_shards_are_summed_and_other_labels_kept() {
        let page = "HTTP/1.1 200 OK\r\n\r\n# HELP x\nmuster_rack_a{shard=\"0\"} 1\n\
                    muster_rack_a{shard=\"1\"} 2\nmuster_rack_b 3\n\
                    muster_rack_c{shard=\"0\",reason=\"d\"} 4\n";
        let found = sums(page, "muster_rack_");
        let wanted = [("a", 3), ("b", 3), ("c{reason=\"d\"}", 4)];
        assert_eq!(
            found,
            wanted.map(|(name, value)| (name.to_owned(), value)).into()
        );
    }
}
