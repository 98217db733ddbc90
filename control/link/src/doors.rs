//! The places of the two rack-facing ports, and whom a connection is taken for before it has shown a certificate.
//!
//! A stranger's place goes to the next when there are too many. An address from which a rack has shown its certificate
//! has a lane of its own, so that strangers do not keep a rack from coming back; a rack that has shown one holds a
//! place of its own share.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gate::{Bounds, Buckets, Full, Numbers, Place, Rate, Recent, Room, Source};

/// Connections without a certificate: handshakes, and hosts that enrol.
const STRANGERS: Bounds = open(256, 8);
/// The same from addresses where racks are. Racks may share one: behind address translation, or in a lab.
const KNOWN: Bounds = open(1024, 128);
/// Handshakes of one unknown address: each costs a signature.
const HANDSHAKES: Rate = Rate {
    burst: 20,
    every: Duration::from_millis(100),
};
/// Addresses remembered as racks', and as strangers'.
const ADDRESSES_MAX: usize = 8 << 10;

const fn open(total: u64, each: u64) -> Bounds {
    Bounds {
        total,
        open: total,
        each,
    }
}

/// The doors of one port.
pub(crate) struct Port {
    strangers: Arc<Room>,
    known: Arc<Room>,
    /// By certificate.
    racks: Arc<Room>,
}

pub(crate) struct Doors {
    /// 5250
    pub link: Port,
    /// 5251
    pub https: Port,
    addresses: Mutex<Recent<Source, ()>>,
    handshakes: Mutex<Buckets<Source>>,
}

/// Why a connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    TooOften,
}

impl Default for Doors {
    fn default() -> Self {
        // A rack has one link to a process, and a few while it comes back; it keeps up to 32 connections for images
        // and metadata.
        Self {
            link: Port {
                strangers: Room::new("link_strangers", STRANGERS),
                known: Room::new("link_known_addresses", KNOWN),
                racks: Room::new("link_racks", open(4096, 16)),
            },
            https: Port {
                strangers: Room::new("rack_https_strangers", STRANGERS),
                known: Room::new("rack_https_known_addresses", KNOWN),
                racks: Room::new("rack_https_racks", open(4096, 96)),
            },
            addresses: Mutex::new(Recent::new(ADDRESSES_MAX)),
            handshakes: Mutex::new(Buckets::new(HANDSHAKES, ADDRESSES_MAX)),
        }
    }
}

impl Doors {
    /// A place until the certificate is shown.
    pub fn enter(&self, port: &Port, from: IpAddr, now: Instant) -> Result<Place, Refused> {
        let source = Source::host(from);
        let is_known = lock(&self.addresses).peek(&source).is_some();
        let full = |_: Full| Refused::Full;
        if is_known {
            return port.known.enter(source, 1).map_err(full);
        }
        if !lock(&self.handshakes).take(&source, now) {
            return Err(Refused::TooOften);
        }
        port.strangers.enter(source, 1).map_err(full)
    }

    /// A place of the rack itself, open until it is firm.
    pub fn admit(&self, port: &Port, rack: &str) -> Result<Place, Refused> {
        let source = Source::Rack(rack.into());
        port.racks.enter(source, 1).map_err(|_| Refused::Full)
    }

    /// A rack has shown a certificate that stands, or the region knows that it is there.
    pub fn know(&self, address: IpAddr) {
        lock(&self.addresses).touch(&Source::host(address), || ());
    }

    pub fn numbers(&self) -> Vec<Numbers> {
        [&self.link, &self.https]
            .iter()
            .flat_map(|port| [&port.strangers, &port.known, &port.racks])
            .map(|room| room.numbers())
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn strangers_without_end_take_no_place_of_a_known_address_or_a_rack() {
        let (doors, now) = (Doors::default(), Instant::now());
        doors.know(address(1));
        let known = doors.enter(&doors.link, address(1), now).unwrap();
        let rack = doors.admit(&doors.link, "aaaaaa").unwrap();
        let first = doors.enter(&doors.link, address(2), now).unwrap();
        let flood: Vec<_> = (10..6000)
            .map(|number| doors.enter(&doors.link, address(number), now).unwrap())
            .collect();
        assert!(first.is_displaced());
        assert!(!known.is_displaced() && !rack.is_displaced());
        assert!(!flood.last().unwrap().is_displaced());
        assert!(doors.enter(&doors.link, address(1), now).is_ok());
        assert!(doors.enter(&doors.https, address(3), now).is_ok());
        let held: u64 = doors.numbers().iter().map(|room| room.held).sum();
        assert_eq!(held, 256 + 1 + 1, "the last two are dropped again");
    }

    #[test]
    fn one_address_has_its_share_of_places_and_of_handshakes() {
        let (doors, now) = (Doors::default(), Instant::now());
        let other = doors.enter(&doors.link, address(2), now).unwrap();
        let of_one: Vec<_> = (0..20)
            .map(|_| doors.enter(&doors.link, address(1), now).unwrap())
            .collect();
        let left = of_one.iter().filter(|place| !place.is_displaced()).count();
        assert_eq!(left, 8);
        assert!(!other.is_displaced());
        let again = doors.enter(&doors.link, address(1), now);
        assert_eq!(again.err(), Some(Refused::TooOften));
        let later = now + Duration::from_secs(1);
        assert!(doors.enter(&doors.link, address(1), later).is_ok());
    }

    #[test]
    fn a_rack_that_opens_links_without_end_takes_its_own() {
        let doors = Doors::default();
        let other = doors.admit(&doors.link, "bbbbbb").unwrap();
        other.firm();
        let many: Vec<_> = (0..100)
            .map(|_| doors.admit(&doors.link, "aaaaaa").unwrap())
            .collect();
        assert_eq!(
            many.iter().filter(|place| !place.is_displaced()).count(),
            16
        );
        assert!(!other.is_displaced());
    }
}
