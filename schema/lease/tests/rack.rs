//! Script tests of the rack's machine: what happens at which millisecond, and what it does then.

use std::net::IpAddr;
use std::time::Duration;

use lease::rack::{Action, Alarm, Input, Mode, QUEUE_ROWS_MAX, Rack, Start, ack_length};
use lease::spool::{Entry, first_seq};
use lease::{
    AttachReply, Attachment, Batch, Block, BlockId, Client, ClientKey, Epoch, HeartbeatReply,
    Outcome, Refusal, Row, SpoolId, UNTIL, Write, WriteKind, digest,
};

const SPOOL: SpoolId = SpoolId([1; 16]);
const LEASE: Duration = Duration::from_secs(600);
const DAY_MS: u64 = 86_400_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn client(n: u8) -> Client {
    Client {
        vlan: 5001,
        key: ClientKey::Mac([2, 0, 0, 0, 0, n]),
    }
}

/// 10.0.0.64 to .79.
fn block(epoch: u64) -> Block {
    Block {
        id: BlockId(1),
        epoch: Epoch(epoch),
        vlan: 5001,
        subnet: 1,
        first: ip(64),
        count: 16,
    }
}

fn write(last: u8, kind: WriteKind) -> Write {
    Write {
        block: BlockId(1),
        epoch: Epoch(1),
        address: ip(last),
        kind,
    }
}

fn grant(last: u8, n: u8) -> Write {
    write(
        last,
        WriteKind::Grant {
            client: client(n),
            lease: LEASE,
            hostname: "".into(),
        },
    )
}

fn reclaim(last: u8, n: u8) -> Write {
    write(
        last,
        WriteKind::Reclaim {
            client: client(n),
            silent: false,
        },
    )
}

fn row(last: u8, n: u8, remaining_ms: i64) -> Row {
    let client = Some(client(n));
    Row {
        block: BlockId(1),
        address: ip(last),
        client,
        remaining_ms,
        quarantine: Duration::ZERO,
        released: false,
    }
}

fn durable(secs: u64) -> Outcome {
    Outcome::Durable {
        remaining: Duration::from_secs(secs),
    }
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused(refusal)
}

struct Script {
    rack: Rack,
    at: u64,
    ticket: u64,
    /// What the last input led to.
    last: Vec<Action>,
}

impl Script {
    fn start(entries: Vec<Entry>) -> Script {
        let rack = Rack::new(Start {
            spool_id: SPOOL,
            seq: first_seq(1),
            entries,
        });
        Script {
            rack,
            at: 0,
            ticket: 0,
            last: Vec::new(),
        }
    }

    /// Attached at 0 ms over links 1 and 2, with one block of epoch 1.
    fn attached(rows: Vec<Row>) -> Script {
        let mut s = Script::start(vec![]);
        s.input(Input::LinkUp(1));
        let call = s.attach_call();
        s.input(Input::LinkUp(2));
        s.answer_attach(call, 1, rows);
        assert_eq!(s.rack.mode(), Mode::Attached);
        s
    }

    /// Detached at 6,000 ms: the heartbeat of 5,000 ms was not answered, and both links went.
    fn detached(rows: Vec<Row>) -> Script {
        let mut s = Script::attached(rows);
        s.tick(5_000);
        s.input(Input::LinkDown(1));
        s.input(Input::LinkDown(2));
        s.tick(6_000);
        assert_eq!(s.rack.mode(), Mode::Detached);
        s
    }

    fn input(&mut self, input: Input) -> &[Action] {
        self.last.clear();
        self.rack.handle(ms(self.at), input, &mut self.last);
        &self.last
    }

    fn tick(&mut self, at: u64) -> &[Action] {
        assert!(at >= self.at);
        self.at = at;
        self.input(Input::Tick)
    }

    /// Asks, and returns the ticket.
    fn ask(&mut self, write: Write) -> u64 {
        self.ticket += 1;
        let ticket = self.ticket;
        self.input(Input::Request { ticket, write });
        ticket
    }

    #[track_caller]
    fn refuses(&mut self, write: Write, refusal: Refusal) {
        let ticket = self.ask(write);
        assert_eq!(self.replies(), [(ticket, refused(refusal))]);
    }

    fn replies(&self) -> Vec<(u64, Outcome)> {
        let replies = self.last.iter().filter_map(|action| match action {
            Action::Reply {
                ticket, outcome, ..
            } => Some((*ticket, *outcome)),
            _ => None,
        });
        replies.collect()
    }

    /// Call, link and batch of what was sent.
    fn batches(&self) -> Vec<(u64, u32, Batch)> {
        let batches = self.last.iter().filter_map(|action| match action {
            Action::SendBatch { call, link, batch } => Some((*call, *link, batch.clone())),
            _ => None,
        });
        batches.collect()
    }

    #[track_caller]
    fn batch(&self) -> (u64, u32, Batch) {
        match &self.batches()[..] {
            [batch] => batch.clone(),
            _ => panic!("one batch, not {:?}", self.last),
        }
    }

    fn appended(&self) -> Vec<Entry> {
        let entries = self.last.iter().filter_map(|action| match action {
            Action::AppendSpool(entry) => Some(entry.clone()),
            _ => None,
        });
        entries.collect()
    }

    #[track_caller]
    fn attach_call(&self) -> u64 {
        let call = self.last.iter().find_map(|action| match action {
            Action::SendAttach { call, .. } => Some(*call),
            _ => None,
        });
        call.unwrap_or_else(|| panic!("an attach, not {:?}", self.last))
    }

