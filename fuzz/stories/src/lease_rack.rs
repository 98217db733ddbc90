//! The rack's lease machine under arbitrary inputs: answers that are late, wrong, repeated or missing, links that come
//! and go, a spool that fails.
//!
//! What is checked: no panic; every ticket is answered once; what is called durable was said to be, by a region or the
//! spool, in this very step; sequence numbers are never used twice; limits hold; and time alone never makes it spin.
//! Uniqueness of addresses is the business of the exhaustive search in `schema/lease` and of the simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use arbitrary::Unstructured;
use lease::rack::{
    Action, Boottime, CallId, Input, LinkId, Mode, QUEUE_ROWS_MAX, Rack, SPOOL_ENTRIES_MAX, Start,
    Ticket,
};
use lease::spool::{Entry, first_seq};
use lease::{
    AttachReply, Attachment, BATCH_ROWS_MAX, Batch, BatchKey, Block, BlockId, Client, ClientKey,
    Epoch, HeartbeatReply, Outcome, Refusal, Row, SpoolId, Write, WriteKind,
};

use crate::{one_of, pick};

const STEPS_MAX: u32 = 400;
const LINKS_MAX: usize = 4;
const VLAN: u32 = 5001;

/// Arbitrary inputs, in time order.
pub fn lease_rack(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let mut story = Story::new(&mut input);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let next = story.choose(&mut input);
        for next in next {
            story.tell(next);
        }
    }
    story.end();
}

enum Call {
    Batch(usize),
    Heartbeat,
    Attach,
}

struct Story {
    rack: Rack,
    now: Boottime,
    spool_id: SpoolId,
    spools: u8,
    links: Vec<LinkId>,
    links_seen: LinkId,
    /// Asked and not answered.
    open: BTreeMap<Ticket, Write>,
    tickets: Ticket,
    /// Sent and not answered; answers to calls of dead links are allowed, too.
    calls: Vec<(CallId, Call)>,
    calls_seen: CallId,
    sent: BTreeMap<BatchKey, Batch>,
    seqs: BTreeSet<(SpoolId, u64)>,
    /// Handed out to be fsynced.
    appending: Vec<u64>,
    /// The machine wants a fresh file: with the same id, or a new one.
    wants_reset: bool,
    wants_replacement: bool,
    epoch: u64,
    out: Vec<Action>,
}

impl Story {
    fn new(input: &mut Unstructured<'_>) -> Self {
        let spool_id = SpoolId([0; 16]);
        let entries: Vec<Entry> = (0..pick(input, 4))
            .map(|n| Entry {
                seq: u64::from(1 + n),
                write: write(input, 0),
            })
            .collect();
        let seqs = entries.iter().map(|entry| (spool_id, entry.seq)).collect();
        let start = Start {
            spool_id,
            seq: first_seq(1),
            entries,
        };
        Self {
            rack: Rack::new(start),
            now: Duration::ZERO,
            spool_id,
            spools: 0,
            links: vec![],
            links_seen: 0,
            open: BTreeMap::new(),
            tickets: 0,
            calls: vec![],
            calls_seen: 0,
            sent: BTreeMap::new(),
            seqs,
            appending: vec![],
            wants_reset: false,
            wants_replacement: false,
            epoch: 0,
            out: vec![],
        }
    }

    // ---------------------------------------------------------------- what happens

