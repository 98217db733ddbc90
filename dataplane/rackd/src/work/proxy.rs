//! The metadata proxy: connections that shards handed over because their path is the region's
//! (`/MAAS/...`; and the rack's own `/metrics`), served as HTTP/1.1 and passed on over the pooled, authenticated link to a region.
//!
//! The rack says who asks, and only the rack: `X-Muster-Client-Address` is the peer's address, and where
//! the rack knows whose it is ([`crate::attest`]), `X-Muster-Client-Mac` and `X-Muster-Client-Vlan` attest
//! the machine. What a client sends under these names is removed. A client that uses another card's address is refused.
//!
//! A request goes to the next region when one did not answer, if nothing of it was sent or if it is
//! idempotent and has no body, and again to the first when none did, until the deadline: then the client gets 503
//! with Retry-After. Connections are
//! answered with `Connection: close`: the shard gave the socket away for good.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};
use wire::ethernet::Mac;

use super::upstream::{BoxError, Failed, Pool, RequestBody, ResponseBody};
use super::{Counter, Counters as WorkCounters, Metrics};
use crate::attest::{Attester, Card, Dispute, Verdict};

pub const CLIENT_ADDRESS: HeaderName = HeaderName::from_static("x-muster-client-address");
pub const CLIENT_MAC: HeaderName = HeaderName::from_static("x-muster-client-mac");
pub const CLIENT_VLAN: HeaderName = HeaderName::from_static("x-muster-client-vlan");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Connections at once. Each holds a socket and some buffers; ten thousand machines that boot together
/// come in turns of this many, and the rest is told to come back.
pub const CONNECTIONS_MAX: usize = 2_048;
/// Longest request body: a commissioning result with its logs is a few MiB.
const BODY_BYTES_MAX: u64 = 64 << 20;
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// For the whole head to arrive, between stretches of a body, and for a client that takes nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const STRETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// For one connection in all; a large image does not come this way.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// For the head of a region's answer: cloud-init waits longer, and asks again.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// For one region of several, where another may be asked instead.
const ONE_REGION_TIMEOUT: Duration = Duration::from_secs(8);
/// Between two rounds of all regions, when none of them answered.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const RETRY_AFTER_SECS: u64 = 5;

const DISPUTED: &str =
    "This address is another network card's: nothing is answered to it from this one.\n";

/// A connection that left a shard for good.
pub struct HandedOff {
    pub socket: OwnedFd,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// What the shard has read already.
    pub read: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub connections: Counter,
    /// Answered 503 at once: [`CONNECTIONS_MAX`] are open.
    pub refused: Counter,
    pub requests: Counter,
    /// Requests whose client this rack could attest.
    pub attested: Counter,
    /// 403: the client uses another card's address.
    pub disputed: Counter,
    pub answered: Counter,
    /// Tries at a further region.
    pub retried: Counter,
    /// 503: no region answered.
    pub unavailable: Counter,
    /// 404, 413: not ours, too large.
    pub rejected: Counter,
    /// Connections that ended by a limit of time or broke.
    pub broken: Counter,
}

type Answer = UnsyncBoxBody<Bytes, BoxError>;

struct Proxy {
    pool: Arc<Pool>,
    attester: Attester,
    metrics: Metrics,
    counters: Arc<WorkCounters>,
    /// To the link thread.
    reports: mpsc::Sender<shard::Event>,
    answer_deadline: Duration,
}

/// Serves until the mailbox ends and the last connection is done.
pub async fn run(
    inbox: mpsc::Receiver<HandedOff>,
    pool: Arc<Pool>,
    attester: Attester,
    metrics: Metrics,
    counters: Arc<WorkCounters>,
    reports: mpsc::Sender<shard::Event>,
) {
    let answer_deadline = ANSWER_DEADLINE;
    let proxy = Arc::new(Proxy {
        pool,
        attester,
        metrics,
        counters,
        reports,
        answer_deadline,
    });
    serve(inbox, proxy, CONNECTIONS_MAX).await;
}

