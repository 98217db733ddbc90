//! Drives the rack's lease machine (`lease::rack`): shards' writes in, calls, spool jobs and outcomes out.
//!
//! Decides nothing: every rule is the machine's. Holds what the machine does not know: which shard a ticket belongs to, and
//! the map of bindings that the metadata proxy attests with.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use lease::rack::{Action, Counters, Input, LinkId, Mode, Rack, Start, Ticket};
use lease::{Client, Outcome, Write, WriteKind};
use rpc::muster_capnp::session;
use shard::ToShard;

use super::bindings;
use super::clock::{Now, Watch};
use super::region::Shared;
use super::shards::Shards;
use super::thread::Happening;
use super::wire;
use crate::attest::Bindings;
use crate::spool::SpoolThread;

/// Longer than the machine's own patience with each: a call that never ends must not be kept for ever.
const BATCH_TIME: Duration = Duration::from_secs(10);
const HEARTBEAT_TIME: Duration = Duration::from_secs(10);
const ATTACH_TIME: Duration = Duration::from_secs(60);

/// A write that the machine has not answered.
struct Waiting {
    shard: usize,
    /// None: the shard does not want to hear of it.
    ticket: Option<dhcp::Ticket>,
    write: Write,
}

pub(super) struct Leases {
    machine: Rack,
    spool: SpoolThread,
    bindings: Bindings,
    waiting: HashMap<Ticket, Waiting>,
    next_ticket: Ticket,
    sessions: HashMap<LinkId, session::Client>,
    clocks: Watch,
    actions: Vec<Action>,
    /// A shard began anew and knows no leases: all is learnt anew once a region answers.
    relearns: bool,
    shared: Rc<Shared>,
}

impl Leases {
    pub fn new(start: Start, spool: SpoolThread, bindings: Bindings, shared: Rc<Shared>) -> Leases {
        Leases {
            machine: Rack::new(start),
            spool,
            bindings,
            waiting: HashMap::new(),
            next_ticket: 0,
            sessions: HashMap::new(),
            clocks: Watch::start(super::clock::boottime(), SystemTime::now()),
            actions: Vec::new(),
            relearns: false,
            shared,
        }
    }

    pub fn counters(&self) -> Counters {
        self.machine.counters()
    }

    pub fn mode(&self) -> Mode {
        self.machine.mode()
    }

    pub fn spooled(&self) -> usize {
        self.machine.spooled()
    }

    /// How long until `tick` is due; `None`: nothing waits for time.
    pub fn next_tick(&self, now: Now) -> Option<Duration> {
        self.machine
            .next_tick()
            .map(|at| at.saturating_sub(now.boot))
    }

    /// How long a batch of leases will not leave yet, full ones apart. `None`: one would at once.
    pub fn gathers(&self, now: Now) -> Option<Duration> {
        let left = self.machine.batch_due().checked_sub(now.boot)?;
        (!left.is_zero()).then_some(left)
    }

    pub fn tick(&mut self, now: Now, shards: &mut Shards) {
        if self.machine.next_tick().is_some_and(|at| at <= now.boot) {
            self.handle(Input::Tick, now, shards);
        }
    }

    /// Looks whether the clocks still go together; to be called every few seconds.
    pub fn check_clocks(&mut self, now: Now, shards: &mut Shards) {
        if self.clocks.disagrees(now.boot, SystemTime::now()) {
            tracing::warn!("CLOCK_BOOTTIME and the wall clock disagree: learning all leases anew");
            self.handle(Input::ClocksDisagree, now, shards);
        }
    }

    /// DHCP may have been switched on for a VLAN of ours: its machines are not to wait for the next heartbeat.
    pub fn links_changed(&mut self, now: Now, shards: &mut Shards) {
        self.handle(Input::LinksChanged, now, shards);
    }

    /// A shard begins anew and knows no leases. What was asked for it before is answered to nobody, and all is learnt anew
    /// from the region, which gives every shard its part. Without a region the shard deals nothing until there is one, and
    /// the others go on: nothing is forgotten before a region answers, for a link that is up is no answer.
    pub fn restarted(&mut self, shard: usize, now: Now, shards: &mut Shards) {
        for waiting in self.waiting.values_mut() {
            if waiting.shard == shard {
                waiting.ticket = None;
            }
        }
        self.relearns = true;
        // A heartbeat at once: its answer is a region's word.
        self.handle(Input::LinksChanged, now, shards);
    }

