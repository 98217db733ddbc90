//! Request bodies and queries to one kind of form: named texts, repeated names in order, and files.
//!
//! application/x-www-form-urlencoded, multipart/form-data and JSON objects. Every text is UTF-8 without NUL:
//! PostgreSQL holds no other.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use gate::{Full, Place};
use percent_encoding::percent_decode;
use serde_json::Value;

use crate::error::ApiError;
use crate::{multipart, shares};

/// How much of a request is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub body_bytes_max: usize,
    /// Fields and files together (Django's limit).
    pub fields_max: usize,
    pub name_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 2 << 20,
            fields_max: 1000,
            name_bytes_max: 256,
        }
    }
}

/// Why a body is no form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    #[error("Malformed multipart body: {0}.")]
    Multipart(&'static str),
    #[error("Malformed JSON body: an object is needed.")]
    Json,
    #[error("Too many fields.")]
    TooManyFields,
    #[error("The name of a field is too long.")]
    NameTooLong,
    #[error("The field {0} is not text.")]
    NotText(String),
    #[error("Unsupported content type.")]
    ContentType,
}

impl From<FormError> for ApiError {
    fn from(error: FormError) -> Self {
        ApiError::bad_request(error.to_string())
    }
}

/// An uploaded file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The field's name.
    pub name: String,
    pub filename: String,
    pub content: Bytes,
}

/// What a request says. Debug output is short: fields may be secrets.
#[derive(Clone, Default)]
pub struct Form {
    fields: Vec<(String, String)>,
    pub files: Vec<File>,
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.fields.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Form")
            .field("fields", &names)
            .field("files", &self.files.len())
            .finish()
    }
}

impl Form {
    pub fn from_fields(fields: Vec<(String, String)>) -> Self {
        Self {
            fields,
            files: Vec::new(),
        }
    }

    /// The last value of a field, as Django takes it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .rev()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }

    /// The last value, unless it is empty.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name)
            .map(str::trim)
            .filter(|value| !value.is_empty())
    }

    pub fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.filled(name).ok_or_else(|| ApiError::required(name))
    }

    /// Every value of a field, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields
            .iter()
            .filter(move |(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }

    /// Every value of a field that may also be one text with commas or spaces, empty ones left out.
    pub fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.all(name)
            .flat_map(|value| value.split([',', ' ']))
            .filter(|value| !value.is_empty())
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// None if it is not there or empty.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.filled(name) else {
            return Ok(None);
        };
        match Form::boolean_of(value) {
            Some(value) => Ok(Some(value)),
            None => Err(ApiError::field(
                name,
                "Enter a valid boolean: true or false.",
            )),
        }
    }

    /// Yes or no, in any of the spellings that MAAS's clients use.
    pub(crate) fn boolean_of(text: &str) -> Option<bool> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "on" | "yes" | "y" | "t" => Some(true),
            "false" | "0" | "off" | "no" | "n" | "f" | "none" | "null" => Some(false),
            _ => None,
        }
    }

    /// None if it is not there or empty.
    pub fn parsed<T: std::str::FromStr>(
        &self,
        name: &str,
        message: &str,
    ) -> Result<Option<T>, ApiError> {
        self.filled(name)
            .map(|value| value.parse().map_err(|_| ApiError::field(name, message)))
            .transpose()
    }

    pub fn integer(&self, name: &str) -> Result<Option<i32>, ApiError> {
        self.parsed(name, "Enter a whole number.")
    }

    fn push(&mut self, name: &str, value: String, limits: &Limits) -> Result<(), FormError> {
        if self.fields.len() + self.files.len() >= limits.fields_max {
            return Err(FormError::TooManyFields);
        }
        if name.len() > limits.name_bytes_max {
            return Err(FormError::NameTooLong);
        }
        if value.contains('\0') || name.contains('\0') {
            return Err(FormError::NotText(name.chars().take(64).collect()));
        }
        self.fields.push((name.to_owned(), value));
        Ok(())
    }

    /// `a=1&b=2` of a query or a body.
    pub fn urlencoded(text: &[u8], limits: &Limits) -> Result<Self, FormError> {
        let mut form = Form::default();
        for pair in text
            .split(|octet| *octet == b'&')
            .filter(|pair| !pair.is_empty())
        {
            let at = pair
                .iter()
                .position(|octet| *octet == b'=')
                .unwrap_or(pair.len());
            let name = decode(&pair[..at]).ok_or_else(|| FormError::NotText(String::new()))?;
            let value = decode(pair.get(at + 1..).unwrap_or_default())
                .ok_or_else(|| FormError::NotText(name.chars().take(64).collect()))?;
            form.push(&name, value, limits)?;
        }
        Ok(form)
    }

    /// A body of this Content-Type. Without one: urlencoded, as gomaasapi's empty POSTs are.
    pub fn parse(
        content_type: Option<&str>,
        body: &[u8],
        limits: &Limits,
    ) -> Result<Self, FormError> {
        let content_type = content_type.unwrap_or("application/x-www-form-urlencoded");
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        match media_type.to_ascii_lowercase().as_str() {
            "application/x-www-form-urlencoded" => Form::urlencoded(body, limits),
            "multipart/form-data" => {
                let boundary = multipart::boundary(content_type)?;
                Form::from_parts(multipart::parse(body, &boundary, limits)?, limits)
            }
            "application/json" => Form::json(body, limits),
            _ if body.is_empty() => Ok(Form::default()),
            _ => Err(FormError::ContentType),
        }
    }

    fn from_parts(parts: Vec<multipart::Part>, limits: &Limits) -> Result<Self, FormError> {
        let mut form = Form::default();
        for part in parts {
            match part.filename {
                Some(filename) => {
                    if part.name.len() > limits.name_bytes_max {
                        return Err(FormError::NameTooLong);
                    }
                    form.files.push(File {
                        name: part.name,
                        filename,
                        content: part.content.into(),
                    });
                }
                None => {
                    let value = String::from_utf8(part.content)
                        .map_err(|_| FormError::NotText(part.name.chars().take(64).collect()))?;
                    form.push(&part.name, value, limits)?;
                }
            }
        }
        Ok(form)
    }

    /// A JSON object: lists become repeated fields, objects stay JSON texts, null is nothing.
    fn json(body: &[u8], limits: &Limits) -> Result<Self, FormError> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Form::default());
        }
        let Ok(Value::Object(object)) = serde_json::from_slice(body) else {
            return Err(FormError::Json);
        };
        let mut form = Form::default();
        for (name, value) in object {
            match value {
                Value::Array(values) => {
                    for value in values {
                        form.push_json(&name, value, limits)?;
                    }
                }
                value => form.push_json(&name, value, limits)?,
            }
        }
        Ok(form)
    }

    fn push_json(&mut self, name: &str, value: Value, limits: &Limits) -> Result<(), FormError> {
        match value {
            Value::Null => Ok(()),
            Value::String(text) => self.push(name, text, limits),
            other => self.push(name, other.to_string(), limits),
        }
    }
}

