//! What shards ask of a region and tell it: boot configurations and events.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shard::{BootAnswer, Rate, ToShard};

use super::{Happening, REPORT_TIME, Thread};
use crate::attest::Unclear;
use crate::link::boots::{self, Ask, Call, Key};
use crate::link::events::Lane;
use crate::link::{machine, wire};
use crate::rarely::Rarely;

const BOOT_TIME: Duration = Duration::from_secs(2);
/// Events that name what their client asked for, which it chose itself.
const REQUESTS: [&str; 4] = [
    "BOOT_PARAMETERS",
    "BOOT_CONFIG",
    "LOADER_SERVED",
    "IMAGE_SERVED",
];
/// Questions to the kernel for events' sake: each takes some tens of microseconds of this thread.
pub(super) const NEIGHBOURS_ASKED: Rate = Rate {
    burst: 256,
    every: Duration::from_millis(5),
};

impl Thread {
    /// Whose event it is, as far as that is no matter of what its sender wrote: a message of DHCP is its card's, and a
    /// request its address's.
    pub(super) fn on_event(&mut self, mut event: shard::Event) {
        let now = Instant::now();
        let by_address = REQUESTS.contains(&event.kind) || event.mac.is_none();
        let of = match by_address {
            false => event.mac,
            true => self.attester.given(event.address, now).or_else(|| {
                let may = self.neighbours_asked.take(NEIGHBOURS_ASKED, now);
                let found = may.then(|| self.attester.card(event.address, now));
                // An event without its card is one all the same.
                found.and_then(Result::ok).flatten()
            }),
        };
        let is_machine = |mac| self.feed.borrow().snapshot().machine_by_mac(&mac).is_some();
        let lane = match of.is_some_and(is_machine) {
            true => Lane::Machine,
            false => Lane::Stranger,
        };
        event.mac = event.mac.or(of);
        self.events.push(event, lane, now);
    }

    pub(super) fn on_boot_query(&mut self, shard: usize, ticket: u64, mut query: shard::BootQuery) {
        let (asker, now) = ((shard, ticket), Instant::now());
        // Outside our subnets no region has anything that boots through this rack.
        if query.vlan == 0 {
            return self.answer_boot(asker, BootAnswer::Nothing);
        }
        // The neighbour table is asked only where nothing else says whose address it is.
        let bound = self.attester.given(query.address, now);
        let lane = match (query.mac, bound) {
            (Some(asked), Some(bound)) if asked == bound => boots::Lane::Own,
            (None, Some(_)) => boots::Lane::Own,
            _ => boots::Lane::Stranger,
        };
        let mac = query.mac.or(bound);
        if mac.is_none() && !self.boots.takes_stranger(query.address) {
            return self.answer_boot(asker, BootAnswer::Busy);
        }
        let mac = match mac {
            Some(mac) => mac,
            None => match self.attester.card(query.address, now) {
                Ok(Some(mac)) => mac,
                Ok(None) => return self.answer_boot(asker, BootAnswer::Nothing),
                // "Nothing boots there" would be believed, and kept.
                Err(Unclear) => return self.answer_boot(asker, BootAnswer::Busy),
            },
        };
        if query.arch.is_empty() {
            query.arch = self.archs.of(mac, query.address).to_owned();
        }
        let key = Key {
            mac,
            arch: query.arch.clone(),
            vlan: query.vlan,
        };
        match self.boots.ask(Call { key, query }, lane, asker, now) {
            Ask::Call(call) => self.call_boot(&call),
            Ask::Later => {}
            Ask::Refused => self.answer_boot(asker, BootAnswer::Busy),
        }
    }

    pub(super) fn answer_boot(&mut self, (shard, ticket): boots::Asker, answer: BootAnswer) {
        self.shards.send(shard, ToShard::Machine { ticket, answer });
    }

    pub(super) fn call_boot(&mut self, call: &Call) {
        let (shared, key) = (Rc::clone(&self.shared), call.key.clone());
        let Some(session) = self.session() else {
            let answer = BootAnswer::Busy;
            return shared.tell(Happening::Machine { key, answer });
        };
        let mut request = session.boot_config_request();
        wire::put_query(&call.query, key.mac, request.get().init_query());
        self.calls.spawn_local(async move {
            let answer = async {
                let answer = request.send().promise.await?;
                machine::read(answer.get()?.get_machine()?)
            };
            let answer = match tokio::time::timeout(BOOT_TIME, answer).await {
                Ok(Ok(machine)) => BootAnswer::Machine(Arc::new(machine)),
                Ok(Err(error)) => {
                    static RARELY: Rarely = Rarely::new();
                    if let Some(left_out) = RARELY.may(Instant::now()) {
                        tracing::warn!(%error, left_out, "bootConfig");
                    }
                    BootAnswer::Busy
                }
                Err(_) => BootAnswer::Busy,
            };
            shared.tell(Happening::Machine { key, answer });
        });
    }

    pub(super) fn report(&mut self, batch: Vec<shard::Event>) {
        let Some(session) = self.session() else {
            return self.events.finish(false, Instant::now());
        };
        let mut request = session.report_request();
        let mut list = request.get().init_events(batch.len() as u32);
        let now = Instant::now();
        for (i, event) in batch.iter().enumerate() {
            wire::put_event(event, now, list.reborrow().get(i as u32));
        }
        let shared = Rc::clone(&self.shared);
        self.calls.spawn_local(async move {
            let answer = tokio::time::timeout(REPORT_TIME, request.send().promise).await;
            shared.tell(Happening::Reported {
                taken: matches!(answer, Ok(Ok(_))),
            });
        });
    }
}
