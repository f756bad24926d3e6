//! The handle of a keyring, shared by the request path, the ops listener and the refresh task.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use super::{
    FailureCounts, RefreshFailure, Shared, Snapshot, Trigger, metrics::KeyringMetrics, trust::Trust,
};
use crate::{
    clock::Clock,
    config::{self, Confirm},
    keyring::KeyTable,
    model::{KeyringName, Location, Wave},
};

/// How many requests can wait for the task. While the queue is full, a refresh is due anyway.
const QUEUE: usize = 1024;
/// By how much the time of day and the time that passed may differ before the latter counts.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(1);
/// How many missing versions are remembered at once.
const MAX_MISSES: usize = 1024;

/// A keyring that is kept fresh. Reading from it takes no lock.
pub struct Keyring {
    name: KeyringName,
    wave: Wave,
    location: Location,
    confirm: Confirm,
    trust: ArcSwap<Trust>,
    snapshot: ArcSwapOption<Snapshot>,
    generations: watch::Sender<Option<u64>>,
    /// Milliseconds since the epoch; `i64::MIN` for never.
    confirmed_at: AtomicI64,
    /// The uptime that belongs to `confirmed_at`, in milliseconds; negative before this process.
    confirmed_uptime: AtomicI64,
    /// The generation that `confirmed_at` is about; 0 for none.
    confirmed_generation: AtomicU64,
    observed_since: Timestamp,
    failures: FailureCounts,
    /// Notified of each refused use of a version.
    refusals: Notify,
    clock: Clock,
    status: Mutex<RefreshStatus>,
    /// Versions that were found missing, and until when that is trusted.
    misses: Mutex<BTreeMap<u32, Instant>>,
    /// A manifest that didn't come from the location, until the task examines it.
    offered: Mutex<Option<Bytes>>,
    miss_ttl: Duration,
    refresh_timeout: Duration,
    requests: mpsc::Sender<Request>,
    pub(super) metrics: KeyringMetrics,
}

/// The outcome of a keyring's refreshes.
#[derive(Debug, Clone, Default)]
pub struct RefreshStatus {
    /// When the location last held a valid manifest.
    pub last_success: Option<Timestamp>,
    /// The last refresh's failure and its time; None once a refresh succeeds.
    pub failure: Option<(Timestamp, RefreshFailure)>,
}

/// A request to refresh.
pub(super) struct Request {
    pub(super) trigger: Trigger,
    pub(super) waiter: Option<Waiter>,
}

/// A caller that waits until it is known whether a version is available.
pub(super) struct Waiter {
    pub(super) version: u32,
    pub(super) done: oneshot::Sender<()>,
}

impl Keyring {
    pub(super) fn new(
        settings: &config::Keyring,
        shared: &Shared,
    ) -> (Arc<Self>, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let keyring = Self {
            name: settings.name.clone(),
            wave: settings.wave.clone().unwrap_or_else(|| shared.wave.clone()),
            location: settings.location.clone(),
            confirm: settings.confirm,
            trust: ArcSwap::new(Trust::new(settings)),
            snapshot: ArcSwapOption::empty(),
            generations: watch::Sender::new(None),
            confirmed_at: AtomicI64::new(i64::MIN),
            confirmed_uptime: AtomicI64::new(i64::MIN),
            confirmed_generation: AtomicU64::new(0),
            observed_since: shared.clock.now(),
            failures: FailureCounts::default(),
            refusals: Notify::new(),
            clock: shared.clock.clone(),
            status: Mutex::default(),
            misses: Mutex::default(),
            offered: Mutex::default(),
            miss_ttl: shared.settings.miss_ttl,
            refresh_timeout: shared.settings.read_timeout,
            requests,
            metrics: KeyringMetrics::new(&settings.name, &shared.registry),
        };
        (Arc::new(keyring), receiver)
    }

    pub(crate) fn name(&self) -> &KeyringName {
        &self.name
    }

    /// Returns the wave whose primary encrypts.
    pub fn wave(&self) -> &Wave {
        &self.wave
    }

