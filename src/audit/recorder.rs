//! A sidecar's side of the log: events go into a bounded queue, and a thread of its own writes them. Whoever reports one never waits
//! for the disk. While the sink fails, what is queued is kept and tried again; what finds no room is counted, and the log says so.

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
    Event, Link, Origin, Sink,
    refusals::{Refusal, Tallies},
};
use crate::{clock::Clock, telemetry::Registry};

/// How many events wait for the disk at most.
const QUEUE: usize = 1024;
/// How long the writer waits before it tries a sink again that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long the writer waits for other writers of the same file.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long one write may take before the sink is said to fail: a disk that hangs gives no error.
const STALLED: Duration = Duration::from_secs(5);

const RECORDS: &str = "sidekey_audit_records_total";
const LOST: &str = "sidekey_audit_lost_events_total";
const FAILING: &str = "sidekey_audit_failing";
const LAST: &str = "sidekey_audit_last_record";

/// Describes the metrics of the audit log.
pub fn describe_metrics(registry: &Registry) {
    registry.describe_counter(RECORDS, "Audit records that this process has written.");
    registry.describe_counter(
        LOST,
        "Events that found no room while the audit log could not be written; the log says so, too.",
    );
    registry.describe_gauge(FAILING, "1 while the audit log can't be written.");
    registry.describe_gauge(
        LAST,
        "The number of the last audit record: it never falls unless somebody cuts the log.",
    );
}

/// Takes events, if an audit log is configured at all. Clones write to the same log.
#[derive(Clone, Default)]
pub struct Recorder(Option<Arc<Shared>>);

struct Shared {
    state: Mutex<State>,
    /// Something is to be written, or was.
    changed: Condvar,
    clock: Clock,
    sink: String,
    has_key: bool,
    records: Counter,
    lost: Counter,
    failing: Gauge,
    last: Gauge,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// Events that found no room since the last one that did.
    overflow: u64,
    tallies: Tallies,
    reopen: bool,
    closing: bool,
    closed: bool,
    lost: u64,
    last: Option<Link>,
    failure: Option<(Timestamp, String)>,
    /// Taken from the queue and not written yet.
    in_hand: usize,
    /// Since when the sink has had what is in hand.
    handed_over: Option<(Instant, Timestamp)>,
}

/// How the log is doing.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The file, or standard output.
    pub sink: String,
    /// Whether a key vouches for the records.
    pub has_key: bool,
    /// The last record that was written.
    pub last: Option<Link>,
    /// Events that wait to be written.
    pub waiting: usize,
    /// Events that were lost since the start.
    pub lost: u64,
    /// Since when and why it can't be written.
    pub failure: Option<(Timestamp, String)>,
}

