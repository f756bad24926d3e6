//! Time limits that report the last error of a retrying client.
//!
//! The SDKs of AWS and Azure retry by themselves and back off while they are throttled. That can
//! take longer than the caller waits. The error of each attempt is therefore recorded for the
//! callers waiting on it, so that a time-out reports the cause instead of only the delay.

use std::{
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use super::{BackendError, ErrorKind, error::Failure};

/// Where the last failed attempt is recorded for one caller.
pub(super) type Recorder = Arc<Mutex<Option<Failure>>>;

tokio::task_local! {
    static RECORDERS: Vec<Recorder>;
}

/// A backend did not respond in time.
pub(crate) struct TimedOut {
    limit: Duration,
    /// The error of the last attempt, if any has failed.
    pub(super) last_error: Option<Failure>,
}

impl TimedOut {
    /// Describes the time-out of a request to `target`; `setting` is the key that sets the limit.
    pub(crate) fn on(self, target: impl Display, setting: Option<&str>) -> BackendError {
        let limit = self.limit;
        let setting = setting.map_or_else(String::new, |key| format!(" (`{key}`)"));
        let (kind, message) = match self.last_error {
            None => (
                ErrorKind::Unavailable,
                format!("no response within {limit:?}{setting}"),
            ),
            Some(Failure { kind, message }) => {
                (kind, format!("{message}; gave up after {limit:?}{setting}"))
            }
        };
        BackendError::new(kind, target, message)
    }
}

/// Waits for a backend's response for at most `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    response: impl Future<Output = T>,
) -> Result<T, TimedOut> {
    let recorder = Recorder::default();
    let scoped = RECORDERS.scope(vec![Arc::clone(&recorder)], response);
    timeout(limit, scoped).await.map_err(|_| TimedOut {
        limit,
        last_error: recorder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(),
    })
}

/// Records the error of an attempt that will be retried.
#[cfg(any(feature = "aws", feature = "azure"))]
pub(super) fn record(error: &Failure) {
    update(|last| *last = Some(error.clone()));
}

/// Clears `error`, unless another one has been recorded since.
#[cfg(feature = "aws")]
pub(super) fn clear(error: &Failure) {
    update(|last| *last = last.take().filter(|last| last != error));
}

#[cfg(any(feature = "aws", feature = "azure"))]
fn update(change: impl Fn(&mut Option<Failure>)) {
    // Outside of `within` there is no time limit and nothing to record.
    let _ = RECORDERS.try_with(|recorders| {
        for recorder in recorders {
            change(&mut recorder.lock().unwrap_or_else(PoisonError::into_inner));
        }
    });
}

/// Returns the recorders of the current task, to pass on to a request made for several callers.
#[cfg(feature = "aws")]
pub(super) fn recorders() -> Vec<Recorder> {
    RECORDERS.try_with(Clone::clone).unwrap_or_default()
}

/// Runs `request` so that its errors are recorded for several callers.
#[cfg(feature = "aws")]
pub(super) fn recording<T>(
    recorders: Vec<Recorder>,
    request: impl Future<Output = T>,
) -> impl Future<Output = T> {
    RECORDERS.scope(recorders, request)
}

#[cfg(all(test, any(feature = "aws", feature = "azure")))]
mod tests {
    use super::*;

    fn throttled() -> Failure {
        Failure::new(ErrorKind::Throttled, "slow down")
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_out_reports_the_last_error_of_its_own_request() {
        let attempts = async || {
            record(&Failure::new(ErrorKind::Unavailable, "busy"));
            record(&throttled());
            std::future::pending::<()>().await;
        };
        let (one, other) = tokio::join!(
            within(Duration::from_secs(1), attempts()),
            within(Duration::from_secs(1), std::future::pending::<()>())
        );
        let one = one.expect_err("late").on("kek", Some("limit"));
        assert_eq!(one.kind, ErrorKind::Throttled);
        assert_eq!(
            one.to_string(),
            "kek: slow down; gave up after 1s (`limit`)"
        );
        let other = other.expect_err("late").on("kek", None);
        assert_eq!(other.kind, ErrorKind::Unavailable);
        assert_eq!(other.to_string(), "kek: no response within 1s");
        assert_eq!(
            within(Duration::from_secs(1), async { 7 }).await.ok(),
            Some(7)
        );
    }

    #[cfg(feature = "aws")]
    #[tokio::test(start_paused = true)]
    async fn an_error_of_a_shared_request_is_recorded_for_all_its_callers() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(2);
        let wait = async || {
            sender.send(recorders()).await.expect("receiver");
            std::future::pending::<()>().await;
        };
        let request = async {
            let recorders = [
                receiver.recv().await.expect("one"),
                receiver.recv().await.expect("other"),
            ]
            .concat();
            recording(recorders, async { record(&throttled()) }).await;
        };
        let (one, other, ()) = tokio::join!(
            within(Duration::from_secs(1), wait()),
            within(Duration::from_secs(1), wait()),
            request
        );
        for late in [one, other] {
            assert_eq!(late.expect_err("late").last_error, Some(throttled()));
        }
    }
}
