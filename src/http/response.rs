//! Response bodies: bytes in memory, or chunks produced while the peer takes them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_stream::stream;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hyper::{
    Response,
    body::{Body, Frame, SizeHint},
    header::CONTENT_LENGTH,
};

use super::{
    account::Account,
    activity::{RequestGuard, UnsentGuard},
    memory::{MemoryShare, UNTRACKED},
    payload::Payload,
    problem::Problem,
};
use crate::wire::Code;

/// The body of a response.
pub(crate) struct ResponseBody {
    /// None once everything was sent.
    content: Option<Content>,
    /// The request in flight; set by the connection.
    guard: Option<RequestGuard>,
}

enum Content {
    Full(Payload),
    Chunks(ResponseStream),
}

impl ResponseBody {
    /// Charges a whole body to `account`, unless it has been. Returns whether there was memory.
    pub(crate) fn charge(&mut self, account: &Arc<Account>) -> bool {
        match &mut self.content {
            Some(Content::Full(payload)) => payload.charge(account),
            // Chunks are charged by who produces them.
            Some(Content::Chunks(_)) | None => true,
        }
    }

    /// Ties the body to its request, so that a response that is not taken counts against the
    /// connection.
    pub(crate) fn guarded_by(mut self, mut guard: RequestGuard) -> Self {
        guard.respond(matches!(self.content, Some(Content::Chunks(_))));
        self.guard = Some(guard);
        self
    }

    fn track(&self, payload: Payload) -> Bytes {
        match &self.guard {
            // A slow peer delays a streamed response, even if its chunks are short.
            Some(guard) if guard.is_streaming() || payload.len() > UNTRACKED => {
                Bytes::from_owner(Unsent {
                    payload,
                    _guard: guard.track_unsent(),
                })
            }
            _ => payload.into_bytes(),
        }
    }
}

impl<P: Into<Payload>> From<P> for ResponseBody {
    fn from(payload: P) -> Self {
        Self {
            content: Some(Content::Full(payload.into())),
            guard: None,
        }
    }
}

impl From<ResponseStream> for ResponseBody {
    fn from(stream: ResponseStream) -> Self {
        Self {
            content: Some(Content::Chunks(stream)),
            guard: None,
        }
    }
}

/// The response to HEAD: that to GET, with the length of its content instead of the content (RFC
/// 9110 §9.3.2). hyper itself withholds it in HTTP/1 alone.
pub(super) fn without_content(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response.map(|_| ResponseBody::from(Bytes::new()))
}

/// Bytes that the peer has not taken yet.
struct Unsent {
    payload: Payload,
    _guard: UnsentGuard,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        self.payload.as_ref()
    }
}

/// The chunks of a response, each produced when the connection asks for it.
///
/// An error aborts the response, so that the client cannot mistake it for a complete one: HTTP/1.1
/// omits the last chunk or falls short of the length, HTTP/2 resets the stream.
pub(crate) struct ResponseStream {
    chunks: Pin<Box<dyn Stream<Item = Result<Bytes, Problem>> + Send>>,
    /// The first chunk, if it was waited for.
    first: Option<Bytes>,
    /// How many bytes are still to come, if known.
    remaining: Option<u64>,
    /// Aborts the response at the next poll.
    error: Option<Problem>,
}

impl ResponseStream {
    /// A response that starts at once. `length` is its length, if known.
    pub(crate) fn new(
        chunks: impl Stream<Item = Result<Bytes, Problem>> + Send + 'static,
        length: Option<u64>,
    ) -> Self {
        Self {
            chunks: Box::pin(chunks),
            first: None,
            remaining: length,
            error: None,
        }
    }

    /// Waits for the first chunk, so that an early failure becomes a problem response.
    ///
    /// # Errors
    /// The error that prevents the first chunk.
    pub(crate) async fn started(mut self) -> Result<Self, Problem> {
        self.first = self.chunks.next().await.transpose()?;
        Ok(self)
    }

