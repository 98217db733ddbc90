//! One rack's connection, from the TLS handshake to its end.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use capnp::ErrorKind;
use capnp::message::ReaderOptions;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use futures::{AsyncReadExt, FutureExt};
use gate::Place;
use model::EventType;
use store::event::NewEvent;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;

use crate::counters::count;
use crate::door::Door;
use crate::listener::Region;
use crate::tls;

const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// A host with a certificate says hello within this time or goes.
const HELLO_TIME: Duration = Duration::from_secs(15);
/// A host without a certificate enrols within this time or goes.
const ANONYMOUS_TIME: Duration = Duration::from_secs(30);
/// Of one message. The largest is a batch of 512 lease writes: about 100 KiB.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
const ANONYMOUS_MESSAGE_BYTES_MAX: usize = 64 << 10;

pub(crate) async fn serve(
    region: Rc<Region>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: SocketAddr,
    place: Place,
) {
    let counters = region.racks.counters();
    // Small messages that someone waits for.
    stream.set_nodelay(true).ok();
    let doors = region.racks.doors();
    let shake = async {
        match doors.turn(&stream, from.ip(), counters).await {
            true => acceptor.accept(stream).await,
            false => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    };
    let handshake = tokio::time::timeout(HANDSHAKE_TIME, shake);
    let stream = tokio::select! {
        () = region.cancel.cancelled() => return,
        () = place.displaced() => {
            count(&counters.displaced);
            return;
        }
        handshake = handshake => match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                count(&counters.handshake_failed);
                tracing::debug!(%from, %error, "TLS handshake");
                return;
            }
            Err(_) => {
                count(&counters.handshake_failed);
                return;
            }
        },
    };
    let peer = tls::peer(stream.get_ref().1);
    // A rack's place is of the racks; a stranger keeps its own, as long as nobody else wants it.
    let place = match &peer {
        Some(peer) => {
            let doors = region.racks.doors();
            match doors.admit(&doors.link, &peer.system_id) {
                Ok(place) => place,
                Err(_) => {
                    count(&counters.refused_full);
                    return;
                }
            }
        }
        None => place,
    };
    let admitted = CancellationToken::new();
    let registered = peer
        .clone()
        .map(|peer| region.racks.registry().register(peer));
    let message_bytes_max = if peer.is_some() {
        MESSAGE_BYTES_MAX
    } else {
        ANONYMOUS_MESSAGE_BYTES_MAX
    };
    let mut options = ReaderOptions::new();
    options
        .traversal_limit_in_words(Some(message_bytes_max / 8))
        .nesting_limit(16);

    let (reader, writer) = stream.compat().split();
    let network = twoparty::VatNetwork::new(
        futures::io::BufReader::new(reader),
        futures::io::BufWriter::new(writer),
        Side::Server,
        options,
    );
    let close = registered
        .as_ref()
        .map(|r| r.close.clone())
        .unwrap_or_default();
    let connection = registered.as_ref().map(|registered| registered.id);
    let door = Door::new(
        Rc::clone(&region),
        peer.clone(),
        connection,
        close.clone(),
        from,
        admitted.clone(),
    );
    let door: rpc::muster_capnp::door::Client = capnp_rpc::new_client(door);
    let system = RpcSystem::new(Box::new(network), Some(door.client));
    // capnp-rpc has places that panic on messages no honest peer sends: such a peer loses its connection, nothing else.
    let system = AssertUnwindSafe(system).catch_unwind();
    let limit = async {
        let Some(_) = &peer else {
            tokio::time::sleep(ANONYMOUS_TIME).await;
            return &counters.anonymous_expired;
        };
        tokio::select! {
            () = admitted.cancelled() => {}
            () = tokio::time::sleep(HELLO_TIME) => return &counters.hello_late,
        }
        region.racks.doors().know(from.ip());
        place.firm();
        std::future::pending().await
    };
    tokio::select! {
        () = region.cancel.cancelled() => {}
        () = close.cancelled() => {}
        () = place.displaced() => count(&counters.displaced),
        late = limit => count(late),
        ended = system => match ended {
            Ok(Ok(())) => {}
            // The rack, or its network, is gone.
            Ok(Err(error))
                if matches!(error.kind, ErrorKind::Disconnected | ErrorKind::PrematureEndOfFile) => {}
            Ok(Err(error)) => {
                count(&counters.malformed);
                tracing::warn!(%from, %error, "connection closed");
            }
            Err(_) => {
                count(&counters.panicked);
                tracing::error!(%from, "connection closed: its handler panicked");
            }
        },
    }
    // Ends the connection's own tasks too.
    close.cancel();
    if let Some(registered) = &registered
        && let Some(peer) = &peer
    {
        region.liveness.closed(registered.id);
        let was_linked = region.racks.remove(&peer.system_id, registered.id);
        if was_linked && !region.cancel.is_cancelled() {
            note_end(&region, &peer.system_id).await;
        }
    }
}

/// For the rack's events; best effort.
async fn note_end(region: &Region, rack: &str) {
    tracing::info!(rack, "rack unlinked");
    let noted = async {
        let mut db = region.pool.acquire().await?;
        let event = NewEvent::new(EventType::RackDisconnected).rack(rack);
        store::event::record(
            &mut db,
            event.text(format!("from {}", region.process.hostname)),
        )
        .await
    };
    if let Err(error) = noted.await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "noting a rack's disconnection"
        );
    }
}
