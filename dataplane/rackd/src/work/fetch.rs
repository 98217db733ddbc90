//! Fetches content from the regions by ranged HTTPS and hands out nothing that does not have its hash.
//!
//! A try that fails goes on with the next region, after a pause that doubles. A piece with the wrong
//! content is fetched again too, and counted: a region that keeps sending it must not be believed, and
//! must not be asked for ever.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use ring::digest::{SHA256, digest};
use tokio::time::{Instant, sleep, timeout};

use super::disk::Sha256;
use super::upstream::{Lane, Pool, Region, ResponseBody, UpstreamError};

/// Tries of one piece over all regions.
const TRIES_MAX: u32 = 8;
/// Of these, with wrong content.
const BAD_MAX: u32 = 3;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);
/// For the head of a response, and for each stretch of its body.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
const STRETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Why content could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no region is known")]
    NoRegion,
    #[error("the content differs from its hash, {bad} times")]
    WrongContent { bad: u32 },
    #[error("asking the regions, {tries} times")]
    Regions {
        tries: u32,
        #[source]
        source: AnswerError,
    },
    #[error("the cache's disk")]
    Disk(#[from] io::Error),
    #[error("no room: {wanted} octets wanted, {limit} allowed for the cache")]
    NoRoom { wanted: u64, limit: u64 },
}

/// What was wrong with one region's answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("region {region} answered with status {status}")]
    Status { region: Region, status: StatusCode },
    #[error("region {region} sent another range or more than asked for")]
    Length { region: Region },
    #[error("region {region} stopped in the middle")]
    Broken { region: Region },
}

/// What was counted on the way to a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub retries: u64,
    pub bad: u64,
}

/// What to fetch: a range of a file, or the whole of a small one.
#[derive(Clone, Debug)]
pub enum Want {
    Range {
        range: Range<u64>,
        sha256: Sha256,
    },
    /// At most so many octets; the hash is the file's own.
    Whole {
        bytes_max: u64,
    },
}

pub struct Fetcher {
    pool: Arc<Pool>,
}

impl Fetcher {
    pub fn new(pool: Arc<Pool>) -> Self {
        Self { pool }
    }

    /// The wanted octets of `file`, verified. `seed` spreads first tries over the regions.
    pub async fn get(
        &self,
        file: &Sha256,
        want: &Want,
        seed: u64,
    ) -> (Result<Vec<u8>, FetchError>, Tally) {
        let mut tally = Tally::default();
        let mut pause = PAUSE_FIRST;
        let mut last = FetchError::NoRegion;
        for attempt in 0..TRIES_MAX {
            if attempt > 0 {
                tally.retries += 1;
                // Half of it random, so that many fills do not come back at the same moment.
                sleep(pause / 2 + pause.mul_f64(rand::random::<f64>() / 2.0)).await;
                pause = (pause * 2).min(PAUSE_LONGEST);
            }
            let order = self.pool.order(seed.wrapping_add(u64::from(attempt)));
            let Some(region) = order.first() else {
                continue;
            };
            match self.ask(region, file, want).await {
                Ok(octets) => {
                    let expected = match want {
                        Want::Range { sha256, .. } => sha256,
                        Want::Whole { .. } => file,
                    };
                    if digest(&SHA256, &octets).as_ref() == expected {
                        return (Ok(octets), tally);
                    }
                    tally.bad += 1;
                    let bad = u32::try_from(tally.bad).unwrap_or(u32::MAX);
                    tracing::warn!(%region, file = hex::encode(file), "content differs from its hash");
                    last = FetchError::WrongContent { bad };
                    if bad == BAD_MAX {
                        break;
                    }
                }
                Err(source) => {
                    last = FetchError::Regions {
                        tries: attempt + 1,
                        source,
                    }
                }
            }
        }
        (Err(last), tally)
    }

    async fn ask(
        &self,
        region: &Region,
        file: &Sha256,
        want: &Want,
    ) -> Result<Vec<u8>, AnswerError> {
        let mut request = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *request.uri_mut() = format!("/images/{}", hex::encode(file))
            .parse()
            .expect("hex digits make a path");
        if let Want::Range { range, .. } = want {
            let value = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
            let value = value.parse().expect("digits make a header");
            request.headers_mut().insert(header::RANGE, value);
        }
        let response = self
            .pool
            .send(region, request, Lane::Fill, Instant::now() + HEAD_TIMEOUT)
            .await
            .map_err(|failed| failed.error)?;
        let length = expected_length(region, want, &response)?;
        read(
            region,
            response.into_body(),
            length,
            matches!(want, Want::Range { .. }),
        )
        .await
    }
}

/// How many octets must follow (a range) or may follow (a whole file).
fn expected_length(
    region: &Region,
    want: &Want,
    response: &Response<ResponseBody>,
) -> Result<u64, AnswerError> {
    let status = response.status();
    match want {
        Want::Whole { bytes_max } if status == StatusCode::OK => Ok(*bytes_max),
        Want::Range { range, .. } if status == StatusCode::PARTIAL_CONTENT => {
            let wanted = format!("bytes {}-{}/", range.start, range.end.saturating_sub(1));
            let right = response
                .headers()
                .get(header::CONTENT_RANGE)
                .and_then(|value| value.to_str().ok())
                .is_some_and(|value| value.starts_with(&wanted));
            match right {
                true => Ok(range.end - range.start),
                false => Err(AnswerError::Length {
                    region: region.clone(),
                }),
            }
        }
        // The whole file where its only piece was asked for; anything longer is cut off by `read`.
        Want::Range { range, .. } if status == StatusCode::OK && range.start == 0 => Ok(range.end),
        _ => Err(AnswerError::Status {
            region: region.clone(),
            status,
        }),
    }
}

async fn read(
    region: &Region,
    mut body: ResponseBody,
    length: u64,
    exact: bool,
) -> Result<Vec<u8>, AnswerError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    // Never more than a piece at first, whatever was announced.
    let mut octets = Vec::with_capacity(if exact { length } else { 64 * 1024 });
    loop {
        let frame = match timeout(STRETCH_TIMEOUT, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break,
            Ok(Some(Err(_))) | Err(_) => {
                return Err(AnswerError::Broken {
                    region: region.clone(),
                });
            }
        };
        let data: Bytes = frame.into_data().unwrap_or_default();
        if octets.len() + data.len() > length {
            return Err(AnswerError::Length {
                region: region.clone(),
            });
        }
        octets.extend_from_slice(&data);
    }
    match exact && octets.len() != length {
        true => Err(AnswerError::Broken {
            region: region.clone(),
        }),
        false => Ok(octets),
    }
}
