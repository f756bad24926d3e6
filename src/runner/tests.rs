//! A place of journals that lies, and a runner that trusts it with requests alone.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    admin::Signing,
    backend::{self, BackendError, ErrorKind, ManifestStore},
    config,
    crypto::{Dek, KeyringId, SigningKey},
    fleet::Fleet,
    keyring::Base64,
    model::Location,
    rollout::{
        Approval, Asked, Base, NamedVersion, Phase, Progress, Soak, Step, Strategy, Verb, step,
    },
};

/// Keeps a journal as its owner wants it.
#[derive(Default)]
struct Place(Mutex<Option<Vec<u8>>>, AtomicBool);

impl Place {
    /// Lets the place answer nothing, or answer again.
    fn set_away(&self, is_away: bool) {
        self.1.store(is_away, Ordering::Relaxed);
    }

    fn require(&self) -> Result<(), BackendError> {
        if self.1.load(Ordering::Relaxed) {
            let error = BackendError::new(ErrorKind::Unavailable, "the place", "away");
            return Err(error);
        }
        Ok(())
    }

    /// What another machine writes into the journal.
    fn change(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut bytes = self.0.lock().expect("unpoisoned");
        let journal = bytes.as_deref().expect("a journal");
        let mut journal = serde_json::from_slice(journal).expect("JSON");
        change(&mut journal);
        *bytes = Some(serde_json::to_vec(&journal).expect("JSON"));
    }

    fn put(&self, record: &Record) {
        *self.0.lock().expect("unpoisoned") = Some(serde_json::to_vec(record).expect("JSON"));
    }

    fn record(&self) -> Option<Record> {
        let bytes = self.0.lock().expect("unpoisoned").clone()?;
        Some(serde_json::from_slice(&bytes).expect("a record"))
    }
}

impl ManifestStore for Place {
    fn read(&self, _: usize) -> BoxFuture<'_, Result<Bytes, BackendError>> {
        let bytes = self.0.lock().expect("unpoisoned").clone();
        let none = || BackendError::new(ErrorKind::NotFound, "the place", "none");
        let is_there = self.require();
        Box::pin(async move {
            is_there?;
            bytes.map(Bytes::from).ok_or_else(none)
        })
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        let mut bytes = self.0.lock().expect("unpoisoned");
        let result = if let Err(away) = self.require() {
            Err(away)
        } else if *bytes == expected {
            *bytes = Some(new);
            Ok(())
        } else {
            Err(BackendError::new(
                ErrorKind::Conflict,
                "the place",
                "changed",
            ))
        };
        Box::pin(async move { result })
    }
}

const KEYRING: KeyringId = KeyringId([1; 16]);

fn time() -> Timestamp {
    Timestamp::from_second(1_700_000_000).expect("in range")
}

/// A rollout that soaks for a week, then finishes.
fn soaking(id: u8) -> State {
    let strategy = Strategy::built_in("quick").expect("built in");
    let soak = Soak {
        time: crate::model::Span::from_days(7),
        analysis: strategy.each_wave.soak.clone().expect("a soak").analysis,
    };
    let version = NamedVersion {
        version: 1,
        key: Base64(vec![0; 32]),
    };
    let plan = Plan {
        keyring: "demo".parse().expect("a name"),
        keyring_id: KEYRING,
        base: Base {
            generation: 1,
            sha256: Base64(vec![0; 32]),
        },
        intent: Intent::Rotate,
        requester: Requester {
            name: "ann".into(),
            key: None,
        },
        order: None,
        created_at: time(),
        former: Vec::new(),
        replaced: version.clone(),
        steps: vec![
            Step::Soak {
                wave: "canary".parse().expect("a wave"),
                soak,
            },
            Step::Disable { approval: true },
            Step::Finish,
        ],
        strategy,
    };
    let (mut state, _) = begin(plan, Vec::new(), RolloutId([id; 16]), time());
    state.version = Some(version);
    state
}

