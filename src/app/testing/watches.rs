use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::files::{ChangeCallback, WatchGuard};

/// The watches on a fake.
#[derive(Default)]
pub(super) struct Watches(Mutex<Vec<Weak<Watch>>>);

struct Watch(ChangeCallback);

impl Watches {
    /// Calls `changed` on every notification until the guard is dropped.
    pub(super) fn add(&self, changed: ChangeCallback) -> WatchGuard {
        let watch = Arc::new(Watch(changed));
        self.watches().push(Arc::downgrade(&watch));
        WatchGuard::new(watch)
    }

    pub(super) fn notify(&self) {
        self.watches().retain(|watch| watch.strong_count() > 0);
        let watches: Vec<_> = self.watches().iter().filter_map(Weak::upgrade).collect();
        for watch in watches {
            (watch.0)();
        }
    }

    fn watches(&self) -> MutexGuard<'_, Vec<Weak<Watch>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
