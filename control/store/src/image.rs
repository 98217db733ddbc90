//! The image library's tables: file manifests, boot resources, boot loaders.

use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::StoreError;
use crate::feed::{self, Kind};

/// A library file: its size, and the SHA-256 of each piece once it is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub sha256: [u8; 32],
    pub size_bytes: u64,
    pub received_bytes: u64,
    pub piece_bytes: u32,
    pub pieces: Vec<[u8; 32]>,
    pub complete: bool,
    /// Still arriving: announced, or a chunk came, not long ago.
    pub live: bool,
}

/// What is still arriving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uploads {
    pub files: u64,
    pub bytes: u64,
    /// Of `bytes`, those that have not come yet.
    pub missing_bytes: u64,
}

/// An upload without a chunk for this long is given up.
pub const UPLOAD_SECS: i64 = 24 * 3600;
/// A file that no boot resource and no loader names is kept as long as this: machines may be booting from it.
const UNUSED_DAYS: i32 = 7;

/// A boot resource with its files, `(filetype, sha256, size_bytes, complete)`.
#[derive(Clone, Debug)]
pub struct BootResource {
    pub id: i32,
    pub osystem: String,
    pub release: String,
    pub architecture: String,
    pub subarchitecture: String,
    pub label: String,
    pub title: String,
    pub created: time::OffsetDateTime,
    pub files: Vec<BootResourceFile>,
}

#[derive(Clone, Debug)]
pub struct BootResourceFile {
    pub id: i32,
    pub filetype: String,
    pub sha256: [u8; 32],
    pub size_bytes: u64,
    pub received_bytes: u64,
    pub complete: bool,
}

/// What identifies a boot resource.
#[derive(Clone, Copy, Debug)]
pub struct ResourceName<'a> {
    pub osystem: &'a str,
    pub release: &'a str,
    pub architecture: &'a str,
    pub subarchitecture: &'a str,
    pub label: &'a str,
}

fn hash(octets: &[u8]) -> Result<[u8; 32], StoreError> {
    octets
        .try_into()
        .map_err(|_| StoreError::Corrupt { what: "SHA-256" })
}

fn size(octets: i64) -> u64 {
    octets.unsigned_abs() // the columns are never negative
}

fn manifest_of(row: &sqlx::postgres::PgRow) -> Result<Manifest, StoreError> {
    let pieces: Vec<Vec<u8>> = row.try_get("pieces")?;
    Ok(Manifest {
        sha256: hash(row.try_get("sha256")?)?,
        size_bytes: size(row.try_get("size_bytes")?),
        received_bytes: size(row.try_get("received_bytes")?),
        piece_bytes: row.try_get::<i32, _>("piece_bytes")?.unsigned_abs(),
        pieces: pieces
            .iter()
            .map(|piece| hash(piece))
            .collect::<Result<_, _>>()?,
        complete: row.try_get("complete")?,
        live: row.try_get("live")?,
    })
}

fn manifest_columns() -> String {
    format!(
        "sha256, size_bytes, received_bytes, piece_bytes, pieces, complete,
         not complete and touched > now() - interval '{UPLOAD_SECS} seconds' as live"
    )
}

/// Makes the file's row if it is new; returns it as it is. Of a file that is not complete the last word on its size counts.
pub async fn announce_file(
    db: &mut PgConnection,
    sha256: &[u8; 32],
    size_bytes: u64,
    piece_bytes: u32,
    account: Option<i32>,
) -> Result<Manifest, StoreError> {
    let columns = manifest_columns();
    let row = sqlx::query(AssertSqlSafe(format!(
        "insert into library_file as l (sha256, size_bytes, piece_bytes, account_id) values ($1, $2, $3, $4)
         on conflict (sha256) do update set
             touched = now(),
             account_id = case when l.complete then l.account_id else excluded.account_id end,
             size_bytes = case when l.complete then l.size_bytes else excluded.size_bytes end,
             received_bytes = case when l.complete or l.size_bytes = excluded.size_bytes
                                   then l.received_bytes else 0 end
         returning {columns}"
    )))
    .bind(sha256.as_slice())
    .bind(size_bytes.cast_signed())
    .bind(piece_bytes.cast_signed())
    .bind(account)
    .fetch_one(db)
    .await?;
    manifest_of(&row)
}

/// Until the transaction ends nobody else announces a file: what is free is counted and taken by one at a time.
pub async fn lock_uploads(db: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('muster uploads', 0))")
        .execute(db)
        .await?;
    Ok(())
}

