//! Enrolment: a one-time token and a certificate request in, an identity out.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, KeyPair};
use rpc::refusal;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::connect::{ConnectError, Endpoint, connect};
use super::identity::Identity;
use super::tls;

const CALL_TIME: Duration = Duration::from_secs(15);

/// An enrolment token's content. Not `Debug`: it has the secret in its text.
pub struct Token {
    text: String,
    fingerprint: [u8; 32],
    regions: Vec<Endpoint>,
}

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("the enrolment token cannot be read: copy all of it, on one line")]
    Token,
    /// The region's own words; another try with this token does not help.
    #[error("{0}")]
    Refused(String),
    #[error("no region of the token answers (last tried: {endpoint})")]
    Unreachable {
        endpoint: Endpoint,
        #[source]
        source: ConnectError,
    },
    #[error("the region did not answer as a region does: {0}")]
    Region(String),
    #[error("making a key and a certificate request")]
    Key(#[source] rcgen::Error),
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
}

impl EnrolError {
    pub fn is_final(&self) -> bool {
        matches!(self, EnrolError::Token | EnrolError::Refused(_))
    }
}

impl Token {
    pub fn parse(text: &str) -> Result<Token, EnrolError> {
        #[derive(Deserialize)]
        struct Body {
            fingerprint: String,
            regions: Vec<String>,
        }
        let text = text.trim();
        let body = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| EnrolError::Token)?;
        let body: Body = serde_json::from_slice(&body).map_err(|_| EnrolError::Token)?;
        let mut fingerprint = [0; 32];
        hex::decode_to_slice(body.fingerprint, &mut fingerprint).map_err(|_| EnrolError::Token)?;
        let regions: Vec<Endpoint> = body.regions.iter().filter_map(|r| r.parse().ok()).collect();
        if regions.is_empty() {
            return Err(EnrolError::Token);
        }
        Ok(Token {
            text: text.to_owned(),
            fingerprint,
            regions,
        })
    }

    pub fn regions(&self) -> &[Endpoint] {
        &self.regions
    }

    /// Hex SHA-256 of the text: tells tokens apart without keeping them.
    pub fn hash(&self) -> String {
        hex::encode(Sha256::digest(&self.text))
    }
}

/// A new key and the request for its certificate (the name in it is not looked at).
pub fn key_and_request() -> Result<(PrivateKeyDer<'static>, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok((
        PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        request.der().to_vec(),
    ))
}

/// Tries the token's regions in turn until one answers.
pub async fn enrol(token: &Token, hostname: &str) -> Result<Identity, EnrolError> {
    let config = Arc::new(tls::enrolment_config(token.fingerprint).map_err(EnrolError::Tls)?);
    let mut last = EnrolError::Token;
    for endpoint in &token.regions {
        match connect(endpoint, Arc::clone(&config)).await {
            Ok(connection) => return enrol_at(&connection.door, token, hostname).await,
            Err(source) => {
                tracing::warn!(%endpoint, error = &source as &dyn std::error::Error, "enrolling");
                last = EnrolError::Unreachable {
                    endpoint: endpoint.clone(),
                    source,
                };
            }
        }
    }
    Err(last)
}

async fn enrol_at(
    door: &rpc::muster_capnp::door::Client,
    token: &Token,
    hostname: &str,
) -> Result<Identity, EnrolError> {
    let (key, csr) = key_and_request().map_err(EnrolError::Key)?;
    let mut request = door.enrol_request();
    let mut params = request.get();
    params.set_token(&token.text);
    params.set_hostname(hostname);
    params.set_csr(&csr);
    let answer = tokio::time::timeout(CALL_TIME, request.send().promise)
        .await
        .map_err(|_| EnrolError::Region("no answer to the enrolment".into()))?
        .map_err(|error| match error.extra.find(refusal::ENROLMENT) {
            Some(at) => EnrolError::Refused(error.extra[at..].to_owned()),
            None => EnrolError::Region(error.extra),
        })?;
    let region = |error: capnp::Error| EnrolError::Region(error.extra);
    let answer = answer.get().map_err(region)?;
    let certificate = answer.get_certificate().map_err(region)?.to_vec();
    let authority = answer.get_authority().map_err(region)?.to_vec();
    let rack = answer
        .get_rack()
        .and_then(|rack| Ok(rack.to_str()?))
        .map_err(region)?;
    if Sha256::digest(&authority)[..] != token.fingerprint {
        return Err(EnrolError::Region(
            "it gave another authority than the token's".into(),
        ));
    }
    let (certificate, authority) = (
        CertificateDer::from(certificate),
        CertificateDer::from(authority),
    );
    Identity::new(key, certificate, authority, token.hash())
        .filter(|identity| identity.rack() == rack)
        .ok_or_else(|| EnrolError::Region("it gave a certificate that does not fit".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &str) -> String {
        URL_SAFE_NO_PAD.encode(body)
    }

    #[test]
    fn tokens_parse_or_say_so() {
        let fingerprint = "ab".repeat(32);
        let good = text(&format!(
            r#"{{"fingerprint":"{fingerprint}","regions":["r:5250"],"secret":"x"}}"#
        ));
        let token = Token::parse(&format!("  {good}\n")).ok().unwrap();
        assert_eq!(
            (token.fingerprint, token.regions()[0].port),
            ([0xab; 32], 5250)
        );
        for body in [
            "",
            "{}",
            r#"{"fingerprint":"ab","regions":["r:1"]}"#,
            &format!(r#"{{"fingerprint":"{fingerprint}","regions":[]}}"#),
        ] {
            assert!(
                matches!(Token::parse(&text(body)), Err(EnrolError::Token)),
                "{body}"
            );
        }
        assert!(Token::parse("not a token").is_err());
    }
}
