//! The feed: the outbox of changed keys, and the values as the publisher (`link`) reads them.
//!
//! What a rack is told of them, and in which form, is `link`'s to decide.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use mac_address::MacAddress;
use sqlx::{PgConnection, Row};

use crate::StoreError;

mod dhcp;

pub use dhcp::{OptionValue, RangeValue, ReservationValue, SubnetValue, reservations, subnets};

/// What a changed key belongs to; the prefix of its key in the feed (`machine:abc123`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A VLAN with its subnets and ranges; key: the VLAN's id.
    Link,
    /// Key: system_id.
    Machine,
    /// Key: hex SHA-256.
    File,
    /// Key: the path that firmware asks for.
    Loader,
    /// Key: "".
    Settings,
    /// Key: `<vlan id>:<address>`.
    Reservation,
    /// A rack's own row (revoked, interfaces); key: system_id.
    Rack,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Link => "link",
            Kind::Machine => "machine",
            Kind::File => "file",
            Kind::Loader => "loader",
            Kind::Settings => "settings",
            Kind::Reservation => "reservation",
            Kind::Rack => "rack",
        }
    }
}

/// Records the change in the caller's transaction and wakes the publishers at its commit.
pub async fn changed(db: &mut PgConnection, kind: Kind, key: &str) -> Result<(), StoreError> {
    sqlx::query("insert into change (kind, key) values ($1, $2)")
        .bind(kind.as_str())
        .bind(key)
        .execute(&mut *db)
        .await?;
    sqlx::query("notify muster_feed").execute(&mut *db).await?;
    Ok(())
}

// ---------------------------------------------------------------- what changed

/// Channel of `NOTIFY`: some transaction with changes has committed.
pub const CHANNEL: &str = "muster_feed";
/// Changes are kept this long; a publisher that slept longer starts from whole tables.
pub const KEPT: std::time::Duration = std::time::Duration::from_secs(3600);

/// One row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub id: i64,
    pub xid: u64,
    pub kind: Kind,
    pub key: String,
}

/// Makes the caller's new transaction one consistent, read-only view: what follows reads values and horizon alike.
pub async fn read_consistently(db: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set transaction isolation level repeatable read, read only")
        .execute(db)
        .await?;
    Ok(())
}

/// Every transaction below this has ended: what it changed is visible now or never.
///
/// Full 64-bit transaction ids; they do not wrap.
pub async fn horizon(db: &mut PgConnection) -> Result<u64, StoreError> {
    let xmin: String = sqlx::query_scalar("select pg_snapshot_xmin(pg_current_snapshot())::text")
        .fetch_one(db)
        .await?;
    xmin.parse().map_err(|_| StoreError::Corrupt {
        what: "snapshot xmin",
    })
}

/// Visible changes of transactions from `since` on, oldest first, `limit` at most.
///
/// Kinds that this version does not know are left out.
pub async fn changes(
    db: &mut PgConnection,
    since: u64,
    limit: i64,
) -> Result<Vec<Change>, StoreError> {
    let rows: Vec<(i64, String, String, String)> = sqlx::query_as(
        "select id, xid::text, kind, key from change where xid >= $1::text::xid8
         order by xid, id limit $2",
    )
    .bind(since.to_string())
    .bind(limit)
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .filter_map(|(id, xid, kind, key)| {
            let kind = Kind::from_word(&kind)?;
            let xid = xid.parse().map_err(|_| StoreError::Corrupt {
                what: "transaction id",
            });
            Some(xid.map(|xid| Change { id, xid, kind, key }))
        })
        .collect()
}

/// Removes changes that every publisher has taken or given up on.
pub async fn prune(db: &mut PgConnection) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "delete from change where at < now() - make_interval(secs => $1)
           and xid < pg_snapshot_xmin(pg_current_snapshot())",
    )
    .bind(KEPT.as_secs_f64())
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

impl Kind {
    fn from_word(word: &str) -> Option<Kind> {
        use Kind::*;
        [Link, Machine, File, Loader, Settings, Reservation, Rack]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }
}

// ---------------------------------------------------------------- the values