/// What is arriving in all, and of it what `account` has announced.
pub async fn uploads(
    db: &mut PgConnection,
    account: Option<i32>,
) -> Result<(Uploads, Uploads), StoreError> {
    type Row = (bool, i64, i64, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "select account_id is not distinct from $1, count(*), sum(size_bytes)::bigint,
                sum(size_bytes - received_bytes)::bigint
         from library_file where not complete and touched > now() - make_interval(secs => $2) group by 1",
    )
    .bind(account)
    .bind(UPLOAD_SECS as f64)
    .fetch_all(db)
    .await?;
    let (mut all, mut own) = (Uploads::default(), Uploads::default());
    for (is_own, files, bytes, missing_bytes) in rows {
        let some = Uploads {
            files: size(files),
            bytes: size(bytes),
            missing_bytes: size(missing_bytes),
        };
        all.files += some.files;
        all.bytes += some.bytes;
        all.missing_bytes += some.missing_bytes;
        if is_own {
            own = some;
        }
    }
    Ok((all, own))
}

/// Forgets uploads that nobody goes on with. Says how many there were.
pub async fn give_up_uploads(db: &mut PgConnection) -> Result<u64, StoreError> {
    const STALE: &str = "not complete and touched <= now() - make_interval(secs => $1)";
    let gone = sqlx::query(AssertSqlSafe(format!(
        "delete from library_file l where {STALE} and not {USED}"
    )))
    .bind(UPLOAD_SECS as f64)
    .execute(&mut *db)
    .await?;
    let emptied = sqlx::query(AssertSqlSafe(format!(
        "update library_file set received_bytes = 0 where {STALE} and received_bytes > 0"
    )))
    .bind(UPLOAD_SECS as f64)
    .execute(db)
    .await?;
    Ok(gone.rows_affected() + emptied.rows_affected())
}

/// A file of the table `l` that a boot resource or a loader names.
const USED: &str = "(exists (select from boot_resource_file f where f.sha256 = l.sha256)
                     or exists (select from boot_loader b where b.sha256 = l.sha256))";

/// Forgets one complete file that nobody has used for long. The caller removes its octets before it commits.
pub async fn forget_unused(db: &mut PgConnection) -> Result<Option<[u8; 32]>, StoreError> {
    sqlx::query(AssertSqlSafe(format!(
        "update library_file l set touched = now()
         where complete and touched < now() - interval '1 hour' and {USED}"
    )))
    .execute(&mut *db)
    .await?;
    let gone: Option<Vec<u8>> = sqlx::query_scalar(AssertSqlSafe(format!(
        "delete from library_file where sha256 = (
             select sha256 from library_file l
             where complete and touched < now() - make_interval(days => $1) and not {USED}
             order by touched limit 1 for update)
         returning sha256"
    )))
    .bind(UNUSED_DAYS)
    .fetch_optional(&mut *db)
    .await?;
    let Some(gone) = gone else {
        return Ok(None);
    };
    feed::changed(db, Kind::File, &hex::encode(&gone)).await?;
    hash(&gone).map(Some)
}

pub async fn manifest(
    db: &mut PgConnection,
    sha256: &[u8; 32],
) -> Result<Option<Manifest>, StoreError> {
    let columns = manifest_columns();
    let row = sqlx::query(AssertSqlSafe(format!(
        "select {columns} from library_file where sha256 = $1"
    )))
    .bind(sha256.as_slice())
    .fetch_optional(db)
    .await?;
    row.as_ref().map(manifest_of).transpose()
}

/// Notes how much of an upload is on disk.
pub async fn received(
    db: &mut PgConnection,
    sha256: &[u8; 32],
    received_bytes: u64,
) -> Result<(), StoreError> {
    sqlx::query("update library_file set received_bytes = $2, touched = now() where sha256 = $1 and not complete")
        .bind(sha256.as_slice())
        .bind(received_bytes.cast_signed())
        .execute(db)
        .await?;
    Ok(())
}

/// Forgets what has arrived: the file is to be sent again.
pub async fn reset_file(
    db: &mut PgConnection,
    sha256: &[u8; 32],
    size_bytes: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "update library_file set received_bytes = 0, size_bytes = $2, complete = false, pieces = '{}'
         where sha256 = $1",
    )
    .bind(sha256.as_slice())
    .bind(size_bytes.cast_signed())
    .execute(db)
    .await?;
    Ok(())
}

