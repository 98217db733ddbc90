//! HTTPS to the regions, with the rack's certificate: pooled keep-alive HTTP/1.1, at most
//! [`CONNECTIONS_PER_REGION`] to one regiond.
//!
//! A permit covers a request until its response body has been read to the end; only then does the
//! connection go back to the idle ones. So connections are bounded by permits, and a request waits for
//! a permit rather than opening one connection more. Permits are of [`Lane`]s: image fills have their own, and whoever
//! is no known machine gets at most half of those that are left. Which region is asked is the caller's choice; the
//! pool offers an order that spreads load and puts regions that failed just now last.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

/// Connections, and so requests at once, to one regiond process: those of fills, those of clients, and of these the
/// strangers'.
pub const CONNECTIONS_PER_REGION: usize = FILLS_MAX + CLIENTS_MAX;
pub const FILLS_MAX: usize = 8;
const CLIENTS_MAX: usize = 24;
const STRANGERS_MAX: usize = 12;
/// A regiond that accepts nothing within this is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Younger than the region's own keep-alive limit, so that we close first.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How long a region that failed is asked last.
const DOUBT: Duration = Duration::from_secs(5);
/// Regions remembered that are no longer listed; beyond it the pool forgets all of those.
const STALE_HOSTS_MAX: usize = 64;

/// A regiond process, by its rack HTTP port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
type Sender = SendRequest<RequestBody>;

/// Why a region did not answer a request.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the rack has no certificate yet")]
    NotEnrolled,
    #[error("connecting to region {region}")]
    Connect {
        region: Region,
        #[source]
        source: io::Error,
    },
    #[error("region {region} did not answer in time")]
    Timeout { region: Region },
    #[error("asking region {region}")]
    Request {
        region: Region,
        #[source]
        source: hyper::Error,
    },
}

/// For whom a region is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The image cache.
    Fill,
    /// A client whose card is a machine's that the rack knows.
    Machine,
    /// Any other.
    Stranger,
}

/// A request that failed. `unsent` gives it back when the region has seen nothing of it, so that another
/// region may be asked whatever its method.
pub struct Failed {
    pub error: UpstreamError,
    pub unsent: Option<Box<Request<RequestBody>>>,
}

pub struct Pool {
    tls: watch::Receiver<Option<Arc<rustls::ClientConfig>>>,
    regions: watch::Receiver<Arc<[Region]>>,
    hosts: Mutex<HashMap<Region, Arc<Host>>>,
}

struct Host {
    fills: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    doubted_until: Mutex<Option<Instant>>,
}

/// Of one lane, or of two where one is part of the other.
struct Permit {
    _inner: OwnedSemaphorePermit,
    _outer: Option<OwnedSemaphorePermit>,
}

struct Idle {
    sender: Sender,
    since: Instant,
    /// The certificate it was made with; a renewed one makes it stale.
    config: Arc<rustls::ClientConfig>,
}

impl Pool {
    pub fn new(
        tls: watch::Receiver<Option<Arc<rustls::ClientConfig>>>,
        regions: watch::Receiver<Arc<[Region]>>,
    ) -> Self {
        Self {
            tls,
            regions,
            hosts: Mutex::default(),
        }
    }

    /// Every listed region once, in the order to try: turned by `seed` to spread load, those that failed
    /// just now last.
    pub fn order(&self, seed: u64) -> Vec<Region> {
        let listed = self.regions.borrow().clone();
        let mut order: Vec<Region> = listed.to_vec();
        if !order.is_empty() {
            let turn = seed % order.len() as u64;
            order.rotate_left(usize::try_from(turn).unwrap_or_default());
        }
        let now = Instant::now();
        order.sort_by_key(|region| self.host(region).is_doubted(now));
        order
    }

    /// Sends `request` (path and headers; `Host` is set here) to `region`, and waits for the head of its
    /// response until `deadline`.
    pub async fn send(
        &self,
        region: &Region,
        mut request: Request<RequestBody>,
        lane: Lane,
        deadline: Instant,
    ) -> Result<Response<ResponseBody>, Failed> {
        let host = self.host(region);
        let Some(config) = self.tls.borrow().clone() else {
            let unsent = Some(Box::new(request));
            return Err(Failed {
                error: UpstreamError::NotEnrolled,
                unsent,
            });
        };
        let timeout = || UpstreamError::Timeout {
            region: region.clone(),
        };
        let Ok(Some(permit)) = timeout_at(deadline, host.permit(lane)).await else {
            return Err(Failed {
                error: timeout(),
                unsent: Some(Box::new(request)),
            });
        };
        if let Ok(value) = region.to_string().parse() {
            request.headers_mut().insert(http::header::HOST, value);
        }
        loop {
            let (mut sender, fresh) = match host.take_idle(&config) {
                Some(sender) => (sender, false),
                None => match connect(region, &config, deadline).await {
                    Ok(sender) => (sender, true),
                    Err(error) => {
                        host.doubt();
                        return Err(Failed {
                            error,
                            unsent: Some(Box::new(request)),
                        });
                    }
                },
            };
            match timeout_at(deadline, sender.try_send_request(request)).await {
                Ok(Ok(response)) => {
                    host.trust();
                    let back = Back {
                        sender,
                        permit,
                        host,
                        config,
                    };
                    return Ok(response.map(|inner| ResponseBody {
                        inner,
                        back: Some(back),
                    }));
                }
                Ok(Err(mut failed)) => match failed.take_message() {
                    // The region closed an idle connection just as we took it.
                    Some(unsent) if !fresh => request = unsent,
                    unsent => {
                        host.doubt();
                        let source = failed.into_error();
                        let error = UpstreamError::Request {
                            region: region.clone(),
                            source,
                        };
                        return Err(Failed {
                            error,
                            unsent: unsent.map(Box::new),
                        });
                    }
                },
                Err(_) => {
                    host.doubt();
                    return Err(Failed {
                        error: timeout(),
                        unsent: None,
                    });
                }
            }
        }
    }

