//! The whole rack: shards, link thread and work thread, started in order and stopped in order.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use shard::{Bell, LinkMailbox, ShardMailbox, Snapshot, WorkMailbox};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uring::{Places, RingLimits, Running, Start};

use crate::attest::{Attester, Bindings};
use crate::config::Config;
use crate::descriptors::{self, Budget};
use crate::{link, metrics, spool, work};

/// How often a thread that ended by itself is noticed.
const SUPERVISE: Duration = Duration::from_millis(500);
/// Free addresses of each range kept probed ahead of demand, by all shards together, and by one at least.
const PROBE_STOCK: usize = 32;
const PROBE_STOCK_MIN: usize = 4;
/// Events of the work thread that the link thread has not taken yet.
const REPORTS_WAITING_MAX: usize = 256;
/// Threads get this long to end when the rack is told to.
const STOP: Duration = Duration::from_secs(10);

/// One shard's ends of its mailboxes, and the other threads' ends of all of them.
struct Mail {
    shards: Vec<ShardMailbox>,
    link: Vec<LinkMailbox>,
    work: Vec<WorkMailbox>,
    link_bell: Arc<Bell>,
    work_bell: Arc<Bell>,
}

impl Mail {
    fn new(shards: u16) -> io::Result<Self> {
        let (link_bell, work_bell) = (Bell::new()?, Bell::new()?);
        let mut mail = Self {
            shards: vec![],
            link: vec![],
            work: vec![],
            link_bell,
            work_bell,
        };
        for _ in 0..shards {
            let (shard, link, work) = shard::mailboxes(&mail.link_bell, &mail.work_bell)?;
            mail.shards.push(shard);
            mail.link.push(link);
            mail.work.push(work);
        }
        Ok(mail)
    }
}

/// The state folder holds the rack's key: 0700, whatever the umask, also one that was there before.
fn make_private(folder: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder);
    made.with_context(|| format!("creating {}", folder.display()))?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("changing the mode of {}", folder.display()))
}

/// Runs until SIGTERM or ctrl-c; an error when a part of the rack ended before that.
pub fn run(config: &Config) -> anyhow::Result<()> {
    make_private(&config.state_dir)?;
    let spool = spool::open(&config.state_dir).context("opening the lease spool")?;
    let token = read_token(config)?;

    let count = config.shard_count();
    let files = descriptors::raise().unwrap_or_else(|error| {
        tracing::warn!(%error, "raising the limit of open files");
        descriptors::LIMIT_UNKNOWN
    });
    let budget = descriptors::budget(files, count);
    tracing::info!(
        files,
        connections = budget.connections_max,
        "limit of open files; connections a shard"
    );
    let mail = Mail::new(count).context("making the shards' mailboxes")?;
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let bindings = Bindings::default();
    let attester = Attester::new(bindings.clone(), Arc::clone(&snapshot));
    let shards = start_shards(config, budget, mail.shards, &snapshot, &attester)?;

    let (tls, tls_of_work) = watch::channel(None);
    let (regions, regions_of_work) = watch::channel(Arc::from([]));
    let (status, status_of_rack) = watch::channel(link::Status::default());
    let (replaced, replaced_files) = mpsc::unbounded_channel();
    let (reports, reported) = mpsc::channel(REPORTS_WAITING_MAX);
    let (mailboxes, inbox) = work::mailboxes();
    let (stop, stop_of_work) = watch::channel(false);
    let cancel = CancellationToken::new();

    let counters = Arc::<work::Counters>::default();
    let stats: Vec<_> = shards.iter().map(|shard| shard.stats.clone()).collect();
    let claimed = metrics::claimed(stats.clone());
    let numbers = metrics::numbers(stats, status_of_rack, counters.clone());
    let work_context = work::Context {
        tls: tls_of_work,
        regions: regions_of_work,
        attester,
        cache: work::fill::Settings {
            folder: config.state_dir.join("cache"),
            limit_bytes: config.cache_bytes,
        },
        replaced,
        shards: mail.work,
        bell: mail.work_bell,
        metrics: metrics::page(
            metrics::Numbers::clone(&numbers),
            config.metrics_allow.clone(),
            Arc::clone(&snapshot),
        ),
        counters,
        reports,
        mailboxes: mailboxes.clone(),
        inbox,
        proxied_max: budget.proxied_max,
        stop: stop_of_work,
    };
    let work_thread = spawn("work", move || {
        work::run(work_context);
        Ok(())
    })?;

    let shard_count = u32::from(count);
    let link_context = link::LinkContext {
        token,
        hostname: config.hostname.clone().unwrap_or_else(hostname),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mailboxes: mail.link,
        bell: mail.link_bell,
        snapshot,
        spool,
        ports: link::Ports {
            state_dir: config.state_dir.clone(),
            bindings,
            power: mailboxes.power,
            fills: mailboxes.fills,
            replaced: replaced_files,
            reported,
            tls,
            regions,
            status,
            numbers,
            claimed,
            sockets: Box::new(move |interface| {
                let opened = uring::open_link(interface, shard_count).map_err(io::Error::other)?;
                Ok(opened.into_iter().map(|link| link.socket).collect())
            }),
            interfaces: Box::new(link::interfaces::read),
        },
        cancel: cancel.clone(),
    };
    let link_thread = spawn("link", move || {
        link::run(link_context).context("the link to the regions")
    })?;

    tracing::info!(shards = count, "rack is up");
    let ended = wait(&shards, &work_thread, &link_thread);
    // The link thread first: it tells the shards to stop once it has nothing more for them.
    cancel.cancel();
    let deadline = Instant::now() + STOP;
    let outcome = join(link_thread, "link", deadline);
    let _ = stop.send(true);
    join(work_thread, "work", deadline)?;
    outcome.and(ended)
}

