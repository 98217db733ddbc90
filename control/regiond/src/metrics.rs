//! What a region counts of itself: `GET /MAAS/metrics`, in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use gate::Numbers;
use ipnet::IpNet;
use sqlx::PgPool;
use store::lease::usage::Seen;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::listener::Ends;

#[derive(Default)]
pub struct Metrics {
    requests: AtomicU64,
    server_errors: AtomicU64,
    statements: AtomicU64,
}

impl Metrics {
    pub fn text(&self) -> String {
        let lines = [
            (
                "muster_http_requests_total",
                "HTTP requests answered",
                &self.requests,
            ),
            (
                "muster_http_server_errors_total",
                "of these with a 5xx status",
                &self.server_errors,
            ),
            (
                "muster_sql_statements_total",
                "SQL statements executed",
                &self.statements,
            ),
        ];
        let mut text = String::new();
        for (name, help, value) in lines {
            let value = value.load(Ordering::Relaxed);
            text += &format!("# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n");
        }
        text
    }
}

/// What is shared by all who ask: how much of each is held, by how many, and what was refused.
pub fn places(rooms: &[Numbers]) -> String {
    type Value = fn(&Numbers) -> u64;
    let families: [(&str, &str, &str, Value); 6] = [
        ("held", "gauge", "Held now", |room| room.held),
        ("open", "gauge", "of these such as give way", |room| {
            room.open
        }),
        ("sources", "gauge", "Sources that hold some", |room| {
            room.sources
        }),
        ("max", "gauge", "Held at most", |room| room.total),
        ("entered_total", "counter", "Taken", |room| room.entered),
        (
            "displaced_total",
            "counter",
            "Taken away for a newer one",
            |room| room.displaced,
        ),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in families {
        let name = format!("muster_places_{name}");
        text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for room in rooms {
            text += &format!("{name}{{of=\"{}\"}} {}\n", room.name, value(room));
        }
    }
    let name = "muster_places_refused_total";
    text += &format!("# HELP {name} Refused: the source has its share, or all are held\n");
    text += &format!("# TYPE {name} counter\n");
    for room in rooms {
        for (why, value) in [("share", room.refused_source), ("all", room.refused_all)] {
            text += &format!("{name}{{of=\"{}\",why=\"{why}\"}} {value}\n", room.name);
        }
    }
    text
}

/// Counters of one part of the region.
pub fn counters<'a>(
    part: &str,
    counters: impl IntoIterator<Item = (&'a str, &'a str, u64)>,
) -> String {
    let line = |(name, help, value)| {
        let name = format!("muster_{part}_{name}_total");
        format!("# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n")
    };
    counters.into_iter().map(line).collect()
}

/// Whether the page is for this asker: the host itself, and the networks that the operator named.
pub fn is_allowed(ends: &Ends, allowed: &[IpNet]) -> bool {
    let (peer, local) = (
        ends.peer.ip().to_canonical(),
        ends.local.ip().to_canonical(),
    );
    peer.is_loopback() || peer == local || allowed.iter().any(|network| network.contains(&peer))
}

/// How many machines have a power that can be asked for, and of how many it was last seen three intervals ago.
pub async fn power(pool: &PgPool, every: Duration) -> String {
    let seen = async { store::bmc::seen(&mut *pool.acquire().await?, 3 * every).await };
    let (machines, stale) = match seen.await {
        Ok(seen) => seen,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "reading how old power states are");
            return "# the power states could not be read\n".to_owned();
        }
    };
    let gauge = |name: &str, help: &str, value: i64| {
        format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n")
    };
    gauge(
        "muster_power_machines",
        "Machines whose power can be asked for",
        machines,
    ) + &gauge(
        "muster_power_stale",
        "of these last seen longer than three sweeps ago",
        stale,
    )
}

/// Gauges of the dynamic ranges, as housekeeping last counted them. Without a database: a line that says so.
pub async fn ranges(pool: &PgPool) -> String {
    let seen = async { store::lease::usage::seen(&mut *pool.acquire().await?).await };
    let ranges = match seen.await {
        Ok(ranges) => ranges,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "reading how full ranges are"
            );
            return "# the ranges could not be read\n".to_owned();
        }
    };
    type Gauge = (&'static str, &'static str, fn(&Seen) -> i64);
    let gauges: [Gauge; 3] = [
        (
            "muster_range_addresses",
            "Addresses of a dynamic range",
            |seen| seen.total,
        ),
        ("muster_range_bound", "of these leased", |seen| seen.bound),
        (
            "muster_range_resting",
            "of these declined or quarantined",
            |seen| seen.resting,
        ),
    ];
    let mut text = String::new();
    for (name, help, value) in gauges {
        text += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        for seen in &ranges {
            let Seen {
                range_id,
                start_ip,
                end_ip,
                ..
            } = seen;
            text += &format!(
                "{name}{{range=\"{range_id}\",first=\"{start_ip}\",last=\"{end_ip}\"}} {}\n",
                value(seen)
            );
        }
    }
    text
}

/// Counts every request of the listener it wraps.
pub async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    metrics.requests.fetch_add(1, Ordering::Relaxed);
    if response.status().is_server_error() {
        metrics.server_errors.fetch_add(1, Ordering::Relaxed);
    }
    response
}

/// sqlx logs each statement it has executed as an event of this target; we only count them.
pub struct StatementCounter(pub Arc<Metrics>);

pub const STATEMENT_TARGET: &str = "sqlx::query";

impl<S: Subscriber> Layer<S> for StatementCounter {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == STATEMENT_TARGET {
            self.0.statements.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_metrics_are_for_this_host_and_the_networks_that_the_operator_named() {
        let allowed = ["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for (peer, local, want) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("::1", "::1", true),
            ("10.9.0.1", "10.9.0.1", true),
            ("10.9.0.2", "10.9.0.1", false),
            ("10.1.2.3", "10.9.0.1", true),
            ("::ffff:10.1.2.3", "::ffff:10.9.0.1", true),
            ("fd12::1", "fd12::2", true),
            ("2001:db8::1", "2001:db8::2", false),
        ] {
            let end = |address: &str| (address.parse::<std::net::IpAddr>().unwrap(), 1).into();
            let (peer_end, local) = (end(peer), end(local));
            let ends = Ends {
                peer: peer_end,
                local,
            };
            assert_eq!(is_allowed(&ends, &allowed), want, "{peer}");
            let strict = peer_end.ip().is_loopback() || peer_end.ip() == local.ip();
            assert_eq!(is_allowed(&ends, &[]), strict, "{peer}, nothing named");
        }
    }

    #[test]
    fn every_place_and_counter_is_on_the_page() {
        let room = Numbers {
            name: "things",
            held: 3,
            refused_source: 2,
            ..Numbers::default()
        };
        let text = places(&[room]);
        assert!(
            text.contains("muster_places_held{of=\"things\"} 3\n"),
            "{text}"
        );
        let refused = "muster_places_refused_total{of=\"things\",why=\"share\"} 2\n";
        assert!(text.contains(refused), "{text}");
        let text = counters("link", [("events", "rack events stored", 5)]);
        assert!(text.ends_with("muster_link_events_total 5\n"), "{text}");
    }
}
