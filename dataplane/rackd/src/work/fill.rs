//! The rack's image cache: which files are here, which are being filled, which must go.
//!
//! The region's manifest (size and piece hashes) makes a file known; a shard that misses a piece wants
//! it; one fill per file runs for any number of askers and sets a bit in the [`Object`] for every piece
//! that is verified *and* in the file, so that shards serve the front of a file while its end is still
//! on the way. A fill survives a restart: what a `.part` holds is verified again, not fetched again.
//!
//! Disk is the cache: within the operator's size, least recently used goes first, and never what is being
//! filled or is in somebody's hands. A file that goes gets a fresh, absent object; transfers that still
//! hold the old one finish from the open (unlinked) file.
//!
//! Not here: who may see which file (shards, by the snapshot) and the memory in front of the disk.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use images::{Object, State};
use ring::digest::{SHA256, digest};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::disk::{Folder, Part, Sha256, read_whole};
use super::fetch::{FetchError, Fetcher, Want};
use super::upstream::Pool;
use super::{Counter, Counters as WorkCounters};

/// By SHA-256, shared with the shards.
pub type Objects = imbl::HashMap<Sha256, Arc<Object>>;

/// Pieces under way at once: for one file, and for all.
const STREAMS_PER_FILE: usize = 4;
const STREAMS_MAX: usize = 8;
/// Files being filled at once; more wait.
const FILLS_MAX: usize = 8;
/// A piece is held in memory until it is verified.
const PIECE_BYTES_MAX: u32 = 16 << 20;
/// Files a rack may know.
const MANIFESTS_MAX: usize = 65_536;
/// Largest file that is handed out whole, and all of these that are kept in memory.
const WHOLE_BYTES_MAX: u64 = 64 << 20;
const WHOLE_KEPT_BYTES_MAX: u64 = 256 << 20;
/// After a fill failed, askers are told so at once for this long.
const FAILED_PAUSE: Duration = Duration::from_secs(5);
/// How often uses are noted for the order of eviction.
const NOTE_USES: Duration = Duration::from_secs(10);

/// Where the cache is and how large it may be.
#[derive(Clone, Debug)]
pub struct Settings {
    pub folder: PathBuf,
    pub limit_bytes: u64,
}

/// A file as the region's feed describes it.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub sha256: Sha256,
    pub size_bytes: u64,
    pub piece_bytes: u32,
    /// SHA-256 of each piece, in order.
    pub pieces: Vec<Sha256>,
    /// Fetch before anyone asks, if there is room without removing anything that is in use.
    pub prefetch: bool,
}

/// What the filler is told.
pub enum Letter {
    /// From the feed: a file exists, or its prefetch flag changed.
    Known(Manifest),
    /// From the feed: a file is gone; so is its place on the disk.
    Forgotten(Sha256),
    /// A shard misses a piece of it.
    Wanted(Sha256),
    /// A small file (a boot loader), wanted in one piece. The channel closes if it cannot be had.
    Whole { sha256: Sha256, reply: oneshot::Sender<Bytes> },
}

#[derive(Debug, Default)]
pub struct Counters {
    pub pieces: Counter,
    pub bytes: Counter,
    /// Pieces found good in the part of an earlier run.
    pub resumed: Counter,
    pub retries: Counter,
    /// Pieces that arrived with another hash than the manifest's.
    pub bad: Counter,
    pub filled: Counter,
    pub failed: Counter,
    pub evicted: Counter,
    /// Manifests that contradict themselves or exceed a limit.
    pub refused: Counter,
}

impl Manifest {
    fn is_sound(&self) -> bool {
        let expected = self.size_bytes.div_ceil(u64::from(self.piece_bytes.max(1)));
        (1..=PIECE_BYTES_MAX).contains(&self.piece_bytes) && self.pieces.len() as u64 == expected
    }

    fn object(&self) -> Object {
        Object::absent(self.sha256, self.size_bytes, self.piece_bytes)
    }
}

