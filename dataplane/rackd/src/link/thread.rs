//! The link thread's loop: everything that can happen to it is one enum, or lies in a shard's mailbox. What it does then
//! is in a file for each matter.

mod calls;
mod certificate;
mod devices;
mod feed;
mod regions;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lease::rack::{Input, Mode};
use rpc::muster_capnp::session;
use shard::{BootAnswer, Bucket, ToLink, ToShard};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::archs::Archs;
use super::boots::{Boots, Key};
use super::clock::Now;
use super::connect::Endpoint;
use super::events::{Events, Lane};
use super::feed::{Changed, Feed};
use super::identity::Identity;
use super::leases::Leases;
use super::region::{LinkId, Shared};
use super::shards::{Ringing, Shards};
use super::wire::Welcome;
use super::{LinkContext, LinkFailed, Ports, tls};
use crate::attest::Attester;
use crate::metrics::{Claimed, Numbers};

/// Mailbox messages taken before the other tasks of this thread get their turn.
const MAIL_PER_TURN: usize = 1_024;
const HAPPENINGS_PER_TURN: usize = 1_024;
const INTERFACES_EVERY: Duration = Duration::from_secs(2);
const CLOCKS_EVERY: Duration = Duration::from_secs(5);
const RENEW_EVERY: Duration = Duration::from_secs(60);
const REGIONS_EVERY: Duration = Duration::from_secs(10);
/// What a full mailbox of a shard is tried again after.
const MAILBOX_RETRY: Duration = Duration::from_millis(1);
/// Shards with a full mailbox get this long to take the word that all ends.
const STOP_TIME: Duration = Duration::from_secs(1);
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);
const REPORT_TIME: Duration = Duration::from_secs(5);

/// What tasks of this thread tell the loop. Unbounded, because each is the end of something
/// that is bounded where it begins: links, calls, spool entries.
pub(super) enum Happening {
    Up {
        link: LinkId,
        endpoint: Endpoint,
        session: session::Client,
        welcome: Welcome,
    },
    Down(LinkId),
    Lease(Input),
    /// The subscription on this link is over, however that came.
    FeedEnded {
        subscription: u64,
    },
    FeedChanged(Changed),
    Machine {
        key: Key,
        answer: BootAnswer,
    },
    /// Every live regiond process, by RPC endpoint and rack HTTP port.
    Regions(Vec<(Endpoint, u16)>),
    Reported {
        taken: bool,
    },
    Renewed(Option<Identity>),
}

struct Link {
    endpoint: Endpoint,
    session: session::Client,
    welcome: Welcome,
}

pub(super) struct Thread {
    shared: Rc<Shared>,
    happenings: mpsc::UnboundedReceiver<Happening>,
    /// What the spool's thread reports.
    spooled: mpsc::UnboundedReceiver<Input>,
    bell: Ringing,
    shards: Shards,
    turn: usize,
    leases: Leases,
    mode_told: Mode,
    feed: Rc<RefCell<Feed>>,
    /// The feed comes over one link at a time.
    subscribed: Option<u64>,
    subscribe_at: Instant,
    subscriptions: u64,
    links: BTreeMap<LinkId, Link>,
    /// What a region last said of all processes.
    process_list: Vec<(Endpoint, u16)>,
    /// The task that keeps a link to each.
    regions: HashMap<Endpoint, JoinHandle<()>>,
    /// Told by token or file, kept whatever a Welcome says.
    seeds: BTreeSet<Endpoint>,
    identity: Rc<Identity>,
    renewing: bool,
    boots: Boots,
    archs: Archs,
    events: Events,
    /// For events of addresses that nobody was given.
    neighbours_asked: Bucket,
    /// Each device's packet sockets, one per shard; shards get duplicates of them.
    sockets: BTreeMap<u32, Vec<OwnedFd>>,
    sockets_missing: bool,
    letters: Option<JoinHandle<()>>,
    attester: Attester,
    ports: Ports,
    calls: JoinSet<()>,
    interfaces_at: Instant,
    clocks_at: Instant,
    renew_at: Instant,
    regions_at: Instant,
}

