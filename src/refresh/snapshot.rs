//! What a request is served from: a key table and the usage of its versions.

use std::{
    ops::Add,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use jiff::Timestamp;

use crate::keyring::{KeyTable, Sightings, Version};

/// An active generation. A request takes one and uses it to its end (I4).
pub struct Snapshot {
    pub(crate) table: KeyTable,
    /// One for each version of the manifest, in its order.
    usages: Vec<Arc<VersionUsage>>,
    /// The uses of versions that earlier generations had.
    former_uses: Uses,
    /// Versions that a manifest destroys without a testament: they must not encrypt.
    lost: Vec<u32>,
    sightings: Sightings,
}

impl Snapshot {
    /// Wraps `table`, which becomes active at `now`. Usage of versions that `former` has continues
    /// to be counted.
    pub(super) fn new(table: KeyTable, former: Option<&Self>, now: Timestamp) -> Self {
        let usage = |version: &Version| {
            let known = former.and_then(|former| former.shared_usage(version.version));
            known
                .cloned()
                .unwrap_or_else(|| Arc::new(VersionUsage::new()))
        };
        let usages = table.manifest().versions.iter().map(usage).collect();
        let former_uses = former.map_or_else(Uses::default, |former| former.uses_without(&table));
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
            former_uses,
            lost,
            sightings,
        }
    }

    /// Returns this generation with `lost` versions that no longer encrypt.
    pub(super) fn without_lost(&self, lost: Vec<u32>) -> Self {
        Self {
            table: self.table.clone(),
            usages: self.usages.clone(),
            former_uses: self.former_uses,
            lost,
            sightings: self.sightings.clone(),
        }
    }

    /// Returns whether the manifest has a version, in whatever state.
    pub(super) fn lists(&self, version: u32) -> bool {
        self.table.slot(version).is_some()
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

    /// Returns how often this process used any version of the keyring, trimmed ones included.
    pub fn uses(&self) -> Uses {
        self.usages
            .iter()
            .fold(self.former_uses, |sum, usage| sum + usage.uses())
    }

    /// Returns the uses of versions that `table` lacks.
    fn uses_without(&self, table: &KeyTable) -> Uses {
        let versions = &self.table.manifest().versions;
        let gone = versions
            .iter()
            .zip(&self.usages)
            .filter(|(version, _)| table.manifest().index_of(version.version).is_none());
        gone.fold(self.former_uses, |sum, (_, usage)| sum + usage.uses())
    }

    fn shared_usage(&self, version: u32) -> Option<&Arc<VersionUsage>> {
        self.usages.get(self.table.manifest().index_of(version)?)
    }
}

/// How many messages were encrypted and decrypted; a rewrap counts as both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uses {
    /// Messages encrypted.
    pub encrypted: u64,
    /// Messages decrypted.
    pub decrypted: u64,
}

impl Add for Uses {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            encrypted: self.encrypted + other.encrypted,
            decrypted: self.decrypted + other.decrypted,
        }
    }
}

/// Counts the uses of one key version: the evidence that it can be retired.
pub struct VersionUsage {
    encrypted: AtomicU64,
    decrypted: AtomicU64,
    /// Milliseconds since the epoch; `i64::MIN` for never.
    last_used: AtomicI64,
}

impl VersionUsage {
    fn new() -> Self {
        Self {
            encrypted: AtomicU64::new(0),
            decrypted: AtomicU64::new(0),
            last_used: AtomicI64::new(i64::MIN),
        }
    }

    /// Counts `count` messages encrypted under the version.
    pub fn record_encrypted(&self, count: u64, now: Timestamp) {
        self.encrypted.fetch_add(count, Ordering::Relaxed);
        self.touch(now);
    }

    /// Counts `count` messages decrypted under the version.
    pub fn record_decrypted(&self, count: u64, now: Timestamp) {
        self.decrypted.fetch_add(count, Ordering::Relaxed);
        self.touch(now);
    }

    /// Records that the version is still in use, for an operation that is already counted.
    pub fn touch(&self, now: Timestamp) {
        self.last_used
            .fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }

    /// Returns how often this process used the version.
    pub fn uses(&self) -> Uses {
        Uses {
            encrypted: self.encrypted.load(Ordering::Relaxed),
            decrypted: self.decrypted.load(Ordering::Relaxed),
        }
    }

    /// Returns when this sidecar last used the version.
    pub fn last_used(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.last_used.load(Ordering::Relaxed)).ok()
    }
}
