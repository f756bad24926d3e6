//! What the audit log records of a keyring: which manifest and keys are active, which manifests
//! were refused, and when the encrypt lease expired.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Keyring, RefreshFailure};
use crate::{
    audit::Recorder,
    keyring::{KeyTable, Slot},
};

/// Compares the active key table with the one seen before and records the difference.
pub(super) struct AuditObserver {
    recorder: Recorder,
    generation: u64,
    primary: Option<u32>,
    slots: BTreeMap<u32, &'static str>,
    is_lease_over: bool,
}

impl AuditObserver {
    pub(super) fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            generation: 0,
            primary: None,
            slots: BTreeMap::new(),
            is_lease_over: false,
        }
    }

    /// Records a manifest that was refused, or versions that can't be unwrapped. The caller makes
    /// sure that repetitions are not recorded.
    pub(super) fn refused(&self, keyring: &Keyring, failure: &RefreshFailure) {
        let generation_served = self.generation;
        self.recorder.record("manifest.refused", |event| {
            event
                .with("keyring", keyring.name().as_str())
                .with("code", failure.code)
                .with("reason", failure.message.as_str())
                .with("generation_served", generation_served)
        });
    }

    /// Records what changed since the last call.
    pub(super) fn observe(&mut self, keyring: &Keyring, now: Timestamp) {
        let snapshot = keyring.snapshot();
        let Some(table) = snapshot.as_deref().map(|snapshot| &snapshot.table) else {
            return;
        };
        let name = keyring.name().as_str();
        self.observe_generation(name, table, now);
        self.observe_primary(name, table, now);
        self.observe_versions(name, table);
        self.observe_lease(name, table, keyring.lease_end(table), now);
    }

    fn observe_generation(&mut self, name: &str, table: &KeyTable, now: Timestamp) {
        let generation = table.generation();
        if generation == self.generation {
            return;
        }
        let before = std::mem::replace(&mut self.generation, generation);
        self.recorder.record("keyring.in_force", |event| {
            event
                .with("keyring", name)
                .with("id", table.id().to_string())
                .with("wave", table.wave().as_str())
                .with("generation", generation)
                .with("generation_before", before)
                .with("primary", table.primary(now))
        });
    }

    fn observe_primary(&mut self, name: &str, table: &KeyTable, now: Timestamp) {
        let primary = table.primary(now);
        if primary == self.primary {
            return;
        }
        let before = std::mem::replace(&mut self.primary, primary);
        let since = table.primary_since(now).map(|since| since.to_string());
        self.recorder.record("primary.changed", |event| {
            event
                .with("keyring", name)
                .with("generation", table.generation())
                .with("wave", table.wave().as_str())
                .with("primary", primary)
                .with("primary_before", before)
                .with("since", since)
        });
    }

    fn observe_versions(&mut self, name: &str, table: &KeyTable) {
        for version in &table.manifest().versions {
            let (number, Some(slot)) = (version.version, table.slot(version.version)) else {
                continue;
            };
            let event = match slot {
                Slot::Unwrapped(_) => "version.opened",
                Slot::NotUnwrapped(_) => "version.unopened",
                Slot::Waiting(_) => "version.waiting",
                Slot::Disabled => "version.disabled",
                Slot::Destroyed => "version.destroyed",
            };
            if self.slots.insert(number, event) != Some(event) {
                self.recorder.record(event, |event| {
                    event
                        .with("keyring", name)
                        .with("version", number)
                        .with("generation", table.generation())
                });
            }
        }
    }

    fn observe_lease(&mut self, name: &str, table: &KeyTable, end: Timestamp, now: Timestamp) {
        let is_lease_over = now >= end;
        if is_lease_over == self.is_lease_over {
            return;
        }
        self.is_lease_over = is_lease_over;
        let event = if is_lease_over {
            "lease.expired"
        } else {
            "lease.renewed"
        };
        self.recorder.record(event, |event| {
            event
                .with("keyring", name)
                .with("generation", table.generation())
                .with("encrypt_until", end.to_string())
        });
    }
}