/// A file's place on the disk.
#[derive(Clone, Copy, Debug)]
struct Place {
    bytes: u64,
    used: SystemTime,
    complete: bool,
    /// The object's uses when they were last noted.
    uses: u64,
}

type WholeAsker = oneshot::Sender<Bytes>;

enum Finished {
    /// With the object that was filled: it may have been replaced since.
    Filled(Arc<Object>, Result<(), FetchError>),
    Whole(Sha256, Result<Bytes, FetchError>),
}

/// The cache's owner: one task, so that every decision sees the whole.
pub struct Filler {
    settings: Settings,
    tools: Rc<Tools>,
    objects: Arc<ArcSwap<Objects>>,
    manifests: HashMap<Sha256, Rc<Manifest>>,
    places: HashMap<Sha256, Place>,
    running: HashMap<Sha256, AbortHandle>,
    /// Waiting for a fill: what somebody asked for goes before what nobody did.
    wanted: VecDeque<Sha256>,
    prefetch: VecDeque<Sha256>,
    failed_at: HashMap<Sha256, Instant>,
    whole: HashMap<Sha256, Bytes>,
    whole_askers: HashMap<Sha256, Vec<WholeAsker>>,
    jobs: JoinSet<Finished>,
}

/// What the jobs share.
struct Tools {
    folder: Folder,
    fetcher: Fetcher,
    streams: Semaphore,
    wake: Arc<dyn Fn() + Send + Sync>,
    counters: Arc<WorkCounters>,
}

