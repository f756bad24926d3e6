//! How a sidecar writes the log: events enter a bounded queue, and a thread writes them. Callers
//! never wait for the disk. While the sink fails, queued events are kept and retried; events that
//! don't fit are counted, and the log records how many were lost.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use metrics::{Counter, Gauge};
use tracing::{error, info, warn};

use super::{
    Appended, Event, ForwardHealth, Link, LogId, Origin, Sink,
    forward::{self, Forwards},
    refusals::{self, AccessRefusal, RefusalCounts},
};
use crate::{clock::Clock, config::AuditForward, telemetry::Registry};

/// The capacity of the queue, in events.
const QUEUE: usize = 1024;
/// The delay before a failed write is retried.
const RETRY: Duration = Duration::from_secs(1);
/// How long the writer waits for other writers of the same file.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a write may take before the sink counts as failing: a disk that hangs returns no error.
const STALLED: Duration = Duration::from_secs(5);

const RECORDS: &str = "sidekey_audit_records_total";
const LOST: &str = "sidekey_audit_lost_events_total";
const FAILING: &str = "sidekey_audit_failing";
const DAMAGE: &str = "sidekey_audit_damage_total";
const LAST: &str = "sidekey_audit_last_record";

/// Registers the descriptions of the audit log's metrics.
pub fn describe_metrics(registry: &Registry) {
    forward::describe_metrics(registry);
    registry.describe_counter(RECORDS, "Audit records that this process has written.");
    registry.describe_counter(
        LOST,
        "Events lost because the audit log could not be written; the log counts them too.",
    );
    registry.describe_counter(
        DAMAGE,
        "How often the audit log was found to be tampered with, or damaged.",
    );
    registry.describe_gauge(FAILING, "1 while the audit log can't be written.");
    registry.describe_gauge(
        LAST,
        "The number of the last audit record. It never falls unless the log was cut.",
    );
}

/// Records events, if an audit log is configured. Clones write to the same log.
#[derive(Clone, Default)]
pub struct Recorder(Option<Arc<Shared>>);

struct Shared {
    state: Mutex<State>,
    /// Notified when there is something to write, and when it was written.
    changed: Condvar,
    clock: Clock,
    sink: String,
    has_key: bool,
    records: Counter,
    lost: Counter,
    failing: Gauge,
    damage: Counter,
    last: Gauge,
    forwards: Forwards,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// Events lost since the last one that was queued.
    overflow: u64,
    /// With the last process of each kind.
    refusals: RefusalCounts<AccessRefusal, Option<i32>>,
    reopen: bool,
    closing: bool,
    closed: bool,
    lost: u64,
    log: Option<LogId>,
    last: Option<Link>,
    failure: Option<(Timestamp, String)>,
    /// How many events the writer has taken from the queue and not written yet.
    in_flight: usize,
    /// When the current write began.
    write_began: Option<(Instant, Timestamp)>,
}

/// The health of the audit log.
#[derive(Debug, Clone)]
pub struct LogHealth {
    /// The file, or standard output.
    pub sink: String,
    /// Whether records have MACs.
    pub has_key: bool,
    /// The log, once a record was written.
    pub log: Option<LogId>,
    /// The last written record.
    pub last: Option<Link>,
    /// Queued events.
    pub waiting: usize,
    /// Events lost since the start.
    pub lost: u64,
    /// When the current failure began, and why.
    pub failure: Option<(Timestamp, String)>,
    /// The collectors that get copies.
    pub forwards: Vec<ForwardHealth>,
}

