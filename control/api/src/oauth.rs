//! OAuth 1.0 PLAINTEXT as MAAS uses it (RFC 5849 §3.4.4, §3.5): reading the parameters, and the rules of time.
//!
//! Pure. The consumer's secret is always empty, so the signature is `&` and the token's secret. Parameters come in
//! the Authorization header, the query or a form body; order and realm do not matter.

use percent_encoding::percent_decode_str;

use crate::body::Form;
use crate::error::ApiError;

/// Seconds by which a timestamp may differ from our clock, both ways.
pub const THRESHOLD_SECS: i64 = 300;
/// Longest value of one parameter that is looked at, decoded.
const VALUE_BYTES_MAX: usize = 256;

/// The credentials of a request, not yet checked. Not `Debug`: it holds the token's secret.
pub struct Signed {
    pub consumer_key: String,
    pub token_key: String,
    pub token_secret: String,
    pub timestamp: i64,
    pub nonce: String,
}

fn refused(reason: impl Into<String>) -> ApiError {
    ApiError::Unauthorized(reason.into())
}

/// From an Authorization header; `None` if it is of another scheme.
pub fn from_header(header: &str) -> Option<Result<Signed, ApiError>> {
    let (scheme, parameters) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    scheme.eq_ignore_ascii_case("OAuth").then(|| {
        assemble(|wanted| {
            parameters.split(',').find_map(|parameter| {
                let (name, value) = parameter.split_once('=')?;
                let value = value.trim();
                let value = value
                    .strip_prefix('"')
                    .and_then(|v| v.strip_suffix('"'))
                    .unwrap_or(value);
                (name.trim() == wanted)
                    .then(|| percent_decode_str(value).decode_utf8_lossy().into_owned())
            })
        })
    })
}

/// From a query or a form body; `None` if it has no OAuth parameters.
pub fn from_form(form: &Form) -> Option<Result<Signed, ApiError>> {
    form.has("oauth_token")
        .then(|| assemble(|name| form.get(name).map(str::to_owned)))
}

fn assemble(parameter: impl Fn(&str) -> Option<String>) -> Result<Signed, ApiError> {
    let required = |name: &'static str| {
        let value = parameter(name).filter(|value| !value.is_empty());
        match value {
            Some(value) if value.len() <= VALUE_BYTES_MAX && !value.contains('\0') => Ok(value),
            Some(_) => Err(refused(format!("Invalid {name}."))),
            None => Err(refused(format!("Missing {name}."))),
        }
    };
    let method = required("oauth_signature_method")?;
    if method != "PLAINTEXT" {
        return Err(refused("Signature method not supported: use PLAINTEXT."));
    }
    if parameter("oauth_version").is_some_and(|version| version != "1.0") {
        return Err(refused("OAuth version not supported: use 1.0."));
    }
    let timestamp = required("oauth_timestamp")?
        .parse()
        .map_err(|_| ApiError::bad_request("Invalid oauth_timestamp: not a whole number."))?;
    let signature = required("oauth_signature")?;
    let token_secret = signature
        .strip_prefix('&')
        .ok_or_else(|| refused("Invalid API key."))?;
    Ok(Signed {
        consumer_key: required("oauth_consumer_key")?,
        token_key: required("oauth_token")?,
        token_secret: token_secret.to_owned(),
        timestamp,
        nonce: required("oauth_nonce")?,
    })
}

/// Whether the timestamp is one of now. cloud-init mends its clock from the Date header of this refusal.
pub fn check_time(timestamp: i64, now: i64) -> Result<(), ApiError> {
    if now.abs_diff(timestamp) > THRESHOLD_SECS.unsigned_abs() {
        return Err(refused(format!(
            "Expired timestamp: given {timestamp} and now {now} has a greater difference than \
             threshold {THRESHOLD_SECS}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Limits;

    const GOOD: &str = r#"OAuth realm="OAuth", oauth_nonce="977", oauth_timestamp="1795362701", oauth_version="1.0", oauth_signature_method="PLAINTEXT", oauth_consumer_key="ck", oauth_token="tk", oauth_signature="%26ts""#;

    #[test]
    fn headers_of_all_clients_are_read() {
        let libmaas = GOOD;
        let cloud_init = r#"OAuth oauth_nonce="977",oauth_timestamp="1795362701",oauth_version="1.0",oauth_signature_method="PLAINTEXT",oauth_consumer_key="ck",oauth_token="tk",oauth_signature="%26ts""#;
        let gomaasapi = r#"OAuth oauth_signature_method="PLAINTEXT", oauth_timestamp="1795362701", oauth_nonce="977", oauth_consumer_key="ck", oauth_token="tk", oauth_signature="%26ts", realm="MAAS+API""#;
        let unquoted = "oauth oauth_signature=&ts,oauth_token=tk,oauth_consumer_key=ck,oauth_timestamp=1795362701,oauth_nonce=977,oauth_signature_method=PLAINTEXT";
        for header in [libmaas, cloud_init, gomaasapi, unquoted] {
            let signed = from_header(header)
                .expect("OAuth")
                .unwrap_or_else(|error| panic!("{error:?}"));
            assert_eq!(
                (
                    signed.consumer_key,
                    signed.token_key,
                    signed.token_secret,
                    signed.nonce
                ),
                ("ck".into(), "tk".into(), "ts".into(), "977".into()),
                "{header}"
            );
            assert_eq!(signed.timestamp, 1_795_362_701);
        }
        let query = "oauth_nonce=977&oauth_timestamp=1795362701&oauth_signature_method=PLAINTEXT&oauth_consumer_key=ck&oauth_token=tk&oauth_signature=%26ts&a=1";
        let form = Form::urlencoded(query.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(
            from_form(&form)
                .unwrap()
                .unwrap_or_else(|error| panic!("{error:?}"))
                .token_secret,
            "ts"
        );
        assert!(from_form(&Form::default()).is_none());
        assert!(from_header("Basic abc").is_none());
        assert!(from_header("").is_none());
    }

    #[test]
    fn wrong_headers_are_refused() {
        let long = "9".repeat(VALUE_BYTES_MAX + 1);
        let cases = [
            (r#"oauth_nonce="977", "#, "", false),
            (r#"oauth_nonce="977""#, r#"oauth_nonce="""#, false),
            (
                r#"oauth_nonce="977""#,
                &format!(r#"oauth_nonce="{long}""#),
                false,
            ),
            (r#"oauth_nonce="977""#, r#"oauth_nonce="%00""#, false),
            ("PLAINTEXT", "HMAC-SHA1", false),
            (r#""1.0""#, r#""2.0""#, false),
            ("%26ts", "ts", false),
            ("1795362701", "soon", true),
            ("1795362701", "17953627010000000000000000000", true),
        ];
        for (from, to, is_bad_request) in cases {
            let header = GOOD.replace(from, to);
            assert_ne!(header, GOOD, "{from}");
            let error = from_header(&header).expect("OAuth").err().expect("refused");
            assert_eq!(
                matches!(error, ApiError::BadRequest(_)),
                is_bad_request,
                "{header}"
            );
        }
        assert!(matches!(
            from_header("OAuth"),
            Some(Err(ApiError::Unauthorized(_)))
        ));
    }

    #[test]
    fn time_has_a_threshold_both_ways() {
        for (timestamp, fine) in [
            (1000, true),
            (700, true),
            (699, false),
            (1300, true),
            (1301, false),
            (i64::MIN, false),
            (i64::MAX, false),
        ] {
            assert_eq!(check_time(timestamp, 1000).is_ok(), fine, "{timestamp}");
        }
    }
}
