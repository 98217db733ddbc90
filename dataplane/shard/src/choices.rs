//! What clients are and were told to boot, from their REQUEST until the ACK that answers it.
//!
//! A fixed table: a client that hashes to a place another one waits in takes it, and the event log misses one line.

use std::fmt;
use std::hash::BuildHasher;
use std::net::Ipv4Addr;

use boot::Text;
use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use wire::ethernet::Mac;

/// Places, a power of two; a storm has a few hundred clients between REQUEST and ACK.
const PLACES: usize = 4096;

/// What a firmware client was told to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub server: Ipv4Addr,
    /// MAAS's name of the boot method, and the file. None: nothing here boots it.
    pub file: Option<(&'static str, Text)>,
    /// Whose images run there, where its firmware says what it is.
    pub arch: Option<&'static str>,
}

impl Told {
    /// MAAS's name of the boot method.
    pub fn method(&self) -> &'static str {
        self.file.map_or("", |(method, _)| method)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file {
            Some((method, file)) => {
                write!(
                    f,
                    "next server {}, boot file {file} ({method})",
                    self.server
                )
            }
            None => f.write_str("no boot file"),
        }
    }
}

pub(crate) struct Choices {
    /// Apart from what they were told: most clients that are looked for boot from their disk and are not here.
    macs: Box<[Option<Mac>]>,
    told: Box<[Option<Told>]>,
    hasher: SeedableRandomState,
}

impl Choices {
    /// `seed` must be random: strangers choose their MACs.
    pub fn new(seed: u64) -> Self {
        Self {
            macs: vec![None; PLACES].into(),
            told: vec![None; PLACES].into(),
            hasher: SeedableRandomState::with_seed(seed, SharedSeed::global_fixed()),
        }
    }

    fn place(&self, mac: Mac) -> usize {
        self.hasher.hash_one(mac.0) as usize & (PLACES - 1)
    }

    pub fn put(&mut self, mac: Mac, told: Told) {
        let place = self.place(mac);
        self.macs[place] = Some(mac);
        self.told[place] = Some(told);
    }

    pub fn take(&mut self, mac: Mac) -> Option<Told> {
        let place = self.place(mac);
        if self.macs[place] != Some(mac) {
            return None;
        }
        self.macs[place] = None;
        self.told[place].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_taken_once_by_its_own_client() {
        let mut choices = Choices::new(7);
        let told = Told {
            server: Ipv4Addr::new(10, 0, 0, 1),
            file: Some(("pxe", Text::format(format_args!("lpxelinux.0")).unwrap())),
            arch: Some("amd64"),
        };
        let mac = |number: u32| {
            let [a, b, c, d] = number.to_be_bytes();
            Mac([2, 0, a, b, c, d])
        };
        choices.put(mac(1), told);
        assert_eq!(choices.take(mac(2)), None);
        assert_eq!(choices.take(mac(1)), Some(told));
        assert_eq!(choices.take(mac(1)), None);
        for number in 0..100_000 {
            choices.put(mac(number), told);
        }
        assert_eq!(choices.take(mac(99_999)), Some(told));
    }
}
