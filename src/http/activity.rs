//! What happens on a connection, as its timeouts see it.
//!
//! Requests only update counters here. The timers belong to the connection, so a request sets none.

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::Version;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::account::StreamPlace;
use crate::config::Timeouts;

/// How much may arrive over HTTP/2 without progress of any request: frames such as PRIORITY, PING,
/// WINDOW_UPDATE and unknown ones cost their sender nothing otherwise. Unread data is
/// less than a tenth of it.
const MAX_NOISE: usize = 1 << 20;

/// The state of one connection.
#[derive(Default)]
pub(crate) struct Activity {
    /// Requests whose head has arrived.
    heads: AtomicU64,
    /// Requests that have no response yet.
    working: AtomicU32,
    /// Bytes have arrived since the last head.
    is_reading_head: AtomicBool,
    is_http2: AtomicBool,
    /// The peer is authenticated, and some rule allows it something.
    is_known: AtomicBool,
    /// Requests whose responses are being streamed.
    streaming: AtomicU32,
    /// Counts chunks sent and reads received while any response is streamed.
    progress: AtomicU64,
    /// Whole responses that the peer has not taken yet, by the epoch in which they were ready.
    unsent: [AtomicU32; 2],
    /// Chunks of streamed responses that the peer has not taken yet, likewise.
    unsent_chunks: [AtomicU32; 2],
    epoch: AtomicUsize,
    /// Bytes that the kernel has taken.
    written: AtomicU64,
    /// Bytes that arrived over HTTP/2 without progress of any request.
    noise: AtomicUsize,
    evicted: Notify,
}

/// Marks a request as in flight until its response is complete or the connection is gone.
pub(crate) struct RequestGuard {
    activity: Arc<Activity>,
    phase: Phase,
    _place: Option<StreamPlace>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Working,
    /// The peer must take the response, which was ready in this epoch.
    Responded(usize),
    /// The response may take any amount of time as long as it progresses.
    Streaming,
}

impl Phase {
    fn count(self, activity: &Activity) -> &AtomicU32 {
        match self {
            Self::Working => &activity.working,
            Self::Responded(epoch) => &activity.unsent[epoch],
            Self::Streaming => &activity.streaming,
        }
    }
}

impl RequestGuard {
    /// Marks the response as ready: from now on, the peer sets the pace.
    pub(crate) fn respond(&mut self, is_streamed: bool) {
        let activity = &self.activity;
        let next = if is_streamed {
            Phase::Streaming
        } else {
            Phase::Responded(activity.epoch.load(Ordering::Relaxed))
        };
        next.count(activity).fetch_add(1, Ordering::Relaxed);
        self.phase.count(activity).fetch_sub(1, Ordering::Relaxed);
        self.phase = next;
    }

    pub(crate) fn is_streaming(&self) -> bool {
        self.phase == Phase::Streaming
    }

    /// Counts a response body or chunk as unsent until the guard is dropped with the bytes.
    pub(crate) fn track_unsent(&self) -> UnsentGuard {
        let activity = &self.activity;
        let is_chunk = self.is_streaming();
        activity.progressed();
        if is_chunk {
            activity.progress.fetch_add(1, Ordering::Relaxed);
        }
        let guard = UnsentGuard {
            activity: Arc::clone(activity),
            is_chunk,
            epoch: activity.epoch.load(Ordering::Relaxed),
        };
        guard.count().fetch_add(1, Ordering::Relaxed);
        guard
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let count = self.phase.count(&self.activity);
        count.fetch_sub(1, Ordering::Relaxed);
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
    /// Records the head of a request. A concurrent one has a place.
    pub(crate) fn begin_request(
        self: &Arc<Self>,
        version: Version,
        place: Option<StreamPlace>,
    ) -> RequestGuard {
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.progressed();
        self.working.fetch_add(1, Ordering::Relaxed);
        self.is_reading_head.store(false, Ordering::Relaxed);
        self.is_http2
            .store(version == Version::HTTP_2, Ordering::Relaxed);
        RequestGuard {
            activity: Arc::clone(self),
            phase: Phase::Working,
            _place: place,
        }
    }

    /// Whether no request has arrived yet.
    pub(crate) fn is_silent(&self) -> bool {
        self.heads.load(Ordering::Relaxed) == 0
    }

    /// Whether a request is in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.working.load(Ordering::Relaxed) > 0 || self.is_responding()
    }

    /// Marks the peer as known: it is authenticated, and some rule allows it something.
    pub(crate) fn recognize(&self) {
        // Most requests find it set, and a load does not contend.
        if !self.is_known() {
            self.is_known.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the peer is known. Nothing that any other peer does protects its connection: not a
    /// request in flight, and not a response that it does not take.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    pub(crate) fn is_streaming(&self) -> bool {
        self.streaming.load(Ordering::Relaxed) > 0
    }

    fn is_responding(&self) -> bool {
        let unsent = self
            .unsent
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        self.is_streaming() || unsent.sum::<u32>() > 0
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
            // A request without a response has a body timeout of its own.
            if state != last || self.working.load(Ordering::Relaxed) > 0 {
                (last, since) = (state, Instant::now());
                continue;
            }
            let (heads, is_reading_head, _) = state;
            let is_between_requests = self.is_known() && heads > 0 && !is_reading_head;
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

    /// Resolves once nothing has happened for between one and two times `grace`, except that the
    /// peer does not take responses.
    pub(crate) async fn left_alone(&self, grace: Duration) {
        let mut written = self.written.load(Ordering::Relaxed);
        loop {
            sleep(grace).await;
            let before = std::mem::replace(&mut written, self.written.load(Ordering::Relaxed));
            let is_working = self.working.load(Ordering::Relaxed) > 0 || self.is_streaming();
            let is_moving = written != before || self.is_reading_head.load(Ordering::Relaxed);
            // A stranger could move without end.
            if !(is_working || is_moving && self.is_known()) {
                return;
            }
        }
    }

    /// Records that the kernel has taken `bytes`. Only the connection's own task calls this.
    pub(super) fn wrote(&self, bytes: usize) {
        let written = self.written.load(Ordering::Relaxed);
        self.written
            .store(written.wrapping_add(bytes as u64), Ordering::Relaxed);
    }

    /// Records that a request's head or data was read, or a part of its response taken.
    pub(super) fn progressed(&self) {
        self.noise.store(0, Ordering::Relaxed);
    }

    /// Records that `bytes` arrived. Only the connection's own task calls this.
    pub(super) fn received(&self, bytes: usize) {
        // HTTP/2 also sends control frames, which show neither progress nor the start of a head.
        if self.is_http2.load(Ordering::Relaxed) {
            let noise = self.noise.load(Ordering::Relaxed).saturating_add(bytes);
            self.noise.store(noise, Ordering::Relaxed);
            if noise > MAX_NOISE {
                self.evict();
            }
            return;
        }
        if self.streaming.load(Ordering::Relaxed) > 0 {
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
        if !self.is_busy() {
            self.is_reading_head.store(true, Ordering::Relaxed);
        }
    }
}
