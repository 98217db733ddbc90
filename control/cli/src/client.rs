//! A client of the region's REST API: one signed request, one answer.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode, Url, header, redirect};
use serde_json::Value;

use crate::output::{clean, complain};

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

/// The region said no. Other errors are of the way there.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}

/// Tries in a row, a second apart, of those who watch.
const PATIENCE: u32 = 60;

/// For those who watch: a region that restarts, or a network that fails for a moment, is waited for. `None`: not now.
pub fn patient<T>(failures: &mut u32, asked: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    let error = match asked {
        Ok(answer) => {
            *failures = 0;
            return Ok(Some(answer));
        }
        Err(error) => error,
    };
    let passes = match error.downcast_ref::<Refusal>() {
        Some(refusal) => {
            refusal.status.is_server_error() || refusal.status == StatusCode::TOO_MANY_REQUESTS
        }
        None => true,
    };
    if !passes || *failures == PATIENCE {
        return Err(error);
    }
    if *failures == 0 {
        complain(format_args!("{error:#}; trying again"));
    }
    *failures += 1;
    Ok(None)
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
        let url = url.trim().trim_end_matches('/');
        let url = url.strip_suffix("/MAAS").unwrap_or(url).to_owned();
        let parsed = Url::parse(&url).ok();
        let is_region = |parsed: &Url| {
            matches!(parsed.scheme(), "http" | "https")
                && parsed.has_host()
                && parsed.username().is_empty()
                && parsed.password().is_none()
        };
        if !parsed.as_ref().is_some_and(is_region) {
            // It may hold a password: it is not repeated.
            bail!(
                "a region's address is http://HOST:5240 or https://HOST, without a user or password"
            );
        }
        let http = reqwest::Client::builder()
            // A redirected POST or DELETE becomes a GET, which changes nothing and looks well.
            .redirect(redirect::Policy::none())
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(std::time::Duration::from_secs(10))
            .timeout(std::time::Duration::from_secs(300))
            .build()
            .context("making an HTTP client")?;
        Ok(Self { http, url, key })
    }

    /// An object or a list.
    pub async fn get(&self, path: &str, query: Fields<'_>) -> anyhow::Result<Value> {
        let request = self
            .http
            .request(Method::GET, self.address(path))
            .query(query);
        let answer = self.answer(request, path).await?;
        if !answer.is_object() && !answer.is_array() {
            bail!("{}", self.no_region(path));
        }
        Ok(answer)
    }

    pub async fn list(&self, path: &str, query: Fields<'_>) -> anyhow::Result<Vec<Value>> {
        match self.get(path, query).await? {
            Value::Array(rows) => Ok(rows),
            _ => bail!("{}", self.no_region(path)),
        }
    }

    /// The events of a page, the oldest first.
    pub async fn events(&self, query: Fields<'_>) -> anyhow::Result<Vec<Value>> {
        let mut page = self.get("events/", query).await?;
        let Some(Value::Array(mut events)) = page.get_mut("events").map(Value::take) else {
            bail!("{}", self.no_region("events/"));
        };
        events.sort_by_key(event_id);
        Ok(events)
    }

    fn no_region(&self, path: &str) -> String {
        let url = &self.url;
        format!(
            "what answers at {url} is no region: its answer to {path} is not what a region says"
        )
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
        if status.is_redirection() {
            let location = response.headers().get(header::LOCATION);
            let to = location
                .and_then(|to| to.to_str().ok())
                .unwrap_or("elsewhere");
            let to = clean(to);
            bail!(
                "{} sends to {to} ({}): log in there if that is the region",
                self.url,
                status.as_u16()
            );
        }
        let body = response
            .text()
            .await
            .with_context(|| format!("reading {path}"))?;
        if !status.is_success() {
            return Err(Refusal {
                status,
                text: refusal(status, &body),
            }
            .into());
        }
        match serde_json::from_str(&body) {
            Ok(answer) => Ok(answer),
            // Some operations answer a word ("OK") or nothing.
            Err(_) if is_word(&body) => Ok(Value::String(body)),
            Err(_) => bail!("{}", self.no_region(path)),
        }
    }
}

pub fn event_id(event: &Value) -> u64 {
    event.get("id").and_then(Value::as_u64).unwrap_or(0)
}

/// Whether it may be a region's word, and not the page of something else.
fn is_word(body: &str) -> bool {
    body.trim().len() <= 200 && are_words(body)
}

/// One line that is neither a page nor JSON. A refusal may name all that goes along with what is deleted.
fn are_words(body: &str) -> bool {
    let body = body.trim();
    body.len() <= 16 << 10 && !body.starts_with(['<', '{', '[']) && !body.contains('\n')
}

/// The region's own words where it has some, the status where it has none.
fn refusal(status: StatusCode, body: &str) -> String {
    let fields = match serde_json::from_str::<Value>(body) {
        Ok(Value::Object(fields)) => fields,
        _ if !are_words(body) || body.trim().is_empty() => {
            return format!("the region answered {status}{}", hint(status));
        }
        _ => {
            let words = clean(body.trim());
            return format!("{words} ({}){}", status.as_u16(), hint(status));
        }
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
        "{} ({}){}",
        clean(&lines.collect::<Vec<_>>().join("\n")),
        status.as_u16(),
        hint(status)
    )
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => ": `muster login URL` takes another key",
        _ => "",
    }
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
    fn a_regions_address_has_a_scheme_and_no_password() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for good in [
            "http://region:5240",
            "https://region/MAAS/",
            " http://[fd00::1]:5240/ ",
        ] {
            assert!(Client::new(good, None).is_ok(), "{good}");
        }
        for bad in [
            "",
            "region:5240",
            "region",
            "ftp://region",
            "http://",
            "http://admin:hush@region:5240",
        ] {
            let error = Client::new(bad, None).err().expect(bad).to_string();
            assert!(!error.contains("hush"), "{error}");
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
            (
                502,
                "<html>\n<h1>Bad Gateway</h1>",
                "the region answered 502 Bad Gateway",
            ),
            (
                401,
                "Authorization Error: 'Invalid API key.'",
                "Authorization Error: 'Invalid API key.' (401): `muster login URL` takes another key",
            ),
            (409, "\u{1b}[2Jowned", "\u{fffd}[2Jowned (409)"),
        ];
        for (status, body, want) in cases {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(refusal(status, body), want);
        }
    }
}
