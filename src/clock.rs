//! Time as an argument: the system's, or one that tests set; and how long whoever asks over and over waits in between.

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
        self.0.fetch_add(
            i64::try_from(by.as_millis()).unwrap_or(i64::MAX),
            Ordering::Relaxed,
        );
    }
}

/// Between three and five quarters of `interval`, so that a fleet doesn't act in step.
pub fn spread(interval: Duration) -> Duration {
    interval.mul_f64(0.75 + fastrand::f64() / 2.0)
}

/// How long to wait after so many failures in a row: `first`, then twice as long each time, up to `longest`.
pub fn backoff(first: Duration, failures: u32, longest: Duration) -> Duration {
    first
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(longest)
}
