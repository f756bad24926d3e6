//! Reading request bodies within limits of size, time and memory.
//!
//! Plaintexts pass through here.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::poll;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout, timeout_at},
};

use super::{
    account::Account,
    activity::Activity,
    memory::{MemoryShare, UNTRACKED},
    problem::Problem,
};
use crate::{
    config::{Limits, Timeouts},
    wire::Code,
};

/// While other requests wait for memory, a body must grow by [`MIN_GROWTH`] bytes in this time.
const GROWTH_INTERVAL: Duration = Duration::from_secs(1);
const MIN_GROWTH: usize = 64 << 10;
/// How long, and how much of, the rest of a body is read after the response.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_LEN: usize = 16 << 20;

/// The limits of request bodies.
pub(crate) struct BodyLimits {
    /// For a buffered body to arrive.
    time: Duration,
    /// For the next bytes of a streamed body to arrive.
    idle: Duration,
}

/// The first bytes of a body, with the memory of a stream.
#[derive(Default)]
pub(crate) struct BodyStart {
    pub(crate) bytes: Bytes,
    share: MemoryShare,
}

/// The size of a buffered body.
#[derive(Clone, Copy)]
pub(crate) struct BodySize {
    pub(crate) max_len: usize,
    /// The memory for the body, intermediate results and the response, in body lengths.
    pub(crate) memory_factor: usize,
}

/// A body that was read completely, with its share of the body memory.
pub(crate) struct BufferedBody {
    pub(crate) bytes: Vec<u8>,
    /// The body's length, without what the buffer held before it.
    pub(crate) length: usize,
    pub(crate) share: MemoryShare,
}

impl BodyLimits {
    pub(crate) fn new(timeouts: &Timeouts) -> Self {
        Self {
            time: timeouts.body,
            idle: timeouts.idle,
        }
    }

    /// Reads a whole body, of which `start` has already been taken. It is appended to the buffer
    /// that `buffer` returns for its announced length.
    pub(crate) async fn read(
        &self,
        account: &Arc<Account>,
        body: RequestBody,
        start: BodyStart,
        size: BodySize,
        buffer: impl FnOnce(usize) -> Vec<u8>,
    ) -> Result<BufferedBody, Problem> {
        let announced = body.remaining().map(|rest| {
            usize::try_from(rest)
                .unwrap_or(usize::MAX)
                .saturating_add(start.bytes.len())
        });
        if announced.is_some_and(|length| length > size.max_len) {
            return Err(too_large(size.max_len));
        }
        let whole = async {
            let BodyStart { bytes, mut share } = start;
            // A body of unknown length may grow up to the limit.
            let length = announced.unwrap_or(size.max_len);
            if length > UNTRACKED {
                let memory = length * size.memory_factor;
                share.grow_to(account, memory).await?;
            }
            let buffer = buffer(announced.unwrap_or(0));
            read_all(self, account, body, bytes, size.max_len, buffer, share).await
        };
        self.within_time(whole).await
    }

    /// Returns the first bytes of a body; none if it is empty.
    pub(crate) async fn first(
        &self,
        account: &Arc<Account>,
        body: &mut RequestBody,
    ) -> Result<BodyStart, Problem> {
        self.within_time(async {
            Ok(BodyStart {
                share: account.reserve(Limits::FLOW_COST).await?,
                bytes: body.next().await?.unwrap_or_default(),
            })
        })
        .await
    }

    /// Returns a body to process as it arrives, of which `start` has already been taken.
    pub(crate) async fn stream(
        self: &Arc<Self>,
        account: &Arc<Account>,
        body: RequestBody,
        start: BodyStart,
    ) -> Result<BodyStream, Problem> {
        let BodyStart { bytes, mut share } = start;
        share.grow_to(account, Limits::FLOW_COST).await?;
        Ok(BodyStream {
            _share: share,
            account: Arc::clone(account),
            body,
            buffered: bytes,
            pace: Pace::default(),
            limits: Arc::clone(self),
            received: Arc::default(),
        })
    }

    async fn within_time<T>(
        &self,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let mut work = pin!(work);
        // Most bodies arrive with their head and need no timer.
        if let Poll::Ready(result) = poll!(work.as_mut()) {
            return result;
        }
        match timeout(self.time, work).await {
            Ok(result) => result,
            Err(_) => Err(timed_out(format!(
                "the body did not arrive within {:?}",
                self.time
            ))),
        }
    }
}

/// Appends a body, of which `first` has been taken, to `bytes`.
async fn read_all(
    limits: &BodyLimits,
    account: &Account,
    mut body: RequestBody,
    first: Bytes,
    max_len: usize,
    mut bytes: Vec<u8>,
    share: MemoryShare,
) -> Result<BufferedBody, Problem> {
    let offset = bytes.len();
    let mut pace = Pace::default();
    let mut next = Some(first);
    while let Some(data) = next {
        if bytes.len() - offset + data.len() > max_len {
            return Err(too_large(max_len));
        }
        bytes.extend_from_slice(&data);
        // A body without a share keeps no other request waiting.
        next = if share.is_empty() {
            body.next().await?
        } else {
            pace.next(&mut body, limits, account).await?
        };
    }
    Ok(BufferedBody {
        length: bytes.len() - offset,
        bytes,
        share,
    })
}

