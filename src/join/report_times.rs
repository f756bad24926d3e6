//! When the next report is due.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{backoff, spread};

/// The time between two reports before the hub has named one.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
/// The longest time that a hub may name.
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// The least time between two reports, whatever happens and whatever a hub asks for.
const SPACING: Duration = Duration::from_secs(1);

/// When the next report is due.
#[derive(Debug)]
pub(super) struct ReportTimes {
    interval: Duration,
    sent: Option<Instant>,
    due: Instant,
    failures: u32,
}

impl ReportTimes {
    /// The first report is due at once.
    pub(super) fn new() -> Self {
        Self {
            interval: DEFAULT_INTERVAL,
            sent: None,
            due: Instant::now(),
            failures: 0,
        }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Sets the time between two reports, which a hub has named.
    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.interval = interval.clamp(SPACING, LONGEST_INTERVAL);
        self.due_by(Instant::now() + self.jittered());
    }

    /// Makes a report due as soon as the last one is a second ago.
    pub(super) fn soon(&mut self) {
        let now = Instant::now();
        self.due_by(self.sent.map_or(now, |sent| now.max(sent + SPACING)));
    }

    /// A report is on its way.
    pub(super) fn sent(&mut self) {
        let now = Instant::now();
        self.sent = Some(now);
        self.due = now + self.jittered();
    }

    /// The report was accepted.
    pub(super) fn accepted(&mut self) {
        self.failures = 0;
    }

    /// The report was not accepted, so another one is due earlier.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let wait = spread(backoff(SPACING, self.failures, self.interval));
        self.due_by(Instant::now() + wait.max(SPACING));
    }

    fn due_by(&mut self, at: Instant) {
        self.due = self.due.min(at);
    }

    /// Within a fifth of the interval, so that a fleet doesn't report in step.
    fn jittered(&self) -> Duration {
        let interval = self.interval.mul_f64(0.8 + fastrand::f64() * 0.4);
        interval.max(SPACING)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn wait(times: &ReportTimes) -> Duration {
        times.due().saturating_duration_since(Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn reports_are_due_at_the_interval_within_a_fifth() {
        let mut times = ReportTimes::new();
        assert_eq!(wait(&times), Duration::ZERO, "the first one");
        let mut waits = Vec::new();
        for _ in 0..100 {
            times.sent();
            waits.push(wait(&times));
        }
        let within = 24 * SECOND..=36 * SECOND;
        assert!(waits.iter().all(|wait| within.contains(wait)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait < 28 * SECOND), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait > 32 * SECOND), "{waits:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_names_the_interval_within_limits() {
        for (named, least, most) in [(10, 8, 12), (0, 1, 2), (u64::MAX, 2880, 4320)] {
            let mut times = ReportTimes::new();
            times.set_interval(Duration::from_secs(named));
            times.sent();
            let range = least * SECOND..=most * SECOND;
            assert!(range.contains(&wait(&times)), "{named}: {times:?}");
        }
        // A shorter interval counts at once, and a longer one delays nothing.
        let mut times = ReportTimes::new();
        times.sent();
        times.set_interval(5 * SECOND);
        assert!(wait(&times) <= 6 * SECOND);
        times.set_interval(500 * SECOND);
        assert!(wait(&times) <= 6 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_is_reported_at_once_but_not_more_than_once_a_second() {
        let mut times = ReportTimes::new();
        times.sent();
        times.soon();
        assert_eq!(wait(&times), SECOND);
        advance(300 * SECOND / 1000).await;
        times.soon();
        assert_eq!(wait(&times), 700 * SECOND / 1000);
        advance(SECOND).await;
        times.sent();
        advance(5 * SECOND).await;
        times.soon();
        assert_eq!(wait(&times), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_that_fails_is_followed_by_another_one_earlier() {
        let mut times = ReportTimes::new();
        let mut waits = Vec::new();
        for _ in 0..8 {
            times.sent();
            times.failed();
            waits.push(wait(&times).as_secs_f64());
        }
        for (wait, expected) in waits
            .iter()
            .zip([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0])
        {
            let range = 0.75 * expected..=1.25 * expected;
            assert!(range.contains(wait), "{waits:?}");
        }
        times.sent();
        times.accepted();
        assert!(wait(&times) >= 24 * SECOND);
        times.failed();
        assert!(wait(&times) <= 2 * SECOND, "counted from the start");
    }
}
