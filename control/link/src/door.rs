//! What a connection can do first: enrol (anyone with a token), or say hello (a rack with its certificate).

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use capnp::Error;
use model::EventType;
use rpc::muster_capnp::{door, session};
use rpc::refusal;
use store::event::NewEvent;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::authority::{Peer, RACK_CERTIFICATE_RENEW};
use crate::counters::count;
use crate::listener::Region;
use crate::session::{self as calls, Session};
use crate::token;
use crate::wire::{self, Hello};

/// Of the protocol and the region's own version, in Welcome.
const PROTOCOL: u16 = 1;
const HEARTBEAT_MS: u32 = 5_000;
/// Enrolments tried on one connection; a secret has 256 bits, so this only bounds the noise.
const ENROLMENTS_MAX: u32 = 3;
const CALL_TIME: Duration = Duration::from_secs(10);

pub(crate) struct Door {
    region: Rc<Region>,
    /// Of the verified client certificate.
    peer: Option<Peer>,
    connection: Option<u64>,
    close: CancellationToken,
    from: SocketAddr,
    enrolments: Cell<u32>,
    greeted: Cell<bool>,
    /// Told when the rack was let in.
    admitted: CancellationToken,
}

impl Door {
    pub fn new(
        region: Rc<Region>,
        peer: Option<Peer>,
        connection: Option<u64>,
        close: CancellationToken,
        from: SocketAddr,
        admitted: CancellationToken,
    ) -> Self {
        let (enrolments, greeted) = (Cell::new(0), Cell::new(false));
        Self {
            region,
            peer,
            connection,
            close,
            from,
            enrolments,
            greeted,
            admitted,
        }
    }

    /// Token and request in, (system_id, certificate) out. One transaction: a fault uses no token up.
    async fn enrol(
        &self,
        token: &str,
        hostname: &str,
        csr: &[u8],
    ) -> Result<(String, Vec<u8>), Error> {
        let refused = |reason: String| Error::failed(format!("{}{reason}", refusal::ENROLMENT));
        self.enrolments.set(self.enrolments.get() + 1);
        if self.enrolments.get() > ENROLMENTS_MAX {
            return Err(refused("too many tries on one connection".into()));
        }
        if !wire::is_hostname(hostname) {
            return Err(refused(
                "the hostname is empty, too long or no hostname".into(),
            ));
        }
        let hash = token::hash_of_text(token)
            .ok_or_else(|| refused("this is not an enrolment token".into()))?;
        let trust = self
            .region
            .racks
            .trust()
            .ok_or_else(|| Error::failed("no authority".into()))?;
        let store = |error: store::StoreError| calls::store_fault("enrolling a rack", &error);
        let mut tx = self
            .region
            .pool
            .begin()
            .await
            .map_err(|error| store(error.into()))?;
        let system_id = match store::rack::enrol(&mut tx, &hash, hostname)
            .await
            .map_err(store)?
        {
            Ok(system_id) => system_id,
            Err(refusal) => return Err(refused(refusal.to_string())),
        };
        let issued = trust
            .authority
            .sign_rack(&system_id, csr, OffsetDateTime::now_utc())
            .map_err(|error| refused(error.to_string()))?;
        let added =
            store::rack::add_certificate(&mut tx, &system_id, &issued.serial, issued.not_after)
                .await
                .map_err(store)?;
        if !added {
            return Err(refused("the rack has too many certificates".into()));
        }
        let event = NewEvent::new(EventType::RackEnrolled)
            .rack(&system_id)
            .text(format!("{hostname} from {}", self.from.ip()));
        store::event::record(&mut tx, event).await.map_err(store)?;
        tx.commit().await.map_err(|error| store(error.into()))?;
        Ok((system_id, issued.der))
    }