/// Makes the file visible to racks.
pub async fn complete_file(
    db: &mut PgConnection,
    sha256: &[u8; 32],
    pieces: &[[u8; 32]],
) -> Result<(), StoreError> {
    let pieces: Vec<&[u8]> = pieces.iter().map(<[u8; 32]>::as_slice).collect();
    sqlx::query(
        "update library_file set pieces = $2, complete = true, received_bytes = size_bytes, touched = now()
         where sha256 = $1",
    )
    .bind(sha256.as_slice())
    .bind(pieces)
    .execute(&mut *db)
    .await?;
    feed::changed(db, Kind::File, &hex::encode(sha256)).await?;
    // Racks were told nothing of a loader while its file was on its way.
    let paths: Vec<String> = sqlx::query_scalar("select path from boot_loader where sha256 = $1")
        .bind(sha256.as_slice())
        .fetch_all(&mut *db)
        .await?;
    for path in paths {
        feed::changed(db, Kind::Loader, &path).await?;
    }
    // Which image machines boot may have changed with it.
    feed::changed(db, Kind::Settings, "").await
}

/// Makes the resource if it is new; returns its id.
pub async fn ensure_resource(
    db: &mut PgConnection,
    name: ResourceName<'_>,
    title: &str,
) -> Result<i32, StoreError> {
    let id = sqlx::query_scalar(
        "insert into boot_resource (osystem, release, architecture, subarchitecture, label, title)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (osystem, release, architecture, subarchitecture, label)
         do update set title = excluded.title
         returning id",
    )
    .bind(name.osystem)
    .bind(name.release)
    .bind(name.architecture)
    .bind(name.subarchitecture)
    .bind(name.label)
    .bind(title)
    .fetch_one(db)
    .await?;
    Ok(id)
}

/// Sets the resource's file of one type; returns the file row's id.
pub async fn set_resource_file(
    db: &mut PgConnection,
    resource: i32,
    filetype: &str,
    sha256: &[u8; 32],
) -> Result<i32, StoreError> {
    let id = sqlx::query_scalar(
        "insert into boot_resource_file (resource_id, filetype, sha256) values ($1, $2, $3)
         on conflict (resource_id, filetype) do update set sha256 = excluded.sha256
         returning id",
    )
    .bind(resource)
    .bind(filetype)
    .bind(sha256.as_slice())
    .fetch_one(&mut *db)
    .await?;
    feed::changed(db, Kind::Settings, "").await?;
    Ok(id)
}

/// All boot resources with their files, by name.
pub async fn resources(db: &mut PgConnection) -> Result<Vec<BootResource>, StoreError> {
    let rows = sqlx::query(
        "select r.id, osystem, release, architecture, subarchitecture, label, title, r.created,
                f.id as file_id, f.filetype, l.sha256, l.size_bytes, l.received_bytes, l.complete
         from boot_resource r
         left join boot_resource_file f on f.resource_id = r.id
         left join library_file l using (sha256)
         order by osystem, release, architecture, subarchitecture, label, r.id, f.filetype",
    )
    .fetch_all(db)
    .await?;
    let mut resources: Vec<BootResource> = Vec::new();
    for row in &rows {
        let id = row.try_get("id")?;
        if resources.last().is_none_or(|last| last.id != id) {
            resources.push(BootResource {
                id,
                osystem: row.try_get("osystem")?,
                release: row.try_get("release")?,
                architecture: row.try_get("architecture")?,
                subarchitecture: row.try_get("subarchitecture")?,
                label: row.try_get("label")?,
                title: row.try_get("title")?,
                created: row.try_get("created")?,
                files: Vec::new(),
            });
        }
        let Some(file_id) = row.try_get::<Option<i32>, _>("file_id")? else {
            continue;
        };
        let file = BootResourceFile {
            id: file_id,
            filetype: row.try_get("filetype")?,
            sha256: hash(row.try_get("sha256")?)?,
            size_bytes: size(row.try_get("size_bytes")?),
            received_bytes: size(row.try_get("received_bytes")?),
            complete: row.try_get("complete")?,
        };
        resources.last_mut().expect("pushed above").files.push(file);
    }
    Ok(resources)
}

/// Removes the resource; its files stay in the library. False when there is none.
pub async fn delete_resource(db: &mut PgConnection, id: i32) -> Result<bool, StoreError> {
    let gone = sqlx::query("delete from boot_resource where id = $1")
        .bind(id)
        .execute(&mut *db);
    let gone = gone.await?.rows_affected() > 0;
    feed::changed(db, Kind::Settings, "").await?;
    Ok(gone)
}

/// The file of a resource that an upload URI names: `(sha256, size_bytes, complete)`.
pub async fn resource_file(
    db: &mut PgConnection,
    resource: i32,
    file: i32,
) -> Result<Option<Manifest>, StoreError> {
    let columns = manifest_columns();
    let row = sqlx::query(AssertSqlSafe(format!(
        "select {columns} from boot_resource_file join library_file using (sha256)
         where resource_id = $1 and id = $2"
    )))
    .bind(resource)
    .bind(file)
    .fetch_optional(db)
    .await?;
    row.as_ref().map(manifest_of).transpose()
}

