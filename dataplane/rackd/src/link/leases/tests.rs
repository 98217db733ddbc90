//! The lease machine between shards and a region that this file plays: what becomes of a shard that begins anew.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use lease::{BlockId, ClientKey, Epoch};
use rpc::muster_capnp as words;
use shard::{Bell, ShardMailbox};
use tokio::sync::mpsc;

use super::*;
use crate::link::wire;
use crate::work::testing::Authority;

const PATIENCE: Duration = Duration::from_secs(10);
const VLAN: u32 = 5_001;

/// Answers at once what it is asked, or keeps still.
#[derive(Default)]
struct Region {
    silent: Cell<bool>,
    attaches: Cell<u32>,
    /// Addresses of committed writes.
    committed: RefCell<Vec<IpAddr>>,
    /// Where calls wait while it is silent.
    spoken: tokio::sync::Notify,
}

impl Region {
    async fn speak(&self) {
        while self.silent.get() {
            self.spoken.notified().await;
        }
    }
}

/// The region behind one link.
struct Session(Rc<Region>);

impl session::Server for Session {
    async fn heartbeat(
        self: Rc<Self>,
        _: session::HeartbeatParams,
        mut results: session::HeartbeatResults,
    ) -> Result<(), capnp::Error> {
        self.0.speak().await;
        results.get().init_reply().set_until_ms(600_000);
        Ok(())
    }

    async fn attach(
        self: Rc<Self>,
        _: session::AttachParams,
        mut results: session::AttachResults,
    ) -> Result<(), capnp::Error> {
        self.0.speak().await;
        self.0.attaches.set(self.0.attaches.get() + 1);
        let mut attachment = results.get().init_attachment();
        attachment.set_until_ms(600_000);
        attachment.set_state(words::AttachState::Attached);
        let mut block = attachment.init_blocks(1).get(0);
        block.set_id(1);
        block.set_epoch(1);
        block.set_vlan(VLAN);
        block.set_subnet(1);
        block.set_first(&wire::octets([10, 0, 0, 0].into()));
        block.set_count(64);
        Ok(())
    }

    async fn commit_leases(
        self: Rc<Self>,
        params: session::CommitLeasesParams,
        mut results: session::CommitLeasesResults,
    ) -> Result<(), capnp::Error> {
        self.0.speak().await;
        let batch = params.get()?.get_batch()?;
        let writes = batch.get_writes()?;
        let mut outcomes = results.get().init_outcomes(writes.len());
        for (at, write) in (0..).zip(writes.iter()) {
            let octets: [u8; 16] = write.get_address()?.try_into().unwrap();
            let address = std::net::Ipv6Addr::from(octets);
            let mut committed = self.0.committed.borrow_mut();
            committed.push(IpAddr::from(address).to_canonical());
            outcomes.reborrow().get(at).set_durable_ms(600_000);
        }
        Ok(())
    }
}

struct Bench {
    leases: Leases,
    shards: Shards,
    mail: Vec<ShardMailbox>,
    happenings: mpsc::UnboundedReceiver<Happening>,
    spooled: mpsc::UnboundedReceiver<Input>,
    region: Rc<Region>,
    _folder: tempfile::TempDir,
}

/// What a shard was told, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Attach,
    Forget,
    Outcome,
}

