//! The metadata proxy: connections that shards handed over because their path is the region's
//! (`/MAAS/...`; and the rack's own `/metrics`), served as HTTP/1.1 and passed on over the pooled, authenticated link to a region.
//!
//! The rack says who asks, and only the rack: `X-Muster-Client-Address` is the peer's address, and where
//! the rack knows whose it is ([`crate::attest`]), `X-Muster-Client-Mac` and `X-Muster-Client-Vlan` attest
//! the machine. What a client sends under these names is removed. A client that uses another card's address is refused; one
//! of whom it is not known is told to come back.
//!
//! A client's body is here before a region is asked, and a region's answer before the client takes it, both within a
//! budget ([`memory`]) and a pace (`pace`): a slow client slows nobody else. Connections, memory and requests at the
//! regions have a share for each source; clients whose card is a known machine's have memory and a lane of their own.
//!
//! A request goes to the next region when one did not answer, if nothing of it was sent or if it is
//! idempotent, and again to the first when none did, until the deadline: then the client gets 503
//! with Retry-After. Connections are
//! answered with `Connection: close`: the shard gave the socket away for good.

mod body;
mod pace;
mod turns;

use std::collections::HashMap;
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
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shard::{Manner, Place, Room, Shares, Source};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use wire::ethernet::Mac;

use body::{BODY_BYTES_MAX, Gathered, Refused};
use pace::Pace;
use turns::Turns;

use super::memory::{self, Memory};
use super::upstream::{BoxError, Failed, Lane, Pool, RequestBody, ResponseBody};
use super::{Counter, Counters as WorkCounters, Metrics};
use crate::attest::{Attester, Card, Dispute, Verdict};
use crate::metrics::Ends;

pub const CLIENT_ADDRESS: HeaderName = HeaderName::from_static("x-muster-client-address");
pub const CLIENT_MAC: HeaderName = HeaderName::from_static("x-muster-client-mac");
pub const CLIENT_VLAN: HeaderName = HeaderName::from_static("x-muster-client-vlan");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Connections at once. Each holds a socket and some buffers; ten thousand machines that boot together
/// come in turns of this many, and the rest is told to come back. Of one source so many.
pub const CONNECTIONS_MAX: usize = 2_048;
const CONNECTIONS_PER_SOURCE: usize = 64;
/// Requests of one source at the regions at a time; more wait for their turn.
const ASKING_PER_SOURCE: usize = 4;
/// Bodies in memory, of known machines and of all others: in all, and of one source.
const MACHINES_BYTES: (usize, usize) = (192 << 20, 64 << 20);
const STRANGERS_BYTES: (usize, usize) = (64 << 20, 16 << 20);
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// For the whole head to arrive, and for a client that is gone.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const GONE_TIMEOUT: Duration = Duration::from_secs(30);
/// For one connection in all; a large image does not come this way.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// For the head of a region's answer: cloud-init waits longer, and asks again.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// For one region of several, where another may be asked instead.
const ONE_REGION_TIMEOUT: Duration = Duration::from_secs(8);
/// Between two rounds of all regions, when none of them answered.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const RETRY_AFTER_SECS: u64 = 5;
/// How long, and how often, the kernel is asked whose address it is while it does not know. ARP takes 3 s to give up.
const UNCLEAR_TIME: Duration = Duration::from_secs(4);
const UNCLEAR_EVERY: Duration = Duration::from_millis(100);

const DISPUTED: &str =
    "This address is another network card's: nothing is answered to it from this one.\n";

