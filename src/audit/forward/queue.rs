//! The lines that wait for one collector.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use metrics::{Counter, Gauge};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::deliver::{Deliver, Undelivered};
use crate::{clock::Clock, telemetry::Registry};

/// The most lines that wait for a collector.
pub(super) const MAX_LINES: usize = 4096;
/// The most memory that they take, in bytes. Syslog may take 1 MiB beside that.
pub(super) const MAX_BYTES: usize = 3 << 20;
/// The most lines that are delivered together.
pub(super) const BATCH_LINES: usize = 256;
/// The most bytes that are delivered together, unless one line has more.
pub(super) const BATCH_BYTES: usize = 256 << 10;
/// The pause after a failure. It doubles with each further one.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(250);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The most reasons that the log has of one failure. Some name the time, so all differ.
const MAX_REASONS: usize = 8;

const FORWARDED: &str = "sidekey_audit_forwarded_total";
const LOST: &str = "sidekey_audit_forward_lost_total";
const FAILING: &str = "sidekey_audit_forward_failing";

/// Registers the descriptions of the metrics.
pub(in crate::audit) fn describe_metrics(registry: &Registry) {
    registry.describe_counter(FORWARDED, "Audit records that a collector has taken.");
    registry.describe_counter(
        LOST,
        "Audit records that a collector lacks: it refused them, or too many waited for it.",
    );
    registry.describe_gauge(FAILING, "1 while a collector of audit records takes none.");
}

/// The lines that wait for a collector.
pub(super) struct Queue {
    /// The collector, as messages and metrics call it.
    to: String,
    state: Mutex<State>,
    /// Notified when there is more to do.
    changed: Notify,
    closing: CancellationToken,
    clock: Clock,
    forwarded: Counter,
    overflowed: Counter,
    refused: Counter,
    failing: Gauge,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Bytes>,
    bytes: usize,
    lost: u64,
    /// Since the queue was empty, a line found no room.
    is_overflowing: bool,
    failure: Option<(Timestamp, String)>,
    /// The reasons of this failure that the log has.
    logged: Vec<String>,
    /// Another queue may have the collector's gauge.
    is_forgotten: bool,
}

/// The health of a collector.
#[derive(Debug, Clone)]
pub struct ForwardHealth {
    /// Where it is.
    pub to: String,
    /// Records that wait for it.
    pub waiting: usize,
    /// Records that it lacks since the start: it refused them, or they found no room.
    pub lost: u64,
    /// Since when it takes none, and why.
    pub failure: Option<(Timestamp, String)>,
}

impl Queue {
    pub(super) fn new(to: String, clock: Clock, registry: &Registry) -> Self {
        let lost = |reason| registry.counter(LOST, &[("to", &to), ("reason", reason)]);
        let (overflowed, refused) = (lost("overflow"), lost("refused"));
        Self {
            forwarded: registry.counter(FORWARDED, &[("to", &to)]),
            overflowed,
            refused,
            failing: registry.gauge(FAILING, &[("to", &to)]),
            to,
            state: Mutex::default(),
            changed: Notify::new(),
            closing: CancellationToken::new(),
            clock,
        }
    }

