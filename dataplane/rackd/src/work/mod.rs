//! The rack's work thread: everything that may wait for somebody else. BMC power ([`power`]), image fills
//! ([`fill`]) and the metadata proxy ([`proxy`]), all on one current-thread runtime.
//!
//! The runtime is `tokio_uring::start`: tokio for sockets and timers, and the ring for the image cache,
//! so that writing gigabytes to a disk neither blocks the thread nor needs a pool of blocking threads.
//! Only `disk` uses the ring; everything else is plain tokio.
//!
//! The thread has no state that a restart may not lose. It is reached by bounded mailboxes, which both
//! the link thread (async) and the shards (`try_send`, which never blocks) can use, and it shares three
//! maps: what the cache holds ([`fill::Objects`], read by shards), which client has which address
//! ([`Bindings`], kept by the link thread), and counters.

pub mod disk;
pub mod fetch;
pub mod fill;
pub mod power;
pub mod proxy;
pub mod upstream;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use upstream::Region;

/// Letters that may wait. A shard that finds a mailbox full answers 503 or tries again; the link
/// thread waits.
const MAILBOX_LETTERS_MAX: usize = 1_024;
/// What a stopping thread gives operations and connections to end by themselves.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Who has an address, as far as this rack can attest it: a live binding it has ACKed itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    pub mac: [u8; 6],
    /// The region's VLAN id.
    pub vlan: u32,
    /// The binding proves nothing from here on.
    pub end: Instant,
}

/// By the client's address. Written by the link thread, which also bounds it (the rack's own ranges).
pub type Bindings = Arc<RwLock<HashMap<IpAddr, Binding>>>;

/// What the work thread is made with.
pub struct Context {
    /// The rack's certificate and the regions' CA; `None` until the rack is enrolled. A new one replaces
    /// the connections of the old.
    pub tls: watch::Receiver<Option<Arc<rustls::ClientConfig>>>,
    /// Live regiond processes, by host and rack HTTP port.
    pub regions: watch::Receiver<Arc<[Region]>>,
    pub bindings: Bindings,
    pub cache: fill::Settings,
    /// What the cache holds, for shards to look up.
    pub objects: Arc<ArcSwap<fill::Objects>>,
    /// Called after a piece, a file or a failure, when a parked shard may have something to send.
    pub wake: Arc<dyn Fn() + Send + Sync>,
    pub counters: Arc<Counters>,
    pub inbox: Inbox,
    /// True once the rack stops.
    pub stop: watch::Receiver<bool>,
}

/// The receiving ends.
pub struct Inbox {
    pub power: mpsc::Receiver<power::Ask>,
    pub fills: mpsc::Receiver<fill::Letter>,
    pub connections: mpsc::Receiver<proxy::HandedOff>,
}

/// The sending ends; cheap to clone, one for each shard and one for the link thread.
#[derive(Clone)]
pub struct Mailboxes {
    pub power: mpsc::Sender<power::Ask>,
    pub fills: mpsc::Sender<fill::Letter>,
    pub connections: mpsc::Sender<proxy::HandedOff>,
}

pub fn mailboxes() -> (Mailboxes, Inbox) {
    let (power, power_inbox) = mpsc::channel(MAILBOX_LETTERS_MAX);
    let (fills, fills_inbox) = mpsc::channel(MAILBOX_LETTERS_MAX);
    let (connections, connections_inbox) = mpsc::channel(MAILBOX_LETTERS_MAX);
    let mailboxes = Mailboxes { power, fills, connections };
    let inbox =
        Inbox { power: power_inbox, fills: fills_inbox, connections: connections_inbox };
    (mailboxes, inbox)
}

/// A count that any thread may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the thread has done, for `/metrics` and for tests.
#[derive(Debug, Default)]
pub struct Counters {
    pub power: power::Counters,
    pub fill: fill::Counters,
    pub proxy: proxy::Counters,
}

/// Runs the work thread on the calling thread, until `stop` or until nobody holds a mailbox.
pub fn run(context: Context) {
    tokio_uring::start(serve(context));
}

async fn serve(context: Context) {
    let Context { tls, regions, bindings, cache, objects, wake, counters, inbox, mut stop } = context;
    let pool = Arc::new(upstream::Pool::new(tls, regions));
    let mut parts = JoinSet::new();
    parts.spawn_local(power::run(inbox.power, counters.clone()));
    let filler = fill::Filler::new(cache, pool.clone(), objects, wake, counters.clone());
    parts.spawn_local(filler.run(inbox.fills));
    parts.spawn_local(proxy::run(inbox.connections, pool, bindings, counters));
    tokio::select! {
        _ = stop.wait_for(|stopped| *stopped) => {}
        // Each part ends when its mailbox does.
        () = async { while parts.join_next().await.is_some() {} } => return,
    }
    // The senders may live on in other threads, so the parts are cut off after the grace.
    let _ = tokio::time::timeout(STOP_GRACE, async {
        while parts.join_next().await.is_some() {}
    })
    .await;
}
