//! A lab for DHCP alone, and what its stages share: one rack, no images, waits that end, and a record of the wire.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::kvm::Accelerator;
use lab::{BootNetwork, Lab, LabConfig, Process, plan};
use serde_json::Value;

use crate::workspace::{self, Profile};

/// From DHCP switched on to the rack's first offer.
const SERVING_SECS: &str = "20";
const POLL: Duration = Duration::from_millis(50);
/// The recorder writes its last line and ends.
const RECORDER_LIMIT: Duration = Duration::from_secs(5);
/// Of whoever only asks whether somebody serves.
const PROBE_MAC: &str = "52:54:00:c1:ff:ff";

pub struct DhcpLab {
    pub lab: Lab,
    pub binaries: PathBuf,
    pub logs: PathBuf,
    /// Of the machines' subnet.
    pub subnet_id: String,
}

impl DhcpLab {
    /// Region and rack, with DHCP on; `subnet` are fields of the machines' subnet, as the API has them.
    pub fn up(stage: &str, network: BootNetwork, subnet: &[(&str, &str)]) -> Result<Self> {
        let name = format!("{stage}{}", std::process::id());
        let binaries = workspace::binaries(Profile::Dev)?;
        let config = LabConfig {
            name: name.clone(),
            racks: 1,
            machines: Vec::new(),
            network,
            base: workspace::lab_base(),
            logs: workspace::lab_logs(&name)?,
            // No machine will ask.
            accelerator: Accelerator::Tcg,
        };
        let start = Instant::now();
        let mut lab = Lab::start(&config)?;
        // Load generators and scripts speak as relays from the client's host, a relay agent from its uplink.
        lab.trust_relays(&[network.client().addr(), network.relay().addr()]);
        let done = populate(&mut lab, &binaries, subnet);
        let subnet_id = match done {
            Ok(id) => id,
            Err(error) => {
                lab.save_logs();
                return Err(error);
            }
        };
        println!(
            "{:>6.1} s  region and rack are up, with DHCP",
            start.elapsed().as_secs_f64()
        );
        Ok(Self {
            lab,
            binaries,
            logs: config.logs,
            subnet_id,
        })
    }

    /// Waits until the rack offers an address; seconds it took, from now.
    pub fn wait_serving(&self) -> Result<f64> {
        let namespace = self.lab.names().client();
        let mut command = tool(&namespace, "probe")?;
        let output = command
            .args(["boot", PROBE_MAC, SERVING_SECS])
            .output()
            .context("starting the probe")?;
        ensure!(
            output.status.success(),
            "no DHCP offer within {SERVING_SECS} s {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.trim().parse().context("understanding the probe")
    }
}

impl DhcpLab {
    /// The subnet behind a relay, on a VLAN of its own that a relay brings to the machines' one; its id. `subnet` as in
    /// [`DhcpLab::up`]; its router is the relay.
    pub fn define_behind(&self, subnet: &[(&str, &str)]) -> Result<String> {
        let region = self.lab.region();
        let machines = region.get(&format!("subnets/{}/", self.subnet_id), &[])?;
        let via = id(machines.get("vlan").context("a subnet has a VLAN")?, "id")?;
        let fabric = region.post("fabrics/", "", &[("name", "behind")])?;
        let vlan = fabric.get("vlans").and_then(|vlans| vlans.get(0));
        let vlan = vlan.context("a fabric begins with a VLAN")?;
        let (vlan_id, vid) = (id(vlan, "id")?, id(vlan, "vid")?);
        let (cidr, gateway) = (plan::BEHIND.to_string(), plan::behind_gateway().addr());
        let gateway = gateway.to_string();
        let mut fields = vec![
            ("cidr", cidr.as_str()),
            ("vlan", &vlan_id),
            ("name", "behind"),
            ("gateway_ip", &gateway),
        ];
        fields.extend_from_slice(subnet);
        let subnet = id(&region.post("subnets/", "", &fields)?, "id")?;
        let (first, last) = behind_range();
        region.post(
            "ipranges/",
            "",
            &[
                ("type", "dynamic"),
                ("start_ip", &first.to_string()),
                ("end_ip", &last.to_string()),
                ("subnet", &subnet),
            ],
        )?;
        region.put(
            &format!("fabrics/{}/vlans/{vid}/", id(&fabric, "id")?),
            &[("relay_vlan", &via)],
        )?;
        Ok(subnet)
    }
}

/// The dynamic range of the subnet behind a relay.
pub fn behind_range() -> (Ipv4Addr, Ipv4Addr) {
    let base = u32::from(plan::BEHIND.network());
    (Ipv4Addr::from(base + 32), Ipv4Addr::from(base + 200))
}

/// A number in an answer of the region.
pub fn id(value: &Value, name: &str) -> Result<String> {
    let found = value.get(name).and_then(Value::as_i64);
    found
        .map(|id| id.to_string())
        .with_context(|| format!("the region's answer has no {name}: {value}"))
}

fn populate(lab: &mut Lab, binaries: &Path, fields: &[(&str, &str)]) -> Result<String> {
    lab.start_region(binaries)?;
    lab.import_loaders(binaries)?;
    lab.start_racks(binaries, None)?;
    lab.define_network()?;
    let cidr = lab.network().subnet.to_string();
    let id = subnet_id(lab, &cidr)?;
    lab.region().put(&format!("subnets/{id}/"), fields)?;
    Ok(id)
}

fn subnet_id(lab: &Lab, cidr: &str) -> Result<String> {
    let subnets = lab.region().get("subnets/", &[])?;
    let found = subnets
        .as_array()
        .into_iter()
        .flatten()
        .find(|subnet| subnet.get("cidr").and_then(Value::as_str) == Some(cidr));
    let id = found.and_then(|subnet| subnet.get("id")?.as_i64());
    Ok(id
        .with_context(|| format!("the region has no subnet {cidr}"))?
        .to_string())
}

/// One of the programs in `deploy/lab/dhcp`, on a host of the lab.
pub fn tool(namespace: &str, program: &str) -> Result<Command> {
    let path = tools()?.join(program);
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace])
        .arg(path)
        .stdin(Stdio::null());
    Ok(command)
}

