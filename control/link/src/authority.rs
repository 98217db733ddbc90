//! The region's own certificate authority: made once, kept sealed in PostgreSQL, shared by all regiond processes.
//!
//! It signs rack certificates (client use only, identity in a URI name) and each process's server certificate
//! (server use only). Nothing else trusts it. RFC 5280 §4.2.1.6 (alternative names), §4.2.1.12 (extended key use).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use store::seal::Sealer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::StartError;

/// Every region server certificate has this name, whatever address a rack dialled.
pub const REGION_NAME: &str = "muster-region";
/// A rack certificate's life; renewed when a third is left.
pub const RACK_CERTIFICATE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
pub const RACK_CERTIFICATE_RENEW: Duration =
    Duration::from_secs(RACK_CERTIFICATE_LIFE.as_secs() / 3);
/// A server certificate's life; made anew at a process's start and each week (`tls::ServerIdentity`).
const SERVER_CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// Certificates begin this long ago, for racks whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
/// A request for a P-256 key has about 250 octets, for RSA 4096 about 1,500.
const CSR_BYTES_MAX: usize = 8192;
/// The authority's name among the region's sealed secrets.
const SECRET_NAME: &str = "link authority";
const RACK_URI: &str = "muster:rack:";

/// What an accepted client certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub system_id: String,
    pub serial: Vec<u8>,
}

impl Peer {
    /// Reads a certificate whose chain is verified already; `None` if it is no rack's.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Peer> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let mut racks = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix(RACK_URI),
                _ => None,
            });
        let rack = racks.next()?;
        if racks.next().is_some() {
            return None;
        }
        let system_id: model::SystemId = rack.parse().ok()?;
        Some(Peer {
            system_id: system_id.to_string(),
            serial: parsed.raw_serial().to_vec(),
        })
    }
}

/// A certificate just made; record its serial before handing it out.
pub struct Issued {
    pub der: Vec<u8>,
    pub serial: Vec<u8>,
    pub not_after: OffsetDateTime,
}

/// Why a certificate request is not signed. The rack is told.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    #[error("the certificate request is too long")]
    TooLong,
    #[error("the certificate request cannot be read or its signature is wrong")]
    Malformed(#[source] rcgen::Error),
    #[error("signing the certificate")]
    Signing(#[source] rcgen::Error),
}

pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    fingerprint: [u8; 32],
}

impl Authority {
    /// Reads the authority, or makes it if this region has none.
    pub async fn open(pool: &sqlx::PgPool, sealer: &Sealer) -> Result<Authority, StartError> {
        let mut db = pool.acquire().await.map_err(store::StoreError::from)?;
        let secret = match store::seal::secret(&mut db, sealer, SECRET_NAME).await? {
            Some(secret) => secret,
            None => {
                let candidate = generate(OffsetDateTime::now_utc())?;
                store::seal::secret_or_insert(&mut db, sealer, SECRET_NAME, &candidate).await?
            }
        };
        Self::from_secret(&secret)
    }

