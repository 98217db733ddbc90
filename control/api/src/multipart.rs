//! multipart/form-data as MAAS's clients write it (RFC 7578, RFC 2046 §5.1), over a complete body.
//!
//! Beyond the standard: parts in base64 (python-libmaas, the `maas` command), quoted boundaries, bare LF line ends,
//! and the body `--B\r\n\r\n--B--` that those clients send for "no fields". Every pass moves forward; nothing is
//! allocated by a length that the client names.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::body::{FormError, Limits};

/// Longest boundary (RFC 2046 §5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;
/// Header lines of one part, together.
const PART_HEADER_BYTES_MAX: usize = 8192;

/// Header lines of a part: lower-case names and their values.
type Headers = Vec<(String, String)>;

/// One part.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    /// Set when it is a file.
    pub filename: Option<String>,
    pub content: Vec<u8>,
}

/// The boundary of a Content-Type's parameters.
pub fn boundary(content_type: &str) -> Result<String, FormError> {
    let (_, parameters) = content_type
        .split_once(';')
        .ok_or(FormError::Multipart("no boundary"))?;
    let boundary = parameter(parameters, "boundary").ok_or(FormError::Multipart("no boundary"))?;
    if boundary.is_empty() || boundary.len() > BOUNDARY_BYTES_MAX {
        return Err(FormError::Multipart("boundary of a wrong length"));
    }
    Ok(boundary)
}

/// The parts of a body, in order.
pub fn parse(body: &[u8], boundary: &str, limits: &Limits) -> Result<Vec<Part>, FormError> {
    let delimiter = format!("--{boundary}").into_bytes();
    let mut rest = match find_delimiter(body, &delimiter) {
        Some((_, after)) => after,
        None if body.is_empty() => return Ok(Vec::new()),
        None => return Err(FormError::Multipart("no delimiter")),
    };
    let mut parts = Vec::new();
    loop {
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        rest = after_line_end(rest).ok_or(FormError::Multipart("text after a delimiter"))?;
        let (headers, content) = split_headers(rest, &delimiter)?;
        let (content, after) = if content.starts_with(&delimiter) {
            (&content[..0], &content[delimiter.len()..])
        } else {
            find_delimiter(content, &delimiter)
                .ok_or(FormError::Multipart("no closing delimiter"))?
        };
        rest = after;
        match part(headers, content)? {
            Some(part) => {
                if parts.len() == limits.fields_max {
                    return Err(FormError::TooManyFields);
                }
                parts.push(part);
            }
            // What "no fields" looks like.
            None if content.is_empty() => {}
            None => return Err(FormError::Multipart("a part without a name")),
        }
    }
}

/// What comes before the next delimiter line, without its line end, and what follows the delimiter.
fn find_delimiter<'a>(body: &'a [u8], delimiter: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    if let Some(after) = body.strip_prefix(delimiter) {
        return Some((&body[..0], after));
    }
    let mut from = 0;
    while let Some(line_end) = body[from..].iter().position(|octet| *octet == b'\n') {
        let at = from + line_end;
        if let Some(after) = body[at + 1..].strip_prefix(delimiter) {
            let before = &body[..at];
            return Some((before.strip_suffix(b"\r").unwrap_or(before), after));
        }
        from = at + 1;
    }
    None
}

/// What follows the line end, padding before it skipped (RFC 2046 §5.1.1).
fn after_line_end(text: &[u8]) -> Option<&[u8]> {
    let padding = text
        .iter()
        .take_while(|octet| **octet == b' ' || **octet == b'\t')
        .count();
    let text = &text[padding..];
    text.strip_prefix(b"\r\n")
        .or_else(|| text.strip_prefix(b"\n"))
}

