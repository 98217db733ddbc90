//! A client of the region's REST API: one signed request, one answer.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// Unreserved characters of RFC 5849 §3.6 stay as they are.
const OAUTH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// An API key as MAAS writes it: `consumer:token:secret`.
#[derive(Clone)]
pub struct ApiKey {
    consumer: String,
    token: String,
    secret: String,
}

impl std::str::FromStr for ApiKey {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().split(':').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(consumer), Some(token), Some(secret), None) => Ok(Self {
                consumer,
                token,
                secret,
            }),
            _ => bail!("an API key has three parts, consumer:token:secret"),
        }
    }
}

impl ApiKey {
    /// OAuth 1.0 PLAINTEXT (RFC 5849 §3.4.4): the signature is `&` and the token's secret.
    fn authorization(&self) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |past| past.as_secs());
        let nonce: u128 = rand::random();
        let signature = format!("&{}", self.secret);
        let quoted = |text: &str| utf8_percent_encode(text, OAUTH).to_string();
        format!(
            "OAuth oauth_version=\"1.0\", oauth_signature_method=\"PLAINTEXT\", \
             oauth_consumer_key=\"{}\", oauth_token=\"{}\", oauth_signature=\"{}\", \
             oauth_nonce=\"{nonce:032x}\", oauth_timestamp=\"{now}\"",
            quoted(&self.consumer),
            quoted(&self.token),
            quoted(&signature),
        )
    }
}

pub struct Client {
    http: reqwest::Client,
    /// Without the API's own path: `http://region:5240`.
    url: String,
    key: Option<ApiKey>,
}

pub type Fields<'a> = &'a [(&'a str, String)];

impl Client {
    pub fn new(url: &str, key: Option<ApiKey>) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/');
        let url = url.strip_suffix("/MAAS").unwrap_or(url).to_owned();
        let http = reqwest::Client::builder()
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(std::time::Duration::from_secs(10))
            .timeout(std::time::Duration::from_secs(300))
            .build()
            .context("making an HTTP client")?;
        Ok(Self { http, url, key })
    }

    pub async fn get(&self, path: &str, query: Fields<'_>) -> anyhow::Result<Value> {
        let request = self
            .http
            .request(Method::GET, self.address(path))
            .query(query);
        self.answer(request, path).await
    }

    pub async fn post(&self, path: &str, fields: Fields<'_>) -> anyhow::Result<Value> {
        let request = self
            .http
            .request(Method::POST, self.address(path))
            .form(fields);
        self.answer(request, path).await
    }

    pub async fn put(&self, path: &str, fields: Fields<'_>) -> anyhow::Result<Value> {
        let request = self
            .http
            .request(Method::PUT, self.address(path))
            .form(fields);
        self.answer(request, path).await
    }

    pub async fn put_bytes(&self, path: &str, octets: Vec<u8>) -> anyhow::Result<Value> {
        let request = self
            .http
            .request(Method::PUT, self.address(path))
            .header("content-type", "application/octet-stream")
            .body(octets);
        self.answer(request, path).await
    }

    pub async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.answer(self.http.request(Method::DELETE, self.address(path)), path)
            .await
    }

    /// `machines/` is under the API; a path with a leading slash is taken as it is.
    fn address(&self, path: &str) -> String {
        match path.strip_prefix('/') {
            Some(rest) => format!("{}/{rest}", self.url),
            None => format!("{}/MAAS/api/2.0/{path}", self.url),
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder, path: &str) -> anyhow::Result<Value> {
        let request = match &self.key {
            Some(key) => request.header("authorization", key.authorization()),
            None => request,
        };
        let response = request
            .send()
            .await
            .with_context(|| format!("asking {}", self.url))?;
        let status = response.status();
        let body = response
            .text()
            .await
            .with_context(|| format!("reading {path}"))?;
        if !status.is_success() {
            bail!("{}", refusal(status, &body));
        }
        // Some operations answer a word ("OK") or nothing.
        Ok(serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }
}

/// The region's own words where it has some, the status where it has none.
fn refusal(status: StatusCode, body: &str) -> String {
    let fields = match serde_json::from_str::<Value>(body) {
        Ok(Value::Object(fields)) => fields,
        _ if body.trim().is_empty() => return format!("the region answered {status}"),
        _ => return format!("{} ({})", body.trim(), status.as_u16()),
    };
    let lines = fields.iter().map(|(field, messages)| {
        let text = match messages {
            Value::Array(messages) => messages
                .iter()
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join(" "),
            other => other.to_string(),
        };
        format!("{field}: {text}")
    });
    format!(
        "{} ({})",
        lines.collect::<Vec<_>>().join("\n"),
        status.as_u16()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_three_parts() {
        assert!("a:b:c".parse::<ApiKey>().is_ok());
        for bad in ["", "a", "a:b", "a:b:c:d"] {
            assert!(bad.parse::<ApiKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_signature_is_percent_encoded() {
        let key: ApiKey = "ck:tk:s+/".parse().expect("three parts");
        assert!(
            key.authorization()
                .contains("oauth_signature=\"%26s%2B%2F\"")
        );
    }

    #[test]
    fn refusals_are_told_in_the_regions_words() {
        let cases = [
            (
                400,
                r#"{"cidr": ["Required.", "Odd."]}"#,
                "cidr: Required. Odd. (400)",
            ),
            (409, "No machine available.", "No machine available. (409)"),
            (500, "", "the region answered 500 Internal Server Error"),
        ];
        for (status, body, want) in cases {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(refusal(status, body), want);
        }
    }
}
