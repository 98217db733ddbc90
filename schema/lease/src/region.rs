//! The region's rules: what a write, an attach and a heartbeat do, given the rows they touch and the database's `now()`.
//!
//! Pure functions. `store::lease` calls them inside its transactions on the rows it has locked, so SQL holds no rule
//! that is not here. Nothing here knows how the rows are stored.

use std::net::IpAddr;
use std::time::Duration;

use crate::guards::{Guard, Guards};
use crate::message::SpoolId;
use crate::types::{
    Block, Client, Epoch, Outcome, Refusal, TAKE_AWAY_GRACE, UNTIL, VlanId, Write, WriteKind,
};

/// A lease asked for is cut to this (the longest a subnet can be set to).
pub const LEASE_MAX: Duration = Duration::from_secs(86_400);
/// A quarantine asked for is cut to this.
pub const QUARANTINE_MAX: Duration = Duration::from_secs(2 * 86_400);

/// A point on the database's clock: microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(pub i64);

impl Time {
    /// Before everything.
    pub const NEVER: Time = Time(i64::MIN);

    pub fn plus(self, length: Duration) -> Time {
        Time(
            self.0
                .saturating_add(i64::try_from(length.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// Signed: negative where `self` is the earlier one.
    pub fn micros_since(self, earlier: Time) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// How the asking rack stands to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    Owner,
    /// Serves the block's VLAN but does not own the block: may extend.
    Peer,
    Stranger,
}

/// A block's row, locked until the transaction ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockState {
    pub epoch: Epoch,
    pub asker: Asker,
    pub vlan: VlanId,
    pub first: IpAddr,
    pub count: u32,
    /// Of every address of the block.
    pub quarantined_until: Time,
}

/// An address's row, locked until the transaction ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowState {
    /// None: the row is only a quarantine.
    pub client: Option<Client>,
    pub end: Time,
    pub quarantined_until: Time,
    pub released: bool,
}

/// What is remembered under the batch's key: a repeat is answered from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Durable { end: Time },
    Done,
    Refused(Refusal),
}

impl Verdict {
    /// As told to the rack at `now`.
    pub fn outcome(self, now: Time) -> Outcome {
        match self {
            Verdict::Durable { end } => {
                let micros = u64::try_from(end.micros_since(now)).unwrap_or(0);
                Outcome::Durable {
                    remaining: Duration::from_micros(micros),
                }
            }
            Verdict::Done => Outcome::Done,
            Verdict::Refused(refusal) => Outcome::Refused(refusal),
        }
    }
}

/// What happens to the address's row (or to the block).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Keep,
    Put(RowState),
    Delete,
    /// The block has no owner any more.
    GiveUp,
}

/// Decides one write. `block` and `row` are what the database has at `now`; `drained`: the fact was ACKed already.
pub fn decide(
    write: &Write,
    drained: bool,
    block: Option<&BlockState>,
    row: Option<&RowState>,
    now: Time,
) -> (Verdict, Effect) {
    decide_with(Guards::ALL, write, drained, block, row, now)
}

pub(crate) fn decide_with(
    guards: Guards,
    write: &Write,
    drained: bool,
    block: Option<&BlockState>,
    row: Option<&RowState>,
    now: Time,
) -> (Verdict, Effect) {
    match permit(guards, write, block) {
        Err(refusal) => (Verdict::Refused(refusal), Effect::Keep),
        Ok(block) => match apply(guards, write, drained, block, row, now) {
            Err(refusal) => (Verdict::Refused(refusal), Effect::Keep),
            Ok(decision) => decision,
        },
    }
}

