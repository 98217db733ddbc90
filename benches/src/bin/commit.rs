//! What one commit of a rack's leases costs the region and its database; `cargo xtask bench commit` runs it.
//!
//! A private PostgreSQL with fsync, one rack with a /16 of blocks, `store::lease::commit` as the link calls it. New
//! leases are for new clients at new addresses; extensions are for the same ones again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use benches::{go_first, print, thread_cpu_ns};
use clap::Parser;
use lease::{
    AttachReply, Batch, BatchKey, Block, Client, ClientKey, Outcome, SpoolId, Write, WriteKind,
};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgPool};
use store::cluster::Cluster;

const SIZES: [usize; 5] = [1, 16, 64, 256, 512];
const LEASE: Duration = Duration::from_secs(600);
const SPOOL: SpoolId = SpoolId([7; 16]);

#[derive(Parser)]
struct Arguments {
    /// Fewer commits.
    #[arg(long)]
    quick: bool,
}

#[derive(Serialize)]
struct Row {
    rows: usize,
    commits: usize,
    kind: &'static str,
    database_us: f64,
    region_us: f64,
    commit_ms: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    go_first();
    // PostgreSQL's own user must be able to get there.
    let folder = Path::new("/var/tmp").join(format!("muster-bench-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("a runtime")?;
    let done = runtime.block_on(bench(&folder, arguments.quick));
    std::fs::remove_dir_all(&folder).ok();
    done
}

async fn bench(folder: &Path, quick: bool) -> Result<()> {
    let mut cluster = Cluster::start(folder)
        .await
        .context("starting PostgreSQL")?;
    let done = measure(&cluster.url(), folder, quick).await;
    cluster.stop().await.context("stopping PostgreSQL")?;
    done
}

async fn measure(url: &str, folder: &Path, quick: bool) -> Result<()> {
    let options = url.parse().context("the database's URL")?;
    let pool = PgPool::connect_with(store::link_options(options))
        .await
        .context("connecting")?;
    store::migrate(&pool).await.context("migrating")?;
    let blocks = site(&pool).await?;
    let mut addresses = addresses(&blocks);
    let mut seq = 0;
    for size in SIZES {
        // Of small batches enough to be measured, of large ones no more than there are addresses.
        let most: usize = if quick { 2_000 } else { 10_000 };
        let commits = (most / size).clamp(4, 400);
        ensure!(
            addresses.len() >= commits * size,
            "the blocks have too few addresses"
        );
        let all = addresses.split_off(addresses.len() - commits * size);
        for kind in ["grant", "extend"] {
            let mut times = Vec::new();
            let before = (database_cpu(folder)?, thread_cpu_ns());
            for chunk in all.chunks(size) {
                seq += 1;
                let start = Instant::now();
                commit(&pool, seq, chunk).await?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            let database = database_cpu(folder)?.saturating_sub(before.0);
            let region = thread_cpu_ns() - before.1;
            times.sort_by(f64::total_cmp);
            let rows = (commits * size) as f64;
            print(&Row {
                rows: size,
                commits,
                kind,
                database_us: database as f64 / 1e3 / rows,
                region_us: region as f64 / 1e3 / rows,
                commit_ms: times[times.len() / 2],
            })?;
        }
    }
    pool.close().await;
    Ok(())
}

/// A rack, attached, with the blocks of a /16.
async fn site(pool: &PgPool) -> Result<Vec<Block>> {
    let sql = "insert into rack (system_id, hostname) values ('ra', 'ra');
               insert into fabric (name) values ('f');
               insert into vlan (fabric_id, vid, dhcp_on, primary_rack) select id, 0, true, 'ra' from fabric where name = 'f';
               insert into subnet (vlan_id, name, cidr)
                   select v.id, 's', '10.0.0.0/16' from vlan v where v.primary_rack = 'ra'";
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(pool)
        .await
        .context("making a site")?;
    let mut tx = pool.begin().await?;
    let range: i32 = sqlx::query_scalar(
        "insert into iprange (subnet_id, type, start_ip, end_ip)
         select id, 'dynamic', '10.0.1.0', '10.0.255.255' from subnet where name = 's' returning id",
    )
    .fetch_one(&mut *tx)
    .await
    .context("making a range")?;
    store::lease::ensure_blocks(&mut tx, range)
        .await
        .context("cutting blocks")?;
    tx.commit().await?;
    match store::lease::attach(pool, "ra", SPOOL, 0)
        .await
        .context("attaching")?
    {
        AttachReply::Attached(attachment) => Ok(attachment.blocks),
        other => bail!("the rack is not attached: {other:?}"),
    }
}

/// Every address with its block, the highest first: batches are split off the end, block by block.
fn addresses(blocks: &[Block]) -> Vec<(Block, Ipv4Addr)> {
    let mut all = BTreeMap::new();
    for block in blocks {
        let IpAddr::V4(first) = block.first else {
            continue;
        };
        for offset in 0..block.count {
            let address = Ipv4Addr::from(u32::from(first) + offset);
            all.insert(std::cmp::Reverse(address), block.clone());
        }
    }
    all.into_iter()
        .map(|(address, block)| (block, address.0))
        .collect()
}

async fn commit(pool: &PgPool, seq: u64, rows: &[(Block, Ipv4Addr)]) -> Result<()> {
    let writes = rows.iter().map(|(block, address)| {
        let [_, b, c, d] = address.octets();
        Write {
            block: block.id,
            epoch: block.epoch,
            address: IpAddr::V4(*address),
            kind: WriteKind::Grant {
                client: Client {
                    vlan: block.vlan,
                    key: ClientKey::Mac([0x52, 0x54, 0, b, c, d]),
                },
                lease: LEASE,
                hostname: "".into(),
            },
        }
    });
    let batch = Batch {
        key: BatchKey {
            spool_id: SPOOL,
            seq,
        },
        drained: false,
        writes: writes.collect(),
    };
    let outcomes = store::lease::commit(pool, "ra", &batch)
        .await
        .context("committing")?;
    let refused = outcomes
        .iter()
        .find(|outcome| !matches!(outcome, Outcome::Durable { .. }));
    ensure!(refused.is_none(), "a grant was answered {refused:?}");
    Ok(())
}

/// Nanoseconds that the server in `folder` and all its processes have taken.
fn database_cpu(folder: &Path) -> Result<u64> {
    let pid = std::fs::read_to_string(folder.join("data/postmaster.pid"))
        .context("PostgreSQL's pid file")?;
    let head = pid.lines().next().unwrap_or_default().trim().to_owned();
    let mut all = 0;
    for entry in std::fs::read_dir("/proc")
        .context("reading /proc")?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|octet| octet.is_ascii_digit()) {
            continue;
        }
        let read =
            |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        // proc_pid_stat(5): behind the name, which is in parentheses, state and parent.
        let stat = read("stat");
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if name == head || parent == Some(head.as_str()) {
            let times = read("schedstat");
            let taken = times
                .split_whitespace()
                .next()
                .and_then(|ns| ns.parse::<u64>().ok());
            all += taken.unwrap_or_default();
        }
    }
    Ok(all)
}
