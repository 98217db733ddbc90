//! The feed into the shards' snapshot.
//!
//! A full snapshot is built aside and swapped in whole; a delta changes a copy that shares all it did not touch. What a
//! region does not send in order is a gap: the subscription ends and a new one begins.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use capnp::Error;
use images::Object;
use imbl::OrdMap;
use rpc::muster_capnp as wire;
use shard::{Link, Loader, Snapshot};
use wire::feed_item::Which;

use super::machine;
use super::wire::{self as words, LinkItem};
use crate::work::fill::{Letter, Manifest};

type Sha256 = [u8; 32];

/// What the link thread knows from the feed, and publishes.
pub(super) struct Feed {
    shared: Arc<ArcSwap<Snapshot>>,
    /// Kernel index by device name.
    interfaces: HashMap<String, u32>,
    current: Image,
    /// A full snapshot that is still arriving.
    building: Option<Image>,
    generation: u64,
    sequence: u64,
    watermark: u64,
    /// For the work thread; emptied by the link thread.
    pub letters: VecDeque<Letter>,
    counters: Counters,
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub snapshots: u64,
    pub deltas: u64,
    pub items: u64,
    pub removed: u64,
    pub gaps: u64,
    /// Items of a kind that this version does not know.
    pub unknown: u64,
}

/// One version of everything. Cloning it copies a few pointers and the links.
#[derive(Clone, Default)]
struct Image {
    snapshot: Snapshot,
    links: BTreeMap<u32, LinkItem>,
    /// (VLAN, address) to subnet: `Snapshot` cannot be searched by VLAN.
    reservations: OrdMap<(u32, Ipv4Addr), u32>,
    manifests: OrdMap<Sha256, Held>,
}

/// A manifest, the same one as long as its content is.
#[derive(Clone)]
struct Held(Arc<Manifest>);

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What a part changed that others must hear of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Devices with a link may have come or gone.
    pub links: bool,
}