/// Whether the rack may do this to the block at all.
fn permit<'b>(
    guards: Guards,
    write: &Write,
    block: Option<&'b BlockState>,
) -> Result<&'b BlockState, Refusal> {
    let block = block.ok_or(Refusal::NotOwner)?;
    if let WriteKind::Extend { .. } = write.kind {
        // No epoch: it never allocates.
        if block.asker == Asker::Stranger {
            return Err(Refusal::NotOwner);
        }
    } else {
        if guards.stands(Guard::EpochCompared) && block.epoch != write.epoch {
            return Err(Refusal::StaleEpoch);
        }
        if guards.stands(Guard::EpochCompared) && block.asker != Asker::Owner {
            return Err(Refusal::NotOwner);
        }
    }
    if !matches!(write.kind, WriteKind::Yield) && !within(block.first, block.count, write.address) {
        return Err(Refusal::OutsideBlock);
    }
    match &write.kind {
        // Only what makes a binding: an old one may be of the VLAN that the subnet was in before.
        WriteKind::Grant { client, .. } if client.vlan != block.vlan => Err(Refusal::OutsideBlock),
        _ => Ok(block),
    }
}

fn apply(
    guards: Guards,
    write: &Write,
    drained: bool,
    block: &BlockState,
    row: Option<&RowState>,
    now: Time,
) -> Result<(Verdict, Effect), Refusal> {
    let quarantined = row
        .map_or(Time::NEVER, |row| row.quarantined_until)
        .max(block.quarantined_until);
    let holder = row.and_then(|row| row.client.as_ref());
    let bind = |client: &Client, lease: Duration, by_survivor: bool| {
        let end = now.plus(2 * lease.min(LEASE_MAX)).max(match row {
            // No write ever shortens an end.
            Some(row) if row.client.as_ref() == Some(client) => row.end,
            _ => Time::NEVER,
        });
        let mut quarantined_until = row.map_or(Time::NEVER, |row| row.quarantined_until);
        if by_survivor && guards.stands(Guard::ExtendHolds) {
            // It may ACK from memory to that end, unknown to the owner, who may hold a RELEASE that is older or forged.
            quarantined_until = quarantined_until.max(end);
        }
        let row = RowState {
            client: Some(client.clone()),
            end,
            quarantined_until,
            released: false,
        };
        (Verdict::Durable { end }, Effect::Put(row))
    };
    match &write.kind {
        WriteKind::Grant { client, lease, .. } => match holder {
            Some(other) if other != client => Err(Refusal::OtherClient),
            // Somebody unknown may hold it; but what was ACKed already is a fact.
            None if quarantined > now && !drained => Err(Refusal::NotEnded),
            _ => Ok(bind(client, *lease, false)),
        },
        WriteKind::Extend { client, lease } => match holder {
            Some(holder) if holder == client => Ok(bind(client, *lease, true)),
            Some(_) => Err(Refusal::OtherClient),
            None if !guards.stands(Guard::SurvivorNeverAllocates) => Ok(bind(client, *lease, true)),
            None => Err(Refusal::NotFound),
        },
        WriteKind::Reclaim { client, silent } => {
            let row = row.ok_or(Refusal::NotFound)?;
            match holder {
                None => return Err(Refusal::NotFound),
                Some(holder) if holder != client => return Err(Refusal::OtherClient),
                Some(_) => {}
            }
            let ended = row.end.plus(TAKE_AWAY_GRACE) < now && quarantined < now;
            // Not on the strength of the mark alone, which may be old: the rack says that it has asked.
            let given_up = *silent && row.released && quarantined.plus(TAKE_AWAY_GRACE) < now;
            if guards.stands(Guard::ReclaimConditional) && !ended && !given_up {
                return Err(Refusal::NotEnded);
            }
            Ok((Verdict::Done, Effect::Delete))
        }
        WriteKind::Quarantine { length } => {
            let until = now.plus((*length).min(QUARANTINE_MAX));
            let put = match row {
                Some(row) => RowState {
                    quarantined_until: row.quarantined_until.max(until),
                    ..row.clone()
                },
                None => RowState {
                    client: None,
                    end: now,
                    quarantined_until: until,
                    released: false,
                },
            };
            Ok((Verdict::Done, Effect::Put(put)))
        }
        WriteKind::Release { client } => match row {
            Some(row) if row.client.as_ref() == Some(client) && !row.released => Ok((
                Verdict::Done,
                Effect::Put(RowState {
                    released: true,
                    ..row.clone()
                }),
            )),
            // Only a hint: nothing to do is fine.
            _ => Ok((Verdict::Done, Effect::Keep)),
        },
        WriteKind::Yield => Ok((Verdict::Done, Effect::GiveUp)),
    }
}

