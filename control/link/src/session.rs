//! An admitted rack's calls. The rack is the certificate's, whatever a message says.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capnp::Error;
use gate::Place;
use rpc::muster_capnp::{rack, session};
use rpc::refusal;
use sqlx::PgConnection;
use store::StoreError;
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::authority::Peer;
use crate::counters::{Counters, add, count};
use crate::events::Recent;
use crate::feed::{Subscription, values};
use crate::lanes::{Lane, Lanes};
use crate::listener::Region;
use crate::liveness::SILENT_AFTER;
use crate::racks::{Command, REPORT_GRACE, STATS_TIME};
use crate::{LinkError, wire};

/// Calls of one rack under way at once; more are refused as overloaded.
const CALLS_MAX: usize = 128;
/// A region answers within this or says that it could not.
const CALL_TIME: Duration = Duration::from_secs(10);
/// An attach may carry every lease of a rack.
const ATTACH_TIME: Duration = Duration::from_secs(60);
const PING_EVERY: Duration = Duration::from_secs(10);
/// Of a rack whose silence its peers must learn of.
const SHARING_PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIME: Duration = Duration::from_secs(10);
/// Power operations under way at one rack; the rest waits in the queue of `Racks`.
/// The region counts its ranges as often.
const CLAIMED_EVERY: Duration = Duration::from_secs(30);
const POWER_MAX: usize = 512;
/// Longest error text of a rack that is passed on.
const REASON_CHARS_MAX: usize = 500;
/// How capnp-rpc begins the text of an error that the other end answered with; all others are the connection's.
const REMOTE: &str = "remote exception: ";

/// Runs a call's work within its deadline, as a task of the region. The connection that asked may close meanwhile,
/// and the RPC layer then never drops its calls: a transaction left in one would hold its locks for good.
pub(crate) async fn within<T: 'static>(
    region: &Region,
    limit: Duration,
    work: impl Future<Output = Result<T, Error>> + 'static,
) -> Result<T, Error> {
    let task = region.calls.spawn_local(tokio::time::timeout(limit, work));
    match task.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            count(&region.racks.counters().calls_late);
            Err(Error::overloaded("the region took too long".into()))
        }
        Err(_) => {
            count(&region.racks.counters().panicked);
            Err(Error::failed("the region could not do it".into()))
        }
    }
}

/// A fault of ours: logged here, told to the rack without its inside.
pub(crate) fn store_fault(doing: &str, error: &StoreError) -> Error {
    tracing::error!(error = error as &dyn std::error::Error, "{doing}");
    if error.is_transient() {
        Error::overloaded("the region's database is not reachable".into())
    } else {
        Error::failed("the region could not do it; its log says why".into())
    }
}

pub(crate) struct Session {
    region: Rc<Region>,
    peer: Peer,
    connection: u64,
    close: CancellationToken,
    calls: Arc<Semaphore>,
    recent: RefCell<Recent>,
    subscription: RefCell<Option<Subscription>>,
}

impl Session {
    /// Opens the session and starts the connection's own task: power calls and pings to the rack.
    pub fn open(
        region: Rc<Region>,
        peer: Peer,
        connection: u64,
        rack: rack::Client,
        close: CancellationToken,
    ) -> Session {
        let commands = region.racks.insert(&peer.system_id, connection);
        region.liveness.opened(connection, &peer.system_id);
        let task = to_rack(
            Rc::clone(&region),
            (peer.clone(), connection),
            rack,
            commands,
            close.clone(),
        );
        // Ends with `close`, which the connection's own task cancels whatever happens.
        tokio::task::spawn_local(task);
        Session {
            region,
            peer,
            connection,
            close,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            recent: RefCell::default(),
            subscription: RefCell::default(),
        }
    }

    fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.calls).try_acquire_owned().map_err(|_| {
            count(&self.region.racks.counters().calls_overloaded);
            Error::overloaded("too many calls under way".into())
        })
    }

    /// A part of the database connections, for a call of one kind.
    async fn turn(&self, lane: impl Fn(&Lanes) -> &Lane) -> Result<Place, Error> {
        let racks = &self.region.racks;
        lane(racks.lanes())
            .turn(self.rack(), racks.counters())
            .await
    }

    fn rack(&self) -> &str {
        &self.peer.system_id
    }

    async fn renew(&self, csr: &[u8]) -> Result<Vec<u8>, Error> {
        let store = |error: StoreError| store_fault("renewing a rack's certificate", &error);
        let trust = self
            .region
            .racks
            .trust()
            .ok_or_else(|| Error::failed("no authority".into()))?;
        let mut tx = self
            .region
            .pool
            .begin()
            .await
            .map_err(|error| store(error.into()))?;
        let valid = store::rack::is_certificate_valid(&mut *tx, self.rack(), &self.peer.serial);
        if !valid.await.map_err(store)? {
            return Err(Error::failed(refusal::REVOKED.into()));
        }
        let issued = trust
            .authority
            .sign_rack(self.rack(), csr, OffsetDateTime::now_utc())
            .map_err(|error| Error::failed(error.to_string()))?;
        let added =
            store::rack::add_certificate(&mut tx, self.rack(), &issued.serial, issued.not_after);
        if !added.await.map_err(store)? {
            return Err(Error::failed("the rack has too many certificates".into()));
        }
        tx.commit().await.map_err(|error| store(error.into()))?;
        tracing::info!(rack = self.rack(), "certificate renewed");
        Ok(issued.der)
    }

    async fn boot_config(
        &self,
        db: &mut PgConnection,
        mac: [u8; 6],
        arch: &str,
        vlan: u32,
    ) -> Result<Option<values::Machine>, StoreError> {
        // Only what boots on this rack's own VLANs concerns it.
        let vlan = i32::try_from(vlan).unwrap_or(-1);
        let racks = [self.rack().to_owned()];
        let served = store::feed::served_vlans(db, &racks, Some(&[vlan])).await?;
        if !served.iter().any(|served| served.vlan == vlan) {
            return Ok(None);
        }
        let images = values::Images::read(db).await?;
        let known = store::feed::machines(db, store::feed::Which::Mac(mac)).await?;
        Ok(Some(match known.first() {
            Some(machine) => values::Machine::of(machine, &images),
            None => values::Machine::unknown(mac, arch, &images),
        }))
    }
}

impl session::Server for Session {
    async fn heartbeat(
        self: Rc<Self>,
        params: session::HeartbeatParams,
        mut results: session::HeartbeatResults,
    ) -> Result<(), Error> {
        let _place = self.enter()?;
        let params = params.get()?;
        let spool_id = wire::spool_id(params.get_spool_id()?)?;
        let digest: Result<[u8; 32], _> = params.get_digest()?.try_into();
        let digest = digest.map_err(|_| Error::failed("malformed digest".into()))?;
        let session = Rc::clone(&self);
        let reply = async move {
            store::lease::heartbeat(&session.region.pool, session.rack(), spool_id, &digest)
                .await
                .map_err(|error| store_fault("a rack's heartbeat", &error))
        };
        let reply = within(&self.region, CALL_TIME, reply).await?;
        if matches!(reply, lease::HeartbeatReply::Until(_)) {
            self.region.liveness.attached(self.connection);
        }
        wire::put_heartbeat(&reply, results.get().init_reply());
        Ok(())
    }

    async fn attach(
        self: Rc<Self>,
        params: session::AttachParams,
        mut results: session::AttachResults,
    ) -> Result<(), Error> {
        let _place = self.enter()?;
        let params = params.get()?;
        let spool_id = wire::spool_id(params.get_spool_id()?)?;
        let (session, seq) = (Rc::clone(&self), params.get_spool_seq());
        let reply = async move {
            let _turn = session.turn(|lanes| &lanes.attaches).await?;
            store::lease::attach(&session.region.pool, session.rack(), spool_id, seq)
                .await
                .map_err(|error| store_fault("attaching a rack", &error))
        };
        let reply = within(&self.region, ATTACH_TIME, reply).await?;
        if matches!(reply, lease::AttachReply::Attached(_)) {
            self.region.liveness.attached(self.connection);
        }
        wire::put_attachment(&reply, results.get().init_attachment());
        Ok(())
    }

    async fn commit_leases(
        self: Rc<Self>,
        params: session::CommitLeasesParams,
        mut results: session::CommitLeasesResults,
    ) -> Result<(), Error> {
        let _place = self.enter()?;
        let batch = wire::batch(params.get()?.get_batch()?)?;
        let counters = self.region.racks.counters();
        let session = Rc::clone(&self);
        let outcomes = async move {
            let _turn = session.turn(|lanes| &lanes.leases).await?;
            store::lease::commit(&session.region.pool, session.rack(), &batch)
                .await
                .map_err(|error| store_fault("writing leases", &error))
        };
        let outcomes = within(&self.region, CALL_TIME, outcomes).await?;
        let is_refused = |outcome: &&lease::Outcome| matches!(outcome, lease::Outcome::Refused(_));
        count(&counters.lease_batches);
        add(&counters.lease_writes, outcomes.len());
        add(
            &counters.lease_refused,
            outcomes.iter().filter(is_refused).count(),
        );
        let mut list = results.get().init_outcomes(outcomes.len() as u32);
        for (i, outcome) in outcomes.iter().enumerate() {
            wire::put_outcome(outcome, list.reborrow().get(i as u32));
        }
        Ok(())
    }

