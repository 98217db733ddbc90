//! The protocol's values as a person wants to read them in a trace.

use std::fmt::Write as _;

use lease::rack::{Action, Input};
use lease::{AttachReply, Attachment, Batch, Outcome, Refusal, Write, WriteKind};

use crate::message::client_of;

fn client(client: &lease::Client) -> usize {
    match client.key {
        lease::ClientKey::Mac(mac) => client_of(mac),
        _ => usize::MAX,
    }
}

pub(crate) fn write(write: &Write) -> String {
    let what = match &write.kind {
        WriteKind::Grant { client: of, .. } => format!("grant to {}", client(of)),
        WriteKind::Extend { client: of, .. } => format!("extend for {}", client(of)),
        WriteKind::Reclaim { client: of, silent } => {
            let how = if *silent { "take back" } else { "reclaim" };
            format!("{how} from {}", client(of))
        }
        WriteKind::Release { client: of } => format!("release by {}", client(of)),
        WriteKind::Quarantine { length } => format!("quarantine for {length:?}"),
        WriteKind::Yield => "yield".into(),
    };
    format!(
        "{} {what} (block {} epoch {})",
        write.address, write.block.0, write.epoch.0
    )
}

pub(crate) fn batch(batch: &Batch) -> String {
    let mut text = format!("{:x}", batch.key.seq);
    if batch.drained {
        text.push_str(" drained");
    }
    for write in &batch.writes {
        let _ = write!(text, ", {}", self::write(write));
    }
    text
}

pub(crate) fn outcomes(outcomes: &[Outcome]) -> String {
    let words: Vec<String> = outcomes.iter().map(outcome).collect();
    words.join(", ")
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Durable { remaining } => format!("durable for {remaining:?}"),
        Outcome::Refused(Refusal::Mute) => "refused by the rack itself".into(),
        other => format!("{other:?}"),
    }
}

pub(crate) fn attach_reply(reply: &AttachReply) -> String {
    match reply {
        AttachReply::Attached(attachment) => attached(attachment),
        other => format!("{other:?}"),
    }
}

fn attached(attachment: &Attachment) -> String {
    let Attachment {
        until,
        blocks,
        rows,
    } = attachment;
    let mut text = format!("until {until:?}");
    for block in blocks {
        let _ = write!(text, ", block {} epoch {}", block.id.0, block.epoch.0);
    }
    for row in rows {
        let whose = row.client.as_ref().map(client);
        let _ = write!(
            text,
            ", {} of {whose:?} for {} ms",
            row.address, row.remaining_ms
        );
        if !row.quarantine.is_zero() {
            let _ = write!(text, " rests {:?}", row.quarantine);
        }
    }
    text
}

/// None: not worth a line.
pub(crate) fn input(input: &Input) -> Option<String> {
    Some(match input {
        Input::Request { ticket, write } => format!("{ticket} wants {}", self::write(write)),
        Input::BatchAnswer {
            call,
            outcomes: Some(list),
        } => {
            format!("call {call}: {}", outcomes(list))
        }
        Input::AttachAnswer {
            call,
            reply: Some(reply),
        } => {
            format!("call {call}: {}", attach_reply(reply))
        }
        Input::HeartbeatAnswer {
            reply: Some(lease::HeartbeatReply::Until(_)),
            ..
        }
        | Input::Tick => {
            return None;
        }
        other => format!("{other:?}"),
    })
}

/// None: not worth a line.
pub(crate) fn action(action: &Action) -> Option<String> {
    Some(match action {
        Action::SendBatch { call, link, batch } => {
            format!("call {call} on link {link}: batch {}", self::batch(batch))
        }
        Action::SendAttach {
            call,
            link,
            spool_seq,
            ..
        } => {
            format!("call {call} on link {link}: attach {spool_seq:x}")
        }
        Action::SendHeartbeat { .. } | Action::Until(_) => return None,
        Action::AppendSpool(entry) => format!("spool {:x}: {}", entry.seq, write(&entry.write)),
        Action::RemoveSpool { seqs } => format!("no more in the spool: {seqs:x?}"),
        Action::Reply {
            ticket, outcome, ..
        } => format!("{ticket}: {}", self::outcome(outcome)),
        Action::Attached { until, .. } => format!("attached until {until:?} of its clock"),
        Action::Alarm(alarm) => format!("ALARM {alarm}"),
        other => format!("{other:?}"),
    })
}
