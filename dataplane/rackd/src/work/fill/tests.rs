//! Fills against real TLS on loopback and a real folder.

use std::sync::atomic::Ordering;

use http::StatusCode;
use ring::digest::{SHA256, digest};
use tokio::time::{sleep, timeout};

use super::job::STREAMS_PER_FILE;
use super::*;
use crate::work::testing::{Authority, TestPool, TestRegion, dead_region, pool};

const PIECE: usize = 10_000;

struct Bench {
    region: TestRegion,
    links: TestPool,
    home: tempfile::TempDir,
    counters: Arc<WorkCounters>,
    mailbox: mpsc::Sender<Letter>,
    replaced: mpsc::UnboundedReceiver<Arc<Object>>,
    filler: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn new(limit_bytes: u64) -> Self {
        let authority = Authority::new();
        let region = TestRegion::start(&authority).await;
        let links = pool(&authority, std::slice::from_ref(&region.region));
        let home = tempfile::tempdir().unwrap();
        let (mailbox, _) = mpsc::channel(1);
        let (_, replaced) = mpsc::unbounded_channel();
        let counters = Arc::new(WorkCounters::default());
        let filler = tokio::task::spawn_local(async {});
        let mut bench = Self {
            region,
            links,
            home,
            counters,
            mailbox,
            replaced,
            filler,
        };
        bench.restart(limit_bytes);
        bench
    }

    /// A new filler on the same folder, as after a restart of the rack.
    fn restart(&mut self, limit_bytes: u64) {
        self.filler.abort();
        let settings = Settings {
            folder: self.home.path().join("cache"),
            limit_bytes,
        };
        let (replaced_sender, replaced) = mpsc::unbounded_channel();
        self.counters = Arc::new(WorkCounters::default());
        let (pool, counters) = (self.links.pool.clone(), self.counters.clone());
        let filler = Filler::new(settings, pool, replaced_sender, Arc::default(), counters);
        let (mailbox, inbox) = mpsc::channel(64);
        self.filler = tokio::task::spawn_local(filler.run(inbox));
        (self.mailbox, self.replaced) = (mailbox, replaced);
    }

    async fn send(&self, letter: Letter) {
        assert!(self.mailbox.send(letter).await.is_ok());
    }

    /// Makes a file known to region and cache.
    async fn know(&self, octets: &[u8], prefetch: bool) -> Arc<Object> {
        let sha256 = self.region.behaviour.add(octets);
        let object = Arc::new(Object::absent(sha256, octets.len() as u64, PIECE as u32));
        let manifest = manifest(sha256, octets, prefetch);
        self.send(Letter::Known {
            manifest,
            object: object.clone(),
        })
        .await;
        object
    }

    async fn want(&self, object: &Object) {
        self.send(Letter::Wanted(*object.sha256())).await;
    }

    fn counters(&self) -> &Counters {
        &self.counters.fill
    }

    fn requests(&self) -> u32 {
        self.region.behaviour.requests.load(Ordering::Relaxed)
    }
}

fn manifest(sha256: Sha256, octets: &[u8], prefetch: bool) -> Manifest {
    let pieces = octets
        .chunks(PIECE)
        .map(|p| digest(&SHA256, p).as_ref().try_into().unwrap())
        .collect();
    let (size_bytes, piece_bytes) = (octets.len() as u64, PIECE as u32);
    Manifest {
        sha256,
        size_bytes,
        piece_bytes,
        pieces,
        prefetch,
    }
}

