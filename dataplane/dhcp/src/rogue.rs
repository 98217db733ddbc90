//! DHCP servers that nobody has told us of, noticed from what clients say: a broadcast REQUEST names the server it
//! chose (option 54), and an OFFER or ACK that strays here names its sender.
//!
//! A server is worth an event once in ten minutes. The table is small and gives a young entry up for nobody, so that
//! made-up servers cost the event log a few lines and no more.

use std::net::Ipv4Addr;
use std::time::Duration;

use lease::VlanId;

use crate::clock::Ms;

/// An event about one server at most so often.
const AGAIN: Duration = Duration::from_secs(600);
/// Servers known at one time.
const SERVERS_MAX: usize = 32;

pub(crate) struct Rogues {
    known: Vec<Rogue>,
}

struct Rogue {
    vlan: VlanId,
    server: Ipv4Addr,
    told: Ms,
}

impl Rogues {
    pub fn new() -> Self {
        Self {
            known: Vec::with_capacity(SERVERS_MAX),
        }
    }

    /// True if that is worth an event.
    pub fn notice(&mut self, vlan: VlanId, server: Ipv4Addr, now: Ms) -> bool {
        let own = |rogue: &&mut Rogue| rogue.vlan == vlan && rogue.server == server;
        let is_due = |told: Ms| told.plus(AGAIN) <= now;
        if let Some(rogue) = self.known.iter_mut().find(own) {
            let due = is_due(rogue.told);
            if due {
                rogue.told = now;
            }
            return due;
        }
        let new = Rogue {
            vlan,
            server,
            told: now,
        };
        if self.known.len() < SERVERS_MAX {
            self.known.push(new);
            return true;
        }
        match self.known.iter_mut().find(|rogue| is_due(rogue.told)) {
            Some(old) => *old = new,
            None => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_told_once_in_ten_minutes_and_few_of_them() {
        let mut rogues = Rogues::new();
        let at = |secs: u64| Ms::PAST.plus(Duration::from_secs(10_000 + secs));
        let server = |number: u32| Ipv4Addr::from(0x0a00_0000 + number);
        assert!(rogues.notice(1, server(1), at(0)));
        assert!(!rogues.notice(1, server(1), at(599)));
        assert!(rogues.notice(2, server(1), at(599)), "another VLAN's");
        assert!(rogues.notice(1, server(1), at(600)));
        let told = (0..10_000).filter(|n| rogues.notice(3, server(*n), at(601)));
        assert_eq!(told.count(), SERVERS_MAX - 2);
        assert!(
            rogues.notice(3, server(20_000), at(1300)),
            "the old make room"
        );
        assert_eq!(rogues.known.len(), SERVERS_MAX);
    }
}