    fn attaches(&self) -> bool {
        self.last
            .iter()
            .any(|action| matches!(action, Action::SendAttach { .. }))
    }

    fn forgets(&self) -> bool {
        self.last.contains(&Action::Forget)
    }

    fn answer(&mut self, call: u64, outcomes: Vec<Outcome>) -> &[Action] {
        self.input(Input::BatchAnswer {
            call,
            outcomes: Some(outcomes),
        })
    }

    fn answer_attach(&mut self, call: u64, epoch: u64, rows: Vec<Row>) -> &[Action] {
        let attachment = Attachment {
            until: UNTIL,
            blocks: vec![block(epoch)],
            rows,
        };
        self.input(Input::AttachAnswer {
            call,
            reply: Some(AttachReply::Attached(attachment)),
        })
    }

    /// The heartbeat just sent is answered.
    #[track_caller]
    fn hears(&mut self) {
        let beat = self.last.iter().find_map(|action| match action {
            Action::SendHeartbeat { call, .. } => Some(*call),
            _ => None,
        });
        let call = beat.unwrap_or_else(|| panic!("a heartbeat, not {:?}", self.last));
        self.input(Input::HeartbeatAnswer {
            call,
            reply: Some(HeartbeatReply::Until(UNTIL)),
        });
    }

    /// A grant in the spool, while detached.
    fn spool(&mut self, last: u8, n: u8) -> (u64, Entry) {
        let ticket = self.ask(grant(last, n));
        assert_eq!(self.replies(), [], "not before the fsync");
        let entry = self
            .appended()
            .pop()
            .unwrap_or_else(|| panic!("a fact, not {:?}", self.last));
        self.input(Input::SpoolDurable { seq: entry.seq });
        (ticket, entry)
    }
}

// ---------------------------------------------------------------- attached

#[test]
fn nothing_is_dealt_before_the_first_attach() {
    let mut s = Script::start(vec![]);
    s.refuses(grant(64, 1), Refusal::Mute);
    assert!(!s.attaches(), "no link yet");
    s.input(Input::LinkUp(7));
    let [
        Action::SendAttach {
            call,
            link: 7,
            spool_id: SPOOL,
            spool_seq,
        },
    ] = s.last[..]
    else {
        panic!("{:?}", s.last)
    };
    assert_eq!(spool_seq, first_seq(1) + 1);
    s.refuses(grant(64, 1), Refusal::Mute);
    s.at = 100;
    s.answer_attach(call, 1, vec![row(64, 1, 10_000)]);
    let [
        Action::Attached {
            rows, sent, until, ..
        },
    ] = &s.last[..]
    else {
        panic!("{:?}", s.last)
    };
    assert_eq!(
        (*sent, *until),
        (ms(0), ms(DAY_MS / 100 * 99)),
        "99 % from sending"
    );
    assert_eq!(rows[0].remaining_ms, 9_900);
    s.ask(grant(65, 2));
    assert_eq!(s.batch().2.writes, [grant(65, 2)]);
}

#[test]
fn a_lone_grant_goes_at_once_and_its_reply_counts_from_sending() {
    let mut s = Script::attached(vec![]);
    s.at = 40;
    let ticket = s.ask(grant(64, 1));
    let (call, link, batch) = s.batch();
    assert_eq!((link, batch.drained, batch.key.spool_id), (1, false, SPOOL));
    s.at = 90;
    s.answer(call, vec![durable(1200)]);
    let reply = Action::Reply {
        ticket,
        outcome: durable(1188),
        sent: ms(40),
    };
    assert_eq!(s.last, [reply]);
    // 99 % of 1,200 s from 40 ms on: what an ACK may promise later, and when it may promise nothing.
    let end = ms(40) + Duration::from_secs(1188);
    assert_eq!(ack_length(LEASE, end, UNTIL, ms(90)), Some(LEASE));
    assert_eq!(ack_length(LEASE, end, UNTIL, end - ms(5)), Some(ms(5)));
    assert_eq!(ack_length(LEASE, end, ms(95), ms(90)), Some(ms(5)));
    assert_eq!(ack_length(LEASE, end, UNTIL, end), None);
}

#[test]
fn under_load_a_batch_leaves_every_forty_milliseconds_and_two_are_under_way() {
    let mut s = Script::attached(vec![]);
    s.at = 10;
    s.ask(grant(64, 1));
    let (first, _, _) = s.batch();
    s.ask(grant(65, 2));
    s.at = 12;
    s.ask(grant(66, 3));
    assert_eq!(s.batches(), []);
    assert_eq!(s.rack.next_tick(), Some(ms(50)));
    s.tick(50);
    let (second, _, batch) = s.batch();
    assert_eq!(batch.writes, [grant(65, 2), grant(66, 3)]);
    s.ask(grant(67, 4));
    s.tick(95);
    assert_eq!(s.batches(), [], "two are under way");
    s.answer(first, vec![durable(1200)]);
    let (_, _, third) = s.batch();
    assert_eq!(third.writes, [grant(67, 4)], "it has waited long enough");
    assert_eq!(third.key.seq, batch.key.seq + 1);
    s.answer(second, vec![durable(1200), durable(1200)]);
    assert_eq!(s.replies(), [(2, durable(1188)), (3, durable(1188))]);
}