    fn host(&self, region: &Region) -> Arc<Host> {
        let mut hosts = lock(&self.hosts);
        if let Some(host) = hosts.get(region) {
            return host.clone();
        }
        let listed = self.regions.borrow().clone();
        if hosts.len() >= listed.len() + STALE_HOSTS_MAX {
            hosts.retain(|known, _| listed.contains(known));
        }
        let host = Arc::new(Host {
            fills: Arc::new(Semaphore::new(FILLS_MAX)),
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            idle: Mutex::default(),
            doubted_until: Mutex::default(),
        });
        hosts.insert(region.clone(), host.clone());
        host
    }
}

impl Host {
    /// None never comes: the semaphores are not closed.
    async fn permit(&self, lane: Lane) -> Option<Permit> {
        let acquire = |semaphore: &Arc<Semaphore>| semaphore.clone().acquire_owned();
        Some(match lane {
            Lane::Fill => Permit {
                _inner: acquire(&self.fills).await.ok()?,
                _outer: None,
            },
            Lane::Machine => Permit {
                _inner: acquire(&self.clients).await.ok()?,
                _outer: None,
            },
            Lane::Stranger => {
                let outer = acquire(&self.strangers).await.ok()?;
                Permit {
                    _inner: acquire(&self.clients).await.ok()?,
                    _outer: Some(outer),
                }
            }
        })
    }

    fn take_idle(&self, config: &Arc<rustls::ClientConfig>) -> Option<Sender> {
        let mut idle = lock(&self.idle);
        // The youngest first: it is the least likely to have been closed, and the old ones age out.
        while let Some(last) = idle.pop() {
            if last.since.elapsed() < IDLE_MAX
                && Arc::ptr_eq(&last.config, config)
                && last.sender.is_ready()
            {
                return Some(last.sender);
            }
        }
        None
    }

    fn is_doubted(&self, now: Instant) -> bool {
        lock(&self.doubted_until).is_some_and(|until| now < until)
    }

    fn doubt(&self) {
        *lock(&self.doubted_until) = Some(Instant::now() + DOUBT);
    }

    fn trust(&self) {
        *lock(&self.doubted_until) = None;
    }
}

/// Nothing panics while one of these locks is held; if it did, the data would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connect(
    region: &Region,
    config: &Arc<rustls::ClientConfig>,
    deadline: Instant,
) -> Result<Sender, UpstreamError> {
    let failed = |source| UpstreamError::Connect {
        region: region.clone(),
        source,
    };
    let until = deadline.min(Instant::now() + CONNECT_TIMEOUT);
    let stream = timeout_at(until, async {
        let stream = TcpStream::connect((region.host.as_str(), region.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(region.host.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(config.clone())
            .connect(name, stream)
            .await
    })
    .await
    .map_err(|_| UpstreamError::Timeout {
        region: region.clone(),
    })?
    .map_err(failed)?;
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| UpstreamError::Request {
            region: region.clone(),
            source,
        })?;
    // It ends when the sender and its response are dropped; its errors reach them.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// A response body that gives its connection back once it has been read to the end, and closes it when
/// it is dropped before.
pub struct ResponseBody {
    inner: Incoming,
    back: Option<Back>,
}

struct Back {
    sender: Sender,
    permit: Permit,
    host: Arc<Host>,
    config: Arc<rustls::ClientConfig>,
}

impl ResponseBody {
    fn give_back(&mut self) {
        if let Some(Back {
            sender,
            permit,
            host,
            config,
        }) = self.back.take()
        {
            lock(&host.idle).push(Idle {
                sender,
                since: Instant::now(),
                config,
            });
            drop(permit);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.back = None,
            // With a known length the last frame is the end; nobody need ask again.
            Some(Ok(_)) if self.inner.is_end_stream() => self.give_back(),
            Some(Ok(_)) => {}
            None => self.give_back(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A response without a body is never polled.
        if self.inner.is_end_stream() {
            self.give_back();
        }
    }
}