/// The client a write is about.
pub fn client_of(kind: &WriteKind) -> Option<&Client> {
    match kind {
        WriteKind::Grant { client, .. }
        | WriteKind::Extend { client, .. }
        | WriteKind::Reclaim { client, .. }
        | WriteKind::Release { client } => Some(client),
        WriteKind::Quarantine { .. } | WriteKind::Yield => None,
    }
}

/// Whether `address` is one of the `count` addresses from `first` on; false across families.
pub fn within(first: IpAddr, count: u32, address: IpAddr) -> bool {
    match (first, address) {
        (IpAddr::V4(first), IpAddr::V4(address)) => u32::from(address)
            .checked_sub(u32::from(first))
            .is_some_and(|offset| offset < count),
        (IpAddr::V6(first), IpAddr::V6(address)) => u128::from(address)
            .checked_sub(u128::from(first))
            .is_some_and(|offset| offset < u128::from(count)),
        _ => false,
    }
}

impl Block {
    pub fn contains(&self, address: IpAddr) -> bool {
        within(self.first, self.count, address)
    }
}

/// What the region remembers of a spool id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolSeen {
    /// It is the rack's current one, not a former one.
    pub current: bool,
    /// The highest seq of any batch or attach under it.
    pub seq: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachDecision {
    Wait,
    Behind,
    /// Epoch + 1 of the rack's blocks; `quarantine`: all their addresses, for two of the longest lease in force.
    Attach {
        quarantine: bool,
    },
}

/// Decides an attach. `hold`: until when only drains are taken; `known`: what is remembered of the rack's spool id;
/// `attached_before`: the rack has been attached under any spool id.
pub fn decide_attach(
    hold: Option<Time>,
    known: Option<SpoolSeen>,
    attached_before: bool,
    seq: u64,
    now: Time,
) -> AttachDecision {
    decide_attach_with(Guards::ALL, hold, known, attached_before, seq, now)
}

