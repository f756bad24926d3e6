//! Barriers: every sidecar reports at once, and its report says that it answers the barrier.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{
    store::{Store, StoreError},
    streams::{Streams, text},
};
use crate::{
    clock::Clock,
    wire::hub::{Barrier, ReportNow, StreamEvent},
};

/// The longest wait for the reports of a barrier, in seconds.
pub(super) const MAX_WAIT: u32 = 30;

/// Sets barriers.
#[derive(Default)]
pub(super) struct Barriers {
    /// The last one that was set by this process; 0 for none.
    last: AtomicU64,
    /// Notified when reports are stored.
    pub(super) reported: Notify,
}

impl Barriers {
    /// Returns what a stream begins with, so that a sidecar that connects late answers, too.
    pub(super) fn last(&self) -> Option<StreamEvent> {
        match self.last.load(Ordering::SeqCst) {
            0 => None,
            barrier => Some(StreamEvent::ReportNow(ReportNow { barrier })),
        }
    }

    /// Sets a barrier, and waits until every connected sidecar has answered it, or for `wait`.
    ///
    /// # Errors
    /// The database can't be read or written.
    pub(super) async fn set(
        &self,
        store: &Store,
        streams: &Streams,
        clock: &Clock,
        wait: Duration,
    ) -> Result<Barrier, StoreError> {
        let deadline = Instant::now() + wait;
        let set = store.set_barrier(clock.now()).await?;
        let (barrier, at) = (set.number, set.at);
        self.last.fetch_max(barrier, Ordering::SeqCst);
        if let Some(event) = text(&StreamEvent::ReportNow(ReportNow { barrier })) {
            for live in streams.all() {
                streams.send(&live, event.clone());
            }
        }
        loop {
            let reported = self.reported.notified();
            tokio::pin!(reported);
            // Before the look, so that no report in between is missed.
            reported.as_mut().enable();
            let is_answered = || {
                let streams = streams.all();
                streams.iter().all(|live| live.answered() >= barrier)
            };
            if is_answered() || timeout_at(deadline, reported).await.is_err() {
                break;
            }
        }
        Ok(Barrier {
            barrier,
            at,
            unanswered: store.unanswered(barrier).await?,
        })
    }
}