/// A connection that left a shard for good.
pub struct HandedOff {
    pub socket: OwnedFd,
    pub ends: shard::Ends,
    /// Whose share it takes.
    pub source: Source,
    /// What the shard has read already.
    pub read: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub connections: Counter,
    /// Answered 503 at once: [`CONNECTIONS_MAX`] are open, or the source's share.
    pub refused: Counter,
    /// Ended for the sake of a source with fewer connections.
    pub displaced: Counter,
    /// Ended because the client sent its body, or took its answer, too slowly.
    pub slow: Counter,
    /// 503: no memory for the body.
    pub no_memory: Counter,
    pub requests: Counter,
    /// Requests whose client this rack could attest.
    pub attested: Counter,
    /// 403: the client uses another card's address.
    pub disputed: Counter,
    /// 503: not known whose address it is, however often it was asked.
    pub unclear: Counter,
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
    machines: Arc<Memory>,
    strangers: Arc<Memory>,
    turns: Turns,
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
    connections_max: usize,
) {
    let answer_deadline = ANSWER_DEADLINE;
    let proxy = Arc::new(Proxy {
        pool,
        machines: Memory::new(MACHINES_BYTES.0, MACHINES_BYTES.1),
        strangers: Memory::new(STRANGERS_BYTES.0, STRANGERS_BYTES.1),
        turns: Turns::new(ASKING_PER_SOURCE),
        attester,
        metrics,
        counters,
        reports,
        answer_deadline,
    });
    let per_source = CONNECTIONS_PER_SOURCE.min(connections_max / 8);
    let shares = Shares::new(connections_max, per_source, Manner::Holds);
    serve(inbox, proxy, shares).await;
}

