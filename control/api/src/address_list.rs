//! Long lists of addresses, written page by page: neither the region nor a slow reader holds one in memory.

use std::net::IpAddr;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self as pages, StreamExt};
use gate::Place;
use http::header;
use serde_json::Value;
use store::lease;
use store::reservation::Reservation;

use crate::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::ipaddress::{lease_view, reserved_view};
use crate::network_view::Networks;
use crate::results::stream;

/// Items that are read and written at once. There is no other bound: the list is whole, however long it is, and costs a
/// page of memory and one of the places of those who read much.
const PAGE: u32 = 500;

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
    /// Of a list of more than one page: one account reads only so many at once.
    pub place: Option<Place>,
}

#[derive(Default)]
pub struct Progress {
    reserved: usize,
    after: Option<IpAddr>,
    begun: bool,
    ended: bool,
}

impl AddressList {
    /// The first page is read before the answer begins, so that what is wrong then has a status.
    pub async fn respond(mut self, caller: &Caller) -> Result<Response, ApiError> {
        let first = self.page().await?;
        if !self.progress.ended {
            self.place = Some(stream::place(&self.app, caller).await?);
        }
        let rest = pages::try_unfold(self, |mut list| async move {
            match list.progress.ended {
                true => Ok(None),
                false => list.page().await.map(|page| Some((page, list))),
            }
        });
        let all = pages::once(async move { Ok(first) }).chain(rest);
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
        // No connection is held while the reader reads.
        let bindings = {
            let mut db = self.app.db().await?;
            lease::list(&mut db, self.subnet, progress.after, PAGE).await?
        };
        progress.after = bindings.last().map(|last| last.address);
        progress.ended = bindings.len() < PAGE as usize;
        Ok(bindings
            .iter()
            .map(|one| lease_view(one, &self.networks))
            .collect())
    }
}
