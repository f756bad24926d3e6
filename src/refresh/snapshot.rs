//! What a request is served from: a key table and the meters of its versions.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;
use metrics::Counter;

use crate::{
    keyring::KeyTable,
    model::{KeyringName, Operation},
    telemetry::Registry,
};

const OPERATIONS: &str = "sidekey_version_operations_total";

/// One generation in force. A request takes one and keeps it to its end (I4).
pub struct Snapshot {
    /// The keys.
    pub table: KeyTable,
    meters: Vec<Arc<VersionMeter>>,
}

impl Snapshot {
    /// A snapshot of `table`. The meters of versions that `former` had go on counting.
    pub(super) fn new(
        table: KeyTable,
        former: Option<&Self>,
        name: &KeyringName,
        registry: &Registry,
    ) -> Self {
        let kept = former.map_or(&[][..], |former| &former.meters);
        let fresh = table
            .manifest()
            .versions
            .iter()
            .skip(kept.len())
            .map(|version| Arc::new(VersionMeter::new(name, version.version, registry)));
        let meters = kept.iter().cloned().chain(fresh).collect();
        Self { table, meters }
    }

    /// The meter of a version that the table knows.
    pub fn meter(&self, version: u32) -> Option<&VersionMeter> {
        self.meters
            .get(usize::try_from(version.checked_sub(1)?).ok()?)
            .map(Arc::as_ref)
    }
}

/// Counts the uses of one key version: the evidence that retires it.
pub struct VersionMeter {
    encrypted: Counter,
    decrypted: Counter,
    /// Milliseconds since the epoch; `i64::MIN` for never.
    last_used: AtomicI64,
}

impl VersionMeter {
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
            "Messages encrypted and decrypted under a key version; a rewrap is one of each.",
        );
    }

    /// Notes that `count` messages were encrypted under the version.
    pub fn encrypted(&self, count: u64, now: Timestamp) {
        self.encrypted.increment(count);
        self.used(now);
    }

    /// Notes that `count` messages were decrypted under the version.
    pub fn decrypted(&self, count: u64, now: Timestamp) {
        self.decrypted.increment(count);
        self.used(now);
    }

    /// Notes that something that was counted already still goes on.
    pub fn used(&self, now: Timestamp) {
        self.last_used
            .fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }

    /// The last use that this sidecar saw.
    pub fn last_used(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.last_used.load(Ordering::Relaxed)).ok()
    }
}