    fn choose(&mut self, input: &mut Unstructured<'_>) -> Vec<Input> {
        match pick(input, 20) {
            0 if self.links.len() < LINKS_MAX => {
                self.links_seen += 1;
                self.links.push(self.links_seen);
                vec![Input::LinkUp(self.links_seen)]
            }
            1 if pick(input, 3) == 0 => {
                let links = self.links.len() as u32;
                if links == 0 {
                    return vec![];
                }
                let link = self.links.swap_remove(pick(input, links) as usize);
                vec![Input::LinkDown(link)]
            }
            2..=6 => vec![self.request(input)],
            7 => {
                // Now and then more than the queue takes.
                let count = match pick(input, 64) {
                    63 => QUEUE_ROWS_MAX + 10,
                    n => [2, 20, 40, 600][n as usize / 16],
                };
                (0..count).map(|_| self.request(input)).collect()
            }
            8..=12 => self.answer(input).into_iter().collect(),
            13 => {
                let appending = self.appending.len() as u32;
                if appending == 0 || pick(input, 10) == 0 {
                    let seq = first_seq(1) + u64::from(pick(input, 20));
                    self.appending.retain(|known| *known != seq);
                    return vec![Input::SpoolDurable { seq }];
                }
                let seq = self.appending.swap_remove(pick(input, appending) as usize);
                vec![Input::SpoolDurable { seq }]
            }
            14 => self.spool(input).into_iter().collect(),
            15 => vec![one_of(input, &[Rare::Clocks, Rare::View, Rare::Tick]).input()],
            16 | 17 => {
                // As a caller does: called at the deadline.
                self.now = self.now.max(self.rack.next_tick().unwrap_or(self.now));
                vec![Input::Tick]
            }
            18 => {
                self.now += Duration::from_millis(input.arbitrary::<u16>().unwrap_or(1).into());
                vec![Input::Tick]
            }
            _ => {
                let secs = one_of(input, &[1, 5, 61, 700, 90_000]);
                self.now += Duration::from_secs(secs);
                vec![]
            }
        }
    }

    fn request(&mut self, input: &mut Unstructured<'_>) -> Input {
        self.tickets += 1;
        let write = write(input, self.epoch);
        self.open.insert(self.tickets, write.clone());
        Input::Request {
            ticket: self.tickets,
            write,
        }
    }

    fn spool(&mut self, input: &mut Unstructured<'_>) -> Option<Input> {
        if pick(input, 4) == 0 {
            return Some(Input::SpoolFailed);
        }
        if self.wants_replacement {
            self.wants_replacement = false;
            self.spools += 1;
            self.spool_id = SpoolId([self.spools; 16]);
            self.appending.clear();
        } else if !self.wants_reset {
            return None;
        }
        self.wants_reset = false;
        Some(Input::SpoolReplaced {
            spool_id: self.spool_id,
            seq: first_seq(1 + u32::from(self.spools)),
        })
    }

    fn answer(&mut self, input: &mut Unstructured<'_>) -> Option<Input> {
        let open = self.calls.len() as u32;
        if open == 0 {
            return None;
        }
        let (call, kind) = self.calls.swap_remove(pick(input, open) as usize);
        let fails = pick(input, 6) == 0;
        Some(match kind {
            Call::Heartbeat => Input::HeartbeatAnswer {
                call,
                reply: (!fails).then(|| match pick(input, 8) {
                    0 => HeartbeatReply::Attach,
                    1 => HeartbeatReply::Wait,
                    _ => HeartbeatReply::Until(length(input)),
                }),
            },
            Call::Attach => Input::AttachAnswer {
                call,
                reply: (!fails).then(|| match pick(input, 10) {
                    0 => AttachReply::Wait,
                    1 => AttachReply::Behind,
                    _ => {
                        self.epoch += 1;
                        AttachReply::Attached(attachment(input, self.epoch))
                    }
                }),
            },
            Call::Batch(rows) => {
                let rows = match pick(input, 12) {
                    0 => rows.saturating_sub(1),
                    1 => rows + 1,
                    _ => rows,
                };
                Input::BatchAnswer {
                    call,
                    outcomes: (!fails).then(|| (0..rows).map(|_| outcome(input)).collect()),
                }
            }
        })
    }

    // ---------------------------------------------------------------- what it does