    async fn subscribe(
        self: Rc<Self>,
        params: session::SubscribeParams,
        _: session::SubscribeResults,
    ) -> Result<(), Error> {
        let _place = self.enter()?;
        let sink = params.get()?.get_sink()?;
        let close = self.close.child_token();
        let subscription = self.region.feed.subscribe(self.rack(), sink, close)?;
        // An earlier one of this connection ends here.
        self.subscription.replace(Some(subscription));
        Ok(())
    }

    async fn boot_config(
        self: Rc<Self>,
        params: session::BootConfigParams,
        mut results: session::BootConfigResults,
    ) -> Result<(), Error> {
        let _place = self.enter()?;
        let query = params.get()?.get_query()?;
        let mac = wire::mac(query.get_mac()?)?;
        let arch = query.get_arch()?.to_string()?;
        let (session, vlan) = (Rc::clone(&self), query.get_vlan());
        let machine = async move {
            let _turn = session.turn(|lanes| &lanes.boots).await?;
            let store = |error: StoreError| store_fault("finding a machine's boot", &error);
            let mut db = session
                .region
                .pool
                .acquire()
                .await
                .map_err(|error| store(error.into()))?;
            Session::boot_config(&session, &mut db, mac, &arch, vlan)
                .await
                .map_err(store)
        };
        let machine = within(&self.region, CALL_TIME, machine).await?;
        let machine =
            machine.ok_or_else(|| Error::failed("this rack does not serve that VLAN".into()))?;
        machine.put(results.get().init_machine());
        Ok(())
    }

    async fn renew(
        self: Rc<Self>,
        params: session::RenewParams,
        mut results: session::RenewResults,
    ) -> Result<(), Error> {
        let _place = self.enter()?;
        let csr = params.get()?.get_csr()?.to_vec();
        let session = Rc::clone(&self);
        let renewed = async move { Session::renew(&session, &csr).await };
        let certificate = within(&self.region, CALL_TIME, renewed).await?;
        results.get().set_certificate(&certificate);
        Ok(())
    }

    async fn report(
        self: Rc<Self>,
        params: session::ReportParams,
        _: session::ReportResults,
    ) -> Result<(), Error> {
        let _place = self.enter()?;
        let events = wire::events(params.get()?.get_events()?)?;
        let counters = self.region.racks.counters();
        let events = self
            .recent
            .borrow_mut()
            .filter(events, Instant::now(), counters);
        let session = Rc::clone(&self);
        let stored = async move {
            let _turn = session.turn(|lanes| &lanes.reports).await?;
            crate::events::store(
                &session.region.pool,
                session.rack(),
                events,
                &session.region.racks,
            )
            .await
            .map_err(|error| store_fault("storing a rack's events", &error))
        };
        let stored = within(&self.region, CALL_TIME, stored).await?;
        add(&counters.events, stored);
        Ok(())
    }

    async fn regions(
        self: Rc<Self>,
        _: session::RegionsParams,
        mut results: session::RegionsResults,
    ) -> Result<(), Error> {
        let _place = self.enter()?;
        let session = Rc::clone(&self);
        let live = async move {
            store::region::live(&session.region.pool)
                .await
                .map_err(|error| store_fault("listing the regions", &error))
        };
        let live = within(&self.region, CALL_TIME, live).await?;
        wire::put_regions(&live, |n| results.get().init_regions(n));
        Ok(())
    }
}

// ---------------------------------------------------------------- calls to the rack

/// Until the connection closes: sends what `Racks` asks for, and closes the connection of a rack that stays silent.
async fn to_rack(
    region: Rc<Region>,
    (peer, connection): (Peer, u64),
    rack: rack::Client,
    commands: mpsc::Receiver<Command>,
    close: CancellationToken,
) {
    tokio::select! {
        () = close.cancelled() => {}
        never = send_commands(&region, &rack, commands) => match never {},
        never = note_claimed(&region, &peer.system_id, &rack) => match never {},
        () = ping(&region, &peer.system_id, connection, &rack) => {
            count(&region.racks.counters().silent);
            tracing::warn!(rack = peer.system_id, "the rack does not answer: closing its link");
            close.cancel();
        }
    }
}