/// A journal at `place`, of a process that has run `state`.
fn journal(place: &Arc<Place>, folder: &tempfile::TempDir, state: Option<&State>) -> Journal {
    let kept = KeptState::in_folder(folder.path(), KEYRING);
    if let Some(state) = state {
        kept.write(state).expect("written");
    }
    Journal::at("hub".into(), Arc::clone(place) as Arc<dyn ManifestStore>).keeping(kept)
}

fn runner(journal: Journal, folder: &tempfile::TempDir) -> Runner {
    let backends = backend::configured(&config::Backends::default());
    let location = Location::File(folder.path().join("demo.json"));
    let clock = Clock::manual(time()).0;
    let admin = Admin::new(location, Signing::NoKey, &backends, clock.clone()).expect("a backend");
    let signer = Signer::new(admin, Fleet::default()).expect("no TLS");
    Runner::new(signer, journal, "here", clock)
}

fn key() -> SigningKey {
    Dek::generate().expect("random").succession_key()
}

fn asked(state: &State, verb: Verb) -> Asked {
    Asked {
        rollout: state.id,
        step: state.step,
        verb,
        by: "ann".into(),
        signature: None,
    }
}

#[tokio::test]
async fn whatever_a_place_says_of_a_state_the_kept_one_counts() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    let state = soaking(1);
    let journal = journal(&place, &folder, Some(&state));
    let lies: [fn(&mut State); 6] = [
        |state| state.step = 2,
        |state| state.skips_soaks = true,
        |state| state.phase = Phase::Finished,
        |state| state.plan.strategy.approvals = None,
        |state| state.plan.steps[1] = Step::Disable { approval: false },
        |state| {
            state.progress = Progress::Soaking {
                since: Timestamp::UNIX_EPOCH,
                inconclusive: 0,
            };
            state.approvals.push(Approval {
                approver: crate::model::SignerKey([7; 32]),
                signature: Base64(vec![0; 64]),
            });
        },
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let mut told = state.clone();
        lie(&mut told);
        place.put(&Record::new(told, None));
        let read = journal.read().await.expect("readable").expect("a record");
        assert_eq!(read.record.state, state, "lie {index}");
    }

    // The hub's database was lost.
    *place.0.lock().expect("unpoisoned") = None;
    let read = journal.read().await.expect("readable").expect("kept");
    assert_eq!(read.record.state, state);
    let written = journal.replace(Some(read.clone()), read.record).await;
    written.expect("created again");
    assert_eq!(place.record().expect("there").state, state);
}

#[tokio::test]
async fn an_unfinished_rollout_is_not_replaced_by_another_one() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    let mut state = soaking(1);
    let of = |state: &State| journal(&place, &folder, Some(state));
    place.put(&Record::new(soaking(2), None));
    let read = of(&state)
        .read()
        .await
        .expect("readable")
        .expect("a record");
    assert_eq!(read.record.state, state);
    assert_eq!(read.record.earlier[0].id, RolloutId([2; 16]));

    // Once it is over, an operator of the keyring may have run another one, which isn't trusted.
    state.phase = Phase::Finished;
    let journal = of(&state);
    let read = journal.read().await.expect("readable").expect("a record");
    assert_eq!(read.record.state.id, RolloutId([2; 16]));
    assert!(!journal.is_own(&read.record.state).expect("readable"));
}

