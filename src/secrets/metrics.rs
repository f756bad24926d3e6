//! The metrics of secrets.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use jiff::Timestamp;
use metrics::{Counter, Gauge};

use super::{Secret, Trigger};
use crate::{
    model::SecretName,
    telemetry::{Registry, seconds},
};

/// Counts requests by secret and response code.
pub(crate) const REQUESTS: &str = "sidekey_secret_requests_total";
const FETCHES: &str = "sidekey_secret_fetches_total";
const SERVED_STALE: &str = "sidekey_secret_served_stale_total";
const AGE: &str = "sidekey_secret_age_seconds";
const CONFIRMED: &str = "sidekey_secret_last_refresh_timestamp_seconds";
const FAILING: &str = "sidekey_secret_refresh_failing";
const LEASE: &str = "sidekey_secret_lease_remaining_seconds";
const VERSION: &str = "sidekey_secret_version_info";
const LAST_USE: &str = "sidekey_secret_version_last_use_timestamp_seconds";
const USES: &str = "sidekey_secret_version_uses_total";

pub(crate) fn describe(registry: &Registry) {
    registry.describe_counter(
        REQUESTS,
        "Requests by secret and response code; `secret` is empty for unconfigured names.",
    );
    registry.describe_counter(
        FETCHES,
        "Reads of a secret at its provider, by trigger and result.",
    );
    registry.describe_counter(
        SERVED_STALE,
        "Responses with a value that the provider failed to confirm in time.",
    );
    registry.describe_gauge(
        AGE,
        "Seconds since the current value was created or, if the provider doesn't say, first seen.",
    );
    registry.describe_gauge(
        CONFIRMED,
        "When the provider last returned or confirmed the current value.",
    );
    registry.describe_gauge(FAILING, "1 while the last read at the provider failed.");
    registry.describe_gauge(
        LEASE,
        "Seconds until the lease of the current value expires.",
    );
}

/// The handles of a secret's metrics, created with its first value: a name that never had a value
/// has no series.
#[derive(Default)]
pub(super) struct SecretMetrics(OnceLock<Handles>);

pub(super) struct Handles {
    pub(super) ok: Counter,
    pub(super) served_stale: Counter,
    age: Gauge,
    confirmed: Gauge,
    failing: Gauge,
    /// Whether there is a gauge of its lease.
    has_lease: AtomicBool,
}

impl SecretMetrics {
    pub(super) fn of(&self, name: &SecretName, registry: &Registry) -> &Handles {
        self.0.get_or_init(|| {
            let labels = [("secret", name.as_str())];
            Handles {
                ok: registry.counter(REQUESTS, &[labels[0], ("code", "ok")]),
                served_stale: registry.counter(SERVED_STALE, &labels),
                age: registry.gauge(AGE, &labels),
                confirmed: registry.gauge(CONFIRMED, &labels),
                failing: registry.gauge(FAILING, &labels),
                has_lease: AtomicBool::new(false),
            }
        })
    }

    pub(super) fn count_fetch(
        &self,
        registry: &Registry,
        name: &str,
        trigger: Trigger,
        result: &str,
    ) {
        let labels = [
            ("secret", name),
            ("trigger", trigger.as_str()),
            ("result", result),
        ];
        registry.counter(FETCHES, &labels).increment(1);
    }
}

impl Secret {
    /// Updates the gauges; called before metrics are rendered.
    pub(crate) fn update_gauges(&self, registry: &Registry, now: Timestamp) {
        if !self.has_series() {
            return;
        }
        let name = self.name();
        let metrics = self.metrics.of(name, registry);
        let status = self.status();
        metrics
            .failing
            .set(if status.failure.is_some() { 1.0 } else { 0.0 });
        if let Some(current) = &status.current {
            metrics
                .age
                .set(now.duration_since(current.since).as_secs_f64());
            metrics.confirmed.set(seconds(current.confirmed_at));
        }
        if let Some(remaining) = status.lease_remaining {
            metrics.has_lease.store(true, Ordering::Relaxed);
            registry
                .gauge(LEASE, &[("secret", name.as_str())])
                .set(remaining.as_secs_f64());
        }
    }
}

impl Secret {
    /// Makes the gauges of a secret that was removed say nothing: series last as long as the
    /// process.
    pub(super) fn clear_gauges(&self) {
        if !self.has_series() {
            return;
        }
        let (name, registry) = (self.name(), &self.shared.registry);
        let metrics = self.metrics.of(name, registry);
        metrics.failing.set(0.0);
        metrics.age.set(f64::NAN);
        metrics.confirmed.set(f64::NAN);
        if metrics.has_lease.load(Ordering::Relaxed) {
            registry
                .gauge(LEASE, &[("secret", name.as_str())])
                .set(f64::NAN);
        }
    }
}

/// Renders the series of versions as text. They come and go with the versions that are remembered,
/// which the registry does not support.
pub(crate) fn render_versions(secrets: &[Arc<Secret>]) -> String {
    let (mut info, mut uses, mut last_use) = (String::new(), String::new(), String::new());
    for secret in secrets {
        let (name, status) = (secret.name().as_str(), secret.status());
        for usage in secret.usages() {
            let version = escaped(usage.version());
            let current = status
                .current
                .as_ref()
                .filter(|current| current.version == usage.version())
                .map(|_| "current");
            let previous = status
                .previous
                .as_ref()
                .filter(|previous| *previous == usage.version())
                .map(|_| "previous");
            if let Some(stage) = current.or(previous) {
                info += &format!(
                    "{VERSION}{{secret=\"{name}\",version=\"{version}\",stage=\"{stage}\"}} 1\n"
                );
            }
            uses += &format!(
                "{USES}{{secret=\"{name}\",version=\"{version}\"}} {}\n",
                usage.count()
            );
            if let Some(last) = usage.last() {
                last_use += &format!(
                    "{LAST_USE}{{secret=\"{name}\",version=\"{version}\"}} {}\n",
                    seconds(last)
                );
            }
        }
    }
    let family = |name: &str, kind: &str, help: &str, series: String| match series.is_empty() {
        true => series,
        false => format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{series}\n"),
    };
    family(
        VERSION,
        "gauge",
        "1 for the current and the previous version.",
        info,
    ) + &family(
        USES,
        "counter",
        "How often this sidecar served a version of a secret.",
        uses,
    ) + &family(
        LAST_USE,
        "gauge",
        "When this sidecar last served a version of a secret.",
        last_use,
    )
}

/// Escapes a label's value for the Prometheus text format.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
