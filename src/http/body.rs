//! Reading request bodies within limits of size, time and memory, and keeping count of that memory until answers are taken.
//!
//! Plaintexts pass through here.

use std::{
    borrow::Cow,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::poll;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use zeroize::Zeroizing;

use super::problem::{Code, Problem};
use crate::config::{Limits, Timeouts};

/// Bodies and answers up to this size are not worth the bookkeeping: all connections together hold little of them.
pub(crate) const UNCOUNTED: usize = 1024;
/// A body that others wait for has to grow by [`LEAST_GROWTH`] bytes in this time, or makes room for them.
const GROWTH_TIME: Duration = Duration::from_secs(1);
const LEAST_GROWTH: usize = 64 << 10;
/// How long the rest of a body is read whose request was answered already.
const LINGER: Duration = Duration::from_secs(5);

/// What bodies may cost.
pub(crate) struct BodyLimits {
    /// For a whole body.
    time: Duration,
    /// For the next bytes of one that is worked on while it comes.
    idle: Duration,
    memory: Arc<Semaphore>,
    /// How many bodies wait for their share.
    waiting: AtomicUsize,
}

/// The form of a body: how long it may be, and how much memory its work takes.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    pub(crate) limit: usize,
    /// How many times its length the body, what is made of it and the answer take together.
    pub(crate) cost: usize,
}

/// A body that was read, with its share of the memory that bodies and answers may hold.
pub(crate) struct Read {
    pub(crate) bytes: Vec<u8>,
    /// The body's own length, without the room before it.
    pub(crate) length: usize,
    pub(crate) share: Share,
}

/// A share of the memory; none for what isn't counted.
pub(crate) struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    /// The same as [`Self::keep_for`] of bytes that are zeroized when they are gone.
    pub(crate) fn keep_zeroized(self, bytes: Zeroizing<Vec<u8>>) -> Bytes {
        Bytes::from_owner(Counted {
            bytes,
            _permit: self.0,
        })
    }

    /// Bytes that keep the share of their length until the last of them is gone, and give the rest back now.
    pub(crate) fn keep_for(self, bytes: Vec<u8>) -> Bytes {
        match self.0 {
            Some(mut permit) if bytes.len() > UNCOUNTED => {
                let excess = permit.num_permits().saturating_sub(bytes.len());
                drop(permit.split(excess));
                Bytes::from_owner(Counted {
                    bytes,
                    _permit: Some(permit),
                })
            }
            _ => Bytes::from(bytes),
        }
    }
}

struct Counted<B> {
    bytes: B,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Counted<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl BodyLimits {
    /// `memory` in bytes for all bodies together; the config keeps it below 2^30.
    pub(crate) fn new(timeouts: &Timeouts, memory: usize) -> Self {
        Self {
            time: timeouts.body,
            idle: timeouts.idle,
            memory: Arc::new(Semaphore::new(memory)),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Reads a body, of which `first` has come already, behind what `buffer` makes for its length.
    pub(crate) async fn read(
        &self,
        body: Arriving,
        first: Bytes,
        form: Form,
        buffer: impl FnOnce(usize) -> Vec<u8>,
    ) -> Result<Read, Problem> {
        let announced = body.remaining().map(|rest| {
            usize::try_from(rest)
                .unwrap_or(usize::MAX)
                .saturating_add(first.len())
        });
        if announced.is_some_and(|length| length > form.limit) {
            return Err(too_large(form.limit));
        }
        let whole = self.read_all(body, first, form, announced, buffer);
        self.within_time(whole).await
    }

    /// The first bytes of a body; none if it is empty.
    pub(crate) async fn first(&self, body: &mut Arriving) -> Result<Bytes, Problem> {
        self.within_time(async { Ok(body.next().await?.unwrap_or_default()) })
            .await
    }

    /// A body that is worked on while it comes, of which `first` has come already.
    pub(crate) async fn flow(
        self: &Arc<Self>,
        body: Arriving,
        first: Bytes,
    ) -> Result<Inflow, Problem> {
        let share = self.share(Limits::FLOW_COST).await?;
        Ok(Inflow {
            body,
            first,
            pace: Pace::default(),
            limits: Arc::clone(self),
            received: Arc::default(),
            _share: share,
        })
    }

    async fn within_time<T>(
        &self,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let mut work = pin!(work);
        // Most bodies come with their head, and cost no timer then.
        if let Poll::Ready(result) = poll!(work.as_mut()) {
            return result;
        }
        match timeout(self.time, work).await {
            Ok(result) => result,
            Err(_) => Err(late(format!(
                "the body didn't arrive within {:?}",
                self.time
            ))),
        }
    }

    async fn read_all(
        &self,
        mut body: Arriving,
        first: Bytes,
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
        let mut pace = Pace::default();
        let mut came = Some(first);
        while let Some(data) = came {
            if bytes.len() - room + data.len() > form.limit {
                return Err(too_large(form.limit));
            }
            bytes.extend_from_slice(&data);
            // Without a share, nobody waits for it.
            came = if share.is_some() {
                pace.next(&mut body, self).await?
            } else {
                body.next().await?
            };
        }
        Ok(Read {
            length: bytes.len() - room,
            bytes,
            share: Share(share),
        })
    }

    /// A share for an answer that no body led to.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Share, Problem> {
        Ok(Share(if bytes <= UNCOUNTED {
            None
        } else {
            Some(self.share(bytes).await?)
        }))
    }

    /// Whether requests wait for memory.
    pub(crate) fn is_pressed(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
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
            _ => Err(Problem::new(
                Code::Overloaded,
                "other requests hold all of `limits.body_memory`; try again",
            )
            .retry_after(1)),
        }
    }
}

/// A body that is worked on while it comes. It holds its share of the memory for as long as that takes.
pub(crate) struct Inflow {
    body: Arriving,
    /// What came and was not taken yet.
    first: Bytes,
    pace: Pace,
    limits: Arc<BodyLimits>,
    received: Arc<AtomicU64>,
    _share: OwnedSemaphorePermit,
}

impl Inflow {
    /// The bytes that came next; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let data = if self.first.is_empty() {
            self.pace.next(&mut self.body, &self.limits).await?
        } else {
            Some(std::mem::take(&mut self.first))
        };
        self.received.fetch_add(
            data.as_ref().map_or(0, Bytes::len) as u64,
            Ordering::Relaxed,
        );
        Ok(data)
    }

    /// Fills `buffer` up to `length`, or up to the body's end.
    pub(crate) async fn fill(
        &mut self,
        buffer: &mut Vec<u8>,
        length: usize,
    ) -> Result<(), Problem> {
        while buffer.len() < length {
            let Some(mut data) = self.next().await? else {
                break;
            };
            let rest = data.split_off(data.len().min(length - buffer.len()));
            buffer.extend_from_slice(&data);
            self.give_back(rest);
        }
        Ok(())
    }

    /// One byte; `None` at the end.
    pub(crate) async fn byte(&mut self) -> Result<Option<u8>, Problem> {
        let Some(mut data) = self.next().await? else {
            return Ok(None);
        };
        let rest = data.split_off(1);
        self.give_back(rest);
        Ok(data.first().copied())
    }

    /// A share of the memory for something that is larger than what every such body holds.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        self.limits.share(bytes).await
    }

    /// Whether nothing more will come. Waits until that is known.
    pub(crate) async fn is_over(&mut self) -> Result<bool, Problem> {
        // A body of known length ends without a word more.
        if !self.first.is_empty() || self.body.is_over() {
            return Ok(self.first.is_empty());
        }
        let Some(data) = self.next().await? else {
            return Ok(true);
        };
        self.give_back(data);
        Ok(false)
    }

    /// How long the body is from here on, if that was announced.
    pub(crate) fn remaining(&self) -> Option<u64> {
        self.body
            .remaining()
            .map(|rest| rest + self.first.len() as u64)
    }

    /// Goes on telling how many bytes were taken.
    pub(crate) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    fn give_back(&mut self, data: Bytes) {
        self.received
            .fetch_sub(data.len() as u64, Ordering::Relaxed);
        self.first = data;
    }
}