pub(crate) fn decide_attach_with(
    guards: Guards,
    hold: Option<Time>,
    known: Option<SpoolSeen>,
    attached_before: bool,
    seq: u64,
    now: Time,
) -> AttachDecision {
    if hold.is_some_and(|hold| now < hold) {
        return AttachDecision::Wait;
    }
    let in_order = guards.stands(Guard::AttachInOrder);
    match known {
        Some(seen) if in_order && (!seen.current || seq <= seen.seq) => AttachDecision::Behind,
        Some(_) => AttachDecision::Attach { quarantine: false },
        // The first attach of all: the rack can't have promised anything to anybody.
        None => AttachDecision::Attach {
            quarantine: attached_before && guards.stands(Guard::QuarantineOnNewSpool),
        },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatDecision {
    Wait,
    Attach,
    /// The rack's `until` is this now.
    Until(Time),
}

/// What a heartbeat is judged by.
#[derive(Clone, Copy, Debug)]
pub struct HeartbeatFacts<'f> {
    pub hold: Option<Time>,
    /// The rack's registered spool id and until; None: it was never attached.
    pub session: Option<(SpoolId, Time)>,
    /// Digest of the rack's blocks in the database.
    pub digest: &'f [u8; 32],
    /// A block of the rack's is to be given to somebody else, or one waits for it: both happen at its next attach.
    pub pending: bool,
}

pub fn decide_heartbeat(
    facts: HeartbeatFacts<'_>,
    spool_id: SpoolId,
    digest: &[u8; 32],
    now: Time,
) -> HeartbeatDecision {
    decide_heartbeat_with(Guards::ALL, facts, spool_id, digest, now, UNTIL)
}

pub(crate) fn decide_heartbeat_with(
    guards: Guards,
    facts: HeartbeatFacts<'_>,
    spool_id: SpoolId,
    digest: &[u8; 32],
    now: Time,
    length: Duration,
) -> HeartbeatDecision {
    if facts.hold.is_some_and(|hold| now < hold) {
        return HeartbeatDecision::Wait;
    }
    match facts.session {
        Some((current, until)) if current == spool_id || !guards.stands(Guard::HeartbeatDigest) => {
            let agree = facts.digest == digest && !facts.pending;
            if agree || !guards.stands(Guard::HeartbeatDigest) {
                HeartbeatDecision::Until(until.max(now.plus(length)))
            } else {
                HeartbeatDecision::Attach
            }
        }
        _ => HeartbeatDecision::Attach,
    }
}

/// Whether a block may be taken from an owner that has not yielded it. `until` is the owner's, None if it was never attached.
pub fn may_take(until: Option<Time>, now: Time) -> bool {
    may_take_with(Guards::ALL, until, now)
}

pub(crate) fn may_take_with(guards: Guards, until: Option<Time>, now: Time) -> bool {
    !guards.stands(Guard::MoveAfterUntil)
        || until.is_none_or(|until| until.plus(TAKE_AWAY_GRACE) < now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BlockId, ClientKey};

    const NOW: Time = Time(1_000_000_000_000);
    const LEASE: Duration = Duration::from_secs(600);

    fn client(n: u8) -> Client {
        Client {
            vlan: 5001,
            key: ClientKey::Mac([2, 0, 0, 0, 0, n]),
        }
    }

    fn block() -> BlockState {
        BlockState {
            epoch: Epoch(3),
            asker: Asker::Owner,
            vlan: 5001,
            first: "10.0.0.64".parse().unwrap(),
            count: 16,
            quarantined_until: Time::NEVER,
        }
    }

    fn row(n: u8, end_secs: i64) -> RowState {
        RowState {
            client: Some(client(n)),
            end: Time(NOW.0 + end_secs * 1_000_000),
            quarantined_until: Time::NEVER,
            released: false,
        }
    }

    /// Released with so much left; resting for so long.
    fn released(end_secs: i64, rests_secs: i64) -> RowState {
        RowState {
            released: true,
            quarantined_until: Time(NOW.0 + rests_secs * 1_000_000),
            ..row(1, end_secs)
        }
    }

    /// A RELEASE that came late, or that somebody made up, meets a survivor's promise.
    #[test]
    fn what_a_survivor_lengthened_is_not_taken_back_by_a_release() {
        let peer = BlockState {
            asker: Asker::Peer,
            ..block()
        };
        let client = client(1);
        let extend = WriteKind::Extend {
            client: client.clone(),
            lease: LEASE,
        };
        let (_, effect) = decide(&write(extend), false, Some(&peer), Some(&row(1, 100)), NOW);
        let Effect::Put(row) = effect else {
            panic!("{effect:?}")
        };
        let release = WriteKind::Release {
            client: client.clone(),
        };
        let (_, effect) = decide(&write(release), false, Some(&block()), Some(&row), NOW);
        let Effect::Put(row) = effect else {
            panic!("{effect:?}")
        };
        assert!(row.released);
        let reclaim = |after: u64| {
            let kind = WriteKind::Reclaim {
                client: client.clone(),
                silent: true,
            };
            let later = NOW.plus(Duration::from_secs(after));
            decide(&write(kind), false, Some(&block()), Some(&row), later).0
        };
        // And the minute: the survivor's clock, and clients that count from the ACK's arrival.
        assert_eq!(reclaim(1_259), Verdict::Refused(Refusal::NotEnded));
        assert_eq!(reclaim(1_261), Verdict::Done);
        // Its own client goes on meanwhile, and is no more released.
        let (verdict, effect) = decide(&write(grant(1)), false, Some(&block()), Some(&row), NOW);
        assert!(matches!(verdict, Verdict::Durable { .. }));
        assert!(matches!(effect, Effect::Put(row) if !row.released));
    }

    fn write(kind: WriteKind) -> Write {
        Write {
            block: BlockId(1),
            epoch: Epoch(3),
            address: "10.0.0.70".parse().unwrap(),
            kind,
        }
    }

    fn grant(n: u8) -> WriteKind {
        WriteKind::Grant {
            client: client(n),
            lease: LEASE,
            hostname: "".into(),
        }
    }

    #[test]
    fn writes_do_what_the_protocol_says() {
        let durable = |secs: i64| Verdict::Durable {
            end: Time(NOW.0 + secs * 1_000_000),
        };
        let no = Verdict::Refused;
        let reclaim = || WriteKind::Reclaim {
            client: client(1),
            silent: false,
        };
        let take_back = || WriteKind::Reclaim {
            client: client(1),
            silent: true,
        };
        let extend = || WriteKind::Extend {
            client: client(1),
            lease: LEASE,
        };
        let cases = [
            ("grant of a free address", grant(1), None, durable(1200)),
            ("grant renews", grant(1), Some(row(1, 100)), durable(1200)),
            (
                "grant never shortens",
                grant(1),
                Some(row(1, 5000)),
                durable(5000),
            ),
            (
                "grant revives its own ended row",
                grant(1),
                Some(row(1, -5000)),
                durable(1200),
            ),
            (
                "grant of another's",
                grant(1),
                Some(row(2, 100)),
                no(Refusal::OtherClient),
            ),
            (
                "grant of another's that ended",
                grant(1),
                Some(row(2, -5000)),
                no(Refusal::OtherClient),
            ),
            ("extend renews", extend(), Some(row(1, 100)), durable(1200)),
            (
                "extend never allocates",
                extend(),
                None,
                no(Refusal::NotFound),
            ),
            (
                "extend of another's",
                extend(),
                Some(row(2, 100)),
                no(Refusal::OtherClient),
            ),
            (
                "reclaim of an ended row",
                reclaim(),
                Some(row(1, -61)),
                Verdict::Done,
            ),
            (
                "reclaim within the 60 s",
                reclaim(),
                Some(row(1, -59)),
                no(Refusal::NotEnded),
            ),
            (
                "reclaim at 60 s sharp",
                reclaim(),
                Some(row(1, -60)),
                no(Refusal::NotEnded),
            ),
            (
                "reclaim of a live row",
                reclaim(),
                Some(row(1, 1)),
                no(Refusal::NotEnded),
            ),
            (
                "reclaim of another's",
                reclaim(),
                Some(row(2, -5000)),
                no(Refusal::OtherClient),
            ),
            ("reclaim of nothing", reclaim(), None, no(Refusal::NotFound)),
            (
                "reclaim of a released row that nobody answers for",
                take_back(),
                Some(released(900, -61)),
                Verdict::Done,
            ),
            (
                "the same, and nobody has asked",
                reclaim(),
                Some(released(900, -61)),
                no(Refusal::NotEnded),
            ),
            (
                "nobody answers, but it was not released",
                take_back(),
                Some(row(1, 900)),
                no(Refusal::NotEnded),
            ),
            (
                "reclaim of a released row that rested until a minute ago",
                take_back(),
                Some(released(900, -59)),
                no(Refusal::NotEnded),
            ),
        ];
        for (case, kind, row, want) in cases {
            assert_eq!(
                decide(&write(kind), false, Some(&block()), row.as_ref(), NOW).0,
                want,
                "{case}"
            );
        }
    }

    #[test]
    fn a_refused_write_changes_nothing_and_a_reclaim_deletes() {
        let (_, effect) = decide(
            &write(grant(1)),
            false,
            Some(&block()),
            Some(&row(2, 9)),
            NOW,
        );
        assert_eq!(effect, Effect::Keep);
        let kind = WriteKind::Reclaim {
            client: client(1),
            silent: false,
        };
        let (_, effect) = decide(&write(kind), false, Some(&block()), Some(&row(1, -90)), NOW);
        assert_eq!(effect, Effect::Delete);
    }

    #[test]
    fn only_the_owner_of_the_epoch_writes() {
        let stale = BlockState {
            epoch: Epoch(4),
            ..block()
        };
        let peer = BlockState {
            asker: Asker::Peer,
            ..block()
        };
        let stranger = BlockState {
            asker: Asker::Stranger,
            ..block()
        };
        let extend = || WriteKind::Extend {
            client: client(1),
            lease: LEASE,
        };
        let live = row(1, 100);
        let cases = [
            ("stale epoch", grant(1), &stale, Some(Refusal::StaleEpoch)),
            (
                "stale yield",
                WriteKind::Yield,
                &stale,
                Some(Refusal::StaleEpoch),
            ),
            (
                "stale reclaim",
                WriteKind::Reclaim {
                    client: client(1),
                    silent: false,
                },
                &stale,
                Some(Refusal::StaleEpoch),
            ),
            ("peer grants", grant(1), &peer, Some(Refusal::NotOwner)),
            ("peer extends, any epoch", extend(), &peer, None),
            (
                "stranger extends",
                extend(),
                &stranger,
                Some(Refusal::NotOwner),
            ),
        ];
        for (case, kind, block, want) in cases {
            let (verdict, _) = decide(&write(kind), false, Some(block), Some(&live), NOW);
            match want {
                Some(refusal) => assert_eq!(verdict, Verdict::Refused(refusal), "{case}"),
                None => assert!(matches!(verdict, Verdict::Durable { .. }), "{case}"),
            }
        }
        assert_eq!(
            decide(&write(grant(1)), false, None, None, NOW).0,
            Verdict::Refused(Refusal::NotOwner)
        );
    }

    #[test]
    fn addresses_and_clients_outside_the_block_are_refused() {
        let outside = Verdict::Refused(Refusal::OutsideBlock);
        for address in ["10.0.0.63", "10.0.0.80", "::a00:40"] {
            let write = Write {
                address: address.parse().unwrap(),
                ..write(grant(1))
            };
            assert_eq!(
                decide(&write, false, Some(&block()), None, NOW).0,
                outside,
                "{address}"
            );
        }
        let elsewhere = Client {
            vlan: 5002,
            ..client(1)
        };
        let kind = WriteKind::Grant {
            client: elsewhere,
            lease: LEASE,
            hostname: "".into(),
        };
        assert_eq!(
            decide(&write(kind), false, Some(&block()), None, NOW).0,
            outside
        );
    }

    #[test]
    fn a_quarantine_keeps_strangers_out_but_not_the_holder_nor_a_fact() {
        let later = NOW.plus(Duration::from_secs(5));
        let resting = BlockState {
            quarantined_until: later,
            ..block()
        };
        let closed = Verdict::Refused(Refusal::NotEnded);
        assert_eq!(
            decide(&write(grant(1)), false, Some(&resting), None, NOW).0,
            closed
        );
        let only = RowState {
            client: None,
            end: NOW,
            quarantined_until: later,
            released: false,
        };
        assert_eq!(
            decide(&write(grant(1)), false, Some(&block()), Some(&only), NOW).0,
            closed
        );
        let fact = decide(&write(grant(1)), true, Some(&resting), None, NOW).0;
        assert!(matches!(fact, Verdict::Durable { .. }));
        let held = decide(
            &write(grant(1)),
            false,
            Some(&resting),
            Some(&row(1, -5)),
            NOW,
        )
        .0;
        assert!(matches!(held, Verdict::Durable { .. }));
        let kind = WriteKind::Reclaim {
            client: client(1),
            silent: false,
        };
        assert_eq!(
            decide(&write(kind), false, Some(&resting), Some(&row(1, -90)), NOW).0,
            closed
        );
    }

    #[test]
    fn release_and_quarantine_leave_the_end_alone() {
        let before = row(1, 100);
        let kind = WriteKind::Release { client: client(1) };
        let (_, effect) = decide(&write(kind), false, Some(&block()), Some(&before), NOW);
        assert_eq!(
            effect,
            Effect::Put(RowState {
                released: true,
                ..before.clone()
            })
        );
        let kind = WriteKind::Release { client: client(2) };
        assert_eq!(
            decide(&write(kind), false, Some(&block()), Some(&before), NOW).1,
            Effect::Keep
        );
        let kind = WriteKind::Quarantine {
            length: Duration::from_secs(600),
        };
        let (_, effect) = decide(&write(kind), false, Some(&block()), Some(&before), NOW);
        let want = RowState {
            quarantined_until: NOW.plus(Duration::from_secs(600)),
            ..before
        };
        assert_eq!(effect, Effect::Put(want));
    }

    #[test]
    fn an_attach_is_in_order_and_a_lost_spool_quarantines() {
        let seen = |current, seq| Some(SpoolSeen { current, seq });
        let attach = |quarantine| AttachDecision::Attach { quarantine };
        let cases = [
            ("first of all", None, false, 1, attach(false)),
            ("new spool id", None, true, 1, attach(true)),
            ("again", seen(true, 7), true, 8, attach(false)),
            ("late", seen(true, 7), true, 7, AttachDecision::Behind),
            ("set back", seen(true, 7), true, 2, AttachDecision::Behind),
            (
                "a former spool",
                seen(false, 7),
                true,
                8,
                AttachDecision::Behind,
            ),
        ];
        for (case, known, before, seq, want) in cases {
            assert_eq!(decide_attach(None, known, before, seq, NOW), want, "{case}");
        }
        let hold = Some(NOW.plus(Duration::from_secs(1)));
        assert_eq!(
            decide_attach(hold, None, false, 1, NOW),
            AttachDecision::Wait
        );
        assert_eq!(decide_attach(Some(NOW), None, false, 1, NOW), attach(false));
    }

    #[test]
    fn a_heartbeat_moves_until_only_where_both_agree() {
        let (mine, other) = (SpoolId([1; 16]), SpoolId([2; 16]));
        let digest = [7; 32];
        let facts = HeartbeatFacts {
            hold: None,
            session: Some((mine, NOW)),
            digest: &digest,
            pending: false,
        };
        let until = HeartbeatDecision::Until(NOW.plus(UNTIL));
        assert_eq!(decide_heartbeat(facts, mine, &digest, NOW), until);
        let far = NOW.plus(3 * UNTIL);
        let ahead = HeartbeatFacts {
            session: Some((mine, far)),
            ..facts
        };
        assert_eq!(
            decide_heartbeat(ahead, mine, &digest, NOW),
            HeartbeatDecision::Until(far)
        );
        let attach = HeartbeatDecision::Attach;
        assert_eq!(decide_heartbeat(facts, mine, &[8; 32], NOW), attach);
        assert_eq!(decide_heartbeat(facts, other, &digest, NOW), attach);
        assert_eq!(
            decide_heartbeat(
                HeartbeatFacts {
                    pending: true,
                    ..facts
                },
                mine,
                &digest,
                NOW
            ),
            attach
        );
        assert_eq!(
            decide_heartbeat(
                HeartbeatFacts {
                    session: None,
                    ..facts
                },
                mine,
                &digest,
                NOW
            ),
            attach
        );
        let held = HeartbeatFacts {
            hold: Some(far),
            ..facts
        };
        assert_eq!(
            decide_heartbeat(held, mine, &digest, NOW),
            HeartbeatDecision::Wait
        );
    }

    #[test]
    fn a_block_is_taken_sixty_seconds_after_until() {
        let ago = |secs: i64| Some(Time(NOW.0 - secs * 1_000_000));
        for (case, until, want) in [
            ("never attached", None, true),
            ("past", ago(61), true),
            ("margin", ago(60), false),
            ("live", ago(-5), false),
        ] {
            assert_eq!(may_take(until, NOW), want, "{case}");
        }
    }
}
