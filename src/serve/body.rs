//! Reading request bodies within limits of size, time and memory, and keeping count of that memory until answers are taken.

use std::{
    borrow::Cow,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::poll;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use super::problem::{Code, Problem};

/// Bodies and answers up to this size are not worth the bookkeeping: all connections together hold little of them.
pub(super) const UNCOUNTED: usize = 1024;
/// A body that others wait for has to grow by [`LEAST_GROWTH`] bytes in this time, or makes room for them.
const GROWTH_TIME: Duration = Duration::from_secs(1);
const LEAST_GROWTH: usize = 64 << 10;

/// What bodies may cost.
pub(super) struct BodyLimits {
    time: Duration,
    memory: Arc<Semaphore>,
    /// How many bodies wait for their share.
    waiting: AtomicUsize,
}

/// The form of a body: how long it may be, and how much memory its work takes.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) limit: usize,
    /// How many times its length the body, what is made of it and the answer take together.
    pub(super) cost: usize,
}

/// A body that was read, with its share of the memory that bodies and answers may hold.
pub(super) struct Read {
    pub(super) bytes: Vec<u8>,
    /// The body's own length, without the room before it.
    pub(super) length: usize,
    pub(super) share: Share,
}

/// A share of the memory; none for what isn't counted.
pub(super) struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    /// Bytes that keep the share of their length until the last of them is gone, and give the rest back now.
    pub(super) fn keep_for(self, bytes: Vec<u8>) -> Bytes {
        match self.0 {
            Some(mut permit) if bytes.len() > UNCOUNTED => {
                let excess = permit.num_permits().saturating_sub(bytes.len());
                drop(permit.split(excess));
                Bytes::from_owner(Counted { bytes, _permit: permit })
            }
            _ => Bytes::from(bytes),
        }
    }
}

struct Counted {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl BodyLimits {
    /// `memory` in bytes for all bodies together; the config keeps it below 2^30.
    pub(super) fn new(time: Duration, memory: usize) -> Self {
        Self { time, memory: Arc::new(Semaphore::new(memory)), waiting: AtomicUsize::new(0) }
    }

    /// Reads a body behind what `buffer` makes for its length.
    pub(super) async fn read(&self, body: Incoming, form: Form, buffer: impl FnOnce(usize) -> Vec<u8>) -> Result<Read, Problem> {
        let announced = body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if announced.is_some_and(|length| length > form.limit) {
            return Err(too_large(form.limit));
        }
        let mut whole = pin!(self.read_all(body, form, announced, buffer));
        // Most bodies come with their head, and cost no timer then.
        if let Poll::Ready(result) = poll!(whole.as_mut()) {
            return result;
        }
        match timeout(self.time, whole).await {
            Ok(result) => result,
            Err(_) => Err(late(format!("the body didn't arrive within {:?}", self.time))),
        }
    }

    async fn read_all(
        &self,
        mut body: Incoming,
        form: Form,
        announced: Option<usize>,
        buffer: impl FnOnce(usize) -> Vec<u8>,
    ) -> Result<Read, Problem> {
        // A body of unknown length may grow up to the limit.
        let share = match announced.unwrap_or(form.limit) {
            0..=UNCOUNTED => None,
            most => Some(self.share(most * form.cost).await?),
        };
        let mut bytes = buffer(announced.unwrap_or(0));
        let room = bytes.len();
        let (mut checked_at, mut checked_length) = (Instant::now(), 0);
        loop {
            // Without a share, nobody waits for it.
            let frame = match share {
                None => body.frame().await,
                Some(_) => match timeout_at(checked_at + GROWTH_TIME, body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => {
                        if bytes.len() - checked_length < LEAST_GROWTH && self.waiting.load(Ordering::Relaxed) > 0 {
                            return Err(late("the body came slowly while others waited for memory"));
                        }
                        (checked_at, checked_length) = (Instant::now(), bytes.len());
                        continue;
                    }
                },
            };
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|_| Problem::new(Code::InvalidRequest, "the body ended before its announced end"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() - room + data.len() > form.limit {
                return Err(too_large(form.limit));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Read { length: bytes.len() - room, bytes, share: Share(share) })
    }

    async fn share(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let memory = Arc::clone(&self.memory);
        if let Ok(permit) = Arc::clone(&memory).try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        let _waiting = Waiting::begin(&self.waiting);
        // Half of the body's time for waiting, so that what gets its share still has time to arrive.
        match timeout(self.time / 2, memory.acquire_many_owned(permits)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Problem::new(Code::Overloaded, "other requests hold all of `limits.body_memory`; try again").retry_after(1)),
        }
    }
}

/// Counts one body that waits, while it does.
struct Waiting<'c>(&'c AtomicUsize);

impl<'c> Waiting<'c> {
    fn begin(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("a body of this form has at most {limit} bytes"))
}

fn late(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(Code::RequestTimeout, detail)
}
