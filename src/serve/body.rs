//! Reading request bodies within limits of size, time and memory.

use std::{pin::pin, task::Poll, time::Duration};

use futures_util::poll;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::problem::{Code, Problem};

/// Bodies up to this size are not worth the bookkeeping: all connections together hold little of them.
const UNCOUNTED: usize = 4096;

/// What bodies may cost.
pub(super) struct BodyLimits {
    time: Duration,
    memory: Semaphore,
}

/// A body that was read, with its share of the memory that bodies may hold.
pub(super) struct Read<'s> {
    pub(super) bytes: Vec<u8>,
    /// The body's own length, without the room before it.
    pub(super) length: usize,
    _share: Option<SemaphorePermit<'s>>,
}

impl BodyLimits {
    /// `memory` in bytes for all bodies together; the config keeps it below 2^30.
    pub(super) fn new(time: Duration, memory: usize) -> Self {
        Self { time, memory: Semaphore::new(memory) }
    }

    /// Reads a body of at most `limit` bytes behind what `buffer` makes for its length.
    pub(super) async fn read(
        &self,
        body: Incoming,
        limit: usize,
        buffer: impl FnOnce(usize) -> Vec<u8>,
    ) -> Result<Read<'_>, Problem> {
        let announced = body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large(limit));
        }
        let mut whole = pin!(self.read_all(body, limit, announced, buffer));
        // Most bodies come with their head, and cost no timer then.
        if let Poll::Ready(result) = poll!(whole.as_mut()) {
            return result;
        }
        match timeout(self.time, whole).await {
            Ok(result) => result,
            Err(_) => Err(Problem::new(Code::RequestTimeout, format!("the body didn't arrive within {:?}", self.time))),
        }
    }

    async fn read_all(
        &self,
        mut body: Incoming,
        limit: usize,
        announced: Option<usize>,
        buffer: impl FnOnce(usize) -> Vec<u8>,
    ) -> Result<Read<'_>, Problem> {
        // A body of unknown length may grow up to the limit.
        let share = match announced.unwrap_or(limit) {
            0..=UNCOUNTED => None,
            most => Some(self.share(most).await?),
        };
        let mut bytes = buffer(announced.unwrap_or(0));
        let room = bytes.len();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::new(Code::InvalidRequest, "the body ended before its announced end"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() - room + data.len() > limit {
                return Err(too_large(limit));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Read { length: bytes.len() - room, bytes, _share: share })
    }

    async fn share(&self, bytes: usize) -> Result<SemaphorePermit<'_>, Problem> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // Half of the body's time for waiting, so that what gets its share still has time to arrive.
        match timeout(self.time / 2, self.memory.acquire_many(permits)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Problem::new(Code::Overloaded, "other requests hold all of `limits.body_memory`; try again").retry_after(1)),
        }
    }
}

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("a body of this form has at most {limit} bytes"))
}
