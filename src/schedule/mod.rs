//! When a refresh task reads its source next, and why.
//!
//! Every keyring and every secret has one task that reads its source: at an interval, after a
//! backoff while reads fail, and soon after the source reports a change. `Schedule` computes the
//! next wake-up. Leases, and which values are trusted, differ between the two and stay with them.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::{backoff, spread};

/// A writer's burst of events (create, write, rename) ends within this time and costs one read.
const SETTLE: Duration = Duration::from_millis(5);
/// A duration that never elapses in practice, yet can be added to any instant.
pub(crate) const FAR_FUTURE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What caused a read of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The process started, or a secret was requested for the first time.
    Start,
    /// The process started and there is a cached copy of the manifest.
    CachedManifest,
    /// The source reported a change.
    File,
    /// SIGHUP.
    Signal,
    /// The config changed what may be read, or how.
    Config,
    /// The machine slept, or its clock was set: leases may be over, and timers are late.
    Clock,
    /// An operator or a hub announced a change (`POST /push`).
    Push,
    /// A hub sent a manifest.
    Offer,
    /// The poll interval elapsed.
    Poll,
    /// The previous read failed, or left versions that are not unwrapped.
    Retry,
    /// The turn of a new version has come.
    Turn,
    /// A ciphertext named a version that the key table lacks (I2).
    UnknownVersion,
    /// A secret's value or its lease is about to expire.
    Lease,
    /// A caller asked for a secret's newest value, or for one that is not held.
    OnDemand,
}

impl Trigger {
    /// Returns the label used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::CachedManifest => "copy",
            Self::File => "file",
            Self::Signal => "signal",
            Self::Config => "config",
            Self::Clock => "clock",
            Self::Push => "push",
            Self::Offer => "offer",
            Self::Poll => "poll",
            Self::Retry => "retry",
            Self::Turn => "turn",
            Self::UnknownVersion => "unknown_version",
            Self::Lease => "lease",
            Self::OnDemand => "demand",
        }
    }
}

/// Waits for the rest of a writer's burst if the source reported a change.
pub(crate) async fn settle(trigger: Trigger) {
    if trigger == Trigger::File {
        sleep(SETTLE).await;
    }
}

/// The next wake-up of a refresh task.
#[derive(Debug)]
pub(crate) struct Schedule {
    first_backoff: Duration,
    max_backoff: Duration,
    consecutive_failures: u32,
    next: (Trigger, Instant),
}

impl Schedule {
    /// A schedule that is due at once.
    ///
    /// After a failure the task waits for `first_backoff`, then twice as long after each further
    /// one, up to `max_backoff`.
    pub(crate) fn start(first_backoff: Duration, max_backoff: Duration) -> Self {
        Self {
            first_backoff,
            max_backoff,
            consecutive_failures: 0,
            next: (Trigger::Start, Instant::now()),
        }
    }

    /// Makes the first read due again, now. Failures are still counted.
    pub(crate) fn restart(&mut self) {
        self.next = (Trigger::Start, Instant::now());
    }

    /// Schedules the next poll after a read that succeeded.
    pub(crate) fn succeeded(&mut self, poll_interval: Duration) {
        self.consecutive_failures = 0;
        self.next = (Trigger::Poll, Instant::now() + spread(poll_interval));
    }

    /// Schedules a retry after a read that failed.
    pub(crate) fn failed(&mut self) {
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        let delay = backoff(
            self.first_backoff,
            self.consecutive_failures,
            self.max_backoff,
        );
        self.next = (Trigger::Retry, Instant::now() + spread(delay));
    }

    /// Brings the next wake-up forward to `at`, unless it is due earlier already.
    pub(crate) fn wake_by(&mut self, at: Instant, trigger: Trigger) {
        if at < self.next.1 {
            self.next = (trigger, at);
        }
    }

    /// Schedules no further wake-up; only requests cause reads until the next outcome.
    pub(crate) fn suspend(&mut self) {
        self.next = (Trigger::Retry, Instant::now() + FAR_FUTURE);
    }

    /// Waits for the next wake-up. Dropping the future loses nothing.
    pub(crate) async fn elapsed(&self) -> Trigger {
        let (trigger, at) = self.next;
        sleep_until(at).await;
        trigger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    async fn next(schedule: &Schedule) -> (Trigger, Duration) {
        let start = Instant::now();
        let trigger = schedule.elapsed().await;
        (trigger, start.elapsed())
    }

    /// Between three and five quarters of `interval`; tokio's timers have a resolution of 1 ms.
    fn is_spread(delay: Duration, interval: Duration) -> bool {
        let tolerance = Duration::from_millis(2);
        delay + tolerance >= interval * 3 / 4 && delay <= interval * 5 / 4 + tolerance
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_read_is_due_at_once() {
        let schedule = Schedule::start(SECOND, MINUTE);
        assert_eq!(next(&schedule).await, (Trigger::Start, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_is_followed_by_a_poll_at_the_spread_interval() {
        let mut schedule = Schedule::start(SECOND, MINUTE);
        for _ in 0..100 {
            schedule.succeeded(MINUTE);
            let (trigger, delay) = next(&schedule).await;
            assert_eq!(trigger, Trigger::Poll);
            assert!(is_spread(delay, MINUTE), "{delay:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_backoff_doubles_up_to_its_maximum_and_a_success_resets_it() {
        let mut schedule = Schedule::start(SECOND, 5 * SECOND);
        for expected in [SECOND, 2 * SECOND, 4 * SECOND, 5 * SECOND, 5 * SECOND] {
            schedule.failed();
            let (trigger, delay) = next(&schedule).await;
            assert_eq!(trigger, Trigger::Retry);
            assert!(is_spread(delay, expected), "{delay:?} for {expected:?}");
        }
        schedule.succeeded(MINUTE);
        schedule.failed();
        assert!(is_spread(next(&schedule).await.1, SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_up_is_only_ever_brought_forward() {
        let mut schedule = Schedule::start(SECOND, MINUTE);
        schedule.succeeded(MINUTE);
        let now = Instant::now();
        schedule.wake_by(now + SECOND, Trigger::Lease);
        schedule.wake_by(now + 2 * SECOND, Trigger::Lease);
        let (trigger, delay) = next(&schedule).await;
        assert_eq!(trigger, Trigger::Lease);
        assert!(delay < 2 * SECOND, "{delay:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_schedule_does_not_wake_up_by_itself() {
        let mut schedule = Schedule::start(SECOND, MINUTE);
        schedule.suspend();
        let wait = tokio::time::timeout(FAR_FUTURE / 2, schedule.elapsed());
        assert!(wait.await.is_err());
        schedule.restart();
        assert_eq!(next(&schedule).await, (Trigger::Start, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_change_of_the_source_waits_for_the_rest_of_a_burst() {
        let start = Instant::now();
        settle(Trigger::Push).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        settle(Trigger::File).await;
        assert!(start.elapsed() >= SETTLE);
    }
}