impl Bench {
    /// Two shards, attached.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let opened = crate::spool::open(folder.path()).unwrap();
        let (from_spool, spooled) = mpsc::unbounded_channel();
        let spool = SpoolThread::start(opened.spool, move |input| {
            let _ = from_spool.send(input); // the test may be over
        });
        let (told, happenings) = mpsc::unbounded_channel();
        let shared = Rc::new(Shared {
            hostname: "rack".into(),
            version: "0".into(),
            boot_id: [0; 16],
            tls: RefCell::new(Authority::new().client),
            interfaces: RefCell::default(),
            asks: mpsc::channel(1).0,
            numbers: Arc::new(Vec::new),
            claimed: Arc::new(Vec::new),
            happenings: told,
            refresh: tokio::sync::watch::Sender::new(0),
            live: RefCell::default(),
            next_link: Cell::new(1),
            cancel: tokio_util::sync::CancellationToken::new(),
        });
        let bell = Bell::new().unwrap();
        let (mut mail, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (shard, link, _work) = shard::mailboxes(&bell, &bell).unwrap();
            mail.push(shard);
            ends.push(link);
        }
        let mut bench = Self {
            leases: Leases::new(opened.start, spool.unwrap(), Bindings::default(), shared),
            shards: Shards::new(ends),
            mail,
            happenings,
            spooled,
            region: Rc::default(),
            _folder: folder,
        };
        bench.link(1);
        bench.both_attach().await;
        bench
    }

    fn link(&mut self, link: LinkId) {
        let session = capnp_rpc::new_client(Session(Rc::clone(&self.region)));
        let now = Now::read();
        self.leases.link_up(link, session, now, &mut self.shards);
    }

    fn speak(&self) {
        self.region.silent.set(false);
        self.region.spoken.notify_waiters();
    }

    /// What happens next: an answer, or the time.
    async fn step(&mut self) {
        let wait = self.leases.next_tick(Now::read()).unwrap_or(PATIENCE);
        let input = tokio::select! {
            Some(Happening::Lease(input)) = self.happenings.recv() => input,
            Some(input) = self.spooled.recv() => input,
            () = tokio::time::sleep(wait) => Input::Tick,
        };
        self.leases.handle(input, Now::read(), &mut self.shards);
    }

    async fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "never: {what}");
            self.step().await;
        }
    }

    fn told(&mut self, shard: usize) -> Vec<Told> {
        self.shards.flush();
        let messages = std::iter::from_fn(|| self.mail[shard].pop());
        let told = messages.filter_map(|message| match message {
            ToShard::Attach { blocks, .. } => {
                assert_eq!(blocks.len(), 1);
                Some(Told::Attach)
            }
            ToShard::Forget => Some(Told::Forget),
            ToShard::Outcome { .. } => Some(Told::Outcome),
            _ => None,
        });
        told.collect()
    }

    /// Both shards are told of the leases; all that they were told.
    async fn both_attach(&mut self) -> [Vec<Told>; 2] {
        let mut told = [Vec::new(), Vec::new()];
        let attached = |told: &[Vec<Told>; 2]| told.iter().all(|told| told.contains(&Told::Attach));
        let deadline = Instant::now() + PATIENCE;
        while !attached(&told) {
            assert!(Instant::now() < deadline, "{told:?}");
            self.step().await;
            for (shard, told) in told.iter_mut().enumerate() {
                told.extend(self.told(shard));
            }
        }
        assert_eq!(self.leases.mode(), Mode::Attached);
        told
    }

    fn restart(&mut self, shard: usize) {
        // As a shard does that begins anew: what waits was for the one that was.
        self.mail[shard].discard();
        self.leases.restarted(shard, Now::read(), &mut self.shards);
    }

    fn grant(&mut self, shard: usize, last: u8) {
        let write = Write {
            block: BlockId(1),
            epoch: Epoch(1),
            address: [10, 0, 0, last].into(),
            kind: WriteKind::Grant {
                client: Client {
                    vlan: VLAN,
                    key: ClientKey::Mac([2, 0, 0, 0, 0, last]),
                },
                lease: Duration::from_secs(600),
                hostname: "".into(),
            },
        };
        let ticket = dhcp::Ticket::UNAWAITED;
        self.leases
            .request(shard, ticket, write, Now::read(), &mut self.shards);
        // Awaited all the same: only engines make such tickets.
        for waiting in self.leases.waiting.values_mut() {
            waiting.ticket = Some(ticket);
        }
    }
}

async fn run(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_shard_that_begins_anew_learns_the_leases_with_all_others() {
    run(async {
        let mut bench = Bench::new().await;
        for shard in [0, 1, 1] {
            let before = bench.region.attaches.get();
            bench.restart(shard);
            let told = bench.both_attach().await;
            assert_eq!(told[1 - shard], [Told::Forget, Told::Attach], "{shard}");
            assert_eq!(bench.region.attaches.get(), before + 1);
        }
    })
    .await;
}

/// One after the other, at once, and while the first one's leases are on their way: each is attached at the end.
#[tokio::test]
async fn shards_that_begin_anew_together_are_all_told() {
    run(async {
        let mut bench = Bench::new().await;
        bench.restart(0);
        bench.restart(1);
        bench.both_attach().await;
        bench.region.silent.set(true);
        bench.restart(0);
        bench.speak();
        let sent = bench.region.attaches.get();
        bench
            .until("an attach is answered", |bench| {
                bench.region.attaches.get() > sent
            })
            .await;
        // Its answer was for the one that was, wherever it is on its way.
        bench.restart(1);
        bench.both_attach().await;
    })
    .await;
}

/// The link is up and the region keeps still: to forget now would leave every shard mute until it speaks.
#[tokio::test]
async fn a_shard_that_begins_anew_without_a_region_silences_no_other() {
    run(async {
        let mut bench = Bench::new().await;
        bench.region.silent.set(true);
        bench.restart(1);
        bench
            .until("detached", |bench| bench.leases.mode() == Mode::Detached)
            .await;
        assert_eq!(bench.told(0), [], "it goes on dealing");
        // Its facts are this rack's own now.
        bench.grant(0, 5);
        let mut told = Vec::new();
        bench
            .until("the fact is on disk", |bench| {
                told.extend(bench.told(0));
                told.contains(&Told::Outcome)
            })
            .await;
        assert_eq!(told, [Told::Outcome]);
        assert_eq!(bench.told(1), []);
        bench.restart(1);
        assert_eq!(bench.leases.mode(), Mode::Detached);
        bench.speak();
        bench.both_attach().await;
        assert_eq!(
            *bench.region.committed.borrow(),
            [IpAddr::from([10, 0, 0, 5])]
        );
    })
    .await;
}

/// What the shard that was had asked is done, and told to nobody; what the other one asked is answered.
#[tokio::test]
async fn what_a_dead_shard_asked_is_done_and_answered_to_nobody() {
    run(async {
        let mut bench = Bench::new().await;
        bench.region.silent.set(true);
        bench.grant(0, 5);
        bench.grant(1, 6);
        bench.restart(0);
        bench.speak();
        let told = bench.both_attach().await;
        assert!(!told[0].contains(&Told::Outcome), "{told:?}");
        let outcomes = told[1].iter().filter(|told| **told == Told::Outcome);
        assert_eq!(outcomes.count(), 1, "{told:?}");
        // The second had not left yet: its shard is told so, and its client asks again.
        let committed = bench.region.committed.borrow().clone();
        assert!(committed.contains(&[10, 0, 0, 5].into()), "{committed:?}");
        assert!(bench.leases.waiting.is_empty(), "nothing is kept of it");
    })
    .await;
}
