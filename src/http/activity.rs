//! What happens on a connection, as its timeouts see it.
//!
//! Requests only update counters here. The timers belong to the connection, so a request sets none.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{StatusCode, Version};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, sleep},
};

use crate::config::Timeouts;

/// The state of one connection.
#[derive(Default)]
pub(crate) struct Activity {
    /// Requests whose head has arrived.
    heads: AtomicU64,
    in_flight: AtomicU32,
    /// Bytes have arrived since the last head.
    is_reading_head: AtomicBool,
    is_http2: AtomicBool,
    /// At least one request passed authentication and policy.
    is_authorized: AtomicBool,
    /// Requests in flight whose responses are streamed.
    streaming: AtomicU32,
    /// Counts chunks sent and reads received while any response is streamed.
    progress: AtomicU64,
    /// Response bodies that the peer has not taken yet, by the epoch in which they were sent.
    unsent: [AtomicU32; 2],
    /// Chunks of streamed responses that the peer has not taken yet, likewise.
    unsent_chunks: [AtomicU32; 2],
    epoch: AtomicUsize,
    evicted: Notify,
}

/// Marks a request as in flight until its response is complete or the connection is gone.
pub(crate) struct RequestGuard {
    activity: Arc<Activity>,
    is_streaming: bool,
}

