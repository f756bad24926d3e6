//! The metrics of one KEK.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram};

use super::clients::Label;
use crate::telemetry::Registry;

/// The result of a KEK whose response was no longer needed because another one was faster.
pub(super) const OVERTAKEN: &str = "overtaken";

const REQUESTS: &str = "sidekey_kek_requests_total";
const DURATION: &str = "sidekey_kek_request_duration_seconds";
const LAST_SUCCESS: &str = "sidekey_kek_last_success_timestamp_seconds";
const CIRCUIT_OPEN: &str = "sidekey_kek_circuit_open";

pub(super) struct KekMetrics {
    label: String,
    registry: Arc<Registry>,
    pub(super) duration: Histogram,
    pub(super) last_success: Gauge,
    pub(super) circuit_open: Gauge,
}

impl KekMetrics {
    pub(super) fn new(label: &Label<'_>, registry: &Arc<Registry>) -> Self {
        let labels = [("kek", label.as_str())];
        let gauge = |name| match label {
            Label::Own(_) => registry.gauge(name, &labels),
            // One value can't tell of many.
            Label::Others => Gauge::noop(),
        };
        let metrics = Self {
            label: label.as_str().to_owned(),
            registry: Arc::clone(registry),
            duration: registry.histogram(DURATION, &labels),
            last_success: gauge(LAST_SUCCESS),
            circuit_open: gauge(CIRCUIT_OPEN),
        };
        // Registers the series, so that it is rendered as 0 before the first unwrap.
        drop(metrics.requests("unwrap", "ok"));
        metrics
    }

    pub(super) fn requests(&self, operation: &'static str, result: &'static str) -> Counter {
        let labels = [
            ("kek", self.label.as_str()),
            ("operation", operation),
            ("result", result),
        ];
        self.registry.counter(REQUESTS, &labels)
    }
}

/// Describes the metrics of all KEKs.
pub(crate) fn describe(registry: &Registry) {
    registry.describe_counter(
        REQUESTS,
        "Wrap and unwrap requests to a KEK by result: ok, overtaken (another KEK was faster), or \
         the kind of error.",
    );
    registry.describe_histogram(DURATION, "Time a KEK took to respond, including errors.");
    registry.describe_gauge(LAST_SUCCESS, "Time of the last successful wrap or unwrap.");
    registry.describe_gauge(
        CIRCUIT_OPEN,
        "1 while the circuit breaker is open after repeated failures: the KEK is asked last.",
    );
}
