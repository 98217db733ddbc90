//! The client programs: how each is started, told to renew and to give up, and how it says what it got.
//!
//! No daemon of the host is touched: each runs on its own host with its own `/run`, and ends with its case.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{CLIENT_INTERFACE, DhcpHost, Process};
use rustix::process::Signal;

use crate::dhcp_lab::tools;

/// Ends by itself after a release, or when told.
const END_LIMIT: Duration = Duration::from_secs(5);

/// What a client says it was given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    pub address: Option<Ipv4Addr>,
    /// Dotted, or a prefix length.
    pub mask: String,
    pub router: Option<Ipv4Addr>,
    pub dns: Option<Ipv4Addr>,
}

/// After its power came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// It asks for its old address by REQUEST, without a server identifier (RFC 2131 §3.2).
    InitReboot,
    /// The same, but it keeps nothing on disk: the cable is pulled instead.
    InitRebootOnCarrier,
    /// It asks for it in its DISCOVER.
    Discover,
}

pub struct Program {
    pub name: &'static str,
    /// `checks`: looks whether somebody has the address already, before it uses it.
    pub start: fn(&DhcpHost, &Start<'_>) -> Result<Process>,
    /// Tells it to renew. None: it does so at T1.
    pub renew: Option<fn(&DhcpHost, &Process) -> Result<()>>,
    /// It gives its address up, and ends.
    pub release: fn(&DhcpHost, Process) -> Result<()>,
    pub returns: Return,
    /// Why it can't send a DECLINE, where it can't.
    pub no_decline: Option<&'static str>,
    pub given: fn(&DhcpHost) -> Result<Given>,
}

pub struct Start<'a> {
    pub checks: bool,
    /// The address from before the power cut.
    pub had: Option<Ipv4Addr>,
    pub log: &'a PathBuf,
}

fn started(
    name: &str,
    host: &DhcpHost,
    start: &Start<'_>,
    command: &mut Command,
) -> Result<Process> {
    command
        .env("HOOK_LOG", hook_log(host))
        .env("HOOK_CHECK", if start.checks { "1" } else { "0" });
    Process::start(name, start.log, command, Stdio::null())
}

// ---------------------------------------------------------------- ISC dhclient

pub const DHCLIENT: Program = Program {
    name: "dhclient",
    start: |host, start| {
        let conf = host.folder.join("dhclient.conf");
        // It has no command to renew; what the server said of T1 may be overridden, and nothing else is.
        let text = "supersede dhcp-renewal-time 3;\nbackoff-cutoff 2;\ninitial-interval 1;\nretry 3;\n\
                    request subnet-mask, broadcast-address, routers, domain-name-servers, host-name;\n";
        write(&conf, text)?;
        let mut command = host.command("dhclient");
        command.args(["-4", "-d", "-v", "-cf"]).arg(&conf);
        dhclient_files(&mut command, host)?;
        started("dhclient", host, start, command.arg(CLIENT_INTERFACE))
    },
    renew: None,
    release: |host, process| {
        // A second one that ends the first, and speaks for it.
        let mut command = host.command("dhclient");
        command.args(["-4", "-r", "-cf", "/dev/null"]);
        dhclient_files(&mut command, host)?;
        command
            .env("HOOK_LOG", hook_log(host))
            .env("HOOK_CHECK", "0");
        output(command.arg(CLIENT_INTERFACE))?;
        let mut process = process;
        process.wait_end(END_LIMIT).map(drop)
    },
    returns: Return::InitReboot,
    no_decline: None,
    given: from_hook,
};

fn dhclient_files(command: &mut Command, host: &DhcpHost) -> Result<()> {
    command.arg("-lf").arg(host.folder.join("dhclient.leases"));
    command.arg("-pf").arg(host.folder.join("dhclient.pid"));
    command.arg("-sf").arg(tools()?.join("hook.sh"));
    // It empties its script's environment.
    for (name, value) in [
        ("HOOK_LOG", hook_log(host).display().to_string()),
        ("HOOK_CHECK", "1".to_owned()),
        ("HOOK_CONFIGURES", "1".to_owned()),
    ] {
        command.arg("-e").arg(format!("{name}={value}"));
    }
    Ok(())
}

// ---------------------------------------------------------------- busybox udhcpc

pub const UDHCPC: Program = Program {
    name: "udhcpc",
    start: |host, start| {
        let mut command = host.command("udhcpc");
        command.args([
            "-f",
            "-R",
            "-i",
            CLIENT_INTERFACE,
            "-t",
            "5",
            "-T",
            "1",
            "-A",
            "2",
            "-O",
            "router",
        ]);
        command.arg("-s").arg(tools()?.join("hook.sh"));
        if start.checks {
            command.arg("-a");
        }
        if let Some(address) = start.had {
            command.arg("-r").arg(address.to_string());
        }
        command.env("HOOK_CONFIGURES", "1");
        started("udhcpc", host, start, &mut command)
    },
    renew: Some(|_, process| process.signal(Signal::USR1)),
    // -R: it releases when it ends.
    release: |_, process| process.terminate(END_LIMIT).map(drop),
    // It keeps no lease file.
    returns: Return::Discover,
    no_decline: None,
    given: from_hook,
};

// ---------------------------------------------------------------- dhcpcd

