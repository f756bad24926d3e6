//! The engine against a provider that does as a test says. Time is tokio's, and stands still but for who waits.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::*;
use crate::{
    backend::{self, Answer, Fetched, Held, Lease, SecretProvider},
    clock::ManualClock,
    config::Keeping,
};

/// A provider that gives what it is told to give.
#[derive(Default)]
struct Script {
    values: Mutex<BTreeMap<String, (String, Timestamp)>>,
    stages: Mutex<Stages>,
    fetches: AtomicUsize,
}

#[derive(Default, Clone)]
struct Stages {
    current: String,
    previous: String,
    fault: Option<SecretFault>,
    delay: Duration,
    leased: Option<Arc<ScriptedLease>>,
}

impl Script {
    fn new(version: &str, value: &str) -> Arc<Self> {
        let script = Arc::new(Self::default());
        script.rotate(version, value, Timestamp::UNIX_EPOCH);
        script
    }

    fn rotate(&self, version: &str, value: &str, at: Timestamp) {
        self.values
            .lock()
            .expect("test")
            .insert(version.into(), (value.into(), at));
        let mut stages = self.stages();
        stages.previous = std::mem::replace(&mut stages.current, version.into());
    }

    fn fail(&self, fault: impl Into<Option<SecretFault>>) {
        self.stages().fault = fault.into();
    }

    fn stages(&self) -> MutexGuard<'_, Stages> {
        self.stages.lock().expect("test")
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }
}

impl SecretProvider for Arc<Script> {
    fn fetch<'a>(
        &'a self,
        which: &'a Which,
        _: Option<Held<'a>>,
        _: usize,
    ) -> BoxFuture<'a, Result<Answer, SecretError>> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let stages = self.stages().clone();
        Box::pin(async move {
            sleep(stages.delay).await;
            if let Some(fault) = stages.fault {
                return Err(SecretError::new(fault, "as the test says"));
            }
            let version = match which {
                Which::Current => stages.current.clone(),
                Which::Previous => stages.previous.clone(),
                Which::Pending => "pending".into(),
                Which::Version(version) => version.clone(),
            };
            let found = self.values.lock().expect("test").get(&version).cloned();
            let (text, at) =
                found.ok_or_else(|| SecretError::new(SecretFault::NotFound, "there is none"))?;
            let lease = stages.leased.clone().map(|lease| {
                lease.given.fetch_add(1, Ordering::Relaxed);
                lease as Arc<dyn Lease>
            });
            let created_at = lease.is_none().then_some(at);
            let bytes = Zeroizing::new(text.into_bytes());
            Ok(Answer::Value(Fetched {
                bytes,
                version,
                created_at,
                expires_at: None,
                lease,
            }))
        })
    }
}

struct ScriptedLease {
    life: Duration,
    is_renewable: bool,
    renewal: Mutex<Result<Duration, SecretFault>>,
    given: AtomicUsize,
    renewed: AtomicUsize,
    revoked: AtomicUsize,
}

impl ScriptedLease {
    fn new(life: u64) -> Arc<Self> {
        let life = Duration::from_secs(life);
        let renewal = Mutex::new(Ok(life));
        Arc::new(Self {
            life,
            is_renewable: true,
            renewal,
            given: AtomicUsize::new(0),
            renewed: AtomicUsize::new(0),
            revoked: AtomicUsize::new(0),
        })
    }
}

impl Lease for ScriptedLease {
    fn duration(&self) -> Duration {
        self.life
    }

    fn is_renewable(&self) -> bool {
        self.is_renewable
    }

    fn renew(&self) -> BoxFuture<'_, Result<Duration, SecretError>> {
        self.renewed.fetch_add(1, Ordering::Relaxed);
        let renewal = *self.renewal.lock().expect("test");
        Box::pin(
            async move { renewal.map_err(|fault| SecretError::new(fault, "as the test says")) },
        )
    }

    fn revoke(&self) -> BoxFuture<'_, Result<(), SecretError>> {
        self.revoked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }
}

/// One secret and its provider.
struct World {
    secret: Arc<Secret>,
    shared: Arc<Shared>,
    clock: ManualClock,
}

const KEEPING: Keeping = Keeping {
    refresh: Duration::from_secs(60),
    previous_ttl: Duration::from_secs(600),
    stale_if_error: Duration::from_secs(300),
    rotate_after: None,
    revoke: false,
};

