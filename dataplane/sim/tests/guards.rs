//! Each guard of the lease protocol removed in turn: some seed breaks a promise. With all of them, under the same plans, none does.
//!
//! Shards without caution, since the engine's own manners hide most of what the protocol forbids; small instances; of the faults
//! those that the guard is there for, often. A random walk finds what needs two or three coincidences, not more: what only a chain of
//! four shows is for the exhaustive search in `lease::rack`.

use sim::{Failure, Guard, Plan, run};

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
        stale: 0,
        fault_every_ms: 10_000,
        fault_ms: 60_000,
        ..Plan::calm()
    }
}

/// Many short leases: an address is asked for, ends, is taken back and lies free, again and again.
fn lively() -> Plan {
    Plan {
        clients: 8,
        addresses: 8,
        lease_ms: 5_000,
        ..small()
    }
}

/// Two racks, and a block each that may change hands soon.
fn moving() -> Plan {
    Plan {
        racks: 2,
        intend: 2,
        until_ms: 60_000,
        length_ms: 1_800_000,
        ..small()
    }
}

/// Commits that stick while the rack attaches anew, then goes on alone.
fn stuck() -> Plan {
    Plan {
        doubt: 1,
        cut_all: 1,
        replay: 1,
        late_batch: 400,
        late_ms: 60_000,
        lease_ms: 20_000,
        length_ms: 60_000,
        whim_ms: 2_000,
        fault_every_ms: 2_000,
        ..lively()
    }
}

/// The first seed that breaks a promise; not one where clients only wait for ever.
fn breaks(plan: &Plan, seeds: u64) -> Option<Failure> {
    let promise = |failure: &Failure| failure.what.starts_with(['A', 'B']);
    (0..seeds).find_map(|seed| run(seed, plan).err().filter(promise))
}

fn holds(what: &str, plan: &Plan, seeds: u64) {
    for seed in 0..seeds {
        if let Err(failure) = run(seed, plan) {
            panic!("{what}:\n{failure}");
        }
    }
}

#[track_caller]
fn is_needed(what: &str, broken: &Plan, whole: &Plan) {
    let seeds = 3_000;
    let Some(failure) = breaks(broken, seeds) else {
        panic!("without {what} nothing breaks in {seeds} seeds");
    };
    println!("{what} | {} | {}", failure.seed, failure.what);
    holds(
        &format!("with all guards, under the plan for {what}"),
        whole,
        30.max(failure.seed + 1),
    );
}

fn guard_is_needed(removed: &[Guard], plan: Plan) {
    is_needed(&format!("{removed:?}"), &plan.without(removed), &plan);
}

#[test]
fn an_epoch_fences_a_racks_own_past() {
    guard_is_needed(&[Guard::EpochCompared], stuck());
    guard_is_needed(&[Guard::EpochAtAttach], stuck());
}

#[test]
fn attaches_are_in_order() {
    let plan = Plan {
        late: 150,
        late_ms: 300_000,
        cut_all: 2,
        doubt: 2,
        ..small()
    };
    guard_is_needed(&[Guard::AttachInOrder], plan);
    let plan = Plan {
        cut_all: 1,
        late: 300,
        late_ms: 10_000,
        ..small()
    };
    guard_is_needed(&[Guard::FrozenWhileAttaching], plan);
    guard_is_needed(
        &[Guard::DrainBeforeAttach],
        Plan {
            cut_all: 1,
            crash: 1,
            ..small()
        },
    );
}

#[test]
fn a_repeated_key_writes_nothing() {
    let plan = Plan {
        clients: 4,
        addresses: 12,
        length_ms: 600_000,
        whim_ms: 20_000,
        fault_every_ms: 15_000,
        fault_ms: 100_000,
        cut_all: 1,
        replay: 8,
        ..lively()
    };
    guard_is_needed(&[Guard::DedupeKey], plan);
    let plan = Plan {
        cut_all: 1,
        pause_rack: 2,
        link_loss: 200,
        ..small()
    };
    guard_is_needed(&[Guard::FreshKey], plan);
}

