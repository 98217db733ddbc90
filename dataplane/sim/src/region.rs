//! Regions: two processes over one database, and the way to them and back. A request may be lost, late, or run twice; a
//! process may stand still with it, or end after it was read.

use std::time::Duration;

use lease::rack::{CallId, Input, LinkId};
use lease::{Batch, SpoolId};

use crate::plan::ms;
use crate::trace;
use crate::world::{Event, World, note};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    /// +1 with each process.
    pub life: u32,
    pub up: bool,
    pub paused_until: Duration,
}

impl Default for Region {
    fn default() -> Self {
        Self {
            life: 0,
            up: true,
            paused_until: Duration::ZERO,
        }
    }
}

impl Region {
    pub fn answers(&self, now: Duration) -> bool {
        self.up && self.paused_until <= now
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Call {
    Batch(CallId, Batch),
    Heartbeat(CallId, SpoolId, [u8; 32]),
    Attach(CallId, SpoolId, u64),
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    rack: usize,
    /// The rack's process and connection: a reply reaches only them.
    life: u32,
    link: LinkId,
    pub region: usize,
    region_life: u32,
    sent: Duration,
    call: Call,
}

/// Requests kept for [`World::replay`].
const HISTORY_MAX: usize = 1_024;
/// Of them, run again at a time, at most.
const REPLAYED_MAX: u64 = 6;

/// Longer than the machine's patience: then a call that was not answered has failed.
fn limit_of(call: &Call) -> Duration {
    match call {
        Call::Batch(..) | Call::Heartbeat(..) => Duration::from_secs(10),
        Call::Attach(..) => Duration::from_secs(60),
    }
}

/// What the rack hears of a call that failed.
fn failed(call: &Call) -> Input {
    match call {
        Call::Batch(call, _) => Input::BatchAnswer {
            call: *call,
            outcomes: None,
        },
        Call::Heartbeat(call, ..) => Input::HeartbeatAnswer {
            call: *call,
            reply: None,
        },
        Call::Attach(call, ..) => Input::AttachAnswer {
            call: *call,
            reply: None,
        },
    }
}

impl World<'_> {
    /// The rack calls a region.
    pub fn call(&mut self, rack: usize, link: LinkId, call: Call) {
        let site = &self.racks[rack];
        let (life, limit) = (site.life, limit_of(&call));
        let region = (0..2).find(|region| site.link_to(*region) == Some(link));
        let give_up = Event::Answered {
            rack,
            life,
            link: None,
            input: failed(&call),
        };
        let Some(region) = region else {
            return self.after(Duration::ZERO, give_up);
        };
        let healed = site.cut_until[region];
        let (sent, region_life) = (self.now, self.regions[region].life);
        let request = Request {
            rack,
            life,
            link,
            region,
            region_life,
            sent,
            call,
        };
        if self.plan.replay > 0 && !matches!(request.call, Call::Heartbeat(..)) {
            if self.history.len() >= HISTORY_MAX {
                self.history.pop_front();
            }
            self.history.push_back(request.clone());
        }
        if healed > self.now {
            // TCP delivers it when it can, if the connection lives that long.
            let wait = self.rng.between(ms(1), ms(400));
            if self.rng.coin() {
                self.at(healed + wait, Event::Request(request));
            }
            return self.after(limit, give_up);
        }
        if !self.quiet && self.rng.permille(self.plan.link_double) {
            let wait = self.rng.skewed(ms(self.plan.late_ms));
            self.after(wait, Event::Request(request.clone()));
        }
        let stuck =
            matches!(request.call, Call::Batch(..)) && self.rng.permille(self.plan.late_batch);
        match self.way() {
            Some(_) if stuck && !self.quiet => {
                let wait = self.rng.skewed(ms(self.plan.late_ms));
                self.after(wait, Event::Request(request));
            }
            Some(wait) => self.after(wait, Event::Request(request)),
            None => self.after(limit, give_up),
        }
    }

    /// How long a message is under way; None: for ever.
    fn way(&mut self) -> Option<Duration> {
        let plan = self.plan;
        if !self.quiet && self.rng.permille(plan.link_loss) {
            return None;
        }
        let late = !self.quiet && self.rng.permille(plan.late);
        Some(if late {
            self.rng.skewed(ms(plan.late_ms))
        } else {
            self.rng
                .between(Duration::from_micros(150), Duration::from_micros(2_000))
        })
    }

    /// Requests of any time before come out of some buffer now, and run again.
    pub fn replay(&mut self) {
        for _ in 0..1 + self.rng.below(REPLAYED_MAX) {
            if self.history.is_empty() {
                return;
            }
            let nth = self.rng.index(self.history.len());
            let request = self.history[nth].clone();
            let wait = self.rng.between(ms(0), ms(20));
            self.after(wait, Event::Request(request));
        }
    }

    /// The transaction runs.
    pub fn on_request(&mut self, request: Request) {
        let region = self.regions[request.region];
        // The process that read it has ended. The database may have had it by then.
        let orphan = !region.up || region.life != request.region_life;
        if orphan && self.rng.coin() {
            return;
        }
        // `now()` is the transaction's start, before it had its locks.
        let waited = self
            .rng
            .skewed(ms(self.plan.lock_ms))
            .min(self.now - request.sent);
        let now = self.database.time(self.now - waited);
        let Request {
            rack,
            life,
            link,
            region,
            ..
        } = request;
        let input = match &request.call {
            Call::Batch(call, batch) => {
                let outcomes = self.database.commit(rack, batch, now);
                self.report.commits += 1;
                self.oracle.dirty = true;
                note!(
                    self,
                    "region {region} commits for rack {rack} {}: {}",
                    trace::batch(batch),
                    trace::outcomes(&outcomes)
                );
                Input::BatchAnswer {
                    call: *call,
                    outcomes: Some(outcomes),
                }
            }
            Call::Attach(call, spool_id, seq) => {
                let reply = self.database.attach(rack, *spool_id, *seq, now);
                note!(
                    self,
                    "region {region} attaches rack {rack} at {seq:x}: {}",
                    trace::attach_reply(&reply)
                );
                Input::AttachAnswer {
                    call: *call,
                    reply: Some(reply),
                }
            }
            Call::Heartbeat(call, spool_id, digest) => {
                let reply = self.database.heartbeat(rack, *spool_id, digest, now);
                Input::HeartbeatAnswer {
                    call: *call,
                    reply: Some(reply),
                }
            }
        };
        if orphan {
            return;
        }
        let waits = request.sent + limit_of(&request.call);
        let give_up = Event::Answered {
            rack,
            life,
            link: None,
            input: failed(&request.call),
        };
        match self.way() {
            Some(wait) if self.now + wait <= waits => {
                let link = Some((region, link));
                self.after(
                    wait,
                    Event::Answered {
                        rack,
                        life,
                        link,
                        input,
                    },
                );
            }
            // Too late, or never.
            _ => self.at(waits.max(self.now), give_up),
        }
    }

    // ---------------------------------------------------------------- the process

    pub fn stop_region(&mut self, region: usize) {
        let process = &mut self.regions[region];
        (process.up, process.paused_until) = (false, Duration::ZERO);
        process.life += 1;
        self.drop_links(region);
    }

    pub fn start_region(&mut self, region: usize) {
        self.regions[region].up = true;
    }

    /// Connections end; the racks notice at once, or a little later.
    pub fn drop_links(&mut self, region: usize) {
        for rack in 0..self.racks.len() {
            let life = self.racks[rack].life;
            if let Some(link) = self.racks[rack].link_to(region) {
                let wait = self.rng.skewed(ms(5_000));
                self.after(
                    wait,
                    Event::LinkDown {
                        rack,
                        life,
                        region,
                        link,
                    },
                );
            }
        }
    }

    // ---------------------------------------------------------------- housekeeping

    pub fn on_settle(&mut self) {
        if !self.regions.iter().any(|region| region.answers(self.now)) {
            return;
        }
        let now = self.database.time(self.now);
        for (block, owner) in self.database.settle(now) {
            note!(self, "{block:?} is taken from rack {owner}");
            self.report.moves += 1;
        }
        self.oracle.dirty = true;
    }

    pub fn on_replicate(&mut self) {
        self.database.replicate();
        let wait = self.rng.skewed(ms(self.plan.standby_ms)) + ms(100);
        self.after(wait, Event::Replicate);
    }

    pub fn on_end_hold(&mut self) {
        if self.lost_until <= self.now {
            note!(self, "the operator ends the hold");
            self.database.end_hold_now();
        }
    }
}