impl Thread {
    /// `seeds`: where regions are, as far as it is known before the first Welcome.
    pub fn new(
        context: LinkContext,
        identity: Identity,
        seeds: BTreeSet<Endpoint>,
    ) -> Result<Thread, LinkFailed> {
        let LinkContext {
            hostname,
            version,
            mailboxes,
            bell,
            snapshot,
            spool,
            ports,
            ..
        } = context;
        let (told, happenings) = mpsc::unbounded_channel();
        let tls = Arc::new(tls::client_config(&identity).map_err(LinkFailed::Tls)?);
        ports.tls.send_replace(Some(Arc::clone(&tls)));
        // Without them the region would be told that this rack has no device, and give it no link.
        let interfaces = (ports.interfaces)().map_err(LinkFailed::Interfaces)?;
        let attester = Attester::new(Arc::clone(&ports.bindings), Arc::clone(&snapshot));
        let mut feed = Feed::new(snapshot);
        feed.set_interfaces(devices::indexes(&interfaces));
        let (from_spool, spooled) = mpsc::unbounded_channel();
        let shared = Rc::new(Shared {
            hostname,
            version,
            boot_id: rand::random(),
            tls: RefCell::new(tls),
            interfaces: RefCell::new(interfaces),
            asks: ports.power.clone(),
            numbers: Numbers::clone(&ports.numbers),
            claimed: Claimed::clone(&ports.claimed),
            happenings: told,
            refresh: tokio::sync::watch::Sender::new(0),
            live: RefCell::default(),
            next_link: std::cell::Cell::new(1),
            cancel: context.cancel,
        });
        let start = spool.start;
        let spool = crate::spool::SpoolThread::start(spool.spool, move |input| {
            // The receiver is gone only when everything ends.
            let _ = from_spool.send(input);
        })
        .map_err(LinkFailed::Io)?;
        let bindings = Arc::clone(&ports.bindings);
        let now = Instant::now();
        Ok(Thread {
            leases: Leases::new(start, spool, bindings, Rc::clone(&shared)),
            happenings,
            spooled,
            bell: Ringing::new(bell).map_err(LinkFailed::Io)?,
            shards: Shards::new(mailboxes),
            turn: 0,
            mode_told: Mode::Mute,
            feed: Rc::new(RefCell::new(feed)),
            subscribed: None,
            subscribe_at: now,
            subscriptions: 0,
            links: BTreeMap::new(),
            process_list: Vec::new(),
            regions: HashMap::new(),
            seeds,
            identity: Rc::new(identity),
            renewing: false,
            boots: Boots::default(),
            archs: Archs::default(),
            events: Events::default(),
            neighbours_asked: Bucket::full(calls::NEIGHBOURS_ASKED, now),
            sockets: BTreeMap::new(),
            sockets_missing: false,
            letters: None,
            attester,
            ports,
            calls: JoinSet::new(),
            interfaces_at: now + INTERFACES_EVERY,
            clocks_at: now + CLOCKS_EVERY,
            renew_at: now,
            regions_at: now + REGIONS_EVERY,
            shared,
        })
    }

