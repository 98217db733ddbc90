//! MAAS API keys and the OAuth 1.0 PLAINTEXT header that goes with each request (RFC 5849 §3.4.4, §3.5.1).

use std::fs::File;
use std::io::Read;
use std::time::SystemTime;

use anyhow::{Context, Result};

/// `consumer_key:token_key:token_secret`. The consumer secret is always empty.
#[derive(Clone)]
pub struct ApiKey {
    consumer: String,
    token: String,
    secret: String,
}

impl ApiKey {
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.trim().splitn(3, ':').map(str::to_owned);
        let mut next = || parts.next().filter(|part| !part.is_empty());
        let (consumer, token, secret) = (next(), next(), next());
        let all = consumer.zip(token).zip(secret);
        // The text may be most of a key: it is not repeated.
        let ((consumer, token), secret) = all.context("that is not an API key of three parts")?;
        Ok(Self {
            consumer,
            token,
            secret,
        })
    }

    /// As one string, to print it where the user asked for it.
    pub fn text(&self) -> String {
        format!("{}:{}:{}", self.consumer, self.token, self.secret)
    }

    pub fn header(&self) -> Result<String> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .context("the clock stands before 1970")?
            .as_secs();
        Ok(format!(
            "OAuth oauth_nonce=\"{}\", oauth_timestamp=\"{now}\", oauth_version=\"1.0\", \
             oauth_signature_method=\"PLAINTEXT\", oauth_consumer_key=\"{}\", oauth_token=\"{}\", \
             oauth_signature=\"%26{}\"",
            random_hex(16)?,
            encode(&self.consumer),
            encode(&self.token),
            encode(&encode(&self.secret)),
        ))
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKey({})", self.consumer)
    }
}

/// `octets` random octets, as twice as many hexadecimal digits.
pub fn random_hex(octets: usize) -> Result<String> {
    let mut bytes = vec![0; octets];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(hex::encode(bytes))
}

/// Percent-encoding (RFC 3986 §2.3: all but the unreserved characters).
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// An `application/x-www-form-urlencoded` body. A repeated name is a list.
pub fn form(pairs: &[(&str, &str)]) -> String {
    let encoded: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
        .collect();
    encoded.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_signs_and_hides_itself() {
        let key = ApiKey::parse("ck:tk:s%t\n").expect("a key");
        let header = key.header().expect("a header");
        assert!(header.contains("oauth_consumer_key=\"ck\""), "{header}");
        assert!(
            header.contains("oauth_signature=\"%26s%2525t\""),
            "{header}"
        );
        assert!(!format!("{key:?}").contains("s%t"));
        for bad in ["", "a:b", "a:b:", ":b:c"] {
            assert!(ApiKey::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(
            form(&[("a", "x y"), ("b", "1&2=3"), ("a", "é")]),
            "a=x%20y&b=1%262%3D3&a=%C3%A9"
        );
    }
}
