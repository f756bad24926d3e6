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
pub(crate) struct Activity {
    /// Requests whose head has come.
    begun: AtomicU64,
    in_flight: AtomicU32,
    /// Bytes have come since the last head.
    is_reading: AtomicBool,
    is_http2: AtomicBool,
    /// A request was let in by token and policy.
    is_welcome: AtomicBool,
    /// Requests in flight whose answers are made while they are taken.
    flowing: AtomicU32,
    /// Counts what moves while there are any: pieces of such answers, and of their requests.
    moves: AtomicU64,
    /// Answers that the peer has not taken yet, by the epoch in which they were made.
    untaken: [AtomicU32; 2],
    /// The same for pieces of answers.
    untaken_pieces: [AtomicU32; 2],
    epoch: AtomicUsize,
    evicted: Notify,
}

/// A request in flight; ends with its answer or with the connection.
pub(crate) struct Busy {
    activity: Arc<Activity>,
    is_flow: bool,
}

impl Busy {
    /// From here on, its answer is made while it is taken, which may take as long as it likes, if only it goes on.
    pub(crate) fn flows(&mut self) {
        self.is_flow = true;
        self.activity.flowing.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of an answer that tell when the peer has taken them.
    pub(crate) fn hand_over(&self, bytes: Bytes) -> Bytes {
        let activity = &self.activity;
        if self.is_flow {
            activity.moves.fetch_add(1, Ordering::Relaxed);
        }
        // Whoever takes no piece holds what its making holds, however short the piece.
        if bytes.len() <= UNCOUNTED && !self.is_flow {
            return bytes;
        }
        let epoch = activity.epoch.load(Ordering::Relaxed);
        let untaken = Untaken {
            bytes,
            activity: Arc::clone(activity),
            is_piece: self.is_flow,
            epoch,
        };
        untaken.count().fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(untaken)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_flow {
            self.activity.flowing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An answer until its last byte is with the kernel, or the connection is gone.
struct Untaken {
    bytes: Bytes,
    activity: Arc<Activity>,
    is_piece: bool,
    epoch: usize,
}

impl Untaken {
    fn count(&self) -> &AtomicU32 {
        let counts = if self.is_piece {
            &self.activity.untaken_pieces
        } else {
            &self.activity.untaken
        };
        &counts[self.epoch]
    }
}

impl AsRef<[u8]> for Untaken {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.count().fetch_sub(1, Ordering::Relaxed);
    }
}

impl Activity {
    pub(crate) fn begin(self: &Arc<Self>, version: Version) -> Busy {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.is_reading.store(false, Ordering::Relaxed);
        self.is_http2
            .store(version == Version::HTTP_2, Ordering::Relaxed);
        Busy {
            activity: Arc::clone(self),
            is_flow: false,
        }
    }

    /// Notes what a request was told.
    pub(crate) fn answered(&self, status: StatusCode) {
        if !is_for_strangers(status) {
            self.is_welcome.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the connection may go when all are taken: nobody on it was let in, and nobody is being asked.
    pub(crate) fn is_dispensable(&self) -> bool {
        !self.is_welcome.load(Ordering::Relaxed) && self.in_flight.load(Ordering::Relaxed) == 0
    }

    /// Whether an answer is being made while it is taken.
    pub(crate) fn is_flowing(&self) -> bool {
        self.flowing.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn evict(&self) {
        self.evicted.notify_one();
    }

    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Resolves when the connection must go: it was evicted, or the peer was silent, slow with a head, or slow to take an answer
    /// for longer than it may. Who takes an answer piece by piece may be slow as long as `is_pressed` says that nobody else waits
    /// for what it holds.
    pub(crate) async fn outlived(&self, limits: &Timeouts, is_pressed: impl Fn() -> bool) {
        tokio::select! {
            () = self.is_idle(limits) => {}
            () = self.is_untaken(limits.body, is_pressed) => {}
            () = self.evicted() => {}
        }
    }

    /// Give or take half of the shorter limit.
    async fn is_idle(&self, limits: &Timeouts) {
        let tick = limits.header.min(limits.idle) / 4;
        let now = || {
            let moves = self.moves.load(Ordering::Relaxed);
            (
                self.begun.load(Ordering::Relaxed),
                self.is_reading.load(Ordering::Relaxed),
                moves,
            )
        };
        let (mut last, mut since) = (now(), Instant::now());
        loop {
            sleep(tick).await;
            let state = now();
            let flowing = self.flowing.load(Ordering::Relaxed);
            // The body of a request whose answer hasn't begun has a time-out of its own.
            if state != last || self.in_flight.load(Ordering::Relaxed) > flowing {
                (last, since) = (state, Instant::now());
                continue;
            }
            let is_waiting = self.is_welcome.load(Ordering::Relaxed) && !state.1;
            let limit = if is_waiting || flowing > 0 {
                limits.idle
            } else {
                limits.header
            };
            if since.elapsed() >= limit {
                return;
            }
        }
    }

    /// Between one and two times the limit after something was handed over that is still not taken.
    async fn is_untaken(&self, limit: Duration, is_pressed: impl Fn() -> bool) {
        loop {
            sleep(limit).await;
            let next = 1 - self.epoch.load(Ordering::Relaxed);
            // Those of the epoch before the one that ends now.
            let is_left = |counts: &[AtomicU32; 2]| counts[next].load(Ordering::Relaxed) > 0;
            if is_left(&self.untaken) || is_left(&self.untaken_pieces) && is_pressed() {
                return;
            }
            self.epoch.store(next, Ordering::Relaxed);
        }
    }

    fn received(&self) {
        // HTTP/2 has frames that move nothing.
        if self.flowing.load(Ordering::Relaxed) > 0 && !self.is_http2.load(Ordering::Relaxed) {
            self.moves.fetch_add(1, Ordering::Relaxed);
        }
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
pub(crate) struct Watched<S> {
    pub(crate) stream: S,
    pub(crate) activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.received();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
