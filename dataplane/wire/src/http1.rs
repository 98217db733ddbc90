//! HTTP/1.x request heads in, response heads out (RFC 9110, RFC 9112), as much as a file responder needs.
//!
//! No bodies, no chunked coding, no header storage: the few fields that decide something are read, the rest is skipped.
//! The octets stay with the caller, who hands them on untouched when a request is not for it.

use std::io::Write;

/// A longer head is refused with 431.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// More fields are refused with 431.
pub const HEADERS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Other,
}

/// One request head, borrowed from the received octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    pub method: Method,
    /// As sent: origin form, absolute form or `*`.
    pub target: &'a str,
    /// HTTP/1.0 or 1.1.
    pub minor_version: u8,
    /// As sent, with or without a port. UEFI HTTP boot leaves the port out.
    pub host: Option<&'a str>,
    /// A single satisfiable-looking byte range; `None` where absent, malformed, of several parts, of another unit or
    /// guarded by If-Range: the whole representation is then a correct answer (RFC 9110 §14.2).
    pub range: Option<Range>,
    /// The connection outlives this request (RFC 9112 §9.3).
    pub keep_alive: bool,
    /// A body follows the head.
    pub has_body: bool,
    /// Octets of the head, including its empty line.
    pub head_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// `first-last`, both included.
    Closed { first: u64, last: u64 },
    /// `first-`
    From { first: u64 },
    /// `-count`: the last octets.
    Suffix { count: u64 },
}

/// Why octets are no request this responder accepts. Each has its status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("malformed request")]
    Malformed,
    #[error("request head too long")]
    TooLong,
    #[error("HTTP version not supported")]
    Version,
}

impl Refused {
    pub fn status(self) -> Status {
        match self {
            Self::Malformed => Status::BadRequest,
            Self::TooLong => Status::HeadersTooLarge,
            Self::Version => Status::VersionNotSupported,
        }
    }
}

impl<'a> RequestHead<'a> {
    /// Reads one head from the front of `octets`; `Ok(None)` while it is not all there.
    pub fn parse(octets: &'a [u8]) -> Result<Option<Self>, Refused> {
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        // One octet more than the limit shows that the limit was passed.
        let window = &octets[..octets.len().min(HEAD_BYTES_MAX + 1)];
        let head_bytes = match request.parse(window) {
            Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
            Ok(httparse::Status::Complete(_)) => return Err(Refused::TooLong),
            Ok(httparse::Status::Partial) if window.len() > HEAD_BYTES_MAX => {
                return Err(Refused::TooLong);
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooLong),
            Err(httparse::Error::Version) => return Err(Refused::Version),
            Err(_) => return Err(Refused::Malformed),
        };
        let (Some(method), Some(target), Some(minor_version)) =
            (request.method, request.path, request.version)
        else {
            return Err(Refused::Malformed);
        };
        let mut head = Self {
            method: match method {
                "GET" => Method::Get,
                "HEAD" => Method::Head,
                _ => Method::Other,
            },
            target,
            minor_version,
            host: None,
            range: None,
            keep_alive: minor_version >= 1,
            has_body: false,
            head_bytes,
        };
        head.read_fields(request.headers)?;
        Ok(Some(head))
    }

