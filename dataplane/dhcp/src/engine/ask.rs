//! One message with everything that belongs to it: what it asks for by name, and what its answer would give.

use std::net::Ipv4Addr;
use std::time::Duration;

use wire::dhcp4::MessageType;

use super::Ask;
use super::peer::is_winner;
use super::rules::secs;
use crate::config::{Config, Subnet};
use crate::options::lease_of;
use crate::relay::server_id_override;
use crate::reply::Terms;

/// A client that asks for less would do little else than renew.
const LEASE_ASKED_MIN: Duration = Duration::from_secs(30);

/// A lease by configuration and by what the client wants (RFC 2131 §4.3.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    /// What is made durable, whatever the client wants: then the next renewals write nothing.
    pub allowed: Duration,
    /// What it is told: at most the same.
    pub given: Duration,
}

impl<'a, C: Config> Ask<'a, C> {
    /// Option 54 of the replies: this link's address, or what the relay wants there (RFC 5107).
    pub(super) fn server_id(&self) -> Ipv4Addr {
        server_id_override(self.query).unwrap_or(self.link.server)
    }

    /// Whether a server identifier is this rack: what stood in its replies, or any address it has on a link
    /// (RFC 2131 §4.1).
    pub(super) fn is_mine(&self, server: Ipv4Addr) -> bool {
        let link = self.config.link_of(server);
        server == self.link.server
            || server_id_override(self.query) == Some(server)
            || link.is_some_and(|link| link.server == server)
    }

    /// Several racks answer by this name, as their relay has it so: who knows nothing of the client is silent.
    pub(super) fn is_name_shared(&self, server: Ipv4Addr) -> bool {
        !self.link.peers.is_empty() && server_id_override(self.query) == Some(server)
    }

    /// The client takes an ACK for its DISCOVER (RFC 4039). A rack that only stands in for its peer gives an OFFER all
    /// the same: both may answer, and the address in the answer that is not taken would be lost for a lease.
    pub(super) fn takes_rapid_commit(&self) -> bool {
        self.query.message_type() == Some(MessageType::Discover)
            && self.query.rapid_commit()
            && is_winner(self.link, &self.client, self.mac)
    }

    /// The address a client has by other means (RFC 2131 §4.3.5); some leave ciaddr empty and send from it.
    pub(super) fn informing(&self) -> Ipv4Addr {
        match self.query.ciaddr() {
            none if none.is_unspecified() && self.query.giaddr().is_unspecified() => {
                self.received.source
            }
            address => address,
        }
    }

    /// What a reply of this kind gives. No `lease` for INFORM.
    pub(super) fn terms<'b>(
        &self,
        kind: MessageType,
        address: Ipv4Addr,
        subnet: &'b Subnet,
        lease: Option<Duration>,
    ) -> Terms<'b>
    where
        'a: 'b,
    {
        Terms {
            kind,
            address,
            subnet,
            host: self.host,
            server_id: self.server_id(),
            lease_secs: lease.map(secs),
            hostname: self.hostname(),
            rapid: kind == MessageType::Ack && self.takes_rapid_commit(),
        }
    }

    /// What the client is to call itself: its reservation's name, else what the machine is called. What it calls
    /// itself is not sent back to it.
    fn hostname(&self) -> &'a str {
        match self.host {
            Some(host) if !host.hostname.is_empty() => &host.hostname,
            _ => self.boot.hostname,
        }
    }

    /// How long this client may have this address.
    pub(super) fn lease(&self, subnet: &Subnet, address: Ipv4Addr) -> Lease {
        let allowed = lease_of(self.host, subnet, address);
        let asked = self.query.lease_secs().map(u64::from);
        let given = match asked.map(Duration::from_secs) {
            Some(asked) => asked.max(LEASE_ASKED_MIN).min(allowed),
            None => allowed,
        };
        Lease { allowed, given }
    }
}
