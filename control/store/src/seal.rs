//! Secrets at rest: envelope encryption with a key that is kept outside PostgreSQL.
//!
//! Each sealed value has its own data key, which is sealed by the region's key: 32 octets in a file that only
//! the region's user may read. AES-256-GCM both times; the context (what the value belongs to) is
//! authenticated with it, so that a sealed value copied to another row does not open there.
//!
//! A dump of the database alone opens nothing. Whoever reads the key file and the database has everything.

use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use sqlx::PgConnection;

use crate::StoreError;

const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// First octet of every sealed value.
const VERSION: u8 = 1;
/// version, nonce and sealed data key, nonce; the sealed value follows.
const HEADER_BYTES: usize = 1 + NONCE_LEN + KEY_BYTES + TAG_BYTES + NONCE_LEN;

const CANARY: &str = "canary";

/// Why there is no usable region key.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("reading or making the region key {path}")]
    KeyFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the region key {path} is not {KEY_BYTES} octets long")]
    KeyLength { path: PathBuf },
    #[error("the region key {path} may be read by others (mode {mode:03o}); it must be 600")]
    KeyMode { path: PathBuf, mode: u32 },
    #[error("the operating system gives no random numbers")]
    Random,
    #[error(
        "the region key {path} is not the one that this database was sealed with: put the original key file back"
    )]
    WrongKey { path: PathBuf },
    #[error("reading the canary")]
    Store(#[from] StoreError),
}