/// Sees to it that a body that holds memory which others wait for goes on coming.
#[derive(Default)]
struct Pace {
    checked_at: Option<Instant>,
    came_since: usize,
}

impl Pace {
    async fn next(
        &mut self,
        body: &mut Arriving,
        limits: &BodyLimits,
    ) -> Result<Option<Bytes>, Problem> {
        let mut coming = pin!(body.next());
        let came = match poll!(coming.as_mut()) {
            Poll::Ready(came) => came?,
            Poll::Pending => {
                let since = Instant::now();
                loop {
                    let checked_at = *self.checked_at.get_or_insert_with(Instant::now);
                    if let Ok(came) = timeout_at(checked_at + GROWTH_TIME, coming.as_mut()).await {
                        break came?;
                    }
                    if self.came_since < LEAST_GROWTH && limits.is_pressed() {
                        return Err(late("the body came slowly while others waited for memory"));
                    }
                    if since.elapsed() >= limits.idle {
                        return Err(late(format!(
                            "the body stopped coming for {:?}",
                            limits.idle
                        )));
                    }
                    (self.checked_at, self.came_since) = (Some(Instant::now()), 0);
                }
            }
        };
        self.came_since += came.as_ref().map_or(0, Bytes::len);
        Ok(came)
    }
}

/// A body that arrives. What is left of it when it is dropped is read for a while and thrown away, so that whoever is still sending
/// it gets to read what became of his request, instead of an error about a closed connection.
pub(crate) struct Arriving(Option<Incoming>);

impl Arriving {
    pub(crate) fn new(body: Incoming) -> Self {
        Self(Some(body))
    }

    /// The data that comes next; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some(body) = &mut self.0 else {
            return Ok(None);
        };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Problem::new(
                    Code::InvalidRequest,
                    "the body ended before its announced end",
                )
            })?;
            match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                // Trailers, or nothing.
                _ => {}
            }
        }
        self.0 = None;
        Ok(None)
    }

    fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(Incoming::is_end_stream)
    }

    /// How much is still to come, if that was announced.
    pub(crate) fn remaining(&self) -> Option<u64> {
        self.0
            .as_ref()
            .map_or(Some(0), |body| body.size_hint().exact())
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if !self.is_over()
            && let (Some(mut body), Ok(runtime)) = (self.0.take(), Handle::try_current())
        {
            // Ends early with its connection.
            let rest = async move { while let Some(Ok(_)) = body.frame().await {} };
            runtime.spawn(timeout(LINGER, rest));
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
    Problem::new(
        Code::BodyTooLarge,
        format!("a body of this form has at most {limit} bytes"),
    )
}

fn late(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(Code::RequestTimeout, detail)
}
