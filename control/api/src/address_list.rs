//! Long lists of addresses, written page by page: neither the region nor a slow reader holds one in memory.

use std::net::IpAddr;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use http::header;
use serde_json::Value;
use store::lease;
use store::reservation::Reservation;

use crate::App;
use crate::error::ApiError;
use crate::ipaddress::{lease_view, reserved_view};
use crate::network_view::Networks;

/// Items that are read and written at once.
const PAGE: u32 = 500;
/// Leases in one answer.
const LEASES_MAX: u32 = 100_000;

/// What of the addresses is to be written, and how far it got.
pub struct AddressList {
    pub app: App,
    pub networks: Networks,
    pub reserved: Vec<Reservation>,
    /// Leases of this subnet; none: of all.
    pub subnet: Option<i32>,
    /// Whether to say whose they are.
    pub with_owner: bool,
    pub progress: Progress,
}

#[derive(Default)]
pub struct Progress {
    reserved: usize,
    after: Option<IpAddr>,
    leases: u32,
    begun: bool,
    ended: bool,
}

impl AddressList {
    /// The first page is read before the answer begins, so that what is wrong then has a status.
    pub async fn respond(mut self) -> Result<Response, ApiError> {
        let first = self.page().await?;
        let rest = stream::try_unfold(self, |mut list| async move {
            match list.progress.ended {
                true => Ok(None),
                false => list.page().await.map(|page| Some((page, list))),
            }
        });
        use futures::StreamExt;
        let all = stream::once(async move { Ok(first) }).chain(rest);
        let all = all.map(|page| page.map_err(|error| std::io::Error::other(format!("{error:?}"))));
        let content_type = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
        Ok((content_type, Body::from_stream(all)).into_response())
    }

    /// The next piece of the JSON text.
    async fn page(&mut self) -> Result<Bytes, ApiError> {
        let views = self.views().await?;
        let mut text = String::new();
        for mut view in views {
            if !self.with_owner {
                view["owner"] = Value::Null;
            }
            text.push(if self.progress.begun { ',' } else { '[' });
            self.progress.begun = true;
            text.push_str(&view.to_string());
        }
        if self.progress.ended {
            text.push_str(if self.progress.begun { "]" } else { "[]" });
        }
        Ok(text.into())
    }

    async fn views(&mut self) -> Result<Vec<Value>, ApiError> {
        let progress = &mut self.progress;
        let left = self.reserved.get(progress.reserved..).unwrap_or_default();
        if !left.is_empty() {
            let now = &left[..left.len().min(PAGE as usize)];
            progress.reserved += now.len();
            return Ok(now
                .iter()
                .map(|one| reserved_view(one, &self.networks))
                .collect());
        }
        let page = PAGE.min(LEASES_MAX - progress.leases);
        // No connection is held while the reader reads.
        let bindings = {
            let mut db = self.app.db().await?;
            lease::list(&mut db, self.subnet, progress.after, page).await?
        };
        progress.leases += bindings.len() as u32;
        progress.after = bindings.last().map(|last| last.address);
        progress.ended = bindings.len() < PAGE as usize || progress.leases >= LEASES_MAX;
        Ok(bindings
            .iter()
            .map(|one| lease_view(one, &self.networks))
            .collect())
    }
}