    /// Waits for all chunks, so that the peer need not read while it sends, and any failure becomes
    /// a problem response. `share` is for the chunks.
    ///
    /// # Errors
    /// The error that prevents a chunk.
    pub(crate) async fn complete(mut self, share: MemoryShare) -> Result<Self, Problem> {
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunks.next().await {
            whole.push(chunk?);
        }
        let chunks = stream! {
            let _share = share;
            for chunk in whole {
                yield Ok(chunk);
            }
        };
        Ok(Self::new(chunks, self.remaining))
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Problem>>> {
        if let Some(problem) = self.error.take() {
            return Poll::Ready(Some(Err(problem)));
        }
        let chunk = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => ready!(self.chunks.as_mut().poll_next(cx)),
        };
        match chunk {
            Some(Ok(bytes)) => {
                self.remaining = self
                    .remaining
                    .map(|remaining| remaining.saturating_sub(bytes.len() as u64));
                Poll::Ready(Some(Ok(bytes)))
            }
            Some(Err(problem)) => {
                // The connection flushes first, so that the peer sees a response that is cut off
                // rather than none at all.
                self.error = Some(problem);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }
}

/// A response ended early, with this code.
#[derive(Debug, thiserror::Error)]
#[error("response aborted: {}", .0.as_str())]
pub(crate) struct Aborted(Code);

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let payload = match &mut self.content {
            Some(Content::Chunks(stream)) => match ready!(stream.poll_chunk(cx)) {
                Some(Ok(bytes)) => Payload::from(bytes),
                Some(Err(problem)) => {
                    self.content = None;
                    return Poll::Ready(Some(Err(Aborted(problem.code))));
                }
                None => {
                    self.content = None;
                    return Poll::Ready(None);
                }
            },
            _ => match self.content.take() {
                Some(Content::Full(payload)) if payload.len() > 0 => payload,
                _ => return Poll::Ready(None),
            },
        };
        Poll::Ready(Some(Ok(Frame::data(self.track(payload)))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            None => true,
            Some(Content::Full(payload)) => payload.len() == 0,
            // The end must be polled for, because it may be an error.
            Some(Content::Chunks(_)) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            None => SizeHint::with_exact(0),
            Some(Content::Full(payload)) => SizeHint::with_exact(payload.len() as u64),
            Some(Content::Chunks(stream)) => stream
                .remaining
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::stream;
    use http_body_util::BodyExt;
    use hyper::Version;
    use tokio::time::timeout;

    use super::*;
    use crate::{
        config::Timeouts,
        http::{account::testing::account, activity::Activity},
    };

    fn chunks<const N: usize>(chunks: [Result<&'static [u8], Code>; N]) -> ResponseStream {
        let chunks = chunks.map(|chunk| match chunk {
            Ok(bytes) => Ok(Bytes::from_static(bytes)),
            Err(code) => Err(Problem::new(code, "test")),
        });
        ResponseStream::new(stream::iter(chunks), None)
    }

    async fn next(body: &mut ResponseBody) -> Option<Result<Bytes, Aborted>> {
        let frame = body.frame().await?;
        Some(frame.map(|frame| frame.into_data().expect("data")))
    }

    #[tokio::test]
    async fn a_whole_body_is_one_frame() {
        let mut body = ResponseBody::from(Bytes::from_static(b"text"));
        assert_eq!(body.size_hint().exact(), Some(4));
        assert!(!body.is_end_stream());
        let frame = next(&mut body).await.expect("a frame").expect("no error");
        assert_eq!(frame, "text");
        assert!(body.is_end_stream() && next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn an_empty_body_has_no_frame() {
        let mut body = ResponseBody::from(Bytes::new());
        assert!(body.is_end_stream() && next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn a_stream_counts_down_its_length() {
        let chunks = [Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))];
        let stream = ResponseStream::new(stream::iter(chunks), Some(3));
        let mut body = ResponseBody::from(stream.started().await.expect("started"));
        for (remaining, expected) in [(3, "ab"), (1, "c")] {
            assert_eq!(body.size_hint().exact(), Some(remaining));
            let frame = next(&mut body).await.expect("a frame").expect("no error");
            assert_eq!(frame, expected);
        }
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn an_error_before_the_first_chunk_is_a_problem() {
        let stream = chunks([Err(Code::DecryptionFailed), Ok(b"late")]);
        let problem = stream.started().await.err().expect("fails");
        assert_eq!(problem.code, Code::DecryptionFailed);
    }

    #[tokio::test]
    async fn a_response_that_is_awaited_fails_whole_or_not_at_all() {
        let share = MemoryShare::default();
        let failing = chunks([Ok(b"ab"), Err(Code::DecryptionFailed)]);
        let problem = failing.complete(share).await.err().expect("fails");
        assert_eq!(problem.code, Code::DecryptionFailed);
        let account = account(10_000);
        let share = account.reserve(4000).await.expect("free");
        let complete = chunks([Ok(b"ab"), Ok(b"c")]).complete(share).await;
        let mut body = ResponseBody::from(complete.expect("complete"));
        for expected in ["ab", "c"] {
            let frame = next(&mut body).await.expect("a frame").expect("no error");
            assert_eq!(frame, expected);
        }
        assert_eq!(account.free_memory(), 6000);
        assert!(next(&mut body).await.is_none());
        assert_eq!(account.free_memory(), 10_000);
    }

    #[tokio::test]
    async fn a_later_error_aborts_the_response_after_a_flush() {
        let stream = chunks([Ok(b"ab"), Err(Code::RequestTimeout), Ok(b"late")]);
        let mut body = ResponseBody::from(stream.started().await.expect("started"));
        let frame = next(&mut body).await.expect("a frame").expect("no error");
        assert_eq!(frame, "ab");
        {
            let mut flush = std::pin::pin!(next(&mut body));
            assert!(futures_util::poll!(flush.as_mut()).is_pending());
        }
        let error = next(&mut body)
            .await
            .expect("a result")
            .expect_err("aborted");
        assert_eq!(error.to_string(), "response aborted: request_timeout");
        assert!(body.is_end_stream());
    }

    /// Whether a connection with `activity` is closed because of unsent bytes.
    async fn is_stalled(activity: &Activity) -> bool {
        let limits = Timeouts {
            body: Duration::from_secs(1),
            ..Timeouts::default()
        };
        timeout(Duration::from_secs(5), activity.expired(&limits, || true))
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_counts_as_unsent_until_it_is_dropped() {
        let activity = Arc::<Activity>::default();
        let guard = activity.begin_request(Version::HTTP_2, None);
        let body = ResponseBody::from(vec![7; 1]).guarded_by(guard);
        assert!(is_stalled(&activity).await);
        drop(body);
        assert!(!is_stalled(&activity).await);
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_and_all_chunks_count_as_unsent_until_they_are_dropped() {
        for (body, is_tracked) in [
            (ResponseBody::from(vec![7; UNTRACKED + 1]), true),
            (ResponseBody::from(vec![7; UNTRACKED]), false),
            (ResponseBody::from(chunks([Ok(b"x"), Ok(b"y")])), true),
        ] {
            let activity = Arc::<Activity>::default();
            let guard = activity.begin_request(Version::HTTP_11, None);
            let mut body = body.guarded_by(guard);
            let frame = next(&mut body).await.expect("a frame").expect("no error");
            drop(body);
            assert_eq!(is_stalled(&activity).await, is_tracked);
            drop(frame);
            assert!(!is_stalled(&activity).await);
        }
    }
}
