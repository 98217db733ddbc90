//! What each client address holds of the server, so that no address takes what all need.
//!
//! A host changes its port for nothing, so shares are an address's; one IPv6 host has 2^64 addresses, so there they are
//! a network's of 64 bits.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// First blocks sent to one address that has not answered, in one [`FIRST_BLOCKS_TIME`]. Only a client that asks for no
/// option gets a block before it has answered; all firmware of the last twenty years asks for some.
const FIRST_BLOCKS_MAX: u32 = 16;
const FIRST_BLOCKS_TIME: Duration = Duration::from_secs(4);

#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// Entries hold something, so there are no more than requests and transfers.
    clients: HashMap<IpAddr, Client, foldhash::quality::RandomState>,
}

#[derive(Debug, Default)]
pub(crate) struct Client {
    /// Keys of waiting requests, and of transfers, the oldest first.
    pub pending: Vec<u32>,
    pub transfers: Vec<u32>,
    /// Unanswered first blocks of the period that began then.
    first_blocks: u32,
    since: Option<Instant>,
}

/// Whose share an address has.
fn holder(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
        v4 => v4,
    }
}

impl Shares {
    pub fn of(&mut self, address: IpAddr) -> &mut Client {
        self.clients.entry(holder(address)).or_default()
    }

    /// The transfers of an address, the oldest first.
    pub fn held(&self, address: IpAddr) -> &[u32] {
        self.clients
            .get(&holder(address))
            .map_or(&[], |client| &client.transfers)
    }

    pub fn drop_pending(&mut self, address: IpAddr, key: u32) {
        self.change(address, |client| client.pending.retain(|held| *held != key));
    }

    pub fn drop_transfer(&mut self, address: IpAddr, key: u32) {
        self.change(address, |client| {
            client.transfers.retain(|held| *held != key)
        });
    }

    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut Client)) {
        let holder = holder(address);
        if let Some(client) = self.clients.get_mut(&holder) {
            change(client);
            if client.pending.is_empty() && client.transfers.is_empty() {
                self.clients.remove(&holder);
            }
        }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.clients.len()
    }
}

impl Client {
    /// Whether one more first block may go to an address that has not answered.
    pub fn may_send_first_block(&mut self, now: Instant) -> bool {
        if self
            .since
            .is_none_or(|since| now >= since + FIRST_BLOCKS_TIME)
        {
            self.since = Some(now);
            self.first_blocks = 0;
        }
        let may = self.first_blocks < FIRST_BLOCKS_MAX;
        self.first_blocks += u32::from(may);
        may
    }

    /// It has answered: that block does not count.
    pub fn answered_first_block(&mut self) {
        self.first_blocks = self.first_blocks.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_64_bits_has_one_share_and_an_empty_one_is_forgotten() {
        let mut shares = Shares::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        shares.of(address("fd00::1")).pending.push(1);
        shares.of(address("fd00::ffff:2")).transfers.push(2);
        shares.of(address("fd00:0:0:1::1")).pending.push(3);
        shares.of(address("::ffff:10.0.0.1")).pending.push(4);
        shares.of(address("10.0.0.1")).pending.push(5);
        shares.of(address("10.0.0.2")).pending.push(6);
        assert_eq!(shares.count(), 4);
        assert_eq!(shares.of(address("fd00::3")).transfers, [2]);
        assert_eq!(shares.of(address("10.0.0.1")).pending, [4, 5]);
        for key in [4, 5] {
            shares.drop_pending(address("10.0.0.1"), key);
        }
        assert_eq!(shares.count(), 3);
    }

    #[test]
    fn first_blocks_to_a_silent_address_are_rationed() {
        let (mut client, now) = (Client::default(), Instant::now());
        let sent =
            |client: &mut Client, at| (0..99).filter(|_| client.may_send_first_block(at)).count();
        assert_eq!(sent(&mut client, now), 16);
        client.answered_first_block();
        assert_eq!(sent(&mut client, now), 1, "what was answered is given back");
        assert_eq!(sent(&mut client, now + FIRST_BLOCKS_TIME), 16);
    }
}
