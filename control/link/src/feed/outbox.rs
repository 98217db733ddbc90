//! One rack's queue of the feed, and the task that empties it: a part at a time, each answered before the next.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use capnp::Error;
use rpc::muster_capnp::{feed_part, feed_sink};
use tokio::sync::Notify;

use super::values::Item;
use crate::counters::{Counters, count};

/// Machines' worth (`Item::weight`) in one part: about 200 KiB.
const PART_WEIGHT_MAX: usize = 256;
/// Items waiting for one rack in deltas; past it the rack gets a new snapshot.
const DELTA_ITEMS_MAX: usize = 50_000;
/// A rack takes a part within this or loses its subscription.
const PART_TIME: Duration = Duration::from_secs(30);

/// What changed for one rack in one pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta {
    pub items: Vec<Rc<Item>>,
    pub removed: Vec<String>,
}

enum Entry {
    Snapshot(Vec<Rc<Item>>, u64),
    Delta(Delta, u64),
}

/// Filled by the publisher, emptied by `send`.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: RefCell<VecDeque<Entry>>,
    /// Items in queued deltas.
    waiting: RefCell<usize>,
    filled: Notify,
}

impl Outbox {
    /// Whatever was waiting is in the snapshot.
    pub fn snapshot(&self, items: Vec<Rc<Item>>, watermark: u64) {
        let mut queue = self.queue.borrow_mut();
        queue.clear();
        *self.waiting.borrow_mut() = 0;
        queue.push_back(Entry::Snapshot(items, watermark));
        self.filled.notify_one();
    }

    /// `false`: too much is waiting; the queue is empty now, and only a snapshot helps.
    pub fn delta(&self, delta: Delta, watermark: u64) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let mut queue = self.queue.borrow_mut();
        *waiting += delta.items.len() + delta.removed.len();
        if *waiting > DELTA_ITEMS_MAX {
            queue.clear();
            *waiting = 0;
            return false;
        }
        queue.push_back(Entry::Delta(delta, watermark));
        self.filled.notify_one();
        true
    }

    async fn next(&self) -> Entry {
        loop {
            if let Some(entry) = self.queue.borrow_mut().pop_front() {
                if let Entry::Delta(delta, _) = &entry {
                    *self.waiting.borrow_mut() -= delta.items.len() + delta.removed.len();
                }
                return entry;
            }
            self.filled.notified().await;
        }
    }

    fn has_snapshot(&self) -> bool {
        matches!(self.queue.borrow().front(), Some(Entry::Snapshot(..)))
    }
}

/// Sends until the sink fails; the reason is for the log.
pub(crate) async fn send(
    outbox: Rc<Outbox>,
    sink: feed_sink::Client,
    counters: &Counters,
) -> Error {
    let mut place = Place {
        generation: rand::random(),
        sequence: 0,
    };
    loop {
        let sent = match outbox.next().await {
            Entry::Snapshot(items, watermark) => {
                count(&counters.feed_snapshots);
                place = Place {
                    generation: place.generation.wrapping_add(1),
                    sequence: 0,
                };
                send_snapshot(&outbox, &sink, &mut place, &items, watermark, counters).await
            }
            Entry::Delta(delta, watermark) => {
                send_delta(&sink, &mut place, &delta, watermark, counters).await
            }
        };
        if let Err(error) = sent {
            return error;
        }
    }
}

/// Where in the stream a part stands.
struct Place {
    generation: u64,
    sequence: u64,
}

async fn send_snapshot(
    outbox: &Outbox,
    sink: &feed_sink::Client,
    place: &mut Place,
    items: &[Rc<Item>],
    watermark: u64,
    counters: &Counters,
) -> Result<(), Error> {
    let mut rest = items;
    loop {
        let part = split_part(&mut rest);
        let mut request = sink.snapshot_request();
        put_part(
            place,
            part,
            &[],
            watermark,
            rest.is_empty(),
            request.get().init_part(),
        );
        count(&counters.feed_parts);
        within(request.send().promise).await?;
        if rest.is_empty() {
            return Ok(());
        }
        if outbox.has_snapshot() {
            // A newer one is waiting: the rack drops this one's parts when that begins.
            return Ok(());
        }
    }
}