impl World {
    fn new(script: &Arc<Script>, keeping: Keeping) -> Self {
        Self::with(script, keeping, |_| ())
    }

    fn with(
        script: &Arc<Script>,
        keeping: Keeping,
        change: impl FnOnce(&mut config::Secrets),
    ) -> Self {
        let mut all = config::Secrets::default();
        change(&mut all);
        let (clock, manual) = Clock::manual(Timestamp::UNIX_EPOCH + Duration::from_secs(86_400));
        let shared = Arc::new(Shared {
            settings: all,
            read_timeout: Duration::from_secs(10),
            max_backoff: Duration::from_secs(20),
            clock,
            registry: Arc::default(),
            audit: Recorder::default(),
            backends: backend::configured(&config::Backends::default()),
            control: Handle::current(),
            reads: Mutex::default(),
            fingerprints: NamingKey::draw().expect("randomness"),
            changes: broadcast::Sender::new(CHANGES),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        });
        let (name, source) = (
            "db".parse().expect("name"),
            "file:/nowhere".parse().expect("source"),
        );
        let settings = config::Secret {
            name,
            source,
            required: false,
            keeping,
        };
        let (secret, requests) =
            Secret::new(settings, Arc::new(Arc::clone(script)), &shared, false);
        shared
            .tasks
            .spawn(task::Refresher::new(Arc::clone(&secret), requests).run());
        Self {
            secret,
            shared,
            clock: manual,
        }
    }

    async fn ask(
        &self,
        which: Which,
        demand: Demand,
    ) -> Result<(String, &'static str, bool), Refused> {
        let served = self.secret.get(&Ask { which, demand }).await?;
        let text = String::from_utf8(served.value.bytes().to_vec()).expect("text");
        Ok((text, served.stage.as_str(), served.stale.is_some()))
    }

    async fn current(&self) -> Result<String, SecretFault> {
        self.ask(Which::Current, Demand::Kept)
            .await
            .map(|(text, ..)| text)
            .map_err(fault)
    }

    async fn previous(&self) -> Result<String, Refused> {
        self.ask(Which::Previous, Demand::Kept)
            .await
            .map(|(text, ..)| text)
    }

    /// Lets time pass, in the clock, too.
    async fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        sleep(Duration::from_secs(seconds)).await;
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }
}