/// Seals and opens with the region's key.
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
    path: PathBuf,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// Reads the key file, or makes one when there is none. Two processes that start at once agree on one key.
    pub fn load_or_create(path: &Path) -> Result<Self, SealError> {
        let key_file = |source| SealError::KeyFile {
            path: path.to_owned(),
            source,
        };
        let random = SystemRandom::new();
        if !path.try_exists().map_err(key_file)? {
            let mut key = [0; KEY_BYTES];
            random.fill(&mut key).map_err(|_| SealError::Random)?;
            create(path, &key).map_err(key_file)?;
        }
        let file = std::fs::File::open(path).map_err(key_file)?;
        let mode = file.metadata().map_err(key_file)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SealError::KeyMode {
                path: path.to_owned(),
                mode,
            });
        }
        let mut key = Vec::with_capacity(KEY_BYTES + 1);
        file.take(KEY_BYTES as u64 + 1)
            .read_to_end(&mut key)
            .map_err(key_file)?;
        let key: [u8; KEY_BYTES] = key.try_into().map_err(|_| SealError::KeyLength {
            path: path.to_owned(),
        })?;
        Ok(Self {
            key: aead_key(&key),
            random,
            path: path.to_owned(),
        })
    }

    /// A sealer with a random key that no file holds: for tests of what needs one.
    pub fn ephemeral() -> Self {
        let random = SystemRandom::new();
        let mut key = [0; KEY_BYTES];
        random
            .fill(&mut key)
            .expect("the operating system gives random numbers");
        Self {
            key: aead_key(&key),
            random,
            path: PathBuf::new(),
        }
    }

    /// Makes sure that this is the key of this database: the first region leaves a canary, later ones open it.
    pub async fn verify(&self, db: &mut PgConnection) -> Result<(), SealError> {
        let canary = secret_or_insert(db, self, CANARY, CANARY.as_bytes()).await;
        match canary {
            Ok(canary) if canary == CANARY.as_bytes() => Ok(()),
            Ok(_) | Err(StoreError::Sealed) => Err(SealError::WrongKey {
                path: self.path.clone(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Seals `secret` so that it opens only with this key and the same `context`.
    pub fn seal(&self, context: &str, secret: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut data_key = [0; KEY_BYTES];
        let mut nonces = [[0; NONCE_LEN]; 2];
        self.random
            .fill(&mut data_key)
            .map_err(|_| StoreError::Sealed)?;
        for nonce in &mut nonces {
            self.random.fill(nonce).map_err(|_| StoreError::Sealed)?;
        }
        let mut sealed = Vec::with_capacity(HEADER_BYTES + secret.len() + TAG_BYTES);
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonces[0]);
        let mut wrapped = data_key.to_vec();
        seal_in_place(&self.key, nonces[0], context, &mut wrapped)?;
        sealed.extend_from_slice(&wrapped);
        sealed.extend_from_slice(&nonces[1]);
        let mut value = secret.to_vec();
        seal_in_place(&aead_key(&data_key), nonces[1], context, &mut value)?;
        sealed.extend_from_slice(&value);
        Ok(sealed)
    }

    /// Opens what `seal` made with this key and context; anything else is [`StoreError::Sealed`].
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        let (header, value) = sealed
            .split_at_checked(HEADER_BYTES)
            .ok_or(StoreError::Sealed)?;
        let (version, header) = header.split_at(1);
        let (wrap_nonce, header) = header.split_at(NONCE_LEN);
        let (wrapped, value_nonce) = header.split_at(KEY_BYTES + TAG_BYTES);
        if version[0] != VERSION {
            return Err(StoreError::Sealed);
        }
        let data_key = open_in_place(&self.key, wrap_nonce, context, wrapped.to_vec())?;
        let data_key: [u8; KEY_BYTES] = data_key.try_into().map_err(|_| StoreError::Sealed)?;
        open_in_place(&aead_key(&data_key), value_nonce, context, value.to_vec())
    }
}

fn aead_key(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has the cipher's length"))
}

fn seal_in_place(
    key: &LessSafeKey,
    nonce: [u8; NONCE_LEN],
    context: &str,
    bytes: &mut Vec<u8>,
) -> Result<(), StoreError> {
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(context),
        bytes,
    )
    .map_err(|_| StoreError::Sealed)
}

fn open_in_place(
    key: &LessSafeKey,
    nonce: &[u8],
    context: &str,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, StoreError> {
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| StoreError::Sealed)?;
    let length = key
        .open_in_place(nonce, Aad::from(context), &mut bytes)
        .map_err(|_| StoreError::Sealed)?
        .len();
    bytes.truncate(length);
    Ok(bytes)
}

/// Writes the key aside and links it into place, so that nobody ever reads half of it; another process's
/// key that is there by then stays.
fn create(path: &Path, key: &[u8; KEY_BYTES]) -> io::Result<()> {
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(key)?;
        file.sync_all()?;
        match std::fs::hard_link(&aside, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    })();
    std::fs::remove_file(&aside).ok();
    written?;
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

//---------------------------------------------------------------- named secrets of the region

fn context_of(name: &str) -> String {
    format!("secret:{name}")
}

/// The region secret `name`.
pub async fn secret(
    db: &mut PgConnection,
    sealer: &Sealer,
    name: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    let sealed: Option<Vec<u8>> =
        sqlx::query_scalar("select sealed from sealed_secret where name = $1")
            .bind(name)
            .fetch_optional(db)
            .await?;
    sealed
        .map(|sealed| sealer.open(&context_of(name), &sealed))
        .transpose()
}

/// The region secret `name`: what is stored already, else `candidate`, which is stored then. Processes that do
/// this at the same time get the same answer, once the first has committed.
pub async fn secret_or_insert(
    db: &mut PgConnection,
    sealer: &Sealer,
    name: &str,
    candidate: &[u8],
) -> Result<Vec<u8>, StoreError> {
    let sealed = sealer.seal(&context_of(name), candidate)?;
    // `do update` and not `do nothing`: it waits for a concurrent insert and then returns that row.
    let sealed: Vec<u8> = sqlx::query_scalar(
        "insert into sealed_secret (name, sealed) values ($1, $2)
         on conflict (name) do update set name = excluded.name
         returning sealed",
    )
    .bind(name)
    .bind(sealed)
    .fetch_one(db)
    .await?;
    sealer.open(&context_of(name), &sealed)
}

/// Sets the region secret `name`, replacing what was there.
pub async fn put_secret(
    db: &mut PgConnection,
    sealer: &Sealer,
    name: &str,
    secret: &[u8],
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into sealed_secret (name, sealed) values ($1, $2)
         on conflict (name) do update set sealed = excluded.sealed, created = now()",
    )
    .bind(name)
    .bind(sealer.seal(&context_of(name), secret)?)
    .execute(db)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_with_its_key_and_context() {
        let (sealer, other) = (Sealer::ephemeral(), Sealer::ephemeral());
        let sealed = sealer.seal("bmc:1", b"hush").unwrap();
        assert_eq!(sealer.open("bmc:1", &sealed).unwrap(), b"hush");
        assert!(matches!(
            sealer.open("bmc:2", &sealed),
            Err(StoreError::Sealed)
        ));
        assert!(matches!(
            other.open("bmc:1", &sealed),
            Err(StoreError::Sealed)
        ));
        assert!(!sealed.windows(4).any(|window| window == b"hush"));
        assert_ne!(sealed, sealer.seal("bmc:1", b"hush").unwrap());
    }

    #[test]
    fn damage_anywhere_is_an_error() {
        let sealer = Sealer::ephemeral();
        let sealed = sealer.seal("a", b"hush").unwrap();
        for length in 0..sealed.len() {
            assert!(
                sealer.open("a", &sealed[..length]).is_err(),
                "cut to {length}"
            );
        }
        for index in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[index] ^= 1;
            assert!(sealer.open("a", &damaged).is_err(), "octet {index}");
        }
    }

    #[test]
    fn the_key_file_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("region.key");
        let sealed = Sealer::load_or_create(&path)
            .unwrap()
            .seal("a", b"hush")
            .unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            Sealer::load_or_create(&path)
                .unwrap()
                .open("a", &sealed)
                .unwrap(),
            b"hush"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .unwrap();
        assert!(matches!(
            Sealer::load_or_create(&path),
            Err(SealError::KeyMode { .. })
        ));
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(
            Sealer::load_or_create(&path),
            Err(SealError::KeyLength { .. })
        ));
    }

    #[tokio::test]
    async fn another_databases_key_is_told() {
        let db = crate::testing::database().await;
        let mut connection = db.pool.acquire().await.unwrap();
        let (sealer, other) = (Sealer::ephemeral(), Sealer::ephemeral());
        sealer.verify(&mut connection).await.unwrap();
        sealer.verify(&mut connection).await.unwrap();
        assert!(matches!(
            other.verify(&mut connection).await,
            Err(SealError::WrongKey { .. })
        ));
    }

    #[tokio::test]
    async fn the_first_candidate_wins() {
        let db = crate::testing::database().await;
        let mut connection = db.pool.acquire().await.unwrap();
        let sealer = Sealer::ephemeral();
        assert_eq!(secret(&mut connection, &sealer, "ca").await.unwrap(), None);
        for candidate in [b"one", b"two"] {
            let kept = secret_or_insert(&mut connection, &sealer, "ca", candidate)
                .await
                .unwrap();
            assert_eq!(kept, b"one");
        }
        put_secret(&mut connection, &sealer, "ca", b"three")
            .await
            .unwrap();
        assert_eq!(
            secret(&mut connection, &sealer, "ca")
                .await
                .unwrap()
                .unwrap(),
            b"three"
        );
    }
}