fn content(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| seed ^ (i / 7) as u8 ^ (i >> 9) as u8)
        .collect()
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waiting = async {
        while !is() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

async fn complete(object: &Object) {
    until("complete", || object.state() == State::Complete).await;
}

fn read(object: &Object) -> Vec<u8> {
    let mut octets = vec![0; usize::try_from(object.size_bytes()).unwrap()];
    let file = object.file().expect("open");
    assert_eq!(
        rustix::io::pread(file, &mut octets, 0).unwrap(),
        octets.len()
    );
    octets
}

fn run(test: impl Future<Output = ()>) {
    tokio_uring::start(async { timeout(Duration::from_secs(60), test).await.unwrap() });
}

#[test]
fn a_file_is_fetched_once_for_all_askers() {
    run(async {
        let bench = Bench::new(1 << 20).await;
        let octets = content(1, 10 * PIECE + 123);
        let object = bench.know(&octets, false).await;
        *bench.region.behaviour.delay.lock().unwrap() = Duration::from_millis(20);
        for _ in 0..20 {
            bench.want(&object).await;
        }
        complete(&object).await;
        assert_eq!(read(&object), octets);
        until("counted", || bench.counters().filled.get() == 1).await;
        assert_eq!(bench.requests(), 11, "one per piece");
        let most = bench.region.behaviour.open_most.load(Ordering::Relaxed);
        assert!(
            (2..=STREAMS_PER_FILE as u32).contains(&most),
            "{most} streams"
        );
        assert!(
            bench.region.behaviour.connections.load(Ordering::Relaxed) <= most,
            "kept alive"
        );
        assert_eq!(bench.counters().bytes.get(), octets.len() as u64);
        let name = bench
            .home
            .path()
            .join("cache")
            .join(hex::encode(object.sha256()));
        assert_eq!(std::fs::read(name).unwrap(), octets);
    });
}

#[test]
fn a_wrong_piece_is_fetched_again_and_never_served() {
    run(async {
        let bench = Bench::new(1 << 20).await;
        let octets = content(2, 3 * PIECE);
        let object = bench.know(&octets, false).await;
        bench.region.behaviour.wrong.store(2, Ordering::Relaxed);
        bench.want(&object).await;
        complete(&object).await;
        assert_eq!(read(&object), octets);
        assert_eq!(bench.counters().bad.get(), 2);

        // A region that keeps lying is given up, with nothing but good pieces present.
        let octets = content(3, 2 * PIECE);
        let object = bench.know(&octets, false).await;
        bench.region.behaviour.wrong.store(1_000, Ordering::Relaxed);
        bench.want(&object).await;
        until("failed", || object.state() == State::Failed).await;
        assert_eq!((object.failures(), object.available(0, u64::MAX)), (1, 0));
        // At once told so again, without another fetch; a while later it is tried again.
        let asked = bench.requests();
        bench.want(&object).await;
        until("told", || object.failures() == 2).await;
        assert_eq!(bench.requests(), asked);
    });
}

#[test]
fn other_regions_are_tried() {
    run(async {
        let bench = Bench::new(1 << 20).await;
        let octets = content(4, 2 * PIECE);
        let object = bench.know(&octets, false).await;
        let regions = [dead_region(), bench.region.region.clone()];
        bench.links.regions.send(Arc::from(regions)).unwrap();
        bench.region.behaviour.failing.store(1, Ordering::Relaxed);
        *bench.region.behaviour.status.lock().unwrap() = StatusCode::INTERNAL_SERVER_ERROR;
        bench.want(&object).await;
        complete(&object).await;
        assert_eq!(read(&object), octets);
        assert!(bench.counters().retries.get() >= 1);
    });
}

#[test]
fn a_restart_goes_on_where_it_was() {
    run(async {
        let mut bench = Bench::new(1 << 20).await;
        let octets = content(5, 4 * PIECE + 1);
        let sha256 = digest(&SHA256, &octets).as_ref().try_into().unwrap();
        // What a killed rack leaves: three pieces, one of them damaged, and holes.
        let cache = bench.home.path().join("cache");
        let mut part = vec![0; octets.len()];
        part[..2 * PIECE].copy_from_slice(&octets[..2 * PIECE]);
        part[PIECE + 5] ^= 1;
        part[3 * PIECE..4 * PIECE].copy_from_slice(&octets[3 * PIECE..4 * PIECE]);
        std::fs::write(
            cache.join(format!("{}.part", hex::encode::<Sha256>(sha256))),
            part,
        )
        .unwrap();
        bench.restart(1 << 20);
        let object = bench.know(&octets, false).await;
        assert_eq!(object.state(), State::Absent);
        bench.want(&object).await;
        complete(&object).await;
        assert_eq!(read(&object), octets);
        assert_eq!(
            (
                bench.counters().resumed.get(),
                bench.counters().pieces.get()
            ),
            (2, 3)
        );
        until("counted", || bench.counters().filled.get() == 1).await;

        // And once more: now it is simply there.
        bench.restart(1 << 20);
        let asked = bench.requests();
        let object = bench.know(&octets, true).await;
        complete(&object).await;
        assert_eq!((read(&object), bench.requests()), (octets, asked));
    });
}

#[test]
fn the_least_recently_used_file_goes_and_never_one_in_use() {
    run(async {
        let mut bench = Bench::new(25_000).await;
        let mut objects = Vec::new();
        for seed in 10..12 {
            let object = bench.know(&content(seed, PIECE), false).await;
            bench.want(&object).await;
            complete(&object).await;
            until("counted", || {
                bench.counters().filled.get() == u64::from(seed) - 9
            })
            .await;
            objects.push(object);
        }
        // The older one is in a transfer's hands, so the younger one goes.
        let transfer = objects[0].clone();
        let third = bench.know(&content(12, PIECE), false).await;
        bench.want(&third).await;
        complete(&third).await;
        assert_eq!(bench.counters().evicted.get(), 1);
        let fresh = bench.replaced.recv().await.unwrap();
        assert_eq!(fresh.sha256(), objects[1].sha256());
        assert_eq!(fresh.state(), State::Absent);
        assert_eq!(
            read(&objects[1]),
            content(11, PIECE),
            "who has it open can still read it"
        );
        assert_eq!(transfer.state(), State::Complete);

        // Nothing may go: the fill fails, and says so.
        until("counted", || bench.counters().filled.get() == 3).await;
        let hold = third.clone();
        let large = bench.know(&content(13, 2 * PIECE), false).await;
        bench.want(&large).await;
        until("failed", || large.state() == State::Failed).await;
        drop(hold);
        // The evicted file can come back when it is wanted.
        drop((transfer, objects));
        bench.want(&fresh).await;
        complete(&fresh).await;
        assert_eq!(read(&fresh), content(11, PIECE));
    });
}

/// A disk that fails under a complete file: it was served broken for ever.
#[test]
fn a_file_that_cannot_be_read_any_more_is_fetched_anew() {
    run(async {
        let mut bench = Bench::new(1 << 20).await;
        let octets = content(30, 3 * PIECE);
        let object = bench.know(&octets, false).await;
        bench.want(&object).await;
        complete(&object).await;
        until("counted", || bench.counters().filled.get() == 1).await;
        object.set_damaged();
        let failures = object.failures();
        bench.want(&object).await;
        let fresh = timeout(Duration::from_secs(20), bench.replaced.recv()).await;
        let fresh = fresh.unwrap().unwrap();
        assert_eq!(fresh.state(), State::Absent);
        until("given up", || object.failures() > failures).await;
        bench.want(&fresh).await;
        complete(&fresh).await;
        assert_eq!(read(&fresh), octets);
        assert_eq!(bench.counters().damaged.get(), 1);
    });
}

/// "It cannot be opened now" is not "it is not there": a rack without a descriptor left threw its images away.
#[test]
fn a_file_that_cannot_be_opened_now_stays_on_the_disk() {
    run(async {
        let mut bench = Bench::new(1 << 20).await;
        let octets = content(31, PIECE);
        let object = bench.know(&octets, false).await;
        bench.want(&object).await;
        complete(&object).await;
        until("counted", || bench.counters().filled.get() == 1).await;
        bench.restart(1 << 20);
        let other = bench.know(&content(32, PIECE), false).await;
        bench.want(&other).await;
        complete(&other).await;
        // A link to itself: an error, and not one of absence.
        let path = Folder::unchecked(&bench.home.path().join("cache")).complete(object.sha256());
        let aside = bench.home.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let again = bench.know(&octets, false).await;
        let third = bench.know(&content(33, PIECE), false).await;
        bench.want(&third).await;
        complete(&third).await;
        assert!(path.symlink_metadata().is_ok(), "it was not removed");
        // It can be opened again, and is, with nothing fetched.
        std::fs::rename(&aside, &path).unwrap();
        let asked = bench.requests();
        bench.want(&again).await;
        complete(&again).await;
        assert_eq!((read(&again), bench.requests()), (octets, asked));
    });
}

#[test]
fn prefetch_fills_free_room_only() {
    run(async {
        let bench = Bench::new(25_000).await;
        let first = bench.know(&content(20, PIECE), true).await;
        let second = bench.know(&content(21, PIECE), true).await;
        complete(&first).await;
        complete(&second).await;
        let third = bench.know(&content(22, PIECE), true).await;
        until("counted", || bench.counters().filled.get() == 2).await;
        sleep(Duration::from_millis(100)).await;
        assert_eq!(
            (third.state(), bench.counters().evicted.get()),
            (State::Absent, 0)
        );
    });
}

#[test]
fn a_forgotten_file_leaves_the_disk_and_stops_its_fill() {
    run(async {
        let bench = Bench::new(1 << 20).await;
        let object = bench.know(&content(30, 8 * PIECE), false).await;
        *bench.region.behaviour.delay.lock().unwrap() = Duration::from_millis(100);
        bench.want(&object).await;
        until("filling", || object.state() == State::Filling).await;
        bench.send(Letter::Forgotten(*object.sha256())).await;
        until("told", || object.state() == State::Failed).await;
        let cache = bench.home.path().join("cache");
        assert_eq!(std::fs::read_dir(cache).unwrap().count(), 0);
        // Wanted by a shard with an old snapshot: nothing happens.
        bench.want(&object).await;
        sleep(Duration::from_millis(50)).await;
        assert_eq!(object.state(), State::Failed);
    });
}

#[test]
fn loaders_are_held_whole_and_tried_until_they_come() {
    run(async {
        let mut bench = Bench::new(1 << 20).await;
        let octets = content(40, 3 * PIECE);
        let sha256 = bench.region.behaviour.add(&octets);
        bench
            .region
            .behaviour
            .wrong
            .store(BAD_ANSWERS, Ordering::Relaxed);
        let loader = Arc::new(Loader::absent(sha256));
        bench.send(Letter::Loader(loader.clone())).await;
        until("loaded", || loader.bytes.get().is_some()).await;
        assert_eq!(loader.bytes.get().unwrap(), &octets);
        assert_eq!(
            bench.counters().failed.get(),
            1,
            "one round of tries failed"
        );
        // From the disk the next time.
        bench.restart(1 << 20);
        let asked = bench.requests();
        let loader = Arc::new(Loader::absent(sha256));
        bench.send(Letter::Loader(loader.clone())).await;
        until("loaded", || loader.bytes.get().is_some()).await;
        assert_eq!(bench.requests(), asked);
    });
}

/// One round of tries of a loader.
const BAD_ANSWERS: u32 = 3;

#[test]
fn unsound_manifests_are_refused() {
    run(async {
        let bench = Bench::new(1 << 20).await;
        let octets = content(50, 2 * PIECE);
        let sha256 = bench.region.behaviour.add(&octets);
        let good = manifest(sha256, &octets, false);
        let bad = [
            Manifest {
                pieces: good.pieces[..1].to_vec(),
                ..good.clone()
            },
            Manifest {
                piece_bytes: 0,
                ..good.clone()
            },
            Manifest {
                piece_bytes: u32::MAX,
                ..good.clone()
            },
            Manifest {
                size_bytes: 1,
                ..good.clone()
            },
        ];
        let object = Arc::new(Object::absent(sha256, octets.len() as u64, PIECE as u32));
        for manifest in bad {
            bench
                .send(Letter::Known {
                    manifest,
                    object: object.clone(),
                })
                .await;
        }
        until("refused", || bench.counters().refused.get() == 4).await;
        // An empty file needs no piece.
        let empty = bench.know(&[], false).await;
        bench.want(&empty).await;
        complete(&empty).await;
    });
}
