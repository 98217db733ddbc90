//! BOOTP clients: messages without option 53 (RFC 951, RFC 1534 §2). They know no lease, so they get addresses from
//! reservations only; there is no dynamic BOOTP.

use std::net::Ipv4Addr;
use std::time::Duration;

use wire::dhcp4::MessageType;

use super::{Ask, Engine};
use crate::config::Config;
use crate::counters::{Drop, Sent};
use crate::destination::reply_destination;
use crate::outbox::{EventKind, Outbox};
use crate::reply;

impl Engine {
    pub(super) fn on_bootp<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let own = self.reserved(ask).ok_or(Drop::NoReservation)?;
        if own.dynamic {
            // Nobody else gets it from now on, so nothing has to be written; but somebody may have it from before.
            self.serving(ask.now)?;
            let slot = self.table.find(ask.link.vlan, own.address);
            let slot = slot.ok_or(Drop::NoRecord)?;
            if !self.table.is_held_by(slot, &ask.client) && !self.is_dealable(slot) {
                if self.wish_for_reserved(ask, own.subnet.id, slot) {
                    return Err(Drop::Borrowing);
                }
                self.counters.count(Sent::ReservationTaken);
                return Err(Drop::NoFreeAddress);
            }
        }
        self.send_bootp(ask, own.address, out)
    }

    fn send_bootp<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        address: Ipv4Addr,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let subnet = ask.link.subnet_of(address).unwrap_or(ask.home);
        // Where it goes is decided as for an ACK (RFC 1542 §4.1.2, RFC 2131 §4.1).
        let terms = ask.terms(MessageType::Ack, address, subnet, None);
        let (counters, buffer) = (&mut self.counters, out.message_buffer());
        let length = reply::write_bootp(ask.query, ask.link, ask.boot, &terms, counters, buffer)?;
        let destination = reply_destination(ask.query, MessageType::Ack, address);
        let (vlan, server) = (ask.link.vlan, ask.link.server);
        out.reply(MessageType::Ack, vlan, server, destination, length);
        self.counters.count(Sent::Bootp);
        self.event(EventKind::Bootp, ask, address, Duration::ZERO, out);
        Ok(())
    }
}
