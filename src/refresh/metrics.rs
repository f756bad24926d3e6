//! The metrics of a keyring.

use jiff::Timestamp;
use metrics::{Counter, Gauge};

use super::{Keyring, Trigger, VersionUsage};
use crate::{
    keyring::{Role, overdue},
    model::{KeyringName, Operation},
    telemetry::{Registry, seconds},
};

const REFRESHES: &str = "sidekey_refreshes_total";
const UNKNOWN_VERSIONS: &str = "sidekey_unknown_versions_total";
const GENERATION: &str = "sidekey_keyring_generation";
const PRIMARY: &str = "sidekey_keyring_primary_version";
const ENCRYPTING: &str = "sidekey_keyring_encrypting_version";
const PRIMARY_AGE: &str = "sidekey_keyring_primary_age_seconds";
const VERSIONS: &str = "sidekey_keyring_versions";
const UNOPENED: &str = "sidekey_keyring_unopened_versions";
const OVERDUE: &str = "sidekey_keyring_overdue_versions";
const LEASE: &str = "sidekey_keyring_encrypt_lease_remaining_seconds";
const REFRESHED: &str = "sidekey_keyring_last_refresh_timestamp_seconds";
const FAILING: &str = "sidekey_keyring_refresh_failing";
const ROTATION_DUE: &str = "sidekey_keyring_rotation_due_timestamp_seconds";
const OPERATIONS: &str = "sidekey_version_operations_total";
const LAST_USE: &str = "sidekey_version_last_use_timestamp_seconds";

/// The triggers of a keyring's refreshes.
const TRIGGERS: [Trigger; 9] = [
    Trigger::Start,
    Trigger::CachedManifest,
    Trigger::File,
    Trigger::Signal,
    Trigger::Push,
    Trigger::Poll,
    Trigger::Retry,
    Trigger::Turn,
    Trigger::UnknownVersion,
];

const ROLES: [Role; 5] = [
    Role::Pending,
    Role::Primary,
    Role::DecryptOnly,
    Role::Disabled,
    Role::Destroyed,
];

pub(super) fn describe(registry: &Registry) {
    registry.describe_counter(REFRESHES, "Refreshes by trigger and result.");
    registry.describe_counter(
        UNKNOWN_VERSIONS,
        "Ciphertexts that named a key version missing from the active key table.",
    );
    registry.describe_gauge(GENERATION, "The generation of the active manifest.");
    registry.describe_gauge(PRIMARY, "The key version that should encrypt; 0 for none.");
    registry.describe_gauge(
        ENCRYPTING,
        "The key version that encrypts: an older one while no KEK unwraps the primary; 0 for none.",
    );
    registry.describe_gauge(PRIMARY_AGE, "Seconds since the primary took over.");
    registry.describe_gauge(VERSIONS, "Key versions by role.");
    registry.describe_gauge(
        UNOPENED,
        "Enabled key versions that no KEK has unwrapped yet.",
    );
    registry.describe_gauge(
        OVERDUE,
        "Superseded key versions that still decrypt although the policy's `decrypt_until` is over.",
    );
    registry.describe_gauge(
        LEASE,
        "Seconds until encryption stops unless the manifest is confirmed; negative afterwards.",
    );
    registry.describe_gauge(REFRESHED, "When a valid manifest was last read.");
    registry.describe_gauge(
        FAILING,
        "1 while the last refresh failed or some versions are not unwrapped.",
    );
    registry.describe_gauge(
        ROTATION_DUE,
        "When the policy (`rotate_every`) requires the next key version.",
    );
    registry.describe_counter(
        OPERATIONS,
        "Messages encrypted and decrypted under a key version; a rewrap counts as both.",
    );
    registry.describe_gauge(LAST_USE, "When this sidecar last used a key version.");
}

pub(super) struct KeyringMetrics {
    pub(super) unknown_versions: Counter,
    generation: Gauge,
    primary: Gauge,
    encrypting: Gauge,
    primary_age: Gauge,
    versions: [(Role, Gauge); 5],
    unopened: Gauge,
    overdue: Gauge,
    lease: Gauge,
    refreshed: Gauge,
    failing: Gauge,
    rotation_due: Gauge,
    name: KeyringName,
}