/// A VLAN that a rack serves: where the rack stands on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedVlan {
    pub rack: String,
    pub vlan: i32,
    pub vid: u16,
    pub mtu: u16,
    pub is_primary: bool,
    /// The rack's device; empty where a relay brings the VLAN's queries.
    pub interface: String,
    pub server_address: IpAddr,
    /// Somebody else hands out the addresses there.
    pub is_proxy: bool,
    /// The VLAN's other racks that stand on it.
    pub peers: Vec<PeerValue>,
}

/// Another rack of a VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerValue {
    pub rack: String,
    pub server_address: IpAddr,
    /// As all region processes last concluded (`store::lease::liveness`).
    pub alive: bool,
}

/// The VLANs that these racks serve: DHCP is on, the rack is its primary or secondary, and it has an address in one
/// of its subnets. A relayed VLAN is served by those of the VLAN that its relay leads to.
///
/// `only`: these VLANs, and those relayed into them; `None`: all.
pub async fn served_vlans(
    db: &mut PgConnection,
    racks: &[String],
    only: Option<&[i32]>,
) -> Result<Vec<ServedVlan>, StoreError> {
    // With the peers of these racks, which are told apart below.
    let rows: Vec<StandingRow> = sqlx::query_as(
        "select distinct on (i.rack, v.id) i.rack, v.id as vlan, v.vid, v.mtu,
                via.primary_rack is not distinct from i.rack as is_primary,
                case when via.id = v.id then i.name else '' end as interface, host(a.address)::inet as address,
                coalesce(l.alive, false) as alive, v.dhcp_mode = 'proxy' as is_proxy
         from vlan v
         join vlan via on via.id = case when v.dhcp_on then v.id else v.relay_vlan end and via.dhcp_on
         join subnet s on s.vlan_id = via.id
         join rack_interface i on i.rack in (via.primary_rack, via.secondary_rack)
         cross join unnest(i.addresses) as a(address)
         left join rack_liveness l on l.rack = i.rack
         where array[via.primary_rack, via.secondary_rack] && $1
           and host(a.address)::inet <<= s.cidr
           and ($2::int[] is null or v.id = any($2) or via.id = any($2))
         order by i.rack, v.id, family(a.address), s.id, i.name collate \"C\", a.address",
    )
    .bind(racks)
    .bind(only)
    .fetch_all(db)
    .await?;
    let mut by_vlan: BTreeMap<i32, Vec<&StandingRow>> = BTreeMap::new();
    for row in &rows {
        by_vlan.entry(row.vlan).or_default().push(row);
    }
    let asked = rows.iter().filter(|row| racks.contains(&row.rack));
    asked
        .map(|row| {
            let small = |n: i32| {
                u16::try_from(n).map_err(|_| StoreError::Corrupt {
                    what: "VLAN number or MTU",
                })
            };
            let others = by_vlan.get(&row.vlan).into_iter().flatten();
            let peer = |other: &&StandingRow| PeerValue {
                rack: other.rack.clone(),
                server_address: other.address.ip(),
                alive: other.alive,
            };
            Ok(ServedVlan {
                rack: row.rack.clone(),
                vlan: row.vlan,
                vid: small(row.vid)?,
                mtu: small(row.mtu)?,
                is_primary: row.is_primary,
                interface: row.interface.clone(),
                server_address: row.address.ip(),
                is_proxy: row.is_proxy,
                peers: others
                    .filter(|other| other.rack != row.rack)
                    .map(peer)
                    .collect(),
            })
        })
        .collect()
}

/// A rack that stands on a VLAN.
#[derive(sqlx::FromRow)]
struct StandingRow {
    rack: String,
    vlan: i32,
    vid: i32,
    mtu: i32,
    is_primary: bool,
    interface: String,
    address: IpNetwork,
    alive: bool,
    is_proxy: bool,
}

/// What decides how a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineValue {
    pub system_id: String,
    pub hostname: String,
    pub domain: String,
    /// "amd64/generic".
    pub architecture: String,
    pub status: i32,
    pub netboot: bool,
    pub osystem: String,
    pub distro_series: String,
    /// A boot of it is expected or running.
    pub has_boot: bool,
    pub macs: Vec<[u8; 6]>,
    /// The VLANs of its interfaces; an interface whose VLAN is not known counts as 0.
    pub vlans: Vec<i32>,
}

