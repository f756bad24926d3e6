//! A keyring's metrics.

use jiff::Timestamp;
use metrics::{Counter, Gauge};

use super::{Keyring, Trigger};
use crate::{
    keyring::Role,
    model::KeyringName,
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
const LEASE: &str = "sidekey_keyring_encrypt_lease_remaining_seconds";
const REFRESHED: &str = "sidekey_keyring_last_refresh_timestamp_seconds";
const FAILING: &str = "sidekey_keyring_refresh_failing";
const ROTATION_DUE: &str = "sidekey_keyring_rotation_due_timestamp_seconds";
const LAST_USE: &str = "sidekey_version_last_use_timestamp_seconds";

const ROLES: [Role; 5] = [
    Role::Pending,
    Role::Primary,
    Role::DecryptOnly,
    Role::Disabled,
    Role::Destroyed,
];

pub(super) fn describe(registry: &Registry) {
    registry.describe_counter(
        REFRESHES,
        "Refreshes by what caused them and what came of them.",
    );
    registry.describe_counter(
        UNKNOWN_VERSIONS,
        "Ciphertexts that named a key version which the table in force lacked.",
    );
    registry.describe_gauge(GENERATION, "The manifest generation in force.");
    registry.describe_gauge(
        PRIMARY,
        "The key version that should encrypt; 0 if there is none.",
    );
    registry.describe_gauge(
        ENCRYPTING,
        "The key version that encrypts: another than the primary while no KEK opens that; 0 for none.",
    );
    registry.describe_gauge(PRIMARY_AGE, "How long the primary has been encrypting.");
    registry.describe_gauge(VERSIONS, "Key versions by role.");
    registry.describe_gauge(UNOPENED, "Enabled key versions that no KEK has opened yet.");
    registry
        .describe_gauge(LEASE, "How long encrypting goes on if the manifest can't be confirmed; negative once it has stopped.");
    registry.describe_gauge(REFRESHED, "When the manifest was last read and found good.");
    registry.describe_gauge(
        FAILING,
        "1 while the last refresh failed or left versions unopened.",
    );
    registry.describe_gauge(
        ROTATION_DUE,
        "When the policy (`rotate_every`) wants the next key version.",
    );
    registry.describe_gauge(
        LAST_USE,
        "When a key version last encrypted or decrypted here.",
    );
}

pub(super) struct KeyringMeters {
    pub(super) unknown_versions: Counter,
    generation: Gauge,
    primary: Gauge,
    encrypting: Gauge,
    primary_age: Gauge,
    versions: [(Role, Gauge); 5],
    unopened: Gauge,
    lease: Gauge,
    refreshed: Gauge,
    failing: Gauge,
    rotation_due: Gauge,
    name: KeyringName,
}

impl KeyringMeters {
    pub(super) fn new(name: &KeyringName, registry: &Registry) -> Self {
        let labels = [("keyring", name.as_str())];
        for trigger in Trigger::ALL {
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
    /// Brings the gauges that change with time up to `now`; called before metrics are rendered.
    pub fn observe(&self, registry: &Registry, now: Timestamp) {
        let meters = &self.meters;
        let standing = self.standing();
        meters
            .failing
            .set(if standing.failure.is_some() { 1.0 } else { 0.0 });
        if let Some(at) = standing.last_success {
            meters.refreshed.set(seconds(at));
        }
        let snapshot = self.snapshot();
        let Some(snapshot) = snapshot.as_deref() else {
            return;
        };
        let table = &snapshot.table;
        // Exact below 2^53, which bounds generations.
        meters.generation.set(table.generation() as f64);
        meters
            .primary
            .set(f64::from(table.primary(now).unwrap_or(0)));
        meters.encrypting.set(f64::from(
            table.encrypting(now).map_or(0, |(version, _)| version),
        ));
        meters.primary_age.set(
            table
                .primary_since(now)
                .map_or(0.0, |since| now.duration_since(since).as_secs_f64()),
        );
        meters
            .lease
            .set(self.lease_end(table).duration_since(now).as_secs_f64());
        let manifest = table.manifest();
        let newest = manifest.versions.last().map(|version| version.created_at);
        let due = newest.and_then(|made| made.checked_add(manifest.policy.rotate_every.0).ok());
        meters.rotation_due.set(due.map_or(0.0, seconds));
        meters.unopened.set(table.unopened().count() as f64);
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
        for (role, gauge) in &meters.versions {
            gauge.set(roles.iter().filter(|found| *found == role).count() as f64);
        }
        for version in versions() {
            if let Some(used) = snapshot
                .meter(version)
                .and_then(super::VersionMeter::last_used)
            {
                let labels = [
                    ("keyring", self.name().as_str()),
                    ("version", &version.to_string()),
                ];
                registry.gauge(LAST_USE, &labels).set(seconds(used));
            }
        }
    }
}
