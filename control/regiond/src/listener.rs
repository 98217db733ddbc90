//! The API's listener (5240): who gets a connection, and for how long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use gate::http::Ended;
use gate::{Bounds, Room, Source};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// After an accept that failed: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the listener counts beside its places.
#[derive(Default)]
pub struct Counters {
    pub heads_too_slow: AtomicU64,
    pub accept_failed: AtomicU64,
}

/// The ends of a connection, for handlers: an extension of its requests.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

/// Places for connections: the open ones, without a request that was found right, never take all.
pub fn room(total: u64, each: u64) -> Arc<Room> {
    let bounds = Bounds {
        total,
        open: total - total / 4,
        each: each.min(total),
    };
    Room::new("api_connections", bounds)
}

/// Serves until `stop`; what is under way then is still answered.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    room: Arc<Room>,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if counters
                    .accept_failed
                    .fetch_add(1, Relaxed)
                    .is_multiple_of(100)
                {
                    tracing::error!(%error, "accepting a connection to the API");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let source = Source::host(peer.ip());
        let Ok(place) = room.enter(source.clone(), 1) else {
            gate::http::refuse(stream).await;
            continue;
        };
        let (router, stop, counters) = (router.clone(), stop.clone(), Arc::clone(&counters));
        connections.spawn(async move {
            let Some(extend) = extend(&stream, peer, source) else {
                return;
            };
            let close = CancellationToken::new();
            let ended = gate::http::serve(stream, router, place, extend, &stop, &close).await;
            if ended == Ended::TooSlow {
                counters.heads_too_slow.fetch_add(1, Relaxed);
            }
        });
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// What every request of the connection is told; `None`: the peer is gone already.
fn extend(
    stream: &TcpStream,
    peer: SocketAddr,
    source: Source,
) -> Option<impl Fn(&mut Request) + Send + Sync + 'static> {
    stream.set_nodelay(true).ok();
    let local = stream.local_addr().ok()?;
    Some(move |request: &mut Request| {
        let extensions = request.extensions_mut();
        extensions.insert(source.clone());
        extensions.insert(ConnectInfo(peer));
        extensions.insert(Ends { peer, local });
    })
}

pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    async fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    async fn ask(from: [u8; 4], to: SocketAddr) -> String {
        let mut stream = connect(from, to).await;
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// More half heads than there are places, from one address and from many: an asker is answered all the same.
    #[tokio::test]
    async fn half_heads_take_no_place_of_who_asks() {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (room, stop) = (room(64, 16), CancellationToken::new());
        let router = Router::new().route("/", get(|| async { "hello" }));
        let counters = Arc::new(Counters::default());
        let serving = serve(listener, router, Arc::clone(&room), counters, stop.clone());
        let serving = tokio::spawn(serving);
        let mut half = Vec::new();
        for number in 0..200_u8 {
            let from = if number < 100 {
                [127, 0, 1, 1]
            } else {
                [127, 0, 2, number]
            };
            let mut stream = connect(from, address).await;
            stream.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
            half.push(stream);
        }
        for from in [[127, 0, 3, 1], [127, 0, 1, 1]] {
            let answer = ask(from, address).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let numbers = room.numbers();
        assert!(numbers.held <= 48, "{numbers:?}");
        assert!(numbers.displaced >= 150, "{numbers:?}");
        stop.cancel();
        drop(half);
        serving.await.unwrap().unwrap();
        assert_eq!(room.numbers().held, 0);
    }
}
