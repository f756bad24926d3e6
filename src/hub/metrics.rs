//! Metrics of a hub.

use jiff::Timestamp;
use metrics::{Counter, Gauge, Histogram};

use super::registry::Outcome;
use crate::{
    http,
    telemetry::{Registry, seconds},
    wire::Code,
};

const STREAMS: &str = "sidekey_hub_streams";
const STREAM_ENDS: &str = "sidekey_hub_stream_ends_total";
const REPORTS: &str = "sidekey_hub_reports_total";
const REQUESTS: &str = "sidekey_hub_requests_total";
const EVENTS: &str = "sidekey_hub_events_total";
const STORE_SECONDS: &str = "sidekey_hub_store_duration_seconds";
const STORE_UP: &str = "sidekey_hub_store_up";
const STORE_FAILURES: &str = "sidekey_hub_store_failures_total";
const BARRIER: &str = "sidekey_hub_barrier_timestamp_seconds";

/// Describes the metrics.
pub(super) fn describe(registry: &Registry) {
    registry.describe_gauge(STREAMS, "Open streams of sidecars.");
    registry.describe_counter(STREAM_ENDS, "Streams that ended, by reason.");
    registry.describe_counter(REPORTS, "Reports of sidecars by result.");
    registry.describe_counter(REQUESTS, "Requests by route and the code of the response.");
    registry.describe_counter(EVENTS, "Events sent to sidecars, by kind.");
    registry.describe_histogram(STORE_SECONDS, "From a write to the database to its end.");
    registry.describe_gauge(
        STORE_UP,
        "1 if the last write to the database succeeded, or 0.",
    );
    registry.describe_counter(
        STORE_FAILURES,
        "Reads and writes of the database that failed.",
    );
    registry.describe_gauge(BARRIER, "When the last barrier was set; 0 for never.");
    http::metrics::describe_metrics(registry);
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The sidecar closed it, or its connection failed.
    Closed,
    /// The sidecar opened a newer one.
    Replaced,
    /// The sidecar did not take its events.
    Slow,
    /// A report showed that the instance belongs to another identity.
    Foreign,
    /// The hub stops, or the connection's certificate is no longer accepted.
    Drained,
}

impl StreamEnd {
    const ALL: [Self; 5] = [
        Self::Closed,
        Self::Replaced,
        Self::Slow,
        Self::Foreign,
        Self::Drained,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Replaced => "replaced",
            Self::Slow => "slow",
            Self::Foreign => "foreign",
            Self::Drained => "drained",
        }
    }
}

/// Metrics of streams.
pub(super) struct StreamMetrics {
    pub(super) open: Gauge,
    ends: [Counter; StreamEnd::ALL.len()],
}

impl StreamMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let ends = |end: StreamEnd| registry.counter(STREAM_ENDS, &[("reason", end.as_str())]);
        Self {
            open: registry.gauge(STREAMS, &[]),
            ends: StreamEnd::ALL.map(ends),
        }
    }

    pub(super) fn ended(&self, end: StreamEnd) {
        self.ends[end as usize].increment(1);
    }
}

/// Metrics of the database.
pub(super) struct StoreMetrics {
    pub(super) write: Histogram,
    pub(super) up: Gauge,
    pub(super) failures: Counter,
}

impl StoreMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            write: registry.histogram(STORE_SECONDS, &[]),
            up: registry.gauge(STORE_UP, &[]),
            failures: registry.counter(STORE_FAILURES, &[]),
        }
    }
}

/// Metrics of reports.
pub(super) struct ReportMetrics {
    taken: Counter,
    known: Counter,
}

impl ReportMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            taken: registry.counter(REPORTS, &[("result", "taken")]),
            known: registry.counter(REPORTS, &[("result", "known")]),
        }
    }

    /// Refused ones are counted with their response.
    pub(super) fn stored(&self, outcome: Outcome) {
        match outcome {
            Outcome::Taken => self.taken.increment(1),
            Outcome::Known => self.known.increment(1),
            Outcome::Refused(_) => {}
        }
    }
}

/// Counts a report that was refused.
pub(super) fn count_refused(registry: &Registry, code: Code) {
    registry
        .counter(REPORTS, &[("result", code.as_str())])
        .increment(1);
}

/// Counts a request to a route.
pub(super) fn count_request(registry: &Registry, route: &'static str, code: Option<Code>) {
    let code = code.map_or("ok", Code::as_str);
    registry
        .counter(REQUESTS, &[("route", route), ("code", code)])
        .increment(1);
}

/// Counts events that were sent.
pub(super) fn count_events(registry: &Registry, kind: &'static str, count: usize) {
    registry
        .counter(EVENTS, &[("kind", kind)])
        .increment(count as u64);
}

/// Records that a barrier was set.
pub(super) fn barrier_set(registry: &Registry, at: Timestamp) {
    registry.gauge(BARRIER, &[]).set(seconds(at));
}