    fn read_fields(&mut self, fields: &[httparse::Header<'a>]) -> Result<(), Refused> {
        let (mut ranges, mut conditional) = (0, false);
        for field in fields {
            let name = field.name;
            if name.eq_ignore_ascii_case("host") {
                // Two Host fields are an attack or a fault (RFC 9112 §3.2).
                if self.host.is_some() {
                    return Err(Refused::Malformed);
                }
                let host = str::from_utf8(field.value).map_err(|_| Refused::Malformed)?;
                self.host = Some(host.trim());
            } else if name.eq_ignore_ascii_case("connection") {
                for token in field.value.split(|&octet| octet == b',') {
                    let token = token.trim_ascii();
                    if token.eq_ignore_ascii_case(b"close") {
                        self.keep_alive = false;
                    } else if token.eq_ignore_ascii_case(b"keep-alive") && self.minor_version == 0 {
                        self.keep_alive = true;
                    }
                }
            } else if name.eq_ignore_ascii_case("range") {
                ranges += 1;
                self.range = parse_range(field.value);
            } else if name.eq_ignore_ascii_case("if-range") {
                conditional = true;
            } else if name.eq_ignore_ascii_case("content-length") {
                self.has_body |= field.value.trim_ascii() != b"0";
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                self.has_body = true;
            }
        }
        if conditional || ranges > 1 {
            self.range = None;
        }
        if self.minor_version >= 1 && self.host.is_none() {
            return Err(Refused::Malformed);
        }
        Ok(())
    }

    /// The path of the target: no scheme, no authority, no query. "/" at least, except for `*`.
    pub fn path(&self) -> &'a str {
        let target = self.target;
        let path = match target.split_once("://") {
            Some((scheme, rest)) if !scheme.contains('/') => {
                rest.find('/').map_or("/", |start| &rest[start..])
            }
            _ => target,
        };
        let end = path.find(['?', '#']).unwrap_or(path.len());
        &path[..end]
    }
}

/// `bytes=a-b`, `bytes=a-`, `bytes=-n`; `None` for everything else (RFC 9110 §14.1.2).
fn parse_range(value: &[u8]) -> Option<Range> {
    let text = str::from_utf8(value).ok()?.trim();
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        // `parse` alone would take a plus sign.
        if text.is_empty() || !text.bytes().all(|octet| octet.is_ascii_digit()) {
            return None;
        }
        text.parse().ok()
    };
    let (first, last) = (first.trim(), last.trim());
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => Some(Range::Suffix {
            count: number(last)?,
        }),
        (false, true) => Some(Range::From {
            first: number(first)?,
        }),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Range::Closed { first, last })
        }
    }
}

