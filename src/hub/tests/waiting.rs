//! What takes time, without sockets, so that time can be paused.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    http::{Accounts, Problem, memory::MemoryShare},
    hub::{
        barriers::Barriers,
        caller::{Caller, Callers, Identity},
        hints::Hints,
        intake::{Intake, Writer},
        metrics::{ReportMetrics, StreamMetrics},
        proofs::PendingProofs,
        report::Received,
        seats::Seats,
        store::tests::open,
        streams::{Streams, text},
    },
    telemetry::Registry,
    wire::{
        Code,
        hub::{NamedProof, ProofAnswer, ProofResult, ProofsRequest, ReportNow, StreamEvent},
        proof::ProofRequest,
    },
};

type Events = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Problem>> + Send>>;

/// Streams without connections.
struct Room {
    streams: Arc<Streams>,
    identity: Arc<Identity>,
    draining: CancellationToken,
}

impl Room {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = settings(folder.path(), "");
        let limits = settings.limits.listener();
        let accounts = Accounts::new(&limits, Duration::ZERO);
        let callers = Callers::load(&settings, &accounts).expect("valid");
        let Some(Caller::Sidecar(identity)) = callers.by_token(ORDERS.as_bytes()).cloned() else {
            panic!("an identity")
        };
        let metrics = StreamMetrics::new(&Registry::default());
        Self {
            streams: Streams::new(limits.connections, metrics),
            identity,
            draining: CancellationToken::new(),
        }
    }

    /// Opens a stream of the sidecar `orders-NUMBER`.
    fn join(&self, number: u8) -> Events {
        let name = Some((format!("orders-{number}"), "orders".into()));
        let draining = self.draining.clone();
        let events = self
            .streams
            .open([number; 16], &self.identity, (None, name), &[], draining);
        Box::pin(events.expect("a place"))
    }
}

async fn next(events: &mut Events) -> Option<String> {
    let event = events.next().await?.expect("no error");
    Some(String::from_utf8(event.to_vec()).expect("text"))
}