async fn send_commands(
    region: &Region,
    rack: &rack::Client,
    mut commands: mpsc::Receiver<Command>,
) -> Infallible {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = calls.join_next() => {}
            command = commands.recv(), if calls.len() < POWER_MAX => match command {
                Some(Command::Power(operation, answer)) => {
                    let (rack, racks) = (rack.clone(), region.racks.clone());
                    calls.spawn_local(async move {
                        let report = power(&rack, racks.counters(), operation).await;
                        // The caller may have given up: then nobody listens.
                        let _ = answer.send(report);
                    });
                }
                Some(Command::Stats(answer)) => {
                    let rack = rack.clone();
                    calls.spawn_local(async move {
                        let _ = answer.send(stats(&rack).await);
                    });
                }
                None => break,
            },
        }
    }
    // A newer connection of this rack has taken over its calls; those already sent end here.
    while calls.join_next().await.is_some() {}
    std::future::pending().await
}

/// Returns when a ping stayed without an answer.
async fn ping(region: &Region, system_id: &str, connection: u64, rack: &rack::Client) {
    let mut pinged = Instant::now();
    loop {
        tokio::time::sleep(SHARING_PING_EVERY).await;
        if !region.liveness.is_sharing(system_id) && pinged.elapsed() < PING_EVERY {
            continue;
        }
        pinged = Instant::now();
        let mut answer = rack.ping_request().send().promise;
        let mut heard = tokio::time::timeout(SILENT_AFTER, &mut answer).await;
        if heard.is_err() {
            region.liveness.silent(connection, true);
            heard = tokio::time::timeout(PING_TIME - SILENT_AFTER, answer).await;
        }
        if !matches!(heard, Ok(Ok(_))) {
            return;
        }
        region.liveness.silent(connection, false);
    }
}

/// Asks for what hosts claim of the rack's ranges, as long as the connection lasts. One of an earlier version has no answer.
async fn note_claimed(region: &Region, system_id: &str, rack: &rack::Client) -> Infallible {
    loop {
        let answer = rack.claimed_request().send().promise;
        if let Ok(Ok(response)) = tokio::time::timeout(STATS_TIME, answer).await
            && let Ok(blocks) = response.get().and_then(|answer| answer.get_blocks())
        {
            let blocks = wire::claimed(blocks);
            let stored = async {
                let mut db = region.pool.acquire().await?;
                store::lease::usage::note_claimed(&mut db, system_id, &blocks).await
            };
            if let Err(error) = stored.await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "noting which addresses are claimed"
                );
            }
        }
        tokio::time::sleep(CLAIMED_EVERY).await;
    }
}

async fn stats(rack: &rack::Client) -> Result<Vec<(String, u64)>, LinkError> {
    let answer = rack.stats_request().send().promise;
    match tokio::time::timeout(STATS_TIME, answer).await {
        Err(_) => Err(LinkError::Deadline),
        Ok(Err(error)) => Err(fault(&error)),
        Ok(Ok(response)) => {
            let stats = response.get().and_then(|response| response.get_stats());
            stats
                .and_then(wire::stats)
                .map_err(|_| LinkError::Malformed)
        }
    }
}

/// Whether a call failed at the rack or on the way.
fn fault(error: &Error) -> LinkError {
    match error.extra.strip_prefix(REMOTE) {
        None => LinkError::Lost,
        Some(_) if error.kind == capnp::ErrorKind::Disconnected => LinkError::Lost,
        Some(_) if error.kind == capnp::ErrorKind::Overloaded => LinkError::Busy,
        Some(reason) => LinkError::Refused(reason.chars().take(REASON_CHARS_MAX).collect()),
    }
}

async fn power(
    rack: &rack::Client,
    counters: &Counters,
    operation: crate::PowerOperation,
) -> Result<crate::PowerReport, LinkError> {
    count(&counters.power_calls);
    let limit = operation.deadline + REPORT_GRACE;
    let mut request = rack.power_request();
    wire::put_operation(&operation, request.get().init_operation());
    drop(operation);
    match tokio::time::timeout(limit, request.send().promise).await {
        Err(_) => {
            count(&counters.power_late);
            Err(LinkError::Deadline)
        }
        Ok(Err(error)) => Err(fault(&error)),
        Ok(Ok(response)) => {
            let report = response.get().and_then(|response| response.get_report());
            report
                .and_then(wire::report)
                .map_err(|_| LinkError::Malformed)
        }
    }
}
