//! Exhaustive search: the rack's machine, the region's rules and a spool disk together, with loss, delay, duplication,
//! detachment, crashes, wipes and moves, on one address and two clients. Breadth first, so a counterexample is a shortest one.
//!
//! Time goes in ticks of a lease (and single seconds, to be detached). A batch or an attach may be late
//! for ever, which is loss; a duplicate runs twice; a heartbeat runs when it is sent, and its answer comes
//! at once or never. A client is ACKed from memory whenever that is possible: a longer hold only makes a
//! violation more likely. The shard is a naive one: it asks for anything at any time, so that only the
//! machine's guards stand between two clients and one address.
//!
//! The rack that a block moves to is an ideal one, which attaches, grants and ACKs at once. So is the survivor, a peer that
//! believes the owner dead at any time: it extends through the region and ACKs up to the durable end. A block may also be
//! held back: nobody's, until it is handed to one of the two.
//!
//! A. No two clients hold one address. B. What a client holds is covered by a durable end or a fact on a disk.

mod database;
mod fingerprint;
mod world;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::message::{AttachReply, Attachment, Batch, HeartbeatReply, digest};
use crate::region::{
    Asker, AttachDecision, BlockState, Effect, HeartbeatDecision, HeartbeatFacts, RowState,
    SpoolSeen, Time, Verdict, decide_attach_with, decide_heartbeat_with, decide_with,
    may_take_with,
};
use crate::spool::first_seq;
use crate::types::{ClientKey, Epoch, Row, WriteKind};

const LEASE: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_secs(600);
const SECOND: Duration = Duration::from_secs(1);
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 64));
const BLOCK: BlockId = BlockId(1);
const LINK: LinkId = 1;
const START: Duration = Duration::from_secs(100_000);
/// In `Db::intended`: the block is held back.
const NOBODY: usize = 2;
/// Messages on their way at once, each way; what is more is lost.
const NET_MAX: usize = 2;

fn client(n: usize) -> Client {
    Client {
        vlan: 1,
        key: ClientKey::Mac([n as u8; 6]),
    }
}

fn number(client: &Client) -> usize {
    match client.key {
        ClientKey::Mac(mac) => mac[0].into(),
        _ => unreachable!("only MACs here"),
    }
}

/// What may happen, and how often.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    seconds: u32,
    crashes: u32,
    wipes: u32,
    duplicates: u32,
    moves: u32,
    /// A move may also be one to nobody.
    held_back: bool,
    /// A peer extends bindings of the block.
    survivor: bool,
    /// RELEASEs, each of them true, late or forged; and clients go down without a word, and come back.
    releases: u32,
    /// Time may pass without the rack noticing.
    pauses: bool,
    until: Duration,
    states_max: usize,
}