fn read_token(config: &Config) -> anyhow::Result<Option<String>> {
    let Some(path) = &config.token_file else {
        return Ok(None);
    };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // An enrolled rack does not need it any more.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn start_shards(
    config: &Config,
    budget: Budget,
    mailboxes: Vec<ShardMailbox>,
    snapshot: &Arc<ArcSwap<Snapshot>>,
    attester: &Attester,
) -> anyhow::Result<Vec<Running>> {
    let count = u32::from(config.shard_count());
    let any = |port| Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    let places = Places {
        dhcp: Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67)),
        proxy_dhcp: Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 4011)),
        tftp: any(config.tftp_port),
        http: any(config.http_port),
    };
    let sockets = uring::open(&places, count).context("opening the machines' ports")?;
    let trusted_relays = Arc::from(&config.dhcp.trusted_relays[..]);
    let any_source_devices = Arc::from(&config.dhcp.any_source_devices[..]);
    let attester = attester.clone();
    let bound = shard::Bound::new(move |address, now| attester.given(address, now));
    let mut shards = Vec::new();
    for ((index, mail), sockets) in (0..).zip(mailboxes).zip(sockets) {
        let start = Start {
            config: shard::Config {
                index,
                count,
                http_port: config.http_port,
                tftp: config.tftp.of_shard(),
                tftp_allow: config.tftp.allow.clone().into(),
                seed: rand::random(),
                dhcp: config
                    .dhcp
                    .of_shard((PROBE_STOCK / count as usize).max(PROBE_STOCK_MIN)),
                connections_max: budget.connections_max,
                connections_per_source_max: budget.connections_per_source_max,
                hand_offs_max: budget.hand_offs_max,
                trusted_relays: Arc::clone(&trusted_relays),
                any_source_devices: Arc::clone(&any_source_devices),
                bound: bound.clone(),
                ..shard::Config::default()
            },
            limits: RingLimits {
                streams_max: budget.streams_max,
                ..RingLimits::default()
            },
            core: None,
            sockets,
            links: Vec::new(),
            mail,
            snapshot: snapshot.clone(),
        };
        shards.push(uring::start_shard(start).with_context(|| format!("starting shard {index}"))?);
    }
    Ok(shards)
}

type Thread = JoinHandle<anyhow::Result<()>>;

fn spawn(
    name: &'static str,
    body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Thread> {
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body);
    thread.with_context(|| format!("starting the {name} thread"))
}

/// Until a signal comes or a part of the rack is gone: a rack that is half alive is worse than none.
fn wait(shards: &[Running], work: &Thread, link: &Thread) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut supervise = tokio::time::interval(SUPERVISE);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted.context("waiting for ctrl-c")?;
                    break;
                }
                _ = supervise.tick() => {}
            }
            // A shard that fails begins anew on its own thread.
            if let Some(shard) = shards.iter().find(|shard| shard.is_finished()) {
                bail!("shard {} ended", shard.index);
            }
            if work.is_finished() || link.is_finished() {
                bail!(
                    "the rack's {} thread ended",
                    if work.is_finished() { "work" } else { "link" }
                );
            }
        }
        tracing::info!("told to stop");
        Ok(())
    })
}

/// The thread's own outcome; one that does not end in time is left to the process's end.
fn join(thread: Thread, name: &str, deadline: Instant) -> anyhow::Result<()> {
    while !thread.is_finished() {
        if Instant::now() > deadline {
            tracing::warn!(name, "a thread did not end in time");
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match thread.join() {
        Ok(outcome) => outcome,
        Err(_) => bail!("the {name} thread panicked"),
    }
}

fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_folder_is_0700_also_one_that_was_there_before() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("a/rack");
        let mode = || folder.metadata().unwrap().permissions().mode() & 0o7777;
        make_private(&folder).unwrap();
        assert_eq!(mode(), 0o700);
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_private(&folder).unwrap();
        assert_eq!(mode(), 0o700);
    }
}
