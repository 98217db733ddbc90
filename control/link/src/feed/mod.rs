//! The feed's publisher: one task per process that turns committed changes into what each subscribed rack must know.
//!
//! A pass reads the changed keys and their values in one REPEATABLE READ view. The watermark only moves to that
//! view's horizon (a sequence is not commit order): a change of a transaction still open then is found by a later pass.
//! Changes above the horizon that are visible already are sent at once and remembered, so that a long transaction
//! delays its own changes only.
//!
//! Cost of a pass: what changed, plus nothing. Only a changed image or choice of image reads all machines, and only a
//! subscription or a rack whose interfaces changed makes a whole snapshot, for that rack.

mod dhcp;
mod outbox;
pub(crate) mod values;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rpc::muster_capnp::feed_sink;
use sqlx::{PgConnection, PgPool};
use store::StoreError;
use store::feed::{Change, Kind, ReservationValue, ServedVlan, SubnetValue, Which};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::counters::count;
use crate::racks::Racks;
use outbox::{Delta, Outbox};
use values::{Images, Item, Link, Machine, Settings};

/// A pass is made at least this often, notified or not.
const PASS_EVERY: Duration = Duration::from_secs(1);
/// Changes that come close together go out together.
const GATHER: Duration = Duration::from_millis(10);
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Changes read in one pass; more than that, and whole snapshots are cheaper.
const CHANGES_MAX: i64 = 10_000;
/// More changed machines than this are read as "all".
const MACHINES_BY_KEY_MAX: usize = 2_000;
/// Subscriptions waiting to be taken up.
const SUBSCRIBE_QUEUE: usize = 256;
/// Without a pass for this long, changes may have been removed unseen.
const STALE_AFTER: Duration = Duration::from_secs(store::feed::KEPT.as_secs() / 2);

/// Where sessions subscribe.
#[derive(Clone)]
pub(crate) struct Handle {
    subscribe: mpsc::Sender<Subscriber>,
    racks: Racks,
}

/// Ends the subscription when dropped.
pub(crate) struct Subscription {
    end: CancellationToken,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Handle {
    /// Streams a snapshot and then deltas into `sink`, until `end` or a fault of the sink.
    pub fn subscribe(
        &self,
        rack: &str,
        sink: feed_sink::Client,
        end: CancellationToken,
    ) -> Result<Subscription, capnp::Error> {
        let outbox = Rc::new(Outbox::default());
        let subscriber = Subscriber {
            rack: rack.to_owned(),
            outbox: Rc::clone(&outbox),
            end: end.clone(),
            served: None,
        };
        self.subscribe
            .try_send(subscriber)
            .map_err(|_| capnp::Error::overloaded("too many subscriptions at once".into()))?;
        let (racks, rack, ended) = (self.racks.clone(), rack.to_owned(), end.clone());
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                error = outbox::send(outbox, sink, racks.counters()) => {
                    tracing::info!(rack, %error, "feed subscription ended");
                    ended.cancel();
                }
            }
        });
        Ok(Subscription { end })
    }
}

struct Subscriber {
    rack: String,
    outbox: Rc<Outbox>,
    end: CancellationToken,
    /// What it serves, as last told; `None`: it needs a snapshot.
    served: Option<BTreeMap<i32, ServedVlan>>,
}

impl Subscriber {
    fn sees(&self, machine: &Machine) -> bool {
        self.served.as_ref().is_some_and(|served| {
            machine
                .vlans
                .iter()
                .any(|v| *v == 0 || served.contains_key(v))
        })
    }
}

pub(crate) fn new(pool: PgPool, racks: Racks, cancel: CancellationToken) -> (Handle, Publisher) {
    let (subscribe, subscribed) = mpsc::channel(SUBSCRIBE_QUEUE);
    let publisher = Publisher {
        pool,
        racks: racks.clone(),
        cancel,
        subscribed,
        subscribers: Vec::new(),
        since: 0,
        sent_early: HashSet::new(),
        images: Images::default(),
        settings: Settings::default(),
        last_pass: Instant::now(),
    };
    (Handle { subscribe, racks }, publisher)
}