impl Filler {
    /// Looks at the folder. A folder that cannot be used is reported and every fill then fails with the
    /// same reason: a rack without a cache still serves DHCP and power.
    pub fn new(
        settings: Settings,
        pool: Arc<Pool>,
        objects: Arc<ArcSwap<Objects>>,
        wake: Arc<dyn Fn() + Send + Sync>,
        counters: Arc<WorkCounters>,
    ) -> Self {
        let (folder, found) = match Folder::open(&settings.folder)
            .and_then(|folder| folder.scan().map(|found| (folder, found)))
        {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, folder = %settings.folder.display(), "image cache unusable");
                (Folder::unchecked(&settings.folder), Vec::new())
            }
        };
        let mut places = HashMap::new();
        for file in found {
            let place =
                Place { bytes: file.bytes, used: file.used, complete: file.complete, uses: 0 };
            let known = places.entry(file.sha256).or_insert(place);
            if file.complete {
                *known = place;
            }
        }
        let streams = Semaphore::new(STREAMS_MAX);
        let fetcher = Fetcher::new(pool);
        Self {
            settings,
            tools: Rc::new(Tools { folder, fetcher, streams, wake, counters }),
            objects,
            manifests: HashMap::new(),
            places,
            running: HashMap::new(),
            wanted: VecDeque::new(),
            prefetch: VecDeque::new(),
            failed_at: HashMap::new(),
            whole: HashMap::new(),
            whole_askers: HashMap::new(),
            jobs: JoinSet::new(),
        }
    }

    /// Serves until the mailbox ends. Must run in a `LocalSet` on the ring's runtime.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Letter>) {
        let mut notes = interval(NOTE_USES);
        notes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                letter = inbox.recv() => match letter {
                    Some(letter) => self.on_letter(letter),
                    // Fills are dropped in the middle; the next start goes on with their parts.
                    None => return,
                },
                Some(finished) = self.jobs.join_next() => {
                    match finished {
                        Ok(finished) => self.on_finished(finished),
                        Err(error) => self.on_lost_job(&error),
                    }
                }
                _ = notes.tick() => self.note_uses(SystemTime::now()),
            }
            self.start_waiting();
        }
    }

    fn on_letter(&mut self, letter: Letter) {
        match letter {
            Letter::Known(manifest) => self.learn(manifest),
            Letter::Forgotten(sha256) => self.forget(&sha256),
            Letter::Wanted(sha256) => self.want(sha256),
            Letter::Whole { sha256, reply } => self.want_whole(sha256, reply),
        }
    }

    fn learn(&mut self, manifest: Manifest) {
        let sha256 = manifest.sha256;
        if !manifest.is_sound()
            || (self.manifests.len() >= MANIFESTS_MAX && !self.manifests.contains_key(&sha256))
        {
            self.counters().refused.add(1);
            tracing::warn!(file = hex::encode(sha256), "manifest refused");
            return;
        }
        let prefetch = manifest.prefetch;
        // The same content has the same size; only the flag can have changed.
        let news = !self.manifests.contains_key(&sha256);
        self.manifests.insert(sha256, Rc::new(manifest));
        if news {
            let object = self.fresh_object(&sha256);
            self.publish(sha256, object);
        }
        if prefetch && self.object(&sha256).is_some_and(|object| object.state() == State::Absent) {
            self.prefetch.push_back(sha256);
        }
    }

    /// The object for what is on the disk now. A complete file of the wrong size is no such file.
    fn fresh_object(&mut self, sha256: &Sha256) -> Option<Arc<Object>> {
        let manifest = self.manifests.get(sha256)?.clone();
        let complete = self.places.get(sha256).filter(|place| place.complete);
        if complete.is_some_and(|place| place.bytes == manifest.size_bytes)
            && let Ok(file) = self.tools.folder.open_complete(sha256)
        {
            let (size, piece) = (manifest.size_bytes, manifest.piece_bytes);
            return Some(Arc::new(Object::complete(*sha256, size, piece, file)));
        }
        if complete.is_some() {
            self.remove_files(sha256);
        }
        Some(Arc::new(manifest.object()))
    }

    fn forget(&mut self, sha256: &Sha256) {
        self.manifests.remove(sha256);
        if let Some(job) = self.running.remove(sha256) {
            job.abort();
            if let Some(object) = self.object(sha256) {
                object.set_failed();
            }
        }
        self.failed_at.remove(sha256);
        self.whole.remove(sha256);
        self.publish(*sha256, None);
        self.remove_files(sha256);
        self.wake();
    }

    fn want(&mut self, sha256: Sha256) {
        let Some(object) = self.object(&sha256) else { return };
        if self.running.contains_key(&sha256)
            || object.state() == State::Complete
            || self.wanted.contains(&sha256)
        {
            return;
        }
        if self.failed_at.get(&sha256).is_some_and(|at| at.elapsed() < FAILED_PAUSE) {
            // Whoever waits learns it from the count of failures.
            object.set_failed();
            self.wake();
            return;
        }
        self.prefetch.retain(|other| *other != sha256);
        self.wanted.push_back(sha256);
    }

    fn want_whole(&mut self, sha256: Sha256, reply: WholeAsker) {
        if let Some(octets) = self.whole.get(&sha256) {
            let _ = reply.send(octets.clone());
            return;
        }
        let askers = self.whole_askers.entry(sha256).or_default();
        askers.retain(|asker| !asker.is_closed());
        askers.push(reply);
        if askers.len() == 1 {
            let tools = self.tools.clone();
            let here = self.places.get(&sha256).is_some_and(|place| place.complete);
            self.jobs.spawn_local(async move {
                Finished::Whole(sha256, tools.read_or_fetch(&sha256, here).await)
            });
        }
    }

    fn start_waiting(&mut self) {
        while self.running.len() < FILLS_MAX {
            let (sha256, prefetch) = match self.wanted.pop_front() {
                Some(sha256) => (sha256, false),
                None => match self.prefetch.pop_front() {
                    Some(sha256) => (sha256, true),
                    None => return,
                },
            };
            self.start(sha256, prefetch);
        }
    }

    fn start(&mut self, sha256: Sha256, prefetch: bool) {
        let Some(manifest) = self.manifests.get(&sha256).cloned() else { return };
        let Some(object) = self.object(&sha256) else { return };
        if self.running.contains_key(&sha256) || object.state() == State::Complete {
            return;
        }
        if !self.make_room(&sha256, manifest.size_bytes, prefetch) {
            if prefetch {
                tracing::info!(file = hex::encode(sha256), "no room to prefetch");
            } else {
                let (wanted, limit) = (manifest.size_bytes, self.settings.limit_bytes);
                self.on_filled(sha256, Err(FetchError::NoRoom { wanted, limit }));
            }
            return;
        }
        if !object.set_filling() {
            return;
        }
        let used = SystemTime::now();
        let place = Place { bytes: manifest.size_bytes, used, complete: false, uses: 0 };
        self.places.insert(sha256, place);
        let tools = self.tools.clone();
        let job = self.jobs.spawn_local(async move {
            let result = tools.fill(&manifest, &object).await;
            Finished::Filled(object, result)
        });
        self.running.insert(sha256, job);
    }

    fn on_finished(&mut self, finished: Finished) {
        match finished {
            Finished::Filled(object, result) => {
                let sha256 = *object.sha256();
                if self.object(&sha256).is_some_and(|now| Arc::ptr_eq(&now, &object)) {
                    self.running.remove(&sha256);
                    self.on_filled(sha256, result);
                }
            }
            Finished::Whole(sha256, result) => self.on_whole(sha256, result),
        }
    }

    /// A job without a result: cancelled by `forget`, which has cleaned up, or a fault of ours.
    fn on_lost_job(&mut self, error: &tokio::task::JoinError) {
        let lost = self.running.iter().find(|(_, job)| job.id() == error.id());
        if let Some(sha256) = lost.map(|(sha256, _)| *sha256) {
            self.running.remove(&sha256);
            self.on_filled(sha256, Err(FetchError::Disk(std::io::Error::other("the fill broke"))));
        }
    }

    fn on_filled(&mut self, sha256: Sha256, result: Result<(), FetchError>) {
        let Some(object) = self.object(&sha256) else { return };
        match result {
            Ok(()) => {
                object.set_complete();
                self.counters().filled.add(1);
                self.failed_at.remove(&sha256);
                if let Some(place) = self.places.get_mut(&sha256) {
                    place.complete = true;
                    place.used = SystemTime::now();
                }
                tracing::info!(file = hex::encode(sha256), "file filled");
            }
            Err(error) => {
                object.set_failed();
                self.counters().failed.add(1);
                self.failed_at.insert(sha256, Instant::now());
                let chain = chain(&error);
                tracing::warn!(file = hex::encode(sha256), reason = chain, "file not filled");
            }
        }
        self.wake();
    }

    fn on_whole(&mut self, sha256: Sha256, result: Result<Bytes, FetchError>) {
        let askers = self.whole_askers.remove(&sha256).unwrap_or_default();
        let octets = match result {
            Ok(octets) => octets,
            // The askers see their channel close.
            Err(error) => {
                self.counters().failed.add(1);
                let chain = chain(&error);
                tracing::warn!(file = hex::encode(sha256), reason = chain, "file not fetched");
                return;
            }
        };
        for asker in askers {
            let _ = asker.send(octets.clone());
        }
        let bytes = octets.len() as u64;
        // A fill of the same file keeps its own place.
        if !self.running.contains_key(&sha256) && self.tools.folder.complete(&sha256).exists() {
            let used = SystemTime::now();
            self.places.insert(sha256, Place { bytes, used, complete: true, uses: 0 });
            if self.object(&sha256).is_some_and(|object| object.state() != State::Complete) {
                let object = self.fresh_object(&sha256);
                self.publish(sha256, object);
                self.wake();
            }
        }
        let kept: u64 = self.whole.values().map(|other| other.len() as u64).sum();
        if kept + bytes <= WHOLE_KEPT_BYTES_MAX {
            self.whole.insert(sha256, octets);
        }
        self.make_room(&sha256, 0, false);
    }

    /// Removes least recently used files until `bytes` more fit; false if they cannot. A prefetch may
    /// only take what no manifest speaks for.
    fn make_room(&mut self, sha256: &Sha256, bytes: u64, prefetch: bool) -> bool {
        let limit = self.settings.limit_bytes;
        let taken = |places: &HashMap<Sha256, Place>| -> u64 {
            let others = places.iter().filter(|(other, _)| bytes == 0 || *other != sha256);
            others.map(|(_, place)| place.bytes).sum()
        };
        if bytes > limit {
            return false;
        }
        let mut used = taken(&self.places);
        if used + bytes <= limit {
            return true;
        }
        let mut candidates: Vec<(SystemTime, Sha256, u64)> = self
            .places
            .iter()
            .filter(|(other, _)| *other != sha256 && self.may_go(other, prefetch))
            .map(|(other, place)| (place.used, *other, place.bytes))
            .collect();
        candidates.sort_unstable();
        let reachable: u64 = candidates.iter().map(|(_, _, bytes)| bytes).sum();
        if used.saturating_sub(reachable) + bytes > limit {
            return false;
        }
        for (_, victim, victim_bytes) in candidates {
            if used + bytes <= limit {
                break;
            }
            used -= victim_bytes;
            self.evict(&victim);
        }
        true
    }

    fn may_go(&self, sha256: &Sha256, prefetch: bool) -> bool {
        if self.running.contains_key(sha256) || (prefetch && self.manifests.contains_key(sha256)) {
            return false;
        }
        // One reference is the map's own; another is a transfer's, or a shard's that asks right now.
        let objects = self.objects.load();
        objects.get(sha256).is_none_or(|object| Arc::strong_count(object) == 1)
    }

    fn evict(&mut self, sha256: &Sha256) {
        tracing::info!(file = hex::encode(sha256), "file evicted");
        self.counters().evicted.add(1);
        self.remove_files(sha256);
        let object = self.fresh_object(sha256);
        self.publish(*sha256, object);
    }

    fn remove_files(&mut self, sha256: &Sha256) {
        self.places.remove(sha256);
        if let Err(error) = self.tools.folder.remove(sha256) {
            tracing::warn!(file = hex::encode(sha256), %error, "cannot remove a file of the cache");
        }
    }

    /// A file whose object was used since the last time moves to the young end.
    fn note_uses(&mut self, now: SystemTime) {
        let objects = self.objects.load();
        for (sha256, place) in &mut self.places {
            let Some(object) = objects.get(sha256) else { continue };
            if object.uses() != place.uses {
                place.uses = object.uses();
                place.used = now;
                if place.complete {
                    let _ = self.tools.folder.touch(sha256, now);
                }
            }
        }
        self.failed_at.retain(|_, at| at.elapsed() < FAILED_PAUSE);
    }

    fn object(&self, sha256: &Sha256) -> Option<Arc<Object>> {
        self.objects.load().get(sha256).cloned()
    }

    fn publish(&self, sha256: Sha256, object: Option<Arc<Object>>) {
        // This task is the only writer.
        let mut objects = Objects::clone(&self.objects.load());
        match object {
            Some(object) => objects.insert(sha256, object),
            None => objects.remove(&sha256),
        };
        self.objects.store(Arc::new(objects));
    }

    fn counters(&self) -> &Counters {
        &self.tools.counters.fill
    }

    fn wake(&self) {
        (self.tools.wake)();
    }
}