impl Recorder {
    /// Starts a thread that writes to `sink`.
    ///
    /// # Errors
    /// The thread can't be spawned.
    pub fn start(mut sink: Sink, clock: Clock, registry: &Arc<Registry>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            forwards: Forwards::new(clock.clone(), Arc::clone(registry)),
            clock,
            sink: sink.name(),
            has_key: sink.has_key(),
            records: registry.counter(RECORDS, &[]),
            lost: registry.counter(LOST, &[]),
            failing: registry.gauge(FAILING, &[]),
            damage: registry.counter(DAMAGE, &[]),
            last: registry.gauge(LAST, &[]),
        });
        if let Sink::File(file) = sink {
            // No request waits for the lock, but a held lock should be reported soon.
            sink = Sink::File(file.with_patience(LOCK_PATIENCE));
        }
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name("sidekey-audit".into())
            .spawn(move || writer.write_all(sink))?;
        Ok(Self(Some(shared)))
    }

    /// Offers what is written from now on to these collectors, in tasks of the current runtime.
    pub fn forward_to(&self, collectors: &[AuditForward]) {
        if let Some(shared) = &self.0 {
            shared.forwards.install(collectors);
        }
    }

    /// Records an event with the details that `describe` adds. Never waits for the disk.
    pub fn record(&self, name: &'static str, describe: impl FnOnce(Event) -> Event) {
        let Some(shared) = &self.0 else { return };
        let event = describe(Event::new(name, shared.clock.now()));
        shared.push(event);
    }

    /// Counts a refused request. Never waits for the disk.
    pub fn refused(&self, refusal: AccessRefusal, pid: Option<i32>) {
        let Some(shared) = &self.0 else { return };
        if shared
            .state()
            .refusals
            .add(refusal, pid, shared.clock.now(), Instant::now())
        {
            shared.changed.notify_all();
        }
    }

    /// Reopens the file, after it was rotated.
    pub fn reopen(&self) {
        let Some(shared) = &self.0 else { return };
        shared.state().reopen = true;
        shared.changed.notify_all();
    }

    /// Writes all queued events and a final event `name`, then stops. Returns after `patience` at
    /// the latest. Events that could not be written are counted in the process's log.
    pub fn close(&self, name: &'static str, patience: Duration) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.state();
        if !state.closing {
            // May exceed the capacity by one.
            state.events.push_back(Event::new(name, shared.clock.now()));
        }
        state.closing = true;
        shared.changed.notify_all();
        let deadline = Instant::now() + patience;
        while !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waiting = state.waiting();
                if waiting > 0 {
                    warn!(
                        waiting,
                        sink = shared.sink,
                        "exiting before these events were written to the audit log"
                    );
                }
                return;
            }
            state = shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Forwards what waits for collectors, after [`Self::close`]. Returns after `patience` at the
    /// latest.
    pub async fn finish_forwards(&self, patience: Duration) {
        if let Some(shared) = &self.0 {
            shared.forwards.finish(patience).await;
        }
    }

    /// Returns the health of the log, or `None` if none is configured.
    pub fn health(&self) -> Option<LogHealth> {
        let shared = self.0.as_ref()?;
        let state = shared.state();
        let failure = state
            .failure
            .clone()
            .or_else(|| state.stall(Instant::now()));
        shared
            .failing
            .set(if failure.is_some() { 1.0 } else { 0.0 });
        Some(LogHealth {
            sink: shared.sink.clone(),
            has_key: shared.has_key,
            log: state.log,
            last: state.last,
            waiting: state.waiting(),
            lost: state.lost,
            failure,
            forwards: shared.forwards.health(),
        })
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.events.len() + self.in_flight
    }

    /// Returns when and why a write counts as stalled.
    fn stall(&self, now: Instant) -> Option<(Timestamp, String)> {
        let (since, at) = self.write_began?;
        let waited = now.saturating_duration_since(since);
        let reason = || {
            format!(
                "a write of {} events has not finished for {} seconds",
                self.in_flight,
                waited.as_secs()
            )
        };
        (waited >= STALLED).then(|| (at, reason()))
    }

    /// Takes the events to write now.
    fn take(&mut self, now: Timestamp) -> Vec<Event> {
        let refusals = self.refusals.take(Instant::now(), self.closing);
        let mut events: Vec<Event> = refusals
            .into_iter()
            .map(|(kind, refused)| refusals::event(kind, &refused))
            .collect();
        events.extend(self.events.drain(..));
        if self.overflow > 0 {
            events.push(gap(std::mem::take(&mut self.overflow), now));
        }
        self.in_flight = events.len();
        events
    }
}

