//! What a client lives through, and how it is seen: by what the client says, by the host's addresses, by the messages
//! on the rack's own interface, and by the region's rows.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use lab::{DhcpHost, Lab, Process, RelayHost};

use super::programs::{Given, Program, Return, Start};
use crate::dhcp_lab::{Recorder, Seen, until};

/// For one thing that a client does at once; the slowest waits some seconds before its first message.
const LIMIT: Duration = Duration::from_secs(15);
/// T1 of the lab's lease, and a loaded machine.
const RENEWAL_LIMIT: Duration = Duration::from_secs(25);

pub struct Stage<'a> {
    lab: &'a Lab,
    record: &'a Recorder,
    relay: &'a RelayHost,
    lease_secs: u32,
    dns: Ipv4Addr,
    server: Ipv4Addr,
}

/// Where a client is to find itself.
struct Home {
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    giaddr: Ipv4Addr,
}

/// Gets an address, renews it, keeps it over a power cut, gives it up.
pub fn whole(stage: &Stage<'_>, program: &Program, host: &DhcpHost) -> Result<String> {
    let network = stage.lab.network();
    let home = Home {
        subnet: network.subnet,
        gateway: network.client().addr(),
        giaddr: Ipv4Addr::UNSPECIFIED,
    };
    live(stage, program, host, &home)
}

/// The same where all that is broadcast comes through a relay agent; renewals go to the server itself.
pub fn relayed(stage: &Stage<'_>, program: &Program, host: &DhcpHost) -> Result<String> {
    let home = Home {
        subnet: stage.relay.subnet,
        gateway: stage.relay.gateway,
        giaddr: stage.relay.gateway,
    };
    live(stage, program, host, &home)?;
    let seen = stage.of(host)?;
    let told: Vec<&Seen> = seen
        .iter()
        .filter(|seen| !seen.giaddr.is_unspecified())
        .collect();
    let with = told
        .iter()
        .filter(|seen| !seen.relay_info.is_empty())
        .count();
    ensure!(
        with == told.len() && with > 0,
        "{with} of {} had option 82",
        told.len()
    );
    let infos: std::collections::BTreeSet<&str> =
        told.iter().map(|seen| seen.relay_info.as_str()).collect();
    ensure!(infos.len() == 1, "option 82 came back changed: {infos:?}");
    Ok(format!("{with} messages with option 82"))
}

fn live(stage: &Stage<'_>, program: &Program, host: &DhcpHost, home: &Home) -> Result<String> {
    let process = stage.start(program, host, false, None)?;
    let address = stage.bound(program, host, home, &[])?;
    stage.row(address, host, "is in the region", "true")?;

    if let Some(renew) = program.renew {
        renew(host, &process)?;
    }
    stage.ack(host, RENEWAL_LIMIT, "its renewal", |seen| {
        seen.ciaddr == address && seen.server.is_none() && seen.target == stage.server
    })?;

    let before = stage.of(host)?.len();
    let process = if program.returns == Return::InitRebootOnCarrier {
        host.set_carrier(false)?;
        until("the address gone with the carrier", LIMIT, || {
            Ok(host.addresses()?.is_empty().then_some(()))
        })?;
        host.set_carrier(true)?;
        process
    } else {
        process.kill()?;
        host.forget_addresses()?;
        stage.start(program, host, false, Some(address))?
    };
    let (what, kind) = match program.returns {
        Return::InitReboot | Return::InitRebootOnCarrier => ("INIT-REBOOT", "REQUEST"),
        Return::Discover => ("a DISCOVER for it", "DISCOVER"),
    };
    let first = until("its first message after it came back", LIMIT, || {
        Ok(stage.of(host)?.into_iter().nth(before))
    })?;
    ensure!(
        first.kind == kind && first.requested == Some(address) && first.server.is_none(),
        "it came back by {first:?} and not by {what}"
    );
    let again = stage.bound(program, host, home, &[])?;
    ensure!(
        again == address,
        "it had {address} and came back with {again}"
    );

    (program.release)(host, process)?;
    stage.query_seen(host, "its RELEASE", |seen| {
        seen.kind == "RELEASE" && seen.ciaddr == address
    })?;
    stage.row(address, host, "is released", "released")?;
    Ok(format!("{address}, back by {what}"))
}

