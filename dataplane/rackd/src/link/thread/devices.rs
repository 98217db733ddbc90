//! The host's devices and every shard's packet sockets on them.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use shard::{LinkSocket, ToShard};

use super::Thread;
use crate::link::clock::Now;
use crate::link::events::Lane;
use crate::link::interfaces::Interface;

impl Thread {
    pub(super) fn look_at_interfaces(&mut self) {
        match (self.ports.interfaces)() {
            Ok(interfaces) if interfaces != *self.shared.interfaces.borrow() => {
                tracing::info!("the host's interfaces changed");
                self.feed.borrow_mut().set_interfaces(indexes(&interfaces));
                self.shared.interfaces.replace(interfaces);
                self.shared.refresh.send_modify(|count| *count += 1);
                self.open_sockets();
            }
            Ok(_) if self.sockets_missing => self.open_sockets(),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "reading the host's interfaces"),
        }
    }

    /// Opens packet sockets for devices that got a link, and gives every shard its own of all.
    pub(super) fn open_sockets(&mut self) {
        let devices = self.feed.borrow().devices();
        let before: Vec<u32> = self.sockets.keys().copied().collect();
        self.sockets.retain(|device, _| devices.contains(device));
        self.sockets_missing = false;
        for device in devices {
            if self.sockets.contains_key(&device) {
                continue;
            }
            match (self.ports.sockets)(device) {
                Ok(sockets) if sockets.len() == self.shards.count() => {
                    self.sockets.insert(device, sockets);
                }
                Ok(_) => tracing::error!(device, "not one packet socket for each shard"),
                Err(error) => {
                    tracing::error!(device, %error, "opening packet sockets; trying again");
                    self.sockets_missing = true;
                }
            }
        }
        if self.sockets.keys().copied().eq(before) {
            return;
        }
        for shard in 0..self.shards.count() {
            if !self.give_sockets(shard) {
                return;
            }
        }
    }

    /// False: they are all to be opened anew, and given then.
    fn give_sockets(&mut self, shard: usize) -> bool {
        let own = |(interface, sockets): (&u32, &Vec<OwnedFd>)| {
            // A duplicate is the same socket: nothing that was received is lost or doubled by the exchange.
            let socket = sockets[shard].try_clone()?;
            Ok(LinkSocket {
                interface: *interface,
                socket,
            })
        };
        match self.sockets.iter().map(own).collect::<io::Result<Vec<_>>>() {
            Ok(sockets) => {
                self.shards.send(shard, ToShard::Links(sockets));
                true
            }
            Err(error) => {
                tracing::error!(%error, "giving packet sockets to a shard; trying again");
                self.sockets.clear();
                self.sockets_missing = true;
                false
            }
        }
    }

    /// A shard that begins anew gets what it has to know: its sockets and its leases.
    pub(super) fn on_restarted(&mut self, shard: usize) {
        tracing::warn!(shard, "a shard begins anew");
        self.boots.forget(shard);
        self.give_sockets(shard);
        self.leases.restarted(shard, Now::read(), &mut self.shards);
        let now = Instant::now();
        let event = shard::Event {
            kind: "SHARD_RESTARTED",
            mac: None,
            address: std::net::Ipv4Addr::UNSPECIFIED.into(),
            detail: format!("shard {shard}: its connections and transfers began anew").into(),
            at: now,
        };
        self.events.push(event, Lane::Machine, now);
    }
}

pub(super) fn indexes(interfaces: &[Interface]) -> HashMap<String, u32> {
    interfaces
        .iter()
        .map(|interface| (interface.name.clone(), interface.index))
        .collect()
}