impl RequestGuard {
    /// Marks the response as streamed: it may take any amount of time as long as it progresses.
    pub(crate) fn start_streaming(&mut self) {
        self.is_streaming = true;
        self.activity.streaming.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn is_streaming(&self) -> bool {
        self.is_streaming
    }

    /// Counts a response body or chunk as unsent until the guard is dropped with the bytes.
    pub(crate) fn track_unsent(&self) -> UnsentGuard {
        let activity = &self.activity;
        if self.is_streaming {
            activity.progress.fetch_add(1, Ordering::Relaxed);
        }
        let guard = UnsentGuard {
            activity: Arc::clone(activity),
            is_chunk: self.is_streaming,
            epoch: activity.epoch.load(Ordering::Relaxed),
        };
        guard.count().fetch_add(1, Ordering::Relaxed);
        guard
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_streaming {
            self.activity.streaming.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Marks bytes as unsent until the kernel has the last of them or the connection is gone.
pub(crate) struct UnsentGuard {
    activity: Arc<Activity>,
    is_chunk: bool,
    epoch: usize,
}

impl UnsentGuard {
    fn count(&self) -> &AtomicU32 {
        let counts = if self.is_chunk {
            &self.activity.unsent_chunks
        } else {
            &self.activity.unsent
        };
        &counts[self.epoch]
    }
}

impl Drop for UnsentGuard {
    fn drop(&mut self) {
        self.count().fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    /// Records the head of a request.
    pub(crate) fn begin_request(self: &Arc<Self>, version: Version) -> RequestGuard {
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.is_reading_head.store(false, Ordering::Relaxed);
        self.is_http2
            .store(version == Version::HTTP_2, Ordering::Relaxed);
        RequestGuard {
            activity: Arc::clone(self),
            is_streaming: false,
        }
    }

    /// Records the status of a response.
    pub(crate) fn responded(&self, status: StatusCode) {
        if !is_open_to_anyone(status) {
            self.is_authorized.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the connection may be closed for another one: no request on it was authorized, and
    /// none is in flight.
    pub(crate) fn is_evictable(&self) -> bool {
        !self.is_authorized.load(Ordering::Relaxed) && self.in_flight.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn is_streaming(&self) -> bool {
        self.streaming.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn evict(&self) {
        self.evicted.notify_one();
    }

    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Resolves when the connection must close: it was evicted, or the peer exceeded a time limit
    /// by being silent, sending a head slowly or taking a response slowly.
    ///
    /// The peer of a streamed response may be slow until `is_memory_contended` reports that other
    /// requests wait for the memory it holds.
    pub(crate) async fn expired(&self, limits: &Timeouts, is_memory_contended: impl Fn() -> bool) {
        tokio::select! {
            () = self.idle_too_long(limits) => {}
            () = self.unsent_too_long(limits.body, is_memory_contended) => {}
            () = self.evicted() => {}
        }
    }

    /// Resolves after the idle or head limit, give or take half of the shorter one.
    async fn idle_too_long(&self, limits: &Timeouts) {
        let tick = limits.header.min(limits.idle) / 4;
        let observe = || {
            (
                self.heads.load(Ordering::Relaxed),
                self.is_reading_head.load(Ordering::Relaxed),
                self.progress.load(Ordering::Relaxed),
            )
        };
        let (mut last, mut since) = (observe(), Instant::now());
        loop {
            sleep(tick).await;
            let state = observe();
            let streaming = self.streaming.load(Ordering::Relaxed);
            // A request whose response has not begun has a body timeout of its own.
            if state != last || self.in_flight.load(Ordering::Relaxed) > streaming {
                (last, since) = (state, Instant::now());
                continue;
            }
            let is_between_requests = self.is_authorized.load(Ordering::Relaxed) && !state.1;
            let limit = if is_between_requests || streaming > 0 {
                limits.idle
            } else {
                limits.header
            };
            if since.elapsed() >= limit {
                return;
            }
        }
    }

    /// Resolves once something has been unsent for between one and two times `limit`.
    async fn unsent_too_long(&self, limit: Duration, is_memory_contended: impl Fn() -> bool) {
        loop {
            sleep(limit).await;
            let next = 1 - self.epoch.load(Ordering::Relaxed);
            // Whether anything is left from the epoch before the one that ends now.
            let is_left = |counts: &[AtomicU32; 2]| counts[next].load(Ordering::Relaxed) > 0;
            if is_left(&self.unsent) || is_left(&self.unsent_chunks) && is_memory_contended() {
                return;
            }
            self.epoch.store(next, Ordering::Relaxed);
        }
    }

    /// Records that bytes arrived.
    fn received(&self) {
        // HTTP/2 also sends control frames, which show neither progress nor the start of a head.
        if self.is_http2.load(Ordering::Relaxed) {
            return;
        }
        if self.streaming.load(Ordering::Relaxed) > 0 {
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
        if self.in_flight.load(Ordering::Relaxed) == 0 {
            self.is_reading_head.store(true, Ordering::Relaxed);
        }
    }
}

/// Whether anyone who can open a connection can cause this status.
fn is_open_to_anyone(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    )
}

/// Reports bytes that arrive on `io` to `activity`.
pub(crate) struct WatchedIo<I> {
    pub(crate) io: I,
    pub(crate) activity: Arc<Activity>,
}

impl<I: AsyncRead + Unpin> AsyncRead for WatchedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.received();
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for WatchedIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Timeouts = Timeouts {
        header: Duration::from_secs(10),
        body: Duration::from_secs(20),
        idle: Duration::from_secs(300),
        drain: Duration::from_secs(25),
    };

    /// Seconds until the connection expires under [`LIMITS`]; None if it outlives an hour.
    async fn seconds_to_expiry(activity: &Activity, is_memory_contended: bool) -> Option<u64> {
        let start = Instant::now();
        let expired = activity.expired(&LIMITS, || is_memory_contended);
        let expiry = tokio::time::timeout(Duration::from_secs(3600), expired).await;
        expiry.ok().map(|()| start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_closed_after_the_head_timeout() {
        let activity = Arc::<Activity>::default();
        let seconds = seconds_to_expiry(&activity, false).await.expect("expires");
        assert!((10..=15).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_authorized_peer_may_stay_idle_between_requests() {
        let activity = Arc::<Activity>::default();
        drop(activity.begin_request(Version::HTTP_11));
        activity.responded(StatusCode::OK);
        let seconds = seconds_to_expiry(&activity, false).await.expect("expires");
        assert!((300..=305).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_authorized_peer_that_starts_a_head_must_finish_it_in_time() {
        let activity = Arc::<Activity>::default();
        drop(activity.begin_request(Version::HTTP_11));
        activity.responded(StatusCode::OK);
        activity.received();
        let seconds = seconds_to_expiry(&activity, false).await.expect("expires");
        assert!((10..=15).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_flight_keeps_its_connection() {
        let activity = Arc::<Activity>::default();
        let _request = activity.begin_request(Version::HTTP_11);
        assert_eq!(seconds_to_expiry(&activity, false).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unsent_response_closes_the_connection() {
        let activity = Arc::<Activity>::default();
        let request = activity.begin_request(Version::HTTP_11);
        let _unsent = request.track_unsent();
        let seconds = seconds_to_expiry(&activity, false).await.expect("expires");
        assert!((20..=40).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_was_sent_is_not_held_against_the_peer() {
        let activity = Arc::<Activity>::default();
        let request = activity.begin_request(Version::HTTP_11);
        drop(request.track_unsent());
        assert_eq!(seconds_to_expiry(&activity, true).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_stream_is_closed_only_while_memory_is_contended() {
        let activity = Arc::<Activity>::default();
        let mut request = activity.begin_request(Version::HTTP_11);
        request.start_streaming();
        let _chunk = request.track_unsent();
        let idle = seconds_to_expiry(&activity, false).await.expect("expires");
        assert!((300..=305).contains(&idle), "only the idle limit: {idle}");
        let contended = seconds_to_expiry(&activity, true).await.expect("expires");
        assert!((20..=40).contains(&contended), "{contended}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_progresses_is_never_idle() {
        let activity = Arc::<Activity>::default();
        let mut request = activity.begin_request(Version::HTTP_11);
        request.start_streaming();
        let sending = async {
            loop {
                sleep(Duration::from_secs(200)).await;
                drop(request.track_unsent());
            }
        };
        tokio::select! {
            expired = seconds_to_expiry(&activity, false) => assert_eq!(expired, None),
            () = sending => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn control_frames_of_http2_are_not_progress() {
        let activity = Arc::<Activity>::default();
        let mut request = activity.begin_request(Version::HTTP_2);
        request.start_streaming();
        let pinging = async {
            loop {
                sleep(Duration::from_secs(100)).await;
                activity.received();
            }
        };
        tokio::select! {
            expired = seconds_to_expiry(&activity, false) => assert!(expired.is_some()),
            () = pinging => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn eviction_closes_at_once() {
        let activity = Arc::<Activity>::default();
        activity.evict();
        assert_eq!(seconds_to_expiry(&activity, false).await, Some(0));
    }

    #[test]
    fn only_an_authorized_response_or_a_request_in_flight_protects_from_eviction() {
        let activity = Arc::<Activity>::default();
        assert!(activity.is_evictable());
        let request = activity.begin_request(Version::HTTP_11);
        assert!(!activity.is_evictable(), "a request is in flight");
        drop(request);
        for status in [
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::NOT_FOUND,
        ] {
            activity.responded(status);
            assert!(activity.is_evictable(), "{status}");
        }
        activity.responded(StatusCode::BAD_REQUEST);
        assert!(!activity.is_evictable());
    }
}