/// The header lines of a part and its content. Both may be missing.
fn split_headers<'a>(text: &'a [u8], delimiter: &[u8]) -> Result<(Headers, &'a [u8]), FormError> {
    let mut headers = Headers::new();
    let mut rest = text;
    loop {
        if rest.starts_with(delimiter) {
            return Ok((headers, rest));
        }
        if text.len() - rest.len() > PART_HEADER_BYTES_MAX {
            return Err(FormError::Multipart("part headers too long"));
        }
        let end = rest
            .iter()
            .take(PART_HEADER_BYTES_MAX)
            .position(|octet| *octet == b'\n')
            .ok_or(FormError::Multipart("a part without an end of headers"))?;
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        if line.is_empty() {
            return Ok((headers, rest));
        }
        let line = std::str::from_utf8(line)
            .map_err(|_| FormError::Multipart("part headers not UTF-8"))?;
        // A folded line goes on (RFC 5322 §2.2.3).
        if line.starts_with([' ', '\t']) {
            let (_, value) = headers
                .last_mut()
                .ok_or(FormError::Multipart("a part header without a name"))?;
            value.push(' ');
            value.push_str(line.trim());
            continue;
        }
        let (name, value) = line
            .split_once(':')
            .ok_or(FormError::Multipart("a part header without a colon"))?;
        headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn part(headers: Headers, content: &[u8]) -> Result<Option<Part>, FormError> {
    let header = |name: &str| {
        headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    };
    let Some(disposition) = header("content-disposition") else {
        return Ok(None);
    };
    let parameters = disposition
        .split_once(';')
        .map_or("", |(_, parameters)| parameters);
    let Some(name) = parameter(parameters, "name") else {
        return Ok(None);
    };
    let encoding = header("content-transfer-encoding")
        .unwrap_or("binary")
        .to_ascii_lowercase();
    let content = match encoding.as_str() {
        "base64" => {
            let digits: Vec<u8> = content
                .iter()
                .copied()
                .filter(|octet| !octet.is_ascii_whitespace())
                .collect();
            STANDARD
                .decode(digits)
                .map_err(|_| FormError::Multipart("a part that is no base64"))?
        }
        "7bit" | "8bit" | "binary" => content.to_vec(),
        _ => {
            return Err(FormError::Multipart(
                "a transfer encoding that is not supported",
            ));
        }
    };
    Ok(Some(Part {
        name,
        filename: parameter(parameters, "filename"),
        content,
    }))
}

/// The parameter `name` of `a=b; c="d"`; an extended one (`name*=utf-8''%C3%A4`, RFC 5987) too.
fn parameter(parameters: &str, name: &str) -> Option<String> {
    let mut rest = parameters;
    loop {
        rest = rest.trim_start_matches([';', ' ', '\t']);
        if rest.is_empty() {
            return None;
        }
        let (key, after) = rest.split_once('=')?;
        let key = key.trim();
        let value;
        if let Some(quoted) = after.trim_start().strip_prefix('"') {
            let (text, after) = unquote(quoted)?;
            value = text;
            rest = after;
        } else {
            let end = after.find(';').unwrap_or(after.len());
            value = after[..end].trim().to_owned();
            rest = &after[end..];
        }
        if key.eq_ignore_ascii_case(name) {
            return Some(value);
        }
        if key
            .strip_suffix('*')
            .is_some_and(|key| key.eq_ignore_ascii_case(name))
        {
            let text = value.splitn(3, '\'').nth(2)?;
            return percent_encoding::percent_decode_str(text)
                .decode_utf8()
                .ok()
                .map(|text| text.into_owned());
        }
    }
}

/// A quoted string after its first quote, and what follows it (RFC 2045 §5.1).
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            // Browsers write a quote as %22 and a backslash as it is: only \" and \\ are escapes.
            '\\' => match characters.clone().next() {
                Some((_, escaped @ ('"' | '\\'))) => {
                    value.push(escaped);
                    characters.next();
                }
                _ => value.push('\\'),
            },
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(body: &str) -> Result<Vec<(String, Option<String>, String)>, FormError> {
        let parts = parse(body.as_bytes(), "B", &Limits::default())?;
        Ok(parts
            .into_iter()
            .map(|part| {
                (
                    part.name,
                    part.filename,
                    String::from_utf8(part.content).unwrap(),
                )
            })
            .collect())
    }

    fn field(name: &str, content: &str) -> (String, Option<String>, String) {
        (name.into(), None, content.into())
    }

    #[test]
    fn what_clients_send_is_read() {
        let cases = [
            ("nothing", "", vec![]),
            ("no fields, libmaas", "--B\r\n\r\n--B--", vec![]),
            ("no fields, standard", "--B--\r\n", vec![]),
            (
                "plain",
                "--B\r\nContent-Disposition: form-data; name=\"op\"\r\n\r\nsignal\r\n--B--\r\n",
                vec![field("op", "signal")],
            ),
            (
                "libmaas",
                "--B\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: form-data; name=\"hostname\"\r\n\
                 MIME-Version: 1.0\r\nContent-Type: text/plain; charset=\"utf-8\"\r\n\r\nYm9v\r\nLQ==\r\n--B--",
                vec![field("hostname", "boo-")],
            ),
            (
                "bare line feeds, folded header",
                "--B\nContent-Disposition: form-data;\n name=\"a\"\n\n1\n\n--B \nContent-Disposition: form-data; name=b\n\n\n--B--",
                vec![field("a", "1\n"), field("b", "")],
            ),
            (
                "empty content",
                "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n--B--",
                vec![field("a", "")],
            ),
            (
                "a file, and content that looks like a delimiter",
                "--B\r\nContent-Disposition: form-data; name=\"x\"; filename=\"a\\\"b.out\"\r\n\r\n1\r\n --B\r\n--C\r\n--B--\r\n",
                vec![(
                    "x".into(),
                    Some("a\"b.out".into()),
                    "1\r\n --B\r\n--C".into(),
                )],
            ),
            (
                "extended name",
                "--B\r\nContent-Disposition: form-data; name*=utf-8''%C3%A4\r\n\r\n1\r\n--B--\r\n",
                vec![field("ä", "1")],
            ),
            (
                "preamble and epilogue",
                "hello\r\n--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B--\r\nbye",
                vec![field("a", "1")],
            ),
        ];
        for (case, body, want) in cases {
            assert_eq!(parts(body).as_ref(), Ok(&want), "{case}");
        }
    }

    #[test]
    fn malformed_bodies_are_refused() {
        for body in [
            "x",
            "--B",
            "--Bx\r\n",
            "--B\r\n",
            "--B\r\nContent-Disposition: form-data; name=\"a\"",
            "--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1",
            "--B\r\nnonsense\r\n\r\n1\r\n--B--",
            "--B\r\n folded\r\n\r\n1\r\n--B--",
            "--B\r\n\r\n1\r\n--B--",
            "--B\r\nContent-Disposition: form-data; name=\"a\r\n\r\n1\r\n--B--",
            "--B\r\nContent-Disposition: form-data; name=\"a\"\r\nContent-Transfer-Encoding: base64\r\n\r\n!\r\n--B--",
            "--B\r\nContent-Disposition: form-data; name=\"a\"\r\nContent-Transfer-Encoding: uu\r\n\r\n1\r\n--B--",
        ] {
            assert!(parts(body).is_err(), "{body:?}");
        }
        let long = format!(
            "--B\r\nX: {}\r\n\r\n1\r\n--B--",
            "x".repeat(PART_HEADER_BYTES_MAX)
        );
        assert!(parts(&long).is_err());
    }

    /// Cutting a good body anywhere gives a part list or an error, never a panic or a hang.
    #[test]
    fn every_truncation_ends() {
        let body = b"--B\r\nContent-Disposition: form-data; name=\"a\\\"\"; filename=\"b\"\r\n\r\n1\r\n2\r\n--B\r\n\r\n--B--\r\n";
        for length in 0..=body.len() {
            let _ = parse(&body[..length], "B", &Limits::default());
            let _ = parse(&body[length..], "B", &Limits::default());
        }
    }

    #[test]
    fn boundaries_are_found() {
        let cases = [
            ("multipart/form-data; boundary=abc", Some("abc")),
            (
                "multipart/form-data; boundary=\"===============758==\"",
                Some("===============758=="),
            ),
            (
                "multipart/form-data; charset=utf-8; Boundary=abc ; x=y",
                Some("abc"),
            ),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=\"abc", None),
        ];
        for (content_type, want) in cases {
            assert_eq!(
                boundary(content_type).ok().as_deref(),
                want,
                "{content_type}"
            );
        }
        assert!(boundary(&format!("multipart/form-data; boundary={}", "x".repeat(71))).is_err());
    }
}
