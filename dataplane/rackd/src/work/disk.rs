//! Files of the image cache, through the ring: `<folder>/<sha256 in hex>` and, while it is being filled,
//! `<sha256>.part`. A name without `.part` was verified whole and synced before it got the name.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

pub type Sha256 = [u8; 32];

/// The cache's folder.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// A file found at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub sha256: Sha256,
    pub bytes: u64,
    pub used: SystemTime,
    pub complete: bool,
}

impl Folder {
    /// Makes the folder if there is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self(path.to_owned()))
    }

    /// A folder that could not be opened: everything done with it fails with the system's reason.
    pub fn unchecked(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// What is there. Foreign names are left alone.
    pub fn scan(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (stem, complete) = match name.strip_suffix(".part") {
                Some(stem) => (stem, false),
                None => (name, true),
            };
            let mut sha256 = [0; 32];
            if hex::decode_to_slice(stem, &mut sha256).is_err() {
                continue;
            }
            let about = entry.metadata()?;
            if about.is_file() {
                let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Found {
                    sha256,
                    bytes: about.len(),
                    used,
                    complete,
                });
            }
        }
        Ok(found)
    }

    pub fn complete(&self, sha256: &Sha256) -> PathBuf {
        self.0.join(hex::encode(sha256))
    }

    pub fn part(&self, sha256: &Sha256) -> PathBuf {
        self.0.join(format!("{}.part", hex::encode(sha256)))
    }

    /// Removes both forms. Transfers that have the file open go on.
    pub fn remove(&self, sha256: &Sha256) -> io::Result<()> {
        for path in [self.complete(sha256), self.part(sha256)] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// For reading only, as shards get it.
    pub fn open_complete(&self, sha256: &Sha256) -> io::Result<OwnedFd> {
        std::fs::File::open(self.complete(sha256)).map(OwnedFd::from)
    }

    /// Notes a use, so that the order of eviction survives a restart.
    pub fn touch(&self, sha256: &Sha256, now: SystemTime) -> io::Result<()> {
        std::fs::File::options()
            .append(true)
            .open(self.complete(sha256))?
            .set_modified(now)
    }

    /// Gives a filled and synced part its name, for good.
    pub fn finish(&self, sha256: &Sha256) -> io::Result<()> {
        std::fs::rename(self.part(sha256), self.complete(sha256))?;
        std::fs::File::open(&self.0)?.sync_all()
    }
}

/// A file being filled.
pub struct Part {
    file: File,
    /// It has content from an earlier run, which nobody has vouched for yet.
    pub resumed: bool,
}

impl Part {
    /// Opens or makes the part and reserves `size_bytes` for it, so that a full disk shows now and not in
    /// the middle. Also gives a descriptor to read it by.
    pub fn open(path: &Path, size_bytes: u64) -> io::Result<(Self, OwnedFd)> {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let had = file.metadata()?.len();
        if had != size_bytes {
            // Not of this size: nothing in it can be trusted to be in its place.
            file.set_len(0)?;
            file.set_len(size_bytes)?;
        }
        if size_bytes > 0 {
            let reserve = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(&file, reserve, 0, size_bytes) {
                // Not every file system can; then it shows in the middle after all.
                Err(rustix::io::Errno::OPNOTSUPP) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let reader = std::fs::File::open(path)?;
        let part = Self {
            file: File::from_std(file),
            resumed: had == size_bytes && had > 0,
        };
        Ok((part, reader.into()))
    }

    pub async fn write(&self, offset: u64, octets: Vec<u8>) -> io::Result<()> {
        self.file.write_all_at(octets, offset).await.0
    }

    pub async fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        read(&self.file, offset, length).await
    }

    pub async fn sync(&self) -> io::Result<()> {
        self.file.sync_data().await
    }
}

/// The whole of a small file; `None` if it is larger than `bytes_max`.
pub async fn read_whole(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = std::fs::File::open(path)?;
    let bytes = file.metadata()?.len();
    match usize::try_from(bytes) {
        Ok(length) if bytes <= bytes_max => read(&File::from_std(file), 0, length).await.map(Some),
        _ => Ok(None),
    }
}

async fn read(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    if length == 0 {
        return Ok(Vec::new());
    }
    let buffer = Vec::with_capacity(length).slice(..length);
    let (done, buffer) = file.read_exact_at(buffer, offset).await;
    done.map(|()| buffer.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_files() {
        tokio_uring::start(async {
            let home = tempfile::tempdir().unwrap();
            let folder = Folder::open(&home.path().join("cache")).unwrap();
            let sha256 = [0xab; 32];
            let (part, reader) = Part::open(&folder.part(&sha256), 10).unwrap();
            assert!(!part.resumed);
            part.write(6, b"four".to_vec()).await.unwrap();
            drop(part);
            let (part, _) = Part::open(&folder.part(&sha256), 10).unwrap();
            assert!(part.resumed);
            assert_eq!(part.read(6, 4).await.unwrap(), b"four");
            part.write(0, b"sixsix".to_vec()).await.unwrap();
            part.sync().await.unwrap();
            let found = folder.scan().unwrap();
            assert!(found.len() == 1 && !found[0].complete && found[0].bytes == 10);
            folder.finish(&sha256).unwrap();
            assert!(folder.scan().unwrap()[0].complete);
            let mut octets = [0; 10];
            rustix::io::pread(&reader, &mut octets, 0).unwrap();
            assert_eq!(
                &octets, b"sixsixfour",
                "the early reader sees the same file"
            );
            let whole = read_whole(&folder.complete(&sha256), 10).await.unwrap();
            assert_eq!(whole.as_deref(), Some(&b"sixsixfour"[..]));
            assert_eq!(
                read_whole(&folder.complete(&sha256), 9).await.unwrap(),
                None
            );
            folder.remove(&sha256).unwrap();
            folder.remove(&sha256).unwrap();
            // Another size: the old content is gone.
            Part::open(&folder.part(&sha256), 4).unwrap();
            let (part, _) = Part::open(&folder.part(&sha256), 8).unwrap();
            assert!(!part.resumed);
        });
    }
}
