//! The metrics of secrets.

use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use metrics::{Counter, Gauge};

use super::{Secret, Trigger};
use crate::{
    model::SecretName,
    telemetry::{Registry, seconds},
};

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
    registry.describe_counter(
        FETCHES,
        "Reads of a secret at its provider, by what caused them and what came of them.",
    );
    registry.describe_counter(
        SERVED_STALE,
        "Answers with a value that the provider did not confirm when it should have.",
    );
    registry.describe_gauge(
        AGE,
        "How long ago the current value was made; of one whose provider doesn't tell, when it was first seen.",
    );
    registry.describe_gauge(
        CONFIRMED,
        "When the provider last gave the current value or confirmed it.",
    );
    registry.describe_gauge(FAILING, "1 while the last read at the provider failed.");
    registry.describe_gauge(LEASE, "How long the current value's lease still runs.");
}

/// A secret's handles, made when it has its first value: a name that leads to nothing has no series.
#[derive(Default)]
pub(super) struct SecretMeters(OnceLock<Handles>);

pub(super) struct Handles {
    pub(super) ok: Counter,
    pub(super) served_stale: Counter,
    age: Gauge,
    confirmed: Gauge,
    failing: Gauge,
}

impl SecretMeters {
    pub(super) fn of(&self, name: &SecretName, registry: &Registry) -> &Handles {
        self.0.get_or_init(|| {
            let labels = [("secret", name.as_str())];
            Handles {
                ok: registry.counter(REQUESTS, &[labels[0], ("code", "ok")]),
                served_stale: registry.counter(SERVED_STALE, &labels),
                age: registry.gauge(AGE, &labels),
                confirmed: registry.gauge(CONFIRMED, &labels),
                failing: registry.gauge(FAILING, &labels),
            }
        })
    }

    pub(super) fn fetched(&self, registry: &Registry, name: &str, trigger: Trigger, result: &str) {
        let labels = [
            ("secret", name),
            ("trigger", trigger.as_str()),
            ("result", result),
        ];
        registry.counter(FETCHES, &labels).increment(1);
    }
}

impl Secret {
    /// Brings the gauges that change with time up to `now`; called before metrics are rendered.
    pub fn observe(&self, registry: &Registry, now: Timestamp) {
        if !self.has_series() {
            return;
        }
        let name = self.name();
        let meters = self.meters.of(name, registry);
        let standing = self.standing();
        meters
            .failing
            .set(if standing.failure.is_some() { 1.0 } else { 0.0 });
        if let Some(current) = &standing.current {
            meters
                .age
                .set(now.duration_since(current.since).as_secs_f64());
            meters.confirmed.set(seconds(current.confirmed_at));
        }
        if let Some(remaining) = standing.lease_remaining {
            registry
                .gauge(LEASE, &[("secret", name.as_str())])
                .set(remaining.as_secs_f64());
        }
    }
}

/// The series of versions, as text. They come and go with the versions that are remembered, which the registry's series can't.
pub fn render_versions(secrets: &[Arc<Secret>]) -> String {
    let (mut info, mut uses, mut last_use) = (String::new(), String::new(), String::new());
    for secret in secrets {
        let (name, standing) = (secret.name().as_str(), secret.standing());
        for usage in secret.usages() {
            let version = escaped(usage.version());
            let current = standing
                .current
                .as_ref()
                .filter(|current| current.version == usage.version())
                .map(|_| "current");
            let previous = standing
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
        "1 for the version that is current or previous.",
        info,
    ) + &family(
        USES,
        "counter",
        "How often a version of a secret was handed out here.",
        uses,
    ) + &family(
        LAST_USE,
        "gauge",
        "When a version of a secret was last handed out here.",
        last_use,
    )
}

/// As a label's value (Prometheus' text format).
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