    /// Whether it is time to learn anew. Not attached, it happens by itself at the next attach.
    fn learns_now(&mut self, answered: bool) -> bool {
        let is_attached = self.machine.mode() == Mode::Attached;
        let now = self.relearns && is_attached && answered;
        self.relearns &= is_attached && !answered;
        now
    }

    pub fn link_up(
        &mut self,
        link: LinkId,
        session: session::Client,
        now: Now,
        shards: &mut Shards,
    ) {
        self.sessions.insert(link, session);
        self.handle(Input::LinkUp(link), now, shards);
    }

    pub fn link_down(&mut self, link: LinkId, now: Now, shards: &mut Shards) {
        if self.sessions.remove(&link).is_some() {
            self.handle(Input::LinkDown(link), now, shards);
        }
    }

    pub fn request(
        &mut self,
        shard: usize,
        ticket: dhcp::Ticket,
        write: Write,
        now: Now,
        shards: &mut Shards,
    ) {
        self.next_ticket += 1;
        let wanted = (ticket != dhcp::Ticket::UNAWAITED).then_some(ticket);
        let waiting = Waiting {
            shard,
            ticket: wanted,
            write: write.clone(),
        };
        self.waiting.insert(self.next_ticket, waiting);
        self.handle(
            Input::Request {
                ticket: self.next_ticket,
                write,
            },
            now,
            shards,
        );
    }

    /// Tells the machine what happened and does what it asks.
    pub fn handle(&mut self, input: Input, now: Now, shards: &mut Shards) {
        let answered = matches!(
            &input,
            Input::BatchAnswer {
                outcomes: Some(_),
                ..
            } | Input::HeartbeatAnswer { reply: Some(_), .. }
        );
        let mut actions = std::mem::take(&mut self.actions);
        self.machine.handle(now.boot, input, &mut actions);
        for action in actions.drain(..) {
            self.act(action, now, shards);
        }
        self.actions = actions;
        if self.learns_now(answered) {
            self.handle(Input::ClocksDisagree, now, shards);
        }
    }