const SMALL: Bounds = Bounds {
    seconds: 1,
    crashes: 0,
    wipes: 0,
    duplicates: 0,
    moves: 0,
    held_back: false,
    survivor: false,
    releases: 0,
    pauses: false,
    until: Duration::from_secs(86_400),
    states_max: 200_000,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Call {
    Batch(Batch),
    Attach(SpoolId, u64),
}

/// On its way to the region.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Request {
    rack: usize,
    /// Of the rack's process: a reply reaches only the session that asked.
    life: u32,
    id: CallId,
    call: Call,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Answer {
    rack: usize,
    life: u32,
    input: AnswerInput,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum AnswerInput {
    Batch(CallId, Vec<Outcome>),
    Attach(CallId, AttachReply),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    spool_id: SpoolId,
    until: Time,
}

/// The database: one block, one address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Db {
    owner: Option<usize>,
    intended: usize,
    epoch: u64,
    quarantined: Time,
    row: Option<RowState>,
    sessions: Vec<Option<Session>>,
    /// (rack, spool id) to the floor.
    floors: BTreeMap<(usize, SpoolId), u64>,
    answers: BTreeMap<(usize, SpoolId, u64), Vec<Verdict>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Site {
    machine: Rack,
    life: u32,
    /// The shard's memory of the address.
    bound: Option<(usize, Boottime)>,
    /// Its client has released it, as far as the shard knows.
    released: bool,
    until: Boottime,
    asked: BTreeMap<Ticket, usize>,
    next_ticket: Ticket,
    disk: BTreeMap<u64, Entry>,
    spool_id: SpoolId,
    incarnation: u32,
    fsyncs: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Used {
    seconds: u32,
    crashes: u32,
    wipes: u32,
    duplicates: u32,
    moves: u32,
    releases: u32,
}

#[derive(Clone, Debug)]
struct World {
    bounds: Bounds,
    guards: Guards,
    now: Duration,
    db: Db,
    sites: Vec<Site>,
    requests: Vec<Request>,
    answers: Vec<Answer>,
    holds: [Duration; 2],
    /// Until when the survivor ACKs each client from memory.
    peer: [Duration; 2],
    used: Used,
    /// Heartbeats that are sent now are answered.
    heard: bool,
    /// A client has asked.
    met: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Ask {
        rack: usize,
        client: usize,
    },
    AskBack {
        rack: usize,
    },
    Run {
        request: usize,
        again: bool,
    },
    Deliver {
        answer: usize,
    },
    Fsync {
        rack: usize,
    },
    /// `heard`: heartbeats sent now are answered.
    Tick {
        heard: bool,
    },
    Second {
        heard: bool,
    },
    Pause,
    /// The rack that the block was moved to: it attaches, grants and ACKs at once.
    Other {
        client: usize,
    },
    /// The peer extends that client's binding, and ACKs from the answer.
    Survive {
        client: usize,
    },
    /// The survivor ACKs once more, from memory.
    SurviveAgain {
        client: usize,
    },
    /// A RELEASE in the name of the holder.
    Release {
        rack: usize,
    },
    /// The client is switched off: it answers no probe, and asks when it is back.
    Down {
        client: usize,
    },
    Crash {
        rack: usize,
    },
    Wipe {
        rack: usize,
    },
    Intend {
        rack: usize,
    },
    Take,
}

impl World {
    fn violation(&self) -> Option<&'static str> {
        let held = |n: usize| self.holds[n] > self.now;
        if held(0) && held(1) {
            return Some("A: two clients hold one address");
        }
        // A wiped spool excuses: what it held is what the quarantine is for.
        let covered = |n: usize| {
            let row = self.db.row.as_ref();
            let in_row = row.is_some_and(|row| {
                row.client == Some(client(n)) && row.end >= Time(0).plus(self.holds[n])
            });
            let on_disk = self.sites.iter().flat_map(|site| site.disk.values());
            let mut facts = on_disk.filter_map(|entry| crate::region::client_of(&entry.write.kind));
            self.used.wipes > 0 || in_row || facts.any(|fact| *fact == client(n))
        };
        (0..2)
            .any(|n| held(n) && !covered(n))
            .then_some("B: a lease without a durable end")
    }
}

// ---------------------------------------------------------------- the search

struct Found {
    states: usize,
    depth: usize,
    complete: bool,
    violation: Option<(&'static str, Vec<Act>)>,
}

fn search(bounds: Bounds, guards: Guards) -> Found {
    let first = World::new(bounds, guards);
    let mut seen = HashSet::from([first.fingerprint()]);
    // The way to each world: the index of the world before it, and the act.
    let mut ways: Vec<(usize, Act)> = vec![(0, Act::Pause)];
    let mut level = vec![(first, 0)];
    let mut depth = 0;
    while !level.is_empty() {
        let mut next = vec![];
        for (world, way) in level {
            for act in world.acts() {
                let mut after = world.clone();
                after.apply(act);
                if !seen.insert(after.fingerprint()) {
                    continue;
                }
                ways.push((way, act));
                if let Some(violation) = after.violation() {
                    let mut path = vec![];
                    let mut at = ways.len() - 1;
                    while at != 0 {
                        path.push(ways[at].1);
                        at = ways[at].0;
                    }
                    path.reverse();
                    let violation = Some((violation, path));
                    return Found {
                        states: seen.len(),
                        depth: depth + 1,
                        complete: false,
                        violation,
                    };
                }
                next.push((after, ways.len() - 1));
            }
            if seen.len() > bounds.states_max {
                return Found {
                    states: seen.len(),
                    depth,
                    complete: false,
                    violation: None,
                };
            }
        }
        level = next;
        depth += 1;
    }
    Found {
        states: seen.len(),
        depth,
        complete: true,
        violation: None,
    }
}

/// Explores to the end: every state there is within the bounds, with time without end.
#[track_caller]
fn holds(case: &str, bounds: Bounds) {
    let found = search(bounds, Guards::ALL);
    println!("{case}: {} states, depth {}", found.states, found.depth);
    assert!(found.violation.is_none(), "{case}: {:#?}", found.violation);
    assert!(
        found.complete,
        "{case}: not finished after {} states",
        found.states
    );
    assert!(
        found.states > 1_000,
        "{case}: the search did not get anywhere"
    );
}

#[track_caller]
fn breaks(removed: &[Guard], bounds: Bounds) {
    let found = search(bounds, Guards::without(removed));
    let Some((what, path)) = found.violation else {
        panic!(
            "without {removed:?} nothing breaks in {} states",
            found.states
        )
    };
    println!(
        "without {removed:?}: {what}, after {} states: {path:?}",
        found.states
    );
}

const NO_SECONDS: Bounds = Bounds {
    seconds: 0,
    ..SMALL
};
const MOVE: Bounds = Bounds {
    moves: 1,
    until: Duration::from_secs(1_200),
    ..NO_SECONDS
};

const RELEASE: Bounds = Bounds {
    releases: 1,
    states_max: 2_000_000,
    ..NO_SECONDS
};

/// Within the lease that was given up.
const RELEASE_AT_ONCE: Bounds = Bounds {
    seconds: 2,
    ..RELEASE
};

/// To nobody, and on to one of the two.
const HANDED: Bounds = Bounds {
    moves: 2,
    held_back: true,
    ..MOVE
};

#[test]
fn nothing_breaks_by_detachment() {
    holds("detached for a second", SMALL);
}

#[test]
fn nothing_breaks_by_a_crash() {
    holds(
        "crash",
        Bounds {
            crashes: 1,
            ..NO_SECONDS
        },
    );
}

#[test]
fn nothing_breaks_by_a_duplicate() {
    holds(
        "duplicate",
        Bounds {
            duplicates: 1,
            ..NO_SECONDS
        },
    );
}

#[test]
fn nothing_breaks_by_a_pause() {
    holds(
        "pauses",
        Bounds {
            pauses: true,
            ..NO_SECONDS
        },
    );
}

#[test]
fn nothing_breaks_by_a_move() {
    holds("move", MOVE);
}

#[test]
fn nothing_breaks_by_a_survivor() {
    holds(
        "survivor",
        Bounds {
            survivor: true,
            ..NO_SECONDS
        },
    );
}

/// True, late or forged, and whatever the client does: it is up and answers the probe, or it asks before it goes on.
#[test]
fn nothing_breaks_by_a_release() {
    holds("release", RELEASE);
    holds("release, seconds", RELEASE_AT_ONCE);
}

#[test]
fn nothing_breaks_by_a_release_beside_a_survivor() {
    holds(
        "release, survivor",
        Bounds {
            survivor: true,
            ..RELEASE
        },
    );
}

#[test]
fn nothing_breaks_by_a_release_and_a_crash() {
    holds(
        "release, crash",
        Bounds {
            crashes: 1,
            ..RELEASE
        },
    );
}

#[test]
fn nothing_breaks_by_a_release_and_a_duplicate() {
    holds(
        "release, duplicate",
        Bounds {
            duplicates: 1,
            ..RELEASE
        },
    );
}

/// A second one, while what the first has caused may still be under way.
#[test]
fn nothing_breaks_by_two_releases() {
    holds(
        "two releases",
        Bounds {
            releases: 2,
            ..RELEASE
        },
    );
}

/// What makes an early reclaim safe, removed in turn.
#[test]
fn a_release_needs_its_guards() {
    let survivor = Bounds {
        survivor: true,
        ..RELEASE
    };
    breaks(&[Guard::ExtendHolds], survivor);
    breaks(&[Guard::ReleasedAsksAgain], RELEASE);
    breaks(&[Guard::ReleasedIsSilent], RELEASE_AT_ONCE);
    breaks(&[Guard::ReleaseAlone], RELEASE);
}

#[test]
fn nothing_breaks_by_holding_back_and_handing_out() {
    holds("held back, handed out", HANDED);
}

/// Larger ones, each to its end.
#[test]
#[ignore = "60 s: every pair of faults to its end (cargo nextest run -p lease --run-ignored all)"]
fn nothing_breaks_by_two_faults() {
    let until = Duration::from_secs(1_800);
    for (case, bounds) in [
        (
            "wipe",
            Bounds {
                wipes: 1,
                ..NO_SECONDS
            },
        ),
        (
            "two short detachments",
            Bounds {
                seconds: 2,
                ..SMALL
            },
        ),
        (
            "crash, detached",
            Bounds {
                crashes: 1,
                ..SMALL
            },
        ),
        (
            "two crashes",
            Bounds {
                crashes: 2,
                ..NO_SECONDS
            },
        ),
        (
            "pauses and a crash",
            Bounds {
                pauses: true,
                crashes: 1,
                ..NO_SECONDS
            },
        ),
        (
            "duplicate, detached",
            Bounds {
                duplicates: 1,
                ..SMALL
            },
        ),
        (
            "duplicate and a crash",
            Bounds {
                duplicates: 1,
                crashes: 1,
                ..NO_SECONDS
            },
        ),
        (
            "move, detached",
            Bounds {
                seconds: 1,
                until,
                ..MOVE
            },
        ),
        (
            "move and pauses",
            Bounds {
                pauses: true,
                ..MOVE
            },
        ),
        ("move and a crash", Bounds { crashes: 1, ..MOVE }),
        (
            "move and a duplicate",
            Bounds {
                duplicates: 1,
                ..MOVE
            },
        ),
        (
            "survivor and a crash",
            Bounds {
                survivor: true,
                crashes: 1,
                ..NO_SECONDS
            },
        ),
        (
            "survivor and a move",
            Bounds {
                survivor: true,
                ..MOVE
            },
        ),
        (
            "survivor and a duplicate",
            Bounds {
                survivor: true,
                duplicates: 1,
                ..NO_SECONDS
            },
        ),
        (
            "survivor and pauses",
            Bounds {
                survivor: true,
                pauses: true,
                ..NO_SECONDS
            },
        ),
        (
            "handed out and a crash",
            Bounds {
                crashes: 1,
                ..HANDED
            },
        ),
    ] {
        holds(
            case,
            Bounds {
                states_max: 2_000_000,
                ..bounds
            },
        );
    }
}

/// Each guard removed in turn makes some run fail.
#[test]
fn every_guard_is_needed() {
    use Guard::*;
    let crash = Bounds {
        crashes: 1,
        ..NO_SECONDS
    };
    let duplicate = Bounds {
        duplicates: 1,
        ..NO_SECONDS
    };
    let wipe = Bounds {
        wipes: 1,
        ..NO_SECONDS
    };
    let pauses = Bounds {
        pauses: true,
        ..NO_SECONDS
    };
    for (guard, bounds) in [
        (EpochCompared, MOVE),
        (EpochAtAttach, MOVE),
        (AttachInOrder, NO_SECONDS),
        (DedupeKey, duplicate),
        (ReclaimConditional, NO_SECONDS),
        (QuarantineOnNewSpool, wipe),
        (MoveAfterUntil, MOVE),
        (ReclaimWhileAttached, NO_SECONDS),
        (NoReuseDetached, NO_SECONDS),
        (UnknownStaysUnknown, NO_SECONDS),
        (FreshKey, pauses),
        (FrozenWhileAttaching, NO_SECONDS),
        (DrainBeforeAttach, crash),
        (CommitBeforeReply, NO_SECONDS),
        (FsyncBeforeReply, NO_SECONDS),
        (
            SurvivorNeverAllocates,
            Bounds {
                survivor: true,
                ..NO_SECONDS
            },
        ),
    ] {
        breaks(&[guard], bounds);
    }
}

/// Two that stand in for each other where clocks are good: a rack past its until sends no heartbeat, and
/// a heartbeat of a rack that lost its block does nothing. Without both it goes on serving.
#[test]
fn the_heartbeats_condition_and_the_silence_past_until_back_each_other() {
    // A heartbeat always reaches the region here; only a rack that stands still lets its until pass.
    let paused = Bounds {
        pauses: true,
        ..MOVE
    };
    breaks(&[Guard::HeartbeatDigest, Guard::MuteAfterUntil], paused);
    for guard in [Guard::HeartbeatDigest, Guard::MuteAfterUntil] {
        let found = search(MOVE, Guards::without(&[guard]));
        assert!(
            found.complete && found.violation.is_none(),
            "{guard:?}: {:#?}",
            found.violation
        );
    }
}

/// What takes an address back must look at the region's row, for a survivor may have lengthened it: without a single fault
/// else, these break as soon as there is one.
#[test]
fn a_survivor_needs_the_owner_to_ask_the_region() {
    let survivor = Bounds {
        survivor: true,
        ..NO_SECONDS
    };
    for guard in [
        Guard::ReclaimConditional,
        Guard::ReclaimWhileAttached,
        Guard::NoReuseDetached,
    ] {
        breaks(&[guard], survivor);
    }
}
