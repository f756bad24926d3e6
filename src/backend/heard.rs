//! What an outside system said while its client library went on trying: a library that backs off from a throttled system can take
//! longer than anybody waits, and then only what was heard on the way tells why.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use super::KekFault;

/// A kind of failure, and what was said.
pub(super) type Words = (KekFault, String);

/// What one caller hears.
pub(super) type Ear = Arc<Mutex<Option<Words>>>;

tokio::task_local! {
    static HEARD: Vec<Ear>;
}

/// There was no answer in time.
pub(crate) struct Late {
    /// What the system said to the last try of several, if it said anything.
    pub(crate) heard: Option<Words>,
}

/// Waits for an answer, but no longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, answer: impl Future<Output = T>) -> Result<T, Late> {
    let heard = Ear::default();
    let answer = timeout(limit, HEARD.scope(vec![Arc::clone(&heard)], answer)).await;
    answer.map_err(|_| Late {
        heard: heard.lock().unwrap_or_else(PoisonError::into_inner).take(),
    })
}

/// Notes what a system said to one try.
#[cfg(any(feature = "aws", feature = "azure"))]
pub(super) fn note(kind: KekFault, said: String) {
    each(|words| *words = Some((kind, said.clone())));
}

/// Takes a note back, unless another one followed it.
#[cfg(feature = "aws")]
pub(super) fn forget(said: &str) {
    each(|words| *words = words.take().filter(|(_, last)| last != said));
}

#[cfg(any(feature = "aws", feature = "azure"))]
fn each(change: impl Fn(&mut Option<Words>)) {
    // Whoever waits without a limit needs no note.
    let _ = HEARD.try_with(|ears| {
        for ear in ears {
            change(&mut ear.lock().unwrap_or_else(PoisonError::into_inner));
        }
    });
}

/// Who listens here.
#[cfg(feature = "aws")]
pub(super) fn ears() -> Vec<Ear> {
    HEARD.try_with(Clone::clone).unwrap_or_default()
}

/// Work that is done in a task of its own, and whose notes are for all of `ears`.
#[cfg(feature = "aws")]
pub(super) fn for_all<T>(ears: Vec<Ear>, work: impl Future<Output = T>) -> impl Future<Output = T> {
    HEARD.scope(ears, work)
}

#[cfg(all(test, any(feature = "aws", feature = "azure")))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_runs_out_of_time_tells_what_he_heard() {
        let tries = async || {
            note(KekFault::Unavailable, "busy".into());
            note(KekFault::Throttled, "slow down".into());
            std::future::pending::<()>().await;
        };
        let (one, other) = tokio::join!(
            within(Duration::from_secs(1), tries()),
            within(Duration::from_secs(1), std::future::pending::<()>())
        );
        assert_eq!(
            one.expect_err("late").heard,
            Some((KekFault::Throttled, "slow down".into()))
        );
        assert_eq!(other.expect_err("late").heard, None, "each hears its own");
        assert_eq!(
            within(Duration::from_secs(1), async { 7 }).await.ok(),
            Some(7)
        );
    }

    #[cfg(feature = "aws")]
    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_one_piece_of_work_hear_of_it() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(2);
        let wait = async || {
            sender.send(ears()).await.expect("somebody works");
            std::future::pending::<()>().await;
        };
        let work = async {
            let ears = [
                receiver.recv().await.expect("one"),
                receiver.recv().await.expect("other"),
            ]
            .concat();
            for_all(ears, async {
                note(KekFault::Throttled, "slow down".into())
            })
            .await;
        };
        let (one, other, ()) = tokio::join!(
            within(Duration::from_secs(1), wait()),
            within(Duration::from_secs(1), wait()),
            work
        );
        for late in [one, other] {
            assert_eq!(
                late.expect_err("late").heard,
                Some((KekFault::Throttled, "slow down".into()))
            );
        }
    }
}
