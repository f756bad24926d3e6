//! What the audit log is told of a keyring: what came in force, what was refused, when encrypting ended.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Failure, Keyring};
use crate::{audit::Recorder, keyring::Slot};

/// Compares what is in force with what it saw last, and reports the difference.
pub(super) struct Witness {
    recorder: Recorder,
    generation: u64,
    primary: Option<u32>,
    slots: BTreeMap<u32, &'static str>,
    is_lease_over: bool,
}

impl Witness {
    pub(super) fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            generation: 0,
            primary: None,
            slots: BTreeMap::new(),
            is_lease_over: false,
        }
    }

    /// Reports a manifest that was refused, or versions that don't open; called when that is news.
    pub(super) fn refused(&self, keyring: &Keyring, failure: &Failure) {
        let serving = self.generation;
        self.recorder.record("manifest.refused", |event| {
            event
                .with("keyring", keyring.name().as_str())
                .with("code", failure.code)
                .with("reason", failure.message.as_str())
                .with("generation_served", serving)
        });
    }

    /// Reports what has changed since the last time.
    pub(super) fn observe(&mut self, keyring: &Keyring, now: Timestamp) {
        let snapshot = keyring.snapshot();
        let Some(table) = snapshot.as_deref().map(|snapshot| &snapshot.table) else {
            return;
        };
        let name = keyring.name().as_str();
        let (generation, primary) = (table.generation(), table.primary(now));
        if generation != self.generation {
            let before = self.generation;
            self.recorder.record("keyring.in_force", |event| {
                let event = event
                    .with("keyring", name)
                    .with("id", table.id().to_string())
                    .with("wave", table.wave().as_str());
                event
                    .with("generation", generation)
                    .with("generation_before", before)
                    .with("primary", primary)
            });
            self.generation = generation;
        }
        if primary != self.primary {
            let (before, since) = (
                self.primary,
                table.primary_since(now).map(|since| since.to_string()),
            );
            self.recorder.record("primary.changed", |event| {
                let event = event
                    .with("keyring", name)
                    .with("generation", generation)
                    .with("wave", table.wave().as_str());
                event
                    .with("primary", primary)
                    .with("primary_before", before)
                    .with("since", since)
            });
            self.primary = primary;
        }
        for version in &table.manifest().versions {
            let (number, Some(slot)) = (version.version, table.slot(version.version)) else {
                continue;
            };
            let state = match slot {
                Slot::Open(_) => "version.opened",
                Slot::Unopened(_) => "version.unopened",
                Slot::Disabled => "version.disabled",
                Slot::Destroyed => "version.destroyed",
            };
            if self.slots.insert(number, state) != Some(state) {
                self.recorder.record(state, |event| {
                    event
                        .with("keyring", name)
                        .with("version", number)
                        .with("generation", generation)
                });
            }
        }
        let end = keyring.lease_end(table);
        let is_lease_over = now >= end;
        if is_lease_over != self.is_lease_over {
            let event = if is_lease_over {
                "lease.expired"
            } else {
                "lease.renewed"
            };
            self.recorder.record(event, |event| {
                event
                    .with("keyring", name)
                    .with("generation", generation)
                    .with("encrypt_until", end.to_string())
            });
            self.is_lease_over = is_lease_over;
        }
    }
}