#[test]
fn a_full_batch_does_not_wait_and_a_full_queue_refuses() {
    let mut s = Script::attached(vec![]);
    let quarantine = write(64, WriteKind::Quarantine { length: LEASE });
    s.ask(quarantine.clone());
    for _ in 0..511 {
        s.ask(quarantine.clone());
        assert_eq!(s.batches(), []);
    }
    s.ask(quarantine.clone());
    assert_eq!(s.batch().2.writes.len(), 512);
    for _ in 0..QUEUE_ROWS_MAX {
        s.ask(quarantine.clone());
        assert_eq!(s.replies(), []);
    }
    s.refuses(quarantine, Refusal::Mute);
    assert_eq!(s.rack.counters().full, 1);
}

#[test]
fn an_unanswered_batch_goes_through_another_region_under_the_same_key() {
    let mut s = Script::attached(vec![]);
    s.ask(grant(64, 1));
    let (first, link, batch) = s.batch();
    assert_eq!((link, s.rack.next_tick()), (1, Some(ms(250))));
    s.tick(250);
    let (second, other, again) = s.batch();
    assert_eq!((other, &again), (2, &batch));
    s.tick(600);
    assert_eq!(s.batches(), [], "there is no third region");
    s.answer(second, vec![durable(1200)]);
    assert_eq!(s.replies().len(), 1);
    s.answer(first, vec![refused(Refusal::StaleEpoch)]);
    assert_eq!(s.last, [], "the first answer counts");
    s.ask(grant(65, 2));
    assert_eq!(s.batch().1, 2, "the one that answers is preferred");
}

#[test]
fn a_lost_link_or_a_failed_call_is_made_good_elsewhere() {
    let mut s = Script::attached(vec![]);
    s.ask(grant(64, 1));
    let (_, _, batch) = s.batch();
    s.at = 20;
    s.input(Input::LinkDown(1));
    let (call, link, again) = s.batch();
    assert_eq!((link, &again), (2, &batch), "at once");
    s.input(Input::BatchAnswer {
        call,
        outcomes: None,
    });
    assert_eq!(s.batches(), [], "the same link again only after a pause");
    s.tick(270);
    let (call, link, again) = s.batch();
    assert_eq!((link, &again), (2, &batch));
    // An answer that does not fit is as good as none.
    s.answer(call, vec![]);
    assert_eq!(
        s.last,
        [Action::Alarm(Alarm::ShortAnswer { asked: 1, got: 0 })]
    );
    s.tick(520);
    let (call, _, _) = s.batch();
    s.answer(call, vec![durable(1200)]);
    assert_eq!(s.replies(), [(1, durable(1188))]);
}

#[test]
fn an_address_has_one_client_and_one_write_under_way() {
    let mut s = Script::attached(vec![row(70, 7, 100_000), row(71, 7, -100_000)]);
    s.refuses(grant(70, 1), Refusal::OtherClient);
    s.refuses(grant(71, 1), Refusal::OtherClient);
    s.refuses(grant(80, 1), Refusal::OutsideBlock);
    s.refuses(
        Write {
            epoch: Epoch(2),
            ..grant(64, 1)
        },
        Refusal::StaleEpoch,
    );
    s.refuses(
        Write {
            block: BlockId(9),
            ..grant(64, 1)
        },
        Refusal::StaleEpoch,
    );
    s.refuses(reclaim(70, 7), Refusal::NotEnded);
    s.refuses(reclaim(71, 1), Refusal::OtherClient);
    s.refuses(reclaim(72, 1), Refusal::NotFound);
    let other_vlan = Client {
        vlan: 5002,
        ..client(1)
    };
    let kind = WriteKind::Grant {
        client: other_vlan,
        lease: LEASE,
        hostname: "".into(),
    };
    s.refuses(write(64, kind), Refusal::OutsideBlock);
    s.at += 40;
    s.ask(reclaim(71, 7));
    let (call, _, _) = s.batch();
    s.refuses(grant(71, 7), Refusal::Mute);
    s.answer(call, vec![Outcome::Done]);
    assert_eq!(s.replies(), [(s.ticket - 1, Outcome::Done)]);
    s.at += 40;
    s.ask(grant(71, 1));
    let (call, _, _) = s.batch();
    // The region's word: somebody else's. Nobody gets it until the next attach.
    s.answer(call, vec![refused(Refusal::OtherClient)]);
    assert!(
        matches!(
            &s.last[..],
            [
                Action::Alarm(Alarm::OtherClient { .. }),
                Action::Reply { .. }
            ]
        ),
        "{:?}",
        s.last
    );
    s.refuses(grant(71, 1), Refusal::OtherClient);
    s.refuses(grant(71, 7), Refusal::OtherClient);
}

#[test]
fn a_reclaim_that_came_too_early_leaves_the_binding() {
    let mut s = Script::attached(vec![row(71, 7, -100_000)]);
    s.ask(reclaim(71, 7));
    let (call, _, _) = s.batch();
    s.answer(call, vec![refused(Refusal::NotEnded)]);
    s.refuses(grant(71, 1), Refusal::OtherClient);
    s.at += 40;
    s.ask(grant(71, 7));
    assert_eq!(s.batch().2.writes, [grant(71, 7)]);
}

#[test]
fn a_declined_address_rests() {
    let mut s = Script::attached(vec![]);
    s.ask(write(
        64,
        WriteKind::Quarantine {
            length: Duration::from_secs(600),
        },
    ));
    let (call, _, _) = s.batch();
    s.answer(call, vec![Outcome::Done]);
    s.refuses(grant(64, 1), Refusal::NotEnded);
    // 2 % longer than asked for, since this clock may be fast.
    s.at = 611_000;
    s.refuses(grant(64, 1), Refusal::NotEnded);
}

