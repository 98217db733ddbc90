//! The cache's jobs: fill one file, load one loader. They decide nothing about the cache; [`super::Filler`]
//! starts and reads them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use images::Object;
use ring::digest::{SHA256, digest};
use shard::Loader;
use tokio::sync::{Notify, Semaphore};

use super::Manifest;
use crate::work::Counters as WorkCounters;
use crate::work::disk::{Folder, Part, Sha256, read_whole};
use crate::work::fetch::{FetchError, Fetcher, Want};

/// Pieces under way at once for one file; how many for all is the semaphore's business.
pub(super) const STREAMS_PER_FILE: usize = 4;
/// Largest boot loader; each is held in memory.
const LOADER_BYTES_MAX: u64 = 64 << 20;
const LOADER_PAUSE_FIRST: Duration = Duration::from_secs(1);
const LOADER_PAUSE_LONGEST: Duration = Duration::from_secs(60);

/// What the jobs share.
pub(super) struct Tools {
    pub folder: Folder,
    pub fetcher: Fetcher,
    pub streams: Semaphore,
    pub progress: Arc<Notify>,
    pub counters: Arc<WorkCounters>,
}

impl Tools {
    /// Fills one file: verify what is there, fetch what is not, sync, give it its name.
    pub async fn fill(&self, manifest: &Manifest, object: &Object) -> Result<(), FetchError> {
        let path = self.folder.part(&manifest.sha256);
        let (part, reader) = Part::open(&path, manifest.size_bytes)?;
        // A second fill of the same object finds its first file, which has the same inode.
        object.open(reader);
        let mut missing = VecDeque::new();
        for index in 0..object.piece_count() {
            if object.has_piece(index)
                || (part.resumed && self.is_good(&part, manifest, index).await?)
            {
                object.set_present(index);
            } else {
                missing.push_back(index);
            }
        }
        self.progress.notify_one();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < STREAMS_PER_FILE
                && let Some(index) = missing.pop_front()
            {
                under_way.push(self.fill_piece(&part, manifest, object, index));
            }
            match under_way.next().await {
                Some(done) => done?,
                None => break,
            }
        }
        drop(under_way);
        part.sync().await?;
        self.folder.finish(&manifest.sha256)?;
        Ok(())
    }

    async fn is_good(
        &self,
        part: &Part,
        manifest: &Manifest,
        index: u32,
    ) -> Result<bool, FetchError> {
        let (range, sha256) = piece(manifest, index);
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let octets = part.read(range.start, length).await?;
        let good = digest(&SHA256, &octets).as_ref() == sha256;
        if good {
            self.counters.fill.resumed.add(1);
        }
        // Hashing a piece takes milliseconds: let the others have a turn.
        tokio::task::yield_now().await;
        Ok(good)
    }

    async fn fill_piece(
        &self,
        part: &Part,
        manifest: &Manifest,
        object: &Object,
        index: u32,
    ) -> Result<(), FetchError> {
        let _stream = self.streams.acquire().await.expect("never closed");
        let (range, sha256) = piece(manifest, index);
        let start = range.start;
        let octets = self
            .get(
                &manifest.sha256,
                &Want::Range { range, sha256 },
                u64::from(index),
            )
            .await?;
        part.write(start, octets).await?;
        // Only now may a shard see it.
        object.set_present(index);
        self.progress.notify_one();
        Ok(())
    }

    async fn get(&self, file: &Sha256, want: &Want, seed: u64) -> Result<Vec<u8>, FetchError> {
        let (result, tally) = self.fetcher.get(file, want, seed).await;
        let counters = &self.counters.fill;
        counters.retries.add(tally.retries);
        counters.bad.add(tally.bad);
        let octets = result?;
        counters.pieces.add(1);
        counters.bytes.add(octets.len() as u64);
        Ok(octets)
    }

    /// Sets a loader's bytes, trying again for as long as somebody else holds it.
    pub async fn load(&self, loader: &Arc<Loader>) {
        let mut pause = LOADER_PAUSE_FIRST;
        while Arc::strong_count(loader) > 1 {
            match self.read_or_fetch(&loader.sha256).await {
                Ok(octets) => {
                    // Lost only to another job's same octets.
                    let _ = loader.bytes.set(octets);
                    return;
                }
                Err(error) => {
                    self.counters.fill.failed.add(1);
                    let file = hex::encode(loader.sha256);
                    tracing::warn!(file, reason = chain(&error), "loader not fetched");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOADER_PAUSE_LONGEST);
        }
    }

    /// A small file, from the disk if it is there and good, else from a region, and then on the disk.
    async fn read_or_fetch(&self, sha256: &Sha256) -> Result<Bytes, FetchError> {
        let path = self.folder.complete(sha256);
        if let Ok(Some(octets)) = read_whole(&path, LOADER_BYTES_MAX).await
            && digest(&SHA256, &octets).as_ref() == sha256
        {
            return Ok(octets.into());
        }
        let _stream = self.streams.acquire().await.expect("never closed");
        let octets = self
            .get(
                sha256,
                &Want::Whole {
                    bytes_max: LOADER_BYTES_MAX,
                },
                0,
            )
            .await?;
        let octets = Bytes::from(octets);
        // The disk is a convenience here: the octets are good whether or not they fit on it.
        if let Err(error) = self.store_whole(sha256, &octets).await {
            tracing::warn!(file = hex::encode(sha256), %error, "loader not cached on disk");
        }
        Ok(octets)
    }

    async fn store_whole(&self, sha256: &Sha256, octets: &Bytes) -> std::io::Result<()> {
        let path = self.folder.part(sha256);
        if path.exists() {
            // A fill is at it, or was and will go on.
            return Ok(());
        }
        let (part, _) = Part::open(&path, octets.len() as u64)?;
        part.write(0, octets.to_vec()).await?;
        part.sync().await?;
        self.folder.finish(sha256)
    }
}

/// Where piece `index` is, and its hash.
fn piece(manifest: &Manifest, index: u32) -> (std::ops::Range<u64>, Sha256) {
    let start = u64::from(index) * u64::from(manifest.piece_bytes);
    let end = manifest
        .size_bytes
        .min(start + u64::from(manifest.piece_bytes));
    // `is_sound` has counted them.
    (start..end, manifest.pieces[index as usize])
}

/// An error with its causes, for one log field.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