fn event() -> Bytes {
    text(&StreamEvent::ReportNow(ReportNow { barrier: 1 })).expect("JSON")
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_kept_alive() {
    let room = Room::new();
    let mut events = room.join(1);
    let start = Instant::now();
    assert_eq!(next(&mut events).await.as_deref(), Some(":\n\n"));
    assert_eq!(start.elapsed(), Duration::from_secs(15));
    room.draining.cancel();
    assert_eq!(next(&mut events).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_takes_no_events_loses_its_stream_and_no_other_one_does() {
    let room = Room::new();
    let (mut slow, mut quick) = (room.join(1), room.join(2));
    // Polled once, as a connection does before its peer stops reading.
    let live = room.streams.of(&[1; 16]).expect("open");
    assert!(room.streams.send(&live, event()));
    assert!(next(&mut slow).await.is_some());
    let mut sent = 0;
    while let Some(live) = room.streams.of(&[1; 16]) {
        sent += u32::from(room.streams.send(&live, event()));
        let other = room.streams.of(&[2; 16]).expect("open");
        assert!(room.streams.send(&other, event()));
        assert_eq!(
            next(&mut quick).await.as_deref(),
            Some("event: report-now\ndata: {\"barrier\":1}\n\n")
        );
    }
    assert_eq!(sent, 64);
    assert_eq!(
        next(&mut slow).await,
        None,
        "it ends, and the sidecar connects again"
    );
    assert_eq!(room.streams.all().len(), 1);
    let _again = room.join(1);
    drop(slow);
    assert_eq!(
        room.streams.all().len(),
        2,
        "the end of the older one ends only that"
    );
}

#[tokio::test(start_paused = true)]
async fn sidecars_prove_refuse_or_do_not_answer_in_time() {
    let room = Room::new();
    let proofs = PendingProofs::new();
    let mut asked = [1, 2, 3].map(|number| room.join(number));
    let request = ProofsRequest {
        sidecars: [1, 2, 3, 4]
            .map(|number| format!("orders-{number}"))
            .to_vec(),
        request: ProofRequest {
            keyring: "demo".parse().expect("a name"),
            rollout: [1; 16],
            version: 1,
            nonce: [2; 32],
        },
    };
    let start = Instant::now();
    let answers = proofs.ask(&room.streams, request);
    let answering = async {
        for number in [1u8, 2] {
            let event = next(&mut asked[usize::from(number) - 1])
                .await
                .expect("an event");
            let data = event
                .strip_prefix("event: prove\ndata: ")
                .expect("a request");
            let data: Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(data["request"]["version"], 1);
            let answer = |instance: u8, reason: &str| ProofAnswer {
                instance: [instance; 16],
                id: data["id"].as_u64().expect("a number"),
                result: ProofResult::Refused(reason.into()),
            };
            let take = |answer| proofs.take(&room.streams, &room.identity, answer);
            let foreign = take(answer(3, "not mine")).expect_err("another instance's");
            assert_eq!(foreign.code, Code::ProofNotPending);
            let reason = "é".repeat(usize::from(number) * 400);
            take(answer(number, &reason)).expect("awaited");
            let again = take(answer(number, "again")).expect_err("answered");
            assert_eq!(again.code, Code::ProofNotPending);
        }
    };
    let (answers, ()) = tokio::join!(answers, answering);
    assert_eq!(start.elapsed(), Duration::from_secs(10));
    let reasons: Vec<(String, String)> = answers
        .expect("few")
        .answers
        .into_iter()
        .map(|NamedProof { name, result }| match result {
            ProofResult::Refused(reason) => (name, reason),
            ProofResult::Proof(_) => panic!("no key"),
        })
        .collect();
    let expected = [
        ("orders-1", "é".repeat(400)),
        ("orders-2", "é".repeat(500)),
        ("orders-3", "it did not answer within 10 s".into()),
        ("orders-4", "it is not connected to this hub".into()),
    ];
    assert_eq!(
        reasons,
        expected.map(|(name, reason)| (name.to_owned(), reason))
    );
}

#[tokio::test(start_paused = true)]
async fn a_proof_ends_with_its_stream() {
    let room = Room::new();
    let proofs = PendingProofs::new();
    let mut events = room.join(1);
    let request = ProofsRequest {
        sidecars: vec!["orders-1".into()],
        request: ProofRequest {
            keyring: "demo".parse().expect("a name"),
            rollout: [1; 16],
            version: 1,
            nonce: [2; 32],
        },
    };
    let start = Instant::now();
    let (answers, ()) = tokio::join!(proofs.ask(&room.streams, request), async {
        next(&mut events).await.expect("the request");
        drop(room.join(1));
    });
    assert_eq!(start.elapsed(), Duration::ZERO);
    let answers = answers.expect("few").answers;
    assert_eq!(
        answers[0].result,
        ProofResult::Refused("its stream has ended".into())
    );
}

#[tokio::test(start_paused = true)]
async fn of_two_sidecars_with_one_name_each_proves_for_itself() {
    let room = Room::new();
    let proofs = PendingProofs::new();
    let name = Some(("orders-1".into(), "orders".into()));
    let mut second = {
        let draining = room.draining.clone();
        let events = room
            .streams
            .open([2; 16], &room.identity, (None, name), &[], draining);
        Box::pin(events.expect("a place")) as Events
    };
    let _first = room.join(1);
    let by_instance = to_hex(&[2; 16]);
    let request = ProofsRequest {
        sidecars: vec!["orders-1".into(), by_instance.clone()],
        request: ProofRequest {
            keyring: "demo".parse().expect("a name"),
            rollout: [1; 16],
            version: 1,
            nonce: [2; 32],
        },
    };
    let (answers, ()) = tokio::join!(proofs.ask(&room.streams, request), async {
        next(&mut second).await.expect("the request");
        drop(second);
    });
    let reasons: Vec<NamedProof> = answers.expect("few").answers;
    let refused = |name: &str, reason: &str| NamedProof {
        name: name.into(),
        result: ProofResult::Refused(reason.into()),
    };
    let expected = [
        refused("orders-1", "several connected sidecars have this name"),
        refused(&by_instance, "its stream has ended"),
    ];
    assert_eq!(reasons, expected);
}

#[tokio::test(start_paused = true)]
async fn a_barrier_waits_for_connected_sidecars_and_no_longer_than_asked() {
    let room = Room::new();
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&settings(folder.path(), ""), Timestamp::UNIX_EPOCH).await;
    let barriers = Barriers::default();
    let (clock, _) = Clock::manual(Timestamp::UNIX_EPOCH);
    let set = async |seconds| {
        let wait = Duration::from_secs(seconds);
        let set = barriers.set(&store, &room.streams, &clock, wait).await;
        set.expect("a database")
    };
    let start = Instant::now();
    assert_eq!(set(30).await.barrier, 1);
    assert_eq!(start.elapsed(), Duration::ZERO, "none is connected");
    let mut events = room.join(1);
    assert_eq!(set(7).await.barrier, 2);
    assert_eq!(start.elapsed(), Duration::from_secs(7));
    let sent = next(&mut events).await;
    assert_eq!(
        sent.as_deref(),
        Some("event: report-now\ndata: {\"barrier\":2}\n\n")
    );
    // It leaves meanwhile.
    let (barrier, ()) = tokio::join!(set(30), async {
        next(&mut events).await.expect("the barrier");
        drop(events);
        barriers.reported.notify_waiters();
    });
    assert_eq!(barrier.barrier, 3);
    assert_eq!(start.elapsed(), Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn reports_wait_for_others_unless_someone_waits_for_them() {
    let room = Room::new();
    let folder = tempfile::tempdir().expect("a folder");
    let settings = settings(folder.path(), "");
    let (intake, writing) = Intake::start(Writer {
        store: open(&settings, Timestamp::UNIX_EPOCH).await,
        clock: Clock::manual(Timestamp::UNIX_EPOCH).0,
        streams: Arc::clone(&room.streams),
        hints: Arc::new(Hints::default()),
        barriers: Arc::default(),
        metrics: ReportMetrics::new(&Registry::default()),
    });
    let received = |number: u8, change: &[(&str, Value)]| {
        let mut report = TestSidecar::orders(number).report(1);
        report["answers"] = Value::Null;
        for (member, value) in change {
            report[*member] = value.clone();
        }
        Received {
            report: serde_json::from_value(report).expect("a report"),
            digest: [number; 32],
            at: Timestamp::UNIX_EPOCH,
            _share: MemoryShare::default(),
        }
    };
    let take = |received| intake.take(received, Arc::clone(&room.identity), None);
    let start = Instant::now();
    let (one, two) = tokio::join!(take(received(1, &[])), take(received(2, &[])));
    one.and(two).expect("taken");
    assert_eq!(start.elapsed(), Duration::from_millis(500));
    let urgent = [("final", json!(true)), ("answers", json!(0))];
    for (number, change) in [3, 4].into_iter().zip(urgent) {
        let (waiting, urgent) = tokio::join!(
            take(received(number + 10, &[])),
            take(received(number, &[change]))
        );
        waiting.and(urgent).expect("taken");
    }
    assert_eq!(start.elapsed(), Duration::from_millis(500), "at once");
    drop(intake);
    writing.await.expect("it ends with the intake");
}

#[tokio::test(start_paused = true)]
async fn the_seat_of_an_instance_is_free_when_it_was_silent_for_an_hour() {
    let room = Room::new();
    let seats = Seats::new(2);
    let take = |instance: u8| seats.take(&[instance; 16], &room.identity).is_ok();
    assert!(take(1) && take(2) && !take(3));
    tokio::time::advance(Duration::from_secs(3000)).await;
    assert!(take(1) && !take(3));
    tokio::time::advance(Duration::from_secs(700)).await;
    assert!(take(3) && !take(2));
}