    /// Until `cancel`. Links are closed and the spool's thread is joined when it returns.
    pub async fn run(mut self) {
        self.keep_regions(self.seeds.clone());
        let cancel = self.shared.cancel.clone();
        while !cancel.is_cancelled() {
            let waits = self.shards.flush();
            let wait = self.wait(waits);
            // Soon after a batch of leases nothing leaves before the next is due: shards need not ring until then.
            let gathers = self.leases.gathers(Now::read());
            if gathers.is_none() {
                self.bell.bell().park();
            }
            if gathers.is_some() || self.shards.is_empty() {
                let wait = wait.min(gathers.unwrap_or(wait));
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    Some(happening) = self.happenings.recv() => self.on(happening),
                    Some(input) = self.spooled.recv() => self.on(Happening::Lease(input)),
                    rung = self.bell.wait() => {
                        if let Err(error) = rung {
                            // Never seen; then mail is found at the next tick only.
                            tracing::error!(%error, "the link thread cannot hear its shards");
                            tokio::time::sleep(MAILBOX_RETRY).await;
                        }
                    }
                    Some(event) = self.ports.reported.recv() => {
                        // Whoever disputes an address is a stranger, whatever card it names.
                        self.events.push(event, Lane::Stranger, Instant::now());
                    }
                    Some(object) = self.ports.replaced.recv() => {
                        self.feed.borrow_mut().replace_object(object);
                    }
                    () = tokio::time::sleep(wait) => {}
                }
            } else {
                // Mail all the time must not keep answers from coming in.
                tokio::task::yield_now().await;
            }
            self.bell.bell().unpark();
            for _ in 0..HAPPENINGS_PER_TURN {
                let Ok(happening) = self.happenings.try_recv() else {
                    break;
                };
                self.on(happening);
            }
            for _ in 0..HAPPENINGS_PER_TURN {
                let Ok(input) = self.spooled.try_recv() else {
                    break;
                };
                self.on(Happening::Lease(input));
            }
            for _ in 0..MAIL_PER_TURN {
                let Some((shard, mail)) = self.shards.pop(&mut self.turn) else {
                    break;
                };
                self.on_mail(shard, mail);
            }
            self.on_time();
            if self.leases.mode() != self.mode_told {
                self.tell_status();
            }
            while self.calls.try_join_next().is_some() {}
        }
        for (_, task) in self.regions.drain() {
            task.abort();
        }
        if let Some(task) = self.letters.take() {
            task.abort();
        }
        self.calls.shutdown().await;
        self.shards.send_all(|| ToShard::Stop);
        let deadline = Instant::now() + STOP_TIME;
        while self.shards.flush() && Instant::now() < deadline {
            tokio::time::sleep(MAILBOX_RETRY).await;
        }
    }

    fn wait(&self, waits: bool) -> Duration {
        let now = Now::read();
        let due = [
            Some(self.interfaces_at),
            Some(self.clocks_at),
            Some(self.renew_at),
            Some(self.regions_at),
            self.events.due(),
            (self.subscribed.is_none() && !self.links.is_empty()).then_some(self.subscribe_at),
        ];
        let due = due.into_iter().flatten().min().unwrap_or(self.clocks_at);
        let mut wait = due.saturating_duration_since(now.instant);
        if let Some(tick) = self.leases.next_tick(now) {
            wait = wait.min(tick);
        }
        if waits { wait.min(MAILBOX_RETRY) } else { wait }
    }

    fn on(&mut self, happening: Happening) {
        let now = Now::read();
        match happening {
            Happening::Up {
                link,
                endpoint,
                session,
                welcome,
            } => {
                self.process_list = welcome.regions.clone();
                self.links.insert(
                    link,
                    Link {
                        endpoint,
                        session: session.clone(),
                        welcome,
                    },
                );
                self.leases.link_up(link, session, now, &mut self.shards);
                self.follow_regions();
                self.subscribe_at = now.instant;
                self.renew_at = now.instant;
            }
            Happening::Down(link) => {
                self.links.remove(&link);
                self.leases.link_down(link, now, &mut self.shards);
                self.tell_status();
            }
            Happening::Lease(input) => self.leases.handle(input, now, &mut self.shards),
            Happening::FeedEnded { subscription } => {
                if self.subscribed == Some(subscription) {
                    self.subscribed = None;
                    self.subscribe_at = now.instant + SUBSCRIBE_AGAIN;
                }
            }
            Happening::FeedChanged(changed) => {
                if changed.links {
                    self.open_sockets();
                    self.leases.links_changed(now, &mut self.shards);
                }
                self.send_letters();
                self.tell_status();
            }
            Happening::Machine { key, answer } => {
                let finished = self.boots.finish(&key, &answer, now.instant);
                for asker in finished.askers {
                    self.answer_boot(asker, answer.clone());
                }
                for asker in finished.late {
                    self.answer_boot(asker, BootAnswer::Busy);
                }
                if let Some(call) = finished.next {
                    self.call_boot(&call);
                }
            }
            Happening::Regions(regions) => {
                self.process_list = regions;
                self.follow_regions();
            }
            Happening::Reported { taken } => self.events.finish(taken, now.instant),
            Happening::Renewed(identity) => self.on_renewed(identity),
        }
    }

    fn on_mail(&mut self, shard: usize, mail: ToLink) {
        match mail {
            ToLink::Lease { ticket, write } => {
                self.leases
                    .request(shard, ticket, write, Now::read(), &mut self.shards);
            }
            ToLink::HandOver { shard, message } => {
                let message = ToShard::HandedOver(message);
                self.shards.send_if_room(shard as usize, message);
            }
            ToLink::Restarted => self.on_restarted(shard),
            ToLink::Wish(wish) => {
                let count = self.shards.count() as u32; // far below
                if wish.asked + 1 < count {
                    let next = (wish.borrower + wish.asked + 1) % count;
                    self.shards.send(next as usize, ToShard::Wish(wish));
                }
            }
            ToLink::Lent { shard, lent } => self.shards.send(shard as usize, ToShard::Lent(lent)),
            ToLink::BootConfig { ticket, query } => self.on_boot_query(shard, ticket, query),
            ToLink::Event(event) => self.on_event(event),
            ToLink::Arch { mac, address, arch } => self.archs.note(mac, address, arch),
        }
    }

    fn on_time(&mut self) {
        let now = Now::read();
        self.leases.tick(now, &mut self.shards);
        if self.subscribed.is_none() && self.subscribe_at <= now.instant {
            self.subscribe();
        }
        if let Some(batch) = self.events.take(now.instant) {
            self.report(batch);
        }
        if self.clocks_at <= now.instant {
            self.clocks_at = now.instant + CLOCKS_EVERY;
            self.leases.check_clocks(now, &mut self.shards);
            self.tell_status();
        }
        if self.interfaces_at <= now.instant {
            self.interfaces_at = now.instant + INTERFACES_EVERY;
            self.look_at_interfaces();
        }
        if self.regions_at <= now.instant {
            self.regions_at = now.instant + REGIONS_EVERY;
            self.ask_for_regions();
        }
        if self.renew_at <= now.instant {
            self.renew_at = now.instant + RENEW_EVERY;
            self.renew();
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        for task in self.regions.values() {
            task.abort();
        }
    }
}