#[test]
fn an_address_is_taken_back_by_the_owner_from_the_region() {
    guard_is_needed(
        &[Guard::ReclaimConditional],
        Plan {
            racks: 2,
            cut_all: 1,
            ..small()
        },
    );
    guard_is_needed(
        &[Guard::ReclaimWhileAttached],
        Plan {
            cut_all: 1,
            ..small()
        },
    );
    guard_is_needed(
        &[Guard::NoReuseDetached],
        Plan {
            cut_all: 1,
            ..small()
        },
    );
    let plan = Plan {
        link_loss: 200,
        cut_all: 1,
        ..small()
    };
    guard_is_needed(&[Guard::UnknownStaysUnknown], plan);
}

#[test]
fn a_promise_is_durable_before_it_is_made() {
    guard_is_needed(
        &[Guard::CommitBeforeReply],
        Plan {
            cut_all: 1,
            ..small()
        },
    );
    guard_is_needed(
        &[Guard::FsyncBeforeReply],
        Plan {
            cut_all: 1,
            crash: 1,
            ..small()
        },
    );
    guard_is_needed(
        &[Guard::QuarantineOnNewSpool],
        Plan {
            cut_all: 2,
            wipe: 1,
            ..small()
        },
    );
}

#[test]
fn a_survivor_never_allocates() {
    let plan = Plan {
        racks: 2,
        addresses: 4,
        length_ms: 600_000,
        stale: 1_000,
        loss: 100,
        cut_all: 1,
        isolate: 2,
        ..lively()
    };
    guard_is_needed(&[Guard::SurvivorNeverAllocates], plan);
}

#[test]
fn a_block_moves_when_its_owner_is_silent_for_sure() {
    guard_is_needed(
        &[Guard::MoveAfterUntil],
        Plan {
            cut_all: 1,
            ..moving()
        },
    );
    let plan = Plan {
        intend: 2,
        lapse: 1,
        until_ms: 30_000,
        length_ms: 3_600_000,
        whim_ms: 60_000,
        retry_ms: 8_000,
        fault_every_ms: 60_000,
        fault_ms: 800_000,
        ..moving()
    };
    // These two back each other: a rack past its until is mute, so its heartbeat revives nothing; and where it were not, the heartbeat's
    // condition would send it to attach.
    guard_is_needed(
        &[Guard::HeartbeatDigest, Guard::MuteAfterUntil],
        plan.clone(),
    );
    // By itself the condition is what tells a rack of its blocks: without it clients wait for ever.
    let deaf = plan.without(&[Guard::HeartbeatDigest]);
    let waits = |seed| run(seed, &deaf).is_err_and(|failure| failure.what.starts_with("liveness"));
    assert!((0..300).any(waits), "blocks move although nobody tells");
    // Redundant by itself: until bounds every ACK as well. Kept, as the cheap second line.
    holds(
        "MuteAfterUntil",
        &plan.without(&[Guard::MuteAfterUntil]),
        200,
    );
}

/// Of a database that has lost commits only drains are taken until every rack's until has passed.
#[test]
fn a_lossy_promotion_is_waited_out() {
    let plan = Plan {
        promote_lossy: 1,
        doubt: 1,
        standby_ms: 60_000,
        ..lively()
    };
    is_needed(
        "hold",
        &Plan {
            hold: 0,
            ..plan.clone()
        },
        &plan,
    );
}

/// The 99 % and the 60 s, from the other side: clocks that are worse than promised.
#[test]
fn clocks_have_bounds() {
    let plan = Plan {
        drift: 1,
        cut_all: 1,
        ..small()
    };
    let slow = Plan {
        drift_ppm: 100_000,
        ..plan.clone()
    };
    is_needed(
        "clocks within 1 %",
        &slow,
        &Plan {
            drift_ppm: 10_000,
            ..plan
        },
    );
    let plan = Plan {
        step: 1,
        doubt: 1,
        sloppy: 1_000,
        step_ms: 29_000,
        ..small()
    };
    is_needed(
        "steps below 30 s",
        &Plan {
            step_ms: 300_000,
            ..plan.clone()
        },
        &plan,
    );
}

/// What is not promised: a spool that is set back to a snapshot of the same process looks as if it were only restarted, so the facts
/// since are forgotten without quarantine.
#[test]
fn snapshots_have_bounds() {
    let plan = Plan {
        set_back: 3,
        crash: 2,
        cut_all: 5,
        clients: 4,
        addresses: 2,
        whim_ms: 5_000,
        lease_ms: 20_000,
        fault_every_ms: 5_000,
        ..small()
    };
    let any = Plan {
        any_snapshot: 1,
        ..plan.clone()
    };
    is_needed("a start since the snapshot", &any, &plan);
}