impl Feed {
    pub fn new(shared: Arc<ArcSwap<Snapshot>>) -> Feed {
        Feed {
            shared,
            interfaces: HashMap::new(),
            current: Image::default(),
            building: None,
            generation: 0,
            sequence: 0,
            watermark: 0,
            letters: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.current.snapshot
    }

    /// Every change of the region's database below this is in the snapshot.
    pub fn watermark(&self) -> u64 {
        self.watermark
    }

    /// The kernel indexes of devices that links stand on, ascending.
    pub fn devices(&self) -> Vec<u32> {
        let links = self.current.snapshot.links();
        let mut devices: Vec<u32> = links.iter().filter_map(|link| link.index).collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    /// The devices as they are now. Links on devices that came or went are found or lost.
    pub fn set_interfaces(&mut self, interfaces: HashMap<String, u32>) {
        self.interfaces = interfaces;
        self.current.join_links(&self.interfaces);
        self.publish();
    }

    /// The cache evicted a file: what was served from is replaced by an absent object.
    pub fn replace_object(&mut self, object: Arc<Object>) {
        let sha256 = *object.sha256();
        if self.current.manifests.contains_key(&sha256) {
            self.current.snapshot.files.insert(sha256, object);
            self.publish();
        }
    }

    pub fn on_snapshot(&mut self, part: wire::feed_part::Reader<'_>) -> Result<Changed, Error> {
        let (generation, sequence) = (part.get_generation(), part.get_sequence());
        let follows = generation == self.generation && sequence == self.sequence.wrapping_add(1);
        let mut building = match self.building.take() {
            _ if sequence == 1 => Image::default(),
            Some(building) if follows => building,
            _ => return Err(self.gap()),
        };
        building.apply(part, &self.current, &mut self.counters)?;
        (self.generation, self.sequence) = (generation, sequence);
        if !part.get_complete() {
            self.building = Some(building);
            return Ok(Changed::default());
        }
        building.join_links(&self.interfaces);
        self.tell_files(&building);
        self.current = building;
        self.watermark = part.get_watermark();
        self.counters.snapshots += 1;
        self.publish();
        Ok(Changed { links: true })
    }

    pub fn on_delta(&mut self, part: wire::feed_part::Reader<'_>) -> Result<Changed, Error> {
        let follows = part.get_generation() == self.generation
            && part.get_sequence() == self.sequence.wrapping_add(1);
        if !follows || self.building.is_some() || self.generation == 0 && self.sequence == 0 {
            return Err(self.gap());
        }
        let mut next = self.current.clone();
        let changed = next.apply(part, &self.current, &mut self.counters)?;
        if changed.links {
            next.join_links(&self.interfaces);
        }
        self.tell_files(&next);
        self.current = next;
        self.sequence = part.get_sequence();
        self.watermark = part.get_watermark();
        self.counters.deltas += 1;
        self.publish();
        Ok(changed)
    }

    fn gap(&mut self) -> Error {
        self.counters.gaps += 1;
        self.building = None;
        // Nothing follows until a snapshot begins.
        (self.generation, self.sequence) = (0, 0);
        Error::failed("a part of the feed is missing".into())
    }

    fn publish(&self) {
        self.shared.store(Arc::new(self.current.snapshot.clone()));
    }

    /// Letters for what differs between the current files and the next ones.
    fn tell_files(&mut self, next: &Image) {
        use imbl::ordmap::DiffItem;
        for difference in self.current.manifests.diff(&next.manifests) {
            let (sha256, manifest) = match difference {
                DiffItem::Add(sha256, held)
                | DiffItem::Update {
                    new: (sha256, held),
                    ..
                } => (sha256, Manifest::clone(&held.0)),
                DiffItem::Remove(sha256, _) => {
                    self.letters.push_back(Letter::Forgotten(*sha256));
                    continue;
                }
            };
            let object = next.snapshot.files.get(sha256).map(Arc::clone);
            let object = object.expect("a manifest and its object are inserted together");
            self.letters.push_back(Letter::Known { manifest, object });
        }
        // After the files, so that the cache knows what it is asked for.
        for (path, loader) in &next.snapshot.loaders {
            let is_new = self
                .current
                .snapshot
                .loaders
                .get(path)
                .is_none_or(|old| !Arc::ptr_eq(old, loader));
            if is_new && loader.bytes.get().is_none() {
                self.letters.push_back(Letter::Loader(Arc::clone(loader)));
            }
        }
    }
}

impl Image {
    fn apply(
        &mut self,
        part: wire::feed_part::Reader<'_>,
        before: &Image,
        counters: &mut Counters,
    ) -> Result<Changed, Error> {
        let mut changed = Changed::default();
        for key in part.get_removed()? {
            counters.removed += 1;
            self.remove(key?.to_str()?, &mut changed);
        }
        for item in part.get_items()? {
            counters.items += 1;
            // `which` fails on a kind of a newer region, and on nothing else.
            let Ok(which) = item.which() else {
                counters.unknown += 1;
                continue;
            };
            self.insert(which, before, &mut changed)?;
        }
        Ok(changed)
    }

    fn insert(
        &mut self,
        item: wire::feed_item::WhichReader<'_>,
        before: &Image,
        changed: &mut Changed,
    ) -> Result<(), Error> {
        match item {
            Which::Link(link) => {
                if let Some(link) = words::link(link?)? {
                    let vlan = link.dhcp.vlan;
                    let subnets: Vec<u32> = link.dhcp.subnets.iter().map(|s| s.id).collect();
                    self.drop_reservations(vlan, |subnet| !subnets.contains(&subnet));
                    self.links.insert(vlan, link);
                    changed.links = true;
                }
            }
            Which::Machine(reader) => {
                self.snapshot
                    .insert_machine(Arc::new(machine::read(reader?)?));
            }
            Which::File(file) => self.insert_file(manifest(file?)?, before),
            Which::Loader(loader) => {
                let loader = loader?;
                let path = loader.get_path()?.to_str()?.trim_start_matches('/');
                let sha256 = words::sha256(loader.get_sha256()?)?;
                // The bytes that are there already stay.
                let known = before
                    .snapshot
                    .loaders
                    .get(path)
                    .filter(|known| known.sha256 == sha256);
                let loader = known
                    .cloned()
                    .unwrap_or_else(|| Arc::new(Loader::absent(sha256)));
                self.snapshot.loaders.insert(path.into(), loader);
            }
            Which::Settings(settings) => {
                let settings = settings?;
                self.snapshot.settings = Arc::new(machine::settings(settings)?);
                self.snapshot.traces = words::traces(settings.get_traces()?, Instant::now())?;
            }
            Which::Reservation(reservation) => {
                if let Some(reservation) = words::reservation(reservation?)? {
                    let key = (reservation.vlan, reservation.address);
                    self.reservations.insert(key, reservation.subnet);
                    self.snapshot.insert_reservation(reservation);
                }
            }
        }
        Ok(())
    }

    /// A key of an unknown kind, or of nothing we have, removes nothing.
    fn remove(&mut self, key: &str, changed: &mut Changed) {
        let Some((kind, key)) = key.split_once(':') else {
            return;
        };
        match kind {
            "link" => {
                if let Ok(vlan) = key.parse() {
                    self.links.remove(&vlan);
                    self.drop_reservations(vlan, |_| true);
                    changed.links = true;
                }
            }
            "machine" => self.snapshot.remove_machine(key),
            "file" => {
                let mut sha256 = [0; 32];
                if hex::decode_to_slice(key, &mut sha256).is_ok() {
                    self.manifests.remove(&sha256);
                    self.snapshot.files.remove(&sha256);
                }
            }
            "loader" => {
                self.snapshot.loaders.remove(key.trim_start_matches('/'));
            }
            "reservation" => {
                if let Some((vlan, address)) = key.split_once(':')
                    && let (Ok(vlan), Ok(address)) = (vlan.parse(), address.parse())
                {
                    self.reservations.remove(&(vlan, address));
                    self.snapshot.remove_reservation(vlan, address);
                }
            }
            _ => {}
        }
    }

    /// Reservations go with their VLAN, and with their subnet.
    fn drop_reservations(&mut self, vlan: u32, is_gone: impl Fn(u32) -> bool) {
        let range = (vlan, Ipv4Addr::UNSPECIFIED)..=(vlan, Ipv4Addr::BROADCAST);
        let gone: Vec<_> = self
            .reservations
            .range(range)
            .filter(|(_, subnet)| is_gone(**subnet))
            .map(|(key, _)| *key)
            .collect();
        for (vlan, address) in gone {
            self.reservations.remove(&(vlan, address));
            self.snapshot.remove_reservation(vlan, address);
        }
    }

    fn join_links(&mut self, interfaces: &HashMap<String, u32>) {
        let links = self.links.values().map(|link| Link {
            dhcp: link.dhcp.clone(),
            interface: link.interface.clone(),
            index: interfaces.get(&link.interface).copied(),
        });
        self.snapshot.set_links(links.collect());
    }

    /// The object of a file stays the same as long as the file does: it knows what is on the disk.
    fn insert_file(&mut self, manifest: Manifest, before: &Image) {
        let sha256 = manifest.sha256;
        let (size, piece) = (manifest.size_bytes, manifest.piece_bytes);
        let known = before.manifests.get(&sha256);
        let same = known.filter(|known| is_same(&known.0, &manifest)).cloned();
        let fits =
            known.is_some_and(|known| (known.0.size_bytes, known.0.piece_bytes) == (size, piece));
        let object = before
            .snapshot
            .files
            .get(&sha256)
            .filter(|_| fits)
            .map(Arc::clone);
        let object = object.unwrap_or_else(|| Arc::new(Object::absent(sha256, size, piece)));
        self.snapshot.files.insert(sha256, object);
        self.manifests
            .insert(sha256, same.unwrap_or_else(|| Held(Arc::new(manifest))));
    }
}

fn is_same(a: &Manifest, b: &Manifest) -> bool {
    (a.size_bytes, a.piece_bytes, a.prefetch) == (b.size_bytes, b.piece_bytes, b.prefetch)
        && a.pieces == b.pieces
}

fn manifest(file: wire::file::Reader<'_>) -> Result<Manifest, Error> {
    Ok(Manifest {
        sha256: words::sha256(file.get_sha256()?)?,
        size_bytes: file.get_size_bytes(),
        piece_bytes: file.get_piece_bytes(),
        pieces: file
            .get_pieces()?
            .iter()
            .map(|piece| words::sha256(piece?))
            .collect::<Result<_, _>>()?,
        prefetch: file.get_prefetch(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed() -> Feed {
        Feed::new(Arc::default())
    }

    /// (generation, sequence, complete, items, removed)
    type Part<'a> = (u64, u64, bool, &'a [&'a str], &'a [&'a str]);

    /// Items are "loader:PATH" or "reservation:VLAN:SUBNET:LAST" or "link:VLAN:SUBNET".
    fn part(
        (generation, sequence, complete, items, removed): Part<'_>,
    ) -> capnp::message::Builder<capnp::message::HeapAllocator> {
        let mut message = capnp::message::Builder::new_default();
        let mut part = message.init_root::<wire::feed_part::Builder<'_>>();
        part.set_generation(generation);
        part.set_sequence(sequence);
        part.set_complete(complete);
        part.set_watermark(sequence * 10);
        let mut list = part.reborrow().init_items(items.len() as u32);
        for (i, item) in items.iter().enumerate() {
            let mut builder = list.reborrow().get(i as u32);
            let words: Vec<&str> = item.split(':').collect();
            match words[..] {
                ["loader", path] => {
                    let mut loader = builder.init_loader();
                    loader.set_path(path);
                    loader.set_sha256(&[7; 32]);
                }
                ["file", octet] => builder
                    .init_file()
                    .set_sha256(&[octet.parse().unwrap(); 32]),
                ["reservation", vlan, subnet, last] => {
                    let mut reservation = builder.init_reservation();
                    let last: u8 = last.parse().unwrap();
                    reservation.set_vlan(vlan.parse().unwrap());
                    reservation.set_subnet(subnet.parse().unwrap());
                    reservation.set_mac(&[2, 0, 0, 0, 0, last]);
                    reservation.set_address(&words::octets([10, 0, 0, last].into()));
                }
                ["link", vlan, subnet] => {
                    builder.set_key("link");
                    let mut link = builder.init_link();
                    link.set_vlan(vlan.parse().unwrap());
                    link.set_interface("eth0");
                    link.set_server_address(&words::octets([10, 0, 0, 1].into()));
                    let mut builder = link.init_subnets(1).get(0);
                    builder.set_id(subnet.parse().unwrap());
                    let mut prefix = builder.init_prefix();
                    prefix.set_address(&words::octets([10, 0, 0, 0].into()));
                    prefix.set_length(24);
                }
                _ => panic!("{item}"),
            }
        }
        let mut list = part.init_removed(removed.len() as u32);
        for (i, key) in removed.iter().enumerate() {
            list.set(i as u32, key);
        }
        message
    }

    fn snapshot(feed: &mut Feed, p: Part<'_>) -> Result<Changed, Error> {
        feed.on_snapshot(part(p).get_root_as_reader().unwrap())
    }

    fn delta(feed: &mut Feed, p: Part<'_>) -> Result<Changed, Error> {
        feed.on_delta(part(p).get_root_as_reader().unwrap())
    }

    fn loaders(feed: &Feed) -> Vec<String> {
        let snapshot = feed.shared.load();
        let mut paths: Vec<String> = snapshot
            .loaders
            .keys()
            .map(|path| path.to_string())
            .collect();
        paths.sort();
        paths
    }

    #[test]
    fn a_snapshot_appears_when_it_is_whole_and_deltas_follow() {
        let mut feed = feed();
        snapshot(&mut feed, (5, 1, false, &["loader:a"], &[])).unwrap();
        assert_eq!(loaders(&feed), [""; 0]);
        snapshot(&mut feed, (5, 2, true, &["loader:b"], &[])).unwrap();
        assert_eq!(loaders(&feed), ["a", "b"]);
        let kept = Arc::clone(&feed.shared.load().loaders["b"]);
        delta(&mut feed, (5, 3, false, &["loader:c"], &["loader:a"])).unwrap();
        assert_eq!(
            (loaders(&feed), feed.watermark()),
            (vec!["b".into(), "c".into()], 30)
        );
        snapshot(&mut feed, (6, 1, true, &["loader:b"], &[])).unwrap();
        assert_eq!(loaders(&feed), ["b"]);
        assert!(
            Arc::ptr_eq(&kept, &feed.shared.load().loaders["b"]),
            "its bytes are kept"
        );
    }

    #[test]
    fn what_does_not_follow_is_a_gap_and_changes_nothing() {
        let mut feed = feed();
        assert!(
            delta(&mut feed, (0, 1, false, &[], &[])).is_err(),
            "no snapshot yet"
        );
        snapshot(&mut feed, (5, 1, true, &["loader:a"], &[])).unwrap();
        for wrong in [(5, 3), (5, 1), (6, 2)] {
            let mut feed = self::feed();
            snapshot(&mut feed, (5, 1, true, &["loader:a"], &[])).unwrap();
            assert!(delta(&mut feed, (wrong.0, wrong.1, false, &["loader:x"], &[])).is_err());
            assert_eq!(
                (loaders(&feed), feed.counters().gaps),
                (vec!["a".into()], 1)
            );
            assert!(
                delta(&mut feed, (5, 2, false, &[], &[])).is_err(),
                "not before a snapshot"
            );
            snapshot(&mut feed, (7, 1, true, &[], &[])).unwrap();
            delta(&mut feed, (7, 2, false, &["loader:z"], &[])).unwrap();
        }
        snapshot(&mut feed, (8, 1, false, &["loader:b"], &[])).unwrap();
        assert!(snapshot(&mut feed, (8, 3, true, &[], &[])).is_err());
        assert_eq!(loaders(&feed), ["a"]);
    }

    #[test]
    fn reservations_go_with_their_subnet_and_vlan() {
        let mut feed = feed();
        let items = &[
            "link:1:11",
            "reservation:1:11:5",
            "reservation:1:12:6",
            "reservation:2:20:7",
        ];
        snapshot(&mut feed, (5, 1, true, items, &[])).unwrap();
        let has = |feed: &Feed, vlan, last| {
            feed.snapshot()
                .reserved_mac(vlan, std::net::Ipv4Addr::new(10, 0, 0, last))
                .is_some()
        };
        assert!(has(&feed, 1, 5) && has(&feed, 1, 6) && has(&feed, 2, 7));
        delta(&mut feed, (5, 2, false, &["link:1:11"], &[])).unwrap();
        assert!(has(&feed, 1, 5) && !has(&feed, 1, 6) && has(&feed, 2, 7));
        delta(
            &mut feed,
            (5, 3, false, &[], &["link:1", "reservation:2:10.0.0.7"]),
        )
        .unwrap();
        assert!(!has(&feed, 1, 5) && !has(&feed, 2, 7));
        assert!(feed.snapshot().links().is_empty());
    }

    #[test]
    fn links_find_their_device_when_it_comes() {
        let mut feed = feed();
        snapshot(&mut feed, (5, 1, true, &["link:1:11"], &[])).unwrap();
        assert!(feed.devices().is_empty());
        feed.set_interfaces([("eth0".to_owned(), 3)].into());
        assert_eq!(feed.devices(), [3]);
        assert_eq!(
            feed.shared.load().link_by_interface(3).unwrap().dhcp.vlan,
            1
        );
        delta(&mut feed, (5, 2, false, &["link:2:12"], &[])).unwrap();
        assert_eq!(feed.devices(), [3]);
    }

    #[test]
    fn the_cache_hears_of_files_and_an_object_stays_with_its_file() {
        let mut feed = feed();
        snapshot(
            &mut feed,
            (5, 1, true, &["file:1", "file:2", "loader:a"], &[]),
        )
        .unwrap();
        assert_eq!(feed.letters.len(), 3);
        assert!(matches!(feed.letters.back(), Some(Letter::Loader(_))));
        let object = Arc::clone(&feed.shared.load().files[&[1; 32]]);
        feed.letters.clear();
        snapshot(&mut feed, (6, 1, true, &["file:1", "loader:a"], &[])).unwrap();
        assert!(Arc::ptr_eq(&object, &feed.shared.load().files[&[1; 32]]));
        assert!(matches!(feed.letters.pop_front(), Some(Letter::Forgotten(sha)) if sha == [2; 32]));
        assert!(feed.letters.is_empty(), "what stayed is not told again");

        let fresh = |octet| Arc::new(Object::absent([octet; 32], 0, 0));
        feed.replace_object(fresh(1));
        assert!(!Arc::ptr_eq(&object, &feed.shared.load().files[&[1; 32]]));
        feed.replace_object(fresh(2));
        assert!(
            !feed.shared.load().files.contains_key(&[2; 32]),
            "it is not in the feed any more"
        );

        let gone = format!("file:{}", "01".repeat(32));
        delta(
            &mut feed,
            (6, 2, false, &[], &[&gone, "file:zz", "other:1", "x"]),
        )
        .unwrap();
        assert!(matches!(feed.letters.pop_front(), Some(Letter::Forgotten(sha)) if sha == [1; 32]));
        assert!(feed.shared.load().files.is_empty());
    }
}
