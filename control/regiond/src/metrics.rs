//! What a region counts of itself: `GET /MAAS/metrics`, in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use sqlx::PgPool;
use store::lease::usage::Seen;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

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