/// Others are answered, one batch is not: its outcome stays unknown, and its address serves only its client.
#[test]
fn an_outcome_that_never_comes_is_unknown() {
    let mut s = Script::attached(vec![]);
    let lost = s.ask(grant(64, 1));
    for at in (500..5_000).step_by(500) {
        s.tick(at);
        let ticket = s.ask(grant(65, 2));
        let mut calls: Vec<u64> = s
            .batches()
            .into_iter()
            .filter(|b| b.2.writes == [grant(65, 2)])
            .map(|b| b.0)
            .collect();
        if let Some(call) = calls.pop() {
            s.answer(call, vec![durable(1200)]);
            assert_eq!(s.replies(), [(ticket, durable(1188))]);
        }
    }
    s.tick(5_000);
    assert_eq!(s.replies(), [(lost, Outcome::Unknown)]);
    assert_eq!(s.rack.mode(), Mode::Attached);
    s.refuses(grant(64, 9), Refusal::OtherClient);
    s.ask(grant(64, 1));
    assert!(
        s.rack.queued() + s.batches().len() > 0,
        "its own client may ask again"
    );
}

#[test]
fn a_yield_forgets_the_block_before_it_is_sent() {
    let mut s = Script::attached(vec![]);
    s.ask(grant(64, 1));
    let (call, _, _) = s.batch();
    s.refuses(write(0, WriteKind::Yield), Refusal::NotEnded);
    s.answer(call, vec![durable(1200)]);
    s.at = 4_500;
    let ticket = s.ask(write(0, WriteKind::Yield));
    assert_eq!(s.last[0], Action::ForgetBlock(BlockId(1)));
    let (call, _, batch) = s.batch();
    assert_eq!(batch.writes, [write(0, WriteKind::Yield)]);
    s.refuses(grant(65, 1), Refusal::StaleEpoch);
    let beats = |s: &Script| {
        s.last
            .iter()
            .any(|action| matches!(action, Action::SendHeartbeat { .. }))
    };
    s.tick(5_200);
    assert!(!beats(&s), "the digests would differ");
    s.answer(call, vec![Outcome::Done]);
    assert_eq!(s.replies(), [(ticket, Outcome::Done)]);
    assert!(beats(&s));
}

// ---------------------------------------------------------------- heartbeats

/// Its blocks may be others: it asks at once, and not twice.
#[test]
fn a_change_of_vlans_brings_the_heartbeat_forward() {
    let mut s = Script::attached(vec![]);
    s.at = 1_000;
    s.input(Input::LinksChanged);
    assert!(
        matches!(s.last[..], [Action::SendHeartbeat { .. }]),
        "{:?}",
        s.last
    );
    s.at = 1_010;
    s.input(Input::LinksChanged);
    assert_eq!(s.last, []);
}

#[test]
fn heartbeats_carry_the_digest_and_move_until() {
    let mut s = Script::attached(vec![]);
    assert_eq!(s.rack.next_tick(), Some(ms(5_000)));
    s.tick(5_000);
    let [
        Action::SendHeartbeat {
            call,
            link: 1,
            spool_id: SPOOL,
            digest: sent,
        },
    ] = s.last[..]
    else {
        panic!()
    };
    assert_eq!(sent, digest([(BlockId(1), Epoch(1))]));
    s.at = 5_040;
    s.input(Input::HeartbeatAnswer {
        call,
        reply: Some(HeartbeatReply::Until(UNTIL)),
    });
    assert_eq!(s.last, [Action::Until(ms(5_000 + DAY_MS / 100 * 99))]);
    assert_eq!(s.rack.next_tick(), Some(ms(10_000)));
    s.tick(10_000);
    let Action::SendHeartbeat { call, .. } = s.last[0] else {
        panic!()
    };
    // Shorter than before: until never goes back.
    s.input(Input::HeartbeatAnswer {
        call,
        reply: Some(HeartbeatReply::Until(ms(7))),
    });
    assert_eq!(s.last, []);
}

#[test]
fn a_heartbeat_that_says_attach_makes_the_rack_forget_and_attach() {
    let mut s = Script::attached(vec![]);
    s.tick(5_000);
    let Action::SendHeartbeat { call, .. } = s.last[0] else {
        panic!()
    };
    let ticket = s.ask(grant(64, 1));
    let (batch, _, _) = s.batch();
    s.input(Input::HeartbeatAnswer {
        call,
        reply: Some(HeartbeatReply::Attach),
    });
    assert!(s.forgets());
    assert_eq!(s.replies(), [(ticket, Outcome::Unknown)]);
    let attach = s.attach_call();
    s.refuses(grant(64, 1), Refusal::Mute);
    s.answer(batch, vec![durable(1200)]);
    assert_eq!(s.last, [], "nobody waits for it any more");
    s.answer_attach(attach, 2, vec![row(64, 1, 1_000_000)]);
    s.refuses(
        Write {
            epoch: Epoch(2),
            ..grant(64, 3)
        },
        Refusal::OtherClient,
    );
}

#[test]
fn a_stale_epoch_makes_the_rack_attach() {
    let mut s = Script::attached(vec![]);
    let ticket = s.ask(grant(64, 1));
    let (call, _, _) = s.batch();
    s.answer(call, vec![refused(Refusal::StaleEpoch)]);
    assert!(s.forgets());
    assert_eq!(s.replies(), [(ticket, refused(Refusal::StaleEpoch))]);
    assert!(!s.attaches(), "not in a circle");
    s.tick(250);
    assert!(s.attaches());
}

