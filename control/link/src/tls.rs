//! TLS of the region's two rack-facing ports: 1.3 only, client certificates of our own authority.
//!
//! Nothing is resumed: each connection shows its certificate, and the caller asks the store whether it still stands.

use std::sync::{Arc, RwLock};

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::StartError;
use crate::authority::{Authority, Peer};

/// This process's server certificate; replaced while it serves.
#[derive(Debug)]
pub struct ServerIdentity {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerIdentity {
    pub fn new(identity: Arc<CertifiedKey>) -> Arc<Self> {
        Arc::new(Self {
            current: RwLock::new(identity),
        })
    }

    pub fn replace(&self, identity: Arc<CertifiedKey>) {
        *self
            .current
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = identity;
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self
            .current
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

/// Who may finish a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Racks only: port 5251.
    Racks,
    /// Also a host that has no certificate yet: port 5250, where it can only enrol.
    Anyone,
}

/// Server side for a rack-facing port. Whether a certificate was revoked is not TLS's matter here.
pub fn server_config(
    authority: &Authority,
    identity: Arc<ServerIdentity>,
    admit: Admit,
) -> Result<ServerConfig, StartError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(authority.certificate().clone())
        .map_err(StartError::Tls)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let verifier: Arc<dyn ClientCertVerifier> = match admit {
        Admit::Racks => verifier.build(),
        Admit::Anyone => verifier.allow_unauthenticated().build(),
    }
    .map_err(|error| StartError::Tls(rustls::Error::General(error.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(StartError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(identity);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The rack at the other end of a finished handshake; `None`: it showed no certificate, or not a rack's.
pub fn peer(connection: &rustls::ServerConnection) -> Option<Peer> {
    let certificate: &CertificateDer<'_> = connection.peer_certificates()?.first()?;
    Peer::of(certificate)
}
