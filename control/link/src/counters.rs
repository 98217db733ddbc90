//! What the link counts: every limit met, every connection ended early.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($name:ident: $text:literal,)*) => {
        /// Only grow, from the start of the process.
        #[derive(Debug, Default)]
        pub struct Counters { $(#[doc = $text] pub $name: AtomicU64,)* }

        impl Counters {
            /// (name, what it counts, value)
            pub fn read(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $text, self.$name.load(Relaxed)),)*]
            }
        }
    };
}

counters! {
    accepted: "connections accepted",
    refused_full: "connections refused because there were too many",
    refused_often: "connections of unknown addresses refused because they came too often",
    handshakes_delayed: "TLS handshakes of unknown addresses that waited, as too many came from all of them",
    displaced: "connections without a certificate that gave way to newer ones",
    hello_late: "connections with a certificate closed because no hello came in time",
    handshake_failed: "TLS handshakes that failed or took too long",
    malformed: "connections closed because of bytes that are no valid message",
    panicked: "connections closed because their handler panicked",
    revoked: "connections closed or refused because of a certificate that stands no longer",
    silent: "connections closed because the rack did not answer a ping",
    anonymous_expired: "connections without a certificate closed at their time limit",
    enrolled: "racks enrolled",
    enrolment_refused: "enrolments refused",
    hello: "sessions opened",
    hello_refused: "sessions refused",
    calls_overloaded: "calls refused because too many of their connection, or of their kind, were under way",
    calls_late: "calls that ran into their deadline",
    power_calls: "power operations sent to racks",
    power_late: "power operations without a report in time",
    lease_batches: "batches of lease writes taken",
    lease_writes: "lease writes taken",
    lease_refused: "lease writes refused",
    events: "rack events stored",
    events_repeated: "rack events left out as repeats",
    events_limited: "rack events left out because the rack told too many",
    events_unknown: "rack events of an unknown type",
    feed_snapshots: "whole snapshots sent to racks",
    feed_parts: "feed parts sent to racks",
    feed_behind: "subscriptions started over because the rack took parts too slowly",
    feed_errors: "feed passes that failed",
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Relaxed);
}
