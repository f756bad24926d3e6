//! Metrics of connections, by listener.

use metrics::{Counter, Gauge};

use crate::telemetry::Registry;

const CONNECTIONS: &str = "sidekey_connections";
const REFUSED: &str = "sidekey_connections_refused_total";

/// Describes the metrics of connections and TLS.
pub(crate) fn describe_metrics(registry: &Registry) {
    registry.describe_gauge(CONNECTIONS, "Open connections.");
    registry.describe_counter(
        REFUSED,
        "Connections refused or closed early because of the connection limit.",
    );
    super::tls::describe_metrics(registry);
}

/// One listener's connections.
#[derive(Clone)]
pub(crate) struct ConnectionMetrics {
    pub(crate) open: Gauge,
    pub(crate) refused: Counter,
}

impl ConnectionMetrics {
    pub(crate) fn new(registry: &Registry, listener: &'static str) -> Self {
        let labels = [("listener", listener)];
        Self {
            open: registry.gauge(CONNECTIONS, &labels),
            refused: registry.counter(REFUSED, &labels),
        }
    }
}