impl Tools {
    /// Fills one file: verify what is there, fetch what is not, sync, give it its name.
    async fn fill(&self, manifest: &Manifest, object: &Object) -> Result<(), FetchError> {
        let path = self.folder.part(&manifest.sha256);
        let (part, reader) = Part::open(&path, manifest.size_bytes)?;
        // A second fill of the same object finds its first file, which has the same inode.
        object.open(reader);
        let mut missing = VecDeque::new();
        for index in 0..object.piece_count() {
            if object.has_piece(index) || (part.resumed && self.is_good(&part, manifest, index).await?)
            {
                object.set_present(index);
            } else {
                missing.push_back(index);
            }
        }
        (self.wake)();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < STREAMS_PER_FILE
                && let Some(index) = missing.pop_front()
            {
                under_way.push(self.fill_piece(&part, manifest, object, index));
            }
            match under_way.next().await {
                Some(done) => done?,
                None => break,
            }
        }
        drop(under_way);
        part.sync().await?;
        self.folder.finish(&manifest.sha256)?;
        Ok(())
    }

    async fn is_good(
        &self,
        part: &Part,
        manifest: &Manifest,
        index: u32,
    ) -> Result<bool, FetchError> {
        let (range, sha256) = piece(manifest, index);
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let octets = part.read(range.start, length).await?;
        let good = digest(&SHA256, &octets).as_ref() == sha256;
        if good {
            self.counters.fill.resumed.add(1);
        }
        // Hashing a piece takes milliseconds: let the others have a turn.
        tokio::task::yield_now().await;
        Ok(good)
    }

    async fn fill_piece(
        &self,
        part: &Part,
        manifest: &Manifest,
        object: &Object,
        index: u32,
    ) -> Result<(), FetchError> {
        let _stream = self.streams.acquire().await.expect("never closed");
        let (range, sha256) = piece(manifest, index);
        let start = range.start;
        let octets =
            self.get(&manifest.sha256, &Want::Range { range, sha256 }, u64::from(index)).await?;
        part.write(start, octets).await?;
        // Only now may a shard see it.
        object.set_present(index);
        (self.wake)();
        Ok(())
    }

    async fn get(&self, file: &Sha256, want: &Want, seed: u64) -> Result<Vec<u8>, FetchError> {
        let (result, tally) = self.fetcher.get(file, want, seed).await;
        let counters = &self.counters.fill;
        counters.retries.add(tally.retries);
        counters.bad.add(tally.bad);
        let octets = result?;
        counters.pieces.add(1);
        counters.bytes.add(octets.len() as u64);
        Ok(octets)
    }

    /// A small file, from the disk if it is there and good, else from a region, and then on the disk.
    async fn read_or_fetch(&self, sha256: &Sha256, here: bool) -> Result<Bytes, FetchError> {
        let path = self.folder.complete(sha256);
        if here
            && let Ok(Some(octets)) = read_whole(&path, WHOLE_BYTES_MAX).await
            && digest(&SHA256, &octets).as_ref() == sha256
        {
            return Ok(octets.into());
        }
        let _stream = self.streams.acquire().await.expect("never closed");
        let octets = self.get(sha256, &Want::Whole { bytes_max: WHOLE_BYTES_MAX }, 0).await?;
        let octets = Bytes::from(octets);
        // The disk is a convenience here: the octets are good whether or not they fit on it.
        if let Err(error) = self.store_whole(sha256, &octets).await {
            tracing::warn!(file = hex::encode(sha256), %error, "small file not cached on disk");
        }
        Ok(octets)
    }

    async fn store_whole(&self, sha256: &Sha256, octets: &Bytes) -> std::io::Result<()> {
        let path = self.folder.part(sha256);
        if path.exists() {
            // A fill is at it, or was and will go on.
            return Ok(());
        }
        let (part, _) = Part::open(&path, octets.len() as u64)?;
        part.write(0, octets.to_vec()).await?;
        part.sync().await?;
        self.folder.finish(sha256)
    }
}

/// Where piece `index` is, and its hash.
fn piece(manifest: &Manifest, index: u32) -> (std::ops::Range<u64>, Sha256) {
    let start = u64::from(index) * u64::from(manifest.piece_bytes);
    let end = manifest.size_bytes.min(start + u64::from(manifest.piece_bytes));
    // `is_sound` has counted them.
    (start..end, manifest.pieces[index as usize])
}

/// An error with its causes, for one log field.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
