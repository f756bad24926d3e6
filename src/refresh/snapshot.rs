//! What a request is served from: a key table and the usage of its versions.

use std::{
    ops::Add,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use jiff::Timestamp;

use crate::keyring::{KeyTable, Sightings, Slot};

/// An active generation. A request takes one and uses it to its end (I4).
pub struct Snapshot {
    pub(crate) table: KeyTable,
    /// One for each version that this process has seen, by number: trimmed ones as well, because a
    /// request may have begun before.
    usages: Vec<(u32, Arc<VersionUsage>)>,
    /// Versions that a manifest destroys without a testament: they must not encrypt.
    lost: Vec<u32>,
    sightings: Sightings,
}

impl Snapshot {
    /// Wraps `table`, which becomes active at `now`. Usage of versions that `former` has continues
    /// to be counted.
    pub(super) fn new(table: KeyTable, former: Option<&Self>, now: Timestamp) -> Self {
        let usages = usages(&table, former);
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

    /// Returns whether the manifest has a version, in whatever state, and it waits for no turn.
    pub(crate) fn has_met(&self, version: u32) -> bool {
        !matches!(self.table.slot(version), None | Some(Slot::Waiting(_)))
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

    /// Returns the usage of a version, or None if this process has not seen it.
    pub fn usage(&self, version: u32) -> Option<&VersionUsage> {
        find(&self.usages, version).map(Arc::as_ref)
    }

    /// Returns the usage of every version that this process has seen, by number.
    pub fn usages(&self) -> impl Iterator<Item = (u32, &VersionUsage)> {
        let usages = self.usages.iter();
        usages.map(|(version, usage)| (*version, usage.as_ref()))
    }

    /// Returns how often this process used any version of the keyring, trimmed ones included.
    pub fn uses(&self) -> Uses {
        self.usages()
            .fold(Uses::default(), |sum, (_, usage)| sum + usage.uses())
    }
}

/// The usages of the versions that `former` or `table` has.
fn usages(table: &KeyTable, former: Option<&Snapshot>) -> Vec<(u32, Arc<VersionUsage>)> {
    let mut usages = former.map_or_else(Vec::new, |former| former.usages.clone());
    let known = usages.len();
    for version in &table.manifest().versions {
        if find(&usages[..known], version.version).is_none() {
            usages.push((version.version, Arc::new(VersionUsage::new())));
        }
    }
    usages.sort_unstable_by_key(|(version, _)| *version);
    usages
}

fn find(usages: &[(u32, Arc<VersionUsage>)], version: u32) -> Option<&Arc<VersionUsage>> {
    let found = usages.binary_search_by_key(&version, |(known, _)| *known);
    found.ok().map(|index| &usages[index].1)
}

/// How many messages were encrypted and decrypted, where a rewrap counts as both, and how many
/// requests were refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uses {
    /// Messages encrypted.
    pub encrypted: u64,
    /// Messages decrypted.
    pub decrypted: u64,
    /// Requests and items of batches that were refused because the version is disabled or
    /// destroyed.
    pub refused: u64,
    /// Requests that hold the version at present, and may use it until they end.
    pub open: u64,
}

impl Add for Uses {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            encrypted: self.encrypted + other.encrypted,
            decrypted: self.decrypted + other.decrypted,
            refused: self.refused + other.refused,
            open: self.open + other.open,
        }
    }
}

/// Counts the uses of one key version: the evidence that it can be retired.
///
/// A use is counted before its response is sent. So a caller that has seen the response finds the
/// use in [`VersionUsage::uses`].
pub struct VersionUsage {
    encrypted: AtomicU64,
    decrypted: AtomicU64,
    refused: AtomicU64,
    open: AtomicU64,
    /// Milliseconds since the epoch; `i64::MIN` for never.
    last_used: AtomicI64,
    /// As for `last_used`.
    last_refused: AtomicI64,
}

impl VersionUsage {
    fn new() -> Self {
        Self {
            encrypted: AtomicU64::new(0),
            decrypted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            open: AtomicU64::new(0),
            last_used: AtomicI64::new(i64::MIN),
            last_refused: AtomicI64::new(i64::MIN),
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

    /// Counts a request that was refused because the version is disabled or destroyed. That is no
    /// use.
    pub(super) fn record_refused(&self, now: Timestamp) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.last_refused
            .fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }

    /// Counts a request that holds the version, until [`VersionUsage::close`]. What it uses counts
    /// as well.
    pub fn open(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// The request has ended.
    pub fn close(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Records that the version is still in use, for an operation that is already counted.
    pub fn touch(&self, now: Timestamp) {
        self.last_used
            .fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }

    /// Returns how often this process used the version.
    pub fn uses(&self) -> Uses {
        // A load may return an earlier value. A read-modify-write returns the last one, so no use
        // is missing that was counted by now.
        let last = |count: &AtomicU64| count.fetch_add(0, Ordering::AcqRel);
        Uses {
            encrypted: last(&self.encrypted),
            decrypted: last(&self.decrypted),
            refused: last(&self.refused),
            open: last(&self.open),
        }
    }

    /// Returns when this sidecar last used the version.
    pub fn last_used(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.last_used.load(Ordering::Relaxed)).ok()
    }

    /// Returns when this sidecar last refused a request because the version is disabled or
    /// destroyed.
    pub fn last_refused(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.last_refused.load(Ordering::Relaxed)).ok()
    }
}
