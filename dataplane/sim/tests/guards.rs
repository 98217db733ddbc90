//! Each guard of the lease protocol removed in turn: some seed fails. With all of them, under the same plans, none does.
//!
//! Small instances (one or two addresses, two or three clients) and shards without caution, since the engine's own manners hide most of
//! what the protocol forbids; faults are those that the guard is there for, often.

use sim::{Guard, Plan, run};

/// One address that two clients want, of a lone rack.
fn small() -> Plan {
    Plan {
        clients: 2,
        racks: 1,
        addresses: 1,
        naive: 1,
        lease_ms: 30_000,
        until_ms: 300_000,
        length_ms: 900_000,
        whim_ms: 15_000,
        retry_ms: 1_000,
        sloppy: 0,
        fault_every_ms: 10_000,
        fault_ms: 60_000,
        ..Plan::calm()
    }
}

/// Two racks, and a block each that may change hands.
fn moving() -> Plan {
    Plan { racks: 2, intend: 2, until_ms: 60_000, length_ms: 1_800_000, ..small() }
}

struct Row {
    removed: &'static [Guard],
    plan: Plan,
    /// Seeds tried at most.
    seeds: u64,
}

fn table() -> Vec<Row> {
    use Guard::*;
    let row = |removed, plan| Row { removed, plan, seeds: 2_000 };
    let late = Plan { late: 150, late_ms: 300_000, cut_all: 2, ..small() };
    vec![
        row(&[EpochCompared], Plan { doubt: 2, ..late.clone() }),
        row(&[EpochAtAttach], Plan { doubt: 2, ..late.clone() }),
        row(&[AttachInOrder], Plan { doubt: 2, ..late.clone() }),
        row(&[DedupeKey], Plan { link_double: 300, late_ms: 300_000, cut_all: 1, ..small() }),
        row(&[ReclaimConditional], Plan { racks: 2, cut_all: 1, ..small() }),
        row(&[QuarantineOnNewSpool], Plan { cut_all: 2, wipe: 1, ..small() }),
        row(&[MoveAfterUntil], Plan { cut_all: 1, ..moving() }),
        row(&[ReclaimWhileAttached], Plan { cut_all: 1, ..small() }),
        row(&[NoReuseDetached], Plan { cut_all: 1, ..small() }),
        row(&[UnknownStaysUnknown], Plan { link_loss: 200, cut_all: 1, ..small() }),
        row(&[FreshKey], Plan { cut_all: 1, pause_rack: 2, link_loss: 200, ..small() }),
        row(&[FrozenWhileAttaching], Plan { cut_all: 1, late: 300, late_ms: 10_000, ..small() }),
        row(&[DrainBeforeAttach], Plan { cut_all: 1, crash: 1, ..small() }),
        row(&[CommitBeforeReply], Plan { cut_all: 1, ..small() }),
        row(&[FsyncBeforeReply], Plan { cut_all: 1, crash: 1, ..small() }),
        row(&[SurvivorNeverAllocates], Plan { racks: 2, wipe: 1, cut_all: 1, ..small() }),
        row(&[HeartbeatDigest, MuteAfterUntil], Plan { cut_all: 1, ..moving() }),
    ]
}

#[test]
fn every_guard_is_needed() {
    for Row { removed, plan, seeds } in table() {
        let broken = plan.without(removed);
        let found = (0..seeds).find_map(|seed| run(seed, &broken).err());
        let Some(failure) = found else {
            println!("{removed:?}: nothing breaks in {seeds} seeds");
            continue;
        };
        println!("{removed:?}: seed {} at {:?}: {}", failure.seed, failure.at, failure.what);
        for seed in 0..20 {
            if let Err(failure) = run(seed, &plan) {
                println!("with all guards, under the plan for {removed:?}:\n{failure}");
            }
        }
    }
}
