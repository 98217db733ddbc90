//! TFTP between the driver and its server: where files are found, how datagrams leave, what is told to the region.

use std::net::IpAddr;

use tftp::{Ended, Found, Host, NoSlot, Outcome, Peer, Ticket, Train};

use crate::driver::{Driver, Target};
use crate::lookup::{Asked, Core, Lookup};
use crate::queries::Waiter;
use crate::shares::Standing;

pub(crate) struct TftpHost<'a, D> {
    pub core: &'a mut Core,
    pub engine: &'a dhcp::Engine,
    pub driver: &'a mut D,
}

impl<D: Driver> Host for TftpHost<'_, D> {
    fn find(&mut self, ticket: Ticket, peer: &Peer, file: &str) -> Found {
        let asked = Asked {
            path: file,
            client: peer.client.ip(),
            local: peer.local,
            waiter: Waiter::Tftp(ticket),
        };
        match self.core.find(&asked, self.engine) {
            Lookup::Bytes { body, .. } => Found::File(body),
            Lookup::Later => Found::Later,
            Lookup::Unavailable => Found::Silent,
            // Image files are fetched by HTTP; nothing that boots by TFTP asks for one.
            Lookup::Object(_) | Lookup::NotFound | Lookup::NotOurs => Found::NotFound,
        }
    }

    fn is_known(&mut self, client: IpAddr) -> bool {
        self.core.standing(client, self.engine) == Standing::Known
    }

    fn send(
        &mut self,
        peer: &Peer,
        tid: u16,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot> {
        let target = Target::Tftp {
            from: peer.local,
            to: peer.client,
            tid,
        };
        self.driver.send(&target, train, fill)
    }

    fn ended(&mut self, ended: Ended<'_>) {
        if ended.outcome != Outcome::Finished
            || !self.core.snapshot.loaders.contains_key(ended.file)
        {
            return; // boot configs have their own event
        }
        let address = ended.peer.client.ip();
        let mac = self.core.mac_at(address, self.engine);
        let detail = format!("{} {} octets by TFTP", ended.file, ended.file_bytes);
        self.core.event("LOADER_SERVED", mac, address, detail);
    }
}
