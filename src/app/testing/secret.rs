use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{mode::Mode, watches::Watches};
use crate::{
    backend::{
        BackendError, ErrorKind, FetchOutcome, FetchedValue, HeldValue, Lease, SecretProvider,
        VersionSelector,
    },
    clock::Clock,
    files::{ChangeCallback, WatchGuard},
    model::SecretSource,
};

/// A secret's source in memory, with versions and stages.
pub(crate) struct FakeSecret {
    source: SecretSource,
    clock: Clock,
    values: Mutex<Values>,
    watches: Watches,
    mode: Mode<ErrorKind>,
    fetches: AtomicUsize,
}

#[derive(Default)]
struct Values {
    by_version: BTreeMap<String, (Vec<u8>, Timestamp)>,
    current: Option<String>,
    previous: Option<String>,
    pending: Option<String>,
    lease: Option<Arc<FakeLease>>,
}

impl FakeSecret {
    pub(super) fn new(source: &SecretSource, clock: Clock) -> Self {
        Self {
            source: source.clone(),
            clock,
            values: Mutex::default(),
            watches: Watches::default(),
            mode: Mode::default(),
            fetches: AtomicUsize::new(0),
        }
    }

    /// Makes `value` the current one, under `version`; the one before becomes the previous.
    /// Notifies watchers.
    pub(crate) fn rotate(&self, version: &str, value: impl AsRef<[u8]>) {
        {
            let mut values = self.values();
            values.insert(version, value.as_ref(), self.clock.now());
            values.previous = values.current.replace(version.into());
        }
        self.notify();
    }

    /// Makes `value` the pending one, under `version`.
    pub(crate) fn introduce(&self, version: &str, value: impl AsRef<[u8]>) {
        let mut values = self.values();
        values.insert(version, value.as_ref(), self.clock.now());
        values.pending = Some(version.into());
    }

    /// Deletes all versions, and notifies.
    pub(crate) fn delete(&self) {
        *self.values() = Values::default();
        self.notify();
    }

    /// Hands out every value from now on under a lease that runs for `duration`.
    pub(crate) fn lease(&self, duration: Duration) -> Arc<FakeLease> {
        let lease = Arc::new(FakeLease::new(duration));
        self.values().lease = Some(Arc::clone(&lease));
        lease
    }

    /// Notifies all watchers, whether or not anything changed.
    pub(crate) fn notify(&self) {
        self.watches.notify();
    }

    /// Fails every call from now on.
    pub(crate) fn fail(&self, fault: ErrorKind) {
        self.mode.fail(fault);
    }

    /// Hangs every call from now on.
    pub(crate) fn hang(&self) {
        self.mode.hang();
    }

    /// Answers calls again, including those that hang.
    pub(crate) fn work(&self) {
        self.mode.work();
    }

    /// Returns how many times a value was read.
    pub(crate) fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }

    fn error(&self, fault: ErrorKind, reason: &str) -> BackendError {
        BackendError::new(fault, &self.source, reason)
    }

    fn values(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, which: &VersionSelector, limit: usize) -> Result<FetchedValue, BackendError> {
        let values = self.values();
        let version = match which {
            VersionSelector::Current => values.current.clone(),
            VersionSelector::Previous => values.previous.clone(),
            VersionSelector::Pending => values.pending.clone(),
            VersionSelector::Version(version) => Some(version.clone()),
        };
        let found = version.and_then(|version| {
            let (bytes, created_at) = values.by_version.get(&version)?.clone();
            Some((version, bytes, created_at))
        });
        let (version, bytes, created_at) =
            found.ok_or_else(|| self.error(ErrorKind::NotFound, "there is no such value"))?;
        if bytes.len() > limit {
            return Err(BackendError::secret_too_large(&self.source, limit));
        }
        let lease = values.lease.clone();
        Ok(FetchedValue {
            bytes: Zeroizing::new(bytes),
            version,
            created_at: lease.is_none().then_some(created_at),
            expires_at: None,
            lease: lease.map(|lease| lease as Arc<dyn Lease>),
        })
    }
}

impl Values {
    fn insert(&mut self, version: &str, value: &[u8], now: Timestamp) {
        self.by_version
            .insert(version.into(), (value.to_vec(), now));
    }
}

impl SecretProvider for FakeSecret {
    fn fetch<'a>(
        &'a self,
        which: &'a VersionSelector,
        _: Option<HeldValue<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<FetchOutcome, BackendError>> {
        Box::pin(async move {
            self.fetches.fetch_add(1, Ordering::Relaxed);
            let fault = |fault| self.error(fault, "the test makes it fail");
            self.mode.answer().await.map_err(fault)?;
            self.find(which, limit).map(FetchOutcome::Value)
        })
    }

    fn watch(
        &self,
        former: Option<WatchGuard>,
        changed: ChangeCallback,
    ) -> BoxFuture<'_, Option<WatchGuard>> {
        drop(former);
        let guard = self.watches.add(changed);
        Box::pin(async { Some(guard) })
    }
}

/// A lease in memory. It can be renewed until [`FakeLease::end`].
pub(crate) struct FakeLease {
    duration: Duration,
    has_ended: Mutex<bool>,
    renewals: AtomicUsize,
    revocations: AtomicUsize,
}

impl FakeLease {
    fn new(duration: Duration) -> Self {
        Self {
            duration,
            has_ended: Mutex::default(),
            renewals: AtomicUsize::new(0),
            revocations: AtomicUsize::new(0),
        }
    }

    /// Ends it: renewals fail from now on.
    pub(crate) fn end(&self) {
        *self
            .has_ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Returns how many renewals were asked for.
    pub(crate) fn renewals(&self) -> usize {
        self.renewals.load(Ordering::Relaxed)
    }

    /// Returns how many times it was revoked.
    pub(crate) fn revocations(&self) -> usize {
        self.revocations.load(Ordering::Relaxed)
    }
}

impl Lease for FakeLease {
    fn duration(&self) -> Duration {
        self.duration
    }

    fn is_renewable(&self) -> bool {
        true
    }

    fn renew(&self) -> BoxFuture<'_, Result<Duration, BackendError>> {
        self.renewals.fetch_add(1, Ordering::Relaxed);
        let has_ended = *self
            .has_ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Box::pin(async move {
            if has_ended {
                return Err(BackendError::new(
                    ErrorKind::NotFound,
                    "lease",
                    "the lease has ended",
                ));
            }
            Ok(self.duration)
        })
    }

    fn revoke(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        self.revocations.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }
}
