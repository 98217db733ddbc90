//! Bodies in memory: a client's before a region is asked, and a region's before the client takes it. So a region's lane
//! is held for as long as the region takes, and a slow client holds nothing but its own place and its share of memory.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, timeout_at};

use super::pace::{Pace, allowance};
use crate::work::memory::Buffer;
use crate::work::upstream::{BoxError, ResponseBody};

/// Longest request body: a commissioning result with its logs is a few MiB.
pub const BODY_BYTES_MAX: u64 = 64 << 20;
/// Answers up to this are taken whole from the region.
const GATHERED_BYTES_MAX: usize = 1 << 20;
/// For a region to send so much.
const GATHER_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a request's body is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    TooLarge,
    /// The budget, or the client's share of it, is used up.
    NoMemory,
    /// It stopped, or was too slow.
    Late,
    Broken,
}

/// Reads a whole body. The second keeps its octets charged until the request is done.
pub async fn collect(mut body: Incoming, mut buffer: Buffer) -> Result<(Bytes, Buffer), Refused> {
    let begin = Instant::now();
    loop {
        let until = begin + allowance(buffer.bytes() as u64);
        let frame = timeout_at(until, body.frame()).await;
        let frame = match frame.map_err(|_| Refused::Late)? {
            None => break,
            Some(frame) => frame.map_err(|_| Refused::Broken)?,
        };
        // Trailers are not passed on.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if buffer.bytes() as u64 + data.len() as u64 > BODY_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        if !buffer.push(&data) {
            return Err(Refused::NoMemory);
        }
    }
    let (octets, charge) = buffer.finish();
    Ok((octets.into(), charge))
}

/// A region's answer: its front, which is here, and the rest, which is not if it is long.
pub struct Gathered {
    front: Bytes,
    rest: Option<ResponseBody>,
    _charge: Buffer,
}

/// Reads what a region sends as far as memory allows. `None`: it broke off.
pub async fn gather(body: ResponseBody, mut buffer: Buffer, pace: &Arc<Pace>) -> Option<Gathered> {
    let until = Instant::now() + GATHER_TIMEOUT;
    let mut rest = Some(body);
    // Read, but beyond what may be held: it goes along for as long as the client takes.
    let mut beyond = None;
    while let Some(body) = rest
        .as_mut()
        .filter(|_| buffer.bytes() < GATHERED_BYTES_MAX)
    {
        match timeout_at(until, body.frame()).await {
            Ok(None) => rest = None,
            Ok(Some(frame)) => {
                let Ok(data) = frame.ok()?.into_data() else {
                    continue;
                };
                if !buffer.push(&data) {
                    beyond = Some(data);
                    break;
                }
            }
            Err(_) => break,
        }
    }
    let (mut octets, charge) = buffer.finish();
    if let Some(beyond) = beyond {
        octets.extend_from_slice(&beyond);
    }
    pace.begin(rest.is_some());
    Some(Gathered {
        front: octets.into(),
        rest,
        _charge: charge,
    })
}

impl Body for Gathered {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.front.is_empty() {
            let front = std::mem::take(&mut self.front);
            return Poll::Ready(Some(Ok(Frame::data(front))));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(BoxError::from))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.front.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.front.len() as u64),
        }
    }
}
