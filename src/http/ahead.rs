//! Responses that are produced before their peer takes them.
//!
//! Plain HTTP clients send all of a request before they read any of the response. If both sides
//! only wrote, both would wait.

use std::{collections::VecDeque, pin::pin, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc;

use super::{
    account::Account,
    memory::{MemoryShare, UNTRACKED},
    problem::Problem,
};

/// How much of a response may be ahead of its peer, in bytes. A response that is longer than this
/// is produced chunk by chunk from there on: its client has to read it.
const MAX_AHEAD: usize = 4 << 20;

/// A chunk, and its memory until the connection takes it.
type Chunk = (Result<Bytes, Problem>, MemoryShare);

/// Produces `chunks` on a task of its own, as far as there is memory. The task ends with its
/// consumer.
pub(crate) fn ahead(
    chunks: impl Stream<Item = Result<Bytes, Problem>> + Send + 'static,
    account: Arc<Account>,
) -> impl Stream<Item = Result<Bytes, Problem>> + Send + 'static {
    let (sender, mut receiver) = mpsc::channel(1);
    tokio::spawn(produce(chunks, account, sender));
    stream::poll_fn(move |cx| receiver.poll_recv(cx)).map(|(chunk, _)| chunk)
}

async fn produce(
    chunks: impl Stream<Item = Result<Bytes, Problem>>,
    account: Arc<Account>,
    sender: mpsc::Sender<Chunk>,
) {
    let mut chunks = pin!(chunks);
    let mut waiting = VecDeque::new();
    let (mut produced, mut is_over) = (0, false);
    // Whether everything must be taken before the next chunk is produced.
    let mut is_ahead = false;
    while !is_over || !waiting.is_empty() {
        tokio::select! {
            biased;
            permit = sender.reserve(), if is_ahead || !waiting.is_empty() => {
                let Ok(permit) = permit else { return };
                match waiting.pop_front() {
                    Some(chunk) => permit.send(chunk),
                    None => is_ahead = false,
                }
            }
            chunk = chunks.next(), if !is_over && !is_ahead => match chunk {
                Some(Ok(bytes)) => {
                    // Each counts as more than it is, so that the number of short ones is bounded.
                    let memory = bytes.len() + UNTRACKED;
                    let share = account.try_reserve(memory);
                    produced += memory;
                    is_ahead = share.is_none() || produced > MAX_AHEAD;
                    waiting.push_back((Ok(bytes), share.unwrap_or_default()));
                }
                Some(Err(problem)) => {
                    is_over = true;
                    waiting.push_back((Err(problem), MemoryShare::default()));
                }
                None => is_over = true,
            },
            () = sender.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::yield_now;

    use super::*;
    use crate::{http::account::testing::account, wire::Code};

    /// As many chunks as there may be, and how many of them were produced.
    fn chunks(
        length: usize,
    ) -> (
        impl Stream<Item = Result<Bytes, Problem>> + Send + 'static,
        Arc<AtomicUsize>,
    ) {
        let count = Arc::new(AtomicUsize::new(0));
        let produced = Arc::clone(&count);
        let chunks = stream::repeat_with(move || {
            produced.fetch_add(1, Ordering::SeqCst);
            Ok(Bytes::from(vec![7; length]))
        });
        (chunks, count)
    }

    async fn settle() {
        for _ in 0..20_000 {
            yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_is_produced_ahead_as_far_as_there_is_memory() {
        let account = account(10_000);
        let (chunks, count) = chunks(1000);
        let mut taken = Box::pin(ahead(chunks, Arc::clone(&account)));
        settle().await;
        // Four are this caller's share of the memory, and one is always produced.
        assert_eq!(count.load(Ordering::SeqCst), 5);
        assert_eq!(account.free_memory(), 10_000 - 4 * 2024);
        for _ in 0..5 {
            assert_eq!(
                taken.next().await.expect("a chunk").expect("bytes").len(),
                1000
            );
        }
        settle().await;
        assert_eq!(count.load(Ordering::SeqCst), 10, "as many again");
        drop(taken);
        settle().await;
        assert_eq!(account.free_memory(), 10_000);
        assert_eq!(count.load(Ordering::SeqCst), 10, "the producer ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_response_is_produced_chunk_by_chunk_in_the_end() {
        let account = account(1 << 30);
        let (chunks, count) = chunks(10);
        let mut taken = Box::pin(ahead(chunks, Arc::clone(&account)));
        settle().await;
        let first = count.load(Ordering::SeqCst);
        assert_eq!(first, MAX_AHEAD / (10 + UNTRACKED) + 1);
        assert!((1 << 30) - account.free_memory() <= MAX_AHEAD + 10 + UNTRACKED);
        for at in 0..first {
            assert_eq!(count.load(Ordering::SeqCst), first, "{at} taken");
            taken.next().await.expect("a chunk").expect("bytes");
        }
        settle().await;
        for at in 1..10 {
            assert_eq!(count.load(Ordering::SeqCst), first + at);
            taken.next().await.expect("a chunk").expect("bytes");
            settle().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_follows_the_chunks_before_it() {
        let account = account(10_000);
        let failing = stream::iter([
            Ok(Bytes::from_static(b"ab")),
            Err(Problem::new(Code::DecryptionFailed, "test")),
            Ok(Bytes::from_static(b"late")),
        ]);
        let taken: Vec<_> = ahead(failing, account).collect().await;
        assert_eq!(taken.len(), 2);
        assert_eq!(taken[0].as_deref(), Ok(&b"ab"[..]));
        assert!(taken[1].is_err());
    }
}
