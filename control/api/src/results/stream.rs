//! Answers that are written piece by piece, as fast as the client takes them and no faster.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::SinkExt;
use futures::channel::mpsc;
use gate::{Bounds, Place, Room, Source};
use serde_json::Value;
use sqlx::PgPool;
use store::StoreError;
use store::script::{self, Part};

use crate::App;
use crate::auth::Caller;
use crate::dispatch::Request;
use crate::error::ApiError;

/// Octets of one piece; a multiple of three, so that pieces of base64 join.
const PIECE_BYTES: usize = 192 << 10;
/// Texts shorter than this wait for company.
const GATHER_BYTES: usize = 16 << 10;
/// Answers under way at once, in all and of one account. Each holds a few pieces.
const ANSWERS: Bounds = Bounds {
    total: 64,
    open: 64,
    each: 8,
};
const ANSWER_WAIT: Duration = Duration::from_secs(5);

pub fn room() -> Arc<Room> {
    Room::new("result_readers", ANSWERS)
}

/// Why an answer breaks off. The client sees an unfinished body.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the client is gone")]
    ClientGone,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where an answer is written to.
pub struct Writer {
    pool: PgPool,
    gathered: Vec<u8>,
    sender: mpsc::Sender<Result<Bytes, Broken>>,
}

/// A place of those who read much; the caller's share is a part of them.
pub async fn place(app: &App, caller: &Caller) -> Result<Place, ApiError> {
    let room = &app.state.shares.readers;
    let place = room.wait(Source::Account(caller.id), 1, ANSWER_WAIT).await;
    place.map_err(|_| ApiError::Unavailable("Too many answers of this size at once. Try again."))
}

/// The body that `write` writes, in a task of its own that ends with its client.
pub async fn body<W, F>(request: &Request, write: W) -> Result<Body, ApiError>
where
    W: FnOnce(Writer) -> F,
    F: Future<Output = Result<(), Broken>> + Send + 'static,
{
    let place = place(&request.app, request.caller()?).await?;
    let (sender, receiver) = mpsc::channel(0);
    let mut last = sender.clone();
    let written = write(Writer {
        pool: request.app.pool.clone(),
        gathered: Vec::new(),
        sender,
    });
    tokio::spawn(async move {
        if let Err(error @ Broken::Store(_)) = written.await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "an answer broke off"
            );
            // A client that is gone needs no telling.
            last.send(Err(error)).await.ok();
        }
        drop(place);
    });
    Ok(Body::from_stream(receiver))
}

impl Writer {
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub async fn text(&mut self, text: &str) -> Result<(), Broken> {
        self.octets(text.as_bytes()).await
    }

    /// An object of JSON, but for its closing brace.
    pub async fn open_object(&mut self, object: &Value) -> Result<(), Broken> {
        let text = object.to_string();
        self.text(text.strip_suffix('}').unwrap_or(&text)).await
    }

    pub async fn output(&mut self, id: i32, part: Part) -> Result<(), Broken> {
        self.pieces(id, part, |piece| piece).await
    }

    pub async fn output_base64(&mut self, id: i32, part: Part) -> Result<(), Broken> {
        self.pieces(id, part, |piece| STANDARD.encode(piece).into_bytes())
            .await
    }

    async fn pieces(
        &mut self,
        id: i32,
        part: Part,
        encode: impl Fn(Vec<u8>) -> Vec<u8> + Send,
    ) -> Result<(), Broken> {
        let mut offset = 0;
        loop {
            let piece = script::output_piece(&self.pool, id, part, offset, PIECE_BYTES).await?;
            let length = piece.len();
            self.octets(&encode(piece)).await?;
            offset += length;
            if length < PIECE_BYTES {
                return Ok(());
            }
        }
    }

    async fn octets(&mut self, octets: &[u8]) -> Result<(), Broken> {
        self.gathered.extend_from_slice(octets);
        if self.gathered.len() >= GATHER_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends what is left.
    pub async fn finish(mut self) -> Result<(), Broken> {
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let octets = Bytes::from(std::mem::take(&mut self.gathered));
        let sent = self.sender.send(Ok(octets)).await;
        sent.map_err(|_| Broken::ClientGone)
    }
}