/// Which machines to read.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    All,
    Ids(&'a [String]),
    /// With an interface on one of these.
    OnVlans(&'a [i32]),
    Mac([u8; 6]),
}

pub async fn machines(
    db: &mut PgConnection,
    which: Which<'_>,
) -> Result<Vec<MachineValue>, StoreError> {
    const SELECT: &str = "select m.system_id, m.hostname, m.domain, m.architecture, m.status,
            m.netboot, m.osystem, m.distro_series, m.boot_id is not null as has_boot,
            array_agg(i.mac order by i.id) as macs,
            array_agg(distinct coalesce(i.vlan_id, 0)) as vlans
        from machine m join interface i on i.machine = m.system_id ";
    const GROUP: &str = " group by m.system_id order by m.system_id";
    let sql = |condition| sqlx::AssertSqlSafe(format!("{SELECT}{condition}{GROUP}"));
    let rows = match which {
        Which::All => sqlx::query(sql("")).fetch_all(db).await?,
        Which::Ids(ids) => {
            sqlx::query(sql("where m.system_id = any($1)"))
                .bind(ids)
                .fetch_all(db)
                .await?
        }
        Which::OnVlans(vlans) => {
            let on = "where m.system_id in (select machine from interface where vlan_id = any($1))";
            sqlx::query(sql(on)).bind(vlans).fetch_all(db).await?
        }
        Which::Mac(mac) => {
            let has = "where m.system_id = (select machine from interface where mac = $1)";
            sqlx::query(sql(has))
                .bind(MacAddress::new(mac))
                .fetch_all(db)
                .await?
        }
    };
    rows.iter()
        .map(|row| {
            let macs: Vec<MacAddress> = row.try_get("macs")?;
            Ok(MachineValue {
                system_id: row.try_get("system_id")?,
                hostname: row.try_get("hostname")?,
                domain: row.try_get("domain")?,
                architecture: row.try_get("architecture")?,
                status: row.try_get("status")?,
                netboot: row.try_get("netboot")?,
                osystem: row.try_get("osystem")?,
                distro_series: row.try_get("distro_series")?,
                has_boot: row.try_get("has_boot")?,
                macs: macs.iter().map(|mac| mac.bytes()).collect(),
                vlans: row.try_get("vlans")?,
            })
        })
        .collect()
}

/// A complete file's manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileValue {
    pub sha256: Vec<u8>,
    pub size_bytes: u64,
    pub piece_bytes: u32,
    /// SHA-256 of each piece, in order.
    pub pieces: Vec<Vec<u8>>,
}

/// Complete files: all, or those of `only`.
pub async fn files(
    db: &mut PgConnection,
    only: Option<&[Vec<u8>]>,
) -> Result<Vec<FileValue>, StoreError> {
    type Row = (Vec<u8>, i64, i32, Vec<Vec<u8>>);
    let rows: Vec<Row> = sqlx::query_as(
        "select sha256, size_bytes, piece_bytes, pieces from library_file
         where complete and ($1::bytea[] is null or sha256 = any($1)) order by sha256",
    )
    .bind(only)
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(sha256, size, piece, pieces)| FileValue {
            sha256,
            size_bytes: size.unsigned_abs(),
            piece_bytes: piece.unsigned_abs(),
            pieces,
        })
        .collect())
}

/// Loaders whose file is complete, by path: all, or those of `only`.
pub async fn loaders(
    db: &mut PgConnection,
    only: Option<&[String]>,
) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    Ok(sqlx::query_as(
        "select path, l.sha256 from boot_loader l join library_file f using (sha256)
         where f.complete and ($1::text[] is null or path = any($1)) order by path",
    )
    .bind(only)
    .fetch_all(db)
    .await?)
}

/// A boot resource that machines can boot: kernel, initrd and squashfs are complete.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ImageValue {
    pub osystem: String,
    pub release: String,
    pub architecture: String,
    pub subarchitecture: String,
    pub label: String,
    pub kernel: Vec<u8>,
    pub initrd: Vec<u8>,
    pub squashfs: Vec<u8>,
}