impl Recorder {
    /// Writes to `sink` from now on, on a thread of its own.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(mut sink: Sink, clock: Clock, registry: &Registry) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            clock,
            sink: sink.name(),
            has_key: sink.has_key(),
            records: registry.counter(RECORDS, &[]),
            lost: registry.counter(LOST, &[]),
            failing: registry.gauge(FAILING, &[]),
            last: registry.gauge(LAST, &[]),
        });
        if let Sink::File(file) = sink {
            // Serving waits for none of this, but a lock that is held must show soon.
            sink = Sink::File(file.with_patience(LOCK_PATIENCE));
        }
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name("sidekey-audit".into())
            .spawn(move || writer.write_all(sink))?;
        Ok(Self(Some(shared)))
    }

    /// Reports an event whose details `describe` gives. Never waits for the disk.
    pub fn record(&self, name: &'static str, describe: impl FnOnce(Event) -> Event) {
        let Some(shared) = &self.0 else { return };
        let event = describe(Event::new(name, shared.clock.now()));
        shared.push(event);
    }

    /// Counts a refusal. Takes a lock for a moment, and never waits for the disk.
    pub fn refused(&self, refusal: Refusal, pid: Option<i32>) {
        let Some(shared) = &self.0 else { return };
        if shared
            .state()
            .tallies
            .add(refusal, pid, shared.clock.now(), Instant::now())
        {
            shared.changed.notify_all();
        }
    }

    /// Has the file opened anew, after it was rotated.
    pub fn reopen(&self) {
        let Some(shared) = &self.0 else { return };
        shared.state().reopen = true;
        shared.changed.notify_all();
    }

    /// Writes what waits and, last of all, an event called `name`, and ends, within `patience`. What the log can't take is said in the
    /// process's log.
    pub fn close(&self, name: &'static str, patience: Duration) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.state();
        if !state.closing {
            // One event more than there is room for does no harm.
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
                        "ending before the audit log took these events"
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

    /// How the log is doing; `None` if there is none.
    pub fn standing(&self) -> Option<Standing> {
        let shared = self.0.as_ref()?;
        let state = shared.state();
        let failure = state
            .failure
            .clone()
            .or_else(|| state.stall(Instant::now()));
        shared
            .failing
            .set(if failure.is_some() { 1.0 } else { 0.0 });
        Some(Standing {
            sink: shared.sink.clone(),
            has_key: shared.has_key,
            last: state.last,
            waiting: state.waiting(),
            lost: state.lost,
            failure,
        })
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.events.len() + self.in_hand
    }

    /// What is wrong with a sink that neither takes what it was given nor says why.
    fn stall(&self, now: Instant) -> Option<(Timestamp, String)> {
        let (since, at) = self.handed_over?;
        let waited = now.saturating_duration_since(since);
        let reason = || {
            format!(
                "the sink has not taken {} events for {} seconds",
                self.in_hand,
                waited.as_secs()
            )
        };
        (waited >= STALLED).then(|| (at, reason()))
    }

    /// What is to be written now.
    fn take(&mut self, now: Timestamp) -> Vec<Event> {
        let mut events = self.tallies.take(Instant::now(), self.closing);
        events.extend(self.events.drain(..));
        if self.overflow > 0 {
            events.push(gap(std::mem::take(&mut self.overflow), now));
        }
        self.in_hand = events.len();
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
        // Room for the gap, too, if there is one.
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
                // Closing, and it still fails.
                let lost = events.len() + self.state().events.len();
                error!(lost, sink = self.sink, "these events are in no audit log");
                break;
            }
        }
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Waits for something to write; `None` once all is written and no more will come.
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
            state = match state.tallies.next_due() {
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

    /// Writes events, however often that takes; gives up only when the process ends.
    fn write(&self, sink: &mut Sink, origin: &Origin, events: &[Event]) -> bool {
        if events.is_empty() {
            return true;
        }
        loop {
            self.state().handed_over = Some((Instant::now(), self.clock.now()));
            let result = sink.append(origin, events);
            let mut state = self.state();
            state.handed_over = None;
            match result {
                Ok(link) => {
                    state.last = Some(link);
                    state.in_hand = 0;
                    self.records.increment(events.len() as u64);
                    // Exact below 2^53.
                    self.last.set(link.seq as f64);
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
                            "{reason}; serving goes on, and up to {QUEUE} events wait for the audit log"
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
                    // A reopened file may be a better one.
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
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use serde_json::Value;

    use super::*;
    use crate::audit::{AuditFile, Demands, verify};

    fn start(log: &Path) -> Recorder {
        let registry = Registry::default();
        Recorder::start(
            Sink::File(AuditFile::new(log, None)),
            Clock::system(),
            &registry,
        )
        .expect("thread")
    }

    fn wait(recorder: &Recorder, is_there: impl Fn(&Standing) -> bool) -> Standing {
        let shared = recorder.0.as_ref().expect("started");
        loop {
            let standing = recorder.standing().expect("started");
            if is_there(&standing) {
                return standing;
            }
            let state = shared.state();
            drop(
                shared
                    .changed
                    .wait_timeout(state, Duration::from_millis(10)),
            );
        }
    }

    fn records(log: &Path) -> Vec<Value> {
        let text = fs::read_to_string(log).expect("log");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    #[test]
    fn a_sink_that_fails_stops_nobody_and_what_found_no_room_is_counted_in_the_log() {
        let folder = tempfile::tempdir().expect("folder");
        let log = folder.path().join("audit.log");
        symlink("/dev/full", &log).expect("link");
        let recorder = start(&log);
        recorder.record("first", |event| event);
        let failing = wait(&recorder, |standing| standing.failure.is_some());
        assert!(failing.failure.expect("why").1.contains("No space left"));
        for _ in 0..2 * QUEUE {
            recorder.record("many", |event| event);
        }
        let lost = recorder.standing().expect("started").lost;
        assert!(lost > 0 && lost <= (QUEUE + 1) as u64, "{lost} lost");
        fs::remove_file(&log).expect("repair");
        recorder.reopen();
        wait(&recorder, |standing| {
            standing.failure.is_none() && standing.waiting == 0
        });
        recorder.close("end", Duration::from_secs(60));
        let records = records(&log);
        let gaps: Vec<_> = records
            .iter()
            .filter(|record| record["event"] == "log.gap")
            .collect();
        assert_eq!(gaps.len(), 1);
        assert_eq!(gaps[0]["details"]["lost"], lost);
        let many = records
            .iter()
            .filter(|record| record["event"] == "many")
            .count() as u64;
        assert_eq!(
            many + lost,
            2 * QUEUE as u64,
            "every event is there or counted"
        );
        assert_eq!(records[0]["event"], "first");
        verify(&[log], &Demands::default()).expect("whole");
    }

    #[test]
    fn closing_writes_what_waits_and_does_not_wait_for_a_sink_that_fails() {
        let folder = tempfile::tempdir().expect("folder");
        let log = folder.path().join("audit.log");
        let recorder = start(&log);
        for _ in 0..100 {
            recorder.record("event", |event| event);
        }
        recorder.close("end", Duration::from_secs(60));
        let records = records(&log);
        assert_eq!(
            (records.len(), &records[100]["event"]),
            (101, &"end".into())
        );
        let elsewhere = start(Path::new("/nowhere/audit.log"));
        elsewhere.record("event", |event| event);
        elsewhere.close("end", Duration::from_secs(60));
        assert!(elsewhere.standing().expect("started").failure.is_some());
    }

    #[test]
    fn a_sink_that_takes_nothing_and_says_nothing_fails_as_well() {
        let begun = Instant::now();
        let state = State {
            in_hand: 3,
            handed_over: Some((begun, Timestamp::UNIX_EPOCH)),
            ..State::default()
        };
        assert_eq!(state.stall(begun + STALLED / 2), None);
        let (since, reason) = state.stall(begun + STALLED).expect("stalled");
        assert_eq!(
            (since, reason.as_str()),
            (
                Timestamp::UNIX_EPOCH,
                "the sink has not taken 3 events for 5 seconds"
            )
        );
    }

    #[test]
    fn a_lock_that_another_process_keeps_shows_and_costs_no_event() {
        let folder = tempfile::tempdir().expect("folder");
        let log = folder.path().join("audit.log");
        let holder = fs::File::create(folder.path().join("audit.log.head")).expect("head");
        holder.lock().expect("lock");
        let recorder = start(&log);
        recorder.record("first", |event| event);
        let failing = wait(&recorder, |standing| standing.failure.is_some());
        assert!(
            failing
                .failure
                .expect("why")
                .1
                .contains("another process has held it")
        );
        holder.unlock().expect("unlock");
        wait(&recorder, |standing| {
            standing.failure.is_none() && standing.waiting == 0
        });
        assert_eq!(records(&log)[0]["event"], "first");
    }

    #[test]
    fn without_a_log_nothing_is_described() {
        Recorder::default().record("event", |_| panic!("nobody asked"));
    }
}
