//! The rack-facing HTTPS port (5251): image ranges and the metadata of machines, for racks only.
//!
//! A connection shows a rack's certificate or is not accepted; a revoked one is refused, and closed while it is open.
//! The handlers are the caller's `Router`; each request carries `Extension(RackIdentity)`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use sqlx::PgPool;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::counters::count;
use crate::racks::Racks;
use crate::{StartError, tls};

/// The rack that sent a request, by its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RackIdentity {
    pub system_id: String,
}

/// At most 32 of a rack, so this is for 128 racks that are all at their limit.
const CONNECTIONS_MAX: usize = 4096;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
const HEADER_TIME: Duration = Duration::from_secs(30);
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
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "accepting a rack's HTTPS connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            count(&racks.counters().refused_full);
            continue;
        };
        let connection = connection(
            acceptor.clone(),
            stream,
            racks.clone(),
            pool.clone(),
            router.clone(),
            cancel.clone(),
        );
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, ended).await;
    connections.shutdown().await;
    Ok(())
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    racks: Racks,
    pool: PgPool,
    router: Router,
    cancel: CancellationToken,
) {
    stream.set_nodelay(true).ok();
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await else {
        count(&racks.counters().handshake_failed);
        return;
    };
    let Some(peer) = tls::peer(stream.get_ref().1) else {
        count(&racks.counters().handshake_failed);
        return;
    };
    let identity = RackIdentity {
        system_id: peer.system_id.clone(),
    };
    let registered = racks.registry().register(peer.clone());
    match store::rack::is_certificate_valid(&pool, &peer.system_id, &peer.serial).await {
        Ok(true) => {}
        Ok(false) => {
            count(&racks.counters().revoked);
            return;
        }
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "checking a rack's certificate"
            );
            return;
        }
    }
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(identity.clone());
        let router = router.clone();
        async move {
            Ok::<_, Infallible>(
                router
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never| match never {}),
            )
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        () = registered.close.cancelled() => return,
        // A fault of the connection: the rack sees it too, and tries again.
        _ = serving.as_mut() => return,
        () = cancel.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        () = registered.close.cancelled() => {}
        _ = serving => {}
    }
}