/// A body that is processed as it arrives. It holds a fixed share of the body memory.
pub(crate) struct BodyStream {
    body: RequestBody,
    /// Bytes that arrived but were not taken yet.
    buffered: Bytes,
    pace: Pace,
    limits: Arc<BodyLimits>,
    account: Arc<Account>,
    received: Arc<AtomicU64>,
    _share: MemoryShare,
}

impl BodyStream {
    /// Returns the next bytes; None at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let data = if self.buffered.is_empty() {
            let (limits, account) = (&self.limits, &self.account);
            self.pace.next(&mut self.body, limits, account).await?
        } else {
            Some(std::mem::take(&mut self.buffered))
        };
        self.received.fetch_add(
            data.as_ref().map_or(0, Bytes::len) as u64,
            Ordering::Relaxed,
        );
        Ok(data)
    }

    /// Fills `buffer` up to `length` bytes or to the end of the body.
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
            self.put_back(rest);
        }
        Ok(())
    }

    /// Returns the next byte; None at the end.
    pub(crate) async fn byte(&mut self) -> Result<Option<u8>, Problem> {
        let Some(mut data) = self.next().await? else {
            return Ok(None);
        };
        let rest = data.split_off(1);
        self.put_back(rest);
        Ok(data.first().copied())
    }

    /// Reserves memory beyond the share that every stream holds.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<MemoryShare, Problem> {
        self.account.reserve(bytes).await
    }

    /// Whether the body has ended. Waits until that is known.
    pub(crate) async fn is_over(&mut self) -> Result<bool, Problem> {
        // The end of a body of known length needs no further read.
        if !self.buffered.is_empty() || self.body.is_over() {
            return Ok(self.buffered.is_empty());
        }
        let Some(data) = self.next().await? else {
            return Ok(true);
        };
        self.put_back(data);
        Ok(false)
    }

    /// The length of the rest of the body, if it was announced.
    pub(crate) fn remaining(&self) -> Option<u64> {
        self.body
            .remaining()
            .map(|rest| rest + self.buffered.len() as u64)
    }

    /// A counter of the bytes taken, which keeps counting.
    pub(crate) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    fn put_back(&mut self, data: Bytes) {
        self.received
            .fetch_sub(data.len() as u64, Ordering::Relaxed);
        self.buffered = data;
    }
}

/// Ensures that a body keeps arriving while it holds memory that other requests wait for.
#[derive(Default)]
struct Pace {
    checked_at: Option<Instant>,
    /// Bytes that arrived since `checked_at`.
    growth: usize,
}

impl Pace {
    async fn next(
        &mut self,
        body: &mut RequestBody,
        limits: &BodyLimits,
        account: &Account,
    ) -> Result<Option<Bytes>, Problem> {
        let mut next = pin!(body.next());
        let data = match poll!(next.as_mut()) {
            Poll::Ready(data) => data?,
            Poll::Pending => {
                let since = Instant::now();
                loop {
                    let checked_at = *self.checked_at.get_or_insert_with(Instant::now);
                    let deadline = checked_at + GROWTH_INTERVAL;
                    if let Ok(data) = timeout_at(deadline, next.as_mut()).await {
                        break data?;
                    }
                    if self.growth < MIN_GROWTH && account.must_give_way() {
                        return Err(timed_out(
                            "the body arrived too slowly while other requests waited for memory",
                        ));
                    }
                    if since.elapsed() >= limits.idle {
                        return Err(timed_out(format!(
                            "no bytes of the body arrived for {:?}",
                            limits.idle
                        )));
                    }
                    (self.checked_at, self.growth) = (Some(Instant::now()), 0);
                }
            }
        };
        self.growth += data.as_ref().map_or(0, Bytes::len);
        Ok(data)
    }
}

/// A body as hyper delivers it.
///
/// When dropped early, the rest is read and discarded for a while: a client that is still sending
/// then gets the response instead of a connection reset.
pub(crate) struct RequestBody {
    /// None once it has ended.
    body: Option<Incoming>,
    /// The connection whose progress it is, if that is watched.
    activity: Option<Arc<Activity>>,
}

impl RequestBody {
    pub(crate) fn new(body: Incoming, activity: Option<Arc<Activity>>) -> Self {
        Self {
            body: Some(body),
            activity,
        }
    }

    /// Returns the next data; None at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Problem::new(
                    Code::InvalidRequest,
                    "the body is shorter than announced or malformed",
                )
            })?;
            match frame.into_data() {
                Ok(data) if !data.is_empty() => {
                    if let Some(activity) = &self.activity {
                        activity.progressed();
                    }
                    return Ok(Some(data));
                }
                // Trailers or empty frames.
                _ => {}
            }
        }
        self.body = None;
        Ok(None)
    }

    fn is_over(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    /// The length of the rest of the body, if it was announced.
    pub(crate) fn remaining(&self) -> Option<u64> {
        self.body
            .as_ref()
            .map_or(Some(0), |body| body.size_hint().exact())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.is_over()
            && let (Some(mut body), Ok(runtime)) = (self.body.take(), Handle::try_current())
        {
            // Ends early with its connection.
            let rest = async move {
                let mut left = LINGER_LEN;
                while let Some(Ok(frame)) = body.frame().await
                    && left > 0
                {
                    left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                }
            };
            runtime.spawn(timeout(LINGER, rest));
        }
    }
}

fn too_large(max_len: usize) -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("the body may have at most {max_len} bytes in this format"),
    )
}

fn timed_out(detail: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(Code::RequestTimeout, detail)
}
