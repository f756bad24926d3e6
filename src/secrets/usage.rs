//! How many times each version of a secret was served: the evidence that a version is out of use.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use jiff::Timestamp;

/// How many versions' usage is remembered.
const MAX_VERSIONS: usize = 32;

/// The usage of one version by this sidecar's callers.
pub struct Usage {
    version: String,
    count: AtomicU64,
    /// Milliseconds since the epoch; `i64::MIN` for never.
    last: AtomicI64,
}

impl Usage {
    pub(super) fn new(version: &str) -> Arc<Self> {
        Arc::new(Self {
            version: version.to_owned(),
            count: AtomicU64::new(0),
            last: AtomicI64::new(i64::MIN),
        })
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Returns how many times the version was served.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns when the version was last served.
    pub(crate) fn last(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.last.load(Ordering::Relaxed)).ok()
    }

    pub(super) fn record(&self, now: Timestamp) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.last.fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }
}

/// The usage of a secret's latest versions, the newest last.
#[derive(Default)]
pub(super) struct Usages(Mutex<VecDeque<Arc<Usage>>>);

impl Usages {
    pub(super) fn all(&self) -> Vec<Arc<Usage>> {
        self.lock().iter().cloned().collect()
    }

    /// Takes over what `former` counts.
    pub(super) fn inherit(&self, former: &Self) {
        let usages = former.lock().clone();
        *self.lock() = usages;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns the usage of a version: the one that is counted already, or a new one.
    pub(super) fn of(&self, version: &str) -> Arc<Usage> {
        let mut usages = self.lock();
        if let Some(usage) = usages.iter().find(|usage| usage.version == version) {
            return Arc::clone(usage);
        }
        // Usage of a value that can still be served is never forgotten.
        let oldest = usages
            .iter()
            .position(|usage| Arc::strong_count(usage) == 1);
        if usages.len() >= MAX_VERSIONS
            && let Some(oldest) = oldest
        {
            usages.remove(oldest);
        }
        let usage = Usage::new(version);
        usages.push_back(Arc::clone(&usage));
        usage
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Usage>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
