//! The loop: wait, receive, decide, send.
//!
//! Order within a turn: mail, then what the driver brings (acknowledgements and octets of running transfers among it),
//! then what was woken, then timers and new TFTP requests. So what runs goes before what wants to begin.

use std::io;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use images::Phase;

use crate::config::Config;
use crate::dhcp_side::DhcpSide;
use crate::driver::{Completion, Datagram, Driver, Service};
use crate::http_side::HttpSide;
use crate::lookup::Core;
use crate::mailbox::{ShardMailbox, ToShard};
use crate::queries::Waiter;
use crate::snapshot::Snapshot;
use crate::sources::is_served;
use crate::stats::{SharedStats, Stats};
use crate::tftp_side::TftpHost;

/// Longest sleep. Statistics are published at least so often.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// After a turn of DHCP alone the next look is not before this: no client notices, and a storm costs fewer wake-ups.
const GATHER: Duration = Duration::from_millis(1);
/// Messages taken per turn, so that mail cannot starve packets.
const MAIL_PER_TURN_MAX: usize = 1024;
/// Longest request or acknowledgement looked at (RFC 2347: 512).
const TFTP_BYTES_MAX: usize = 1024;

pub struct Shard<D> {
    driver: D,
    shared: Arc<ArcSwap<Snapshot>>,
    core: Core,
    dhcp: DhcpSide,
    tftp: tftp::Server,
    http: HttpSide,
    stats: SharedStats,
    stats_due: Instant,
    done: Vec<Completion>,
    woken: Vec<Waiter>,
    draining: Option<Instant>,
    stopped: bool,
}

/// DHCP clients wait for seconds; transfers wait for each datagram.
fn is_dhcp_only(done: &[Completion]) -> bool {
    let is_dhcp = |completion: &Completion| match completion {
        Completion::Datagram(datagram) => {
            matches!(datagram.service, Service::DhcpFrame | Service::Dhcp)
        }
        Completion::Mail => true,
        _ => false,
    };
    !done.is_empty() && done.iter().all(is_dhcp)
}

impl<D: Driver> Shard<D> {
    pub fn new(
        config: Config,
        driver: D,
        mail: ShardMailbox,
        shared: Arc<ArcSwap<Snapshot>>,
        stats: SharedStats,
    ) -> Self {
        let now = driver.now();
        Self {
            dhcp: DhcpSide::new(&config, now),
            tftp: tftp::Server::new(config.tftp, config.seed),
            http: HttpSide::new(&config, now),
            core: Core::new(config, shared.load_full(), mail, now),
            driver,
            shared,
            stats,
            stats_due: now,
            done: Vec::with_capacity(1024),
            woken: Vec::new(),
            draining: None,
            stopped: false,
        }
    }

