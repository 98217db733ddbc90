//! What a REQUEST gets (RFC 2131 §4.3.2), in every state of its client.
//!
//! | the address it asks for                        | answer                                                       |
//! |------------------------------------------------|--------------------------------------------------------------|
//! | of no subnet of the link                       | NAK; by unicast only to a client that is known here          |
//! | its reservation                                | ACK; NAK while somebody else still has it                    |
//! | another one, and its reservation can be given  | NAK, whatever it holds                                       |
//! | reserved for somebody else, or for nobody      | NAK                                                          |
//! | what it holds                                  | ACK                                                          |
//! | what it was offered, run out and still free    | ACK                                                          |
//! | anything else, and it is known here            | NAK                                                          |
//! | anything else of a peer's block                | that rack's to say; [`Engine::survive`]                      |
//! | anything else                                  | NAK if it selected this server, else silence                 |
//!
//! A client is known here by a lease, also an ended or declined one, or by a reservation. Where its reservation lies
//! makes no difference: outside the ranges, in our block, in another shard's part of it, or in a peer's block.

use std::net::Ipv4Addr;

use super::peer::is_alone;
use super::rules::{Reserved, is_allocatable};
use super::{Ask, Engine};
use crate::clock::Ms;
use crate::config::{Config, ReservationKey, Subnet};
use crate::counters::Drop;
use crate::outbox::Outbox;
use crate::table::State;

/// In which state of RFC 2131 figure 5 the client is when it sends a REQUEST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Selecting,
    InitReboot,
    /// Renewing or rebinding: they differ only in how the message travelled.
    Renewing,
}

/// Whether a client may have the address that is reserved for it in a dynamic range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has it, or would be given it.
    Open,
    /// Somebody else's for now, or resting: until then the client is like any other.
    Taken,
    /// In a block of a peer's that is alive: only that one knows.
    Peers,
}