    /// The secret: the certificate's length (4 octets, big-endian), the certificate, the PKCS #8 key.
    fn from_secret(secret: &[u8]) -> Result<Authority, StartError> {
        let corrupt = || {
            StartError::Store(store::StoreError::Corrupt {
                what: "link authority",
            })
        };
        let (length, rest) = secret.split_first_chunk::<4>().ok_or_else(corrupt)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (certificate, key) = rest.split_at_checked(length).ok_or_else(corrupt)?;
        let certificate = CertificateDer::from(certificate.to_vec());
        let key = KeyPair::try_from(key).map_err(StartError::Authority)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(StartError::Authority)?;
        let fingerprint = Sha256::digest(&certificate).into();
        Ok(Authority {
            certificate,
            issuer,
            fingerprint,
        })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the certificate's DER; tokens carry it.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// A rack's certificate for the key of its request. Whatever else the request asks for is not looked at.
    pub fn sign_rack(
        &self,
        system_id: &str,
        csr: &[u8],
        now: OffsetDateTime,
    ) -> Result<Issued, CsrError> {
        if csr.len() > CSR_BYTES_MAX {
            return Err(CsrError::TooLong);
        }
        let request = CertificateSigningRequestDer::from(csr);
        let mut request =
            CertificateSigningRequestParams::from_der(&request).map_err(CsrError::Malformed)?;
        let serial = random_serial();
        let mut params = params(system_id, &serial, now, RACK_CERTIFICATE_LIFE);
        let uri = format!("{RACK_URI}{system_id}")
            .try_into()
            .map_err(CsrError::Signing)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let not_after = params.not_after;
        request.params = params;
        let certificate = request.signed_by(&self.issuer).map_err(CsrError::Signing)?;
        Ok(Issued {
            der: certificate.der().to_vec(),
            serial: serial.to_vec(),
            not_after,
        })
    }

    /// A new key and certificate for this process's listeners, valid for `names` (hosts or addresses) and `REGION_NAME`.
    pub fn server_identity(
        &self,
        names: &[String],
        now: OffsetDateTime,
    ) -> Result<Arc<CertifiedKey>, StartError> {
        let key = KeyPair::generate().map_err(StartError::Authority)?;
        let mut params = params(REGION_NAME, &random_serial(), now, SERVER_CERTIFICATE_LIFE);
        let name = |text: &str| {
            text.try_into()
                .map(SanType::DnsName)
                .map_err(StartError::Authority)
        };
        params.subject_alt_names = vec![name(REGION_NAME)?];
        for text in names {
            params.subject_alt_names.push(match text.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => name(text)?,
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(StartError::Authority)?;
        // The authority travels along: an enrolling rack knows only its fingerprint.
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(StartError::Tls)?;
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}

/// A new authority, in the form of `Authority::from_secret`.
fn generate(now: OffsetDateTime) -> Result<Vec<u8>, StartError> {
    let key = KeyPair::generate().map_err(StartError::Authority)?;
    let mut params = params(
        "Muster region authority",
        &random_serial(),
        now,
        AUTHORITY_LIFE,
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(StartError::Authority)?;
    let certificate = certificate.der();
    let length = u32::try_from(certificate.len()).expect("a certificate has no 4 GiB");
    let mut secret = length.to_be_bytes().to_vec();
    secret.extend_from_slice(certificate);
    secret.extend_from_slice(key.serialized_der());
    Ok(secret)
}

fn params(name: &str, serial: &[u8], now: OffsetDateTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Sixteen octets of which the first is 1..=127: positive and with one encoding (RFC 5280 §4.1.2.2).
fn random_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x01;
    serial
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn authority() -> Authority {
        let secret = generate(OffsetDateTime::now_utc()).unwrap();
        Authority::from_secret(&secret).unwrap()
    }

    fn request(key: &KeyPair, names: Vec<String>) -> Vec<u8> {
        let params = CertificateParams::new(names).unwrap();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn a_signed_request_names_the_rack_and_nothing_it_asked_for() {
        let (authority, key) = (authority(), KeyPair::generate().unwrap());
        let csr = request(&key, vec!["muster-region".into()]);
        let now = OffsetDateTime::now_utc();
        let issued = authority.sign_rack("abc123", &csr, now).unwrap();
        let der = CertificateDer::from(issued.der);
        let peer = Peer::of(&der).unwrap();
        assert_eq!(
            peer,
            Peer {
                system_id: "abc123".into(),
                serial: issued.serial
            }
        );
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        let usage = parsed.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.client_auth && !usage.value.server_auth);
        assert_eq!(issued.not_after - now, RACK_CERTIFICATE_LIFE);
    }

    #[test]
    fn a_damaged_request_is_refused() {
        let (authority, key) = (authority(), KeyPair::generate().unwrap());
        let csr = request(&key, vec![]);
        for cut in [0, 1, csr.len() / 2, csr.len() - 1] {
            let result = authority.sign_rack("abc123", &csr[..cut], OffsetDateTime::now_utc());
            assert!(matches!(result, Err(CsrError::Malformed(_))), "{cut}");
        }
        let mut forged = csr.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(
            authority
                .sign_rack("abc123", &forged, OffsetDateTime::now_utc())
                .is_err()
        );
        let long = vec![0x30; CSR_BYTES_MAX + 1];
        let result = authority.sign_rack("abc123", &long, OffsetDateTime::now_utc());
        assert!(matches!(result, Err(CsrError::TooLong)));
    }

    #[test]
    fn other_certificates_name_no_rack() {
        let authority = authority();
        assert_eq!(Peer::of(authority.certificate()), None);
        let server = authority.server_identity(&["10.0.0.1".into()], OffsetDateTime::now_utc());
        assert_eq!(Peer::of(&server.unwrap().cert[0]), None);
        assert_eq!(Peer::of(&CertificateDer::from(vec![0u8; 40])), None);
    }
}