pub(crate) struct Publisher {
    pool: PgPool,
    racks: Racks,
    cancel: CancellationToken,
    subscribed: mpsc::Receiver<Subscriber>,
    subscribers: Vec<Subscriber>,
    /// Every change of a transaction below this has been sent.
    since: u64,
    /// Ids of changes at or above `since` that have been sent too.
    sent_early: HashSet<i64>,
    images: Images,
    settings: Settings,
    last_pass: Instant,
}

/// The changed keys of one pass.
#[derive(Default)]
struct Keys {
    links: BTreeSet<i32>,
    machines: BTreeSet<String>,
    files: BTreeSet<String>,
    loaders: BTreeSet<String>,
    /// (VLAN, address text)
    reservations: BTreeSet<(i32, String)>,
    racks: BTreeSet<String>,
    settings: bool,
}

impl Publisher {
    pub async fn run(mut self) {
        while !self.cancel.is_cancelled() {
            if let Err(error) = self.publish().await {
                count(&self.racks.counters().feed_errors);
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "publishing the feed"
                );
                // What was noted as told in the broken pass may not have been.
                self.start_over();
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    /// Ends when the region does, or with a fault of the database.
    async fn publish(&mut self) -> Result<(), StoreError> {
        let options = self.pool.connect_options();
        let mut listener = crate::listener::listen(options, store::feed::CHANNEL).await?;
        // The connection is new: so may the database be, after a promotion or a restore.
        store::lease::check_database(&self.pool).await?;
        loop {
            self.pass().await?;
            tokio::select! {
                () = self.cancel.cancelled() => return Ok(()),
                told = listener.try_recv() => { told?; }
                Some(subscriber) = self.subscribed.recv() => {
                    self.subscribers.push(subscriber);
                    // Those that came together share one reading of the tables.
                    while let Ok(subscriber) = self.subscribed.try_recv() {
                        self.subscribers.push(subscriber);
                    }
                    continue;
                }
                () = tokio::time::sleep(PASS_EVERY) => {}
            }
            tokio::time::sleep(GATHER).await;
            // What was told meanwhile is in the pass that comes now.
            while let Some(waiting) = futures::FutureExt::now_or_never(listener.try_recv()) {
                waiting?;
            }
        }
    }

    async fn pass(&mut self) -> Result<(), StoreError> {
        self.subscribers
            .retain(|subscriber| !subscriber.end.is_cancelled());
        if self.last_pass.elapsed() > STALE_AFTER {
            self.start_over();
        }
        if self.subscribers.is_empty() {
            // Whoever comes gets a snapshot first, so nothing need be followed until then.
            self.last_pass = Instant::now();
            return Ok(());
        }
        let mut tx = self.pool.begin().await?;
        let db = &mut *tx;
        store::feed::read_consistently(db).await?;
        let horizon = store::feed::horizon(db).await?;
        if self
            .subscribers
            .iter()
            .any(|subscriber| subscriber.served.is_some())
        {
            self.deltas(db, horizon).await?;
        } else {
            self.sent_early.clear();
            self.sent_early.extend(visible_above(db, horizon).await?);
        }
        if self
            .subscribers
            .iter()
            .any(|subscriber| subscriber.served.is_none())
        {
            self.snapshots(db, horizon).await?;
        }
        tx.rollback().await?;
        self.since = horizon;
        self.last_pass = Instant::now();
        Ok(())
    }

    fn start_over(&mut self) {
        for subscriber in &mut self.subscribers {
            subscriber.served = None;
        }
    }

    /// Tells those that have a snapshot what changed since the last pass.
    async fn deltas(&mut self, db: &mut PgConnection, horizon: u64) -> Result<(), StoreError> {
        let mut changes = store::feed::changes(db, self.since, CHANGES_MAX + 1).await?;
        if changes.len() as i64 > CHANGES_MAX {
            // Perhaps most of them were sent early and wait for a long transaction: then only what has settled counts.
            changes.retain(|change| change.xid < horizon);
            if changes
                .iter()
                .filter(|change| !self.sent_early.contains(&change.id))
                .count() as i64
                > CHANGES_MAX / 2
            {
                tracing::info!("too many changes at once: whole snapshots instead");
                self.start_over();
                self.sent_early.clear();
                self.sent_early.extend(visible_above(db, horizon).await?);
                return Ok(());
            }
        }
        let keys = Keys::of(
            changes
                .iter()
                .filter(|change| !self.sent_early.contains(&change.id)),
        );
        let early = changes
            .iter()
            .filter(|change| change.xid >= horizon)
            .map(|change| change.id);
        let early: Vec<i64> = early.collect();
        let settled = changes.iter().filter(|change| change.xid < horizon);
        for change in settled {
            self.sent_early.remove(&change.id);
        }
        if !keys.is_empty() {
            self.tell(db, keys, horizon).await?;
        }
        self.sent_early.extend(early);
        Ok(())
    }

    async fn tell(
        &mut self,
        db: &mut PgConnection,
        mut keys: Keys,
        horizon: u64,
    ) -> Result<(), StoreError> {
        for subscriber in &mut self.subscribers {
            if keys.racks.contains(&subscriber.rack) {
                subscriber.served = None;
            }
        }
        let mut shared = Delta::default();
        let mut all_machines = false;
        if keys.settings || !keys.files.is_empty() {
            let images = Images::read(db).await?;
            let settings = Settings::read(db, &images).await?;
            all_machines = images != self.images;
            if settings != self.settings {
                if settings.ntp_servers != self.settings.ntp_servers {
                    // They are part of the links; nobody serves more than some hundreds.
                    let served = self.subscribers.iter().filter_map(|s| s.served.as_ref());
                    keys.links
                        .extend(served.flat_map(|served| served.keys().copied()));
                }
                shared.items.push(Rc::new(Item::Settings(settings.clone())));
            }
            if all_machines {
                // Which files are wanted early has changed with the images.
                let files = store::feed::files(db, None).await?;
                let item = |file: store::feed::FileValue| {
                    let prefetch = images.is_wanted_early(&file.sha256);
                    Rc::new(Item::File { file, prefetch })
                };
                shared.items.extend(files.into_iter().map(item));
            }
            (self.images, self.settings) = (images, settings);
        }
        self.tell_files(db, &keys, &mut shared).await?;
        let mut deltas: Vec<Delta> = self.subscribers.iter().map(|_| shared.clone()).collect();
        let moved = self.tell_links(db, &keys, &mut deltas).await?;
        self.tell_reservations(db, &keys, &moved, &mut deltas)
            .await?;
        self.tell_machines(db, &keys, all_machines, &moved, &mut deltas)
            .await?;
        for (subscriber, delta) in self.subscribers.iter_mut().zip(deltas) {
            let is_live = subscriber.served.is_some();
            let is_empty = delta.items.is_empty() && delta.removed.is_empty();
            if is_live && !is_empty && !subscriber.outbox.delta(delta, horizon) {
                count(&self.racks.counters().feed_behind);
                subscriber.served = None;
            }
        }
        Ok(())
    }

    /// Files and loaders are the same for every rack.
    async fn tell_files(
        &self,
        db: &mut PgConnection,
        keys: &Keys,
        shared: &mut Delta,
    ) -> Result<(), StoreError> {
        if !keys.files.is_empty() {
            let only: Vec<Vec<u8>> = keys
                .files
                .iter()
                .filter_map(|key| hex::decode(key).ok())
                .collect();
            let files = store::feed::files(db, Some(&only)).await?;
            let there: HashSet<String> =
                files.iter().map(|file| hex::encode(&file.sha256)).collect();
            let gone = keys.files.iter().filter(|key| !there.contains(*key));
            shared.removed.extend(gone.map(|key| values::file_key(key)));
            shared.items.extend(files.into_iter().map(|file| {
                let prefetch = self.images.is_wanted_early(&file.sha256);
                Rc::new(Item::File { file, prefetch })
            }));
        }
        if !keys.loaders.is_empty() {
            let only: Vec<String> = keys.loaders.iter().cloned().collect();
            let loaders = store::feed::loaders(db, Some(&only)).await?;
            let gone = only
                .iter()
                .filter(|path| !loaders.iter().any(|(there, _)| there == *path));
            shared
                .removed
                .extend(gone.map(|path| values::loader_key(path)));
            let item = |(path, sha256)| Rc::new(Item::Loader { path, sha256 });
            shared.items.extend(loaders.into_iter().map(item));
        }
        Ok(())
    }

    /// Links: what each rack serves now against what it was told. Gives, per subscriber, the VLANs that came or went:
    /// their machines and reservations came or went with them.
    async fn tell_links(
        &mut self,
        db: &mut PgConnection,
        keys: &Keys,
        deltas: &mut [Delta],
    ) -> Result<Vec<BTreeSet<i32>>, StoreError> {
        let mut moved = vec![BTreeSet::new(); self.subscribers.len()];
        // Where a rack stands on a VLAN is part of what its peers there are told.
        if keys.links.is_empty() && keys.racks.is_empty() {
            return Ok(moved);
        }
        let live = self
            .subscribers
            .iter()
            .filter(|subscriber| subscriber.served.is_some());
        let racks: Vec<String> = live.map(|subscriber| subscriber.rack.clone()).collect();
        let mut served = served_by_rack(store::feed::served_vlans(db, &racks, None).await?);
        let touched: BTreeSet<i32> = served
            .values()
            .flat_map(|served| served.keys().copied())
            .filter(|vlan| keys.links.contains(vlan) || self.is_news(&served, *vlan))
            .collect();
        let subnets = subnets_by_vlan(db, touched.iter().copied().collect()).await?;
        for ((subscriber, delta), moved) in self.subscribers.iter_mut().zip(deltas).zip(&mut moved)
        {
            let Some(before) = &mut subscriber.served else {
                continue;
            };
            let now = served.get(&subscriber.rack).cloned().unwrap_or_default();
            for vlan in before.keys().filter(|vlan| !now.contains_key(vlan)) {
                delta.removed.push(values::link_key(*vlan));
                moved.insert(*vlan);
            }
            for (vlan, at) in &now {
                if !before.contains_key(vlan) {
                    moved.insert(*vlan);
                }
                if keys.links.contains(vlan) || before.get(vlan) != Some(at) {
                    let link = link(at, &subnets, &self.settings);
                    delta.items.push(Rc::new(Item::Link(link)));
                }
            }
            *before = now;
        }
        served.clear();
        Ok(moved)
    }

    /// Whether some rack was told otherwise of this VLAN.
    fn is_news(&self, served: &HashMap<String, BTreeMap<i32, ServedVlan>>, vlan: i32) -> bool {
        self.subscribers.iter().any(|subscriber| {
            let now = served
                .get(&subscriber.rack)
                .and_then(|served| served.get(&vlan));
            let before = subscriber
                .served
                .as_ref()
                .and_then(|served| served.get(&vlan));
            now != before
        })
    }

    async fn tell_reservations(
        &self,
        db: &mut PgConnection,
        keys: &Keys,
        moved: &[BTreeSet<i32>],
        deltas: &mut [Delta],
    ) -> Result<(), StoreError> {
        let mut vlans: BTreeSet<i32> = keys.reservations.iter().map(|(vlan, _)| *vlan).collect();
        vlans.extend(moved.iter().flatten());
        if vlans.is_empty() {
            return Ok(());
        }
        let vlans: Vec<i32> = vlans.into_iter().collect();
        let items = reservation_items(store::feed::reservations(db, &vlans).await?);
        for ((subscriber, delta), moved) in self.subscribers.iter().zip(deltas).zip(moved) {
            let Some(served) = &subscriber.served else {
                continue;
            };
            for (vlan, address) in keys
                .reservations
                .iter()
                .filter(|(vlan, _)| served.contains_key(vlan))
            {
                let key = format!("reservation:{vlan}:{address}");
                match items.get(&key) {
                    Some(item) => delta.items.push(Rc::clone(item)),
                    None => delta.removed.push(key),
                }
            }
            // The rack drops a gone VLAN's reservations with its link.
            let came = items.values().filter(|item| match &***item {
                Item::Reservation(r) => moved.contains(&r.vlan) && served.contains_key(&r.vlan),
                _ => false,
            });
            delta.items.extend(came.cloned());
        }
        Ok(())
    }

    async fn tell_machines(
        &self,
        db: &mut PgConnection,
        keys: &Keys,
        all: bool,
        moved: &[BTreeSet<i32>],
        deltas: &mut [Delta],
    ) -> Result<(), StoreError> {
        let ids: Vec<String> = keys.machines.iter().cloned().collect();
        if all || !ids.is_empty() {
            let which = match all || ids.len() > MACHINES_BY_KEY_MAX {
                true => Which::All,
                false => Which::Ids(&ids),
            };
            let items = self.machine_items(db, which).await?;
            let there: HashSet<&str> = items.iter().map(|(id, _)| id.as_str()).collect();
            for (subscriber, delta) in self.subscribers.iter().zip(&mut *deltas) {
                let gone = ids.iter().filter(|id| !there.contains(id.as_str()));
                delta.removed.extend(gone.map(|id| values::machine_key(id)));
                for (id, item) in &items {
                    let Item::Machine(machine) = &**item else {
                        continue;
                    };
                    if subscriber.sees(machine) {
                        delta.items.push(Rc::clone(item));
                    } else if keys.machines.contains(id) {
                        delta.removed.push(values::machine_key(id));
                    }
                }
            }
        }
        let vlans: BTreeSet<i32> = moved.iter().flatten().copied().collect();
        if vlans.is_empty() {
            return Ok(());
        }
        let vlans: Vec<i32> = vlans.into_iter().collect();
        let items = self.machine_items(db, Which::OnVlans(&vlans)).await?;
        for ((subscriber, delta), moved) in self.subscribers.iter().zip(deltas).zip(moved) {
            for (id, item) in &items {
                let Item::Machine(machine) = &**item else {
                    continue;
                };
                if !machine.vlans.iter().any(|vlan| moved.contains(vlan)) {
                    continue;
                }
                match subscriber.sees(machine) {
                    true => delta.items.push(Rc::clone(item)),
                    false => delta.removed.push(values::machine_key(id)),
                }
            }
        }
        Ok(())
    }

    async fn machine_items(
        &self,
        db: &mut PgConnection,
        which: Which<'_>,
    ) -> Result<Vec<(String, Rc<Item>)>, StoreError> {
        let machines = store::feed::machines(db, which).await?;
        let item = |machine: store::feed::MachineValue| {
            let item = Item::Machine(Box::new(Machine::of(&machine, &self.images)));
            (machine.system_id, Rc::new(item))
        };
        Ok(machines.into_iter().map(item).collect())
    }

    /// Reads everything once and gives each rack that needs it its share.
    async fn snapshots(&mut self, db: &mut PgConnection, horizon: u64) -> Result<(), StoreError> {
        let is_first = !self
            .subscribers
            .iter()
            .any(|subscriber| subscriber.served.is_some());
        if is_first {
            // Otherwise they are what the others were told, which the deltas keep up to date.
            self.images = Images::read(db).await?;
            self.settings = Settings::read(db, &self.images).await?;
        }
        let needing = self
            .subscribers
            .iter()
            .filter(|subscriber| subscriber.served.is_none());
        let racks: Vec<String> = needing.map(|subscriber| subscriber.rack.clone()).collect();
        let served = served_by_rack(store::feed::served_vlans(db, &racks, None).await?);
        let vlans: BTreeSet<i32> = served.values().flat_map(|s| s.keys().copied()).collect();
        let vlans: Vec<i32> = vlans.into_iter().collect();
        let subnets = subnets_by_vlan(db, vlans.clone()).await?;
        let reservations = reservation_items(store::feed::reservations(db, &vlans).await?);
        let machines = self.machine_items(db, Which::All).await?;
        let mut shared = vec![Rc::new(Item::Settings(self.settings.clone()))];
        shared.extend(store::feed::files(db, None).await?.into_iter().map(|file| {
            let prefetch = self.images.is_wanted_early(&file.sha256);
            Rc::new(Item::File { file, prefetch })
        }));
        let loader = |(path, sha256)| Rc::new(Item::Loader { path, sha256 });
        shared.extend(
            store::feed::loaders(db, None)
                .await?
                .into_iter()
                .map(loader),
        );

        for subscriber in self.subscribers.iter_mut().filter(|s| s.served.is_none()) {
            let served = served.get(&subscriber.rack).cloned().unwrap_or_default();
            let links = served.values().map(|at| link(at, &subnets, &self.settings));
            let mut items: Vec<Rc<Item>> = links.map(|link| Rc::new(Item::Link(link))).collect();
            items.extend(shared.iter().cloned());
            let own = reservations.values().filter(
                |item| matches!(&***item, Item::Reservation(r) if served.contains_key(&r.vlan)),
            );
            items.extend(own.cloned());
            subscriber.served = Some(served);
            let own = machines.iter().filter(
                |(_, item)| matches!(&**item, Item::Machine(machine) if subscriber.sees(machine)),
            );
            items.extend(own.map(|(_, item)| Rc::clone(item)));
            tracing::info!(rack = subscriber.rack, items = items.len(), "feed snapshot");
            subscriber.outbox.snapshot(items, horizon);
        }
        Ok(())
    }
}

impl Keys {
    fn of<'a>(changes: impl Iterator<Item = &'a Change>) -> Keys {
        let mut keys = Keys::default();
        for Change { kind, key, .. } in changes {
            match kind {
                Kind::Link => keys.links.extend(key.parse::<i32>().ok()),
                Kind::Machine => drop(keys.machines.insert(key.clone())),
                Kind::File => drop(keys.files.insert(key.clone())),
                Kind::Loader => drop(keys.loaders.insert(key.clone())),
                Kind::Settings => keys.settings = true,
                Kind::Rack => drop(keys.racks.insert(key.clone())),
                Kind::Reservation => {
                    if let Some((vlan, address)) = key.split_once(':')
                        && let Ok(vlan) = vlan.parse()
                    {
                        keys.reservations.insert((vlan, address.to_owned()));
                    }
                }
            }
        }
        keys
    }

    fn is_empty(&self) -> bool {
        !self.settings
            && self.links.is_empty()
            && self.machines.is_empty()
            && self.files.is_empty()
            && self.loaders.is_empty()
            && self.reservations.is_empty()
            && self.racks.is_empty()
    }
}

/// Ids of changes that a snapshot taken in this view holds although their transactions are above the horizon.
async fn visible_above(db: &mut PgConnection, horizon: u64) -> Result<Vec<i64>, StoreError> {
    let changes = store::feed::changes(db, horizon, CHANGES_MAX).await?;
    Ok(changes.into_iter().map(|change| change.id).collect())
}

fn served_by_rack(served: Vec<ServedVlan>) -> HashMap<String, BTreeMap<i32, ServedVlan>> {
    let mut racks: HashMap<String, BTreeMap<i32, ServedVlan>> = HashMap::new();
    for at in served {
        racks
            .entry(at.rack.clone())
            .or_default()
            .insert(at.vlan, at);
    }
    racks
}

async fn subnets_by_vlan(
    db: &mut PgConnection,
    vlans: Vec<i32>,
) -> Result<HashMap<i32, Rc<[SubnetValue]>>, StoreError> {
    let mut by_vlan: HashMap<i32, Vec<SubnetValue>> = HashMap::new();
    for subnet in store::feed::subnets(db, &vlans).await? {
        by_vlan.entry(subnet.vlan).or_default().push(subnet);
    }
    Ok(by_vlan
        .into_iter()
        .map(|(vlan, subnets)| (vlan, subnets.into()))
        .collect())
}

fn link(at: &ServedVlan, subnets: &HashMap<i32, Rc<[SubnetValue]>>, settings: &Settings) -> Link {
    Link {
        at: at.clone(),
        subnets: subnets.get(&at.vlan).cloned().unwrap_or_default(),
        ntp_servers: Rc::clone(&settings.ntp_servers),
    }
}

/// By key.
fn reservation_items(values: Vec<ReservationValue>) -> BTreeMap<String, Rc<Item>> {
    let mut items = BTreeMap::new();
    for value in values {
        let item = Item::Reservation(value);
        items.entry(item.key()).or_insert_with(|| Rc::new(item));
    }
    items
}
