//! A rack's and a host's network namespace on one wire.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use wire::ethernet::Mac;

pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 9);

pub fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// A rack's and a host's namespace, joined by a wire. They go with it.
pub struct Wire {
    pub rack: String,
    pub host: String,
}

impl Wire {
    /// None, and why: there can be no namespaces here.
    pub fn new() -> Option<Self> {
        match Self::make() {
            Ok(wire) => Some(wire),
            Err(error) => {
                eprintln!("skipped: no network namespaces here ({error})");
                None
            }
        }
    }

    fn make() -> Result<Self, String> {
        let number = std::process::id();
        let wire = Self {
            rack: format!("mstarp-r{number}"),
            host: format!("mstarp-h{number}"),
        };
        let (rack, host) = (&wire.rack, &wire.host);
        for arguments in [
            format!("netns add {rack}"),
            format!("netns add {host}"),
            format!("link add eth0 netns {rack} type veth peer name eth0 netns {host}"),
            format!("-n {host} address add {HOST}/24 dev eth0"),
            format!("-n {rack} link set eth0 up"),
            format!("-n {host} link set eth0 up"),
        ] {
            ip(&arguments)?;
        }
        Ok(wire)
    }

    /// The host's hardware address.
    pub fn mac(&self) -> Mac {
        let output = Command::new("ip")
            .args(["-n", &self.host, "-o", "link", "show", "eth0"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mac = text
            .split("link/ether ")
            .nth(1)
            .expect("an Ethernet device");
        let octets: Vec<u8> = mac[..17]
            .split(':')
            .map(|octet| u8::from_str_radix(octet, 16).unwrap())
            .collect();
        Mac(octets.try_into().unwrap())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for namespace in [&self.rack, &self.host] {
            let _ = ip(&format!("netns delete {namespace}"));
        }
    }
}

/// Moves the calling thread into a namespace.
pub fn enter(namespace: &str) {
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}