pub const DHCPCD: Program = Program {
    name: "dhcpcd",
    start: |host, start| {
        let conf = host.folder.join("dhcpcd.conf");
        let text = format!(
            "clientid\noption subnet_mask, routers, domain_name_servers\nscript {}\n",
            tools()?.join("hook.sh").display()
        );
        write(&conf, &text)?;
        let mut command = host.command("dhcpcd");
        command
            .args(["-4", "-B", "-d", "--nodelay", "-L", "-f"])
            .arg(&conf);
        // RFC 5227's probes take it 6 s.
        if !start.checks {
            command.arg("--noarp");
        }
        command
            .arg("-e")
            .arg(format!("HOOK_LOG={}", hook_log(host).display()));
        started("dhcpcd", host, start, command.arg(CLIENT_INTERFACE))
    },
    renew: Some(|host, _| {
        output(
            host.command("dhcpcd")
                .args(["-4", "--renew", CLIENT_INTERFACE]),
        )
    }),
    release: |host, process| {
        output(host.command("dhcpcd").args(["-4", "-k", CLIENT_INTERFACE]))?;
        let mut process = process;
        process.wait_end(END_LIMIT).map(drop)
    },
    returns: Return::InitReboot,
    no_decline: None,
    given: from_hook,
};

// ---------------------------------------------------------------- systemd-networkd

const NETWORKD_USER: &str = "systemd-network";

pub const NETWORKD: Program = Program {
    name: "systemd-networkd",
    // Without systemd as PID 1 and without D-Bus, which it does not insist on; so `networkctl` can't talk to it.
    start: |host, start| {
        let run = host.folder.join("run");
        let config = run.join("systemd/network");
        std::fs::create_dir_all(&config).with_context(|| format!("making {}", config.display()))?;
        let (uid, gid) = user(NETWORKD_USER)?;
        for folder in [
            "systemd/netif",
            "systemd/netif/leases",
            "systemd/netif/links",
        ] {
            let folder = run.join(folder);
            std::fs::create_dir_all(&folder)
                .and_then(|()| chown(&folder, Some(uid), Some(gid)))
                .with_context(|| format!("making {}", folder.display()))?;
        }
        let text = format!(
            "[Match]\nName={CLIENT_INTERFACE}\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n\
             [DHCPv4]\nClientIdentifier=mac\nSendDecline=no\nSendRelease=yes\n"
        );
        write(&config.join("10-lab.network"), &text)?;
        let mut command = host.command("/lib/systemd/systemd-networkd");
        command.env("SYSTEMD_LOG_LEVEL", "debug");
        started("systemd-networkd", host, start, &mut command)
    },
    renew: None,
    release: |_, process| process.terminate(END_LIMIT).map(drop),
    returns: Return::InitRebootOnCarrier,
    no_decline: Some(
        "version 252 finds the conflict and sends its DECLINE by UDP, before it has an address or a route",
    ),
    given: |host| {
        let leases = host.folder.join("run/systemd/netif/leases");
        let file = std::fs::read_dir(&leases)
            .with_context(|| format!("reading {}", leases.display()))?
            .flatten()
            .next();
        let file = file.context("networkd has written no lease")?.path();
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("reading {}", file.display()))?;
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let ip = |name: &str| {
            let words = fields.get(name)?;
            words.split_whitespace().next()?.parse().ok()
        };
        Ok(Given {
            address: ip("ADDRESS"),
            mask: fields
                .get("NETMASK")
                .copied()
                .unwrap_or_default()
                .to_owned(),
            router: ip("ROUTER"),
            dns: ip("DNS"),
        })
    },
};

/// User and group id of an account.
fn user(name: &str) -> Result<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let ids = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    ids.with_context(|| format!("there is no user {name}: systemd's package makes it"))
}

// ---------------------------------------------------------------- what they share

fn hook_log(host: &DhcpHost) -> PathBuf {
    host.folder.join("hook.log")
}

/// The newest line of the hook script that names an address.
fn from_hook(host: &DhcpHost) -> Result<Given> {
    let log = hook_log(host);
    let text =
        std::fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    let line = text.lines().rev().find(|line| !line.contains(" address= "));
    Ok(hook_line(
        line.context("the hook script was told of no address")?,
    ))
}

/// `BOUND address=10.99.16.0 mask=255.255.0.0 router=10.99.0.1 dns=10.99.0.53,10.99.0.54 lease_secs=30 server=..`
fn hook_line(line: &str) -> Given {
    let fields: BTreeMap<&str, &str> = line
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .collect();
    let ip = |name: &str| fields.get(name)?.split(',').next()?.parse().ok();
    Given {
        address: ip("address"),
        mask: fields.get("mask").copied().unwrap_or_default().to_owned(),
        router: ip("router"),
        dns: ip("dns"),
    }
}

fn write(path: &PathBuf, text: &str) -> Result<()> {
    std::fs::write(path, text)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o644)))
        .with_context(|| format!("writing {}", path.display()))
}

/// Runs a command to its end.
fn output(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hooks_lines_are_understood() {
        let line = "BOUND address=10.99.16.0 mask=255.255.0.0 router=10.99.0.1 dns=10.99.0.53,10.99.0.54 \
                    lease_secs=30 server=10.99.0.2";
        let given = hook_line(line);
        assert_eq!(given.address, Some(Ipv4Addr::new(10, 99, 16, 0)));
        assert_eq!(given.dns, Some(Ipv4Addr::new(10, 99, 0, 53)));
        assert_eq!(given.router, Some(Ipv4Addr::new(10, 99, 0, 1)));
        assert_eq!(given.mask, "255.255.0.0");
        assert_eq!(
            hook_line("deconfig address= mask= router= dns= lease_secs= server="),
            Given::default()
        );
    }
}