    /// Appends lines that find room; the others are lost. Never waits.
    pub(super) fn offer(&self, lines: &[Bytes]) {
        let mut state = self.state();
        for line in lines {
            let has_room = state.lines.len() < MAX_LINES && state.bytes + line.len() <= MAX_BYTES;
            if has_room {
                state.bytes += line.len();
                state.lines.push_back(line.clone());
                continue;
            }
            state.lost += 1;
            self.overflowed.increment(1);
            if !std::mem::replace(&mut state.is_overflowing, true) {
                warn!(
                    to = self.to,
                    waiting = state.lines.len(),
                    "too many audit records wait to be forwarded; further ones are not forwarded \
                     until there is room, and the log has them"
                );
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Ends [`Self::deliver_all`] once nothing waits.
    pub(super) fn close(&self) {
        self.closing.cancel();
        self.changed.notify_one();
    }

    /// Delivers lines in order until the queue is closed and empty. Lines that a failure leaves in
    /// doubt are delivered again, so a collector may get some twice.
    pub(super) async fn deliver_all(self: Arc<Self>, mut collector: impl Deliver) {
        let (mut most, mut pause) = (BATCH_LINES, FIRST_PAUSE);
        while let Some(next) = self.next(most, &mut collector).await {
            let (batch, delivered) = match next {
                Next::Deliver(batch) => {
                    let delivered = collector.deliver(&batch).await;
                    (batch, delivered)
                }
                Next::Lost(reason) => {
                    self.failed(reason);
                    self.wait(pause).await;
                    (Vec::new(), collector.deliver(&[]).await)
                }
            };
            match delivered {
                Ok(()) => {
                    self.delivered(batch.len());
                    most = (most * 2).min(BATCH_LINES);
                    // A collector that only ever loses what it got is not asked in a loop.
                    pause = if batch.is_empty() {
                        grown(pause)
                    } else {
                        FIRST_PAUSE
                    };
                }
                // Their sum may be the reason, or one of them.
                Err(Undelivered::Refused(_)) if batch.len() > 1 => most = batch.len() / 2,
                Err(Undelivered::Refused(reason)) => self.lose_first(&reason),
                Err(Undelivered::Failed(reason)) => {
                    self.failed(reason);
                    self.wait(pause).await;
                    pause = grown(pause);
                }
            }
        }
        collector.close().await;
    }

    /// Says in the log what waits, because nothing more will be delivered.
    pub(super) fn give_up(&self) {
        let waiting = self.state().lines.len();
        if waiting > 0 {
            warn!(
                waiting,
                to = self.to,
                "these audit records are not forwarded any more; the log has them"
            );
        }
    }

    /// What becomes of the lines that wait is no longer of interest.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        self.set_failing(&state, false);
        state.is_forgotten = true;
    }

    pub(super) fn health(&self) -> ForwardHealth {
        let state = self.state();
        ForwardHealth {
            to: self.to.clone(),
            waiting: state.lines.len(),
            lost: state.lost,
            failure: state.failure.clone(),
        }
    }

    /// Waits for lines, of which it returns at most `most`, or for a loss. `None` if there will be
    /// no lines.
    async fn next(&self, most: usize, collector: &mut impl Deliver) -> Option<Next> {
        loop {
            let batch = self.state().batch(most);
            if !batch.is_empty() {
                return Some(Next::Deliver(batch));
            }
            if self.closing.is_cancelled() {
                return None;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                reason = collector.lost() => return Some(Next::Lost(reason)),
            }
        }
    }

    /// Spread, because all sidecars may lose one collector at the same time.
    async fn wait(&self, pause: Duration) {
        if self.closing.is_cancelled() {
            return sleep(FIRST_PAUSE).await;
        }
        let pause = pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        // The last chance comes at once.
        let _ = self.closing.run_until_cancelled(sleep(pause)).await;
    }

    fn delivered(&self, count: usize) {
        self.forwarded.increment(count as u64);
        let mut state = self.state();
        self.set_failing(&state, false);
        state.remove(count);
        if state.lines.is_empty() && std::mem::take(&mut state.is_overflowing) {
            info!(
                to = self.to,
                lost = state.lost,
                "all audit records that found room are forwarded"
            );
        }
        state.logged.clear();
        if let Some((since, _)) = state.failure.take() {
            info!(%since, to = self.to, "audit records are forwarded again");
        }
    }

    fn lose_first(&self, reason: &str) {
        self.refused.increment(1);
        let mut state = self.state();
        state.remove(1);
        state.lost += 1;
        drop(state);
        self.failed(format!("it refuses a record: {reason}"));
    }

    fn failed(&self, reason: String) {
        let mut state = self.state();
        self.set_failing(&state, true);
        // Reasons may alternate, as those of several servers behind one address do.
        if state.logged.len() < MAX_REASONS && !state.logged.contains(&reason) {
            warn!(
                to = self.to,
                "audit records can't be forwarded: {reason}; the log has them"
            );
            state.logged.push(reason.clone());
        }
        let since = state.failure.take().map(|(since, _)| since);
        state.failure = Some((since.unwrap_or_else(|| self.clock.now()), reason));
    }

    fn set_failing(&self, state: &State, is_failing: bool) {
        if !state.is_forgotten {
            self.failing.set(f64::from(u8::from(is_failing)));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be done next.
enum Next {
    Deliver(Vec<Bytes>),
    /// What was delivered may be lost, and is to be delivered again.
    Lost(String),
}

fn grown(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE)
}

impl State {
    /// Returns the first lines, at least one if there is one.
    fn batch(&self, most: usize) -> Vec<Bytes> {
        let mut bytes = 0;
        let fits = |line: &&Bytes| {
            let is_first = bytes == 0;
            bytes += line.len();
            is_first || bytes <= BATCH_BYTES
        };
        self.lines
            .iter()
            .take(most.max(1))
            .take_while(fits)
            .cloned()
            .collect()
    }

    /// Removes the first lines.
    fn remove(&mut self, count: usize) {
        for line in self.lines.drain(..count) {
            self.bytes -= line.len();
        }
    }
}
