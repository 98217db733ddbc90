//! Enrolment tokens: what an operator carries from the region to a new rack.
//!
//! The text is base64url of a small JSON object: the authority's fingerprint (so that the rack knows whom it talks
//! to), where regions listen, and a random secret. The region keeps only the secret's SHA-256.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use store::StoreError;

use crate::authority::Authority;

/// A token enrols one rack within this time.
pub const VALID: Duration = Duration::from_secs(24 * 3600);
/// Longest token text that is looked at.
const TEXT_BYTES_MAX: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Body {
    /// Hex SHA-256 of the authority's certificate.
    fingerprint: String,
    /// "host:port" of region listeners.
    regions: Vec<String>,
    /// 32 random octets, base64url.
    secret: String,
}

/// The text to show once. Not `Debug`: whoever has it can enrol.
pub struct Token(String);

impl Token {
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// Makes a token and records it. `regions`: "host:port" of rack-facing listeners, as racks reach them;
/// `hostname`: only a rack of that name may use it.
pub async fn create(
    db: &mut PgConnection,
    authority: &Authority,
    regions: &[String],
    hostname: Option<&str>,
    created_by: Option<i32>,
) -> Result<Token, StoreError> {
    let secret: [u8; 32] = rand::random();
    store::rack::create_token(db, &hash(&secret), hostname, created_by, VALID).await?;
    let body = Body {
        fingerprint: hex::encode(authority.fingerprint()),
        regions: regions.to_vec(),
        secret: URL_SAFE_NO_PAD.encode(secret),
    };
    let body = serde_json::to_vec(&body).expect("strings always serialise");
    Ok(Token(URL_SAFE_NO_PAD.encode(body)))
}

/// What a rack hands in: the whole token text. `None`: it is not a token.
pub(crate) fn hash_of_text(text: &str) -> Option<[u8; 32]> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let body = URL_SAFE_NO_PAD.decode(text.trim()).ok()?;
    let body: Body = serde_json::from_slice(&body).ok()?;
    let secret = URL_SAFE_NO_PAD.decode(body.secret).ok()?;
    (secret.len() == 32).then(|| hash(&secret))
}

fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_text_leads_back_to_the_stored_hash_and_hides_itself() {
        let db = store::testing::database().await;
        let mut db = db.pool.acquire().await.unwrap();
        let authority = crate::authority::tests::authority();
        let regions = ["region.example:5250".to_owned()];
        let token = create(&mut db, &authority, &regions, None, None)
            .await
            .unwrap();
        let hash = hash_of_text(token.text()).unwrap();
        assert_eq!(
            store::rack::enrol(&mut db, &hash, "r1")
                .await
                .unwrap()
                .unwrap()
                .len(),
            6
        );
        assert_eq!(format!("{token:?}"), "Token(secret)");
        for text in ["", "x", "e30", "!!!", &"A".repeat(TEXT_BYTES_MAX + 1)] {
            assert_eq!(hash_of_text(text), None, "{text}");
        }
    }
}
