use jiff::Timestamp;
use metrics::{Counter, Gauge};

use crate::telemetry::{Registry, seconds};

const RELOADS: &str = "sidekey_config_reloads_total";
const LOADED: &str = "sidekey_config_loaded_time_seconds";
const FAILING: &str = "sidekey_config_reload_failing";
const NEEDS_RESTART: &str = "sidekey_config_needs_restart";

/// Describes the metrics of the config.
pub(in crate::app) fn describe(registry: &Registry) {
    registry.describe_counter(RELOADS, "How often the config was read again, by result.");
    registry.describe_gauge(LOADED, "When the config in use was loaded.");
    registry.describe_gauge(
        FAILING,
        "1 while the config can't be read again or is invalid.",
    );
    registry.describe_gauge(
        NEEDS_RESTART,
        "How many settings of the config differ from those in use until a restart.",
    );
}

pub(super) struct ConfigMetrics {
    changed: Counter,
    unchanged: Counter,
    failed: Counter,
    loaded: Gauge,
    failing: Gauge,
    needs_restart: Gauge,
}

impl ConfigMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let reloads = |result| registry.counter(RELOADS, &[("result", result)]);
        Self {
            changed: reloads("changed"),
            unchanged: reloads("unchanged"),
            failed: reloads("failed"),
            loaded: registry.gauge(LOADED, &[]),
            failing: registry.gauge(FAILING, &[]),
            needs_restart: registry.gauge(NEEDS_RESTART, &[]),
        }
    }

    /// A config is in use; `needs_restart` of its settings are not.
    pub(super) fn loaded(&self, at: Timestamp, needs_restart: usize) {
        self.loaded.set(seconds(at));
        self.needs_restart.set(needs_restart as f64);
        self.failing.set(0.0);
    }

    pub(super) fn reloaded(&self, is_changed: bool) {
        let reloads = if is_changed {
            &self.changed
        } else {
            &self.unchanged
        };
        reloads.increment(1);
    }

    pub(super) fn failed(&self) {
        self.failed.increment(1);
        self.failing.set(1.0);
    }
}