fn fault(refused: Refused) -> SecretFault {
    match refused {
        Refused::Provider(error) => error.fault,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_leaves_the_value_before_for_its_time() {
    let script = Script::new("1", "old");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("old"));
    assert_eq!(
        world.previous().await,
        Err(Refused::Over),
        "it was made long ago"
    );
    let mut changes = world.shared.changes.subscribe();
    script.rotate("2", "new", world.now());
    world.pass(76).await;
    assert_eq!(world.current().await.as_deref(), Ok("new"));
    assert_eq!(world.previous().await.as_deref(), Ok("old"));
    let change = changes.try_recv().expect("told");
    assert_eq!(
        (change.version.as_deref(), change.previous.as_deref()),
        (Some("2"), Some("1"))
    );
    let by_version = world
        .ask(Which::Version("1".into()), Demand::Kept)
        .await
        .expect("held");
    assert_eq!((by_version.0.as_str(), by_version.1), ("old", "previous"));
    world.pass(601).await;
    assert_eq!(world.previous().await, Err(Refused::Over));
    assert!(
        world.secret.state().expect("state").previous.is_none(),
        "it is gone from memory"
    );
    let change = changes.try_recv().expect("its end is told, too");
    assert_eq!(
        (change.version.as_deref(), change.previous),
        (Some("2"), None)
    );
    changes.try_recv().expect_err("once");
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_starts_after_a_rotation_has_the_value_before_all_the_same() {
    let script = Script::new("1", "old");
    let made = Timestamp::UNIX_EPOCH + Duration::from_secs(86_400 - 60);
    script.rotate("2", "new", made);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.previous().await.as_deref(), Ok("old"));
    let fetches = script.fetches();
    assert_eq!(world.previous().await.as_deref(), Ok("old"));
    assert_eq!(script.fetches(), fetches, "kept for a while");
    world.pass(600).await;
    assert_eq!(world.previous().await, Err(Refused::Over));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_down_costs_nothing_within_the_bound_and_everything_beyond() {
    for fault in [
        SecretFault::Unavailable,
        SecretFault::Throttled,
        SecretFault::Denied,
    ] {
        let script = Script::new("1", "value");
        let world = World::new(&script, KEEPING);
        assert_eq!(
            world.ask(Which::Current, Demand::Kept).await,
            Ok(("value".into(), "current", false))
        );
        script.fail(fault);
        world.pass(100).await;
        assert_eq!(
            world.ask(Which::Current, Demand::Kept).await,
            Ok(("value".into(), "current", true))
        );
        world.pass(300).await;
        assert_eq!(world.current().await, Err(fault));
        script.fail(None);
        world.pass(30).await;
        assert_eq!(
            world.ask(Which::Current, Demand::Kept).await,
            Ok(("value".into(), "current", false))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_deleted_is_gone_once_its_provider_said_so_twice_and_comes_back() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    let mut changes = world.shared.changes.subscribe();
    script.fail(SecretFault::NotFound);
    world.secret.request(Trigger::Signal);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        world.ask(Which::Current, Demand::Kept).await,
        Ok(("value".into(), "current", true)),
        "said once"
    );
    world.pass(2).await;
    assert_eq!(world.current().await, Err(SecretFault::NotFound));
    assert_eq!(
        world
            .ask(Which::Previous, Demand::Kept)
            .await
            .map_err(fault),
        Err(SecretFault::NotFound)
    );
    assert_eq!(changes.try_recv().expect("told").version, None);
    script.fail(None);
    world.pass(30).await;
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    assert_eq!(
        changes.try_recv().expect("told").version.as_deref(),
        Some("1")
    );
}

#[tokio::test(start_paused = true)]
async fn many_first_requests_make_one_read_and_a_refusal_is_remembered() {
    let script = Script::new("1", "value");
    script.stages().delay = Duration::from_secs(1);
    let world = Arc::new(World::new(&script, KEEPING));
    let ask = || {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.current().await })
    };
    let asked: Vec<_> = (0..10_000).map(|_| ask()).collect();
    for answer in asked {
        assert_eq!(answer.await.expect("joined").as_deref(), Ok("value"));
    }
    assert_eq!(script.fetches(), 1);

    let script = Script::new("1", "value");
    script.fail(SecretFault::NotFound);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await, Err(SecretFault::NotFound));
    let fetches = script.fetches();
    for _ in 0..1000 {
        assert_eq!(world.current().await, Err(SecretFault::NotFound));
    }
    assert_eq!(script.fetches(), fetches);
}

#[tokio::test(start_paused = true)]
async fn who_demands_the_newest_gets_it_by_one_read_for_all_and_at_a_bounded_rate() {
    let script = Script::new("1", "old");
    let world = Arc::new(World::new(&script, KEEPING));
    assert_eq!(world.current().await.as_deref(), Ok("old"));
    script.rotate("2", "new", world.now());
    let ask = || {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            world
                .ask(Which::Current, Demand::Fresh)
                .await
                .map(|(text, ..)| text)
        })
    };
    let start = Instant::now();
    for _ in 0..5 {
        let asked: Vec<_> = (0..100).map(|_| ask()).collect();
        for answer in asked {
            assert_eq!(answer.await.expect("joined").as_deref(), Ok("new"));
        }
    }
    // Each round waits for its turn, a second after the one before.
    assert_eq!(script.fetches(), 6);
    assert!(
        start.elapsed() >= Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    script.fail(SecretFault::Unavailable);
    let stale = world.ask(Which::Current, Demand::Fresh).await;
    assert_eq!(
        stale,
        Ok(("new".into(), "current", true)),
        "what there is, and that it may be old"
    );
}

