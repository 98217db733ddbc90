//! What unfinished uploads and files out of use leave, and when it goes.

use std::sync::atomic::Ordering;

use store::StoreError;

use crate::{Library, LibraryError};

impl Library {
    /// Ends uploads that nobody goes on with, also those of processes that are gone, and removes files that nothing has
    /// named for long.
    pub async fn sweep(&self) -> Result<(), LibraryError> {
        let mut connection = self.pool.acquire().await.map_err(StoreError::from)?;
        let given_up = store::image::give_up_uploads(&mut connection).await?;
        self.counters
            .given_up
            .fetch_add(given_up, Ordering::Relaxed);
        for sha256 in self.parts()? {
            let manifest = store::image::manifest(&mut connection, &sha256).await?;
            if manifest.is_some_and(|manifest| manifest.live) {
                continue;
            }
            // Unless a chunk is being written.
            if self.take_upload(&sha256).is_ok() {
                tokio::fs::remove_file(self.part_path(&sha256)).await.ok();
                self.lock_uploads().remove(&sha256);
            }
        }
        drop(connection);
        loop {
            let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
            let gone = store::image::forget_unused(&mut tx).await?;
            if let Some(sha256) = gone {
                // Whoever announces it meanwhile waits for its row; a row without its file is mended when it is announced.
                tokio::fs::remove_file(self.path(&sha256)).await.ok();
                self.counters.unused_removed.fetch_add(1, Ordering::Relaxed);
            }
            tx.commit().await.map_err(StoreError::from)?;
            if gone.is_none() {
                return Ok(());
            }
        }
    }

    /// The files in the folder that are still arriving, or were.
    fn parts(&self) -> Result<Vec<[u8; 32]>, LibraryError> {
        let entries = std::fs::read_dir(&self.folder).map_err(|source| LibraryError::Io {
            doing: "reading",
            path: self.folder.clone(),
            source,
        })?;
        let sha256_of = |name: &std::ffi::OsStr| {
            let mut sha256 = [0; 32];
            let hex = name.to_str()?.strip_suffix(".part")?;
            hex::decode_to_slice(hex, &mut sha256).ok()?;
            Some(sha256)
        };
        Ok(entries
            .filter_map(|entry| sha256_of(&entry.ok()?.file_name()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn sha256(octets: &[u8]) -> [u8; 32] {
        Sha256::digest(octets).into()
    }

    /// An account that announces without end is refused; others are not, and what was begun goes on.
    #[tokio::test]
    async fn unfinished_uploads_are_an_accounts_share_and_are_given_up_after_a_day() {
        let db = store::testing::database().await;
        let folder = tempfile::tempdir().expect("a folder");
        let library = Library::open(folder.path(), db.pool.clone()).expect("opens");
        let name = |number: u16| {
            let mut sha256 = [7; 32];
            sha256[..2].copy_from_slice(&number.to_be_bytes());
            sha256
        };
        for username in ["ada", "bob"] {
            let mut db = db.pool.acquire().await.expect("connects");
            let new = store::account::NewAccount {
                username,
                email: "",
                password_hash: "!",
                is_admin: true,
            };
            store::account::create(&mut db, &new).await.expect("made");
        }
        let (ada, bob) = (Some(1), Some(2));
        for number in 0..512 {
            library
                .announce(name(number), 5, ada)
                .await
                .expect("announced");
        }
        let more = library.announce(name(512), 5, ada).await;
        assert!(
            matches!(more, Err(LibraryError::NoRoom { of_account: true })),
            "{more:?}"
        );
        let again = library.announce(name(0), 5, ada).await;
        assert!(matches!(again, Ok(false)), "it is among them: {again:?}");
        library
            .announce(name(600), 5, bob)
            .await
            .expect("another's share");
        let counters = library.counters();
        assert_eq!(counters.refused_account.load(Ordering::Relaxed), 1);

        // The process is killed with a chunk on its disk, and something that no row tells of.
        library.append(name(0), b"abc").await.expect("a chunk");
        let lost = folder
            .path()
            .join(format!("{}.part", hex::encode(name(999))));
        std::fs::write(&lost, b"x").expect("written");
        let library = Library::open(folder.path(), db.pool.clone()).expect("opens again");
        library.sweep().await.expect("swept");
        let part = folder.path().join(format!("{}.part", hex::encode(name(0))));
        assert!(part.exists() && !lost.exists());

        sqlx::query(
            "update library_file set touched = now() - interval '25 hours' where account_id = 1",
        )
        .execute(&db.pool)
        .await
        .expect("a day passes");
        let late = library.append(name(0), b"de").await;
        assert!(matches!(late, Err(LibraryError::GivenUp)), "{late:?}");
        library.sweep().await.expect("swept");
        assert!(!part.exists());
        let left: i64 = sqlx::query_scalar("select count(*) from library_file")
            .fetch_one(&db.pool)
            .await
            .expect("counted");
        assert_eq!(left, 1, "bob's");
        library
            .announce(name(512), 5, ada)
            .await
            .expect("there is room again");
    }

    #[tokio::test]
    async fn a_file_that_nothing_names_goes_after_a_week_and_one_that_is_used_stays() {
        let db = store::testing::database().await;
        let folder = tempfile::tempdir().expect("a folder");
        let library = Library::open(folder.path(), db.pool.clone()).expect("opens");
        let (used, unused) = (sha256(b"used"), sha256(b"gone"));
        for (hash, content) in [(used, b"used"), (unused, b"gone")] {
            library.announce(hash, 4, None).await.expect("announced");
            assert!(library.append(hash, content).await.expect("taken"));
        }
        let mut connection = db.pool.acquire().await.expect("connects");
        store::image::set_loader(&mut connection, "bootx64.efi", &used)
            .await
            .expect("set");
        let age = "update library_file set touched = now() - interval '8 days'";
        library.sweep().await.expect("swept");
        assert!(library.manifest(&unused).await.is_ok(), "not a week yet");
        sqlx::query(age).execute(&db.pool).await.expect("aged");
        library.sweep().await.expect("swept");
        assert!(library.manifest(&unused).await.is_err());
        assert!(!folder.path().join(hex::encode(unused)).exists());
        assert_eq!(library.read(&used, 0, 9).await.expect("there"), b"used");
        assert!(
            !library
                .announce(unused, 4, None)
                .await
                .expect("to be sent again")
        );
        assert!(library.append(unused, b"gone").await.expect("taken"));
    }
}