/// Finds somebody else at the address it is given, says so, and gets another one.
pub fn declines(stage: &Stage<'_>, program: &Program, host: &DhcpHost) -> Result<String> {
    let network = stage.lab.network();
    let home = Home {
        subnet: network.subnet,
        gateway: network.client().addr(),
        giaddr: Ipv4Addr::UNSPECIFIED,
    };
    let process = stage.start(program, host, true, None)?;
    let decline = stage.query_seen(host, "its DECLINE", |seen| seen.kind == "DECLINE")?;
    let taken = decline.requested.context("a DECLINE without an address")?;
    until("the quarantine in the region", LIMIT, || {
        let sql = format!(
            "select 1 from lease where address = '{taken}' and quarantined_until > now() + interval '5 minutes'"
        );
        Ok((!stage.lab.query(&sql)?.is_empty()).then_some(()))
    })?;
    let address = stage.bound(program, host, &home, &[taken])?;
    process.kill()?;
    Ok(format!("{taken} declined, {address} taken"))
}

impl<'a> Stage<'a> {
    pub fn new(
        lab: &'a Lab,
        record: &'a Recorder,
        relay: &'a RelayHost,
        lease_secs: u32,
        dns: Ipv4Addr,
    ) -> Self {
        Self {
            lab,
            record,
            relay,
            lease_secs,
            dns,
            server: lab.network().rack(1).addr(),
        }
    }

    fn start(
        &self,
        program: &Program,
        host: &DhcpHost,
        checks: bool,
        had: Option<Ipv4Addr>,
    ) -> Result<Process> {
        let log = self
            .lab
            .logs()
            .join(format!("{}-{}.log", program.name, host.name));
        let start = Start {
            checks,
            had,
            log: &log,
        };
        (program.start)(host, &start)
    }

    /// All messages of and to this host.
    fn of(&self, host: &DhcpHost) -> Result<Vec<Seen>> {
        let mut seen = self.record.seen()?;
        seen.retain(|seen| seen.mac == host.mac);
        Ok(seen)
    }

    fn query_seen(&self, host: &DhcpHost, what: &str, is: impl Fn(&Seen) -> bool) -> Result<Seen> {
        until(what, LIMIT, || Ok(self.of(host)?.into_iter().find(&is)))
    }

    /// Waits for a REQUEST that `is` it, and the ACK that follows.
    fn ack(
        &self,
        host: &DhcpHost,
        limit: Duration,
        what: &str,
        is: impl Fn(&Seen) -> bool,
    ) -> Result<Seen> {
        until(what, limit, || {
            let seen = self.of(host)?;
            let asked = seen
                .iter()
                .position(|seen| seen.kind == "REQUEST" && is(seen));
            let answers = asked.map_or(&[][..], |asked| &seen[asked..]);
            Ok(answers.iter().find(|seen| seen.kind == "ACK").cloned())
        })
    }

    /// Waits until the host has an address other than `not`, and everything that belongs to it.
    fn bound(
        &self,
        program: &Program,
        host: &DhcpHost,
        home: &Home,
        not: &[Ipv4Addr],
    ) -> Result<Ipv4Addr> {
        let given: Given = until("an address", LIMIT, || {
            let given = (program.given)(host)?;
            let have = host.addresses()?;
            let is_there = given.address.is_some_and(|address| {
                !not.contains(&address) && have.iter().any(|net| net.addr() == address)
            });
            Ok(is_there.then_some(given))
        })?;
        let address = given.address.context("until waited for it")?;
        let have = host.addresses()?;
        let net = have.iter().find(|net| net.addr() == address);
        let net = net.context("until waited for it")?;
        ensure!(
            home.subnet.contains(&address),
            "{address} is not of {}",
            home.subnet
        );
        ensure!(
            net.prefix_len() == home.subnet.prefix_len(),
            "the host has {net}"
        );
        ensure!(
            given.mask == home.subnet.netmask().to_string(),
            "the mask is {:?}",
            given.mask
        );
        ensure!(
            given.router == Some(home.gateway),
            "the router is {:?}",
            given.router
        );
        ensure!(
            given.dns == Some(self.dns),
            "the DNS server is {:?}",
            given.dns
        );
        let route = until("a default route", LIMIT, || host.default_route())?;
        ensure!(route == home.gateway, "the default route is by {route}");
        let ack = self.query_seen(host, "its ACK on the wire", |seen| {
            seen.kind == "ACK" && seen.yiaddr == address
        })?;
        ensure!(
            ack.giaddr == home.giaddr || ack.giaddr.is_unspecified(),
            "the ACK went to the relay {}",
            ack.giaddr
        );
        ensure!(
            (1..=self.lease_secs).contains(&ack.lease_secs),
            "a lease of {} s",
            ack.lease_secs
        );
        Ok(address)
    }

    /// Waits until the region's row of this address and client is so.
    fn row(&self, address: Ipv4Addr, host: &DhcpHost, what: &str, condition: &str) -> Result<()> {
        let sql = format!(
            "select 1 from lease where address = '{address}' and mac = '{}' and {condition}",
            host.mac
        );
        until(&format!("{address} {what}"), LIMIT, || {
            Ok((!self.lab.query(&sql)?.is_empty()).then_some(()))
        })
    }
}