impl Engine {
    pub(super) fn on_request<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let (claim, address) = self.read_claim(ask)?;
        let broadcast = ask.received.destination.is_broadcast();
        let relayed = !ask.query.giaddr().is_unspecified();
        let reserved = self.reserved(ask);
        let Some(subnet) = ask.link.subnet_of(address) else {
            // Any server may say so: the client has moved (§4.3.2). One that renews by unicast and is not known here is
            // a client of some other network, whose message was routed to us.
            let unicast = claim == Claim::Renewing && !broadcast && !relayed;
            if unicast && reserved.is_none() && self.table.held_by(&ask.client).is_none() {
                return Err(Drop::WrongNetwork);
            }
            return self.send_nak(ask, address, "wrong network", out);
        };
        // What every rack of the VLAN knows, one of them says.
        let named = claim == Claim::Selecting || !(broadcast || relayed);
        if let Some(own) = &reserved
            && !own.dynamic
        {
            if !named {
                self.take_turn(ask)?;
            }
            if own.address != address {
                return self.send_nak(ask, address, "another address is reserved for it", out);
            }
            let lease = ask.lease(own.subnet, own.address).given;
            return self.ack_now(ask, own.address, own.subnet, lease, false, out);
        }
        let theirs = ask.config.reserved(ask.link.vlan, address);
        if let Some(theirs) = theirs.filter(|theirs| !ask.is_key(&theirs.key)) {
            // No relay is there to name the port of a client that renews by unicast (§4.3.2): if no lease of it is here,
            // it comes through its relay when it rebinds.
            let alone = claim == Claim::Renewing && !broadcast && !relayed;
            if matches!(theirs.key, ReservationKey::Circuit { .. }) && alone {
                self.serving(ask.now)?;
                return match self.table.find(ask.link.vlan, address) {
                    Some(slot) if self.table.is_held_by(slot, &ask.client) => {
                        self.grant(ask, slot, subnet, out)
                    }
                    _ => Err(Drop::NoRecord),
                };
            }
            if !named {
                self.take_turn(ask)?;
            }
            return self.send_nak(ask, address, "reserved for another", out);
        }
        self.serving(ask.now)?;
        if let Some(own) = &reserved
            && own.address != address
            && self.is_due_to_move(ask, own, claim, address, named)?
        {
            return self.send_nak(ask, address, "another address is reserved for it", out);
        }
        match self.table.find(ask.link.vlan, address) {
            Some(slot) => self.request_own(ask, claim, slot, subnet, reserved.as_ref(), out),
            None => self.request_outside(ask, claim, address, subnet, reserved.as_ref(), out),
        }
    }

    /// Whether the client must give up the address it asks for because it may have its reserved one. An error where a
    /// peer is to say it.
    fn is_due_to_move<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        own: &Reserved<'_>,
        claim: Claim,
        address: Ipv4Addr,
        named: bool,
    ) -> Result<bool, Drop> {
        match self.standing(ask, own) {
            Standing::Open => Ok(true),
            Standing::Taken => Ok(false),
            Standing::Peers if named => {
                // What was offered although the reservation was known is given.
                let offered = self
                    .table
                    .find(ask.link.vlan, address)
                    .is_some_and(|slot| self.table.is_held_by(slot, &ask.client));
                Ok(claim != Claim::Selecting || !offered)
            }
            // After its third message the peer seems unable to give it: the client is like any other.
            Standing::Peers => self.take_turn(ask).map(|()| false),
        }
    }

    fn standing<C: Config>(&mut self, ask: &Ask<'_, C>, own: &Reserved<'_>) -> Standing {
        let Some(slot) = self.table.find(ask.link.vlan, own.address) else {
            return match is_alone(ask.link) {
                true => Standing::Taken,
                false => Standing::Peers,
            };
        };
        if self.table.is_held_by(slot, &ask.client) || self.is_dealable(slot) {
            Standing::Open
        } else if self.wish_for_reserved(ask, own.subnet.id, slot) {
            // Free at another shard, as far as is known here: it is on its way.
            Standing::Open
        } else {
            self.want(slot);
            Standing::Taken
        }
    }

    /// An address of our own blocks.
    fn request_own<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        claim: Claim,
        slot: u32,
        subnet: &Subnet,
        reserved: Option<&Reserved<'_>>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let address = self.table.address(slot);
        let dealt = is_allocatable(ask, address);
        if self.table.is_held_by(slot, &ask.client) {
            if !dealt {
                return self.send_nak(ask, address, "not dealt any more", out);
            }
            return self.grant(ask, slot, subnet, out);
        }
        if reserved.is_some_and(|own| own.address == address) && dealt {
            return self.request_reserved(ask, slot, subnet, out);
        }
        let elsewhere = self.table.held_by(&ask.client).is_some();
        match claim {
            // Its offer ran out, but nobody else has taken the address.
            Claim::Selecting
                if !elsewhere
                    && dealt
                    && self.is_dealable(slot)
                    && !(ask.is_stranger() && self.strangers_full(slot)) =>
            {
                self.grant(ask, slot, subnet, out)
            }
            Claim::Selecting => self.send_nak(ask, address, "not offered", out),
            _ if elsewhere => self.send_nak(ask, address, "holds another address", out),
            _ if self.has_declined(ask, slot) => self.send_nak(ask, address, "in use", out),
            _ if reserved.is_some() && !dealt => self.send_nak(ask, address, "not dealt", out),
            // §4.3.2: no record of this client, so silence; another server may know it.
            _ => Err(Drop::NoRecord),
        }
    }

    /// The address that is reserved for the client, which it does not hold: it needs no OFFER to be given it.
    fn request_reserved<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        slot: u32,
        subnet: &Subnet,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        if self.is_dealable(slot) {
            return self.grant(ask, slot, subnet, out);
        }
        if self.table.run(slot).refused {
            return Err(Drop::BlockRefused);
        }
        if self.wish_for_reserved(ask, subnet.id, slot) {
            return Err(Drop::Borrowing);
        }
        self.send_nak(ask, self.table.address(slot), "still somebody else's", out)
    }

    /// An address of the link's subnets in none of our blocks.
    fn request_outside<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        claim: Claim,
        address: Ipv4Addr,
        subnet: &Subnet,
        reserved: Option<&Reserved<'_>>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let held = self.table.held_by(&ask.client);
        if claim == Claim::Selecting {
            // Only a client that selected this very server hears of what is not ours.
            return self.send_nak(ask, address, "not offered", out);
        }
        if subnet.is_dynamic(address) {
            // Perhaps a block of a rack that was removed: who has a live lease here needs no other.
            let live = held.is_some_and(|slot| self.is_live(slot, ask.now));
            if live && ask.link.peers.is_empty() {
                return self.send_nak(ask, address, "holds another address", out);
            }
            return self.survive(ask, address, subnet, out);
        }
        // No rack deals it, so who knows the client may say so.
        if held.is_some() || reserved.is_some() {
            return self.send_nak(ask, address, "not dealt", out);
        }
        Err(Drop::NoRecord)
    }

    fn is_live(&self, slot: u32, now: Ms) -> bool {
        match self.table.binding(slot) {
            Some(binding) => binding.durable > now,
            None => self.table.state(slot) == State::Offered,
        }
    }

    /// The address rests, and it was this client that had it.
    fn has_declined<C: Config>(&self, ask: &Ask<'_, C>, slot: u32) -> bool {
        self.table.state(slot) == State::Resting
            && self
                .table
                .client(slot)
                .is_some_and(|client| client == ask.client)
    }

    /// Which address is claimed and how (RFC 2131 §4.3.2, table 4). A server identifier decides first: some
    /// clients fill in more than the table allows.
    fn read_claim<C: Config>(&mut self, ask: &Ask<'_, C>) -> Result<(Claim, Ipv4Addr), Drop> {
        let query = ask.query;
        let ciaddr = Some(query.ciaddr()).filter(|address| !address.is_unspecified());
        if let Some(server) = query.server_id() {
            if !ask.is_mine(server) {
                self.free_offer(ask);
                self.stop_waiting(ask);
                return Err(Drop::OtherServer);
            }
            let address = query
                .requested_address()
                .or(ciaddr)
                .ok_or(Drop::NoAddress)?;
            let claim = if ask.is_name_shared(server) {
                Claim::InitReboot
            } else {
                Claim::Selecting
            };
            return Ok((claim, address));
        }
        if let Some(address) = ciaddr {
            return Ok((Claim::Renewing, address));
        }
        let address = query.requested_address().ok_or(Drop::NoAddress)?;
        Ok((Claim::InitReboot, address))
    }

    fn free_offer<C: Config>(&mut self, ask: &Ask<'_, C>) {
        if let Some(slot) = self.table.held_by(&ask.client)
            && self.table.state(slot) == State::Offered
        {
            self.table.free(slot);
        }
    }
}