#[test]
fn clocks_that_disagree_make_the_rack_forget_and_attach() {
    let mut s = Script::attached(vec![]);
    s.at = 300;
    s.input(Input::ClocksDisagree);
    assert!(s.forgets() && s.attaches());
}

// ---------------------------------------------------------------- detached

#[test]
fn after_a_second_without_a_reply_what_is_under_way_becomes_a_new_fact() {
    let mut s = Script::attached(vec![]);
    s.at = 100;
    let ticket = s.ask(grant(64, 1));
    let (call, _, batch) = s.batch();
    let queued = s.ask(grant(65, 2));
    s.tick(1_099);
    assert_eq!((s.rack.mode(), s.replies()), (Mode::Attached, vec![]));
    s.tick(1_100);
    assert_eq!(s.rack.mode(), Mode::Detached);
    assert!(s.last.contains(&Action::Detached(true)));
    let facts = s.appended();
    assert_eq!(facts.len(), 2);
    assert!(
        facts.iter().all(|fact| fact.seq > batch.key.seq),
        "new keys"
    );
    assert_eq!(s.replies(), [], "not before the fsync");
    s.at = 1_103;
    s.input(Input::SpoolDurable { seq: facts[0].seq });
    let reply = Action::Reply {
        ticket,
        outcome: durable(600),
        sent: ms(1_100),
    };
    assert_eq!(s.last[0], reply, "one lease");
    s.input(Input::SpoolDurable { seq: facts[1].seq });
    assert_eq!(s.replies()[0].0, queued);
    s.answer(call, vec![durable(1200)]);
    assert_eq!(s.replies(), [], "the late answer is about another fact");
}

#[test]
fn detached_only_own_bindings_and_free_addresses_are_served() {
    let resting = Row {
        client: None,
        quarantine: ms(1),
        ..row(67, 0, 0)
    };
    let mut s = Script::detached(vec![row(64, 1, 1_000_000), row(65, 2, -1_000_000), resting]);
    s.at = 10_000;
    let (ticket, _) = s.spool(66, 3);
    assert_eq!(
        s.last,
        [Action::Reply {
            ticket,
            outcome: durable(600),
            sent: ms(10_000)
        }]
    );
    // Renewed, with an end that is later than a lease from now.
    let (ticket, _) = s.spool(64, 1);
    assert_eq!(
        s.last,
        [Action::Reply {
            ticket,
            outcome: Outcome::Durable {
                remaining: ms(980_000)
            },
            sent: ms(10_000)
        }]
    );
    s.spool(65, 2);
    s.refuses(grant(66, 4), Refusal::OtherClient);
    s.refuses(grant(64, 4), Refusal::OtherClient);
    s.refuses(grant(67, 4), Refusal::NotEnded);
    s.refuses(reclaim(65, 2), Refusal::Mute);
    s.refuses(
        write(
            66,
            WriteKind::Extend {
                client: client(3),
                lease: LEASE,
            },
        ),
        Refusal::Mute,
    );
    s.refuses(write(0, WriteKind::Yield), Refusal::Mute);
    let release = s.ask(write(66, WriteKind::Release { client: client(3) }));
    assert_eq!(
        (s.replies(), s.appended().len()),
        (vec![(release, Outcome::Done)], 0),
        "dropped"
    );
    // An ended lease is nobody else's, however long it has been.
    s.at = 70_000_000;
    s.refuses(grant(65, 4), Refusal::OtherClient);
    s.refuses(grant(66, 4), Refusal::OtherClient);
    assert_eq!(s.rack.counters().releases_dropped, 1);
}

#[test]
fn nothing_is_promised_past_until() {
    let until = DAY_MS / 100 * 99;
    let mut s = Script::detached(vec![]);
    s.at = until - 10_000;
    let (ticket, _) = s.spool(64, 1);
    assert_eq!(s.replies(), [(ticket, durable(10))]);
    assert_eq!(s.rack.next_tick(), Some(ms(until)));
    s.tick(until);
    assert_eq!(s.last, [Action::Alarm(Alarm::UntilPassed), Action::Forget]);
    s.refuses(grant(64, 1), Refusal::Mute);
    // The fact is not forgotten.
    s.input(Input::LinkUp(5));
    assert_eq!(s.batch().2.writes, [grant(64, 1)]);
}

#[test]
fn renewals_of_one_address_are_one_fact() {
    let mut s = Script::detached(vec![]);
    let (_, first) = s.spool(64, 1);
    s.at += 300_000;
    s.spool(64, 1);
    assert!(s.last.contains(&Action::RemoveSpool {
        seqs: vec![first.seq]
    }));
    assert_eq!(s.rack.spooled(), 1);
}