fn gap(lost: u64, now: Timestamp) -> Event {
    Event::new("log.gap", now).with("lost", lost)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        let mut state = self.state();
        // Leaves space for the event that describes a gap.
        if state.events.len() + 1 >= QUEUE {
            state.overflow += 1;
            state.lost += 1;
            self.lost.increment(1);
            return;
        }
        if state.overflow > 0 {
            let lost = std::mem::take(&mut state.overflow);
            state.events.push_back(gap(lost, event.at));
        }
        state.events.push_back(event);
        drop(state);
        self.changed.notify_all();
    }

    fn write_all(&self, mut sink: Sink) {
        let origin = Origin::here();
        while let Some((events, reopen)) = self.next_batch() {
            if reopen {
                sink.reopen();
            }
            if !self.write(&mut sink, &origin, &events) {
                // It still fails while closing.
                let lost = events.len() + self.state().events.len();
                error!(
                    lost,
                    sink = self.sink,
                    "these events were not written to the audit log"
                );
                break;
            }
        }
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Waits for events to write. Returns `None` once all are written and the recorder is closing.
    fn next_batch(&self) -> Option<(Vec<Event>, bool)> {
        let mut state = self.state();
        loop {
            let events = state.take(self.clock.now());
            let reopen = std::mem::take(&mut state.reopen);
            if !events.is_empty() || reopen {
                return Some((events, reopen));
            }
            if state.closing {
                return None;
            }
            state = match state.refusals.next_due() {
                Some(due) => {
                    let left = due.saturating_duration_since(Instant::now());
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Writes events and retries until that works. Returns false if it fails while closing.
    fn write(&self, sink: &mut Sink, origin: &Origin, events: &[Event]) -> bool {
        if events.is_empty() {
            return true;
        }
        loop {
            self.state().write_began = Some((Instant::now(), self.clock.now()));
            let result = sink.append(origin, events);
            if let Ok(appended) = &result {
                self.forwards.offer(&appended.lines);
            }
            let mut state = self.state();
            state.write_began = None;
            match result {
                Ok(Appended {
                    log, last, damage, ..
                }) => {
                    (state.log, state.last) = (Some(log), Some(last));
                    state.in_flight = 0;
                    self.records.increment(events.len() as u64);
                    // Exact below 2^53.
                    self.last.set(last.seq as f64);
                    if let Some(damage) = damage {
                        self.damage.increment(1);
                        error!(
                            sink = self.sink,
                            "the audit log was tampered with, or damaged: {}; a record says so",
                            damage.describe()
                        );
                    }
                    self.failing.set(0.0);
                    if let Some((since, _)) = state.failure.take() {
                        info!(%since, sink = self.sink, "the audit log can be written again");
                    }
                    return true;
                }
                Err(reason) => {
                    self.failing.set(1.0);
                    if state
                        .failure
                        .as_ref()
                        .is_none_or(|(_, before)| *before != reason)
                    {
                        error!(
                            sink = self.sink,
                            "{reason}; the sidecar keeps serving, with up to {QUEUE} events queued"
                        );
                        let since = state
                            .failure
                            .take()
                            .map_or_else(|| self.clock.now(), |(since, _)| since);
                        state.failure = Some((since, reason));
                    }
                    if state.closing {
                        return false;
                    }
                    // A reopened file may work.
                    let woken = |state: &mut State| !state.closing && !state.reopen;
                    let waited = self
                        .changed
                        .wait_timeout_while(state, RETRY, woken)
                        .unwrap_or_else(PoisonError::into_inner);
                    let (mut state, _) = waited;
                    if std::mem::take(&mut state.reopen) {
                        sink.reopen();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
