//! What is known of the connection to a hub: for `/status`, metrics and the log.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use metrics::{Counter, Gauge};
use tracing::{info, warn};

use super::failure::Failure;
use crate::{
    clock::Clock,
    model::HubUrl,
    telemetry::{Registry, seconds},
    wire::status::{HubStatus, LastError},
};

const CONNECTED: &str = "sidekey_hub_connected";
const CONNECTIONS: &str = "sidekey_hub_connections_total";
const REPORTS: &str = "sidekey_reports_total";
const REPORTED: &str = "sidekey_last_report_timestamp_seconds";
const EVENTS: &str = "sidekey_hub_events_received_total";

/// Describes the metrics of the connection to a hub.
pub fn describe_metrics(registry: &Registry) {
    registry.describe_gauge(CONNECTED, "1 while the sidecar is connected to its hub.");
    registry.describe_counter(CONNECTIONS, "Attempts to connect to the hub, by result.");
    registry.describe_counter(REPORTS, "Reports sent to the hub, by result.");
    registry.describe_gauge(REPORTED, "When the hub last accepted a report.");
    registry.describe_counter(EVENTS, "Events that the hub sent, by kind.");
}

/// The kinds of events that are counted apart.
const KINDS: [&str; 4] = ["welcome", "hint", "prove", "report-now"];
const OTHER: &str = "other";

pub(super) struct State {
    url: String,
    clock: Clock,
    metrics: Metrics,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    connected_since: Option<Timestamp>,
    reported_at: Option<Timestamp>,
    failure: Option<(Timestamp, Failure)>,
    /// Whether the log says that there is no connection.
    is_loss_logged: bool,
    /// Whether the log says that reports are not accepted.
    is_refusal_logged: bool,
}

struct Metrics {
    connected: Gauge,
    connects: [Counter; 2],
    reports: [Counter; 2],
    reported: Gauge,
    events: Vec<(&'static str, Counter)>,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let result = |name, result| registry.counter(name, &[("result", result)]);
        let kinds = KINDS.into_iter().chain([OTHER]);
        Self {
            connected: registry.gauge(CONNECTED, &[]),
            connects: ["ok", "failed"].map(|of| result(CONNECTIONS, of)),
            reports: ["accepted", "failed"].map(|of| result(REPORTS, of)),
            reported: registry.gauge(REPORTED, &[]),
            events: kinds
                .map(|kind| (kind, registry.counter(EVENTS, &[("event", kind)])))
                .collect(),
        }
    }
}

impl State {
    pub(super) fn new(url: &HubUrl, registry: &Registry, clock: &Clock) -> Self {
        Self {
            url: url.to_string(),
            clock: clock.clone(),
            metrics: Metrics::new(registry),
            known: Mutex::default(),
        }
    }

    pub(super) fn status(&self) -> HubStatus {
        let known = self.known();
        HubStatus {
            url: self.url.clone(),
            connected_since: known.connected_since,
            last_report: known.reported_at,
            last_error: known.failure.clone().map(|(at, failure)| LastError {
                at,
                code: failure.code.into(),
                message: failure.message,
            }),
        }
    }

    /// The stream of events is open.
    pub(super) fn connected(&self) {
        self.metrics.connects[0].increment(1);
        self.metrics.connected.set(1.0);
        let mut known = self.known();
        known.connected_since = Some(self.clock.now());
        known.is_loss_logged = false;
        info!(hub = %self.url, "connected to the hub");
    }

    /// There is no connection any more, or there was none.
    pub(super) fn disconnected(&self, failure: Failure) {
        let mut known = self.known();
        if known.connected_since.take().is_none() {
            self.metrics.connects[1].increment(1);
        }
        self.metrics.connected.set(0.0);
        if !std::mem::replace(&mut known.is_loss_logged, true) {
            warn!(
                code = failure.code,
                "not connected to the hub, and trying again; the sidecar serves without it: \
                 {failure}"
            );
        }
        known.failure = Some((self.clock.now(), failure));
    }

    /// The connection ended on purpose.
    pub(super) fn left(&self) {
        self.metrics.connected.set(0.0);
        self.known().connected_since = None;
    }

    pub(super) fn reported(&self) {
        let now = self.clock.now();
        self.metrics.reports[0].increment(1);
        self.metrics.reported.set(seconds(now));
        let mut known = self.known();
        known.reported_at = Some(now);
        known.failure = None;
        if std::mem::take(&mut known.is_refusal_logged) {
            info!(hub = %self.url, "the hub accepts reports again");
        }
    }

    pub(super) fn report_failed(&self, failure: Failure) {
        self.metrics.reports[1].increment(1);
        let mut known = self.known();
        if failure.is_refusal() && !std::mem::replace(&mut known.is_refusal_logged, true) {
            warn!(
                code = failure.code,
                "the hub doesn't accept reports: {failure}"
            );
        }
        known.failure = Some((self.clock.now(), failure));
    }

    pub(super) fn received(&self, kind: &str) {
        let events = &self.metrics.events;
        let counter = events.iter().find(|(known, _)| *known == kind);
        if let Some((_, counter)) = counter.or(events.last()) {
            counter.increment(1);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