/// Names a file as a boot loader: `path` is what firmware asks for.
pub async fn set_loader(
    db: &mut PgConnection,
    path: &str,
    sha256: &[u8; 32],
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into boot_loader (path, sha256) values ($1, $2)
         on conflict (path) do update set sha256 = excluded.sha256, updated = now()",
    )
    .bind(path)
    .bind(sha256.as_slice())
    .execute(&mut *db)
    .await?;
    feed::changed(db, Kind::File, &hex::encode(sha256)).await?;
    feed::changed(db, Kind::Loader, path).await
}

/// All loaders whose files are complete: `(path, sha256, size_bytes)`.
pub async fn loaders(db: &mut PgConnection) -> Result<Vec<(String, [u8; 32], u64)>, StoreError> {
    let rows = sqlx::query(
        "select path, sha256, size_bytes from boot_loader join library_file using (sha256)
         where complete order by path",
    )
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok((
                row.try_get("path")?,
                hash(row.try_get("sha256")?)?,
                size(row.try_get("size_bytes")?),
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: ResourceName<'_> = ResourceName {
        osystem: "debian",
        release: "bookworm",
        architecture: "amd64",
        subarchitecture: "generic",
        label: "uploaded",
    };

    #[tokio::test]
    async fn resources_hold_one_file_of_each_type() {
        let db = crate::testing::database().await;
        let mut tx = db.pool.begin().await.unwrap();
        let (old, new) = ([1; 32], [2; 32]);
        for hash in [old, new] {
            let manifest = announce_file(&mut tx, &hash, 10, 4, None).await.unwrap();
            assert!(!manifest.complete);
        }
        let id = ensure_resource(&mut tx, NAME, "").await.unwrap();
        assert_eq!(
            ensure_resource(&mut tx, NAME, "Debian 12").await.unwrap(),
            id
        );
        let file = set_resource_file(&mut tx, id, "squashfs", &old)
            .await
            .unwrap();
        assert_eq!(
            set_resource_file(&mut tx, id, "squashfs", &new)
                .await
                .unwrap(),
            file
        );
        set_resource_file(&mut tx, id, "boot-kernel", &old)
            .await
            .unwrap();

        received(&mut tx, &new, 8).await.unwrap();
        complete_file(&mut tx, &old, &[[3; 32], [4; 32], [5; 32]])
            .await
            .unwrap();
        let listed = resources(&mut tx).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].title, "Debian 12");
        let files: Vec<_> = listed[0]
            .files
            .iter()
            .map(|f| (f.filetype.as_str(), f.sha256, f.received_bytes, f.complete))
            .collect();
        assert_eq!(
            files,
            [("boot-kernel", old, 10, true), ("squashfs", new, 8, false)]
        );
        let found = resource_file(&mut tx, id, file)
            .await
            .unwrap()
            .expect("there is one");
        assert_eq!((found.sha256, found.pieces.len()), (new, 0));
        assert!(
            resource_file(&mut tx, id + 1, file)
                .await
                .unwrap()
                .is_none()
        );

        assert!(delete_resource(&mut tx, id).await.unwrap());
        assert!(!delete_resource(&mut tx, id).await.unwrap());
        assert!(
            manifest(&mut tx, &old)
                .await
                .unwrap()
                .expect("files stay")
                .complete
        );
    }

    #[tokio::test]
    async fn a_loader_is_listed_once_it_is_complete() {
        let db = crate::testing::database().await;
        let mut tx = db.pool.begin().await.unwrap();
        announce_file(&mut tx, &[1; 32], 10, 4, None).await.unwrap();
        set_loader(&mut tx, "bootx64.efi", &[1; 32]).await.unwrap();
        assert_eq!(loaders(&mut tx).await.unwrap(), []);
        complete_file(&mut tx, &[1; 32], &[[2; 32]]).await.unwrap();
        let want = vec![("bootx64.efi".to_owned(), [1; 32], 10)];
        assert_eq!(loaders(&mut tx).await.unwrap(), want);
        let told: i64 = sqlx::query_scalar(
            "select count(*) from change where kind = 'loader' and key = 'bootx64.efi'",
        )
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        assert_eq!(told, 2, "and racks are told of it then");
        reset_file(&mut tx, &[1; 32], 10).await.unwrap();
        assert_eq!(loaders(&mut tx).await.unwrap(), []);
    }
}