    fn act(&mut self, action: Action, now: Now, shards: &mut Shards) {
        match action {
            Action::SendBatch { call, link, batch } => {
                self.call(
                    link,
                    BATCH_TIME,
                    move |session| {
                        let mut request = session.commit_leases_request();
                        wire::put_batch(&batch, request.get().init_batch());
                        async move {
                            let outcomes = async {
                                let answer = request.send().promise.await?;
                                let list = answer.get()?.get_outcomes()?;
                                list.iter()
                                    .map(wire::outcome)
                                    .collect::<Result<Vec<_>, _>>()
                            };
                            let outcomes = told("commitLeases", outcomes.await);
                            Input::BatchAnswer { call, outcomes }
                        }
                    },
                    Input::BatchAnswer {
                        call,
                        outcomes: None,
                    },
                );
            }
            Action::SendHeartbeat {
                call,
                link,
                spool_id,
                digest,
            } => {
                self.call(
                    link,
                    HEARTBEAT_TIME,
                    move |session| {
                        let mut request = session.heartbeat_request();
                        request.get().set_spool_id(&spool_id.0);
                        request.get().set_digest(&digest);
                        async move {
                            let reply = async {
                                let answer = request.send().promise.await?;
                                wire::heartbeat(answer.get()?.get_reply()?)
                            };
                            let reply = told("heartbeat", reply.await);
                            Input::HeartbeatAnswer { call, reply }
                        }
                    },
                    Input::HeartbeatAnswer { call, reply: None },
                );
            }
            Action::SendAttach {
                call,
                link,
                spool_id,
                spool_seq,
            } => {
                self.call(
                    link,
                    ATTACH_TIME,
                    move |session| {
                        let mut request = session.attach_request();
                        request.get().set_spool_id(&spool_id.0);
                        request.get().set_spool_seq(spool_seq);
                        async move {
                            let reply = async {
                                let answer = request.send().promise.await?;
                                wire::attachment(answer.get()?.get_attachment()?)
                            };
                            let reply = told("attach", reply.await);
                            Input::AttachAnswer { call, reply }
                        }
                    },
                    Input::AttachAnswer { call, reply: None },
                );
            }
            Action::AppendSpool(entry) => self.spool.append(entry),
            Action::RemoveSpool { seqs } => self.spool.remove(seqs),
            Action::ResetSpool => self.spool.reset(),
            Action::ReplaceSpool => self.spool.replace(),
            Action::Reply {
                ticket,
                outcome,
                sent,
            } => self.reply(ticket, outcome, sent, now, shards),
            Action::Attached {
                blocks,
                rows,
                sent,
                until,
            } => {
                let (sent, until) = (now.instant_of(sent), now.instant_of(until));
                tracing::info!(blocks = blocks.len(), rows = rows.len(), "attached");
                bindings::replace(&self.bindings, &rows, sent);
                let (blocks, rows): (std::sync::Arc<[_]>, std::sync::Arc<[_]>) =
                    (blocks.into(), rows.into());
                shards.send_all(|| ToShard::Attach {
                    blocks: blocks.clone(),
                    rows: rows.clone(),
                    sent,
                    until,
                });
            }
            Action::ForgetBlock(block) => {
                // Shards have no word for one block less, and ask for no yield themselves: without any they are safe, and
                // the machine, told that time can't be trusted, attaches to what is left.
                tracing::warn!(
                    block = block.0,
                    "a block was yielded: learning all leases anew"
                );
                shards.send_all(|| ToShard::Forget);
                self.shared.tell(Happening::Lease(Input::ClocksDisagree));
            }
            Action::Forget => {
                tracing::warn!("no leases are given until a region is attached to");
                shards.send_all(|| ToShard::Forget);
            }
            Action::Until(until) => {
                let until = now.instant_of(until);
                shards.send_all(|| ToShard::Until(until));
            }
            Action::Detached(detached) => {
                if detached {
                    tracing::warn!("no region answers: leases go to the spool");
                } else {
                    tracing::info!("a region answers again");
                }
            }
            Action::Alarm(alarm) => tracing::error!(%alarm, "leases"),
        }
    }

    fn reply(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        sent: Duration,
        now: Now,
        shards: &mut Shards,
    ) {
        let Some(Waiting {
            shard,
            ticket,
            write,
        }) = self.waiting.remove(&ticket)
        else {
            return;
        };
        match (&write.kind, outcome) {
            (
                WriteKind::Grant { client, .. } | WriteKind::Extend { client, .. },
                Outcome::Durable { remaining },
            ) => {
                self.bound(&write, client, sent + remaining, now);
            }
            (WriteKind::Reclaim { .. } | WriteKind::Quarantine { .. }, Outcome::Done) => {
                bindings::remove(&self.bindings, write.address);
            }
            _ => {}
        }
        if let Some(ticket) = ticket {
            // `remaining` counts from `sent`; the shard counts from when it asked, which was earlier.
            shards.send(shard, ToShard::Outcome { ticket, outcome });
        }
    }

    fn bound(&self, write: &Write, client: &Client, end: Duration, now: Now) {
        bindings::granted(&self.bindings, write.address, client, now.instant_of(end));
    }

    /// One call on one link; exactly one answer comes back as a happening.
    fn call<F>(
        &self,
        link: LinkId,
        limit: Duration,
        start: impl FnOnce(&session::Client) -> F,
        failed: Input,
    ) where
        F: Future<Output = Input> + 'static,
    {
        let Some(session) = self.sessions.get(&link) else {
            return self.shared.tell(Happening::Lease(failed));
        };
        let answer = start(session);
        let shared = Rc::clone(&self.shared);
        tokio::task::spawn_local(async move {
            let input = tokio::time::timeout(limit, answer).await.unwrap_or(failed);
            shared.tell(Happening::Lease(input));
        });
    }
}

fn told<T>(call: &'static str, result: Result<T, capnp::Error>) -> Option<T> {
    result
        .inspect_err(|error| tracing::warn!(call, %error, "the region did not answer a lease call"))
        .ok()
}

#[cfg(test)]
mod tests;
