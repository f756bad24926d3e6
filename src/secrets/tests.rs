//! The engine against a scripted provider, with paused time.

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
    backend::{self, FetchOutcome, FetchedValue, HeldValue, Lease, SecretProvider},
    clock::ManualClock,
    config::CachePolicy,
};

/// A provider that returns what the test tells it to.
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
    fault: Option<ErrorKind>,
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

    fn fail(&self, fault: impl Into<Option<ErrorKind>>) {
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
        which: &'a VersionSelector,
        _: Option<HeldValue<'a>>,
        _: usize,
    ) -> BoxFuture<'a, Result<FetchOutcome, BackendError>> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let stages = self.stages().clone();
        Box::pin(async move {
            sleep(stages.delay).await;
            if let Some(fault) = stages.fault {
                return Err(BackendError::new(fault, "test", "scripted"));
            }
            let version = match which {
                VersionSelector::Current => stages.current.clone(),
                VersionSelector::Previous => stages.previous.clone(),
                VersionSelector::Pending => "pending".into(),
                VersionSelector::Version(version) => version.clone(),
            };
            let found = self.values.lock().expect("test").get(&version).cloned();
            let (text, at) = found
                .ok_or_else(|| BackendError::new(ErrorKind::NotFound, "test", "there is none"))?;
            let lease = stages.leased.clone().map(|lease| {
                lease.given.fetch_add(1, Ordering::Relaxed);
                lease as Arc<dyn Lease>
            });
            let created_at = lease.is_none().then_some(at);
            let bytes = Zeroizing::new(text.into_bytes());
            Ok(FetchOutcome::Value(FetchedValue {
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
    renewal: Mutex<Result<Duration, ErrorKind>>,
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

    fn renew(&self) -> BoxFuture<'_, Result<Duration, BackendError>> {
        self.renewed.fetch_add(1, Ordering::Relaxed);
        let renewal = *self.renewal.lock().expect("test");
        Box::pin(
            async move { renewal.map_err(|fault| BackendError::new(fault, "test", "scripted")) },
        )
    }

    fn revoke(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        self.revoked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }
}

/// A secret and its provider.
struct World {
    secret: Arc<Secret>,
    shared: Arc<Shared>,
    clock: ManualClock,
}

const KEEPING: CachePolicy = CachePolicy {
    refresh: Duration::from_secs(60),
    previous_ttl: Duration::from_secs(600),
    stale_if_error: Duration::from_secs(300),
    rotate_after: None,
    revoke: false,
};

impl World {
    fn new(script: &Arc<Script>, keeping: CachePolicy) -> Self {
        Self::with(script, keeping, |_| ())
    }

    fn with(
        script: &Arc<Script>,
        keeping: CachePolicy,
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
            fingerprints: MacKey::generate().expect("randomness"),
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
            cache: keeping,
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
        version: VersionSelector,
        freshness: Freshness,
    ) -> Result<(String, &'static str, bool), GetError> {
        let served = self
            .secret
            .get(&SecretRequest { version, freshness })
            .await?;
        let text = String::from_utf8(served.value.bytes().to_vec()).expect("text");
        Ok((text, served.stage.as_str(), served.stale.is_some()))
    }

    async fn current(&self) -> Result<String, ErrorKind> {
        self.ask(VersionSelector::Current, Freshness::Cached)
            .await
            .map(|(text, ..)| text)
            .map_err(fault)
    }

    async fn previous(&self) -> Result<String, GetError> {
        self.ask(VersionSelector::Previous, Freshness::Cached)
            .await
            .map(|(text, ..)| text)
    }

    /// Advances tokio's time and the clock.
    async fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        sleep(Duration::from_secs(seconds)).await;
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }
}

fn fault(refused: GetError) -> ErrorKind {
    match refused {
        GetError::Provider(error) => error.kind,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_rotation_the_previous_value_is_served_for_its_ttl() {
    let script = Script::new("1", "old");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("old"));
    assert_eq!(
        world.previous().await,
        Err(GetError::PreviousExpired),
        "the rotation was long ago"
    );
    let mut changes = world.shared.changes.subscribe();
    script.rotate("2", "new", world.now());
    world.pass(76).await;
    assert_eq!(world.current().await.as_deref(), Ok("new"));
    assert_eq!(world.previous().await.as_deref(), Ok("old"));
    let change = changes.try_recv().expect("announced");
    assert_eq!(
        (change.version.as_deref(), change.previous.as_deref()),
        (Some("2"), Some("1"))
    );
    let by_version = world
        .ask(VersionSelector::Version("1".into()), Freshness::Cached)
        .await
        .expect("held");
    assert_eq!((by_version.0.as_str(), by_version.1), ("old", "previous"));
    world.pass(601).await;
    assert_eq!(world.previous().await, Err(GetError::PreviousExpired));
    assert!(
        world.secret.state().expect("state").previous.is_none(),
        "it is dropped from memory"
    );
    let change = changes.try_recv().expect("its expiry is announced, too");
    assert_eq!(
        (change.version.as_deref(), change.previous),
        (Some("2"), None)
    );
    changes.try_recv().expect_err("announced once");
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_starts_after_a_rotation_reads_the_previous_value() {
    let script = Script::new("1", "old");
    let made = Timestamp::UNIX_EPOCH + Duration::from_secs(86_400 - 60);
    script.rotate("2", "new", made);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.previous().await.as_deref(), Ok("old"));
    let fetches = script.fetches();
    assert_eq!(world.previous().await.as_deref(), Ok("old"));
    assert_eq!(script.fetches(), fetches, "cached for a while");
    world.pass(600).await;
    assert_eq!(world.previous().await, Err(GetError::PreviousExpired));
}

#[tokio::test(start_paused = true)]
async fn while_a_provider_is_down_a_stale_value_is_served_within_the_bound_only() {
    for fault in [
        ErrorKind::Unavailable,
        ErrorKind::Throttled,
        ErrorKind::Denied,
    ] {
        let script = Script::new("1", "value");
        let world = World::new(&script, KEEPING);
        assert_eq!(
            world.ask(VersionSelector::Current, Freshness::Cached).await,
            Ok(("value".into(), "current", false))
        );
        script.fail(fault);
        world.pass(100).await;
        assert_eq!(
            world.ask(VersionSelector::Current, Freshness::Cached).await,
            Ok(("value".into(), "current", true))
        );
        world.pass(300).await;
        assert_eq!(world.current().await, Err(fault));
        script.fail(None);
        world.pass(30).await;
        assert_eq!(
            world.ask(VersionSelector::Current, Freshness::Cached).await,
            Ok(("value".into(), "current", false))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_counts_as_deleted_when_it_is_missing_twice_and_can_come_back() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    let mut changes = world.shared.changes.subscribe();
    script.fail(ErrorKind::NotFound);
    world.secret.request(Trigger::Signal);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        world.ask(VersionSelector::Current, Freshness::Cached).await,
        Ok(("value".into(), "current", true)),
        "missing once"
    );
    world.pass(2).await;
    assert_eq!(world.current().await, Err(ErrorKind::NotFound));
    assert_eq!(
        world
            .ask(VersionSelector::Previous, Freshness::Cached)
            .await
            .map_err(fault),
        Err(ErrorKind::NotFound)
    );
    assert_eq!(changes.try_recv().expect("announced").version, None);
    script.fail(None);
    world.pass(30).await;
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    assert_eq!(
        changes.try_recv().expect("announced").version.as_deref(),
        Some("1")
    );
}

#[tokio::test(start_paused = true)]
async fn concurrent_first_requests_share_one_read_and_a_refusal_is_remembered() {
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
    script.fail(ErrorKind::NotFound);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await, Err(ErrorKind::NotFound));
    let fetches = script.fetches();
    for _ in 0..1000 {
        assert_eq!(world.current().await, Err(ErrorKind::NotFound));
    }
    assert_eq!(script.fetches(), fetches);
}

#[tokio::test(start_paused = true)]
async fn revalidating_requests_share_reads_at_a_bounded_rate() {
    let script = Script::new("1", "old");
    let world = Arc::new(World::new(&script, KEEPING));
    assert_eq!(world.current().await.as_deref(), Ok("old"));
    script.rotate("2", "new", world.now());
    let ask = || {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            world
                .ask(VersionSelector::Current, Freshness::Revalidated)
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
    // Each round waits until a second has passed since the one before.
    assert_eq!(script.fetches(), 6);
    assert!(
        start.elapsed() >= Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    script.fail(ErrorKind::Unavailable);
    let stale = world
        .ask(VersionSelector::Current, Freshness::Revalidated)
        .await;
    assert_eq!(
        stale,
        Ok(("new".into(), "current", true)),
        "the value in memory, marked as stale"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_minimum_version_reads_only_if_the_held_version_is_lower() {
    let script = Script::new("9", "old");
    let world = World::new(&script, KEEPING);
    let at_least =
        |least: &str| world.ask(VersionSelector::Current, Freshness::AtLeast(least.into()));
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
        Err(GetError::VersionTooOld {
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
async fn a_provider_that_hangs_times_out_and_no_caller_waits_forever() {
    let script = Script::new("1", "value");
    script.stages().delay = Duration::from_secs(3600);
    let world = World::new(&script, KEEPING);
    let start = Instant::now();
    assert_eq!(world.current().await, Err(ErrorKind::Unavailable));
    assert!(
        start.elapsed() <= Duration::from_secs(12),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_and_replaced_once_it_is_no_longer_extended() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(90);
    script.stages().leased = Some(Arc::clone(&lease));
    let world = World::new(
        &script,
        CachePolicy {
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
    // It approaches its maximum TTL.
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
        Err(GetError::PreviousExpired),
        "not served beyond its lease"
    );
    assert_eq!(
        lease.revoked.load(Ordering::Relaxed),
        1,
        "it is no longer served"
    );
    world.shared.shutdown.cancel();
    world.shared.tasks.close();
    world.shared.tasks.wait().await;
    assert_eq!(
        lease.revoked.load(Ordering::Relaxed),
        2,
        "revoked at shutdown"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_revoked_elsewhere_is_replaced_for_a_revalidating_request() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(3600);
    script.stages().leased = Some(Arc::clone(&lease));
    let world = World::new(
        &script,
        CachePolicy {
            refresh: Duration::from_secs(3000),
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    script.rotate("b", "second", world.now());
    let fresh = world
        .ask(VersionSelector::Current, Freshness::Revalidated)
        .await
        .expect("served");
    assert_eq!(fresh.0, "first", "an active lease is kept");
    *lease.renewal.lock().expect("test") = Err(ErrorKind::NotFound);
    let fresh = world
        .ask(VersionSelector::Current, Freshness::Revalidated)
        .await
        .expect("served");
    assert_eq!(fresh.0, "second");
    assert_eq!(
        world.previous().await,
        Err(GetError::PreviousExpired),
        "the old credentials no longer work"
    );
}

#[tokio::test(start_paused = true)]
async fn credentials_with_an_expired_lease_are_not_served() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(90);
    script.stages().leased = Some(Arc::clone(&lease));
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    *lease.renewal.lock().expect("test") = Err(ErrorKind::Unavailable);
    script.fail(ErrorKind::Unavailable);
    world.pass(60).await;
    assert!(
        world
            .ask(VersionSelector::Current, Freshness::Cached)
            .await
            .expect("the lease is active")
            .2
    );
    world.pass(60).await;
    assert_eq!(world.current().await, Err(ErrorKind::Unavailable));
    script.fail(None);
    world.pass(30).await;
    assert_eq!(world.current().await.as_deref(), Ok("first"));
}

#[tokio::test(start_paused = true)]
async fn leased_credentials_are_replaced_before_rotate_after() {
    let script = Script::new("a", "first");
    script.stages().leased = Some(ScriptedLease::new(90));
    let world = World::new(
        &script,
        CachePolicy {
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
        "its lease was renewed once more"
    );
}

#[tokio::test(start_paused = true)]
async fn credentials_that_cannot_be_replaced_are_renewed() {
    let script = Script::new("a", "first");
    script.stages().leased = Some(ScriptedLease::new(90));
    let world = World::new(
        &script,
        CachePolicy {
            rotate_after: Some(Duration::from_secs(100)),
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    script.fail(ErrorKind::Unavailable);
    for _ in 0..20 {
        world.pass(10).await;
        assert_eq!(world.current().await.as_deref(), Ok("first"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_is_read_again_around_its_expiry() {
    let script = Script::new("1", "old");
    let keeping = CachePolicy {
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
    assert_eq!(script.fetches(), 2, "read once before it expires");
    script.rotate("3", "new", world.now());
    world.pass(3).await;
    assert_eq!(world.current().await.as_deref(), Ok("new"));
    world.pass(90).await;
    assert_eq!(script.fetches(), 3, "not read again until the next expiry");
}

#[tokio::test(start_paused = true)]
async fn other_versions_are_read_once_and_cached() {
    let script = Script::new("1", "first");
    for version in 2..=20 {
        script.rotate(
            &version.to_string(),
            &format!("value {version}"),
            Timestamp::UNIX_EPOCH,
        );
    }
    let world = World::new(&script, KEEPING);
    let version = |version: u32| {
        world.ask(
            VersionSelector::Version(version.to_string()),
            Freshness::Cached,
        )
    };
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
    assert_eq!(version(99).await.map_err(fault), Err(ErrorKind::NotFound));
    assert_eq!(
        world
            .ask(VersionSelector::Pending, Freshness::Cached)
            .await
            .map_err(fault),
        Err(ErrorKind::NotFound)
    );
    script
        .values
        .lock()
        .expect("test")
        .insert("pending".into(), ("next".into(), world.now()));
    world.pass(31).await;
    assert_eq!(
        world.ask(VersionSelector::Pending, Freshness::Cached).await,
        Ok(("next".into(), "pending", false))
    );
}

#[tokio::test(start_paused = true)]
async fn usage_is_counted_per_version() {
    let script = Script::new("1", "old");
    let world = World::new(&script, KEEPING);
    let serve = async |version: VersionSelector| {
        let served = world
            .secret
            .get(&SecretRequest {
                version,
                freshness: Freshness::Cached,
            })
            .await
            .expect("served");
        world.secret.record_served(&served);
    };
    serve(VersionSelector::Current).await;
    script.rotate("2", "new", world.now());
    world.pass(76).await;
    serve(VersionSelector::Current).await;
    serve(VersionSelector::Previous).await;
    let usages = world.secret.usages();
    let counts: Vec<_> = usages
        .iter()
        .map(|usage| (usage.version(), usage.count()))
        .collect();
    assert_eq!(counts, [("1", 2), ("2", 1)]);
    assert_eq!(usages[0].last(), Some(world.now()));
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_abandoned_cause_no_extra_reads_and_evict_nothing() {
    let script = Script::new("1", "first");
    script.rotate("2", "second", Timestamp::UNIX_EPOCH);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    script.stages().delay = Duration::from_secs(5);
    let before = script.fetches();
    for number in 0..60 {
        let asked = world.ask(
            VersionSelector::Version(format!("none {number}")),
            Freshness::Cached,
        );
        let _ = tokio::time::timeout(Duration::from_millis(80), asked).await;
    }
    assert!(
        script.fetches() - before <= 2,
        "{}",
        script.fetches() - before
    );
    // They do not block access to values in memory, either.
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    world.pass(200).await;
    script.stages().delay = Duration::ZERO;
    let first = || world.ask(VersionSelector::Version("1".into()), Freshness::Cached);
    assert_eq!(first().await.map(|(text, ..)| text).as_deref(), Ok("first"));
    script.stages().delay = Duration::from_secs(5);
    for number in 0..40 {
        let asked = world.ask(
            VersionSelector::Version(format!("none {number}")),
            Freshness::Cached,
        );
        let _ = tokio::time::timeout(Duration::from_millis(1), asked).await;
    }
    assert_eq!(
        first().await.map(|(text, ..)| text).as_deref(),
        Ok("first"),
        "a cached value needs no read"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_marked_every_time() {
    let script = Script::new("1", "value");
    script
        .values
        .lock()
        .expect("test")
        .insert("pending".into(), ("next".into(), Timestamp::UNIX_EPOCH));
    let world = World::new(&script, KEEPING);
    let pending = async || {
        world
            .ask(VersionSelector::Pending, Freshness::Cached)
            .await
            .map(|(_, _, stale)| stale)
    };
    assert_eq!(pending().await, Ok(false));
    script.fail(ErrorKind::Denied);
    world.pass(31).await;
    for _ in 0..3 {
        assert_eq!(pending().await, Ok(true));
    }
    world.pass(301).await;
    // The provider still refuses, and the bound is exceeded.
    assert_eq!(pending().await.map_err(fault), Err(ErrorKind::Denied));
}

#[tokio::test(start_paused = true)]
async fn an_on_demand_read_that_waits_delays_no_renewal() {
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
            "the lease is renewed in time"
        );
    }
    world.shared.shutdown.cancel();
    script.stages().leased = None;
    world = World::with(&script, KEEPING, |settings| {
        settings.force_interval = Duration::from_secs(3600)
    });
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    // A revalidating request that waits in vain gets a value that is marked as stale.
    let fresh = tokio::time::timeout(
        Duration::from_secs(3700),
        world.ask(VersionSelector::Current, Freshness::Revalidated),
    )
    .await;
    assert!(fresh.expect("bounded").is_ok());
}

#[tokio::test(start_paused = true)]
async fn usage_of_the_current_value_survives_many_other_versions() {
    let script = Script::new("1", "first");
    for version in 2..=45 {
        script.rotate(&version.to_string(), "value", Timestamp::UNIX_EPOCH);
    }
    let world = World::new(&script, KEEPING);
    let serve = async |version: VersionSelector| {
        let served = world
            .secret
            .get(&SecretRequest {
                version,
                freshness: Freshness::Cached,
            })
            .await
            .expect("served");
        world.secret.record_served(&served);
    };
    serve(VersionSelector::Current).await;
    for version in 1..=40 {
        serve(VersionSelector::Version(version.to_string())).await;
    }
    serve(VersionSelector::Current).await;
    let usages = world.secret.usages();
    let current = usages
        .iter()
        .find(|usage| usage.version() == "45")
        .expect("known");
    assert_eq!(current.count(), 2);
    assert!(usages.len() <= 32, "{}", usages.len());
}

#[tokio::test(start_paused = true)]
async fn two_values_of_one_version_have_different_entity_tags() {
    let script = Script::new("1", "first");
    let world = World::new(&script, KEEPING);
    let tag = async || {
        let served = world
            .secret
            .get(&SecretRequest {
                version: VersionSelector::Current,
                freshness: Freshness::Revalidated,
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
async fn a_lower_version_is_accepted_only_when_it_is_read_twice() {
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
async fn a_request_for_a_minimum_version_returns_the_providers_error() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    script.fail(ErrorKind::Denied);
    assert_eq!(
        world
            .ask(VersionSelector::Current, Freshness::AtLeast("2".into()))
            .await
            .map_err(fault),
        Err(ErrorKind::Denied)
    );
}

#[tokio::test]
async fn a_waiting_task_uses_little_memory() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    let (_, requests) = tokio::sync::mpsc::channel(1);
    let task = task::Refresher::new(Arc::clone(&world.secret), requests).run();
    assert!(
        size_of_val(&task) < 1500,
        "{} bytes per secret",
        size_of_val(&task)
    );
}
