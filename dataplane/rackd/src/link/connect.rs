//! One Cap'n Proto connection to a region: TCP, TLS, and the task that drives it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use capnp::message::ReaderOptions;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use futures::{AsyncReadExt, FutureExt};
use rpc::muster_capnp::door;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;

use super::tls::region_name;

/// Each of TCP and TLS gets this long.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Of one message; the largest are an attach's rows (about 100 octets each) and a big image's manifest.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Where a region listens, as it was told to us.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = ();

    /// "host:port" or "[v6]:port".
    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        if host.is_empty() || host.len() > 255 {
            return Err(());
        }
        Ok(Endpoint {
            host: host.to_owned(),
            port: port.parse().map_err(|_| ())?,
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no answer within {} s", CONNECT_TIME.as_secs())]
    Timeout,
    #[error("connecting")]
    Tcp(#[source] std::io::Error),
    #[error("TLS")]
    Tls(#[source] std::io::Error),
}

/// An open connection; it closes when this is dropped.
pub struct Connection {
    pub door: door::Client,
    /// Cancelled when the connection is over, however that came.
    pub closed: CancellationToken,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
        self.closed.cancel();
    }
}

/// Connects; must run inside a `LocalSet`.
pub async fn connect(
    endpoint: &Endpoint,
    config: Arc<ClientConfig>,
) -> Result<Connection, ConnectError> {
    let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
    let tcp = tokio::time::timeout(CONNECT_TIME, tcp)
        .await
        .map_err(|_| ConnectError::Timeout)?
        .map_err(ConnectError::Tcp)?;
    tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
    let tls = TlsConnector::from(config).connect(region_name(), tcp);
    let stream = tokio::time::timeout(CONNECT_TIME, tls)
        .await
        .map_err(|_| ConnectError::Timeout)?
        .map_err(ConnectError::Tls)?;

    let (reader, writer) = stream.compat().split();
    let mut options = ReaderOptions::new();
    options
        .traversal_limit_in_words(Some(MESSAGE_BYTES_MAX / 8))
        .nesting_limit(16);
    let network = twoparty::VatNetwork::new(
        futures::io::BufReader::new(reader),
        futures::io::BufWriter::new(writer),
        Side::Client,
        options,
    );
    let mut system = RpcSystem::new(Box::new(network), None);
    let door = system.bootstrap(Side::Server);
    let closed = CancellationToken::new();
    let over = closed.clone().drop_guard();
    let driver = tokio::task::spawn_local(async move {
        let _over = over;
        // capnp-rpc has places that panic on messages no honest peer sends; it costs that connection, not the rack.
        match AssertUnwindSafe(system).catch_unwind().await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "region connection ended"),
            Err(_) => tracing::error!("region connection ended: its handler panicked"),
        }
    });
    Ok(Connection {
        door,
        closed,
        driver: driver.abort_handle(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_host_and_a_port() {
        for (text, host) in [
            ("region:5250", "region"),
            ("10.0.0.1:5250", "10.0.0.1"),
            ("[fd00::1]:5250", "fd00::1"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, 5250));
            assert_eq!(endpoint.to_string(), text);
        }
        for text in ["", "region", ":5250", "region:", "region:99999"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
