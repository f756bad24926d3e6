//! What happens on a connection, for its time-outs. Requests only count here; timers are the connection's own, so a request sets none.

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

use bytes::Bytes;
use hyper::{StatusCode, Version};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, sleep},
};

use super::body::UNCOUNTED;
use crate::config::Timeouts;

#[derive(Default)]
pub(super) struct Activity {
    /// Requests whose head has come.
    begun: AtomicU64,
    in_flight: AtomicU32,
    /// Bytes have come since the last head.
    is_reading: AtomicBool,
    is_http2: AtomicBool,
    /// A request was let in by token and policy.
    is_welcome: AtomicBool,
    /// Answers that the peer has not taken yet, by the epoch in which they were made.
    untaken: [AtomicU32; 2],
    epoch: AtomicUsize,
    evicted: Notify,
}

/// A request in flight; ends with its answer or with the connection.
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer until its last byte is with the kernel, or the connection is gone.
struct Untaken {
    bytes: Bytes,
    activity: Arc<Activity>,
    epoch: usize,
}

impl AsRef<[u8]> for Untaken {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.activity.untaken[self.epoch].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> Busy {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.is_reading.store(false, Ordering::Relaxed);
        self.is_http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Notes what a request was told; the bytes to send then tell when the peer has taken them.
    pub(super) fn answered(self: &Arc<Self>, status: StatusCode, bytes: Bytes) -> Bytes {
        if !is_for_strangers(status) {
            self.is_welcome.store(true, Ordering::Relaxed);
        }
        if bytes.len() <= UNCOUNTED {
            return bytes;
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        self.untaken[epoch].fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Untaken { bytes, activity: Arc::clone(self), epoch })
    }

    /// Whether the connection may go when all are taken: nobody on it was let in, and nobody is being asked.
    pub(super) fn is_dispensable(&self) -> bool {
        !self.is_welcome.load(Ordering::Relaxed) && self.in_flight.load(Ordering::Relaxed) == 0
    }

    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Resolves when the connection must go: it was evicted, or the peer was silent, slow with a head, or slow to take an answer
    /// for longer than it may.
    pub(super) async fn outlived(&self, limits: &Timeouts) {
        tokio::select! {
            () = self.is_idle(limits) => {}
            () = self.is_untaken(limits.body) => {}
            () = self.evicted() => {}
        }
    }

    /// Give or take half of the shorter limit.
    async fn is_idle(&self, limits: &Timeouts) {
        let tick = limits.header.min(limits.idle) / 4;
        let now = || (self.begun.load(Ordering::Relaxed), self.is_reading.load(Ordering::Relaxed));
        let (mut last, mut since) = (now(), Instant::now());
        loop {
            sleep(tick).await;
            let state = now();
            // The body of a request in flight has a time-out of its own.
            if state != last || self.in_flight.load(Ordering::Relaxed) > 0 {
                (last, since) = (state, Instant::now());
                continue;
            }
            let is_waiting = self.is_welcome.load(Ordering::Relaxed) && !state.1;
            let limit = if is_waiting { limits.idle } else { limits.header };
            if since.elapsed() >= limit {
                return;
            }
        }
    }

    /// Between one and two times the limit after an answer was made that is still not taken.
    async fn is_untaken(&self, limit: Duration) {
        loop {
            sleep(limit).await;
            let next = 1 - self.epoch.load(Ordering::Relaxed);
            // Those of the epoch before the one that ends now.
            if self.untaken[next].load(Ordering::Relaxed) > 0 {
                return;
            }
            self.epoch.store(next, Ordering::Relaxed);
        }
    }

    fn received(&self) {
        // HTTP/2 has frames of its own between requests; there, only idleness counts.
        if !self.is_http2.load(Ordering::Relaxed) && self.in_flight.load(Ordering::Relaxed) == 0 {
            self.is_reading.store(true, Ordering::Relaxed);
        }
    }
}

/// What anybody gets who can open a connection, whether or not he may do anything.
fn is_for_strangers(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    )
}

/// A stream that tells when bytes come.
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.received();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
