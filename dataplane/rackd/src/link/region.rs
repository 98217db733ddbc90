//! Keeps one link to one regiond process: connect, hello, watch, and again after a pause.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rpc::muster_capnp::{rack, session};
use rpc::refusal;
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connect::{Connection, Endpoint, connect};
use super::interfaces::Interface;
use super::power::RackCalls;
use super::thread::Happening;
use super::wire::{self, Welcome};
use crate::metrics::{Claimed, Numbers};
use crate::work::power::Ask;

const PROTOCOL: u16 = 1;
const HELLO_TIME: Duration = Duration::from_secs(10);
/// The region pings every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(35);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// After a refusal that time alone does not heal, and for a second way to a process that is linked already.
const PAUSE_LONG: Duration = Duration::from_secs(60);
/// A link that held this long starts again with the shortest pause.
const STEADY: Duration = Duration::from_secs(10);
/// After a change (certificate, interfaces) links say hello anew, not all at once.
const REFRESH_SPREAD_MS: u64 = 1_000;

pub(super) type LinkId = lease::rack::LinkId;

/// What all links of this rack share.
pub(super) struct Shared {
    pub hostname: String,
    pub version: String,
    /// Random, new at every start of rackd.
    pub boot_id: [u8; 16],
    pub tls: RefCell<Arc<ClientConfig>>,
    pub interfaces: RefCell<Vec<Interface>>,
    pub asks: mpsc::Sender<Ask>,
    pub numbers: Numbers,
    pub claimed: Claimed,
    pub happenings: mpsc::UnboundedSender<Happening>,
    /// Changes when the links must say hello anew.
    pub refresh: watch::Sender<u64>,
    /// The regiond process behind each live link.
    pub live: RefCell<HashMap<LinkId, String>>,
    pub next_link: Cell<LinkId>,
    pub cancel: CancellationToken,
}

/// Why a link did not come up.
#[derive(Debug, thiserror::Error)]
enum LinkFault {
    #[error(transparent)]
    Connect(#[from] super::connect::ConnectError),
    #[error("the region refuses this rack: {0}")]
    Refused(&'static str),
    #[error("hello: {0}")]
    Hello(String),
    #[error("linked to this region process already")]
    Twice,
}

/// Runs until `shared.cancel`, or until the task is aborted.
pub(super) async fn keep(shared: Rc<Shared>, endpoint: Endpoint) {
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        let fault = tokio::select! {
            () = shared.cancel.cancelled() => return,
            fault = link(&shared, &endpoint) => fault,
        };
        pause = match fault {
            Ok(()) if began.elapsed() > STEADY => PAUSE_MIN,
            Err(LinkFault::Twice) => PAUSE_LONG,
            Err(LinkFault::Refused(reason)) => {
                tracing::error!(%endpoint, reason, "the region refuses this rack: enrol it anew");
                PAUSE_LONG
            }
            Ok(()) => (pause * 2).min(PAUSE_MAX),
            Err(fault) => {
                tracing::warn!(%endpoint, error = &fault as &dyn std::error::Error, "no link");
                (pause * 2).min(PAUSE_MAX)
            }
        };
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
        }
    }
}

/// One connection's life. `Ok`: it was up and is over.
async fn link(shared: &Rc<Shared>, endpoint: &Endpoint) -> Result<(), LinkFault> {
    let mut refresh = shared.refresh.subscribe();
    let tls = Arc::clone(&shared.tls.borrow());
    let connection = connect(endpoint, tls).await?;
    let heard = Rc::new(Cell::new(Instant::now()));
    let (session, welcome) = hello(shared, &connection, &heard).await?;
    if shared
        .live
        .borrow()
        .values()
        .any(|region| *region == welcome.region)
    {
        return Err(LinkFault::Twice);
    }
    let up = Up::new(shared, &welcome);
    tracing::info!(%endpoint, region = welcome.region, "linked");
    shared.tell(Happening::Up {
        link: up.link,
        endpoint: endpoint.clone(),
        session,
        welcome,
    });
    loop {
        let silent_at = heard.get() + SILENCE_MAX;
        tokio::select! {
            () = connection.closed.cancelled() => break,
            () = tokio::time::sleep_until(silent_at) => {
                if heard.get() + SILENCE_MAX <= Instant::now() {
                    tracing::warn!(%endpoint, "the region is silent");
                    break;
                }
            }
            Ok(()) = refresh.changed() => {
                let spread = rand::rng().random_range(0..REFRESH_SPREAD_MS);
                tokio::time::sleep(Duration::from_millis(spread)).await;
                break;
            }
        }
    }
    tracing::info!(%endpoint, "link ended");
    Ok(())
}

async fn hello(
    shared: &Rc<Shared>,
    connection: &Connection,
    heard: &Rc<Cell<Instant>>,
) -> Result<(session::Client, Welcome), LinkFault> {
    let calls = RackCalls {
        asks: shared.asks.clone(),
        heard: Rc::clone(heard),
        numbers: Numbers::clone(&shared.numbers),
        claimed: Claimed::clone(&shared.claimed),
    };
    let calls: rack::Client = capnp_rpc::new_client(calls);
    let mut request = connection.door.hello_request();
    let mut hello = request.get().init_hello();
    hello.set_protocol(PROTOCOL);
    hello.set_version(&shared.version);
    hello.set_hostname(&shared.hostname);
    hello.set_boot_id(&shared.boot_id);
    hello.set_rack(calls);
    wire::put_interfaces(&shared.interfaces.borrow(), hello);
    let answer = tokio::time::timeout(HELLO_TIME, request.send().promise)
        .await
        .map_err(|_| LinkFault::Hello("no answer".into()))?
        .map_err(|error| {
            // The text comes with a prefix of the RPC layer.
            for reason in [refusal::NOT_ENROLLED, refusal::REVOKED] {
                if error.extra.ends_with(reason) {
                    return LinkFault::Refused(reason);
                }
            }
            LinkFault::Hello(error.extra)
        })?;
    let read = || {
        let answer = answer.get()?;
        Ok((answer.get_session()?, wire::welcome(answer.get_welcome()?)?))
    };
    read().map_err(|error: capnp::Error| LinkFault::Hello(error.extra))
}

impl Shared {
    pub fn tell(&self, happening: Happening) {
        // The thread is gone only when everything ends.
        let _ = self.happenings.send(happening);
    }
}

/// A link that is up; tells when it is not any more, however that came.
struct Up {
    shared: Rc<Shared>,
    link: LinkId,
}

impl Up {
    fn new(shared: &Rc<Shared>, welcome: &Welcome) -> Up {
        let link = shared.next_link.get();
        shared.next_link.set(link.wrapping_add(1));
        shared
            .live
            .borrow_mut()
            .insert(link, welcome.region.clone());
        Up {
            shared: Rc::clone(shared),
            link,
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.shared.live.borrow_mut().remove(&self.link);
        self.shared.tell(Happening::Down(self.link));
    }
}
