//! The region's image library: content by its SHA-256, with the hashes of its pieces.
//!
//! Files are on the region's disk, their manifests in PostgreSQL. An upload arrives in chunks, is hashed
//! piece by piece as it comes, and becomes visible only when its whole SHA-256 is the announced one. Racks
//! read ranges of complete files; the library never serves a byte of a file that is not complete.

mod budget;
mod sweep;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use sqlx::PgPool;
use store::StoreError;
use store::image::Manifest;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, SeekFrom};

pub use budget::Counters;
use budget::admit;

/// Racks verify and serve in pieces of this size.
pub const PIECE_BYTES: u32 = 4 << 20;
/// One chunk of an upload at most.
pub const CHUNK_BYTES_MAX: usize = 16 << 20;
/// A file at most: no ephemeral image comes near it, and a size field is not to fill a disk.
pub const FILE_BYTES_MAX: u64 = 64 << 30;

#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("no such file in the library")]
    NotFound,
    #[error("the file is complete already")]
    Complete,
    #[error("a size of {size_bytes} octets is not accepted: 1 to {FILE_BYTES_MAX}")]
    Size { size_bytes: u64 },
    #[error("more octets than the {size_bytes} that were announced")]
    TooLong { size_bytes: u64 },
    #[error("the content's SHA-256 is {got}, not {want}: the upload starts again")]
    Mismatch { want: String, got: String },
    #[error("another chunk of this file is being written")]
    Busy,
    #[error("no chunk came for a day: announce the file again")]
    GivenUp,
    /// Whose share of what arrives at once is full: the account's, or all of it.
    #[error(
        "unfinished uploads hold all the room there is for them: finish some, or give them a day to be given up"
    )]
    NoRoom { of_account: bool },
    #[error("the region's disk has no room for {size_bytes} octets more")]
    DiskFull { size_bytes: u64 },
    #[error("{doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is known of a file that is still arriving.
struct Upload {
    whole: Sha256,
    piece: Sha256,
    piece_filled: u32,
    pieces: Vec<[u8; 32]>,
    received: u64,
}

impl Upload {
    fn new() -> Self {
        Self {
            whole: Sha256::new(),
            piece: Sha256::new(),
            piece_filled: 0,
            pieces: Vec::new(),
            received: 0,
        }
    }

    fn update(&mut self, mut octets: &[u8]) {
        self.whole.update(octets);
        self.received += octets.len() as u64;
        while !octets.is_empty() {
            let room = (PIECE_BYTES - self.piece_filled) as usize;
            let (now, later) = octets.split_at(room.min(octets.len()));
            self.piece.update(now);
            self.piece_filled += now.len() as u32; // at most PIECE_BYTES
            if self.piece_filled == PIECE_BYTES {
                self.end_piece();
            }
            octets = later;
        }
    }

    fn end_piece(&mut self) {
        self.pieces.push(self.piece.finalize_reset().into());
        self.piece_filled = 0;
    }

    fn finish(mut self) -> ([u8; 32], Vec<[u8; 32]>) {
        if self.piece_filled > 0 {
            self.end_piece();
        }
        (self.whole.finalize().into(), self.pieces)
    }
}

#[derive(Clone)]
pub struct Library {
    folder: PathBuf,
    pool: PgPool,
    /// Uploads under way in this process; a chunk takes its entry out while it writes.
    uploads: Arc<Mutex<HashMap<[u8; 32], Option<Upload>>>>,
    counters: Arc<Counters>,
}

