//! Asking many at once, up to a bound.

use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::{CONCURRENT, REQUEST_TIMEOUT};

/// Asks every item, up to [`CONCURRENT`] at once, and returns the answers in the order of the
/// items. A slow one holds up only its own place.
pub(super) async fn ask_all<I, T>(
    items: impl IntoIterator<Item = I>,
    ask: impl AsyncFn(I) -> Result<T, String>,
) -> Vec<Result<T, String>> {
    let ask = &ask;
    let requests = stream::iter(items)
        .enumerate()
        .map(async move |(place, item)| {
            let answer = timeout(REQUEST_TIMEOUT, ask(item)).await;
            let late = || Err(format!("no response within {REQUEST_TIMEOUT:?}"));
            (place, answer.unwrap_or_else(|_| late()))
        });
    let mut answers: Vec<_> = requests.buffer_unordered(CONCURRENT).collect().await;
    answers.sort_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::fleet::{CONNECT_TIMEOUT, connect::soon};

    #[tokio::test(start_paused = true)]
    async fn a_thousand_dead_addresses_cost_seconds() {
        let start = Instant::now();
        let answers = ask_all(0..1000, async |_| soon(pending()).await).await;
        assert_eq!(start.elapsed(), 4 * CONNECT_TIMEOUT);
        assert_eq!(answers.len(), 1000);
        for answer in answers {
            let answer: Result<(), String> = answer;
            assert_eq!(answer, Err("no connection within 2s".into()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_holds_up_no_other() {
        let start = Instant::now();
        let ask = async |place| match place {
            0 => pending().await,
            place => {
                sleep(Duration::from_secs(1)).await;
                Ok(place)
            }
        };
        // One place is taken for ten seconds; the others take the rest in eight rounds.
        let answers = ask_all(0..1 + 8 * (CONCURRENT - 1), ask).await;
        assert_eq!(start.elapsed(), REQUEST_TIMEOUT);
        assert_eq!(answers[0], Err("no response within 10s".into()));
        for (place, answer) in answers.into_iter().enumerate().skip(1) {
            assert_eq!(answer, Ok(place), "answers are in order");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_bound_are_asked_at_once() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let ask = async |_| {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(Duration::from_secs(1)).await;
            now.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        };
        ask_all(0..1000, ask).await;
        assert_eq!(most.load(Ordering::Relaxed), CONCURRENT);
    }
}
