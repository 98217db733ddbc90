//! The link thread's loop: everything that can happen to it is one enum, or lies in a shard's mailbox.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lease::rack::{Input, Mode};
use rpc::muster_capnp::{feed_sink, session};
use shard::{BootAnswer, Bucket, LinkSocket, Rate, ToLink, ToShard};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::boots::{self, Ask, Boots, Call, Key};
use super::clock::Now;
use super::connect::Endpoint;
use super::events::{Events, Lane};
use super::feed::{Changed, Feed};
use super::identity::Identity;
use super::interfaces::Interface;
use super::leases::Leases;
use super::region::{self, LinkId, Shared};
use super::shards::{Ringing, Shards};
use super::wire::{self, Welcome};
use super::{LinkContext, LinkFailed, Ports, Status, enrol, machine, tls};
use crate::attest::Attester;
use crate::metrics::Numbers;
use crate::rarely::Rarely;
use crate::work::Region;

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
const SUBSCRIBE_TIME: Duration = Duration::from_secs(10);
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);
const BOOT_TIME: Duration = Duration::from_secs(2);
const REPORT_TIME: Duration = Duration::from_secs(5);
const RENEW_TIME: Duration = Duration::from_secs(30);
/// Events that name what their client asked for, which it chose itself.
const REQUESTS: [&str; 4] = [
    "BOOT_PARAMETERS",
    "BOOT_CONFIG",
    "LOADER_SERVED",
    "IMAGE_SERVED",
];
/// Questions to the kernel for events' sake: each takes some tens of microseconds of this thread.
const NEIGHBOURS_ASKED: Rate = Rate {
    burst: 256,
    every: Duration::from_millis(5),
};
/// Addresses of regions that are kept a link to.
const ENDPOINTS_MAX: usize = 64;

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
        let interfaces = (ports.interfaces)().unwrap_or_default();
        let attester = Attester::new(Arc::clone(&ports.bindings), Arc::clone(&snapshot));
        let mut feed = Feed::new(snapshot);
        feed.set_interfaces(indexes(&interfaces));
        let (from_spool, spooled) = mpsc::unbounded_channel();
        let shared = Rc::new(Shared {
            hostname,
            version,
            boot_id: rand::random(),
            tls: RefCell::new(tls),
            interfaces: RefCell::new(interfaces),
            asks: ports.power.clone(),
            numbers: Numbers::clone(&ports.numbers),
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
            events: Events::default(),
            neighbours_asked: Bucket::full(NEIGHBOURS_ASKED, now),
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
        }
    }

    /// Whose event it is, as far as that is no matter of what its sender wrote: a message of DHCP is its card's, and a
    /// request its address's.
    fn on_event(&mut self, mut event: shard::Event) {
        let now = Instant::now();
        let by_address = REQUESTS.contains(&event.kind) || event.mac.is_none();
        let of = match by_address {
            false => event.mac,
            true => self.attester.given(event.address, now).or_else(|| {
                let may = self.neighbours_asked.take(NEIGHBOURS_ASKED, now);
                may.then(|| self.mac_of(event.address, now)).flatten()
            }),
        };
        let is_machine = |mac| self.feed.borrow().snapshot().machine_by_mac(&mac).is_some();
        let lane = match of.is_some_and(is_machine) {
            true => Lane::Machine,
            false => Lane::Stranger,
        };
        event.mac = event.mac.or(of);
        self.events.push(event, lane, now);
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

    // ------------------------------------------------------------ regions

    fn follow_regions(&mut self) {
        let endpoints = self
            .process_list
            .iter()
            .map(|(endpoint, _)| endpoint.clone())
            .collect();
        self.ports.save_regions(&endpoints);
        self.keep_regions(endpoints);
        self.tell_status();
    }

    /// Processes come and go while a link stays.
    fn ask_for_regions(&mut self) {
        let Some(session) = self.session() else {
            return;
        };
        let request = session.regions_request();
        let shared = Rc::clone(&self.shared);
        self.calls.spawn_local(async move {
            let answer = async {
                let answer = request.send().promise.await?;
                wire::regions(answer.get()?.get_regions()?)
            };
            // A region of an earlier version does not know the call; the next hello tells.
            if let Ok(Ok(regions)) = tokio::time::timeout(REPORT_TIME, answer).await
                && !regions.is_empty()
            {
                shared.tell(Happening::Regions(regions));
            }
        });
    }

    /// Keeps a link to each of these and the seeds; lets go of the others unless they are linked.
    fn keep_regions(&mut self, mut endpoints: BTreeSet<Endpoint>) {
        endpoints.extend(self.seeds.iter().cloned());
        let linked: BTreeSet<&Endpoint> = self.links.values().map(|link| &link.endpoint).collect();
        self.regions.retain(|endpoint, task| {
            let keep = endpoints.contains(endpoint) || linked.contains(endpoint);
            if !keep {
                task.abort();
            }
            keep
        });
        for endpoint in endpoints {
            if self.regions.len() >= ENDPOINTS_MAX {
                tracing::warn!(
                    limit = ENDPOINTS_MAX,
                    "more regions than this rack links to"
                );
                break;
            }
            let shared = &self.shared;
            self.regions.entry(endpoint).or_insert_with_key(|endpoint| {
                tokio::task::spawn_local(region::keep(Rc::clone(shared), endpoint.clone()))
            });
        }
    }

    /// The oldest link: all that want one region at a time use the same.
    fn session(&self) -> Option<&session::Client> {
        self.links.values().next().map(|link| &link.session)
    }

    fn tell_status(&mut self) {
        self.mode_told = self.leases.mode();
        let regions: Arc<[Region]> = self
            .links
            .values()
            .map(|link| {
                let port = |(endpoint, port): &(Endpoint, u16)| {
                    (*endpoint == link.endpoint).then_some(*port)
                };
                let own = self.process_list.iter().find_map(port);
                // Dialled by another name than the region's own: all processes use one port by convention.
                let port = own.or_else(|| self.process_list.first().map(|(_, port)| *port));
                Region {
                    host: link.endpoint.host.clone(),
                    port: port.unwrap_or(5251),
                }
            })
            .collect();
        // Without any link the last ones are still the best guess for HTTP.
        if !regions.is_empty() && **self.ports.regions.borrow() != *regions {
            self.ports.regions.send_replace(regions);
        }
        let feed = self.feed.borrow();
        self.ports.status.send_replace(Status {
            rack: self.identity.rack().to_owned(),
            regions: self
                .links
                .values()
                .map(|link| link.endpoint.to_string())
                .collect(),
            mode: self.leases.mode(),
            spooled: self.leases.spooled(),
            watermark: feed.watermark(),
            machines: feed.snapshot().machine_count(),
            leases: self.leases.counters(),
            feed: feed.counters(),
            boots: self.boots.counters,
            events: self.events.counters,
            shard_mail_dropped: self.shards.dropped,
        });
    }

    // ------------------------------------------------------------ feed

    fn subscribe(&mut self) {
        let Some((&link, Link { session, .. })) = self.links.first_key_value() else {
            return;
        };
        self.subscriptions += 1;
        let subscription = self.subscriptions;
        let sink = Sink {
            feed: Rc::clone(&self.feed),
            shared: Rc::clone(&self.shared),
            subscription,
        };
        let sink: feed_sink::Client = capnp_rpc::new_client(sink);
        let mut request = session.subscribe_request();
        request.get().set_sink(sink);
        self.subscribed = Some(subscription);
        let shared = Rc::clone(&self.shared);
        self.calls.spawn_local(async move {
            let answer = tokio::time::timeout(SUBSCRIBE_TIME, request.send().promise).await;
            if !matches!(answer, Ok(Ok(_))) {
                tracing::warn!(link, "subscribing to the feed failed");
                shared.tell(Happening::FeedEnded { subscription });
            }
        });
    }

    fn send_letters(&mut self) {
        if self
            .letters
            .as_ref()
            .is_some_and(|task| !task.is_finished())
            || self.feed.borrow().letters.is_empty()
        {
            return;
        }
        let (feed, fills) = (Rc::clone(&self.feed), self.ports.fills.clone());
        self.letters = Some(tokio::task::spawn_local(async move {
            loop {
                let letter = feed.borrow_mut().letters.pop_front();
                let Some(letter) = letter else { break };
                if fills.send(letter).await.is_err() {
                    break;
                }
            }
        }));
    }

    // ------------------------------------------------------------ devices

    fn look_at_interfaces(&mut self) {
        match (self.ports.interfaces)() {
            Ok(interfaces) if interfaces != *self.shared.interfaces.borrow() => {
                tracing::info!("the host's interfaces changed");
                self.feed.borrow_mut().set_interfaces(indexes(&interfaces));
                self.shared.interfaces.replace(interfaces);
                self.shared.refresh.send_modify(|count| *count += 1);
                self.open_sockets();
            }
            Ok(_) if self.sockets_missing => self.open_sockets(),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "reading the host's interfaces"),
        }
    }

    /// Opens packet sockets for devices that got a link, and gives every shard its own of all.
    fn open_sockets(&mut self) {
        let devices = self.feed.borrow().devices();
        let before: Vec<u32> = self.sockets.keys().copied().collect();
        self.sockets.retain(|device, _| devices.contains(device));
        self.sockets_missing = false;
        for device in devices {
            if self.sockets.contains_key(&device) {
                continue;
            }
            match (self.ports.sockets)(device) {
                Ok(sockets) if sockets.len() == self.shards.count() => {
                    self.sockets.insert(device, sockets);
                }
                Ok(_) => tracing::error!(device, "not one packet socket for each shard"),
                Err(error) => {
                    tracing::error!(device, %error, "opening packet sockets; trying again");
                    self.sockets_missing = true;
                }
            }
        }
        if self.sockets.keys().copied().eq(before) {
            return;
        }
        for shard in 0..self.shards.count() {
            if !self.give_sockets(shard) {
                return;
            }
        }
    }

    /// False: they are all to be opened anew, and given then.
    fn give_sockets(&mut self, shard: usize) -> bool {
        let own = |(interface, sockets): (&u32, &Vec<OwnedFd>)| {
            // A duplicate is the same socket: nothing that was received is lost or doubled by the exchange.
            let socket = sockets[shard].try_clone()?;
            Ok(LinkSocket {
                interface: *interface,
                socket,
            })
        };
        match self.sockets.iter().map(own).collect::<io::Result<Vec<_>>>() {
            Ok(sockets) => {
                self.shards.send(shard, ToShard::Links(sockets));
                true
            }
            Err(error) => {
                tracing::error!(%error, "giving packet sockets to a shard; trying again");
                self.sockets.clear();
                self.sockets_missing = true;
                false
            }
        }
    }

    /// A shard that begins anew gets what it has to know: its sockets and its leases.
    fn on_restarted(&mut self, shard: usize) {
        tracing::warn!(shard, "a shard begins anew");
        self.boots.forget(shard);
        self.give_sockets(shard);
        self.leases.restarted(shard, Now::read(), &mut self.shards);
        let now = Instant::now();
        let event = shard::Event {
            kind: "SHARD_RESTARTED",
            mac: None,
            address: std::net::Ipv4Addr::UNSPECIFIED.into(),
            detail: format!("shard {shard}: its connections and transfers began anew").into(),
            at: now,
        };
        self.events.push(event, Lane::Machine, now);
    }

    // ------------------------------------------------------------ calls

    fn mac_of(&self, address: std::net::IpAddr, now: Instant) -> Option<[u8; 6]> {
        self.attester.card(address, now)
    }

    fn on_boot_query(&mut self, shard: usize, ticket: u64, query: shard::BootQuery) {
        let (asker, now) = ((shard, ticket), Instant::now());
        // Outside our subnets no region has anything that boots through this rack.
        if query.vlan == 0 {
            return self.answer_boot(asker, BootAnswer::Nothing);
        }
        // The neighbour table is asked only where nothing else says whose address it is.
        let bound = self.attester.bound_mac(query.address, now);
        let lane = match (query.mac, bound) {
            (Some(asked), Some(bound)) if asked == bound => boots::Lane::Own,
            (None, Some(_)) => boots::Lane::Own,
            _ => boots::Lane::Stranger,
        };
        let mac = query.mac.or(bound);
        if mac.is_none() && !self.boots.takes_stranger(query.address) {
            return self.answer_boot(asker, BootAnswer::Busy);
        }
        let Some(mac) = mac.or_else(|| self.mac_of(query.address, now)) else {
            return self.answer_boot(asker, BootAnswer::Nothing);
        };
        let key = Key {
            mac,
            arch: query.arch.clone(),
            vlan: query.vlan,
        };
        match self.boots.ask(Call { key, query }, lane, asker, now) {
            Ask::Call(call) => self.call_boot(&call),
            Ask::Later => {}
            Ask::Refused => self.answer_boot(asker, BootAnswer::Busy),
        }
    }

    fn answer_boot(&mut self, (shard, ticket): boots::Asker, answer: BootAnswer) {
        self.shards.send(shard, ToShard::Machine { ticket, answer });
    }

    fn call_boot(&mut self, call: &Call) {
        let (shared, key) = (Rc::clone(&self.shared), call.key.clone());
        let Some(session) = self.session() else {
            let answer = BootAnswer::Busy;
            return shared.tell(Happening::Machine { key, answer });
        };
        let mut request = session.boot_config_request();
        wire::put_query(&call.query, key.mac, request.get().init_query());
        self.calls.spawn_local(async move {
            let answer = async {
                let answer = request.send().promise.await?;
                machine::read(answer.get()?.get_machine()?)
            };
            let answer = match tokio::time::timeout(BOOT_TIME, answer).await {
                Ok(Ok(machine)) => BootAnswer::Machine(Arc::new(machine)),
                Ok(Err(error)) => {
                    static RARELY: Rarely = Rarely::new();
                    if let Some(left_out) = RARELY.may(Instant::now()) {
                        tracing::warn!(%error, left_out, "bootConfig");
                    }
                    BootAnswer::Busy
                }
                Err(_) => BootAnswer::Busy,
            };
            shared.tell(Happening::Machine { key, answer });
        });
    }

    fn report(&mut self, batch: Vec<shard::Event>) {
        let Some(session) = self.session() else {
            return self.events.finish(false, Instant::now());
        };
        let mut request = session.report_request();
        let mut list = request.get().init_events(batch.len() as u32);
        let now = Instant::now();
        for (i, event) in batch.iter().enumerate() {
            wire::put_event(event, now, list.reborrow().get(i as u32));
        }
        let shared = Rc::clone(&self.shared);
        self.calls.spawn_local(async move {
            let answer = tokio::time::timeout(REPORT_TIME, request.send().promise).await;
            shared.tell(Happening::Reported {
                taken: matches!(answer, Ok(Ok(_))),
            });
        });
    }

    // ------------------------------------------------------------ the certificate

    fn renew(&mut self) {
        let Some(Link {
            session, welcome, ..
        }) = self.links.values().next()
        else {
            return;
        };
        if self.renewing || self.identity.remaining(SystemTime::now()) > welcome.renew {
            return;
        }
        let (session, identity) = (session.clone(), Rc::clone(&self.identity));
        let (shared, folder) = (Rc::clone(&self.shared), self.ports.state_dir.clone());
        self.renewing = true;
        self.calls.spawn_local(async move {
            let renewed = async {
                let (key, csr) = enrol::key_and_request().map_err(|error| error.to_string())?;
                let mut request = session.renew_request();
                request.get().set_csr(&csr);
                let answer = request
                    .send()
                    .promise
                    .await
                    .map_err(|error| error.to_string())?;
                let certificate = answer
                    .get()
                    .and_then(|answer| Ok(answer.get_certificate()?.to_vec()));
                let certificate = certificate.map_err(|error| error.to_string())?;
                let renewed = identity.renewed(key, certificate.into());
                let renewed = renewed.ok_or("the region gave a certificate that does not fit")?;
                // An fsync: not on this thread.
                let saved =
                    tokio::task::spawn_blocking(move || renewed.save(&folder).map(|()| renewed));
                let saved = saved.await.map_err(|error| error.to_string())?;
                saved.map_err(|error| error.to_string())
            };
            let renewed: Result<Identity, String> = tokio::time::timeout(RENEW_TIME, renewed)
                .await
                .unwrap_or(Err("no answer".into()));
            let renewed = renewed
                .inspect_err(|error| tracing::error!(error, "renewing this rack's certificate"))
                .ok();
            shared.tell(Happening::Renewed(renewed));
        });
    }

    fn on_renewed(&mut self, identity: Option<Identity>) {
        self.renewing = false;
        let Some(identity) = identity else { return };
        match tls::client_config(&identity) {
            Ok(config) => {
                let config = Arc::new(config);
                self.shared.tls.replace(Arc::clone(&config));
                self.ports.tls.send_replace(Some(config));
                self.identity = Rc::new(identity);
                // The old certificate's links would end with it.
                self.shared.refresh.send_modify(|count| *count += 1);
                tracing::info!("certificate renewed");
            }
            Err(error) => tracing::error!(%error, "using the renewed certificate"),
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

fn indexes(interfaces: &[Interface]) -> HashMap<String, u32> {
    interfaces
        .iter()
        .map(|interface| (interface.name.clone(), interface.index))
        .collect()
}

/// Takes the feed's parts; the region lets go of it when the subscription or the link ends.
struct Sink {
    feed: Rc<RefCell<Feed>>,
    shared: Rc<Shared>,
    subscription: u64,
}

impl feed_sink::Server for Sink {
    async fn snapshot(
        self: Rc<Self>,
        params: feed_sink::SnapshotParams,
        _: feed_sink::SnapshotResults,
    ) -> Result<(), capnp::Error> {
        let changed = self
            .feed
            .borrow_mut()
            .on_snapshot(params.get()?.get_part()?)?;
        self.shared.tell(Happening::FeedChanged(changed));
        Ok(())
    }

    async fn delta(
        self: Rc<Self>,
        params: feed_sink::DeltaParams,
        _: feed_sink::DeltaResults,
    ) -> Result<(), capnp::Error> {
        let changed = self.feed.borrow_mut().on_delta(params.get()?.get_part()?)?;
        self.shared.tell(Happening::FeedChanged(changed));
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.tell(Happening::FeedEnded {
            subscription: self.subscription,
        });
    }
}