#[tokio::test(start_paused = true)]
async fn who_names_the_least_version_waits_for_no_read_that_he_doesnt_need() {
    let script = Script::new("9", "old");
    let world = World::new(&script, KEEPING);
    let at_least = |least: &str| world.ask(Which::Current, Demand::AtLeast(least.into()));
    assert_eq!(
        at_least("9").await.map(|(text, ..)| text).as_deref(),
        Ok("old")
    );
    assert_eq!(
        at_least("8").await.map(|(text, ..)| text).as_deref(),
        Ok("old")
    );
    assert_eq!(script.fetches(), 1);
    assert_eq!(
        at_least("10").await,
        Err(Refused::TooOld {
            version: "9".into()
        })
    );
    script.rotate("10", "new", world.now());
    assert_eq!(
        at_least("10").await.map(|(text, ..)| text).as_deref(),
        Ok("new")
    );
    assert_eq!(script.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_is_given_up_and_no_caller_waits_for_ever() {
    let script = Script::new("1", "value");
    script.stages().delay = Duration::from_secs(3600);
    let world = World::new(&script, KEEPING);
    let start = Instant::now();
    assert_eq!(world.current().await, Err(SecretFault::Unavailable));
    assert!(
        start.elapsed() <= Duration::from_secs(12),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_and_replaced_once_it_gets_no_more_time() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(90);
    script.stages().leased = Some(Arc::clone(&lease));
    let world = World::new(
        &script,
        Keeping {
            revoke: true,
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    world.pass(3600).await;
    assert_eq!(
        (script.fetches(), world.current().await.as_deref()),
        (1, Ok("first"))
    );
    assert!(lease.renewed.load(Ordering::Relaxed) >= 40);
    // It nears its greatest age.
    script.rotate("b", "second", world.now());
    *lease.renewal.lock().expect("test") = Ok(Duration::from_secs(20));
    while script.fetches() < 2 {
        world.pass(1).await;
    }
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    *lease.renewal.lock().expect("test") = Ok(Duration::from_secs(90));
    world.pass(21).await;
    assert_eq!(
        world.previous().await,
        Err(Refused::Over),
        "no longer than its lease"
    );
    assert_eq!(
        lease.revoked.load(Ordering::Relaxed),
        1,
        "nobody needs it any more"
    );
    world.shared.shutdown.cancel();
    world.shared.tasks.close();
    world.shared.tasks.wait().await;
    assert_eq!(
        lease.revoked.load(Ordering::Relaxed),
        2,
        "given back at the end"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_revoked_under_our_feet_is_replaced_for_who_finds_out() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(3600);
    script.stages().leased = Some(Arc::clone(&lease));
    let world = World::new(
        &script,
        Keeping {
            refresh: Duration::from_secs(3000),
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    script.rotate("b", "second", world.now());
    let fresh = world
        .ask(Which::Current, Demand::Fresh)
        .await
        .expect("served");
    assert_eq!(
        fresh.0, "first",
        "a lease that runs is no reason for other credentials"
    );
    *lease.renewal.lock().expect("test") = Err(SecretFault::NotFound);
    let fresh = world
        .ask(Which::Current, Demand::Fresh)
        .await
        .expect("served");
    assert_eq!(fresh.0, "second");
    assert_eq!(
        world.previous().await,
        Err(Refused::Over),
        "the old credentials are dead"
    );
}

#[tokio::test(start_paused = true)]
async fn credentials_whose_lease_ended_are_not_served() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(90);
    script.stages().leased = Some(Arc::clone(&lease));
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    *lease.renewal.lock().expect("test") = Err(SecretFault::Unavailable);
    script.fail(SecretFault::Unavailable);
    world.pass(60).await;
    assert!(
        world
            .ask(Which::Current, Demand::Kept)
            .await
            .expect("it runs still")
            .2
    );
    world.pass(60).await;
    assert_eq!(world.current().await, Err(SecretFault::Unavailable));
    script.fail(None);
    world.pass(30).await;
    assert_eq!(world.current().await.as_deref(), Ok("first"));
}

#[tokio::test(start_paused = true)]
async fn leased_credentials_are_replaced_before_the_age_that_the_config_knows() {
    let script = Script::new("a", "first");
    script.stages().leased = Some(ScriptedLease::new(90));
    let world = World::new(
        &script,
        Keeping {
            rotate_after: Some(Duration::from_secs(1000)),
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    script.rotate("b", "second", world.now());
    world.pass(900).await;
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    while script.fetches() < 2 {
        world.pass(1).await;
    }
    assert!(world.now() < Timestamp::UNIX_EPOCH + Duration::from_secs(86_400 + 1000));
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    world.pass(85).await;
    assert_eq!(
        world.previous().await.as_deref(),
        Ok("first"),
        "renewed once more"
    );
}

#[tokio::test(start_paused = true)]
async fn credentials_that_can_not_be_replaced_are_kept_alive() {
    let script = Script::new("a", "first");
    script.stages().leased = Some(ScriptedLease::new(90));
    let world = World::new(
        &script,
        Keeping {
            rotate_after: Some(Duration::from_secs(100)),
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    script.fail(SecretFault::Unavailable);
    for _ in 0..20 {
        world.pass(10).await;
        assert_eq!(world.current().await.as_deref(), Ok("first"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_is_looked_for_when_its_time_is_over() {
    let script = Script::new("1", "old");
    let keeping = Keeping {
        refresh: Duration::from_secs(86_400),
        rotate_after: Some(Duration::from_secs(1000)),
        ..KEEPING
    };
    script.rotate(
        "2",
        "older",
        Timestamp::UNIX_EPOCH + Duration::from_secs(86_400),
    );
    let world = World::new(&script, keeping);
    assert_eq!(world.current().await.as_deref(), Ok("older"));
    world.pass(999).await;
    assert_eq!(script.fetches(), 2, "once ahead of its end");
    script.rotate("3", "new", world.now());
    world.pass(3).await;
    assert_eq!(world.current().await.as_deref(), Ok("new"));
    world.pass(90).await;
    assert_eq!(script.fetches(), 3, "and not again until the next end");
}

#[tokio::test(start_paused = true)]
async fn other_versions_are_read_once_and_kept_for_a_while() {
    let script = Script::new("1", "first");
    for version in 2..=20 {
        script.rotate(
            &version.to_string(),
            &format!("value {version}"),
            Timestamp::UNIX_EPOCH,
        );
    }
    let world = World::new(&script, KEEPING);
    let version = |version: u32| world.ask(Which::Version(version.to_string()), Demand::Kept);
    assert_eq!(version(1).await, Ok(("first".into(), "other", false)));
    let fetches = script.fetches();
    assert_eq!(version(1).await, Ok(("first".into(), "other", false)));
    assert_eq!(script.fetches(), fetches);
    for number in 2..20 {
        assert_eq!(
            version(number).await.map(|(text, ..)| text),
            Ok(format!("value {number}"))
        );
    }
    assert_eq!(version(99).await.map_err(fault), Err(SecretFault::NotFound));
    assert_eq!(
        world.ask(Which::Pending, Demand::Kept).await.map_err(fault),
        Err(SecretFault::NotFound)
    );
    script
        .values
        .lock()
        .expect("test")
        .insert("pending".into(), ("next".into(), world.now()));
    world.pass(31).await;
    assert_eq!(
        world.ask(Which::Pending, Demand::Kept).await,
        Ok(("next".into(), "pending", false))
    );
}

#[tokio::test(start_paused = true)]
async fn use_is_counted_by_version() {
    let script = Script::new("1", "old");
    let world = World::new(&script, KEEPING);
    let hand_out = async |which: Which| {
        let served = world
            .secret
            .get(&Ask {
                which,
                demand: Demand::Kept,
            })
            .await
            .expect("served");
        world.secret.handed_out(&served);
    };
    hand_out(Which::Current).await;
    script.rotate("2", "new", world.now());
    world.pass(76).await;
    hand_out(Which::Current).await;
    hand_out(Which::Previous).await;
    let usages = world.secret.usages();
    let counts: Vec<_> = usages
        .iter()
        .map(|usage| (usage.version(), usage.count()))
        .collect();
    assert_eq!(counts, [("1", 2), ("2", 1)]);
    assert_eq!(usages[0].last(), Some(world.now()));
}

#[tokio::test(start_paused = true)]
async fn callers_who_go_away_cause_no_more_reads_and_lose_nothing_that_is_kept() {
    let script = Script::new("1", "first");
    script.rotate("2", "second", Timestamp::UNIX_EPOCH);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    script.stages().delay = Duration::from_secs(5);
    let before = script.fetches();
    for number in 0..60 {
        let asked = world.ask(Which::Version(format!("none {number}")), Demand::Kept);
        let _ = tokio::time::timeout(Duration::from_millis(80), asked).await;
    }
    assert!(
        script.fetches() - before <= 2,
        "{}",
        script.fetches() - before
    );
    // Nor do they keep others from what is held.
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    world.pass(200).await;
    script.stages().delay = Duration::ZERO;
    let first = || world.ask(Which::Version("1".into()), Demand::Kept);
    assert_eq!(first().await.map(|(text, ..)| text).as_deref(), Ok("first"));
    script.stages().delay = Duration::from_secs(5);
    for number in 0..40 {
        let asked = world.ask(Which::Version(format!("none {number}")), Demand::Kept);
        let _ = tokio::time::timeout(Duration::from_millis(1), asked).await;
    }
    assert_eq!(
        first().await.map(|(text, ..)| text).as_deref(),
        Ok("first"),
        "what is kept needs no turn"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_says_so_every_time() {
    let script = Script::new("1", "value");
    script
        .values
        .lock()
        .expect("test")
        .insert("pending".into(), ("next".into(), Timestamp::UNIX_EPOCH));
    let world = World::new(&script, KEEPING);
    let pending = async || {
        world
            .ask(Which::Pending, Demand::Kept)
            .await
            .map(|(_, _, stale)| stale)
    };
    assert_eq!(pending().await, Ok(false));
    script.fail(SecretFault::Denied);
    world.pass(31).await;
    for _ in 0..3 {
        assert_eq!(pending().await, Ok(true));
    }
    world.pass(301).await;
    // Its turn finds the provider as it was, and the bound is over.
    assert_eq!(pending().await.map_err(fault), Err(SecretFault::Denied));
}

#[tokio::test(start_paused = true)]
async fn a_demand_that_waits_for_its_turn_holds_nothing_else_up() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(8);
    script.stages().leased = Some(Arc::clone(&lease));
    let mut world = World::with(&script, KEEPING, |settings| {
        settings.force_interval = Duration::from_secs(3600)
    });
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    world.secret.request(Trigger::OnDemand);
    for _ in 0..100 {
        world.pass(1).await;
        assert_eq!(
            world.current().await.as_deref(),
            Ok("first"),
            "renewed in time"
        );
    }
    world.shared.shutdown.cancel();
    script.stages().leased = None;
    world = World::with(&script, KEEPING, |settings| {
        settings.force_interval = Duration::from_secs(3600)
    });
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    // Whoever demands the newest and waits in vain is told that this may not be it.
    let fresh = tokio::time::timeout(
        Duration::from_secs(3700),
        world.ask(Which::Current, Demand::Fresh),
    )
    .await;
    assert!(fresh.expect("bounded").is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_use_of_a_value_in_force_is_counted_whatever_else_is_read() {
    let script = Script::new("1", "first");
    for version in 2..=45 {
        script.rotate(&version.to_string(), "value", Timestamp::UNIX_EPOCH);
    }
    let world = World::new(&script, KEEPING);
    let hand_out = async |which: Which| {
        let served = world
            .secret
            .get(&Ask {
                which,
                demand: Demand::Kept,
            })
            .await
            .expect("served");
        world.secret.handed_out(&served);
    };
    hand_out(Which::Current).await;
    for version in 1..=40 {
        hand_out(Which::Version(version.to_string())).await;
    }
    hand_out(Which::Current).await;
    let usages = world.secret.usages();
    let current = usages
        .iter()
        .find(|usage| usage.version() == "45")
        .expect("known");
    assert_eq!(current.count(), 2);
    assert!(usages.len() <= 32, "{}", usages.len());
}

#[tokio::test(start_paused = true)]
async fn two_values_of_one_version_have_two_tags() {
    let script = Script::new("1", "first");
    let world = World::new(&script, KEEPING);
    let tag = async || {
        let served = world
            .secret
            .get(&Ask {
                which: Which::Current,
                demand: Demand::Fresh,
            })
            .await
            .expect("served");
        served.value.labels().json.clone()
    };
    let (first, again) = (tag().await, tag().await);
    script.rotate("1", "second", Timestamp::UNIX_EPOCH);
    assert_eq!(first, again);
    assert_ne!(tag().await, first);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_behind_takes_nobody_back_and_a_store_that_was_put_back_does() {
    let script = Script::new("6", "old");
    script.rotate("7", "new", Timestamp::UNIX_EPOCH);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("new"));
    script.rotate("6", "old", Timestamp::UNIX_EPOCH);
    world.secret.request(Trigger::Signal);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(world.current().await.as_deref(), Ok("new"), "read once");
    world.pass(2).await;
    assert_eq!(world.current().await.as_deref(), Ok("old"), "read twice");
}

#[tokio::test(start_paused = true)]
async fn who_names_the_least_version_hears_why_the_provider_says_nothing() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    script.fail(SecretFault::Denied);
    assert_eq!(
        world
            .ask(Which::Current, Demand::AtLeast("2".into()))
            .await
            .map_err(fault),
        Err(SecretFault::Denied)
    );
}

#[tokio::test]
async fn a_secret_that_waits_takes_little_room() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    let (_, requests) = tokio::sync::mpsc::channel(1);
    let task = task::Refresher::new(Arc::clone(&world.secret), requests).run();
    assert!(
        size_of_val(&task) < 1500,
        "{} bytes, a thousand times over",
        size_of_val(&task)
    );
}