    /// Turns until it is told to stop, or the driver is broken beyond repair.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.is_stopped() {
            self.turn()?;
        }
        self.publish();
        Ok(())
    }

    /// Its end of the mailboxes and its driver, for a shard that begins anew.
    pub fn into_parts(self) -> (ShardMailbox, D) {
        (self.core.mail, self.driver)
    }

    /// It was told to stop, or has drained.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// One turn. Never awaits.
    pub fn turn(&mut self) -> io::Result<()> {
        let wait = if self.core.mail.park() {
            self.wait()
        } else {
            Duration::ZERO
        };
        let mut done = mem::take(&mut self.done);
        let polled = self.driver.poll(wait, &mut done);
        self.core.mail.bell.unpark();
        polled?;
        self.core.now = self.driver.now();
        self.core.counters.turns += 1;
        self.load_snapshot();

        for _ in 0..MAIL_PER_TURN_MAX {
            let Some(message) = self.core.mail.pop() else {
                break;
            };
            self.on_mail(message);
        }
        if is_dhcp_only(&done) {
            self.driver.gather(GATHER);
        }
        for completion in done.drain(..) {
            self.on_completion(completion);
        }
        self.done = done;
        self.wake();
        self.on_time();
        self.dhcp.retry(&mut self.core, &mut self.driver);
        self.dhcp.flush(&mut self.core, &mut self.driver);
        Ok(())
    }

    /// How long nothing will be due.
    fn wait(&self) -> Duration {
        let due = [
            self.dhcp.next_deadline(),
            self.tftp.next_deadline(),
            self.http.next_deadline(),
            self.core.queries.next_deadline(),
            self.draining,
        ];
        match due.into_iter().flatten().min() {
            Some(at) => at
                .saturating_duration_since(self.driver.now())
                .min(WAIT_MAX),
            None => WAIT_MAX,
        }
    }

    fn load_snapshot(&mut self) {
        let current = self.shared.load();
        if !Arc::ptr_eq(&current, &self.core.snapshot) {
            if !current.boots_like(&self.core.snapshot) {
                self.core.queries.on_news();
            }
            self.core.snapshot = Arc::clone(&current);
            self.core.wake_waiting();
        }
    }

    fn on_mail(&mut self, message: ToShard) {
        match message {
            ToShard::Attach {
                blocks,
                rows,
                sent,
                until,
            } => {
                let (snapshot, now) = (Arc::clone(&self.core.snapshot), self.core.now);
                self.dhcp
                    .engine
                    .attach(&blocks, &rows, until, sent, &*snapshot, now);
            }
            ToShard::Forget => self.dhcp.engine.forget(),
            ToShard::Until(until) => self.dhcp.engine.set_until(until),
            ToShard::Outcome { ticket, outcome } => {
                self.dhcp
                    .on_outcome(ticket, outcome, &mut self.core, &mut self.driver);
            }
            ToShard::Machine { ticket, answer } => {
                let waiters = self.core.queries.on_answer(ticket, answer, self.core.now);
                self.core.woken.extend(waiters);
            }
            ToShard::Progress => self.core.wake_waiting(),
            ToShard::HandedOver(message) => {
                if self.draining.is_none() {
                    self.dhcp.make_room(&mut self.core, &mut self.driver);
                    self.dhcp.on_handed_over(&message, &mut self.core);
                }
            }
            ToShard::Wish(wish) => self.dhcp.on_wish(wish, &mut self.core),
            ToShard::Lent(lent) => self.dhcp.engine.take(&lent),
            ToShard::Probed {
                vlan,
                address,
                probed,
            } => {
                let (core, driver) = (&mut self.core, &mut self.driver);
                self.dhcp.on_probed(vlan, address, probed, core, driver);
            }
            ToShard::Links(links) => self.driver.set_links(links),
            ToShard::Drain { deadline } => {
                self.draining = Some(deadline);
                self.driver.stop_accepting();
            }
            ToShard::Stop => self.stopped = true,
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Datagram(datagram) => self.on_datagram(datagram),
            Completion::Accepted { stream, ends } => {
                self.http
                    .on_accepted(stream, ends, &mut self.core, &mut self.driver);
            }
            Completion::Received { stream, buffer } => {
                self.http.on_received(stream, self.driver.bytes(&buffer));
                self.driver.release(buffer);
                self.drive(stream);
            }
            Completion::Ended { stream, broken } => {
                self.http.on_ended(stream, broken, &mut self.driver);
                self.drive(stream);
            }
            Completion::StreamSent { stream, sent } => {
                self.http.on_sent(stream, sent);
                self.drive(stream);
            }
            Completion::Taken {
                stream,
                socket,
                read,
            } => {
                self.http.on_taken(stream, socket, read, &mut self.core);
            }
            Completion::Mail => {} // looked at in every turn
        }
    }

    fn drive(&mut self, stream: crate::StreamId) {
        self.http
            .drive(stream, &mut self.core, &self.dhcp.engine, &mut self.driver);
    }

    fn on_datagram(&mut self, datagram: Datagram) {
        match datagram.service {
            Service::DhcpFrame | Service::Dhcp | Service::ProxyDhcp => {
                if self.draining.is_none() {
                    self.dhcp.make_room(&mut self.core, &mut self.driver);
                    let octets = self.driver.bytes(&datagram.buffer);
                    self.dhcp.on_datagram(&datagram, octets, &mut self.core);
                }
            }
            Service::TftpRequest | Service::TftpTransfer(_) => self.on_tftp(&datagram),
        }
        self.driver.release(datagram.buffer);
    }

    fn on_tftp(&mut self, datagram: &Datagram) {
        // The host borrows the driver, so the few octets of a request or an ACK are copied.
        let octets = self.driver.bytes(&datagram.buffer);
        let mut copy = [0; TFTP_BYTES_MAX];
        let length = octets.len().min(TFTP_BYTES_MAX);
        copy[..length].copy_from_slice(&octets[..length]);
        let octets = &copy[..length];
        // A request to everybody is nobody's to answer (RFC 1123 §4.2.3.5).
        let to_all = match datagram.local {
            IpAddr::V4(local) => local.is_broadcast() || local.is_multicast(),
            IpAddr::V6(local) => local.is_multicast(),
        };
        if to_all {
            return;
        }
        let allowed = &self.core.config.tftp_allow;
        if datagram.service == Service::TftpRequest
            && !is_served(datagram.from.ip(), &self.core.snapshot, allowed)
        {
            self.core.counters.tftp_not_served += 1;
            return;
        }
        let peer = tftp::Peer {
            client: datagram.from,
            local: datagram.local,
        };
        let now = self.core.now;
        let mtu = self
            .core
            .snapshot
            .link_by_interface(datagram.interface)
            .map(|link| link.dhcp.mtu);
        let engine = &self.dhcp.engine;
        let mut host = TftpHost {
            core: &mut self.core,
            engine,
            driver: &mut self.driver,
        };
        if let Service::TftpTransfer(tid) = datagram.service {
            self.tftp.on_transfer(peer, tid, octets, now, &mut host);
        } else if self.draining.is_none() {
            self.tftp.on_request(peer, mtu, octets, now, &mut host);
        }
    }

    /// Gives those whose wait is over another look.
    fn wake(&mut self) {
        let expired = self.core.queries.expire(self.core.now);
        self.core.woken.extend(expired);
        let mut woken = mem::take(&mut self.woken);
        mem::swap(&mut woken, &mut self.core.woken);
        for waiter in woken.drain(..) {
            match waiter {
                Waiter::Tftp(ticket) => self.tftp.retry(ticket),
                Waiter::Http(stream) => {
                    self.http.on_woken(stream);
                    self.drive(stream);
                }
            }
        }
        self.woken = woken;
    }

    fn on_time(&mut self) {
        let now = self.core.now;
        if self.dhcp.next_deadline().is_some_and(|due| due <= now) {
            self.dhcp.make_room(&mut self.core, &mut self.driver);
            self.dhcp.tick(now);
        }
        if self.http.next_deadline().is_some_and(|due| due <= now) {
            self.http
                .scan(&mut self.core, &self.dhcp.engine, &mut self.driver);
        }
        let engine = &self.dhcp.engine;
        let mut host = TftpHost {
            core: &mut self.core,
            engine,
            driver: &mut self.driver,
        };
        self.tftp.run(now, &mut host);
        if let Some(deadline) = self.draining {
            let idle = self.tftp.transfer_count() == 0 && self.http.is_quiet();
            self.stopped |= idle || now >= deadline;
        }
        if now >= self.stats_due {
            self.stats_due = now + WAIT_MAX;
            self.publish();
            // A Progress that found the mailbox full costs a second.
            self.core.wake_waiting();
        }
    }

    fn publish(&mut self) {
        self.core.tell_left_out();
        self.core.counters.boot_calls_unanswered = self.core.queries.unanswered;
        self.core.counters.boot_calls_refused = self.core.queries.refused;
        self.stats.set(Stats {
            shard: self.core.counters,
            driver: self.driver.counters(),
            dhcp: self.dhcp.engine.counters().clone(),
            dhcp_usage: self.dhcp.engine.usage(),
            dhcp_claimed: self.dhcp.engine.claimed(),
            tftp: self.tftp.counters,
            tftp_transfers: self.tftp.transfer_count(),
            tftp_unconfirmed: self.tftp.unconfirmed_count(),
            tftp_pending: self.tftp.pending_count(),
            http: self.http.counters,
            http_connections: self.http.connection_count(),
            http_new: self.http.count_of(Phase::New),
            http_idle: self.http.count_of(Phase::Idle),
            http_busy: self.http.count_of(Phase::Busy),
        });
    }
}
