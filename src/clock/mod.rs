//! Time as an argument: the system's clocks, or one that tests set; and backoff.

mod jumps;
mod uptime;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

pub use self::{
    jumps::{Jump, Jumps},
    uptime::Uptime,
};

/// Tells the time of day, and how much time has passed. Clones tell the same time.
#[derive(Debug, Clone)]
pub struct Clock {
    /// None for the system's.
    hands: Option<Arc<Hands>>,
    started: Instant,
    /// For how long the machine had been suspended then.
    asleep_before: Duration,
}

/// What a test sets, in milliseconds.
#[derive(Debug)]
struct Hands {
    time_of_day: AtomicI64,
    asleep: AtomicI64,
}

impl Clock {
    /// Returns the system's clock.
    pub fn system() -> Self {
        Self {
            hands: None,
            started: Instant::now(),
            asleep_before: uptime::suspended(),
        }
    }

    /// Returns a clock whose time of day advances only through the returned handle. Its uptime
    /// follows Tokio's time, which tests pause.
    pub fn manual(start: Timestamp) -> (Self, ManualClock) {
        let hands = Arc::new(Hands {
            time_of_day: AtomicI64::new(start.as_millisecond()),
            asleep: AtomicI64::new(0),
        });
        let clock = Self {
            hands: Some(Arc::clone(&hands)),
            started: Instant::now(),
            asleep_before: Duration::ZERO,
        };
        (clock, ManualClock(hands))
    }

    /// Returns the time that has passed, for leases and whatever else must end while the machine
    /// sleeps.
    pub fn uptime(&self) -> Uptime {
        Uptime(self.started.elapsed() + self.asleep())
    }

    /// Returns for how long the machine has been suspended since this clock started.
    fn asleep(&self) -> Duration {
        match &self.hands {
            None => uptime::suspended().saturating_sub(self.asleep_before),
            Some(hands) => {
                let millis = hands.asleep.load(Ordering::Relaxed);
                Duration::from_millis(millis.try_into().unwrap_or(0))
            }
        }
    }

    /// Returns the current time, to the millisecond. Finer times would only make manifests harder
    /// to read.
    pub fn now(&self) -> Timestamp {
        let millis = match &self.hands {
            None => Timestamp::now().as_millisecond(),
            Some(hands) => hands.time_of_day.load(Ordering::Relaxed),
        };
        // Both come from a timestamp, so the conversion back can't fail.
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }
}

/// Sets the clock that [`Clock::manual`] returned with it.
#[derive(Debug)]
pub struct ManualClock(Arc<Hands>);

impl ManualClock {
    /// Moves the time of day forward.
    pub fn advance(&self, by: Duration) {
        self.0.time_of_day.fetch_add(millis(by), Ordering::Relaxed);
    }

    /// Sets the time of day back.
    pub fn go_back(&self, by: Duration) {
        self.0.time_of_day.fetch_sub(millis(by), Ordering::Relaxed);
    }

    /// Suspends the machine: timers stand still, and the time of day doesn't.
    pub fn sleep(&self, by: Duration) {
        self.advance(by);
        self.0.asleep.fetch_add(millis(by), Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
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
        hands.go_back(2 * SECOND);
        assert_eq!(other.now().as_millisecond(), -1000);
    }

    #[tokio::test(start_paused = true)]
    async fn time_asleep_has_passed_but_no_timer_knows() {
        let (clock, hands) = Clock::manual(Timestamp::UNIX_EPOCH);
        let (start, timer) = (clock.uptime(), Instant::now());
        tokio::time::advance(SECOND).await;
        hands.sleep(60 * SECOND);
        assert_eq!(clock.uptime().since(start), 61 * SECOND);
        assert_eq!(timer.elapsed(), SECOND);
    }

    #[test]
    fn the_systems_uptime_never_goes_back() {
        let clock = Clock::system();
        let mut before = clock.uptime();
        for _ in 0..1000 {
            let now = clock.uptime();
            assert!(now.since(before) < 60 * SECOND);
            before = now.max(before);
        }
    }
}