impl Library {
    pub fn open(folder: &Path, pool: PgPool) -> Result<Self, LibraryError> {
        std::fs::create_dir_all(folder).map_err(|source| LibraryError::Io {
            doing: "creating",
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            pool,
            uploads: Arc::default(),
            counters: Arc::default(),
        })
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Announces a file; true when the library has it already and nothing need be sent. What arrives at once has a bound
    /// in all and for each account.
    pub async fn announce(
        &self,
        sha256: [u8; 32],
        size_bytes: u64,
        account: Option<i32>,
    ) -> Result<bool, LibraryError> {
        if size_bytes == 0 || size_bytes > FILE_BYTES_MAX {
            return Err(LibraryError::Size { size_bytes });
        }
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        store::image::lock_uploads(&mut tx).await?;
        let manifest =
            store::image::announce_file(&mut tx, &sha256, size_bytes, PIECE_BYTES, account).await?;
        // A folder that does not answer now has lost nothing: the file stays complete for all racks.
        let path = self.path(&sha256);
        let has_it = manifest.complete
            && path.try_exists().map_err(|source| LibraryError::Io {
                doing: "looking for",
                path,
                source,
            })?;
        if has_it {
            tx.commit().await.map_err(StoreError::from)?;
            return Ok(true);
        }
        if manifest.complete {
            // The manifest outlived the file (a lost disk): take it again.
            store::image::reset_file(&mut tx, &sha256, size_bytes).await?;
        }
        let (all, own) = store::image::uploads(&mut tx, account).await?;
        let free = self.free_bytes()?;
        let admitted = admit(all, own, size_bytes, free);
        self.count(&admitted, all.bytes);
        admitted?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(false)
    }

    fn count(&self, admitted: &Result<(), LibraryError>, held_bytes: u64) {
        let counters = &self.counters;
        let counter = match admitted {
            Ok(()) => {
                counters.held_bytes.store(held_bytes, Ordering::Relaxed);
                &counters.announced
            }
            Err(LibraryError::NoRoom { of_account: true }) => &counters.refused_account,
            Err(LibraryError::DiskFull { .. }) => &counters.disk_full,
            Err(_) => &counters.refused_all,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn free_bytes(&self) -> Result<u64, LibraryError> {
        let statistics = rustix::fs::statvfs(&self.folder).map_err(|error| LibraryError::Io {
            doing: "asking how much is free in",
            path: self.folder.clone(),
            source: error.into(),
        })?;
        Ok(statistics.f_bavail.saturating_mul(statistics.f_frsize))
    }

    fn lock_uploads(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Option<Upload>>> {
        self.uploads.lock().expect("no holder of this lock panics")
    }

    /// Appends the next chunk of an announced file; returns whether it is complete now.
    pub async fn append(&self, sha256: [u8; 32], chunk: &[u8]) -> Result<bool, LibraryError> {
        let mut connection = self.pool.acquire().await.map_err(StoreError::from)?;
        let manifest = store::image::manifest(&mut connection, &sha256)
            .await?
            .ok_or(LibraryError::NotFound)?;
        drop(connection);
        if manifest.complete {
            return Err(LibraryError::Complete);
        }
        if !manifest.live {
            return Err(LibraryError::GivenUp);
        }
        let mut upload = match self.take_upload(&sha256)? {
            // Announced again meanwhile, with another size: from the beginning.
            Some(upload) if upload.received <= manifest.received_bytes => upload,
            _ => self.resume(&sha256, &manifest).await?,
        };
        let written = self
            .write_chunk(&sha256, &manifest, &mut upload, chunk)
            .await;
        let complete = matches!(written, Ok(()) if upload.received == manifest.size_bytes);
        if let Err(error) = written {
            // What is on disk is not known for sure: the next chunk reads it again.
            self.lock_uploads().remove(&sha256);
            return Err(error);
        }
        if !complete {
            self.lock_uploads().insert(sha256, Some(upload));
            return Ok(false);
        }
        self.lock_uploads().remove(&sha256);
        self.complete(sha256, upload).await?;
        Ok(true)
    }

    /// Reads `length` octets at `offset` of a complete file (less at its end).
    pub async fn read(
        &self,
        sha256: &[u8; 32],
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, LibraryError> {
        let path = self.path(sha256);
        let fail = |doing| {
            let path = path.clone();
            move |source| LibraryError::Io {
                doing,
                path,
                source,
            }
        };
        let mut file = File::open(&path).await.map_err(fail("opening"))?;
        file.seek(SeekFrom::Start(offset))
            .await
            .map_err(fail("seeking in"))?;
        let mut octets = Vec::with_capacity(length.min(PIECE_BYTES as usize));
        file.take(length as u64)
            .read_to_end(&mut octets)
            .await
            .map_err(fail("reading"))?;
        Ok(octets)
    }

    /// The manifest of a complete file.
    pub async fn manifest(&self, sha256: &[u8; 32]) -> Result<Manifest, LibraryError> {
        let mut connection = self.pool.acquire().await.map_err(StoreError::from)?;
        let manifest = store::image::manifest(&mut connection, sha256).await?;
        manifest
            .filter(|manifest| manifest.complete)
            .ok_or(LibraryError::NotFound)
    }

    fn path(&self, sha256: &[u8; 32]) -> PathBuf {
        self.folder.join(hex::encode(sha256))
    }

    fn part_path(&self, sha256: &[u8; 32]) -> PathBuf {
        self.folder.join(format!("{}.part", hex::encode(sha256)))
    }

    fn take_upload(&self, sha256: &[u8; 32]) -> Result<Option<Upload>, LibraryError> {
        let mut uploads = self.lock_uploads();
        match uploads.get_mut(sha256) {
            Some(entry) => entry.take().map(Some).ok_or(LibraryError::Busy),
            None => {
                uploads.insert(*sha256, None);
                Ok(None)
            }
        }
    }

    /// Hashes what an earlier process left of this file, so that an upload goes on after a restart.
    async fn resume(&self, sha256: &[u8; 32], manifest: &Manifest) -> Result<Upload, LibraryError> {
        let mut upload = Upload::new();
        let path = self.part_path(sha256);
        let fail = |doing| {
            let path = path.clone();
            move |source| LibraryError::Io {
                doing,
                path,
                source,
            }
        };
        let result = async {
            let Ok(mut file) = File::open(&path).await else {
                return Ok(());
            };
            // Only what a committed chunk told of counts: the client goes on from there.
            let mut left = manifest.received_bytes;
            let mut buffer = vec![0; 1 << 20];
            while left > 0 {
                let want = buffer
                    .len()
                    .min(usize::try_from(left).unwrap_or(usize::MAX));
                let read = file
                    .read(&mut buffer[..want])
                    .await
                    .map_err(fail("reading"))?;
                if read == 0 {
                    break;
                }
                upload.update(&buffer[..read]);
                left -= read as u64;
            }
            Ok(())
        }
        .await;
        if result.is_err() {
            self.lock_uploads().remove(sha256);
        }
        result.map(|()| upload)
    }

    async fn write_chunk(
        &self,
        sha256: &[u8; 32],
        manifest: &Manifest,
        upload: &mut Upload,
        chunk: &[u8],
    ) -> Result<(), LibraryError> {
        if upload.received + chunk.len() as u64 > manifest.size_bytes {
            return Err(LibraryError::TooLong {
                size_bytes: manifest.size_bytes,
            });
        }
        let path = self.part_path(sha256);
        let fail = |doing| {
            let path = path.clone();
            move |source| LibraryError::Io {
                doing,
                path,
                source,
            }
        };
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .await
            .map_err(fail("opening"))?;
        file.seek(SeekFrom::Start(upload.received))
            .await
            .map_err(fail("seeking in"))?;
        file.write_all(chunk).await.map_err(fail("writing"))?;
        file.flush().await.map_err(fail("writing"))?;
        upload.update(chunk);
        if upload.received == manifest.size_bytes {
            // An earlier upload may have left more.
            file.set_len(upload.received)
                .await
                .map_err(fail("cutting"))?;
            file.sync_all().await.map_err(fail("syncing"))?;
        }
        let mut connection = self.pool.acquire().await.map_err(StoreError::from)?;
        store::image::received(&mut connection, sha256, upload.received).await?;
        Ok(())
    }

    async fn complete(&self, want: [u8; 32], upload: Upload) -> Result<(), LibraryError> {
        let size_bytes = upload.received;
        let (got, pieces) = upload.finish();
        let part = self.part_path(&want);
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        if got != want {
            tokio::fs::remove_file(&part).await.ok();
            store::image::reset_file(&mut tx, &want, size_bytes).await?;
            tx.commit().await.map_err(StoreError::from)?;
            return Err(LibraryError::Mismatch {
                want: hex::encode(want),
                got: hex::encode(got),
            });
        }
        // The file first, its manifest after: a complete manifest always has its file.
        let path = self.path(&want);
        tokio::fs::rename(&part, &path)
            .await
            .map_err(|source| LibraryError::Io {
                doing: "renaming",
                path: part.clone(),
                source,
            })?;
        store::image::complete_file(&mut tx, &want, &pieces).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256(octets: &[u8]) -> [u8; 32] {
        Sha256::digest(octets).into()
    }

    #[tokio::test]
    async fn an_upload_survives_a_restart_and_is_verified_whole() {
        let db = store::testing::database().await;
        let folder = tempfile::tempdir().expect("a folder");
        let content: Vec<u8> = (0..9_000_000u32).map(|i| (i * 7 / 3) as u8).collect();
        let hash = sha256(&content);

        let library = Library::open(folder.path(), db.pool.clone()).expect("opens");
        assert!(
            !library
                .announce(hash, content.len() as u64, None)
                .await
                .expect("announced")
        );
        assert!(
            !library
                .append(hash, &content[..3_000_000])
                .await
                .expect("first chunk")
        );
        assert!(matches!(
            library.manifest(&hash).await,
            Err(LibraryError::NotFound)
        ));

        let library = Library::open(folder.path(), db.pool.clone()).expect("opens again");
        assert!(
            library
                .append(hash, &content[3_000_000..])
                .await
                .expect("the rest")
        );
        let manifest = library.manifest(&hash).await.expect("complete");
        let pieces: Vec<[u8; 32]> = content.chunks(PIECE_BYTES as usize).map(sha256).collect();
        assert_eq!(manifest.pieces, pieces);
        let tail = library.read(&hash, 8_999_990, 100).await.expect("reads");
        assert_eq!(tail, content[8_999_990..]);
        assert!(
            library
                .announce(hash, content.len() as u64, None)
                .await
                .expect("known")
        );
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_looked_for_stays_complete() {
        let db = store::testing::database().await;
        let home = tempfile::tempdir().expect("a folder");
        let folder = home.path().join("files");
        let library = Library::open(&folder, db.pool.clone()).expect("opens");
        let hash = sha256(b"right");
        library.announce(hash, 5, None).await.expect("announced");
        assert!(library.append(hash, b"right").await.expect("whole"));
        // A link to itself: whether the file is there cannot be told.
        let (file, aside) = (library.path(&hash), home.path().join("aside"));
        std::fs::rename(&file, &aside).expect("moved");
        std::os::unix::fs::symlink(&file, &file).expect("linked");
        let told = library.announce(hash, 5, None).await;
        assert!(matches!(told, Err(LibraryError::Io { .. })), "{told:?}");
        std::fs::remove_file(&file).expect("removed");
        std::fs::rename(&aside, &file).expect("moved back");
        assert!(library.announce(hash, 5, None).await.expect("announced"));
    }

    #[tokio::test]
    async fn wrong_content_is_refused_and_can_be_sent_again() {
        let db = store::testing::database().await;
        let folder = tempfile::tempdir().expect("a folder");
        let library = Library::open(folder.path(), db.pool.clone()).expect("opens");
        let hash = sha256(b"right");
        library.announce(hash, 5, None).await.expect("announced");
        let wrong = library.append(hash, b"wrong").await;
        assert!(
            matches!(wrong, Err(LibraryError::Mismatch { .. })),
            "{wrong:?}"
        );
        assert!(matches!(
            library.append(hash, b"too long").await,
            Err(LibraryError::TooLong { .. })
        ));
        assert!(library.append(hash, b"right").await.expect("accepted"));
        assert!(matches!(
            library.append(hash, b"x").await,
            Err(LibraryError::Complete)
        ));
        assert!(matches!(
            library.announce([1; 32], 0, None).await,
            Err(LibraryError::Size { .. })
        ));
    }

    /// The size that was announced first and wrong does not keep the file from coming.
    #[tokio::test]
    async fn the_last_word_on_the_size_of_an_unfinished_file_counts() {
        let db = store::testing::database().await;
        let folder = tempfile::tempdir().expect("a folder");
        let library = Library::open(folder.path(), db.pool.clone()).expect("opens");
        let hash = sha256(b"right");
        library.announce(hash, 9, None).await.expect("announced");
        assert!(!library.append(hash, b"wrong-ab").await.expect("taken"));
        library.announce(hash, 5, None).await.expect("announced");
        assert!(library.append(hash, b"right").await.expect("whole"));
        assert_eq!(library.read(&hash, 0, 99).await.expect("there"), b"right");
    }
}
