use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::Value;

use super::*;
use crate::audit::{AuditFile, Requirements, verify};

fn start(log: &Path) -> Recorder {
    let registry = Arc::default();
    Recorder::start(
        Sink::File(AuditFile::new(log, None)),
        Clock::system(),
        &registry,
    )
    .expect("thread")
}

fn wait(recorder: &Recorder, is_there: impl Fn(&LogHealth) -> bool) -> LogHealth {
    let shared = recorder.0.as_ref().expect("started");
    loop {
        let health = recorder.health().expect("started");
        if is_there(&health) {
            return health;
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
fn a_failing_sink_blocks_no_caller_and_the_log_counts_lost_events() {
    let folder = tempfile::tempdir().expect("folder");
    let log = folder.path().join("audit.log");
    symlink("/dev/full", &log).expect("link");
    let recorder = start(&log);
    recorder.record("first", |event| event);
    let failing = wait(&recorder, |health| health.failure.is_some());
    assert!(failing.failure.expect("why").1.contains("No space left"));
    for _ in 0..2 * QUEUE {
        recorder.record("many", |event| event);
    }
    let lost = recorder.health().expect("started").lost;
    assert!(lost > 0 && lost <= (QUEUE + 1) as u64, "{lost} lost");
    fs::remove_file(&log).expect("repair");
    recorder.reopen();
    wait(&recorder, |health| {
        health.failure.is_none() && health.waiting == 0
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
        "every event is recorded or counted"
    );
    assert_eq!(records[0]["event"], "first");
    verify(&[log], &Requirements::default()).expect("whole");
}

#[test]
fn closing_writes_queued_events_and_does_not_wait_for_a_failing_sink() {
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
    assert!(elsewhere.health().expect("started").failure.is_some());
}

#[test]
fn a_write_that_stalls_counts_as_a_failure() {
    let begun = Instant::now();
    let state = State {
        in_flight: 3,
        write_began: Some((begun, Timestamp::UNIX_EPOCH)),
        ..State::default()
    };
    assert_eq!(state.stall(begun + STALLED / 2), None);
    let (since, reason) = state.stall(begun + STALLED).expect("stalled");
    assert_eq!(
        (since, reason.as_str()),
        (
            Timestamp::UNIX_EPOCH,
            "a write of 3 events has not finished for 5 seconds"
        )
    );
}

#[test]
fn a_lock_held_by_another_process_is_reported_and_loses_no_event() {
    let folder = tempfile::tempdir().expect("folder");
    let log = folder.path().join("audit.log");
    let holder = fs::File::create(folder.path().join("audit.log.lock")).expect("lock");
    holder.lock().expect("lock");
    let recorder = start(&log);
    recorder.record("first", |event| event);
    let failing = wait(&recorder, |health| health.failure.is_some());
    assert!(
        failing
            .failure
            .expect("why")
            .1
            .contains("another process has held the lock")
    );
    holder.unlock().expect("unlock");
    wait(&recorder, |health| {
        health.failure.is_none() && health.waiting == 0
    });
    assert_eq!(records(&log)[0]["event"], "first");
}

#[test]
fn without_a_log_details_are_not_computed() {
    Recorder::default().record("event", |_| panic!("there is no log"));
}
