//! HTTP/1.1 on one connection: a whole head in time, answers at a pace, a place that says who may be displaced.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::paced::{PACE, Paced};
use crate::room::Place;

/// For a whole request head, waiting for its first octet included: also the limit of an idle connection.
pub const HEAD_TIME: Duration = Duration::from_secs(20);
/// Longest request head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// A last word to a connection that is refused or has timed out.
const LAST_WORD_TIME: Duration = Duration::from_secs(1);

const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\
    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 34\r\n\r\nThe request head came too slowly.\n";
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 10\r\n\
    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 42\r\n\r\nToo many connections. Try again in a bit.\n";

/// The connection that a request came on, as handlers see it: an extension of the request.
#[derive(Clone)]
pub struct Connection(Arc<Place>);

impl Connection {
    /// The request was found right: its connection is not displaced until it is answered.
    pub fn firm(&self) {
        self.0.firm();
    }
}

/// How a connection ended, for the counters of whoever accepted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By its peer, an error of the network, or `close`.
    Closed,
    /// The head did not come in time.
    TooSlow,
    /// Another took its place.
    Displaced,
}

/// Serves `router` until the peer goes, its time is up, its place is taken or `close` is cancelled; after `stop` the
/// request under way is still answered.
pub async fn serve<S>(
    stream: S,
    router: Router,
    place: Place,
    extend: impl Fn(&mut Request) + Send + Sync + 'static,
    stop: &CancellationToken,
    close: &CancellationToken,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = Arc::new(place);
    let connection = Connection(Arc::clone(&place));
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(connection.clone());
        let turn = Turn::new(&connection);
        extend(&mut request);
        let router = router.clone();
        async move {
            let response: Response = match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            Ok::<_, Infallible>(response.map(|body| Held { body, _turn: turn }))
        }
    });
    let stream = TokioIo::new(Paced::new(stream, PACE));
    let mut serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(stream, service);
    let ended = tokio::select! {
        () = close.cancelled() => return Ended::Closed,
        () = place.displaced() => return Ended::Displaced,
        ended = &mut serving => ended,
        () = stop.cancelled() => {
            Pin::new(&mut serving).graceful_shutdown();
            tokio::select! {
                () = close.cancelled() => return Ended::Closed,
                () = place.displaced() => return Ended::Displaced,
                ended = &mut serving => ended,
            }
        }
    };
    match ended {
        Err(error) if error.is_timeout() => {
            let parts = serving.into_parts();
            // An idle connection is closed without a word; half a head gets an answer.
            if !parts.read_buf.is_empty() {
                last_word(parts.io.into_inner(), TOO_SLOW).await;
            }
            Ended::TooSlow
        }
        _ => Ended::Closed,
    }
}

/// Tells a connection that there is no place for it. Best effort: what it has sent is not read.
pub async fn refuse(stream: impl AsyncWrite + Unpin) {
    last_word(stream, TOO_MANY).await;
}

async fn last_word(mut stream: impl AsyncWrite + Unpin, word: &[u8]) {
    let said = async {
        stream.write_all(word).await?;
        stream.shutdown().await
    };
    // The peer may be gone, or take nothing: then it learns nothing.
    let _ = tokio::time::timeout(LAST_WORD_TIME, said).await;
}

/// From a request's head to the end of its answer.
struct Turn(Connection);

impl Turn {
    fn new(connection: &Connection) -> Self {
        // The youngest now: a connection that asks is not the next to go.
        connection.0.open();
        Self(connection.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.open();
    }
}

/// An answer's body, which holds its turn until it is sent or given up.
struct Held {
    body: Body,
    _turn: Turn,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bounds, Room, Source};
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, DuplexStream};

    fn bounds(total: u64) -> Bounds {
        Bounds {
            total,
            open: total,
            each: total,
        }
    }

    fn serving(room: &Arc<Room>, router: Router) -> (DuplexStream, tokio::task::JoinHandle<Ended>) {
        let (near, far) = tokio::io::duplex(4096);
        let place = room.enter(Source::host([10, 0, 0, 1].into()), 1).unwrap();
        let task = tokio::spawn(async move {
            let (stop, close) = (CancellationToken::new(), CancellationToken::new());
            serve(near, router, place, |_| {}, &stop, &close).await
        });
        (far, task)
    }

    fn router() -> Router {
        Router::new().route("/", get(|| async { "hello" }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_in_all_and_not_per_octet() {
        let room = Room::new("test", bounds(4));
        let (mut far, task) = serving(&room, router());
        let started = tokio::time::Instant::now();
        let (mut reader, mut writer) = tokio::io::split(far);
        tokio::spawn(async move {
            writer
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
                .await?;
            loop {
                tokio::time::sleep(Duration::from_secs(3)).await;
                writer.write_all(b"x").await?;
            }
            #[allow(unreachable_code)]
            std::io::Result::Ok(())
        });
        let mut answer = String::new();
        reader.read_to_string(&mut answer).await.ok();
        assert_eq!(task.await.unwrap(), Ended::TooSlow);
        assert_eq!(started.elapsed().as_secs(), HEAD_TIME.as_secs());
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", text.len())));

        // One that says nothing, and one that says nothing more: closed without a word.
        (far, _) = serving(&room, router());
        let mut nothing = Vec::new();
        far.read_to_end(&mut nothing).await.unwrap();
        assert!(nothing.is_empty());
        (far, _) = serving(&room, router());
        far.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("hello"), "{answer}");
        assert_eq!(room.numbers().held, 0);
    }

    #[tokio::test]
    async fn half_a_head_is_displaced_by_the_next_and_an_answer_under_way_is_not() {
        let room = Room::new("test", bounds(1));
        let (mut half, task) = serving(&room, router());
        half.write_all(b"GET / HT").await.unwrap();
        let (entered, mut is_entered) = tokio::sync::mpsc::channel(1);
        let (go_on, wait) = tokio::sync::watch::channel(());
        let slow = move |request: Request| {
            let (entered, mut wait) = (entered.clone(), wait.clone());
            async move {
                let connection = request.extensions().get::<Connection>().unwrap();
                connection.firm();
                entered.send(()).await.unwrap();
                wait.changed().await.ok();
                "done"
            }
        };
        let (mut asker, _) = serving(&room, Router::new().route("/", get(slow)));
        assert_eq!(task.await.unwrap(), Ended::Displaced);
        asker
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        is_entered.recv().await.unwrap();
        assert!(room.enter(Source::host([10, 0, 0, 2].into()), 1).is_err());
        go_on.send(()).unwrap();
        let mut answer = vec![0; 4096];
        let read = asker.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
        // Answered: idle again, and the next may have its place.
        let mut next = room.enter(Source::host([10, 0, 0, 2].into()), 1);
        while next.is_err() {
            tokio::task::yield_now().await;
            next = room.enter(Source::host([10, 0, 0, 2].into()), 1);
        }
        let mut rest = Vec::new();
        asker.read_to_end(&mut rest).await.unwrap();
    }

    #[tokio::test]
    async fn who_finds_no_place_is_told() {
        let (near, mut far) = tokio::io::duplex(4096);
        refuse(near).await;
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 "));
        assert!(head.contains(&format!("Content-Length: {}", text.len())));
    }
}
