//! HTTP/1.x heads, and a whole connection fed in pieces.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use bytes::Bytes;
use images::{
    Asked, Catalog, Connection, Counters, Found, Limits, Object, PIPELINE_BYTES_MAX, Step,
};
use wire::http1::{HEAD_BYTES_MAX, Range, RequestHead};

use crate::{octets, one_of, pick};

/// Any octets as a request head: no panic, nothing beyond the limits, and the head alone reads the same.
pub fn http1_head(octets: &[u8]) {
    let Ok(Some(head)) = RequestHead::parse(octets) else {
        return;
    };
    assert!(head.head_bytes <= octets.len().min(HEAD_BYTES_MAX));
    let alone = &octets[..head.head_bytes];
    assert_eq!(RequestHead::parse(alone), Ok(Some(head)));
    assert!(alone.ends_with(b"\n"), "a head ends with an empty line");
    let cut = RequestHead::parse(&alone[..alone.len() - 1]);
    assert_eq!(cut, Ok(None), "a head that is not all there");
    assert!(head.target.contains(head.path()) || head.path() == "/");
    if let Some(range) = head.range {
        resolves(range);
    }
}

fn resolves(range: Range) {
    for size in [0, 1, 4096, u64::MAX] {
        if let Some((offset, length)) = range.resolve(size) {
            assert!(length > 0);
            assert!(offset.checked_add(length).is_some_and(|end| end <= size));
        }
    }
}

// -------------------------------------------------------------------- a connection

/// A whole pipeline of requests for the longest file in the smallest pieces stays below it.
const STEPS_MAX: u32 = 200_000;
const FILE_BYTES: u64 = 10_000;
const PIECE_BYTES: u32 = 4096;
const TEXT: &[u8] = b"#!ipxe\nboot\n";

/// What the rack has, by the last octet of the path.
struct Shelf {
    object: Arc<Object>,
    text: Bytes,
}

impl Catalog for Shelf {
    fn find(&mut self, asked: &Asked<'_>) -> Found {
        assert!(!asked.path.contains(['?', '#']));
        match asked.path.as_bytes().last() {
            Some(b'o') => Found::Object(Arc::clone(&self.object)),
            Some(b't') => Found::Bytes {
                body: self.text.clone(),
                content_type: "text/plain",
            },
            Some(b'l') => Found::Later,
            Some(b'b') => Found::Busy,
            Some(b'x') => Found::NotOurs,
            _ => Found::NotFound,
        }
    }
}

/// Octets in pieces of any length, sends that take what they like, pieces of the file that come by and by: the
/// connection always says what to wait for, sends no octet that is not there, and ends.
pub fn http_connection(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let start = Instant::now();
    let mut now = start;
    let limits = Limits {
        chunk_bytes: one_of(&mut input, &[500, 1000, 4096, 1 << 20]),
        ..Limits::default()
    };
    let mut counters = Counters::default();
    let mut connection = Connection::new(limits, now);
    let mut shelf = Shelf {
        object: Arc::new(Object::absent([7; 32], FILE_BYTES, PIECE_BYTES)),
        text: match pick(&mut input, 2) {
            0 => Bytes::from_static(TEXT),
            // Longer than what leaves with its head.
            _ => vec![b'x'; 20_000].into(),
        },
    };
    // Octets of the send in flight.
    let mut in_flight = 0;
    for _ in 0..STEPS_MAX {
        match connection.step(now, &mut shelf, &mut counters) {
            Step::Close | Step::Abort => return,
            Step::HandOff { read } => {
                assert!(read.len() <= PIPELINE_BYTES_MAX + 2000);
                return;
            }
            Step::SendBytes { bytes, .. } => {
                assert!(in_flight == 0 && !bytes.is_empty());
                in_flight = bytes.len() as u64;
            }
            Step::SendFile {
                object,
                offset,
                length,
            } => {
                assert!(in_flight == 0 && length > 0 && length <= limits.chunk_bytes);
                assert!(offset + length <= object.size_bytes());
                assert!(object.available(offset, length) >= length, "not here yet");
                in_flight = length;
            }
            Step::WaitFor { piece, .. } => assert!(piece < shelf.object.piece_count()),
            Step::Busy => assert!(in_flight > 0, "busy with nothing"),
            Step::Receive | Step::WaitAnswer => assert_eq!(in_flight, 0),
        }
        if input.is_empty() {
            // Nothing more comes: it ends by its deadlines alone.
            assert!(connection.deadline() >= start);
            now = now.max(connection.deadline());
            if in_flight > 0 {
                connection.on_sent(in_flight, &mut counters);
                in_flight = 0;
            }
            continue;
        }
        match pick(&mut input, 8) {
            0..=2 => {
                let length = one_of(&mut input, &[1, 7, 60, 300, 2000]);
                connection.on_bytes(octets(&mut input, length), &mut counters);
            }
            3 | 4 => {
                let sent = match pick(&mut input, 4) {
                    0 => u64::from(pick(&mut input, 5000)).min(in_flight),
                    _ => in_flight,
                };
                connection.on_sent(sent, &mut counters);
                in_flight = 0;
            }
            5 => {
                shelf.object.set_filling();
                let piece = pick(&mut input, shelf.object.piece_count());
                shelf.object.set_present(piece);
            }
            6 => now += Duration::from_secs(one_of(&mut input, &[1, 4, 21, 61])),
            _ => connection.on_end(),
        }
        let _ = connection.take_served();
    }
    panic!("it waits for ever");
}
