//! Hosts for DHCP tests: clients on the machines' VLAN, a router with a relay, clients behind it.
//!
//! ```text
//!   br-boot ----- boot | clN               a client
//!          \----- boot | rlN | behind      a relay: forwards, and is the default route of what is behind it
//!                              \--- boot | clM      a client of the relayed subnet
//! ```
//!
//! What runs on them is the test's business; their namespaces go with the lab.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;

use crate::command::{in_namespace, run, run_with_input};
use crate::instance::Lab;
use crate::plan;

/// The interface of every client.
pub const CLIENT_INTERFACE: &str = "boot";
/// A relay's interface to the machines' VLAN, and that to its own subnet.
pub const RELAY_INTERFACES: [&str; 2] = ["boot", "behind"];

/// A new host: no IPv6, and a loopback.
const QUIET: &str = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up";

/// A host with one NIC and no address.
#[derive(Clone, Debug)]
pub struct DhcpHost {
    pub name: String,
    pub namespace: String,
    pub mac: String,
    /// The other end of its cable is this namespace's, and named as the host.
    switch: String,
    /// Its own; `run` in it is its `/run`, `lib` its `/var/lib/dhcpcd`.
    pub folder: PathBuf,
}

/// A router between the machines' VLAN and a subnet of its own.
#[derive(Clone, Debug)]
pub struct RelayHost {
    pub namespace: String,
    /// On the machines' VLAN.
    pub address: Ipv4Addr,
    /// The subnet behind it, and its own address there: giaddr.
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
}

/// Another DHCP server's host and a client's, joined by one cable: addressed as rack 1 and the lab's client host are.
#[derive(Clone, Debug)]
pub struct ServerPair {
    pub server: String,
    pub client: String,
}

impl Lab {
    /// A network of its own for a server to be compared with.
    pub fn add_server_pair(&mut self) -> Result<ServerPair> {
        let pair = ServerPair {
            server: format!("{}-other", self.names.lab),
            client: format!("{}-otherc", self.names.lab),
        };
        for namespace in [&pair.server, &pair.client] {
            self.reaper.add(&self.folder, namespace)?;
            run(Command::new("ip").args(["netns", "add", namespace]))
                .with_context(|| format!("making the namespace {namespace}"))?;
            run(in_namespace(namespace, "sh").args(["-ec", QUIET]))?;
        }
        let link = format!(
            "link add boot type veth peer name boot netns {}\naddress add {} dev boot\nlink set boot up\n",
            pair.client,
            self.network().rack(1),
        );
        in_batch(&pair.server, &link)?;
        let link = format!(
            "address add {} dev boot\nlink set boot up\n",
            self.network().client()
        );
        in_batch(&pair.client, &link)?;
        Ok(pair)
    }

    /// Gives a client's host the relay's address of [`plan::BEHIND`] as well, and the server a route to it: the host
    /// can then speak as a relay agent does.
    pub fn can_relay(&self, client: &str, server: &str) -> Result<()> {
        let giaddr = plan::behind_gateway().addr();
        in_batch(client, &format!("address add {giaddr}/32 dev lo\n"))?;
        let via = self.network().client().addr();
        in_batch(server, &format!("route add {} via {via}\n", plan::BEHIND))
    }

    /// A host on the machines' VLAN, its NIC up.
    pub fn add_client(&mut self) -> Result<DhcpHost> {
        let switch = self.names.switch();
        self.new_host(&switch, "br-boot")
    }

    /// A host on the management network, its NIC (named as a client's) up.
    pub fn add_outsider(&mut self) -> Result<DhcpHost> {
        let switch = self.names.switch();
        self.new_host(&switch, "br-mgmt")
    }

    /// A host on the subnet behind a relay, its NIC up.
    pub fn add_client_behind(&mut self, relay: &RelayHost) -> Result<DhcpHost> {
        self.new_host(&relay.namespace, RELAY_INTERFACES[1])
    }