impl Range {
    /// (offset, length) in a representation of `size_bytes`; `None` is 416 (RFC 9110 §14.1.2).
    pub fn resolve(self, size_bytes: u64) -> Option<(u64, u64)> {
        match self {
            Self::Closed { first, last } if first < size_bytes => {
                Some((first, last.min(size_bytes - 1) - first + 1))
            }
            Self::From { first } if first < size_bytes => Some((first, size_bytes - first)),
            Self::Suffix { count } if count > 0 && size_bytes > 0 => {
                let length = count.min(size_bytes);
                Some((size_bytes - length, length))
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    PartialContent,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RangeNotSatisfiable,
    HeadersTooLarge,
    Unavailable,
    VersionNotSupported,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::PartialContent => "206 Partial Content",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RangeNotSatisfiable => "416 Range Not Satisfiable",
            Self::HeadersTooLarge => "431 Request Header Fields Too Large",
            Self::Unavailable => "503 Service Unavailable",
            Self::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

/// A response head to be written.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    pub status: Status,
    /// Octets of the body (of the part, for 206).
    pub content_bytes: u64,
    pub content_type: &'a str,
    /// For 206: (offset, size of the whole). For 416: offset is ignored.
    pub range: Option<(u64, u64)>,
    /// A strong entity tag, without its quotes.
    pub etag: Option<&'a str>,
    pub keep_alive: bool,
    /// Seconds, for 503.
    pub retry_after_secs: Option<u32>,
}

impl ResponseHead<'_> {
    /// Appends the head to `out`, which allocates only if its capacity is below about 400 octets.
    pub fn emit(&self, out: &mut Vec<u8>) {
        // Writing into a Vec cannot fail.
        let _ = write!(
            out,
            "HTTP/1.1 {}\r\nContent-Length: {}\r\n",
            self.status.line(),
            self.content_bytes
        );
        match (self.status, self.range) {
            (Status::PartialContent, Some((offset, size))) => {
                let last = offset + self.content_bytes.saturating_sub(1);
                let _ = write!(out, "Content-Range: bytes {offset}-{last}/{size}\r\n");
            }
            (Status::RangeNotSatisfiable, Some((_, size))) => {
                let _ = write!(out, "Content-Range: bytes */{size}\r\n");
            }
            _ => {}
        }
        if matches!(self.status, Status::Ok | Status::PartialContent) {
            let _ = write!(
                out,
                "Content-Type: {}\r\nAccept-Ranges: bytes\r\n",
                self.content_type
            );
        } else if self.content_bytes > 0 {
            let _ = write!(out, "Content-Type: {}\r\n", self.content_type);
        }
        if self.status == Status::MethodNotAllowed {
            out.extend_from_slice(b"Allow: GET, HEAD\r\n");
        }
        if let Some(etag) = self.etag {
            let _ = write!(out, "ETag: \"{etag}\"\r\n");
        }
        if let Some(seconds) = self.retry_after_secs {
            let _ = write!(out, "Retry-After: {seconds}\r\n");
        }
        let connection = if self.keep_alive {
            "keep-alive"
        } else {
            "close"
        };
        let _ = write!(out, "Connection: {connection}\r\n\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<RequestHead<'_>>, Refused> {
        RequestHead::parse(text.as_bytes())
    }

    #[test]
    fn heads_as_clients_send_them() {
        let uefi = "HEAD /images/bootx64.efi HTTP/1.1\r\nHost: 10.99.0.1\r\nUser-Agent: UefiHttpBoot/1.0\r\n\r\nGET";
        let head = parse(uefi).unwrap().unwrap();
        assert_eq!(
            (head.method, head.path()),
            (Method::Head, "/images/bootx64.efi")
        );
        assert_eq!(
            (head.host, head.keep_alive, head.has_body),
            (Some("10.99.0.1"), true, false)
        );
        assert_eq!(&uefi[head.head_bytes..], "GET");

        let cases = [
            // case                    request                                                      path  keep-alive body
            (
                "1.0 closes",
                "GET /a?b HTTP/1.0\r\n\r\n",
                "/a",
                false,
                false,
            ),
            (
                "1.0 keeps",
                "GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
                "/a",
                true,
                false,
            ),
            (
                "close among others",
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: TE, close\r\n\r\n",
                "/",
                false,
                false,
            ),
            (
                "absolute form",
                "GET http://h:1/x/y?q HTTP/1.1\r\nHost: h\r\n\r\n",
                "/x/y",
                true,
                false,
            ),
            (
                "absolute, no path",
                "GET http://h HTTP/1.1\r\nHost: h\r\n\r\n",
                "/",
                true,
                false,
            ),
            (
                "a URL in the query",
                "GET /p?u=http://x/ HTTP/1.1\r\nHost: h\r\n\r\n",
                "/p",
                true,
                false,
            ),
            (
                "body",
                "POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
                "/p",
                true,
                true,
            ),
            (
                "no body",
                "GET /p HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
                "/p",
                true,
                false,
            ),
        ];
        for (case, text, path, keep_alive, has_body) in cases {
            let head = parse(text).unwrap().unwrap();
            assert_eq!(
                (head.path(), head.keep_alive, head.has_body),
                (path, keep_alive, has_body),
                "{case}"
            );
        }
    }

    #[test]
    fn refused_heads() {
        let long = format!(
            "GET /{} HTTP/1.1\r\nHost: h\r\n\r\n",
            "a".repeat(HEAD_BYTES_MAX)
        );
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(HEADERS_MAX + 1)
        );
        let cases = [
            ("nonsense", "\x16\x03\x01\x02\0", Refused::Malformed),
            (
                "no host in 1.1",
                "GET / HTTP/1.1\r\n\r\n",
                Refused::Malformed,
            ),
            (
                "two hosts",
                "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                Refused::Malformed,
            ),
            ("version", "GET / HTTP/2.0\r\n\r\n", Refused::Version),
            ("long", long.as_str(), Refused::TooLong),
            ("many fields", many.as_str(), Refused::TooLong),
        ];
        for (case, text, want) in cases {
            assert_eq!(parse(text), Err(want), "{case}");
        }
        assert_eq!(parse("GET / HTTP/1.1\r\nHost: h\r\n"), Ok(None));
        assert_eq!(parse(""), Ok(None));
    }

    #[test]
    fn a_head_of_just_the_limit_is_taken_and_one_octet_more_is_not() {
        let of = |bytes: usize| {
            let empty = "GET / HTTP/1.1\r\nHost: h\r\nX: \r\n\r\n".len();
            let filler = "a".repeat(bytes - empty);
            format!("GET / HTTP/1.1\r\nHost: h\r\nX: {filler}\r\n\r\n")
        };
        let whole = of(HEAD_BYTES_MAX);
        // Whatever follows it is not the head's.
        for text in [whole.clone(), format!("{whole}GET / HTTP/1.1\r\n")] {
            assert_eq!(parse(&text).unwrap().unwrap().head_bytes, HEAD_BYTES_MAX);
        }
        assert_eq!(parse(&whole[..HEAD_BYTES_MAX - 1]), Ok(None));
        let longer = of(HEAD_BYTES_MAX + 1);
        assert_eq!(parse(&longer), Err(Refused::TooLong));
        assert_eq!(parse(&longer[..HEAD_BYTES_MAX]), Ok(None), "it may end yet");
    }

    #[test]
    fn ranges() {
        /// (offset, length) as resolved.
        type Resolved = Option<(u64, u64)>;
        let cases: [(&str, u64, Option<Resolved>); 15] = [
            // field, size, None: the field is ignored; Some(None): 416
            ("bytes=0-0", 10, Some(Some((0, 1)))),
            ("bytes=2-5", 10, Some(Some((2, 4)))),
            ("bytes=2-", 10, Some(Some((2, 8)))),
            ("bytes=9-99", 10, Some(Some((9, 1)))),
            ("bytes=-3", 10, Some(Some((7, 3)))),
            ("bytes=-99", 10, Some(Some((0, 10)))),
            ("Bytes = 1-1", 10, Some(Some((1, 1)))),
            ("bytes=10-", 10, Some(None)),
            ("bytes=-0", 10, Some(None)),
            ("bytes=0-", 0, Some(None)),
            ("bytes=0-1,3-4", 10, None),
            ("bytes=5-2", 10, None),
            ("bytes=+1-2", 10, None),
            ("lines=1-2", 10, None),
            ("bytes=99999999999999999999-", 10, None),
        ];
        for (field, size, want) in cases {
            let text = format!("GET / HTTP/1.1\r\nHost: h\r\nRange: {field}\r\n\r\n");
            let range = parse(&text).unwrap().unwrap().range;
            assert_eq!(range.map(|range| range.resolve(size)), want, "{field}");
        }
        let guarded = "GET / HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\nIf-Range: \"x\"\r\n\r\n";
        assert_eq!(parse(guarded).unwrap().unwrap().range, None);
    }

    #[test]
    fn response_heads() {
        let mut out = Vec::new();
        let head = ResponseHead {
            status: Status::PartialContent,
            content_bytes: 4,
            content_type: "application/octet-stream",
            range: Some((2, 10)),
            etag: Some("abc"),
            keep_alive: true,
            retry_after_secs: None,
        };
        head.emit(&mut out);
        assert_eq!(
            str::from_utf8(&out).unwrap(),
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 2-5/10\r\n\
             Content-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\nETag: \"abc\"\r\n\
             Connection: keep-alive\r\n\r\n"
        );
        out.clear();
        ResponseHead {
            status: Status::Unavailable,
            content_bytes: 0,
            range: None,
            etag: None,
            keep_alive: false,
            retry_after_secs: Some(5),
            ..head
        }
        .emit(&mut out);
        assert_eq!(
            str::from_utf8(&out).unwrap(),
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"
        );
    }

    proptest::proptest! {
        #[test]
        fn any_octets_end(octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
            let _ = RequestHead::parse(&octets);
        }
    }
}
