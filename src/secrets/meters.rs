//! The metrics of secrets.

use jiff::Timestamp;
use metrics::{Counter, Gauge};

use super::{Secret, Trigger};
use crate::{config::SecretName, telemetry::Registry};

/// Counts requests by secret and the answer's code.
pub const REQUESTS: &str = "sidekey_secret_requests_total";
const FETCHES: &str = "sidekey_secret_fetches_total";
const SERVED_STALE: &str = "sidekey_secret_served_stale_total";
const AGE: &str = "sidekey_secret_age_seconds";
const CONFIRMED: &str = "sidekey_secret_last_refresh_timestamp_seconds";
const FAILING: &str = "sidekey_secret_refresh_failing";
const LEASE: &str = "sidekey_secret_lease_remaining_seconds";
const VERSION: &str = "sidekey_secret_version_info";
const LAST_USE: &str = "sidekey_secret_version_last_use_timestamp_seconds";
const USES: &str = "sidekey_secret_version_uses_total";

pub(super) fn describe(registry: &Registry) {
    registry.describe_counter(
        REQUESTS,
        "Requests by secret and the answer's code; `ok` is success, an empty secret none that is configured.",
    );
    registry.describe_counter(FETCHES, "Reads of a secret at its provider, by what caused them and what came of them.");
    registry.describe_counter(SERVED_STALE, "Answers with a value that the provider did not confirm when it should have.");
    registry.describe_gauge(
        AGE,
        "How long ago the current value was made; of one whose provider doesn't tell, when it was first seen.",
    );
    registry.describe_gauge(CONFIRMED, "When the provider last gave the current value or confirmed it.");
    registry.describe_gauge(FAILING, "1 while the last read at the provider failed.");
    registry.describe_gauge(LEASE, "How long the current value's lease still runs.");
    registry.describe_gauge(VERSION, "1 for the version that is current or previous, 0 once it is neither.");
    registry.describe_gauge(LAST_USE, "When a version of a secret was last handed out here.");
    registry.describe_counter(USES, "How often a version of a secret was handed out here.");
}

pub(super) struct SecretMeters {
    name: SecretName,
    pub(super) ok: Counter,
    pub(super) served_stale: Counter,
    age: Gauge,
    confirmed: Gauge,
    failing: Gauge,
}

impl SecretMeters {
    pub(super) fn new(name: &SecretName, registry: &Registry) -> Self {
        let labels = [("secret", name.as_str())];
        Self {
            ok: registry.counter(REQUESTS, &[labels[0], ("code", "ok")]),
            served_stale: registry.counter(SERVED_STALE, &labels),
            age: registry.gauge(AGE, &labels),
            confirmed: registry.gauge(CONFIRMED, &labels),
            failing: registry.gauge(FAILING, &labels),
            name: name.clone(),
        }
    }

    pub(super) fn fetched(&self, registry: &Registry, trigger: Trigger, result: &str) {
        let labels = [("secret", self.name.as_str()), ("trigger", trigger.as_str()), ("result", result)];
        registry.counter(FETCHES, &labels).increment(1);
    }
}

impl Secret {
    /// Brings the gauges that change with time up to `now`; called before metrics are rendered.
    pub fn observe(&self, registry: &Registry, now: Timestamp) {
        let (name, meters) = (self.name().as_str(), &self.meters);
        let standing = self.standing();
        meters.failing.set(if standing.failure.is_some() { 1.0 } else { 0.0 });
        if let Some(current) = &standing.current {
            meters.age.set(now.duration_since(current.since).as_secs_f64());
            meters.confirmed.set(seconds(current.confirmed_at));
        }
        if let Some(remaining) = standing.lease_remaining {
            registry.gauge(LEASE, &[("secret", name)]).set(remaining.as_secs_f64());
        }
        let (current, previous) =
            (standing.current.as_ref().map(|current| current.version.as_str()), standing.previous.as_deref());
        for usage in self.usages() {
            let version = usage.version();
            // What was never previous has no series that says so.
            let is_current = current == Some(version);
            let stages = if is_current {
                &[("current", true)][..]
            } else {
                &[("current", false), ("previous", previous == Some(version))]
            };
            for (stage, is_in_force) in stages {
                let labels = [("secret", name), ("version", version), ("stage", *stage)];
                registry.gauge(VERSION, &labels).set(if *is_in_force { 1.0 } else { 0.0 });
            }
            let labels = [("secret", name), ("version", version)];
            registry.counter(USES, &labels).absolute(usage.count());
            if let Some(last) = usage.last() {
                registry.gauge(LAST_USE, &labels).set(seconds(last));
            }
        }
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}