    /// Takes over what another config lets the keyring trust: its KEKs, signers, lowest generation,
    /// anchor and accepted losses. If that differs, unwraps in progress end, and the manifest is
    /// read again. Returns whether it differs.
    pub fn trust_as(&self, settings: &config::Keyring) -> bool {
        let trust = Trust::new(settings);
        if trust.is_same(&self.trust.load()) {
            return false;
        }
        self.trust.swap(trust).replaced.cancel();
        self.request(Trigger::Config);
        true
    }

    pub(super) fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// Returns where the manifest is read from.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Returns since when uses of the versions are counted.
    pub fn observed_since(&self) -> Timestamp {
        self.observed_since
    }

    /// Returns the requests that failed since then.
    pub fn failures(&self) -> &FailureCounts {
        &self.failures
    }

    /// Counts a request that `snapshot` refused because the version is disabled or destroyed.
    pub(crate) fn count_refusal(&self, snapshot: &Snapshot, version: u32, now: Timestamp) {
        if let Some(usage) = snapshot.usage(version) {
            usage.record_refused(now);
        }
        self.refusals.notify_one();
    }

    /// Waits until a use of a version was refused since the last call. For one caller at a time.
    #[cfg(feature = "tls")]
    pub(crate) async fn refused(&self) {
        self.refusals.notified().await;
    }

    /// Returns the active generation; None until the first refresh succeeds.
    pub fn snapshot(&self) -> Guard<Option<Arc<Snapshot>>> {
        self.snapshot.load()
    }

    /// Returns the outcome of the refreshes.
    pub fn status(&self) -> RefreshStatus {
        self.status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Requests a refresh without waiting for it.
    pub fn request(&self, trigger: Trigger) {
        // A full queue means that a refresh is due anyway, and it reads the newest manifest.
        let _ = self.requests.try_send(Request {
            trigger,
            waiter: None,
        });
    }

    /// Offers a manifest that didn't come from the location, in place of one that was offered and
    /// isn't examined yet. It has to pass as one from the location would, and confirms nothing
    /// (I11).
    pub fn offer(&self, manifest: Bytes) {
        *self.offered() = Some(manifest);
        self.request(Trigger::Offer);
    }

    pub(super) fn take_offer(&self) -> Option<Bytes> {
        self.offered().take()
    }

    fn offered(&self) -> MutexGuard<'_, Option<Bytes>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refreshes because a ciphertext names a version that the caller's snapshot lacks, or hasn't
    /// unwrapped because it waits for its turn (I2), unless the active one has it by now.
    ///
    /// Returns the snapshot that is active afterwards, whether it has the version or not. Returns
    /// None if no refresh was made, because the version was recently found missing.
    pub async fn refresh_for_version(&self, version: u32) -> Option<Arc<Snapshot>> {
        // A refresh may have ended since the caller looked.
        let newest = self.snapshot.load_full();
        if newest
            .as_deref()
            .is_some_and(|newest| newest.has_met(version))
        {
            return newest;
        }
        self.metrics.unknown_versions.increment(1);
        let is_listed = |active: &Snapshot| active.table.slot(version).is_some();
        if !newest.as_deref().is_some_and(is_listed) && self.is_known_missing(version) {
            return None;
        }
        let (done, finished) = oneshot::channel();
        let waiter = Some(Waiter { version, done });
        self.requests
            .try_send(Request {
                trigger: Trigger::UnknownVersion,
                waiter,
            })
            .ok()?;
        // The snapshot shows the result, whether the refresh finished in time or not.
        let _ = timeout(self.refresh_timeout, finished).await;
        let newest = self.snapshot.load_full();
        if !newest.as_deref().is_some_and(is_listed) {
            self.remember_miss(version);
        }
        newest
    }

    fn is_known_missing(&self, version: u32) -> bool {
        let misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        misses
            .get(&version)
            .is_some_and(|until| Instant::now() < *until)
    }

    fn remember_miss(&self, version: u32) {
        let now = Instant::now();
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        if misses.len() >= MAX_MISSES {
            misses.retain(|_, until| now < *until);
        }
        // If none has expired, only the spacing of refreshes limits how often this one is looked
        // up.
        if misses.len() < MAX_MISSES {
            misses.insert(version, now + self.miss_ttl);
        }
    }

    /// Returns when the active manifest was last confirmed to be the newest.
    pub fn confirmed_at(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.confirmed_at.load(Ordering::Relaxed)).ok()
    }