    /// Checks the certificate and stores what the rack says of itself.
    async fn admit(&self, peer: &Peer, hello: &Hello) -> Result<(), Error> {
        let store = |error: store::StoreError| calls::store_fault("greeting a rack", &error);
        let mut tx = self
            .region
            .pool
            .begin()
            .await
            .map_err(|error| store(error.into()))?;
        let valid = store::rack::is_certificate_valid(&mut *tx, &peer.system_id, &peer.serial);
        if !valid.await.map_err(store)? {
            count(&self.region.racks.counters().revoked);
            return Err(Error::failed(refusal::REVOKED.into()));
        }
        store::rack::hello(&mut tx, &peer.system_id, &hello.version, &hello.interfaces)
            .await
            .map_err(store)?;
        let event = NewEvent::new(EventType::RackConnected)
            .rack(&peer.system_id)
            .text(format!(
                "to {}, version {}",
                self.region.process.hostname, hello.version
            ));
        store::event::record(&mut tx, event).await.map_err(store)?;
        tx.commit().await.map_err(|error| store(error.into()))
    }
}

impl door::Server for Door {
    async fn enrol(
        self: Rc<Self>,
        params: door::EnrolParams,
        mut results: door::EnrolResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let token = params.get_token()?.to_string()?;
        let hostname = params.get_hostname()?.to_string()?;
        let csr = params.get_csr()?.to_vec();
        let counters = self.region.racks.counters();
        let (door, name) = (Rc::clone(&self), hostname.clone());
        let enrolled = async move { Door::enrol(&door, &token, &name, &csr).await };
        match calls::within(&self.region, CALL_TIME, enrolled).await {
            Ok((system_id, certificate)) => {
                count(&counters.enrolled);
                tracing::info!(rack = system_id, hostname, from = %self.from, "rack enrolled");
                let trust = self.region.racks.trust();
                let trust = trust.ok_or_else(|| Error::failed("no authority".into()))?;
                let mut results = results.get();
                results.set_rack(&system_id);
                results.set_certificate(&certificate);
                results.set_authority(trust.authority.certificate());
                Ok(())
            }
            Err(error) => {
                count(&counters.enrolment_refused);
                tracing::warn!(hostname, from = %self.from, %error, "rack not enrolled");
                Err(error)
            }
        }
    }

    async fn hello(
        self: Rc<Self>,
        params: door::HelloParams,
        mut results: door::HelloResults,
    ) -> Result<(), Error> {
        let counters = self.region.racks.counters();
        let (Some(peer), Some(connection)) = (&self.peer, self.connection) else {
            count(&counters.hello_refused);
            return Err(Error::failed(refusal::NOT_ENROLLED.into()));
        };
        if self.greeted.replace(true) {
            return Err(Error::failed("a connection says hello once".into()));
        }
        let hello = params.get()?.get_hello()?;
        let rack = hello.get_rack()?;
        let hello = wire::hello(hello)?;
        let version = hello.version.clone();
        let (door, who) = (Rc::clone(&self), peer.clone());
        let admitted = async move { door.admit(&who, &hello).await };
        if let Err(error) = calls::within(&self.region, CALL_TIME, admitted).await {
            count(&counters.hello_refused);
            tracing::warn!(rack = peer.system_id, from = %self.from, %error, "rack not admitted");
            return Err(error);
        }
        let store = |error: store::StoreError| calls::store_fault("greeting a rack", &error);
        let database = store::lease::check_database(&self.region.pool)
            .await
            .map_err(store)?;
        let regions = store::region::live(&self.region.pool)
            .await
            .map_err(store)?;

        count(&counters.hello);
        self.admitted.cancel();
        tracing::info!(rack = peer.system_id, from = %self.from, version, "rack linked");
        let mut results = results.get();
        let mut welcome = results.reborrow().init_welcome();
        welcome.set_protocol(PROTOCOL);
        welcome.set_version(env!("CARGO_PKG_VERSION"));
        welcome.set_rack(&peer.system_id);
        welcome.set_region(self.region.process.id.to_string());
        welcome.set_database_system(database.system);
        welcome.set_database_timeline(database.timeline);
        welcome.set_heartbeat_ms(HEARTBEAT_MS);
        welcome.set_certificate_renew_ms(RACK_CERTIFICATE_RENEW.as_millis() as u64);
        wire::put_regions(&regions, |n| welcome.init_regions(n));
        let session = Session::open(
            Rc::clone(&self.region),
            peer.clone(),
            connection,
            rack,
            self.close.clone(),
        );
        let session: session::Client = capnp_rpc::new_client(session);
        results.set_session(session);
        Ok(())
    }
}
