//! What a request is served from: a key table and the usage of its versions.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;
use metrics::Counter;

use crate::{
    keyring::{KeyTable, Sightings, Version},
    model::{KeyringName, Operation},
    telemetry::Registry,
};

const OPERATIONS: &str = "sidekey_version_operations_total";

/// An active generation. A request takes one and uses it to its end (I4).
pub struct Snapshot {
    pub(crate) table: KeyTable,
    /// One for each version of the manifest, in its order.
    usages: Vec<Arc<VersionUsage>>,
    /// Versions that a manifest destroys without a testament: they must not encrypt.
    lost: Vec<u32>,
    sightings: Sightings,
}

impl Snapshot {
    /// Wraps `table`, which becomes active at `now`. Usage of versions that `former` has continues
    /// to be counted.
    pub(super) fn new(
        table: KeyTable,
        former: Option<&Self>,
        name: &KeyringName,
        registry: &Registry,
        now: Timestamp,
    ) -> Self {
        let usage = |version: &Version| {
            let known = former.and_then(|former| former.shared_usage(version.version));
            known
                .cloned()
                .unwrap_or_else(|| Arc::new(VersionUsage::new(name, version.version, registry)))
        };
        let usages = table.manifest().versions.iter().map(usage).collect();
        // A manifest that declares a loss was refused; that its predecessor gets a late answer from
        // a KEK, or is found again, doesn't undo the loss.
        let lost = former
            .filter(|former| former.table.generation() == table.generation())
            .map_or_else(Vec::new, |former| former.lost.clone());
        let mut sightings =
            former.map_or_else(Sightings::default, |former| former.sightings.clone());
        sightings.observe(table.manifest(), now);
        Self {
            table,
            usages,
            lost,
            sightings,
        }
    }

    /// Returns this generation with `lost` versions that no longer encrypt.
    pub(super) fn without_lost(&self, lost: Vec<u32>) -> Self {
        Self {
            table: self.table.clone(),
            usages: self.usages.clone(),
            lost,
            sightings: self.sightings.clone(),
        }
    }

    /// Returns the versions that must not encrypt, because a manifest that isn't accepted yet
    /// destroys them without a testament.
    pub(crate) fn lost(&self) -> &[u32] {
        &self.lost
    }

    /// Returns when this process first saw the state of each version.
    pub fn sightings(&self) -> &Sightings {
        &self.sightings
    }

    /// Returns the usage of a version, or None if the table does not contain it.
    pub fn usage(&self, version: u32) -> Option<&VersionUsage> {
        self.shared_usage(version).map(Arc::as_ref)
    }

    fn shared_usage(&self, version: u32) -> Option<&Arc<VersionUsage>> {
        self.usages.get(self.table.manifest().index_of(version)?)
    }
}

/// Counts the uses of one key version: the evidence that it can be retired.
pub struct VersionUsage {
    encrypted: Counter,
    decrypted: Counter,
    /// Milliseconds since the epoch; `i64::MIN` for never.
    last_used: AtomicI64,
}

impl VersionUsage {
    fn new(keyring: &KeyringName, version: u32, registry: &Registry) -> Self {
        let version = version.to_string();
        let counter = |operation: Operation| {
            let labels = [
                ("keyring", keyring.as_str()),
                ("version", &version),
                ("operation", operation.as_str()),
            ];
            registry.counter(OPERATIONS, &labels)
        };
        Self {
            encrypted: counter(Operation::Encrypt),
            decrypted: counter(Operation::Decrypt),
            last_used: AtomicI64::new(i64::MIN),
        }
    }

    pub(super) fn describe(registry: &Registry) {
        registry.describe_counter(
            OPERATIONS,
            "Messages encrypted and decrypted under a key version; a rewrap counts as both.",
        );
    }

    /// Counts `count` messages encrypted under the version.
    pub fn record_encrypted(&self, count: u64, now: Timestamp) {
        self.encrypted.increment(count);
        self.touch(now);
    }

    /// Counts `count` messages decrypted under the version.
    pub fn record_decrypted(&self, count: u64, now: Timestamp) {
        self.decrypted.increment(count);
        self.touch(now);
    }

    /// Records that the version is still in use, for an operation that is already counted.
    pub fn touch(&self, now: Timestamp) {
        self.last_used
            .fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }

    /// Returns when this sidecar last used the version.
    pub fn last_used(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.last_used.load(Ordering::Relaxed)).ok()
    }
}
