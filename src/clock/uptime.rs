//! Time that passes even while the machine sleeps.

use std::{ops::Add, time::Duration};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The time since the process started to count it, with the time for which the machine was
/// suspended. The time of day plays no part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uptime(pub(super) Duration);

impl Uptime {
    /// Returns the time that has passed since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns an earlier time, or None if nothing was counted then.
    pub fn checked_sub(self, by: Duration) -> Option<Self> {
        self.0.checked_sub(by).map(Self)
    }

    /// Returns the milliseconds since the process started to count.
    pub fn as_millis(self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }
}

impl Add<Duration> for Uptime {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

/// For how long the machine has been suspended since it started: the difference between
/// CLOCK_BOOTTIME and CLOCK_MONOTONIC (clock_gettime(2)).
pub(super) fn suspended() -> Duration {
    // In this order, a pause between the readings doesn't look like sleep.
    let with_sleep = duration(clock_gettime(ClockId::Boottime));
    let without = duration(clock_gettime(ClockId::Monotonic));
    with_sleep.saturating_sub(without)
}

/// Both clocks begin at zero.
fn duration(time: Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}
