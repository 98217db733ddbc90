//! The rack's image cache: which files are here, which are being filled, which must go.
//!
//! The region's manifest (size and piece hashes) makes a file known; a shard that misses a piece wants
//! it; one fill per file runs for any number of askers and sets a bit in the [`Object`] for every piece
//! that is verified *and* in the file, so that shards serve the front of a file while its end is still
//! on the way. A fill survives a restart: what a `.part` holds is verified again, not fetched again.
//!
//! Disk is the cache: within the operator's size, least recently used goes first, and never what is being
//! filled or is in somebody's hands. A file that goes gets a fresh, absent object, which the link thread
//! puts into the snapshot; transfers that still hold the old one finish from the open (unlinked) file.
//!
//! Not here: who may see which file (shards, by the snapshot) and the memory in front of the disk.

mod job;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use images::{Object, State};
use shard::Loader;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::disk::{Folder, Sha256};
use super::fetch::{FetchError, Fetcher};
use super::upstream::{FILLS_MAX as FILLS_MAX_PER_REGION, Pool};
use super::{Counter, Counters as WorkCounters};
use job::{Tools, chain};

/// Pieces under way at once, of all files: as many as the fills' lane to one region takes.
const STREAMS_MAX: usize = FILLS_MAX_PER_REGION;
/// Files being filled at once; more wait.
const FILLS_MAX: usize = 8;
/// A piece is held in memory until it is verified.
const PIECE_BYTES_MAX: u32 = 16 << 20;
/// Files a rack may know.
const MANIFESTS_MAX: usize = 65_536;
/// Loaders being fetched or waiting to be tried again.
const LOADERS_MAX: usize = 1_024;
/// References to an object that are no use of it: this cache's and the snapshot's.
const HOLDERS: usize = 2;
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
    /// From the feed: a file exists, or its prefetch flag changed. `object` is the one in the snapshot,
    /// absent so far; the filler opens and fills it.
    Known {
        manifest: Manifest,
        object: Arc<Object>,
    },
    /// From the feed: a file is gone; so is its place on the disk.
    Forgotten(Sha256),
    /// A shard misses a piece of it.
    Wanted(Sha256),
    /// From the feed: a boot loader, small, wanted whole in memory. Tried until it is there or nobody
    /// else holds it any more.
    Loader(Arc<Loader>),
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
    /// Complete files that could not be read any more.
    pub damaged: Counter,
    /// Manifests that contradict themselves or exceed a limit.
    pub refused: Counter,
}

impl Manifest {
    fn is_sound(&self) -> bool {
        let expected = self.size_bytes.div_ceil(u64::from(self.piece_bytes.max(1)));
        (1..=PIECE_BYTES_MAX).contains(&self.piece_bytes) && self.pieces.len() as u64 == expected
    }

