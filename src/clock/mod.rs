//! Time as an argument: the system's clock, or one that tests set; and backoff.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;

/// Tells the time of day. Clones tell the same time.
#[derive(Debug, Clone)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// Returns the system's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// Returns a clock that advances only through the returned handle.
    pub fn manual(start: Timestamp) -> (Self, ManualClock) {
        let millis = Arc::new(AtomicI64::new(start.as_millisecond()));
        (Self(Some(Arc::clone(&millis))), ManualClock(millis))
    }

    /// Returns the current time, to the millisecond. Finer times would only make manifests harder
    /// to read.
    pub fn now(&self) -> Timestamp {
        let millis = match &self.0 {
            None => Timestamp::now().as_millisecond(),
            Some(millis) => millis.load(Ordering::Relaxed),
        };
        // Both come from a timestamp, so the conversion back can't fail.
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }
}

/// Advances the clock that [`Clock::manual`] returned with it.
#[derive(Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(
            i64::try_from(by.as_millis()).unwrap_or(i64::MAX),
            Ordering::Relaxed,
        );
    }
}

/// Returns a random duration within ±25 % of `interval`, so that a fleet doesn't act in step.
pub fn spread(interval: Duration) -> Duration {
    interval.mul_f64(0.75 + fastrand::f64() / 2.0)
}

/// Returns the wait after `failures` in a row: `first`, doubled with each further failure, up to
/// `longest`.
pub fn backoff(first: Duration, failures: u32, longest: Duration) -> Duration {
    first
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let waits = [0, 1, 2, 3, 4, u32::MAX].map(|failures| backoff(SECOND, failures, 5 * SECOND));
        assert_eq!(waits.map(|wait| wait.as_secs()), [1, 1, 2, 4, 5, 5]);
    }

    #[test]
    fn spread_stays_within_a_quarter() {
        for _ in 0..1000 {
            let wait = spread(100 * SECOND);
            assert!((75 * SECOND..=125 * SECOND).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn a_manual_clock_only_moves_by_hand() {
        let (clock, hands) = Clock::manual(Timestamp::UNIX_EPOCH);
        let other = clock.clone();
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH);
        hands.advance(SECOND);
        assert_eq!(other.now().as_millisecond(), 1000);
    }
}