async fn send_delta(
    sink: &feed_sink::Client,
    place: &mut Place,
    delta: &Delta,
    watermark: u64,
    counters: &Counters,
) -> Result<(), Error> {
    let mut rest = &delta.items[..];
    let mut removed = &delta.removed[..];
    // Removals first: a key that came back in the same pass is in the items.
    while !rest.is_empty() || !removed.is_empty() {
        let gone;
        (gone, removed) = removed.split_at(removed.len().min(PART_WEIGHT_MAX));
        let part = if removed.is_empty() {
            split_part(&mut rest)
        } else {
            &[]
        };
        let mut request = sink.delta_request();
        put_part(
            place,
            part,
            gone,
            watermark,
            false,
            request.get().init_part(),
        );
        count(&counters.feed_parts);
        within(request.send().promise).await?;
    }
    Ok(())
}

/// Takes one part's items off the front: at least one, if there is one.
fn split_part<'a>(rest: &mut &'a [Rc<Item>]) -> &'a [Rc<Item>] {
    let mut weight = 0;
    let mut fits = 0;
    for item in rest.iter() {
        weight += item.weight();
        if fits > 0 && weight > PART_WEIGHT_MAX {
            break;
        }
        fits += 1;
    }
    let (part, left) = rest.split_at(fits);
    *rest = left;
    part
}

fn put_part(
    place: &mut Place,
    items: &[Rc<Item>],
    removed: &[String],
    watermark: u64,
    complete: bool,
    mut builder: feed_part::Builder<'_>,
) {
    place.sequence += 1;
    builder.set_generation(place.generation);
    builder.set_sequence(place.sequence);
    builder.set_watermark(watermark);
    builder.set_complete(complete);
    let mut list = builder.reborrow().init_items(items.len() as u32);
    for (i, item) in items.iter().enumerate() {
        item.put(list.reborrow().get(i as u32));
    }
    let mut list = builder.init_removed(removed.len() as u32);
    for (i, key) in removed.iter().enumerate() {
        list.set(i as u32, key);
    }
}

async fn within<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<(), Error> {
    match tokio::time::timeout(PART_TIME, answer).await {
        Ok(answer) => answer.map(|_| ()),
        Err(_) => Err(Error::overloaded(
            "the rack took too long to take a part".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::feed::FileValue;

    fn loader(n: usize) -> Rc<Item> {
        Rc::new(Item::Loader {
            path: n.to_string(),
            sha256: vec![],
        })
    }

    #[test]
    fn parts_are_bounded_and_lose_nothing() {
        let pieces = vec![vec![0; 32]; 16 * 300];
        let file = FileValue {
            sha256: vec![],
            size_bytes: 0,
            piece_bytes: 0,
            pieces,
        };
        let big = Rc::new(Item::File {
            file,
            prefetch: false,
        });
        let mut items: Vec<_> = (0..600).map(loader).collect();
        items.insert(10, big);
        let mut rest = &items[..];
        let mut sizes = Vec::new();
        while !rest.is_empty() {
            sizes.push(split_part(&mut rest).len());
        }
        assert_eq!(sizes, [10, 1, 256, 256, 78]);
    }

    #[test]
    fn a_rack_that_is_too_slow_starts_over() {
        let outbox = Outbox::default();
        let half = Delta {
            items: (0..DELTA_ITEMS_MAX / 2).map(loader).collect(),
            removed: vec![],
        };
        assert!(outbox.delta(half.clone(), 1));
        assert!(outbox.delta(half.clone(), 2));
        assert!(!outbox.delta(
            Delta {
                items: vec![],
                removed: vec!["x".into()]
            },
            3
        ));
        outbox.snapshot(vec![], 4);
        assert!(outbox.delta(half, 5));
        assert!(outbox.has_snapshot());
    }
}
