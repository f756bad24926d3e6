//! The metrics of rendered files.

use std::sync::Arc;

use jiff::Timestamp;
use metrics::{Counter, Gauge};

use crate::{
    config,
    telemetry::{Registry, seconds},
};

const WRITES: &str = "sidekey_render_writes_total";
const FAILURES: &str = "sidekey_render_failures_total";
const FAILING: &str = "sidekey_render_failing";
const LAST_SUCCESS: &str = "sidekey_render_last_success_timestamp_seconds";
const NOTICES: &str = "sidekey_render_notices_total";
const NOTICE_FAILING: &str = "sidekey_render_notice_failing";

/// Describes the metrics of rendered files.
pub fn describe(registry: &Registry) {
    registry.describe_counter(
        WRITES,
        "How often a rendered file was written because its content had changed.",
    );
    registry.describe_counter(FAILURES, "Failed attempts to render a file, by reason.");
    registry.describe_gauge(FAILING, "1 while the last attempt to render a file failed.");
    registry.describe_gauge(
        LAST_SUCCESS,
        "When a file was last written or found unchanged; 0 for never.",
    );
    registry.describe_counter(
        NOTICES,
        "Commands run and signals sent after a change, by result.",
    );
    registry.describe_gauge(
        NOTICE_FAILING,
        "1 while the last notification of a change failed.",
    );
}

pub(super) struct RenderMetrics {
    registry: Arc<Registry>,
    file: String,
    writes: Counter,
    failing: Gauge,
    last_success: Gauge,
    /// None if the file has no notice.
    notice_failing: Option<Gauge>,
}

impl RenderMetrics {
    pub(super) fn new(settings: &config::Render, registry: &Arc<Registry>) -> Self {
        let file = settings.file.display().to_string();
        let labels = [("file", file.as_str())];
        Self {
            writes: registry.counter(WRITES, &labels),
            failing: registry.gauge(FAILING, &labels),
            last_success: registry.gauge(LAST_SUCCESS, &labels),
            notice_failing: settings
                .notice
                .as_ref()
                .map(|_| registry.gauge(NOTICE_FAILING, &labels)),
            registry: Arc::clone(registry),
            file,
        }
    }

    /// Makes the gauges of a file that is no longer rendered say nothing: series last as long as
    /// the process.
    pub(super) fn clear(&self) {
        self.failing.set(0.0);
        self.last_success.set(f64::NAN);
        if let Some(failing) = &self.notice_failing {
            failing.set(0.0);
        }
    }

    pub(super) fn succeeded(&self, at: Timestamp, was_written: bool) {
        self.failing.set(0.0);
        self.last_success.set(seconds(at));
        if was_written {
            self.writes.increment(1);
        }
    }

    pub(super) fn failed(&self, reason: &str) {
        self.failing.set(1.0);
        self.registry
            .counter(FAILURES, &[("file", &self.file), ("reason", reason)])
            .increment(1);
    }

    pub(super) fn notified(&self, result: &str) {
        self.registry
            .counter(NOTICES, &[("file", &self.file), ("result", result)])
            .increment(1);
        if let Some(failing) = &self.notice_failing {
            failing.set(if result == "ok" { 0.0 } else { 1.0 });
        }
    }
}