#[test]
fn the_spool_is_drained_before_the_attach() {
    let mut s = Script::detached(vec![]);
    let (_, first) = s.spool(64, 1);
    let (_, second) = s.spool(65, 2);
    s.input(Input::LinkUp(3));
    let (call, _, batch) = s.batch();
    assert!(batch.drained && !s.attaches());
    assert_eq!(batch.writes, [grant(64, 1), grant(65, 2)]);
    assert!(batch.key.seq > second.seq);
    // It goes on serving meanwhile.
    let (_, third) = s.spool(66, 3);
    s.answer(call, vec![durable(1200), refused(Refusal::StaleEpoch)]);
    assert!(matches!(
        s.last[0],
        Action::Alarm(Alarm::FactRefused {
            refusal: Refusal::StaleEpoch,
            ..
        })
    ));
    assert!(s.last.contains(&Action::RemoveSpool {
        seqs: vec![first.seq, second.seq]
    }));
    let (call, _, batch) = s.batch();
    assert_eq!(batch.writes, [grant(66, 3)]);
    // The last facts are on their way, a region answers: no new ones, or the spool would never be empty.
    s.refuses(grant(67, 4), Refusal::Mute);
    s.answer(call, vec![durable(1200)]);
    assert!(s.last.contains(&Action::RemoveSpool {
        seqs: vec![third.seq]
    }));
    let attach = s.attach_call();
    s.answer_attach(attach, 2, vec![]);
    assert_eq!((s.rack.mode(), s.rack.spooled()), (Mode::Attached, 0));
}

#[test]
fn a_region_that_goes_silent_while_draining_leaves_the_rack_serving() {
    let mut s = Script::detached(vec![]);
    s.spool(64, 1);
    s.input(Input::LinkUp(3));
    let (call, _, _) = s.batch();
    s.spool(65, 2);
    s.answer(call, vec![durable(1200)]);
    s.refuses(grant(66, 3), Refusal::Mute);
    let at = s.at + 1_000;
    assert_eq!(s.rack.next_tick(), Some(ms(at)));
    s.tick(at);
    s.spool(66, 3);
}

/// With nothing to drain a heartbeat asks whether a region is back; its answer alone makes no difference.
#[test]
fn a_detached_rack_without_facts_probes_and_attaches() {
    let mut s = Script::detached(vec![]);
    s.input(Input::LinkUp(3));
    let [Action::SendHeartbeat { call, link: 3, .. }] = s.last[..] else {
        panic!("{:?}", s.last)
    };
    s.input(Input::HeartbeatAnswer {
        call,
        reply: Some(HeartbeatReply::Until(UNTIL)),
    });
    assert!(s.attaches());
    // While it runs, a fact of the old epoch would come too late.
    s.refuses(grant(64, 1), Refusal::Mute);
}

#[test]
fn only_the_newest_attach_counts() {
    let mut s = Script::detached(vec![]);
    s.input(Input::LinkUp(3));
    let Action::SendHeartbeat { call, .. } = s.last[0] else {
        panic!()
    };
    s.input(Input::HeartbeatAnswer {
        call,
        reply: Some(HeartbeatReply::Until(UNTIL)),
    });
    let (first, at) = (s.attach_call(), s.at);
    s.input(Input::LinkUp(4));
    s.tick(at + 9_999);
    assert!(!s.attaches());
    s.tick(at + 10_000);
    let Some(Action::SendAttach {
        call: second,
        link: 4,
        spool_seq,
        ..
    }) = s.last.last().cloned()
    else {
        panic!("{:?}", s.last)
    };
    assert!(spool_seq > first_seq(1) + 1);
    s.answer_attach(first, 2, vec![]);
    assert_eq!(
        s.rack.mode(),
        Mode::Detached,
        "overtaken: the second may run after it"
    );
    s.refuses(grant(64, 1), Refusal::Mute);
    s.input(Input::AttachAnswer {
        call: second,
        reply: None,
    });
    s.refuses(grant(64, 1), Refusal::Mute);
    s.tick(at + 10_250);
    let third = s.attach_call();
    s.answer_attach(third, 4, vec![]);
    assert_eq!(s.rack.mode(), Mode::Attached);
}

#[test]
fn a_region_that_waits_takes_facts_only() {
    let mut s = Script::attached(vec![]);
    s.tick(5_000);
    let Action::SendHeartbeat { call, .. } = s.last[0] else {
        panic!()
    };
    s.input(Input::HeartbeatAnswer {
        call,
        reply: Some(HeartbeatReply::Wait),
    });
    assert_eq!(s.rack.mode(), Mode::Detached);
    s.spool(64, 1);
    let at = s.at;
    let call = match s.batches().pop() {
        Some((call, _, batch)) if batch.drained => call,
        _ => panic!("{:?}", s.last),
    };
    s.answer(call, vec![durable(1200)]);
    assert!(!s.attaches(), "it was told to wait");
    s.spool(65, 2);
    let call = s.batches().pop().unwrap().0;
    s.answer(call, vec![durable(1200)]);
    s.tick(at + 5_000);
    let call = s.attach_call();
    s.input(Input::AttachAnswer {
        call,
        reply: Some(AttachReply::Wait),
    });
    s.spool(66, 3);
}

// ---------------------------------------------------------------- restart and spool

#[test]
fn a_restarted_rack_drains_before_it_attaches_and_stays_mute() {
    let entry = Entry {
        seq: 5,
        write: grant(64, 1),
    };
    let mut s = Script::start(vec![entry]);
    s.input(Input::LinkUp(1));
    let (call, _, batch) = s.batch();
    assert!(batch.drained && batch.key.seq > first_seq(1));
    s.refuses(grant(64, 1), Refusal::Mute);
    s.answer(call, vec![durable(1200)]);
    assert_eq!(s.last[0], Action::RemoveSpool { seqs: vec![5] });
    let call = s.attach_call();
    s.answer_attach(call, 1, vec![row(64, 1, 1_200_000)]);
    s.refuses(grant(64, 2), Refusal::OtherClient);
}