pub fn tools() -> Result<PathBuf> {
    Ok(workspace::root()?.join("deploy/lab/dhcp"))
}

/// Waits until `seen` finds something.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut seen: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match seen() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        if start.elapsed() > limit {
            bail!("{what}: not within {} s{last}", limit.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

// ---------------------------------------------------------------- the record of the wire

/// A running `record` on an interface of the lab.
pub struct Recorder {
    process: Process,
    file: PathBuf,
}

/// A DHCP message that was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Unix time.
    pub at_secs: f64,
    /// "DISCOVER" and such.
    pub kind: String,
    pub mac: String,
    /// IPv4 source and destination.
    pub source: Ipv4Addr,
    pub target: Ipv4Addr,
    pub ciaddr: Ipv4Addr,
    pub yiaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    pub lease_secs: u32,
    /// Option 82 in hex.
    pub relay_info: String,
}

impl Recorder {
    /// Begins to record; when this returns, no message is missed. `kinds`: only these, or all.
    pub fn start(namespace: &str, interface: &str, file: &Path, kinds: &[&str]) -> Result<Self> {
        let mut command = tool(namespace, "record")?;
        command.arg(interface).arg(file).args(kinds);
        let log = file.with_extension("log");
        let mut process = Process::start("the DHCP recorder", &log, &mut command, Stdio::null())?;
        process.wait_until("waiting for its first line", RECORDER_LIMIT, || {
            Ok(file
                .metadata()
                .is_ok_and(|about| about.len() > 0)
                .then_some(()))
        })?;
        Ok(Self {
            process,
            file: file.to_owned(),
        })
    }

    /// What was seen until now.
    pub fn seen(&self) -> Result<Vec<Seen>> {
        read(&self.file).map(|(seen, _)| seen)
    }

    /// Ends the record. An error if the kernel lost a frame of it: it would prove nothing.
    pub fn end(self) -> Result<Vec<Seen>> {
        self.process.terminate(RECORDER_LIMIT)?;
        let (seen, lost) = read(&self.file)?;
        match lost {
            Some(0) => Ok(seen),
            Some(lost) => bail!("the record lost {lost} frames"),
            None => bail!("the record has no end"),
        }
    }
}

/// Messages, and the losses where the record is at its end.
fn read(file: &Path) -> Result<(Vec<Seen>, Option<u64>)> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let (mut seen, mut lost) = (Vec::new(), None);
    for line in text.lines() {
        // The last line may be half written.
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        if line.get("kind").is_some() {
            seen.push(Seen::parse(&line).with_context(|| format!("understanding {line}"))?);
        } else if line.get("end").is_some() {
            lost = line.get("lost").and_then(Value::as_u64);
        }
    }
    Ok((seen, lost))
}

impl Seen {
    fn parse(line: &Value) -> Option<Self> {
        let text = |name: &str| line.get(name)?.as_str();
        let ip = |name: &str| text(name)?.parse::<Ipv4Addr>().ok();
        Some(Self {
            at_secs: line.get("at")?.as_f64()?,
            kind: text("kind")?.to_owned(),
            mac: text("mac")?.to_owned(),
            source: ip("source")?,
            target: ip("target")?,
            ciaddr: ip("ciaddr")?,
            yiaddr: ip("yiaddr")?,
            giaddr: ip("giaddr")?,
            requested: ip("requested"),
            server: ip("server"),
            lease_secs: line
                .get("lease_secs")
                .and_then(Value::as_u64)
                .and_then(|secs| u32::try_from(secs).ok())
                .unwrap_or_default(),
            relay_info: text("relay_info")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_without_an_end_or_with_losses_is_told_from_a_whole_one() {
        let folder = std::env::temp_dir().join(format!("xtask-record-{}", std::process::id()));
        let line = r#"{"at": 1.5, "kind": "ACK", "mac": "52:54:00:c1:00:01", "source": "10.99.0.2",
            "target": "10.99.16.0", "ciaddr": "0.0.0.0", "yiaddr": "10.99.16.0", "giaddr": "0.0.0.0",
            "requested": "", "server": "10.99.0.2", "lease_secs": 600, "relay_info": ""}"#
            .replace('\n', "");
        std::fs::write(&folder, format!("{{\"start\": 1}}\n{line}\n{{\"at\": 2")).expect("a file");
        let (seen, lost) = read(&folder).expect("a half written line is left out");
        assert_eq!((seen.len(), lost), (1, None));
        assert_eq!(seen[0].yiaddr, Ipv4Addr::new(10, 99, 16, 0));
        assert_eq!((seen[0].requested, seen[0].lease_secs), (None, 600));

        std::fs::write(&folder, format!("{line}\n{{\"end\": true, \"lost\": 2}}\n"))
            .expect("a file");
        assert_eq!(read(&folder).expect("a whole one").1, Some(2));
        std::fs::remove_file(&folder).expect("it is there");
    }
}