#[tokio::test]
async fn an_invented_rollout_is_not_continued() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    place.put(&Record::new(soaking(1), None));
    let mut runner = runner(journal(&place, &folder, None), &folder);
    let attended = runner.attend(&mut |_| {}).await;
    assert!(
        matches!(attended, Err(RunError::Untrusted(..))),
        "{attended:?}"
    );
    assert_eq!(runner.last().expect("readable"), None);
    let resumed = runner.resume(Event::Resumed, &mut |_| {}).await;
    assert!(
        matches!(resumed, Err(RunError::Untrusted(..))),
        "{resumed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn only_a_requesters_verb_ends_a_soak() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    let (ann, eve) = (key(), key());
    let state = soaking(1);
    let of_ann = vec![SignerKey(ann.public_key())];
    let forged = asked(&state, Verb::PromoteFull).signed_by(&eve);
    let unsigned = asked(&state, Verb::Abort);
    let genuine = asked(&state, Verb::Pause).signed_by(&ann);
    let mut record = Record::new(state.clone(), None);
    record.requests = [forged, unsigned, genuine]
        .map(|asked| Request::Asked(asked).into())
        .into();
    place.put(&record);

    let mut runner = runner(journal(&place, &folder, Some(&state)), &folder).for_requesters(of_ann);
    let stop = CancellationToken::new();
    runner.stop_at(stop.clone());
    let left = runner
        .attend(&mut |state| {
            if matches!(state.phase, Phase::Paused(_)) {
                stop.cancel();
            }
        })
        .await
        .expect("no failure")
        .expect("a rollout");
    assert_eq!((left.step, left.skips_soaks), (0, false));
    let refused = |entry: &&crate::rollout::Entry| entry.text.contains("no requester");
    assert_eq!(left.entries.iter().filter(refused).count(), 2);
    let record = place.record().expect("a record");
    assert!(record.requests.is_empty() && record.runner.is_none());
    assert_eq!(record.state, left, "the place has a copy");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stops_leaves_requests_to_the_next() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    let state = soaking(1);
    let mut record = Record::new(state.clone(), None);
    record.requests = vec![Request::Asked(asked(&state, Verb::Pause)).into()];
    place.put(&record);
    let mut runner = runner(journal(&place, &folder, Some(&state)), &folder);
    let stop = CancellationToken::new();
    stop.cancel();
    runner.stop_at(stop);
    let left = runner.attend(&mut |_| {}).await.expect("no failure");
    assert_eq!(left.expect("a rollout").phase, Phase::Running);
    let record = place.record().expect("a record");
    assert_eq!((record.requests.len(), record.runner), (1, None));
    let last = runner.last().expect("readable").expect("kept");
    assert_eq!(last.id, state.id);
}

#[tokio::test(start_paused = true)]
async fn a_halted_rollout_waits_for_a_request() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    let ann = key();
    let mut state = soaking(1);
    state.phase = Phase::Halted("a step failed".into());
    place.put(&Record::new(state.clone(), None));
    let keys = vec![SignerKey(ann.public_key())];
    let mut runner = runner(journal(&place, &folder, Some(&state)), &folder).for_requesters(keys);
    assert!(
        runner
            .attend(&mut |_| {})
            .await
            .expect("no failure")
            .is_none()
    );

    let mut record = Record::new(state.clone(), None);
    let abort = asked(&state, Verb::Abort).signed_by(&ann);
    record.requests = vec![Request::Asked(abort).into()];
    place.put(&record);
    let ended = runner.attend(&mut |_| {}).await.expect("no failure");
    let ended = ended.expect("a rollout");
    assert!(
        matches!(ended.phase, Phase::Aborted(_)),
        "{:?}",
        ended.phase
    );
    let (unchanged, _) = step(ended.clone(), Event::Woken, time());
    assert_eq!(unchanged, ended);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_read_is_passed_over_and_reported() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    let ann = key();
    let state = soaking(1);
    let mut record = Record::new(state.clone(), None);
    let pause = asked(&state, Verb::Pause).signed_by(&ann);
    record.requests = vec![Request::Asked(pause).into()];
    place.put(&record);
    place.change(|journal| {
        let requests = journal["requests"].as_array_mut().expect("a list");
        requests.insert(0, serde_json::json!({"asked": {"verb": "explode"}}));
        requests.insert(0, serde_json::json!(7));
    });
    let keys = vec![SignerKey(ann.public_key())];
    let mut runner = runner(journal(&place, &folder, Some(&state)), &folder).for_requesters(keys);
    let stop = CancellationToken::new();
    runner.stop_at(stop.clone());
    let left = runner
        .attend(&mut |state| {
            if matches!(state.phase, Phase::Paused(_)) {
                stop.cancel();
            }
        })
        .await
        .expect("no failure")
        .expect("a rollout");
    assert!(matches!(left.phase, Phase::Paused(_)), "{:?}", left.phase);
    let reported = |entry: &&crate::rollout::Entry| entry.text.contains("can't be read");
    assert_eq!(left.entries.iter().filter(reported).count(), 1);
    assert_eq!(place.record().expect("readable again").requests, []);
}