    fn object(&self) -> Arc<Object> {
        Arc::new(Object::absent(
            self.sha256,
            self.size_bytes,
            self.piece_bytes,
        ))
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

enum Finished {
    /// With the object that was filled: it may have been replaced since.
    Filled(Arc<Object>, Result<(), FetchError>),
    /// It is set, or nobody wants it.
    Loader(Sha256),
}

/// The cache's owner: one task, so that every decision sees the whole.
pub struct Filler {
    settings: Settings,
    tools: Rc<Tools>,
    /// The link thread's end: objects to put into the snapshot in place of those with the same hash, if
    /// it still has them. Only after an eviction.
    replaced: mpsc::UnboundedSender<Arc<Object>>,
    objects: HashMap<Sha256, Arc<Object>>,
    manifests: HashMap<Sha256, Rc<Manifest>>,
    places: HashMap<Sha256, Place>,
    running: HashMap<Sha256, AbortHandle>,
    /// Waiting for a fill: what somebody asked for goes before what nobody did.
    wanted: VecDeque<Sha256>,
    prefetch: VecDeque<Sha256>,
    failed_at: HashMap<Sha256, Instant>,
    loaders: usize,
    jobs: JoinSet<Finished>,
}

impl Filler {
    /// Looks at the folder. A folder that cannot be used is reported and every fill then fails with the
    /// same reason: a rack without a cache still serves DHCP and power.
    pub fn new(
        settings: Settings,
        pool: Arc<Pool>,
        replaced: mpsc::UnboundedSender<Arc<Object>>,
        progress: Arc<Notify>,
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
            let place = Place {
                bytes: file.bytes,
                used: file.used,
                complete: file.complete,
                uses: 0,
            };
            let known = places.entry(file.sha256).or_insert(place);
            if file.complete {
                *known = place;
            }
        }
        let streams = Semaphore::new(STREAMS_MAX);
        let fetcher = Fetcher::new(pool);
        Self {
            settings,
            tools: Rc::new(Tools {
                folder,
                fetcher,
                streams,
                progress,
                counters,
            }),
            replaced,
            objects: HashMap::new(),
            manifests: HashMap::new(),
            places,
            running: HashMap::new(),
            wanted: VecDeque::new(),
            prefetch: VecDeque::new(),
            failed_at: HashMap::new(),
            loaders: 0,
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
            Letter::Known { manifest, object } => self.learn(manifest, object),
            Letter::Forgotten(sha256) => self.forget(&sha256),
            Letter::Wanted(sha256) => self.want(sha256),
            Letter::Loader(loader) => self.load(loader),
        }
    }

    fn learn(&mut self, manifest: Manifest, object: Arc<Object>) {
        let sha256 = manifest.sha256;
        let fits = *object.sha256() == sha256 && object.size_bytes() == manifest.size_bytes;
        if !manifest.is_sound()
            || !fits
            || (self.manifests.len() >= MANIFESTS_MAX && !self.manifests.contains_key(&sha256))
        {
            self.counters().refused.add(1);
            tracing::warn!(file = hex::encode(sha256), "manifest refused");
            return;
        }
        let prefetch = manifest.prefetch;
        self.manifests.insert(sha256, Rc::new(manifest));
        match self.objects.get(&sha256) {
            // Only the flag can have changed: the same content has the same size.
            Some(known) if Arc::ptr_eq(known, &object) => {}
            // A new snapshot begins with new objects. A fill goes on with the old one, so the snapshot
            // gets that back.
            Some(known) if self.running.contains_key(&sha256) => {
                let _ = self.replaced.send(known.clone());
            }
            _ => {
                self.open_complete(&object);
                self.objects.insert(sha256, object);
                self.wake();
            }
        }
        let absent = |object: &Arc<Object>| object.state() == State::Absent;
        if prefetch && self.objects.get(&sha256).is_some_and(absent) {
            self.prefetch.push_back(sha256);
        }
    }

    /// Completes `object` if its file is on the disk. A complete file of another size is no such file.
    fn open_complete(&mut self, object: &Object) {
        let sha256 = object.sha256();
        let Some(place) = self.places.get(sha256).filter(|place| place.complete) else {
            return;
        };
        match self.tools.folder.open_complete(sha256) {
            Ok(file) if place.bytes == object.size_bytes() => {
                object.open(file);
                object.set_complete();
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                // No descriptor, a disk that fails: no reason to throw away what may be good.
                tracing::warn!(file = hex::encode(sha256), %error, "opening a file of the cache");
            }
            Ok(_) | Err(_) => self.remove_files(sha256),
        }
    }

    /// A file that could not be read: it goes, and a new object begins in its place. Whoever waits is told to come back.
    fn replace_damaged(&mut self, object: &Object) {
        self.counters().damaged.add(1);
        self.renew(object.sha256());
        object.give_up();
        self.wake();
    }

    fn forget(&mut self, sha256: &Sha256) {
        self.manifests.remove(sha256);
        let object = self.objects.remove(sha256);
        if let Some(job) = self.running.remove(sha256) {
            job.abort();
            if let Some(object) = object {
                object.set_failed();
            }
        }
        self.failed_at.remove(sha256);
        self.wanted.retain(|other| other != sha256);
        self.prefetch.retain(|other| other != sha256);
        self.remove_files(sha256);
        self.wake();
    }

    fn want(&mut self, sha256: Sha256) {
        let Some(object) = self.objects.get(&sha256).cloned() else {
            return;
        };
        if object.state() == State::Damaged {
            return self.replace_damaged(&object);
        }
        // It could not be opened before.
        self.open_complete(&object);
        if self.running.contains_key(&sha256)
            || object.state() == State::Complete
            || self.wanted.contains(&sha256)
        {
            return;
        }
        if self
            .failed_at
            .get(&sha256)
            .is_some_and(|at| at.elapsed() < FAILED_PAUSE)
        {
            // Whoever waits learns it from the count of failures.
            object.set_failed();
            self.wake();
            return;
        }
        self.prefetch.retain(|other| *other != sha256);
        self.wanted.push_back(sha256);
    }

    fn load(&mut self, loader: Arc<Loader>) {
        if loader.bytes.get().is_some() {
            return;
        }
        if self.loaders == LOADERS_MAX {
            self.counters().refused.add(1);
            return;
        }
        self.loaders += 1;
        let tools = self.tools.clone();
        self.jobs.spawn_local(async move {
            tools.load(&loader).await;
            Finished::Loader(loader.sha256)
        });
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
        let Some(manifest) = self.manifests.get(&sha256).cloned() else {
            return;
        };
        let Some(object) = self.objects.get(&sha256).cloned() else {
            return;
        };
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
        let place = Place {
            bytes: manifest.size_bytes,
            used,
            complete: false,
            uses: 0,
        };
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
                if self
                    .objects
                    .get(&sha256)
                    .is_some_and(|now| Arc::ptr_eq(now, &object))
                {
                    self.running.remove(&sha256);
                    self.on_filled(sha256, result);
                }
            }
            Finished::Loader(sha256) => self.on_loader(sha256),
        }
    }

    /// A job without a result: cancelled by `forget`, which has cleaned up, or a fault of ours.
    fn on_lost_job(&mut self, error: &tokio::task::JoinError) {
        let lost = self.running.iter().find(|(_, job)| job.id() == error.id());
        if let Some(sha256) = lost.map(|(sha256, _)| *sha256) {
            self.running.remove(&sha256);
            self.on_filled(
                sha256,
                Err(FetchError::Disk(std::io::Error::other("the fill broke"))),
            );
        }
    }

    fn on_filled(&mut self, sha256: Sha256, result: Result<(), FetchError>) {
        let Some(object) = self.objects.get(&sha256).cloned() else {
            return;
        };
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
                tracing::warn!(
                    file = hex::encode(sha256),
                    reason = chain,
                    "file not filled"
                );
            }
        }
        self.wake();
    }

    fn on_loader(&mut self, sha256: Sha256) {
        self.loaders -= 1;
        // A fill of the same file keeps its own place.
        if !self.running.contains_key(&sha256)
            && let Ok(about) = self.tools.folder.complete(&sha256).metadata()
        {
            let (bytes, used) = (about.len(), SystemTime::now());
            self.places.insert(
                sha256,
                Place {
                    bytes,
                    used,
                    complete: true,
                    uses: 0,
                },
            );
            if let Some(object) = self.objects.get(&sha256).cloned()
                && object.state() != State::Complete
            {
                self.open_complete(&object);
            }
        }
        self.make_room(&sha256, 0, false);
        self.wake();
    }

    /// Removes least recently used files until `bytes` more fit; false if they cannot. A prefetch may
    /// only take what no manifest speaks for.
    fn make_room(&mut self, sha256: &Sha256, bytes: u64, prefetch: bool) -> bool {
        let limit = self.settings.limit_bytes;
        if bytes > limit {
            return false;
        }
        // What the file itself has already is part of `bytes`.
        let others = self
            .places
            .iter()
            .filter(|(other, _)| *other != sha256 || bytes == 0);
        let mut used: u64 = others.map(|(_, place)| place.bytes).sum();
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
        // One reference more is a transfer's, or a shard's that asks right now.
        self.objects
            .get(sha256)
            .is_none_or(|object| Arc::strong_count(object) <= HOLDERS)
    }

    fn evict(&mut self, sha256: &Sha256) {
        tracing::info!(file = hex::encode(sha256), "file evicted");
        self.counters().evicted.add(1);
        self.renew(sha256);
    }

    /// Off the disk, and another object for it.
    fn renew(&mut self, sha256: &Sha256) {
        self.remove_files(sha256);
        if let Some(manifest) = self.manifests.get(sha256) {
            let object = manifest.object();
            self.objects.insert(*sha256, object.clone());
            // Nobody listens only when the rack stops.
            let _ = self.replaced.send(object);
        }
    }

    fn remove_files(&mut self, sha256: &Sha256) {
        self.places.remove(sha256);
        if let Err(error) = self.tools.folder.remove(sha256) {
            tracing::warn!(file = hex::encode(sha256), %error, "cannot remove a file of the cache");
        }
    }

    /// A file whose object was used since the last time moves to the young end.
    fn note_uses(&mut self, now: SystemTime) {
        for (sha256, place) in &mut self.places {
            let Some(object) = self.objects.get(sha256) else {
                continue;
            };
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

    fn counters(&self) -> &Counters {
        &self.tools.counters.fill
    }

    fn wake(&self) {
        self.tools.progress.notify_one();
    }
}

#[cfg(test)]
mod tests;