async fn serve(mut inbox: mpsc::Receiver<HandedOff>, proxy: Arc<Proxy>, mut shares: Shares) {
    let mut connections = JoinSet::new();
    let mut open: HashMap<u32, (Place, AbortHandle)> = HashMap::new();
    let mut ids = HashMap::new();
    let mut next: u32 = 0;
    loop {
        let handed = tokio::select! {
            handed = inbox.recv() => handed,
            Some(ended) = connections.join_next_with_id() => {
                let task = match ended {
                    Ok((task, ())) => task,
                    Err(error) => error.id(),
                };
                let id: Option<u32> = ids.remove(&task);
                if let Some((place, _)) = id.and_then(|id| open.remove(&id)) {
                    shares.leave(place);
                }
                continue;
            }
        };
        let Some(handed) = handed else { break };
        let counters = &proxy.counters.proxy;
        counters.connections.add(1);
        let (source, address) = (handed.source, handed.ends.peer.ip());
        let standing = proxy.attester.standing(address, std::time::Instant::now());
        match shares.room(source, standing) {
            Room::Free => {}
            Room::Instead(victim) => {
                counters.displaced.add(1);
                if let Some((place, handle)) = open.remove(&victim) {
                    handle.abort();
                    shares.leave(place);
                }
            }
            Room::None => {
                counters.refused.add(1);
                refuse(handed);
                continue;
            }
        }
        next = next.wrapping_add(1);
        let handle = connections.spawn(proxy.clone().connection(handed));
        ids.insert(handle.id(), next);
        open.insert(next, (shares.enter(source, standing, next), handle));
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
    let patience = u32::try_from(GONE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
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
            ends,
            source,
            read,
        } = handed;
        let stream = match adopt(socket) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, peer = %ends.peer, "connection lost at hand-over");
                self.counters.proxy.broken.add(1);
                return;
            }
        };
        let pace = Arc::new(Pace::default());
        let stream = Rewound {
            read: read.into(),
            stream,
            pace: Arc::clone(&pace),
        };
        let service = service_fn(async |request| {
            let answer = self.answer(request, ends, source, &pace).await;
            pace.begin(false);
            Ok::<_, Infallible>(answer)
        });
        let connection = http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            ended = timeout(CONNECTION_TIMEOUT, connection) => match ended {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => self.counters.proxy.broken.add(1),
            },
            () = pace.lost() => self.counters.proxy.slow.add(1),
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        ends: shard::Ends,
        source: Source,
        pace: &Arc<Pace>,
    ) -> Response<Answer> {
        let shard::Ends { peer, local, frame } = ends;
        let counters = &self.counters.proxy;
        counters.requests.add(1);
        let path = request.uri().path();
        let ours = path == "/MAAS" || path.starts_with("/MAAS/");
        if path == "/metrics" && request.method() == Method::GET {
            let Some(page) = (self.metrics)(Ends { peer, local }) else {
                counters.rejected.add(1);
                return plain(StatusCode::FORBIDDEN, "Metrics are not for this address.\n");
            };
            counters.answered.add(1);
            return text(StatusCode::OK, page);
        }
        let announced = request.body().size_hint().lower();
        if !ours || request.method() == Method::CONNECT {
            counters.rejected.add(1);
            return plain(StatusCode::NOT_FOUND, "Not found.\n");
        }
        if announced > BODY_BYTES_MAX {
            counters.rejected.add(1);
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "Too large.\n");
        }
        let card = match self.verdict(peer.ip(), frame).await {
            Verdict::Card(card) => Some(card),
            Verdict::Unknown => None,
            Verdict::Unclear => {
                counters.unclear.add(1);
                return again_later("Not known now whose address this is. Try again.\n");
            }
            Verdict::Disputed(dispute) => {
                counters.disputed.add(1);
                self.report(peer.ip().to_canonical(), dispute);
                return plain(StatusCode::FORBIDDEN, DISPUTED);
            }
        };
        if card.is_some() {
            counters.attested.add(1);
        }
        let (memory, lane) = match card.is_some_and(|card| self.attester.knows(&card)) {
            true => (&self.machines, Lane::Machine),
            false => (&self.strangers, Lane::Stranger),
        };
        if announced > (memory.share_max() + memory::FREE_BYTES) as u64 {
            counters.rejected.add(1);
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "Too large.\n");
        }
        let (request, body) = outgoing(request, peer, local, card);
        let (body, charge) = match body::collect(body, memory.buffer(source)).await {
            Ok(collected) => collected,
            Err(refused) => return self.refusal(refused),
        };
        let deadline = Instant::now() + self.answer_deadline;
        let turn = self.turns.take(source, deadline).await;
        let answer = match &turn {
            Some(_) => self.ask_regions(request, body, lane, peer, deadline).await,
            None => None,
        };
        drop(charge);
        let gathered = match answer {
            Some(answer) => gather(answer, memory.buffer(source), pace).await,
            None => None,
        };
        match gathered {
            Some(mut response) => {
                counters.answered.add(1);
                remove_hop_by_hop(response.headers_mut());
                response
            }
            None => {
                counters.unavailable.add(1);
                again_later("No region answers. Try again.\n")
            }
        }
    }

    fn refusal(&self, refused: Refused) -> Response<Answer> {
        let counters = &self.counters.proxy;
        match refused {
            Refused::TooLarge => {
                counters.rejected.add(1);
                plain(StatusCode::PAYLOAD_TOO_LARGE, "Too large.\n")
            }
            Refused::NoMemory => {
                counters.no_memory.add(1);
                again_later("No memory for this body now. Try again.\n")
            }
            Refused::Late => {
                counters.slow.add(1);
                plain(StatusCode::REQUEST_TIMEOUT, "The body came too slowly.\n")
            }
            Refused::Broken => {
                counters.broken.add(1);
                plain(StatusCode::BAD_REQUEST, "The body broke off.\n")
            }
        }
    }

    /// Whose connection this is. What the kernel does not know now is asked again for a while: it asks the network when it
    /// acknowledges what the client has sent.
    async fn verdict(&self, address: IpAddr, frame: Option<[u8; 6]>) -> Verdict {
        let until = Instant::now() + UNCLEAR_TIME;
        loop {
            let now = std::time::Instant::now();
            let verdict = self.attester.attest(address, frame, now);
            if verdict != Verdict::Unclear || Instant::now() >= until {
                return verdict;
            }
            sleep(UNCLEAR_EVERY).await;
        }
    }

    /// An event of the card that has the address; where there is no room for it, the counter has to do.
    fn report(&self, address: IpAddr, dispute: Dispute) {
        let event = shard::Event {
            kind: "ADDRESS_DISPUTED",
            mac: Some(dispute.rightful),
            address,
            detail: format!("by {}: refused", Mac(dispute.seen)).into(),
            at: std::time::Instant::now(),
        };
        let _ = self.reports.try_send(event);
    }

    /// The first region's answer, in an order that keeps one machine at one region. `None`: no answer.
    async fn ask_regions(
        &self,
        request: Request<()>,
        body: Bytes,
        lane: Lane,
        peer: SocketAddr,
        deadline: Instant,
    ) -> Option<Response<ResponseBody>> {
        let seed = match peer.ip().to_canonical() {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits() as u64, // the low half is the host
        };
        // What can be said again, word for word, to the next region.
        let again = request.method().is_idempotent();
        let whole = |request: &Request<()>| request.clone().map(|()| full(&body));
        let mut next = Some(whole(&request));
        let mut trouble = None;
        loop {
            let order = self.pool.order(seed);
            for (tried, region) in order.iter().enumerate() {
                let now = Instant::now();
                if now >= deadline {
                    break;
                }
                let Some(asked) = next.take() else { break };
                if tried > 0 {
                    self.counters.proxy.retried.add(1);
                }
                let last = tried + 1 == order.len();
                let until = match again && !last {
                    true => deadline.min(now + ONE_REGION_TIMEOUT),
                    false => deadline,
                };
                match self.pool.send(region, asked, lane, until).await {
                    // A region that is starting or cannot reach its database; another may.
                    Ok(response) if again && is_gateway_trouble(response.status()) => {
                        trouble = Some(response);
                    }
                    Ok(response) => return Some(response),
                    Err(Failed { error, unsent }) => {
                        tracing::debug!(%error, "region passed over");
                        next = unsent.map(|request| *request);
                    }
                }
                if next.is_none() && again {
                    next = Some(whole(&request));
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
        trouble
    }
}

/// The answer with its body, as far as it may be held. `None`: the region broke off before the client was told anything.
async fn gather(
    response: Response<ResponseBody>,
    buffer: memory::Buffer,
    pace: &Arc<Pace>,
) -> Option<Response<Answer>> {
    let (parts, body) = response.into_parts();
    let body: Gathered = body::gather(body, buffer, pace).await?;
    Some(Response::from_parts(parts, body.boxed_unsync()))
}

fn again_later(words: &'static str) -> Response<Answer> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, words);
    // Spread, so that all machines of a rack do not come back in one second.
    let after = RETRY_AFTER_SECS + rand::random::<u64>() % RETRY_AFTER_SECS;
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(after));
    response
}

fn is_gateway_trouble(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// The client's request as the region gets it, and its body.
fn outgoing(
    request: Request<Incoming>,
    peer: SocketAddr,
    local: SocketAddr,
    card: Option<Card>,
) -> (Request<()>, Incoming) {
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
    let path = parts.uri.path_and_query().cloned();
    parts.uri = path.map_or_else(http::Uri::default, http::Uri::from);
    parts.version = http::Version::HTTP_11;
    // Its length is that of what is here.
    parts.headers.remove(header::CONTENT_LENGTH);
    (Request::from_parts(parts, ()), body)
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

fn full(body: &Bytes) -> RequestBody {
    let body = Full::new(body.clone());
    body.map_err(|never| match never {}).boxed_unsync()
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

/// A socket with the octets in front that somebody else has read from it.
struct Rewound {
    read: Bytes,
    stream: TcpStream,
    pace: Arc<Pace>,
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
        let written = Pin::new(&mut self.stream).poll_write(cx, octets);
        if let Poll::Ready(Ok(bytes)) = written {
            self.pace.took(bytes);
        }
        written
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