#[test]
fn a_spool_that_was_set_back_is_replaced() {
    let mut s = Script::start(vec![]);
    s.input(Input::LinkUp(1));
    let call = s.attach_call();
    s.input(Input::AttachAnswer {
        call,
        reply: Some(AttachReply::Behind),
    });
    assert_eq!(
        s.last,
        [Action::Alarm(Alarm::SpoolBehind), Action::ReplaceSpool]
    );
    s.tick(60_000);
    assert_eq!(
        (s.last.len(), s.rack.next_tick()),
        (0, None),
        "nothing before it is replaced"
    );
    let new = SpoolId([2; 16]);
    s.input(Input::SpoolReplaced {
        spool_id: new,
        seq: first_seq(1),
    });
    let [Action::SendAttach { spool_id, call, .. }] = s.last[..] else {
        panic!("{:?}", s.last)
    };
    assert_eq!(spool_id, new);
    s.answer_attach(call, 1, vec![]);
    assert_eq!(s.rack.mode(), Mode::Attached);
}

/// The rack grants nothing while an attach may run, so it must find out by itself that the answer is lost.
#[test]
fn an_attach_that_is_lost_is_sent_again_once_a_region_answers() {
    let mut s = Script::detached(vec![]);
    // A heartbeat is on its way, and lost.
    s.input(Input::LinkUp(3));
    s.spool(66, 3);
    let (call, ..) = s.batch();
    s.answer(call, vec![durable(1200)]);
    let lost = s.attach_call();
    let sent = s.at;
    s.tick(sent + 1_000);
    assert!(!s.attaches(), "it may only be slow");
    s.hears();
    assert!(!s.attaches(), "one at a time");
    s.input(Input::AttachAnswer {
        call: lost,
        reply: None,
    });
    let call = s.attach_call();
    s.answer_attach(call, 1, vec![]);
    assert_eq!(s.rack.mode(), Mode::Attached);
}

#[test]
fn a_spool_that_was_set_back_is_replaced_even_if_the_disk_fails_once() {
    let mut s = Script::start(vec![]);
    s.input(Input::LinkUp(1));
    let call = s.attach_call();
    s.input(Input::AttachAnswer {
        call,
        reply: Some(AttachReply::Behind),
    });
    s.input(Input::SpoolFailed);
    let again = s.at + 60_000;
    s.tick(again - 1);
    assert_eq!(s.last, [], "not at once");
    s.tick(again);
    assert_eq!(s.last, [Action::ReplaceSpool]);
    s.tick(again + 600_000);
    assert_eq!(s.last, [], "one try at a time");
}

/// The disk is full while no region is there to drain to: what is spooled stays, and the file is tried again, less and less
/// often, until it can be written. Then the rack answers again, and drains what it holds.
#[test]
fn a_spool_that_fails_promises_nothing_and_is_tried_again_while_it_holds_entries() {
    let mut s = Script::detached(vec![]);
    s.spool(66, 3);
    let ticket = s.ask(grant(64, 1));
    s.input(Input::SpoolFailed);
    assert_eq!(s.last[0], Action::Alarm(Alarm::SpoolFailed));
    assert_eq!(s.replies(), [(ticket, Outcome::Unknown)]);
    assert!(s.last.contains(&Action::ResetSpool), "at once");
    let mut at = s.at;
    for pause_secs in [1, 2, 4, 8, 16, 32, 60, 60] {
        s.input(Input::SpoolFailed);
        s.refuses(grant(65, 2), Refusal::Mute);
        s.refuses(grant(64, 2), Refusal::OtherClient);
        s.tick(at + pause_secs * 1_000 - 1);
        assert!(!s.last.contains(&Action::ResetSpool), "{pause_secs}");
        s.tick(at + pause_secs * 1_000);
        assert!(s.last.contains(&Action::ResetSpool), "{pause_secs}");
        at = s.at;
    }
    s.input(Input::SpoolReplaced {
        spool_id: SPOOL,
        seq: first_seq(1),
    });
    assert!(!s.forgets(), "nothing was lost");
    s.ask(grant(65, 2));
    let appends = |action: &Action| matches!(action, Action::AppendSpool(_));
    assert!(s.last.iter().any(appends), "it promises again");
    s.input(Input::LinkUp(3));
    let drains = |action: &Action| matches!(action, Action::SendBatch { batch, .. } if batch.writes.len() == 1);
    assert!(s.last.iter().any(drains), "{:?}", s.last);
    s.tick(at + 3_600_000);
    assert!(!s.last.contains(&Action::ResetSpool), "no more than needed");
}

// ---------------------------------------------------------------- any order of anything

