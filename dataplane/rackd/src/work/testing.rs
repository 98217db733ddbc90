//! A region to test against: real TLS on loopback, client certificates required, faults on request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use ring::digest::{SHA256, digest};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::disk::Sha256;
use super::upstream::{Pool, Region};

/// One certificate authority, with a region's and a rack's TLS configuration.
pub struct Authority {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            (vec![certificate], key)
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let (chain, key) = issue("127.0.0.1");
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        let (chain, key) = issue("rack.test");
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        Self {
            server: Arc::new(server),
            client: Arc::new(client),
        }
    }
}

/// What a region does and what it saw.
#[derive(Default)]
pub struct Behaviour {
    pub files: Mutex<HashMap<Sha256, Bytes>>,
    /// Octets are altered in so many answers.
    pub wrong: AtomicU32,
    /// So many answers are this status instead.
    pub failing: AtomicU32,
    pub status: Mutex<StatusCode>,
    /// Answers nothing for so long.
    pub delay: Mutex<Duration>,
    pub requests: AtomicU32,
    pub connections: AtomicU32,
    /// Requests under way, and the most there ever were.
    pub open: AtomicU32,
    pub open_most: AtomicU32,
}

impl Behaviour {
    pub fn add(&self, octets: &[u8]) -> Sha256 {
        let sha256: Sha256 = digest(&SHA256, octets).as_ref().try_into().unwrap();
        self.files
            .lock()
            .unwrap()
            .insert(sha256, Bytes::copy_from_slice(octets));
        sha256
    }
}

pub struct TestRegion {
    pub region: Region,
    pub behaviour: Arc<Behaviour>,
    task: JoinHandle<()>,
}

impl Drop for TestRegion {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestRegion {
    pub async fn start(authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let behaviour = Arc::new(Behaviour::default());
        let task = tokio::spawn(accept(
            listener,
            authority.server.clone(),
            behaviour.clone(),
        ));
        Self {
            region: Region {
                host: "127.0.0.1".to_owned(),
                port,
            },
            behaviour,
            task,
        }
    }
}

/// A pool that knows these regions. The senders keep its channels alive.
pub struct TestPool {
    pub pool: Arc<Pool>,
    pub tls: watch::Sender<Option<Arc<ClientConfig>>>,
    pub regions: watch::Sender<Arc<[Region]>>,
}

pub fn pool(authority: &Authority, regions: &[Region]) -> TestPool {
    let (tls, tls_receiver) = watch::channel(Some(authority.client.clone()));
    let (regions, regions_receiver) = watch::channel(Arc::from(regions));
    TestPool {
        pool: Arc::new(Pool::new(tls_receiver, regions_receiver)),
        tls,
        regions,
    }
}

/// A region that is listed and does not exist.
pub fn dead_region() -> Region {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Region {
        host: "127.0.0.1".to_owned(),
        port: listener.local_addr().unwrap().port(),
    }
}

async fn accept(listener: TcpListener, config: Arc<ServerConfig>, behaviour: Arc<Behaviour>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (acceptor, behaviour) = (acceptor.clone(), behaviour.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            behaviour.connections.fetch_add(1, Ordering::Relaxed);
            let service = service_fn(|request| answer(request, behaviour.clone()));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    behaviour: Arc<Behaviour>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    behaviour.requests.fetch_add(1, Ordering::Relaxed);
    let open = behaviour.open.fetch_add(1, Ordering::Relaxed) + 1;
    behaviour.open_most.fetch_max(open, Ordering::Relaxed);
    let delay = *behaviour.delay.lock().unwrap();
    tokio::time::sleep(delay).await;
    let response = respond(request, &behaviour).await;
    behaviour.open.fetch_sub(1, Ordering::Relaxed);
    Ok(response)
}

async fn respond(request: Request<Incoming>, behaviour: &Behaviour) -> Response<Full<Bytes>> {
    if take(&behaviour.failing) {
        let mut response = Response::new(Full::default());
        *response.status_mut() = *behaviour.status.lock().unwrap();
        return response;
    }
    let path = request.uri().path().to_owned();
    let Some(name) = path.strip_prefix("/images/") else {
        return echo(request).await;
    };
    let mut sha256 = [0; 32];
    let known = hex::decode_to_slice(name, &mut sha256).is_ok();
    let file = behaviour
        .files
        .lock()
        .unwrap()
        .get(&sha256)
        .cloned()
        .filter(|_| known);
    let Some(file) = file else {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    };
    let range = request
        .headers()
        .get(header::RANGE)
        .map(|value| value.to_str().unwrap());
    let Some((first, last)) = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) else {
        return Response::new(Full::new(alter(file, behaviour)));
    };
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let part = alter(file.slice(first..=last), behaviour);
    Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(
            header::CONTENT_RANGE,
            format!("bytes {first}-{last}/{}", file.len()),
        )
        .body(Full::new(part))
        .unwrap()
}

fn alter(octets: Bytes, behaviour: &Behaviour) -> Bytes {
    if !take(&behaviour.wrong) || octets.is_empty() {
        return octets;
    }
    let mut octets = octets.to_vec();
    octets[0] ^= 1;
    octets.into()
}

/// Says what it got: one line for the request, one per header, then the body.
async fn echo(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
    }
    text.push('\n');
    match body.collect().await {
        Ok(body) => text.push_str(&String::from_utf8_lossy(&body.to_bytes())),
        Err(_) => text.push_str("(broken)"),
    }
    let mut response = Response::new(Full::new(text.into()));
    response
        .headers_mut()
        .insert("x-region", "yes".parse().unwrap());
    response
        .headers_mut()
        .insert(header::CONNECTION, "keep-alive".parse().unwrap());
    response
}

fn take(counter: &AtomicU32) -> bool {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok()
}