    /// A router whose second network is [`plan::BEHIND`]; rack 1 has a route to it. No relay agent runs yet.
    pub fn add_relay(&mut self) -> Result<RelayHost> {
        let namespace = format!("{}-rl", self.names.lab);
        self.reaper.add(&self.folder, &namespace)?;
        let boot = self.network().relay();
        let relay = RelayHost {
            namespace: namespace.clone(),
            address: boot.addr(),
            subnet: plan::BEHIND,
            gateway: plan::behind_gateway().addr(),
        };
        run(Command::new("ip").args(["netns", "add", &namespace]))
            .with_context(|| format!("making the namespace {namespace}"))?;
        run(in_namespace(&namespace, "sh").args(["-ec", QUIET]))?;
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward";
        run(in_namespace(&namespace, "sh").args(["-ec", forward]))?;
        let batch = format!(
            "link add relay type veth peer name boot netns {namespace}\n\
             link set relay master br-boot up\n"
        );
        in_batch(&self.names.switch(), &batch)?;
        let batch = format!(
            "link add behind type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             address add {boot} dev boot\naddress add {gateway} dev behind\n\
             link set boot up\nlink set behind up\n",
            gateway = plan::behind_gateway(),
        );
        in_batch(&namespace, &batch)?;
        let route = format!("route add {} via {}\n", relay.subnet, relay.address);
        in_batch(&self.names.rack(1), &route)?;
        Ok(relay)
    }

    fn new_host(&mut self, switch: &str, bridge: &str) -> Result<DhcpHost> {
        self.dhcp_hosts += 1;
        let number = self.dhcp_hosts;
        let name = format!("cl{number}");
        let host = DhcpHost {
            namespace: format!("{}-{name}", self.names.lab),
            mac: plan::client_mac(number),
            switch: switch.to_owned(),
            folder: self.folder.join("clients").join(&name),
            name,
        };
        for folder in ["run", "lib"] {
            let folder = host.folder.join(folder);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("making {}", folder.display()))?;
        }
        self.reaper.add(&self.folder, &host.namespace)?;
        run(Command::new("ip").args(["netns", "add", &host.namespace]))
            .with_context(|| format!("making the namespace {}", host.namespace))?;
        run(in_namespace(&host.namespace, "sh").args(["-ec", QUIET]))?;
        let batch = format!(
            "link add {port} type veth peer name {CLIENT_INTERFACE} address {mac} netns {namespace}\n\
             link set {port} master {bridge} up\n",
            port = host.name,
            mac = host.mac,
            namespace = host.namespace,
        );
        in_batch(switch, &batch)?;
        in_batch(
            &host.namespace,
            &format!("link set {CLIENT_INTERFACE} up\n"),
        )?;
        Ok(host)
    }
}

impl DhcpHost {
    /// A command on this host, which sees a `/run` and a `/var/lib/dhcpcd` of its own, and `/sys` as a container does:
    /// read-only, which tells systemd that no udev is to be waited for.
    pub fn command(&self, program: &str) -> Command {
        const ENTER: &str = "mount --bind \"$0/run\" /run && mount -o remount,ro /sys && \
                             if [ -d /var/lib/dhcpcd ]; then mount --bind \"$0/lib\" /var/lib/dhcpcd; fi && \
                             exec \"$@\"";
        let mut command = in_namespace(&self.namespace, "sh");
        command.args(["-c", ENTER]).arg(&self.folder).arg(program);
        command
    }

    /// Its IPv4 addresses with prefix lengths, as the kernel has them.
    pub fn addresses(&self) -> Result<Vec<Ipv4Net>> {
        let said = run(Command::new("ip").args([
            "-n",
            &self.namespace,
            "-4",
            "-oneline",
            "address",
            "show",
            "dev",
            CLIENT_INTERFACE,
        ]))?;
        let mut found = Vec::new();
        for line in said.lines() {
            let mut words = line.split_whitespace().skip_while(|word| *word != "inet");
            let text = words.nth(1).context("`ip address` says no address")?;
            found.push(
                text.parse()
                    .with_context(|| format!("understanding {text}"))?,
            );
        }
        Ok(found)
    }

    /// Where its default route leads.
    pub fn default_route(&self) -> Result<Option<Ipv4Addr>> {
        let said =
            run(Command::new("ip").args(["-n", &self.namespace, "route", "show", "default"]))?;
        let mut words = said.split_whitespace().skip_while(|word| *word != "via");
        words
            .nth(1)
            .map(|text| {
                text.parse()
                    .with_context(|| format!("understanding {said}"))
            })
            .transpose()
    }

    /// Pulls its cable, or plugs it in again.
    pub fn set_carrier(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        in_batch(&self.switch, &format!("link set {} {state}\n", self.name))
    }

    /// What a power cut does to a host's addresses.
    pub fn forget_addresses(&self) -> Result<()> {
        in_batch(
            &self.namespace,
            &format!("address flush dev {CLIENT_INTERFACE}\n"),
        )
    }
}

fn in_batch(namespace: &str, commands: &str) -> Result<()> {
    run_with_input(
        Command::new("ip").args(["-n", namespace, "-batch", "-"]),
        commands,
    )
    .with_context(|| format!("configuring {namespace}"))?;
    Ok(())
}
