//! The rack's work thread: everything that may wait for somebody else. BMC power ([`power`]), image fills
//! ([`fill`]), the metadata proxy ([`proxy`]) and ARP probes ([`arp`]), all on one current-thread runtime.
//!
//! The runtime is `tokio_uring::start`: tokio for sockets and timers, and the ring for the image cache,
//! so that writing gigabytes to a disk neither blocks the thread nor needs a pool of blocking threads.
//! Only `disk` uses the ring; everything else is plain tokio.
//!
//! The thread has no state that a restart may not lose. The link thread reaches it by bounded mailboxes,
//! the shards by their own queues and its bell ([`shards`]). It shares the image objects with both, what
//! the link thread knows of machines and addresses by the [`Attester`], and its counters with everybody.

pub mod arp;
pub mod disk;
pub mod fetch;
pub mod fill;
pub mod memory;
pub mod power;
pub mod proxy;
pub mod shards;
#[cfg(test)]
pub(crate) mod testing;
pub mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use images::Object;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::attest::Attester;

pub use upstream::Region;

/// Letters that may wait. The link thread waits for room; a shard's are refused and counted.
const MAILBOX_LETTERS_MAX: usize = 1_024;
/// What a stopping thread gives operations and connections to end by themselves.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Writes the metrics page as it is now; none for whom it is not.
pub type Metrics = Arc<dyn Fn(crate::metrics::Ends) -> Option<String> + Send + Sync>;

/// What the work thread is made with.
pub struct Context {
    /// The rack's certificate and the regions' CA; `None` until the rack is enrolled. A new one replaces
    /// the connections of the old.
    pub tls: watch::Receiver<Option<Arc<rustls::ClientConfig>>>,
    /// Live regiond processes, by host and rack HTTP port.
    pub regions: watch::Receiver<Arc<[Region]>>,
    pub attester: Attester,
    pub cache: fill::Settings,
    /// To the link thread: objects for the snapshot in place of those with the same hash, if it still has
    /// them (an eviction makes a file absent again).
    pub replaced: mpsc::UnboundedSender<Arc<Object>>,
    /// This thread's ends of the shards' queues, and the bell they ring.
    pub shards: Vec<shard::WorkMailbox>,
    pub bell: Arc<shard::Bell>,
    pub counters: Arc<Counters>,
    /// The rack's metrics, in Prometheus' text format: `GET /metrics`.
    pub metrics: Metrics,
    /// To the link thread: what is to become an event.
    pub reports: mpsc::Sender<shard::Event>,
    pub mailboxes: Mailboxes,
    pub inbox: Inbox,
    /// Connections of the proxy at a time.
    pub proxied_max: usize,
    /// True once the rack stops.
    pub stop: watch::Receiver<bool>,
}

/// The receiving ends.
pub struct Inbox {
    pub power: mpsc::Receiver<power::Ask>,
    pub fills: mpsc::Receiver<fill::Letter>,
    pub connections: mpsc::Receiver<proxy::HandedOff>,
    pub probes: mpsc::Receiver<arp::Ask>,
}

/// The sending ends; cheap to clone.
#[derive(Clone)]
pub struct Mailboxes {
    pub power: mpsc::Sender<power::Ask>,
    pub fills: mpsc::Sender<fill::Letter>,
    pub connections: mpsc::Sender<proxy::HandedOff>,
    pub probes: mpsc::Sender<arp::Ask>,
}

pub fn mailboxes() -> (Mailboxes, Inbox) {
    let (power, power_inbox) = mpsc::channel(MAILBOX_LETTERS_MAX);
    let (fills, fills_inbox) = mpsc::channel(MAILBOX_LETTERS_MAX);
    let (connections, connections_inbox) = mpsc::channel(MAILBOX_LETTERS_MAX);
    let (probes, probes_inbox) = mpsc::channel(MAILBOX_LETTERS_MAX);
    let mailboxes = Mailboxes {
        power,
        fills,
        connections,
        probes,
    };
    let inbox = Inbox {
        power: power_inbox,
        fills: fills_inbox,
        connections: connections_inbox,
        probes: probes_inbox,
    };
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
    pub arp: arp::Counters,
    pub power: power::Counters,
    pub fill: fill::Counters,
    pub proxy: proxy::Counters,
    pub shards: shards::Counters,
}

/// Runs the work thread on the calling thread, until `stop` says so or its sender is gone.
pub fn run(context: Context) {
    tokio_uring::start(serve(context));
}

async fn serve(context: Context) {
    let Context {
        tls,
        regions,
        attester,
        cache,
        replaced,
        shards,
        bell,
        proxied_max,
        ..
    } = context;
    let Context {
        counters,
        metrics,
        reports,
        mailboxes,
        inbox,
        mut stop,
        ..
    } = context;
    let counted = counters.clone();
    let pool = Arc::new(upstream::Pool::new(tls, regions));
    let progress = Arc::new(Notify::new());
    let filler = fill::Filler::new(
        cache,
        pool.clone(),
        replaced,
        progress.clone(),
        counters.clone(),
    );
    let filling = tokio::task::spawn_local(filler.run(inbox.fills));
    let (answers, probed) = mpsc::channel(MAILBOX_LETTERS_MAX);
    let probing = arp::run(inbox.probes, answers, counters.clone());
    let probing = tokio::task::spawn_local(probing);
    let messages = shards::run(shards, bell, mailboxes, progress, probed, counters.clone());
    let messages = tokio::task::spawn_local(messages);
    let mut ending = JoinSet::new();
    ending.spawn_local(power::run(inbox.power, counters.clone()));
    ending.spawn_local(proxy::run(
        inbox.connections,
        pool,
        attester,
        metrics,
        counters,
        reports,
        proxied_max,
    ));
    // An error: whoever could say stop is gone.
    let _ = stop.wait_for(|stopped| *stopped).await;
    // Fills go on after the next start. Operations and connections may end by themselves, as far as the
    // grace goes and nobody sends more.
    messages.abort();
    probing.abort();
    filling.abort();
    let (fill, power, proxy) = (&counted.fill, &counted.power, &counted.proxy);
    tracing::info!(
        fills = fill.filled.get(),
        fills_failed = fill.failed.get(),
        pieces = fill.pieces.get(),
        pieces_bad = fill.bad.get(),
        evicted = fill.evicted.get(),
        power_done = power.done.get(),
        power_failed = power.failed.get(),
        requests = proxy.requests.get(),
        unavailable = proxy.unavailable.get(),
        refused = proxy.refused.get() + counted.shards.refused.get(),
        "work thread stops"
    );
    let _ = tokio::time::timeout(STOP_GRACE, async {
        while ending.join_next().await.is_some() {}
    })
    .await;
}