    fn tell(&mut self, input: Input) {
        let confirms = matches!(
            input,
            Input::SpoolDurable { .. }
                | Input::BatchAnswer {
                    outcomes: Some(_),
                    ..
                }
        );
        let ticks = input == Input::Tick;
        let mut out = std::mem::take(&mut self.out);
        self.rack.handle(self.now, input, &mut out);
        for action in out.drain(..) {
            self.check(action, confirms);
        }
        self.out = out;
        assert!(self.rack.queued() <= QUEUE_ROWS_MAX);
        assert!(self.rack.spooled() <= SPOOL_ENTRIES_MAX);
        if self.rack.mode() == Mode::Mute {
            assert_eq!((self.rack.until(), self.rack.queued()), (Duration::ZERO, 0));
        }
        if ticks {
            let next = self.rack.next_tick();
            assert!(
                next.is_none_or(|next| next > self.now),
                "due at {next:?} again, at {:?}: it spins",
                self.now
            );
        }
    }

    fn check(&mut self, action: Action, confirms: bool) {
        match action {
            Action::Reply {
                ticket,
                outcome,
                sent,
            } => {
                let write = self.open.remove(&ticket).expect("each ticket once");
                assert!(sent <= self.now);
                if let Outcome::Durable { .. } = outcome {
                    assert!(confirms, "nobody has said that {write:?} is durable");
                }
            }
            Action::SendBatch { call, link, batch } => {
                self.called(call, link);
                assert!((1..=BATCH_ROWS_MAX).contains(&batch.writes.len()));
                assert_eq!(batch.key.spool_id, self.spool_id);
                self.calls.push((call, Call::Batch(batch.writes.len())));
                match self.sent.get(&batch.key) {
                    Some(before) => assert_eq!(before, &batch, "one key, two batches"),
                    None => {
                        self.uses(batch.key.seq);
                        self.sent.insert(batch.key, batch);
                    }
                }
            }
            Action::SendHeartbeat { call, link, .. } => {
                self.called(call, link);
                self.calls.push((call, Call::Heartbeat));
            }
            Action::SendAttach {
                call,
                link,
                spool_id,
                spool_seq,
            } => {
                self.called(call, link);
                assert_eq!(spool_id, self.spool_id);
                self.uses(spool_seq);
                self.calls.push((call, Call::Attach));
            }
            Action::AppendSpool(entry) => {
                assert!(matches!(
                    entry.write.kind,
                    WriteKind::Grant { .. } | WriteKind::Quarantine { .. }
                ));
                self.uses(entry.seq);
                self.appending.push(entry.seq);
            }
            Action::ResetSpool => self.wants_reset = true,
            Action::ReplaceSpool => self.wants_replacement = true,
            Action::Until(until) => assert_eq!(until, self.rack.until()),
            _ => {}
        }
    }

    fn called(&mut self, call: CallId, link: LinkId) {
        assert!(call > self.calls_seen && self.links.contains(&link));
        self.calls_seen = call;
    }

    fn uses(&mut self, seq: u64) {
        assert!(
            self.seqs.insert((self.spool_id, seq)),
            "{seq} is used twice"
        );
    }

    /// After a doubt nobody waits any more.
    fn end(mut self) {
        self.tell(Input::ClocksDisagree);
        assert_eq!(self.rack.mode(), Mode::Mute);
        assert!(self.open.is_empty(), "not answered: {:?}", self.open);
        let counted = self.rack.counters();
        let replies = counted.replies_durable + counted.replies_refused + counted.replies_unknown;
        assert_eq!((counted.requests, replies), (self.tickets, self.tickets));
    }
}

#[derive(Clone, Copy)]
enum Rare {
    Clocks,
    View,
    Tick,
}

impl Rare {
    fn input(self) -> Input {
        match self {
            Self::Clocks => Input::ClocksDisagree,
            Self::View => Input::LinksChanged,
            Self::Tick => Input::Tick,
        }
    }
}

// -------------------------------------------------------------------- values

