//! Finds out that the machine slept, or that its clock was set.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Clock, Uptime};

/// Shorter sleep needs no attention.
const MIN_SLEEP: Duration = Duration::from_secs(1);
/// Time services slew a clock by up to half a millisecond a second. Anything greater than this
/// between two observations was set.
const MIN_STEP: SignedDuration = SignedDuration::from_secs(5);

/// What happened to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    /// The machine was suspended for this long.
    Slept(Duration),
    /// The time of day went forward by this much more than time passed: it was set, or a virtual
    /// machine was paused.
    Forward(Duration),
    /// The time of day was set back by this much.
    Back(Duration),
}

impl Jump {
    /// Returns the label used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slept(_) => "slept",
            Self::Forward(_) => "forward",
            Self::Back(_) => "back",
        }
    }
}

/// Compares readings of a clock.
#[derive(Debug)]
pub struct Jumps {
    clock: Clock,
    now: Timestamp,
    uptime: Uptime,
    asleep: Duration,
}

impl Jumps {
    /// Begins to observe `clock`.
    pub fn of(clock: &Clock) -> Self {
        Self {
            now: clock.now(),
            uptime: clock.uptime(),
            asleep: clock.asleep(),
            clock: clock.clone(),
        }
    }

    /// Returns what has happened since the last observation.
    pub fn observe(&mut self) -> Vec<Jump> {
        let now = Self::of(&self.clock);
        let before = std::mem::replace(self, now);
        let slept = self.asleep.saturating_sub(before.asleep);
        let passed = SignedDuration::try_from(self.uptime.since(before.uptime));
        let step = self.now.duration_since(before.now) - passed.unwrap_or(SignedDuration::MAX);
        let slept = (slept >= MIN_SLEEP).then_some(Jump::Slept(slept));
        let stepped = (step.abs() >= MIN_STEP).then(|| {
            if step.is_negative() {
                Jump::Back(step.unsigned_abs())
            } else {
                Jump::Forward(step.unsigned_abs())
            }
        });
        slept.into_iter().chain(stepped).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn sleep_and_steps_are_told_apart_and_reported_once() {
        let (clock, hands) = Clock::manual(Timestamp::UNIX_EPOCH);
        let mut jumps = Jumps::of(&clock);
        let run = async |by| {
            hands.advance(by);
            tokio::time::advance(by).await;
        };
        run(3600 * SECOND).await;
        assert_eq!(jumps.observe(), []);
        hands.sleep(7200 * SECOND);
        run(SECOND).await;
        assert_eq!(jumps.observe(), [Jump::Slept(7200 * SECOND)]);
        assert_eq!(jumps.observe(), []);
        hands.advance(60 * SECOND);
        assert_eq!(jumps.observe(), [Jump::Forward(60 * SECOND)]);
        hands.go_back(90 * SECOND);
        run(10 * SECOND).await;
        assert_eq!(jumps.observe(), [Jump::Back(90 * SECOND)]);
        // What a time service corrects in small steps is no jump.
        hands.advance(SECOND);
        assert_eq!(jumps.observe(), []);
    }
}
