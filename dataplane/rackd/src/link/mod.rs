//! The rack's link thread: enrolment, a link to every regiond process, leases, the feed, calls and events.
//!
//! Nothing on this thread stalls: no disk (the spool has its own thread), no BMC, no HTTP (the work thread's). It talks to
//! shards by their mailboxes and to the work thread by bounded channels.
//!
//! ```text
//!   shards <-- mailboxes --> Thread <-- happenings -- region::keep (one task per regiond)
//!                             | | |                     Sink (the feed) -> snapshot (ArcSwap)
//!            lease::rack::Rack + | +-> spool thread     RackCalls (power, ping) -> work thread
//!                       Bindings +
//! ```

mod archs;
mod bindings;
mod boots;
mod clock;
mod connect;
mod enrol;
mod events;
mod feed;
mod identity;
pub mod interfaces;
mod leases;
mod machine;
mod power;
mod region;
mod shards;
mod thread;
mod tls;
mod wire;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use images::Object;
use lease::rack::Mode;
use shard::{Bell, LinkMailbox, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

pub use boots::Counters as BootCounters;
pub use connect::Endpoint;
pub use enrol::EnrolError;
pub use events::Counters as EventCounters;
pub use feed::Counters as FeedCounters;
pub use identity::IdentityError;
pub use interfaces::Interface;

use crate::attest::Bindings;
use crate::metrics::{Claimed, Numbers};
use crate::work::Region;
use crate::work::fill::Letter;
use crate::work::power::Ask;
use enrol::Token;
use identity::Identity;
use thread::Thread;

/// Between two tries to enrol.
const ENROL_AGAIN: Duration = Duration::from_secs(5);
/// In the state folder: where regions were, for a start without a token.
const REGIONS_FILE: &str = "regions.json";

/// One packet socket of a device (kernel index) for each shard, in the shards' order, of one fan-out group.
pub type OpenSockets = Box<dyn FnMut(u32) -> io::Result<Vec<OwnedFd>> + Send>;
/// The host's devices now; [`interfaces::read`] but in tests.
pub type ReadInterfaces = Box<dyn Fn() -> io::Result<Vec<Interface>> + Send>;

/// What the link thread is made with.
pub struct LinkContext {
    /// The text of an enrolment token: needed until the rack is enrolled; a new one enrols it anew.
    pub token: Option<String>,
    /// The name to enrol under.
    pub hostname: String,
    pub version: String,
    /// One per shard, in the shards' order.
    pub mailboxes: Vec<LinkMailbox>,
    /// The bell that was given to `shard::mailboxes` as the link's.
    pub bell: Arc<Bell>,
    /// The shards' view; only this thread stores to it.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// From `spool::open`.
    pub spool: crate::spool::Opened,
    pub ports: Ports,
    pub cancel: CancellationToken,
}

/// Where the link thread meets the rest of the rack.
pub struct Ports {
    /// Identity and the list of regions live here; only the owner reads them.
    pub state_dir: PathBuf,
    /// Kept by this thread, for the attester.
    pub bindings: Bindings,
    /// The work thread's mailboxes.
    pub power: mpsc::Sender<Ask>,
    pub fills: mpsc::Sender<Letter>,
    /// The other end of the work thread's `replaced`: objects in place of those it evicted.
    pub replaced: mpsc::UnboundedReceiver<Arc<Object>>,
    /// Events of the work thread.
    pub reported: mpsc::Receiver<shard::Event>,
    /// For the work thread's HTTPS: this rack's certificate and the regions' authority.
    pub tls: watch::Sender<Option<Arc<rustls::ClientConfig>>>,
    /// The linked regiond processes, the preferred one first.
    pub regions: watch::Sender<Arc<[Region]>>,
    pub status: watch::Sender<Status>,
    /// What the rack counts, for a region that asks.
    pub numbers: Numbers,
    /// Which of its addresses some host answers for.
    pub claimed: Claimed,
    pub sockets: OpenSockets,
    pub interfaces: ReadInterfaces,
}

/// For metrics and the health check. Renewed at each change of links and feed, and every 5 s.
#[derive(Clone, Debug)]
pub struct Status {
    /// This rack's system_id; "" before it is enrolled.
    pub rack: String,
    /// "host:port" of the linked regions.
    pub regions: Vec<String>,
    pub mode: Mode,
    /// Facts that no region has taken yet.
    pub spooled: usize,
    pub watermark: u64,
    pub machines: usize,
    pub leases: lease::rack::Counters,
    pub feed: FeedCounters,
    pub boots: BootCounters,
    /// Architectures of unknown machines that newer ones took the place of.
    pub archs_displaced: u64,
    pub events: EventCounters,
    pub shard_mail_dropped: u64,
}

impl Default for Status {
    fn default() -> Self {
        Status {
            rack: String::new(),
            regions: Vec::new(),
            mode: Mode::Mute,
            spooled: 0,
            watermark: 0,
            machines: 0,
            leases: lease::rack::Counters::default(),
            feed: FeedCounters::default(),
            boots: BootCounters::default(),
            archs_displaced: 0,
            events: EventCounters::default(),
            shard_mail_dropped: 0,
        }
    }
}

/// Why the link thread ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum LinkFailed {
    #[error("this rack is not enrolled, and no enrolment token is configured")]
    NotEnrolled,
    #[error("enrolling this rack")]
    Enrol(#[source] EnrolError),
    #[error("this rack's identity")]
    Identity(#[from] IdentityError),
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
    #[error("reading this host's network devices")]
    Interfaces(#[source] io::Error),
    #[error("starting the link thread")]
    Io(#[source] io::Error),
}

/// Runs the link on the calling thread until `context.cancel`, or until it cannot begin. At its end it tells the
/// shards to stop.
pub fn run(context: LinkContext) -> Result<(), LinkFailed> {
    // Nothing here uses the ring: plain tokio. `tokio_uring::start(serve(context))` is the other line.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    LocalSet::new().block_on(&runtime.map_err(LinkFailed::Io)?, serve(context))
}

/// As `run`, inside a `LocalSet` of the caller's.
pub async fn serve(mut context: LinkContext) -> Result<(), LinkFailed> {
    if let Some((fault, aside)) = &context.spool.fault {
        let aside = aside.display();
        tracing::error!(%fault, %aside, "the lease spool was unusable: its leases' addresses rest");
    }
    let token = match context.token.take() {
        Some(text) => Some(Token::parse(&text).map_err(LinkFailed::Enrol)?),
        None => None,
    };
    let Some(identity) = identity(&context, token.as_ref()).await? else {
        return Ok(());
    };
    tracing::info!(rack = identity.rack(), "this rack");
    let mut seeds: BTreeSet<Endpoint> = context.ports.load_regions();
    seeds.extend(
        token
            .iter()
            .flat_map(|token| token.regions().iter().cloned()),
    );
    Thread::new(context, identity, seeds)?.run().await;
    Ok(())
}

/// The identity on disk, or one from the token. `None`: cancelled meanwhile.
async fn identity(
    context: &LinkContext,
    token: Option<&Token>,
) -> Result<Option<Identity>, LinkFailed> {
    let folder = &context.ports.state_dir;
    let known = Identity::load(folder)?;
    let token = match (&known, token) {
        (None, None) => return Err(LinkFailed::NotEnrolled),
        (Some(_), None) => return Ok(known),
        // The token this identity came from, still in its file.
        (Some(known), Some(token)) if known.token_hash() == token.hash() => {
            if known.remaining(SystemTime::now()).is_zero() {
                tracing::error!("this rack's certificate has ended: it needs a new token");
            }
            return Ok(Some(
                Identity::load(folder)?.ok_or(LinkFailed::NotEnrolled)?,
            ));
        }
        (_, Some(token)) => token,
    };
    loop {
        let enrolled = tokio::select! {
            () = context.cancel.cancelled() => return Ok(None),
            enrolled = enrol::enrol(token, &context.hostname) => enrolled,
        };
        match enrolled {
            Ok(identity) => {
                identity.save(folder)?;
                return Ok(Some(identity));
            }
            Err(error) if error.is_final() && known.is_some() => {
                tracing::error!(%error, "enrolling anew; going on with the identity that is there");
                return Ok(known);
            }
            Err(error) if error.is_final() => return Err(LinkFailed::Enrol(error)),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "enrolling; trying again"
                );
            }
        }
        tokio::select! {
            () = context.cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(ENROL_AGAIN) => {}
        }
    }
}

impl Ports {
    /// A missing or unreadable file is none: the token or the next Welcome says where regions are. An operator whose rack
    /// finds no region after a restart should know which of the two it was.
    fn load_regions(&self) -> BTreeSet<Endpoint> {
        let path = self.state_dir.join(REGIONS_FILE);
        let read = std::fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        let list: Vec<String> = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "the list of regions");
            }
            Vec::new()
        });
        list.iter()
            .filter_map(|endpoint| endpoint.parse().ok())
            .collect()
    }

    /// Only a cache, so without fsync; in one small write.
    fn save_regions(&self, endpoints: &BTreeSet<Endpoint>) {
        if *endpoints == self.load_regions() {
            return;
        }
        let list: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
        let text = serde_json::to_vec(&list).expect("strings always serialise");
        if let Err(error) = std::fs::write(self.state_dir.join(REGIONS_FILE), text) {
            tracing::warn!(%error, "keeping the list of regions");
        }
    }
}
