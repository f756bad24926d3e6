use std::{sync::mpsc, time::Duration};

use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::clock::ManualClock;

/// How long a test may wait without progress, in real time. A test that takes longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// How often all tasks get a turn before the test continues. A request takes a few turns: its bytes
/// pass through the kernel and through several tasks.
const TURNS: usize = 32;
/// How many steps [`Time::advance`] takes, so that timers which start again in between fire as
/// often as they should.
const STEPS: u32 = 100;
const TICK: Duration = Duration::from_millis(1);
/// How far waiting moves time: further than what settles (such as a burst of file events), and less
/// than any time-out.
const WAIT: Duration = Duration::from_secs(1);

/// The time of one test: tokio's timers and the clock, which only move together or by hand.
pub(super) struct Time {
    clock: ManualClock,
    expired: CancellationToken,
    /// Ends the thread below when it is dropped.
    _watchdog: mpsc::Sender<()>,
}

impl Time {
    pub(super) fn new(clock: ManualClock) -> Self {
        let (release, released) = mpsc::channel();
        let expired = CancellationToken::new();
        let expire = expired.clone();
        // Tokio moves paused time on its own whenever all tasks are idle, except while a blocking
        // task runs. To tokio, a task that waits for a socket is idle, so without this task every
        // time-out would fire at once.
        tokio::task::spawn_blocking(move || {
            if released.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                expire.cancel();
            }
        });
        Self {
            clock,
            expired,
            _watchdog: release,
        }
    }

    pub(super) fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// Moves timers and clock, in steps, and gives tasks their turns after each.
    pub(super) async fn advance(&self, by: Duration) {
        let step = (by / STEPS).max(TICK);
        let mut left = by;
        settle().await;
        while !left.is_zero() {
            let step = step.min(left);
            self.clock.advance(step);
            tokio::time::advance(step).await;
            settle().await;
            left -= step;
        }
    }

    /// Waits until `is_there`, moving time a little.
    pub(super) async fn wait(&self, what: &str, mut is_there: impl AsyncFnMut() -> bool) {
        let mut passed = Duration::ZERO;
        while !is_there().await {
            assert!(
                !self.expired.is_cancelled(),
                "no progress within {PATIENCE:?}: {what}"
            );
            if passed < WAIT {
                self.advance(TICK).await;
                passed += TICK;
            } else {
                // Only a thread can change anything now.
                settle().await;
                std::thread::sleep(TICK);
            }
        }
    }

    /// Waits for `work`, moving time by milliseconds meanwhile.
    pub(super) async fn pass_until<T>(&self, work: impl Future<Output = T>) -> T {
        let ticking = async {
            loop {
                self.advance(TICK).await;
            }
        };
        tokio::select! {
            biased;
            output = self.within(work) => output,
            () = ticking => unreachable!("it ticks forever"),
        }
    }

    /// Waits for `work` with time paused.
    pub(super) async fn within<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            output = work => output,
            () = self.expired.cancelled() => panic!("no progress within {PATIENCE:?}"),
        }
    }
}

/// Lets all tasks run until they wait for something.
async fn settle() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}