/// Bootable images, the newest first.
pub async fn images(db: &mut PgConnection) -> Result<Vec<ImageValue>, StoreError> {
    Ok(sqlx::query_as(
        "select r.osystem, r.release, r.architecture, r.subarchitecture, r.label,
                k.sha256 as kernel, i.sha256 as initrd, q.sha256 as squashfs
         from boot_resource r
         join boot_resource_file k on k.resource_id = r.id and k.filetype = 'boot-kernel'
         join boot_resource_file i on i.resource_id = r.id and i.filetype = 'boot-initrd'
         join boot_resource_file q on q.resource_id = r.id and q.filetype = 'squashfs'
         join library_file kc on kc.sha256 = k.sha256 and kc.complete
         join library_file ic on ic.sha256 = i.sha256 and ic.complete
         join library_file qc on qc.sha256 = q.sha256 and qc.complete
         order by r.created desc, r.id desc",
    )
    .fetch_all(db)
    .await?)
}

/// Which machines these MACs belong to: (MAC, system_id).
pub async fn machines_of_macs(
    db: &mut PgConnection,
    macs: &[[u8; 6]],
) -> Result<Vec<([u8; 6], String)>, StoreError> {
    let macs: Vec<MacAddress> = macs.iter().copied().map(MacAddress::new).collect();
    let rows: Vec<(MacAddress, String)> =
        sqlx::query_as("select mac, machine from interface where mac = any($1)")
            .bind(macs)
            .fetch_all(db)
            .await?;
    Ok(rows
        .into_iter()
        .map(|(mac, machine)| (mac.bytes(), machine))
        .collect())
}

