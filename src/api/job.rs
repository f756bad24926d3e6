//! A request on a keyring, and the response to it.

use std::{
    pin::pin,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use async_stream::stream;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hyper::{
    Response, Version,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue},
};
use jiff::Timestamp;

use super::{
    denial::{Denials, Resource},
    error::RequestError,
    metrics::{OperationMetrics, StreamAccount},
};
use crate::{
    clock::Clock,
    config::Limits,
    http::{
        account::Account,
        ahead::ahead,
        body::BodyLimits,
        memory::MemoryShare,
        payload::Payload,
        problem::Problem,
        response::{ResponseBody, ResponseStream},
    },
    model::Operation,
    policy::Caller,
    refresh::Keyring,
    session::{Session, SessionError},
    wire::Code,
};

/// The longest request whose whole response is awaited. Plain HTTP clients send everything before
/// they read.
const MAX_AWAITED: usize = 8 << 20;
const KEY_VERSION: HeaderName = HeaderName::from_static("sidekey-key-version");

/// How much of a streamed response may wait for its peer.
pub(crate) enum Buffering {
    /// All of it, in this memory. The response begins when it is complete, so that any failure
    /// becomes a problem.
    Whole(MemoryShare),
    /// A few MiB, as far as memory is free.
    Ahead,
    /// One chunk.
    Chunk,
}

/// A request on a keyring that the policy allows.
pub(crate) struct Job<'s> {
    pub(crate) caller: Caller,
    pub(crate) operation: Operation,
    pub(crate) keyring: &'s Arc<Keyring>,
    pub(crate) metrics: &'s Arc<OperationMetrics>,
    pub(crate) limits: &'s Limits,
    pub(crate) bodies: &'s Arc<BodyLimits>,
    pub(crate) denials: &'s Denials,
    pub(crate) account: &'s Arc<Account>,
    pub(crate) clock: &'s Clock,
    pub(crate) http_version: Version,
    /// When the request's head arrived.
    pub(crate) start: Instant,
}

impl Job<'_> {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Starts a session for a request whose body is in memory.
    pub(crate) fn session(&self) -> Result<Session<&Keyring>, SessionError> {
        Session::new(self.keyring, self.now())
    }

    /// Counts a success and responds with a whole body.
    pub(crate) fn respond(
        &self,
        received: usize,
        payload: impl Into<Payload>,
        content_type: &'static str,
        version: Option<u32>,
    ) -> Response<ResponseBody> {
        let payload = payload.into();
        let took = self.start.elapsed();
        self.metrics.succeeded(received, payload.len(), took);
        response(payload.into(), content_type, version)
    }

    /// How a request of this length, if it was announced, is answered: if it is short enough and
    /// memory is free, so that a client may send all before it reads.
    pub(crate) fn buffering(&self, announced: Option<u64>) -> Buffering {
        let Some(length) = announced else {
            return Buffering::Ahead;
        };
        let whole = usize::try_from(length)
            .ok()
            .filter(|length| *length <= MAX_AWAITED)
            // Chunks and their tags.
            .and_then(|length| {
                self.account
                    .try_reserve(length + length / 1024 + Limits::FLOW_COST)
            });
        whole.map_or(Buffering::Chunk, Buffering::Whole)
    }

    /// Responds with chunks, and counts the request when they end. Waits for the first chunk at
    /// least, so that an early failure becomes a problem.
    ///
    /// `length` is the response's length, if known; `received` counts the bytes of the request.
    pub(crate) async fn respond_stream(
        &self,
        chunks: impl Stream<Item = Result<Bytes, Problem>> + Send + 'static,
        buffering: Buffering,
        length: Option<u64>,
        received: Arc<AtomicU64>,
        (content_type, version): (&'static str, Option<u32>),
    ) -> Result<Response<ResponseBody>, RequestError> {
        // In HTTP/1.0, a complete response without a length looks like one that was cut off.
        if self.http_version < Version::HTTP_11 && length.is_none() {
            return Err(Problem::new(
                Code::InvalidRequest,
                "HTTP/1.0 can't mark the end of this response; use HTTP/1.1 or HTTP/2",
            )
            .into());
        }
        let account = StreamAccount::new(Arc::clone(self.metrics), self.start, received);
        let (chunks, share) = match buffering {
            Buffering::Whole(share) => (chunks.boxed(), Some(share)),
            Buffering::Ahead => (ahead(chunks, Arc::clone(self.account)).boxed(), None),
            Buffering::Chunk => (chunks.boxed(), None),
        };
        let chunks = accounted(chunks, length, share.is_some(), account);
        let stream = ResponseStream::new(chunks, length);
        let stream = match share {
            Some(share) => stream.complete(share).await?,
            None => stream.started().await?,
        };
        Ok(response(stream.into(), content_type, version))
    }

    /// Counts an item that failed, and that may have been denied.
    pub(crate) fn item_failed(&self, code: Code, version: Option<u32>) {
        self.metrics.item_failed(code);
        let resource = Resource::Keyring(self.keyring.name(), self.operation);
        self.denials.add(&self.caller, resource, code, version);
    }
}

/// Builds a successful response. `version` is the key version to report.
pub(crate) fn response(
    body: ResponseBody,
    content_type: &'static str,
    version: Option<u32>,
) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(version) = version {
        headers.insert(KEY_VERSION, version.into());
    }
    response
}

