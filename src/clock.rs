//! Time as an argument: the system's, or one that tests set.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;

/// Tells the time of day. Clones tell the same.
#[derive(Debug, Clone)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still until somebody sets it.
    pub fn manual(start: Timestamp) -> (Self, ManualClock) {
        let millis = Arc::new(AtomicI64::new(start.as_millisecond()));
        (Self(Some(Arc::clone(&millis))), ManualClock(millis))
    }

    /// Now, to the millisecond: finer times would only make manifests harder to read.
    pub fn now(&self) -> Timestamp {
        let millis = match &self.0 {
            None => Timestamp::now().as_millisecond(),
            Some(millis) => millis.load(Ordering::Relaxed),
        };
        // Both come from a timestamp, so the conversion back can't fail.
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }
}

/// Sets the clock that it was made with.
#[derive(Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}
