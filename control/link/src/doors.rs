//! The places of the two rack-facing ports, and whom a connection is taken for before it has shown a certificate.
//!
//! A stranger's place goes to the next when there are too many. An address from which a rack has shown its certificate
//! has a lane of its own, so that strangers do not keep a rack from coming back; a rack that has shown one holds a
//! place of its own share.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gate::{Bounds, Buckets, Full, Numbers, Place, Rate, Recent, Room, Source};
use tokio::net::TcpStream;

use crate::counters::{Counters, count};

/// Connections without a certificate: handshakes, and hosts that enrol.
const STRANGERS: Bounds = open(256, 8);
/// The same from addresses where racks are. Racks may share one: behind address translation, or in a lab.
const KNOWN: Bounds = open(1024, 128);
/// Handshakes of one unknown address: each costs a signature.
const HANDSHAKES: Rate = Rate {
    burst: 20,
    every: Duration::from_millis(100),
};
/// Of all unknown addresses together: a tenth of a core.
const HANDSHAKES_ALL: Rate = Rate {
    burst: 200,
    every: Duration::from_millis(10),
};
/// Between two looks for a turn.
const TURN: Duration = Duration::from_millis(30);
/// Of one address where racks are: a whole site may come back behind it.
const HANDSHAKES_KNOWN: Rate = Rate {
    burst: 1000,
    every: Duration::from_millis(10),
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
    handshakes_all: Mutex<Buckets<()>>,
    handshakes_known: Mutex<Buckets<Source>>,
}

/// Why a connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    /// This address comes too often.
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
            handshakes_all: Mutex::new(Buckets::new(HANDSHAKES_ALL, 1)),
            handshakes_known: Mutex::new(Buckets::new(HANDSHAKES_KNOWN, ADDRESSES_MAX)),
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
            if !lock(&self.handshakes_known).take(&source, now) {
                return Err(Refused::TooOften);
            }
            return port.known.enter(source, 1).map_err(full);
        }
        if !lock(&self.handshakes).take(&source, now) {
            return Err(Refused::TooOften);
        }
        port.strangers.enter(source, 1).map_err(full)
    }

    /// Whether a handshake may begin: of all unknown addresses only so many do. One that nobody begins costs nothing.
    fn may_begin(&self, from: IpAddr, now: Instant) -> bool {
        let is_known = lock(&self.addresses).peek(&Source::host(from)).is_some();
        is_known || lock(&self.handshakes_all).take(&(), now)
    }

    /// Waits for the client's first octet, and then for its turn. False: the client is gone.
    pub async fn turn(&self, stream: &TcpStream, from: IpAddr, counters: &Counters) -> bool {
        if !stream.peek(&mut [0]).await.is_ok_and(|octets| octets > 0) {
            return false;
        }
        if !self.may_begin(from, Instant::now()) {
            count(&counters.handshakes_delayed);
            while !self.may_begin(from, Instant::now()) {
                tokio::time::sleep(TURN).await;
            }
        }
        true
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
    fn handshakes_of_unknown_addresses_have_a_rate_in_all_and_known_addresses_a_lane_of_their_own()
    {
        let (doors, now) = (Doors::default(), Instant::now());
        doors.know(address(1));
        // Each comes once: no share of an address is used up.
        let begun = (10..6000).filter(|number| doors.may_begin(address(*number), now));
        assert_eq!(begun.count(), HANDSHAKES_ALL.burst as usize);
        assert!((0..6000).all(|_| doors.may_begin(address(1), now)));
        assert!(!doors.may_begin(address(6001), now));
        let second = now + Duration::from_secs(1);
        let later = (6001..9000).filter(|number| doors.may_begin(address(*number), second));
        assert_eq!(later.count(), 100);
        // A known address has a share of its own: of connections.
        let enter = |number| doors.enter(&doors.link, address(number), now).err();
        let known = (0..HANDSHAKES_KNOWN.burst).filter(|_| enter(1).is_none());
        assert_eq!(known.count(), HANDSHAKES_KNOWN.burst as usize);
        assert_eq!(enter(1), Some(Refused::TooOften));
        assert_eq!(enter(2), None);
    }

    /// What says nothing takes no turn, and one that waits for its turn gets it.
    #[tokio::test]
    async fn a_turn_is_taken_by_the_first_octet() {
        use tokio::io::AsyncWriteExt;
        let (doors, counters) = (Doors::default(), Counters::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(to).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let turn = doors.turn(&stream, address(1), &counters);
        let mut turn = std::pin::pin!(turn);
        assert!(futures::poll!(turn.as_mut()).is_pending());
        let now = Instant::now();
        let begun = (0..).take_while(|_| doors.may_begin(address(2), now));
        assert_eq!(
            begun.count(),
            HANDSHAKES_ALL.burst as usize,
            "nothing was taken"
        );
        client.write_all(b"x").await.unwrap();
        assert!(turn.await);
        assert_eq!(
            counters
                .handshakes_delayed
                .load(std::sync::atomic::Ordering::Relaxed),
            1
        );
        let gone = TcpStream::connect(to).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        drop(gone);
        assert!(!doors.turn(&stream, address(1), &counters).await);
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
