//! The rack-facing HTTPS port (5251): image ranges and the metadata of machines, for racks only.
//!
//! A connection shows a rack's certificate or is not accepted; a revoked one is refused, and closed while it is open.
//! The handlers are the caller's `Router`; each request carries `Extension(RackIdentity)`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use gate::Place;
use sqlx::PgPool;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::authority::Peer;
use crate::counters::count;
use crate::doors::Refused;
use crate::racks::Racks;
use crate::registry::Registered;
use crate::{StartError, tls};

/// The rack that sent a request, by its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RackIdentity {
    pub system_id: String,
}

/// For the handshake and the look at the certificate.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// What is under way at the end gets this long.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until `cancel`. HTTP/1.1, keep-alive.
pub async fn serve(
    listener: TcpListener,
    racks: Racks,
    pool: PgPool,
    router: Router,
    cancel: CancellationToken,
) -> Result<(), StartError> {
    let acceptor = TlsAcceptor::from(racks.rack_tls()?);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!(%error, "accepting a rack's HTTPS connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let doors = racks.doors();
        let place = match doors.enter(&doors.https, from.ip(), Instant::now()) {
            Ok(place) => place,
            Err(Refused::Full) => {
                count(&racks.counters().refused_full);
                continue;
            }
            Err(Refused::TooOften) => {
                count(&racks.counters().refused_often);
                continue;
            }
        };
        let connection = Connection {
            acceptor: acceptor.clone(),
            racks: racks.clone(),
            pool: pool.clone(),
            router: router.clone(),
            cancel: cancel.clone(),
        };
        connections.spawn(async move {
            tokio::select! {
                () = place.displaced() => count(&connection.racks.counters().displaced),
                shown = connection.handshake(stream, from) => {
                    drop(place);
                    if let Some(shown) = shown {
                        connection.serve(shown).await;
                    }
                }
            }
        });
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, ended).await;
    connections.shutdown().await;
    Ok(())
}

struct Connection {
    acceptor: TlsAcceptor,
    racks: Racks,
    pool: PgPool,
    router: Router,
    cancel: CancellationToken,
}

/// A rack that has shown a certificate that stands.
struct Shown {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    registered: Registered,
    place: Place,
}

impl Connection {
    async fn handshake(&self, stream: TcpStream, from: SocketAddr) -> Option<Shown> {
        let counters = self.racks.counters();
        let shown = tokio::time::timeout(HANDSHAKE_TIME, self.shown(stream, from)).await;
        shown.unwrap_or_else(|_| {
            count(&counters.handshake_failed);
            None
        })
    }

    async fn shown(&self, stream: TcpStream, from: SocketAddr) -> Option<Shown> {
        let (racks, counters) = (&self.racks, self.racks.counters());
        stream.set_nodelay(true).ok();
        if !racks.doors().turn(&stream, from.ip(), counters).await {
            count(&counters.handshake_failed);
            return None;
        }
        let Ok(stream) = self.acceptor.accept(stream).await else {
            count(&counters.handshake_failed);
            return None;
        };
        let Some(peer) = tls::peer(stream.get_ref().1) else {
            count(&counters.handshake_failed);
            return None;
        };
        let registered = racks.registry().register(peer.clone());
        match store::rack::is_certificate_valid(&self.pool, &peer.system_id, &peer.serial).await {
            Ok(true) => {}
            Ok(false) => {
                count(&counters.revoked);
                return None;
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "checking a rack's certificate"
                );
                return None;
            }
        }
        let doors = racks.doors();
        doors.know(from.ip());
        let Ok(place) = doors.admit(&doors.https, &peer.system_id) else {
            count(&counters.refused_full);
            return None;
        };
        Some(Shown {
            stream,
            peer,
            registered,
            place,
        })
    }

    async fn serve(self, shown: Shown) {
        let identity = RackIdentity {
            system_id: shown.peer.system_id,
        };
        let extend = move |request: &mut Request| {
            // It is a rack: between requests its connection may give way to another of the same rack, or of one more
            // rack than there are places.
            if let Some(connection) = request.extensions().get::<gate::http::Connection>() {
                connection.firm();
            }
            request.extensions_mut().insert(identity.clone());
        };
        // A fault of the connection: the rack sees it too, and tries again.
        let _ = gate::http::serve(
            shown.stream,
            self.router,
            shown.place,
            extend,
            &self.cancel,
            &shown.registered.close,
        )
        .await;
    }
}