#[tokio::test]
async fn a_journal_that_is_damaged_stops_no_one_who_keeps_the_state() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    let state = soaking(1);
    *place.0.lock().expect("unpoisoned") = Some(b"{".into());
    let kept = journal(&place, &folder, Some(&state));
    let read = kept.read().await.expect("kept").expect("a record");
    assert_eq!(read.record.state, state);
    kept.replace(Some(read.clone()), read.record)
        .await
        .expect("written again");
    assert_eq!(place.record().expect("there").state, state);
}

#[tokio::test(start_paused = true)]
async fn a_rollout_goes_on_while_the_place_of_its_journal_is_away() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    let state = soaking(1);
    place.put(&Record::new(state.clone(), None));
    let kept = journal(&place, &folder, Some(&state));
    let mut runner = runner(kept, &folder).for_requesters(Vec::new());
    let stop = CancellationToken::new();
    runner.stop_at(stop.clone());
    let mut rounds = 0;
    let mut watch = |_: &State| {
        rounds += 1;
        // What was observed in the first round was stored while the place was away.
        let is_over = rounds == 2;
        place.set_away(!is_over);
        if is_over {
            stop.cancel();
        }
    };
    let attended = timeout(Duration::from_secs(3600), runner.attend(&mut watch)).await;
    let left = attended
        .expect("it goes on")
        .expect("no failure")
        .expect("a rollout");
    let record = place.record().expect("a record");
    assert_eq!(
        (&record.state, record.runner),
        (&left, None),
        "it caught up"
    );
}

/// A runner of another machine, whose clock is an hour off.
fn elsewhere(said: u64) -> RunnerId {
    let alive_at = time().checked_sub(jiff::SignedDuration::from_hours(1));
    let alive_at = alive_at.expect("in range");
    let said = jiff::SignedDuration::from_secs(i64::try_from(said).expect("few"));
    RunnerId {
        host: "there".into(),
        pid: 1,
        since: alive_at,
        alive_at: alive_at.checked_add(said).expect("in range"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_clock_takes_no_rollout_from_its_runner() {
    let (place, folder) = (
        Arc::new(Place::default()),
        tempfile::tempdir().expect("a folder"),
    );
    let state = soaking(1);
    let mut record = Record::new(state.clone(), None);
    record.runner = Some(elsewhere(0));
    place.put(&record);
    let trusting = || {
        let store = Arc::clone(&place) as Arc<dyn ManifestStore>;
        runner(Journal::at("the place".into(), store), &folder)
    };
    let start = tokio::time::Instant::now();
    let (taken, ()) = tokio::join!(
        async { trusting().resume(Event::Resumed, &mut |_| {}).await },
        async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            record.runner = Some(elsewhere(10));
            place.put(&record);
        }
    );
    assert!(matches!(taken, Err(RunError::Taken { .. })), "{taken:?}");
    assert!(start.elapsed() < LEASE);

    // Its process has ended: nothing more is heard for as long as that takes to be sure.
    let start = tokio::time::Instant::now();
    let is_run = trusting().is_run(&record).await.expect("readable");
    assert!(!is_run && start.elapsed() >= LEASE);
}