async fn serve(mut inbox: mpsc::Receiver<HandedOff>, proxy: Arc<Proxy>, connections_max: usize) {
    let room = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        let handed = tokio::select! {
            handed = inbox.recv() => handed,
            Some(_) = connections.join_next() => continue,
        };
        let Some(handed) = handed else { break };
        let counters = &proxy.counters.proxy;
        counters.connections.add(1);
        match room.clone().try_acquire_owned() {
            Ok(place) => {
                let proxy = proxy.clone();
                connections.spawn(async move {
                    proxy.connection(handed).await;
                    drop(place);
                });
            }
            Err(_) => {
                counters.refused.add(1);
                refuse(handed);
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// A short answer without a task: what the socket does not take at once is not worth a wait.
pub(super) fn refuse(handed: HandedOff) {
    use std::io::Write;
    let mut stream = std::net::TcpStream::from(handed.socket);
    let _ = stream.set_nonblocking(true);
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: {RETRY_AFTER_SECS}\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

fn adopt(socket: OwnedFd) -> io::Result<TcpStream> {
    // A machine that was switched off in the middle leaves a connection that never ends by itself.
    let patience = u32::try_from(STRETCH_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(&socket, patience)?;
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    TcpStream::from_std(stream)
}

impl Proxy {
    async fn connection(self: Arc<Self>, handed: HandedOff) {
        let HandedOff {
            socket,
            peer,
            local,
            read,
        } = handed;
        let frame = uring::opened_by(&socket);
        let stream = match adopt(socket) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, %peer, "connection lost at hand-over");
                self.counters.proxy.broken.add(1);
                return;
            }
        };
        let stream = Rewound {
            read: read.into(),
            stream,
        };
        let service = service_fn(|request| self.answer(request, peer, local, frame));
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        match timeout(CONNECTION_TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => self.counters.proxy.broken.add(1),
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        local: SocketAddr,
        frame: Option<[u8; 6]>,
    ) -> Result<Response<Answer>, Infallible> {
        let counters = &self.counters.proxy;
        counters.requests.add(1);
        let path = request.uri().path();
        let ours = path == "/MAAS" || path.starts_with("/MAAS/");
        if path == "/metrics" && request.method() == Method::GET {
            counters.answered.add(1);
            return Ok(text(StatusCode::OK, (self.metrics)()));
        }
        let announced = request.body().size_hint().lower();
        if !ours || request.method() == Method::CONNECT {
            counters.rejected.add(1);
            return Ok(plain(StatusCode::NOT_FOUND, "Not found.\n"));
        }
        if announced > BODY_BYTES_MAX {
            counters.rejected.add(1);
            return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "Too large.\n"));
        }
        let now = std::time::Instant::now();
        let card = match self.attester.attest(peer.ip(), frame, now) {
            Verdict::Card(card) => Some(card),
            Verdict::Unknown => None,
            Verdict::Disputed(dispute) => {
                counters.disputed.add(1);
                self.report(peer.ip().to_canonical(), dispute, now);
                return Ok(plain(StatusCode::FORBIDDEN, DISPUTED));
            }
        };
        if card.is_some() {
            counters.attested.add(1);
        }
        let request = outgoing(request, peer, local, card);
        Ok(match self.ask_regions(request, peer).await {
            Some(mut response) => {
                counters.answered.add(1);
                remove_hop_by_hop(response.headers_mut());
                response
            }
            None => {
                counters.unavailable.add(1);
                let mut response = plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "No region answers. Try again.\n",
                );
                // Spread, so that all machines of a rack do not come back in one second.
                let after = RETRY_AFTER_SECS + rand::random::<u64>() % RETRY_AFTER_SECS;
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(after));
                response
            }
        })
    }

    /// An event of the card that has the address; where there is no room for it, the counter has to do.
    fn report(&self, address: IpAddr, dispute: Dispute, now: std::time::Instant) {
        let event = shard::Event {
            kind: "ADDRESS_DISPUTED",
            mac: Some(dispute.rightful),
            address,
            detail: format!("by {}: refused", Mac(dispute.seen)).into(),
            at: now,
        };
        let _ = self.reports.try_send(event);
    }

    /// The first region's answer, in an order that keeps one machine at one region. `None`: no answer.
    async fn ask_regions(
        &self,
        request: Request<RequestBody>,
        peer: SocketAddr,
    ) -> Option<Response<Answer>> {
        let deadline = Instant::now() + self.answer_deadline;
        let seed = match peer.ip().to_canonical() {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits() as u64, // the low half is the host
        };
        // What can be said again, word for word, to the next region.
        let repeatable = (request.method().is_idempotent() && request.body().is_end_stream())
            .then(|| request.method().clone());
        let again =
            repeatable.map(|method| (method, request.uri().clone(), request.headers().clone()));
        let mut next = Some(request);
        let mut trouble = None;
        loop {
            let order = self.pool.order(seed);
            for (tried, region) in order.iter().enumerate() {
                let now = Instant::now();
                if now >= deadline {
                    break;
                }
                let Some(request) = next.take() else { break };
                if tried > 0 {
                    self.counters.proxy.retried.add(1);
                }
                let last = tried + 1 == order.len();
                let until = match again.is_some() && !last {
                    true => deadline.min(now + ONE_REGION_TIMEOUT),
                    false => deadline,
                };
                match self.pool.send(region, request, until).await {
                    // A region that is starting or cannot reach its database; another may.
                    Ok(response) if again.is_some() && is_gateway_trouble(response.status()) => {
                        trouble = Some(response);
                    }
                    Ok(response) => return Some(answer_of(response)),
                    Err(Failed { error, unsent }) => {
                        tracing::debug!(%error, "region passed over");
                        next = unsent.map(|request| *request);
                    }
                }
                if next.is_none()
                    && let Some((method, uri, headers)) = &again
                {
                    let mut request = Request::new(empty());
                    *request.method_mut() = method.clone();
                    *request.uri_mut() = uri.clone();
                    *request.headers_mut() = headers.clone();
                    next = Some(request);
                }
            }
            // A region that restarts is back in seconds, and cloud-init gives its boot up after the second 503.
            if next.is_none() || Instant::now() + AGAIN_AFTER >= deadline {
                break;
            }
            // The body of a refusal holds its connection until it is dropped.
            trouble = None;
            sleep(AGAIN_AFTER).await;
        }
        trouble.map(answer_of)
    }
}