impl KeyringMetrics {
    pub(super) fn new(name: &KeyringName, registry: &Registry) -> Self {
        let labels = [("keyring", name.as_str())];
        for trigger in TRIGGERS {
            for result in ["changed", "unchanged"] {
                registry
                    .counter(
                        REFRESHES,
                        &[
                            ("keyring", name.as_str()),
                            ("trigger", trigger.as_str()),
                            ("result", result),
                        ],
                    )
                    .absolute(0);
            }
        }
        Self {
            unknown_versions: registry.counter(UNKNOWN_VERSIONS, &labels),
            generation: registry.gauge(GENERATION, &labels),
            primary: registry.gauge(PRIMARY, &labels),
            encrypting: registry.gauge(ENCRYPTING, &labels),
            primary_age: registry.gauge(PRIMARY_AGE, &labels),
            versions: ROLES.map(|role| {
                (
                    role,
                    registry.gauge(
                        VERSIONS,
                        &[("keyring", name.as_str()), ("role", role.as_str())],
                    ),
                )
            }),
            unopened: registry.gauge(UNOPENED, &labels),
            overdue: registry.gauge(OVERDUE, &labels),
            lease: registry.gauge(LEASE, &labels),
            refreshed: registry.gauge(REFRESHED, &labels),
            failing: registry.gauge(FAILING, &labels),
            rotation_due: registry.gauge(ROTATION_DUE, &labels),
            name: name.clone(),
        }
    }

    pub(super) fn refreshed(&self, registry: &Registry, trigger: Trigger, result: &str) {
        registry
            .counter(
                REFRESHES,
                &[
                    ("keyring", self.name.as_str()),
                    ("trigger", trigger.as_str()),
                    ("result", result),
                ],
            )
            .increment(1);
    }
}

impl Keyring {
    /// Updates what is counted elsewhere or changes with time; called before metrics are rendered.
    pub fn update_gauges(&self, registry: &Registry, now: Timestamp) {
        let metrics = &self.metrics;
        let status = self.status();
        metrics
            .failing
            .set(if status.failure.is_some() { 1.0 } else { 0.0 });
        if let Some(at) = status.last_success {
            metrics.refreshed.set(seconds(at));
        }
        let snapshot = self.snapshot();
        let Some(snapshot) = snapshot.as_deref() else {
            return;
        };
        let table = &snapshot.table;
        // Exact below 2^53, which bounds generations.
        metrics.generation.set(table.generation() as f64);
        metrics
            .primary
            .set(f64::from(table.primary(now).unwrap_or(0)));
        metrics.encrypting.set(f64::from(
            table.encryption_key(now).map_or(0, |(version, _)| version),
        ));
        metrics.primary_age.set(
            table
                .primary_since(now)
                .map_or(0.0, |since| now.duration_since(since).as_secs_f64()),
        );
        metrics
            .lease
            .set(self.lease_end(table).duration_since(now).as_secs_f64());
        let manifest = table.manifest();
        let newest = manifest.versions.last().map(|version| version.created_at);
        let due = newest.and_then(|made| made.checked_add(manifest.policy.rotate_every.0).ok());
        metrics.rotation_due.set(due.map_or(0.0, seconds));
        metrics.unopened.set(table.not_unwrapped().count() as f64);
        metrics.overdue.set(overdue(manifest, now).len() as f64);
        let versions = || {
            table
                .manifest()
                .versions
                .iter()
                .map(|version| version.version)
        };
        let roles: Vec<Role> = versions()
            .filter_map(|version| table.role(version, now))
            .collect();
        for (role, gauge) in &metrics.versions {
            gauge.set(roles.iter().filter(|found| *found == role).count() as f64);
        }
        for version in versions() {
            if let Some(usage) = snapshot.usage(version) {
                update_usage(registry, self.name(), version, usage);
            }
        }
    }
}

/// Requests count in atomics of their own, which `/status` reads as well.
fn update_usage(registry: &Registry, name: &KeyringName, version: u32, usage: &VersionUsage) {
    let (version, uses) = (version.to_string(), usage.uses());
    let labels = [("keyring", name.as_str()), ("version", version.as_str())];
    for (operation, count) in [
        (Operation::Encrypt, uses.encrypted),
        (Operation::Decrypt, uses.decrypted),
    ] {
        let labels = [labels[0], labels[1], ("operation", operation.as_str())];
        registry.counter(OPERATIONS, &labels).absolute(count);
    }
    if let Some(used) = usage.last_used() {
        registry.gauge(LAST_USE, &labels).set(seconds(used));
    }
}