mod any_order {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        WaitToTick,
        Links(u8),
        Ask(u8, u8, u8),
        Answer(u8, u8),
        Spool(bool),
        Doubt,
        VlansChange,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_000u64).prop_map(Step::Wait),
            Just(Step::WaitToTick),
            (0..6u8).prop_map(Step::Links),
            (60..82u8, 0..3u8, 0..6u8).prop_map(|(a, c, k)| Step::Ask(a, c, k)),
            (0..8u8, 0..9u8).prop_map(|(i, how)| Step::Answer(i, how)),
            (0..20u8).prop_map(|n| Step::Spool(n > 0)),
            (0..30u8).prop_map(|n| match n {
                0 => Step::Doubt,
                1..4 => Step::VlansChange,
                _ => Step::WaitToTick,
            }),
        ]
    }

    enum Call {
        Batch(u64, usize),
        Beat(u64),
        Attach(u64),
    }

    proptest! {
           /// Every request is answered once, no tick is due in the past, nothing panics, and whatever came before,
           /// good links bring the rack back.
           #[test]
           fn every_request_is_answered_once(steps in proptest::collection::vec(step(), 1..120)) {
               let mut rack = Rack::new(Start { spool_id: SPOOL, seq: first_seq(1), entries: vec![] });
               let (mut now, mut ticket, mut epoch) = (ms(1_000), 0u64, 0u64);
               let mut open = std::collections::BTreeSet::new();
               let (mut calls, mut fsyncs): (Vec<Call>, Vec<u64>) = (vec![], vec![]);
               let finish = [Step::Links(0), Step::Links(1)].into_iter().chain(
                   (0..60).flat_map(|_| [Step::Spool(true), Step::Answer(0, 0), Step::Answer(1, 0), Step::WaitToTick]));
               for step in steps.into_iter().chain(finish) {
                   let mut inputs = vec![];
                   match step {
                       Step::Wait(more) => { now += ms(more); inputs.push(Input::Tick); }
                       Step::WaitToTick => {
                           if let Some(tick) = rack.next_tick() { now = now.max(tick); }
                           inputs.push(Input::Tick);
                       }
                       Step::Links(n) if n < 3 => inputs.push(Input::LinkUp(n.into())),
                       Step::Links(n) => inputs.push(Input::LinkDown((n - 3).into())),
                       Step::Ask(address, c, kind) => {
                           let (client, length) = (client(c), LEASE);
                           let kind = match kind {
                               0 => WriteKind::Reclaim { client, silent: address % 2 == 0 },
                               1 => WriteKind::Quarantine { length },
                               2 => WriteKind::Release { client },
                               3 => WriteKind::Yield,
                               _ => WriteKind::Grant { client, lease: LEASE, hostname: "".into() },
                           };
                           ticket += 1;
                           open.insert(ticket);
                           let write = Write { epoch: Epoch(epoch), ..write(address, kind) };
                           inputs.push(Input::Request { ticket, write });
                       }
                       Step::Answer(index, how) => {
                           if !calls.is_empty() {
                               let call = calls.remove(usize::from(index) % calls.len());
                               inputs.push(answer(call, how, &mut epoch));
                           }
                       }
                       Step::Spool(true) => inputs.extend(fsyncs.drain(..).map(|seq| Input::SpoolDurable { seq })),
                       Step::Spool(false) => { fsyncs.clear(); inputs.push(Input::SpoolFailed) }
                       Step::Doubt => inputs.push(Input::ClocksDisagree),
                       Step::VlansChange => inputs.push(Input::LinksChanged),
                   }
                   while let Some(input) = inputs.pop() {
                       let mut out = vec![];
                       rack.handle(now, input, &mut out);
                       for action in out {
                           match action {
                               Action::Reply { ticket, outcome, .. } => {
                                   prop_assert!(open.remove(&ticket), "{ticket} answered twice");
                                   let promise = matches!(outcome, Outcome::Durable { .. });
    prop_assert!(rack.mode() != Mode::Mute || !promise);
                               }
                               Action::SendBatch { call, batch, .. } => {
                                   prop_assert!((1..=512).contains(&batch.writes.len()));
                                   calls.push(Call::Batch(call, batch.writes.len()));
                               }
                               Action::SendHeartbeat { call, .. } => calls.push(Call::Beat(call)),
                               Action::SendAttach { call, .. } => calls.push(Call::Attach(call)),
                               Action::AppendSpool(entry) => fsyncs.push(entry.seq),
                               Action::ResetSpool => inputs.push(Input::SpoolReplaced { spool_id: SPOOL, seq: 0 }),
                               _ => {}
                           }
                       }
                       if let Some(tick) = rack.next_tick() {
                           prop_assert!(tick > now, "a tick at {tick:?} is due at {now:?}: {rack:?}");
                       }
                   }
               }
               prop_assert!(open.is_empty(), "{open:?} never answered: {rack:?}");
               prop_assert_eq!(rack.mode(), Mode::Attached, "{:?}", rack);
           }
       }

    fn answer(call: Call, how: u8, epoch: &mut u64) -> Input {
        match call {
            Call::Batch(call, rows) => {
                let outcome = match how {
                    0..=2 => Outcome::Durable {
                        remaining: 2 * LEASE,
                    },
                    3 => Outcome::Done,
                    4 => Outcome::Refused(Refusal::OtherClient),
                    5 => Outcome::Refused(Refusal::NotEnded),
                    6 => Outcome::Refused(Refusal::StaleEpoch),
                    _ => {
                        return Input::BatchAnswer {
                            call,
                            outcomes: None,
                        };
                    }
                };
                Input::BatchAnswer {
                    call,
                    outcomes: Some(vec![outcome; rows]),
                }
            }
            Call::Beat(call) => {
                let reply = match how {
                    0..=4 => Some(HeartbeatReply::Until(UNTIL)),
                    5 => Some(HeartbeatReply::Attach),
                    6 => Some(HeartbeatReply::Wait),
                    _ => None,
                };
                Input::HeartbeatAnswer { call, reply }
            }
            Call::Attach(call) => {
                let reply = match how {
                    0..=5 => {
                        *epoch += 1;
                        let rows = vec![row(70, 1, 10_000), row(71, 2, -10_000)];
                        Some(AttachReply::Attached(Attachment {
                            until: UNTIL,
                            blocks: vec![block(*epoch)],
                            rows,
                        }))
                    }
                    6 => Some(AttachReply::Wait),
                    _ => None,
                };
                Input::AttachAnswer { call, reply }
            }
        }
    }
}