fn answer_of(response: Response<ResponseBody>) -> Response<Answer> {
    response.map(|body| body.map_err(BoxError::from).boxed_unsync())
}

fn is_gateway_trouble(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// The client's request as the region gets it.
fn outgoing(
    request: Request<Incoming>,
    peer: SocketAddr,
    local: SocketAddr,
    card: Option<Card>,
) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    let headers = &mut parts.headers;
    remove_hop_by_hop(headers);
    headers.remove(header::EXPECT);
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.starts_with("x-muster-") || name.starts_with("x-forwarded-") || name == "forwarded"
        })
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
    let host = headers
        .remove(header::HOST)
        .or_else(|| local.to_string().parse().ok());
    if let Some(host) = host {
        headers.insert(FORWARDED_HOST, host);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    let mut set = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    let address = peer.ip().to_canonical().to_string();
    set(FORWARDED_FOR, address.clone());
    set(CLIENT_ADDRESS, address);
    if let Some(card) = card {
        set(CLIENT_MAC, Mac(card.mac).to_string());
        set(CLIENT_VLAN, card.vlan.to_string());
    }
    // Path and query only: the absolute form is for proxies, which a region is not.
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().unwrap_or_else(|_| http::Uri::from_static("/"));
    parts.version = http::Version::HTTP_11;
    let body = match body.is_end_stream() {
        true => empty(),
        false => Bounded::new(body).boxed_unsync(),
    };
    Request::from_parts(parts, body)
}

/// Headers about one connection, not about the message (RFC 9110 §7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn plain(status: StatusCode, words: &'static str) -> Response<Answer> {
    text(status, words)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Answer> {
    let body = Full::new(text.into());
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let value = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// A client's body with an end: of size, and of patience between two stretches.
struct Bounded {
    inner: Incoming,
    left: u64,
    patience: Pin<Box<Sleep>>,
}

impl Bounded {
    fn new(inner: Incoming) -> Self {
        Self {
            inner,
            left: BODY_BYTES_MAX,
            patience: Box::pin(sleep(STRETCH_TIMEOUT)),
        }
    }
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending if self.patience.as_mut().poll(cx).is_ready() => {
                return Poll::Ready(Some(Err("the client sends nothing".into())));
            }
            Poll::Pending => return Poll::Pending,
        };
        self.patience
            .as_mut()
            .reset(Instant::now() + STRETCH_TIMEOUT);
        let Some(Ok(frame)) = frame else {
            return Poll::Ready(frame.map(|result| result.map_err(BoxError::from)));
        };
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Some(Ok(frame)))
            }
            None => Poll::Ready(Some(Err("the body is too large".into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A socket with the octets in front that somebody else has read from it.
struct Rewound {
    read: Bytes,
    stream: TcpStream,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let length = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..length]);
        self.read.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