/// Mostly plausible; the wire carries milliseconds in 64 bits.
fn length(input: &mut Unstructured<'_>) -> Duration {
    match pick(input, 8) {
        0 => Duration::from_millis(input.arbitrary().unwrap_or_default()),
        _ => Duration::from_secs(one_of(input, &[0, 10, 600, 1200, 86_400])),
    }
}

fn address(input: &mut Unstructured<'_>) -> IpAddr {
    match pick(input, 24) {
        0 => IpAddr::from([0u16; 8]),
        1 => Ipv4Addr::BROADCAST.into(),
        last => Ipv4Addr::new(10, 0, 0, 62 + last as u8).into(),
    }
}

fn client(input: &mut Unstructured<'_>) -> Client {
    let key = match pick(input, 6) {
        0 => ClientKey::ClientId([1, 2, 3].into()),
        n => ClientKey::Mac([2, 0, 0, 0, 0, n as u8]),
    };
    Client { vlan: VLAN, key }
}

fn write(input: &mut Unstructured<'_>, epoch: u64) -> Write {
    let kind = match pick(input, 16) {
        0..=8 => WriteKind::Grant {
            client: client(input),
            lease: length(input),
            hostname: "".into(),
        },
        9 | 10 => WriteKind::Reclaim {
            client: client(input),
            silent: input.arbitrary().unwrap_or_default(),
        },
        11 => WriteKind::Quarantine {
            length: length(input),
        },
        12 => WriteKind::Release {
            client: client(input),
        },
        13 | 14 => WriteKind::Extend {
            client: client(input),
            lease: length(input),
        },
        _ => WriteKind::Yield,
    };
    let stale = pick(input, 10) == 0;
    Write {
        block: BlockId(1 + u64::from(pick(input, 10) / 9)),
        epoch: Epoch(epoch.saturating_sub(stale.into())),
        address: address(input),
        kind,
    }
}

fn outcome(input: &mut Unstructured<'_>) -> Outcome {
    const REFUSALS: [Refusal; 7] = [
        Refusal::StaleEpoch,
        Refusal::OtherClient,
        Refusal::NotOwner,
        Refusal::NotFound,
        Refusal::NotEnded,
        Refusal::OutsideBlock,
        Refusal::Mute,
    ];
    match pick(input, 16) {
        0..=9 => Outcome::Durable {
            remaining: length(input),
        },
        10..=12 => Outcome::Done,
        13 => Outcome::Unknown,
        _ => Outcome::Refused(one_of(input, &REFUSALS)),
    }
}

fn attachment(input: &mut Unstructured<'_>, epoch: u64) -> Attachment {
    let block = |id, first: [u8; 4], count| Block {
        id: BlockId(id),
        epoch: Epoch(epoch),
        vlan: VLAN,
        subnet: 1,
        first: Ipv4Addr::from(first).into(),
        count,
    };
    let mut blocks = vec![block(1, [10, 0, 0, 64], 16)];
    match pick(input, 6) {
        0 => blocks.clear(),
        1 => blocks.push(block(2, [10, 0, 0, 80], 4)),
        2 => blocks.push(block(2, [255, 255, 255, 250], u32::MAX)),
        _ => {}
    }
    let rows = (0..pick(input, 8)).map(|_| row(input)).collect();
    Attachment {
        until: length(input),
        blocks,
        rows,
    }
}

fn row(input: &mut Unstructured<'_>) -> Row {
    let client = client(input);
    Row {
        block: BlockId(1 + u64::from(pick(input, 2))),
        address: address(input),
        client: (pick(input, 4) > 0).then_some(client),
        remaining_ms: match pick(input, 4) {
            0 => input.arbitrary().unwrap_or_default(),
            1 => -70_000,
            _ => 600_000,
        },
        quarantine: match pick(input, 4) {
            0 => length(input),
            _ => Duration::ZERO,
        },
        released: pick(input, 2) == 1,
    }
}