/// Counts the chunks of a response in `account`. `is_awaited` tells that all chunks precede the
/// response.
fn accounted(
    chunks: impl Stream<Item = Result<Bytes, Problem>> + Send + 'static,
    length: Option<u64>,
    is_awaited: bool,
    mut account: StreamAccount,
) -> impl Stream<Item = Result<Bytes, Problem>> + Send + 'static {
    stream! {
        let mut chunks = pin!(chunks);
        let (mut remaining, mut is_first) = (length, true);
        while let Some(chunk) = chunks.next().await {
            match &chunk {
                Ok(bytes) => {
                    account.sent(bytes.len());
                    remaining = remaining.map(|rest| rest.saturating_sub(bytes.len() as u64));
                    // A connection that knows the length does not poll for the end.
                    if remaining == Some(0) {
                        account.succeeded();
                    }
                }
                // The response is the problem, and it is counted like any other failure.
                Err(_) if is_first || is_awaited => account.cancel(),
                Err(problem) => account.failed(problem.code),
            }
            is_first = false;
            yield chunk;
        }
        account.succeeded();
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, sync::atomic::Ordering};

    use futures_util::stream;

    use super::*;
    use crate::{session::testing::empty_keyring, telemetry::Registry};

    type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, Problem>> + Send>>;

    fn counted(
        chunks: Vec<Result<Bytes, Problem>>,
        length: Option<u64>,
    ) -> (Chunks, Arc<Registry>) {
        let registry = Arc::new(Registry::default());
        let keyring = empty_keyring("standard").keyring;
        let metrics = OperationMetrics::new(&registry, &keyring, Operation::Decrypt);
        let received = Arc::new(AtomicU64::new(0));
        received.store(10, Ordering::Relaxed);
        let account = StreamAccount::new(Arc::new(metrics), Instant::now(), received);
        let chunks = accounted(stream::iter(chunks), length, false, account);
        (Box::pin(chunks), registry)
    }

    /// The value of a counter with the labels of the tests.
    fn count(registry: &Registry, name: &str, code: Option<&str>) -> u64 {
        let code = code
            .map(|code| format!(",code=\"{code}\""))
            .unwrap_or_default();
        let start = format!("{name}{{keyring=\"demo\",operation=\"decrypt\"{code}}} ");
        let text = registry.render();
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.map_or(0, |value| value.parse().expect("a number"))
    }

    fn requests(registry: &Registry, code: &str) -> u64 {
        count(registry, "sidekey_requests_total", Some(code))
    }

    fn data(text: &'static str) -> Result<Bytes, Problem> {
        Ok(Bytes::from_static(text.as_bytes()))
    }

    fn failure() -> Result<Bytes, Problem> {
        Err(Problem::new(Code::DecryptionFailed, "test"))
    }

    #[tokio::test]
    async fn a_stream_is_counted_when_it_ends() {
        let (mut chunks, registry) = counted(vec![data("ab"), data("c")], None);
        for _ in 0..2 {
            chunks.next().await.expect("a chunk").expect("no error");
            assert_eq!(requests(&registry, "ok"), 0);
        }
        assert!(chunks.next().await.is_none());
        drop(chunks);
        assert_eq!(requests(&registry, "ok"), 1);
        assert_eq!(requests(&registry, "abandoned"), 0);
        assert_eq!(count(&registry, "sidekey_sent_bytes_total", None), 3);
        assert_eq!(count(&registry, "sidekey_received_bytes_total", None), 10);
    }

    #[tokio::test]
    async fn a_stream_of_known_length_is_counted_with_its_last_chunk() {
        let (mut chunks, registry) = counted(vec![data("ab"), data("c")], Some(3));
        chunks.next().await.expect("a chunk").expect("no error");
        chunks.next().await.expect("a chunk").expect("no error");
        assert_eq!(requests(&registry, "ok"), 1);
        drop(chunks);
        assert_eq!(requests(&registry, "abandoned"), 0);
    }

    #[tokio::test]
    async fn a_stream_that_fails_is_counted_by_its_code() {
        let (mut chunks, registry) = counted(vec![data("ab"), failure()], None);
        chunks.next().await.expect("a chunk").expect("no error");
        chunks.next().await.expect("a result").expect_err("fails");
        drop(chunks);
        assert_eq!(requests(&registry, "decryption_failed"), 1);
        assert_eq!(requests(&registry, "ok"), 0);
    }

    #[tokio::test]
    async fn a_stream_that_fails_at_once_is_left_to_the_problem_response() {
        let (mut chunks, registry) = counted(vec![failure()], None);
        chunks.next().await.expect("a result").expect_err("fails");
        drop(chunks);
        for code in ["decryption_failed", "ok", "abandoned"] {
            assert_eq!(requests(&registry, code), 0, "{code}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_the_peer_drops_is_counted_as_abandoned() {
        let (mut chunks, registry) = counted(vec![data("ab"), data("c")], None);
        chunks.next().await.expect("a chunk").expect("no error");
        drop(chunks);
        assert_eq!(requests(&registry, "abandoned"), 1);
        assert_eq!(count(&registry, "sidekey_sent_bytes_total", None), 2);
    }
}
