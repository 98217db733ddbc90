//! The subscription to the feed, which comes over one link at a time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use rpc::muster_capnp::feed_sink;

use super::{Happening, Link, Thread};
use crate::link::feed::Feed;
use crate::link::region::Shared;

const SUBSCRIBE_TIME: Duration = Duration::from_secs(10);

impl Thread {
    pub(super) fn subscribe(&mut self) {
        let Some((&link, Link { session, .. })) = self.links.first_key_value() else {
            return;
        };
        self.subscriptions += 1;
        let subscription = self.subscriptions;
        let sink = Sink {
            feed: Rc::clone(&self.feed),
            shared: Rc::clone(&self.shared),
            subscription,
        };
        let sink: feed_sink::Client = capnp_rpc::new_client(sink);
        let mut request = session.subscribe_request();
        request.get().set_sink(sink);
        self.subscribed = Some(subscription);
        let shared = Rc::clone(&self.shared);
        self.calls.spawn_local(async move {
            let answer = tokio::time::timeout(SUBSCRIBE_TIME, request.send().promise).await;
            if !matches!(answer, Ok(Ok(_))) {
                tracing::warn!(link, "subscribing to the feed failed");
                shared.tell(Happening::FeedEnded { subscription });
            }
        });
    }

    pub(super) fn send_letters(&mut self) {
        if self
            .letters
            .as_ref()
            .is_some_and(|task| !task.is_finished())
            || self.feed.borrow().letters.is_empty()
        {
            return;
        }
        let (feed, fills) = (Rc::clone(&self.feed), self.ports.fills.clone());
        self.letters = Some(tokio::task::spawn_local(async move {
            loop {
                let letter = feed.borrow_mut().letters.pop_front();
                let Some(letter) = letter else { break };
                if fills.send(letter).await.is_err() {
                    break;
                }
            }
        }));
    }
}

/// Takes the feed's parts; the region lets go of it when the subscription or the link ends.
struct Sink {
    feed: Rc<RefCell<Feed>>,
    shared: Rc<Shared>,
    subscription: u64,
}

impl feed_sink::Server for Sink {
    async fn snapshot(
        self: Rc<Self>,
        params: feed_sink::SnapshotParams,
        _: feed_sink::SnapshotResults,
    ) -> Result<(), capnp::Error> {
        let changed = self
            .feed
            .borrow_mut()
            .on_snapshot(params.get()?.get_part()?)?;
        self.shared.tell(Happening::FeedChanged(changed));
        Ok(())
    }

    async fn delta(
        self: Rc<Self>,
        params: feed_sink::DeltaParams,
        _: feed_sink::DeltaResults,
    ) -> Result<(), capnp::Error> {
        let changed = self.feed.borrow_mut().on_delta(params.get()?.get_part()?)?;
        self.shared.tell(Happening::FeedChanged(changed));
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.tell(Happening::FeedEnded {
            subscription: self.subscription,
        });
    }
}