fn decode(text: &[u8]) -> Option<String> {
    let spaced: Vec<u8> = text
        .iter()
        .map(|octet| if *octet == b'+' { b' ' } else { *octet })
        .collect();
    percent_decode(&spaced)
        .decode_utf8()
        .ok()
        .map(|text| text.into_owned())
}

/// For a form, and for each further mebibyte of a larger body.
const TIME: Duration = Duration::from_secs(15);

/// Reads a body of at most `bytes_max`, in its time, into the octets of `place`: what the place's source has of them is
/// bounded, and while the body is not all there another may take them.
pub async fn collect(body: Body, bytes_max: usize, place: &Place) -> Result<Bytes, ApiError> {
    let time = TIME * u32::try_from(bytes_max >> 20).unwrap_or(u32::MAX).max(1);
    let read = tokio::select! {
        () = place.displaced() => Err(shares::no_room(Full::All)),
        read = tokio::time::timeout(time, read(body, bytes_max, place)) => {
            read.unwrap_or(Err(ApiError::TooSlow))
        }
    };
    if read.is_ok() {
        place.firm();
    }
    read
}

async fn read(body: Body, bytes_max: usize, place: &Place) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut first = Bytes::new();
    let mut all: Vec<u8> = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| ApiError::bad_request("The request body broke off."))?;
        if first.len() + all.len() + chunk.len() > bytes_max {
            return Err(ApiError::TooLarge);
        }
        place.grow(chunk.len() as u64).map_err(shares::no_room)?;
        if first.is_empty() && all.is_empty() {
            first = chunk;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&chunk);
        }
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content_type: &str, body: &str) -> Result<Vec<(String, String)>, FormError> {
        let form = Form::parse(Some(content_type), body.as_bytes(), &Limits::default())?;
        Ok(form.fields)
    }

    #[test]
    fn every_kind_of_body_becomes_the_same_form() {
        let want = vec![
            ("a".to_owned(), "1 ä".to_owned()),
            ("a".to_owned(), "2".to_owned()),
        ];
        let cases = [
            ("application/x-www-form-urlencoded", "a=1+%C3%A4&&a=2"),
            (
                "Application/X-WWW-Form-Urlencoded; charset=utf-8",
                "a=1%20%C3%A4&a=2",
            ),
            ("application/json", r#"{"a": ["1 ä", 2], "b": null}"#),
            (
                "multipart/form-data; boundary=B",
                "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1 ä\r\n\
                 --B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n2\r\n--B--",
            ),
        ];
        for (content_type, body) in cases {
            assert_eq!(
                parse(content_type, body),
                Ok(want.clone()),
                "{content_type}"
            );
        }
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let cases = [
            ("application/json", "[1]"),
            ("application/json", "{\"a\""),
            ("text/xml", "<a/>"),
            ("application/x-www-form-urlencoded", "a=%00"),
            ("application/x-www-form-urlencoded", "a=%FF"),
            ("multipart/form-data", "--B--"),
        ];
        for (content_type, body) in cases {
            assert!(parse(content_type, body).is_err(), "{content_type} {body}");
        }
        assert_eq!(
            parse("application/x-www-form-urlencoded", &"a&".repeat(1001)),
            Err(FormError::TooManyFields)
        );
        assert_eq!(
            parse("application/x-www-form-urlencoded", &"a".repeat(257)),
            Err(FormError::NameTooLong)
        );
        assert_eq!(parse("text/xml", ""), Ok(vec![]));
    }

    #[test]
    fn fields_are_read_as_django_does() {
        let form = Form::urlencoded(
            b"a=1&a=2&b=&on=True&off=0&odd=maybe&macs=x,y&macs=z",
            &Limits::default(),
        )
        .unwrap();
        assert_eq!(form.get("a"), Some("2"));
        assert_eq!(form.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(form.list("macs").collect::<Vec<_>>(), ["x", "y", "z"]);
        assert_eq!((form.get("b"), form.filled("b")), (Some(""), None));
        assert_eq!(form.boolean("on").unwrap(), Some(true));
        assert_eq!(form.boolean("off").unwrap(), Some(false));
        assert_eq!(form.boolean("b").unwrap(), None);
        assert!(form.boolean("odd").is_err());
        assert_eq!(form.integer("a").unwrap(), Some(2));
        assert!(form.integer("odd").is_err());
    }

    fn room(total: u64, each: u64) -> std::sync::Arc<gate::Room> {
        let open = total;
        gate::Room::new("test", gate::Bounds { total, open, each })
    }

    fn place(room: &std::sync::Arc<gate::Room>, last: u8) -> Place {
        let source = gate::Source::host([10, 0, 0, last].into());
        room.enter(source, 0).unwrap()
    }

    #[tokio::test]
    async fn bodies_are_read_up_to_the_limit() {
        let room = room(100, 100);
        let place = place(&room, 1);
        let body = |text: &'static str| Body::from(text);
        assert_eq!(collect(body("abcd"), 4, &place).await.unwrap(), "abcd");
        assert!(matches!(
            collect(body("abcde"), 4, &place).await,
            Err(ApiError::TooLarge)
        ));
        let chunks = futures::stream::iter(["ab", "cd"].map(Ok::<_, std::io::Error>));
        let chunks = Body::from_stream(chunks);
        assert_eq!(collect(chunks, 4, &place).await.unwrap(), "abcd");
        drop(place);
        assert_eq!(room.numbers().held, 0);
    }

    #[tokio::test]
    async fn octets_of_bodies_have_a_share_per_source_and_slow_ones_give_way() {
        let room = room(10, 6);
        let slow = place(&room, 1);
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        sender
            .unbounded_send(Ok::<_, std::io::Error>("12345"))
            .unwrap();
        let stalled = tokio::spawn(async move {
            let body = Body::from_stream(receiver);
            collect(body, 100, &slow).await
        });
        while room.numbers().held < 5 {
            tokio::task::yield_now().await;
        }
        let quick = place(&room, 2);
        assert!(collect(Body::from("1234567"), 100, &quick).await.is_err());
        assert!(collect(Body::from("123456"), 100, &quick).await.is_ok());
        assert!(matches!(
            stalled.await.unwrap(),
            Err(ApiError::Unavailable(_))
        ));
        // What is whole and in use is nobody else's.
        let third = place(&room, 3);
        assert!(collect(Body::from("12345"), 100, &third).await.is_err());
        drop(quick);
        assert!(collect(Body::from("12345"), 100, &third).await.is_ok());
        drop(sender);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_its_time_in_all_and_not_per_octet() {
        let room = room(1 << 20, 1 << 20);
        let place = place(&room, 1);
        let trickle = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>("x"), ()))
        });
        let started = tokio::time::Instant::now();
        let read = collect(Body::from_stream(trickle), 1 << 20, &place).await;
        assert!(matches!(read, Err(ApiError::TooSlow)));
        assert_eq!(started.elapsed(), TIME);
    }
}