/// The machines that these MACs belong to, of those that may boot through `rack`: their card is on a VLAN that it
/// serves, or on none that is known.
pub async fn machines_served(
    db: &mut PgConnection,
    macs: &[[u8; 6]],
    rack: &str,
) -> Result<Vec<([u8; 6], String)>, StoreError> {
    let macs: Vec<MacAddress> = macs.iter().copied().map(MacAddress::new).collect();
    let rows: Vec<(MacAddress, String)> = sqlx::query_as(
        "select i.mac, i.machine from interface i
         left join vlan v on v.id = i.vlan_id
         left join vlan via on via.id = v.relay_vlan
         where i.mac = any($1)
           and (i.vlan_id is null
                or $2 in (v.primary_rack, v.secondary_rack, via.primary_rack, via.secondary_rack))",
    )
    .bind(macs)
    .bind(rack)
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(mac, machine)| (mac.bytes(), machine))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn a_rack_serves_where_it_stands_and_what_is_relayed_there() {
        let db = testing::database().await;
        let mut db = db.pool.acquire().await.unwrap();
        for sql in [
            "insert into rack (system_id, hostname) values ('aaaaaa', 'r1'), ('bbbbbb', 'r2')",
            "insert into fabric (id, name) values (1, 'f')",
            "insert into vlan (id, fabric_id, vid, dhcp_on, primary_rack, secondary_rack, relay_vlan) values
                (1, 1, 1, true, 'aaaaaa', 'bbbbbb', null), (2, 1, 2, false, null, null, 1),
                (3, 1, 3, true, 'aaaaaa', null, null), (4, 1, 4, false, 'aaaaaa', null, null)",
            "insert into subnet (vlan_id, name, cidr) values
                (1, 'one', '10.1.0.0/24'), (2, 'two', '10.2.0.0/24'), (3, 'three', '10.3.0.0/24'),
                (4, 'four', '10.4.0.0/24')",
            // The interface's own prefix is shorter than the subnet's; nobody stands on VLAN 3.
            "insert into rack_interface (rack, name, addresses) values
                ('aaaaaa', 'eth0', '{10.1.0.2/16,10.4.0.2/24}'), ('bbbbbb', 'eth9', '{10.1.0.3/24}')",
        ] {
            sqlx::query(sql).execute(&mut *db).await.unwrap();
        }
        let racks = ["aaaaaa".to_owned(), "bbbbbb".to_owned()];
        let all = served_vlans(&mut db, &racks, None).await.unwrap();
        let told: Vec<_> = all
            .iter()
            .map(|at| {
                (
                    &*at.rack,
                    at.vlan,
                    at.is_primary,
                    &*at.interface,
                    at.server_address.to_string(),
                )
            })
            .collect();
        let at = |rack, vlan, primary, interface, address: &str| {
            (rack, vlan, primary, interface, address.to_owned())
        };
        assert_eq!(
            told,
            [
                at("aaaaaa", 1, true, "eth0", "10.1.0.2"),
                at("aaaaaa", 2, true, "", "10.1.0.2"),
                at("bbbbbb", 1, false, "eth9", "10.1.0.3"),
                at("bbbbbb", 2, false, "", "10.1.0.3"),
            ]
        );
        let only = served_vlans(&mut db, &racks[..1], Some(&[1]))
            .await
            .unwrap();
        assert_eq!(only, all[..2], "with those relayed into it");
        assert_eq!(served_vlans(&mut db, &racks, Some(&[3])).await.unwrap(), []);

        let peers = |all: &[ServedVlan]| -> Vec<String> {
            let told = |at: &ServedVlan| {
                let [peer] = &at.peers[..] else {
                    panic!("one peer: {at:?}")
                };
                let PeerValue {
                    rack,
                    server_address,
                    alive,
                } = peer;
                format!("{} {}: {rack} {server_address} {alive}", at.rack, at.vlan)
            };
            all.iter().map(told).collect()
        };
        let want = |alive| {
            [
                "aaaaaa 1: bbbbbb 10.1.0.3 false".to_owned(),
                "aaaaaa 2: bbbbbb 10.1.0.3 false".to_owned(),
                format!("bbbbbb 1: aaaaaa 10.1.0.2 {alive}"),
                format!("bbbbbb 2: aaaaaa 10.1.0.2 {alive}"),
            ]
        };
        assert_eq!(peers(&all), want(false));
        sqlx::query("insert into rack_liveness (rack, alive) values ('aaaaaa', true)")
            .execute(&mut *db)
            .await
            .unwrap();
        let all = served_vlans(&mut db, &racks, None).await.unwrap();
        assert_eq!(peers(&all), want(true));
        // A second rack that has no address there serves nothing, and is nobody's peer.
        sqlx::query("delete from rack_interface where rack = 'bbbbbb'")
            .execute(&mut *db)
            .await
            .unwrap();
        let alone = served_vlans(&mut db, &racks, None).await.unwrap();
        assert!(
            alone.len() == 2 && alone.iter().all(|at| at.peers.is_empty()),
            "{alone:?}"
        );
    }

    #[tokio::test]
    async fn changes_are_seen_from_a_transaction_on_and_the_horizon_waits_for_open_ones() {
        let db = testing::database().await;
        let mut open = db.pool.begin().await.unwrap();
        changed(&mut open, Kind::Machine, "late").await.unwrap();
        let mut tx = db.pool.begin().await.unwrap();
        changed(&mut tx, Kind::Link, "5001").await.unwrap();
        sqlx::query("insert into change (kind, key) values ('of a newer region', '')")
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let mut view = db.pool.begin().await.unwrap();
        read_consistently(&mut view).await.unwrap();
        let low = horizon(&mut view).await.unwrap();
        let seen = changes(&mut view, 0, 10).await.unwrap();
        view.rollback().await.unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].kind, &*seen[0].key), (Kind::Link, "5001"));
        assert!(seen[0].xid > low, "visible, and above the horizon");
        open.commit().await.unwrap();
        let mut db = db.pool.acquire().await.unwrap();
        let seen = changes(&mut db, low, 10).await.unwrap();
        let keys: Vec<_> = seen.iter().map(|change| &*change.key).collect();
        assert_eq!(keys, ["late", "5001"], "the earlier transaction first");
        assert_eq!(changes(&mut db, seen[1].xid, 10).await.unwrap().len(), 1);
        assert_eq!(prune(&mut db).await.unwrap(), 0, "kept for an hour");
    }
}