    /// Returns until when `table` may encrypt (I11): until the lease has passed by the time of day,
    /// or by the time that passed, if that is earlier. A clock that is set back extends no lease
    /// (I15).
    pub fn lease_end(&self, table: &KeyTable) -> Timestamp {
        let lease = table.manifest().policy.encrypt_lease.0;
        let end_of_day = self
            .confirmed_at()
            .and_then(|confirmed| confirmed.checked_add(lease).ok());
        let passed = self
            .clock
            .uptime()
            .as_millis()
            .saturating_sub(self.confirmed_uptime.load(Ordering::Relaxed));
        let left = i64::try_from(lease.as_millis())
            .unwrap_or(i64::MAX)
            .saturating_sub(passed);
        let end_of_uptime = self
            .clock
            .now()
            .checked_add(SignedDuration::from_millis(left))
            .ok();
        // Out of range means never confirmed or no end.
        match (end_of_day, end_of_uptime) {
            // Clocks are slewed, and both are rounded.
            (Some(day), Some(uptime)) if day.duration_since(uptime) > CLOCK_TOLERANCE => uptime,
            (Some(day), Some(_)) => day,
            (Some(day), None) if left > 0 => day,
            _ => Timestamp::MIN,
        }
    }

    /// Subscribes to the active generation, which is None until the first refresh succeeds.
    pub fn generations(&self) -> watch::Receiver<Option<u64>> {
        self.generations.subscribe()
    }

    /// Stops encrypting under versions that are lost, and keeps decrypting with them.
    pub(super) fn withhold(&self, lost: &[u32]) {
        let current = self.snapshot.load_full();
        if let Some(current) = current.filter(|current| current.lost() != lost) {
            self.publish(current.without_lost(lost.to_vec()));
        }
    }

    /// Returns whether copies of the manifest may lag without an alarm: they confirm themselves by
    /// their stamp, and less than half of the encrypt lease has passed.
    pub(super) fn may_lag(&self, table: &KeyTable, now: Timestamp) -> bool {
        self.confirm == Confirm::Stamp && !self.is_lease_half_over(table, now)
    }

    /// Returns whether more than half of the encrypt lease has passed.
    pub(super) fn is_lease_half_over(&self, table: &KeyTable, now: Timestamp) -> bool {
        let end = self.lease_end(table);
        now.checked_add(table.manifest().policy.encrypt_lease.0 / 2)
            .is_ok_and(|half_ahead| half_ahead > end)
    }

    pub(super) fn publish(&self, snapshot: Snapshot) {
        let generation = snapshot.table.generation();
        self.snapshot.store(Some(Arc::new(snapshot)));
        self.generations.send_replace(Some(generation));
    }

    /// Records that the location was read at `read_at` and holds the manifest of `table`.
    pub(super) fn confirm(&self, table: &KeyTable, read_at: Timestamp) {
        let generation = table.generation();
        let before = self
            .confirmed_generation
            .swap(generation, Ordering::Relaxed);
        let confirmed = match self.confirm {
            Confirm::Read => read_at,
            // A copy that is read again proves nothing new, and a clock that was ahead must not
            // extend the lease (I15).
            Confirm::Stamp if before == generation => return,
            Confirm::Stamp => table.manifest().updated_at.min(read_at),
        };
        let age = self.clock.now().duration_since(confirmed).as_millis();
        let age = i64::try_from(age).unwrap_or(i64::MAX);
        let uptime = self.clock.uptime().as_millis().saturating_sub(age);
        self.confirmed_uptime.store(uptime, Ordering::Relaxed);
        self.confirmed_at
            .store(confirmed.as_millisecond(), Ordering::Relaxed);
    }

    /// Records the outcome of a refresh: whether the manifest is valid, and the failure, which may
    /// be versions of a valid manifest that are not unwrapped. Returns the failure before it.
    pub(super) fn record(
        &self,
        at: Timestamp,
        is_valid: bool,
        failure: Option<RefreshFailure>,
    ) -> Option<RefreshFailure> {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if is_valid {
            status.last_success = Some(at);
        }
        std::mem::replace(&mut status.failure, failure.map(|failure| (at, failure)))
            .map(|(_, failure)| failure)
    }
}
