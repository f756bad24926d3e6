//! The memory that request and response bodies may hold together, and payloads that hold a part.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use zeroize::Zeroizing;

use super::problem::Problem;
use crate::wire::Code;

/// Bodies up to this size are not accounted for: all connections together hold little of them.
pub(crate) const UNTRACKED: usize = 1024;

/// The memory that all bodies may hold together.
pub(crate) struct BodyMemory {
    bytes: Arc<Semaphore>,
    /// How long a request waits for its share.
    patience: Duration,
    /// How many requests wait.
    waiting: AtomicUsize,
}

/// A share of the memory; empty if the bytes are not accounted for. Dropping it returns the share.
#[derive(Default)]
pub(crate) struct MemoryShare(Option<OwnedSemaphorePermit>);

impl BodyMemory {
    /// `bytes` is the total; the config keeps it below 2^30.
    pub(crate) fn new(bytes: usize, patience: Duration) -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(bytes)),
            patience,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Reserves a share. Amounts up to [`UNTRACKED`] are free.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if other requests hold the memory for too long.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<MemoryShare, Problem> {
        if bytes <= UNTRACKED {
            return Ok(MemoryShare::default());
        }
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(&self.bytes).try_acquire_many_owned(permits) {
            return Ok(MemoryShare(Some(permit)));
        }
        let _waiting = WaitingGuard::new(&self.waiting);
        let acquire = Arc::clone(&self.bytes).acquire_many_owned(permits);
        match timeout(self.patience, acquire).await {
            Ok(Ok(permit)) => Ok(MemoryShare(Some(permit))),
            _ => Err(Problem::new(
                Code::Overloaded,
                "other requests hold all of `limits.body_memory`; try again",
            )
            .retry_after(1)),
        }
    }

    /// Whether requests wait for memory.
    pub(crate) fn is_contended(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

impl MemoryShare {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns what exceeds `bytes`.
    fn shrink_to(&mut self, bytes: usize) {
        if bytes <= UNTRACKED {
            self.0 = None;
        }
        if let Some(permit) = &mut self.0 {
            let excess = permit.num_permits().saturating_sub(bytes);
            drop(permit.split(excess));
        }
    }
}

/// Counts a waiting request.
struct WaitingGuard<'c>(&'c AtomicUsize);

impl<'c> WaitingGuard<'c> {
    fn new(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A part of a buffer, with its share of the body memory.
pub(crate) struct Payload {
    buffer: Buffer,
    range: Range<usize>,
    share: MemoryShare,
}

enum Buffer {
    Shared(Bytes),
    Owned(Vec<u8>),
    Zeroizing(Zeroizing<Vec<u8>>),
}

impl Payload {
    /// Keeps as much of `share` as the buffer needs, and returns the rest now.
    pub(crate) fn new(buffer: Vec<u8>, share: MemoryShare) -> Self {
        Self::tracked(Buffer::Owned(buffer), share)
    }

    /// Like [`Self::new`], but zeroizes the buffer once it has been sent.
    pub(crate) fn zeroizing(buffer: Zeroizing<Vec<u8>>, share: MemoryShare) -> Self {
        Self::tracked(Buffer::Zeroizing(buffer), share)
    }

    fn tracked(buffer: Buffer, mut share: MemoryShare) -> Self {
        let length = buffer.as_slice().len();
        share.shrink_to(length);
        Self {
            buffer,
            range: 0..length,
            share,
        }
    }

    /// Narrows the payload to a part of its buffer.
    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        Self { range, ..self }
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    /// Converts into `Bytes`, which allocates only where a share or zeroizing demands it.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self {
                buffer: Buffer::Shared(bytes),
                range,
                ..
            } => bytes.slice(range),
            Self {
                buffer: Buffer::Owned(bytes),
                range,
                share: MemoryShare(None),
            } => Bytes::from(bytes).slice(range),
            other => Bytes::from_owner(other),
        }
    }
}

impl<B: Into<Bytes>> From<B> for Payload {
    fn from(bytes: B) -> Self {
        let bytes = bytes.into();
        Self {
            range: 0..bytes.len(),
            buffer: Buffer::Shared(bytes),
            share: MemoryShare::default(),
        }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.as_slice()[self.range.clone()]
    }
}

impl Buffer {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Zeroizing(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_reservation_waits_for_memory_and_fails_in_the_end() {
        let memory = BodyMemory::new(10_000, PATIENCE);
        let share = memory.reserve(8000).await.expect("free");
        assert!(!memory.is_contended());
        let (refused, ()) = tokio::join!(memory.reserve(4000), async {
            tokio::task::yield_now().await;
            assert!(memory.is_contended());
        });
        assert_eq!(refused.err().expect("refused").code, Code::Overloaded);
        assert!(!memory.is_contended());
        drop(share);
        memory.reserve(4000).await.expect("free again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_payload_keeps_only_what_its_buffer_needs() {
        let memory = BodyMemory::new(10_000, PATIENCE);
        let share = memory.reserve(9000).await.expect("free");
        let payload = Payload::new(vec![1; 3000], share).slice(10..20);
        assert_eq!(memory.bytes.available_permits(), 7000);
        let bytes = payload.into_bytes();
        assert_eq!(bytes.len(), 10);
        assert_eq!(memory.bytes.available_permits(), 7000);
        drop(bytes);
        assert_eq!(memory.bytes.available_permits(), 10_000);
    }

    #[tokio::test]
    async fn small_bodies_are_free() {
        let memory = BodyMemory::new(0, PATIENCE);
        let share = memory.reserve(UNTRACKED).await.expect("free");
        assert!(share.is_empty());
        let payload = Payload::new(vec![7; 3], share);
        assert_eq!((payload.len(), payload.as_ref()), (3, &[7; 3][..]));
    }
}
