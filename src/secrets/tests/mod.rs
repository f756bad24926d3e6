//! The engine against a scripted provider, with paused time.

mod current;
mod leases;
mod other_versions;

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
