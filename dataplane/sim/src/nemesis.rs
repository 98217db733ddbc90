//! What goes wrong, and when.

use std::time::Duration;

use crate::plan::{Plan, ms};
use crate::world::{Event, World, note};

#[derive(Clone, Copy, Debug)]
enum Fault {
    Crash,
    Wipe,
    SetBack,
    PauseRack,
    PauseRegion,
    Lapse,
    CrashRegion,
    Cut,
    CutAll,
    Isolate,
    Doubt,
    Drift,
    Step,
    Promote,
    PromoteLossy,
    Intend,
    Give,
    Replay,
    Disk,
    Relay,
}

fn weights(plan: &Plan) -> [(Fault, u64); 20] {
    use Fault::*;
    [
        (Crash, plan.crash),
        (Wipe, plan.wipe),
        (SetBack, plan.set_back),
        (PauseRack, plan.pause_rack),
        (PauseRegion, plan.pause_region),
        (Lapse, plan.lapse),
        (CrashRegion, plan.crash_region),
        (Cut, plan.cut),
        (CutAll, plan.cut_all),
        (Isolate, plan.isolate),
        (Doubt, plan.doubt),
        (Drift, plan.drift),
        (Step, plan.step),
        (Promote, plan.promote),
        (PromoteLossy, plan.promote_lossy),
        (Intend, plan.intend),
        (Give, plan.give),
        (Replay, plan.replay),
        (Disk, plan.disk),
        (Relay, plan.relay_down),
    ]
}

impl World<'_> {
    pub fn on_nemesis(&mut self) {
        if self.quiet {
            return;
        }
        let weights = weights(self.plan);
        let all: u64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut draw = self.rng.below(all);
        let drawn = weights.into_iter().find(|(_, weight)| {
            let found = draw < *weight;
            draw = draw.saturating_sub(*weight);
            found
        });
        if let Some((fault, _)) = drawn {
            self.report.faults += 1;
            self.strike(fault);
        }
        let next = self.rng.gap(ms(self.plan.fault_every_ms));
        self.after(next, Event::Nemesis);
    }

    fn strike(&mut self, fault: Fault) {
        let rack = self.rng.index(self.racks.len());
        let region = self.rng.index(2);
        let length = self.rng.skewed(ms(self.plan.fault_ms));
        let until = self.now + length;
        note!(
            self,
            "FAULT {fault:?} (rack {rack} or region {region}) for {length:?}"
        );
        match fault {
            Fault::Crash | Fault::Wipe | Fault::SetBack => self.crash(rack, fault),
            Fault::PauseRack => self.racks[rack].paused_until = until,
            Fault::Lapse => {
                self.racks[rack].paused_until = until;
                let wait = length + self.rng.skewed(ms(8_000));
                self.after(wait, Event::CutOff { rack });
            }
            Fault::PauseRegion => self.regions[region].paused_until = until,
            Fault::CrashRegion => {
                self.stop_region(region);
                self.at(until, Event::RestartRegion { region });
            }
            Fault::Cut => self.cut(rack, region, until),
            Fault::CutAll => self.cut_off(rack, length),
            Fault::Isolate => self.racks[rack].isolated_until = until,
            Fault::Doubt => {
                let life = self.racks[rack].life;
                self.after(Duration::ZERO, Event::Doubt { rack, life });
            }
            Fault::Drift => {
                let drift = self.plan.drift_ppm;
                let fast = self.rng.below(2 * drift + 1) as i64 - drift as i64;
                self.racks[rack].clock.set_rate(self.now, fast);
            }
            Fault::Step => self.step(),
            Fault::Promote | Fault::PromoteLossy => {
                self.promote(matches!(fault, Fault::PromoteLossy));
            }
            Fault::Intend => {
                let block = self.rng.index(self.database.blocks().len());
                self.database.intend(block, rack);
            }
            Fault::Give => {
                let nth = self.rng.index(8);
                self.give(rack, nth);
            }
            Fault::Replay => self.replay(),
            Fault::Disk => self.racks[rack].disk.fails_until = until,
            Fault::Relay => self.relay_down_until = until,
        }
    }

    fn crash(&mut self, rack: usize, fault: Fault) {
        if !self.racks[rack].up {
            return;
        }
        // First the snapshot, with the rack running; the next one restores it.
        if matches!(fault, Fault::SetBack) {
            let disk = &mut self.racks[rack].disk;
            if !disk.has_older() {
                return disk.remember();
            }
            if self.plan.any_snapshot == 0 && !disk.shows() {
                return;
            }
        }
        self.stop_rack(rack);
        let disk = &mut self.racks[rack].disk;
        match fault {
            Fault::Wipe => disk.wipe(),
            Fault::SetBack => disk.set_back(),
            _ => {}
        }
        if !matches!(fault, Fault::Crash) {
            self.oracle.forgive(&self.database);
        }
        let wait = ms(50) + self.rng.skewed(ms(20_000));
        self.after(wait, Event::Restart { rack });
    }

    /// From both regions; not any more when the faults are over.
    pub fn cut_off(&mut self, rack: usize, length: Duration) {
        let until = self.now + length;
        if !self.quiet {
            (0..2).for_each(|region| self.cut(rack, region, until));
        }
    }

    fn cut(&mut self, rack: usize, region: usize, until: Duration) {
        let site = &mut self.racks[rack];
        site.cut_until[region] = site.cut_until[region].max(until);
        let life = site.life;
        // The connection outlives a short cut; a long one is noticed.
        if let Some(link) = site.link_to(region) {
            let wait = self.rng.skewed(ms(20_000));
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

    fn step(&mut self) {
        let ahead = self.rng.between(Duration::ZERO, ms(self.plan.step_ms));
        note!(self, "the database's clock is {ahead:?} ahead");
        self.database.set_clock(ahead);
    }

    /// Regions see another timeline and begin the hold; if nothing was lost, the operator may end it.
    fn promote(&mut self, lossy: bool) {
        let hold = (self.plan.hold > 0).then(|| self.plan.hold());
        // Another host's clock.
        self.step();
        let now = self.database.time(self.now);
        self.database.promote(lossy, hold, now);
        (0..2).for_each(|region| self.drop_links(region));
        if lossy {
            let blind = self.now + self.plan.hold() + 2 * ms(self.plan.step_ms) + ms(60_000);
            self.oracle.forgive_all(blind);
            self.lost_until = self.lost_until.max(blind);
        } else if self.rng.coin() {
            let wait = self.rng.skewed(ms(120_000));
            self.after(wait, Event::EndHold);
        }
        self.oracle.dirty = true;
    }

    /// The faults are over: what stands still goes on, what is cut is mended, clients are on.
    pub fn on_quiet(&mut self) {
        note!(self, "the faults are over");
        self.quiet = true;
        let now = self.now;
        for site in &mut self.racks {
            site.paused_until = site.paused_until.min(now);
            site.isolated_until = now;
            site.cut_until = [now; 2];
            site.disk.fails_until = now;
        }
        for region in 0..2 {
            self.regions[region].paused_until = now;
            self.start_region(region);
        }
        self.relay_down_until = now;
        self.wake_clients();
    }
}
