//! The KEKs of a process: which of them are well, and how a version is opened by any one of those that wrap it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use metrics::{Counter, Gauge, Histogram};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use crate::{
    backend::{self, Backends, Kek, KekError, KekFault, Late},
    clock::Clock,
    config,
    crypto::{Dek, KeyringId, WrapContext},
    keyring::{Base64, Version, Wrap},
    model::{KekScope, KekUri},
    telemetry::{Registry, seconds},
};

/// How many unwraps one KEK has under way at once, so that a start with many versions doesn't flood it, and one that hangs holds up
/// no other.
const CONCURRENT_UNWRAPS: usize = 16;
/// After so many failures in a row a KEK is asked last, for a time that doubles with each further one.
const FAILURES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The result of a KEK whose answer was no longer awaited, because another one was faster.
const OVERTAKEN: &str = "overtaken";

const REQUESTS: &str = "sidekey_kek_requests_total";
const DURATION: &str = "sidekey_kek_request_duration_seconds";
const LAST_SUCCESS: &str = "sidekey_kek_last_success_timestamp_seconds";
const CIRCUIT_OPEN: &str = "sidekey_kek_circuit_open";

/// The KEKs of a process: their clients, made once, and how they have been answering.
pub struct Keks {
    backends: Arc<dyn Backends>,
    entries: Mutex<BTreeMap<KekUri, Arc<Entry>>>,
    time_limit: Duration,
    hedge: Duration,
    clock: Clock,
    registry: Arc<Registry>,
}

struct Entry {
    uri: KekUri,
    client: Result<Arc<dyn Kek>, KekError>,
    permits: Semaphore,
    health: Mutex<Health>,
    duration: Histogram,
    unwrapped: Counter,
    last_success: Gauge,
    circuit_open: Gauge,
}

#[derive(Default)]
struct Health {
    /// Smoothed; none before the first answer.
    latency: Option<Duration>,
    /// In a row.
    failures: u32,
    paused_until: Option<Instant>,
    last_success: Option<Timestamp>,
    last_failure: Option<(Timestamp, KekError)>,
}

/// How a KEK has been answering.
#[derive(Debug, Clone)]
pub struct KekHealth {
    /// The KEK.
    pub uri: KekUri,
    /// How long it takes, smoothed over its last answers.
    pub latency: Option<Duration>,
    /// Failures in a row.
    pub failures: u32,
    /// Whether it is asked last for now.
    pub is_circuit_open: bool,
    /// Its last success.
    pub last_success: Option<Timestamp>,
    /// Its last failure.
    pub last_failure: Option<(Timestamp, KekError)>,
}

/// What one KEK made of a version's wrap.
pub struct Trial {
    /// The KEK.
    pub uri: KekUri,
    /// How long it took.
    pub took: Duration,
    /// Whether it gave the version's key.
    pub result: Result<(), KekError>,
}

/// Describes the metrics of every KEK.
pub(super) fn describe_metrics(registry: &Registry) {
    registry.describe_counter(
        REQUESTS,
        "Wraps and unwraps asked of a KEK, by result: ok, overtaken by another KEK, or what kind of failure.",
    );
    registry.describe_histogram(DURATION, "Time that a KEK took to answer, well or badly.");
    registry.describe_gauge(LAST_SUCCESS, "When a KEK last wrapped or unwrapped.");
    registry.describe_gauge(
        CIRCUIT_OPEN,
        "1 while a KEK is asked last because it failed several times in a row.",
    );
}

impl Keks {
    /// KEKs behind `backends`, asked within the times of `settings`.
    pub fn new(
        backends: Arc<dyn Backends>,
        settings: &config::Refresh,
        clock: Clock,
        registry: Arc<Registry>,
    ) -> Self {
        let (time_limit, hedge) = (settings.kek_timeout, settings.hedge);
        Self {
            backends,
            entries: Mutex::default(),
            time_limit,
            hedge,
            clock,
            registry,
        }
    }

    /// Every KEK that was asked so far.
    pub fn health(&self) -> Vec<KekHealth> {
        self.entries()
            .values()
            .map(|entry| entry.report())
            .collect()
    }

    /// Brings the gauges up to now; called before metrics are rendered.
    pub fn observe(&self) {
        for entry in self.entries().values() {
            let health = entry.report();
            entry
                .circuit_open
                .set(if health.is_circuit_open { 1.0 } else { 0.0 });
            if let Some(at) = health.last_success {
                entry.last_success.set(seconds(at));
            }
        }
    }

    /// Wraps a data key under every one of `keks`, or fails.
    ///
    /// # Errors
    /// A KEK that refused.
    pub async fn wrap(
        &self,
        keks: &[KekUri],
        dek: &Dek,
        context: WrapContext,
    ) -> Result<Vec<Wrap>, KekError> {
        let wraps = keks.iter().map(async |kek| {
            let entry = self.entry(kek);
            let wrap = async { entry.client.clone()?.wrap(dek, context).await };
            let ciphertext = self.timed(&entry, "wrap", wrap).await?;
            Ok(Wrap {
                kek: kek.clone(),
                ciphertext: Base64(ciphertext),
                wrapped_at: self.clock.now(),
            })
        });
        futures_util::future::try_join_all(wraps).await
    }

    /// Tries every wrap of a version within `scope`, all at once.
    pub async fn try_each(
        &self,
        keyring: KeyringId,
        version: &Version,
        scope: &KekScope,
    ) -> Vec<Trial> {
        let trials = version.wraps.iter().map(async |wrap| {
            let begun = Instant::now();
            let result = if scope.covers(&wrap.kek) {
                self.attempt(&self.entry(&wrap.kek), keyring, version, wrap)
                    .await
                    .map(drop)
            } else {
                Err(foreign(&wrap.kek))
            };
            Trial {
                uri: wrap.kek.clone(),
                took: begun.elapsed(),
                result,
            }
        });
        futures_util::future::join_all(trials).await
    }

    /// Opens a version by any one of its wraps within `scope`: the KEKs that answer well and fast are asked first, the next one as
    /// soon as one fails or takes longer than the hedge.
    ///
    /// # Errors
    /// What every one of them said.
    pub async fn unwrap(
        &self,
        keyring: KeyringId,
        version: &Version,
        scope: &KekScope,
    ) -> Result<Dek, String> {
        // A KEK that isn't ours isn't even asked: its owner knows what it opens.
        let (ours, foreigners): (Vec<_>, Vec<_>) = version
            .wraps
            .iter()
            .partition(|wrap| scope.covers(&wrap.kek));
        let mut reasons: Vec<String> = foreigners
            .into_iter()
            .map(|wrap| foreign(&wrap.kek).to_string())
            .collect();
        let mut candidates: Vec<(Rank, Arc<Entry>, &Wrap)> = ours
            .into_iter()
            .map(|wrap| {
                let entry = self.entry(&wrap.kek);
                (entry.rank(), entry, wrap)
            })
            .collect();
        candidates.sort_by_key(|(rank, ..)| *rank);
        let mut candidates = candidates.into_iter().peekable();
        let mut running = FuturesUnordered::new();
        // By the order in which they were asked; none once they have answered.
        let mut asked: Vec<Option<Arc<Entry>>> = Vec::new();
        loop {
            if let Some((_, entry, wrap)) = candidates.next() {
                let index = asked.len();
                asked.push(Some(Arc::clone(&entry)));
                running.push(
                    async move { (index, self.attempt(&entry, keyring, version, wrap).await) },
                );
            } else if running.is_empty() {
                return Err(reasons.join("; "));
            }
            // One that is known to fail is asked when the others have failed, not because they are slow.
            let has_next = candidates.peek().is_some_and(|(rank, ..)| !rank.is_paused);
            tokio::select! {
                Some((index, result)) = running.next() => {
                    asked[index] = None;
                    match result {
                        Ok(dek) => {
                            for slower in asked.iter().flatten() {
                                self.requests(&slower.uri, "unwrap", OVERTAKEN).increment(1);
                            }
                            return Ok(dek);
                        }
                        Err(error) => reasons.push(error.to_string()),
                    }
                }
                () = sleep(self.hedge), if has_next => {
                    if let Some(Some(entry)) = asked.last() {
                        entry.is_slow(self.hedge);
                    }
                }
            }
        }
    }

    async fn attempt(
        &self,
        entry: &Entry,
        keyring: KeyringId,
        version: &Version,
        wrap: &Wrap,
    ) -> Result<Dek, KekError> {
        let context = WrapContext {
            keyring,
            version: version.version,
        };
        // Nobody closes it, so there is always a permit.
        let _permit = entry.permits.acquire().await;
        let unwrap = async {
            let dek = entry
                .client
                .clone()?
                .unwrap(&wrap.ciphertext.0, context)
                .await?;
            if dek.matches_check(&keyring, version.version, &version.check.0) {
                return Ok(dek);
            }
            Err(KekError::new(
                KekFault::Refused,
                format!(
                    "{}: gave another key than the manifest commits to",
                    entry.uri
                ),
            ))
        };
        self.timed(entry, "unwrap", unwrap).await
    }

    async fn timed<T>(
        &self,
        entry: &Entry,
        operation: &'static str,
        answer: impl Future<Output = Result<T, KekError>>,
    ) -> Result<T, KekError> {
        let begun = Instant::now();
        let result = backend::within(self.time_limit, answer)
            .await
            .unwrap_or_else(|late| Err(self.gave_up(entry, late)));
        let took = begun.elapsed();
        entry.duration.record(took);
        match (&result, operation) {
            (Ok(_), "unwrap") => entry.unwrapped.increment(1),
            (Ok(_), _) => self.requests(&entry.uri, operation, "ok").increment(1),
            (Err(error), _) => self
                .requests(&entry.uri, operation, error.fault.as_str())
                .increment(1),
        }
        entry.record(result.as_ref().err(), took, self.clock.now());
        result
    }

    fn gave_up(&self, entry: &Entry, late: Late) -> KekError {
        let (uri, limit) = (&entry.uri, self.time_limit);
        match late.heard {
            None => KekError::new(
                KekFault::Unavailable,
                format!("{uri}: no answer within {limit:?} (`refresh.kek_timeout`)"),
            ),
            Some((fault, said)) => KekError::new(
                fault,
                format!("{uri}: {said}; tried until {limit:?} were over (`refresh.kek_timeout`)"),
            ),
        }
    }

    fn entry(&self, uri: &KekUri) -> Arc<Entry> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(uri) {
            return Arc::clone(entry);
        }
        let labels = [("kek", uri.as_str())];
        let entry = Arc::new(Entry {
            uri: uri.clone(),
            client: self.backends.kek(uri),
            permits: Semaphore::new(CONCURRENT_UNWRAPS),
            health: Mutex::default(),
            duration: self.registry.histogram(DURATION, &labels),
            unwrapped: self.requests(uri, "unwrap", "ok"),
            last_success: self.registry.gauge(LAST_SUCCESS, &labels),
            circuit_open: self.registry.gauge(CIRCUIT_OPEN, &labels),
        });
        entries.insert(uri.clone(), Arc::clone(&entry));
        entry
    }

    fn requests(&self, uri: &KekUri, operation: &'static str, result: &'static str) -> Counter {
        self.registry.counter(
            REQUESTS,
            &[
                ("kek", uri.as_str()),
                ("operation", operation),
                ("result", result),
            ],
        )
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<KekUri, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn foreign(uri: &KekUri) -> KekError {
    let message =
        format!("{uri}: not one of the KEKs that may open this keyring (`keks` in the config)");
    KekError::new(KekFault::Misconfigured, message)
}

/// The order in which KEKs are asked; smaller is sooner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    is_paused: bool,
    is_failing: bool,
    latency: Duration,
}

impl Entry {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rank(&self) -> Rank {
        let health = self.health();
        Rank {
            is_paused: health.is_paused(),
            is_failing: health.failures > 0,
            latency: health.latency.unwrap_or_default(),
        }
    }

    fn report(&self) -> KekHealth {
        let health = self.health();
        KekHealth {
            uri: self.uri.clone(),
            latency: health.latency,
            failures: health.failures,
            is_circuit_open: health.is_paused(),
            last_success: health.last_success,
            last_failure: health.last_failure.clone(),
        }
    }

    fn record(&self, error: Option<&KekError>, took: Duration, now: Timestamp) {
        let mut health = self.health();
        health.saw(took);
        match error {
            None => {
                health.failures = 0;
                health.paused_until = None;
                health.last_success = Some(now);
            }
            Some(error) => {
                health.failures = health.failures.saturating_add(1);
                health.last_failure = Some((now, error.clone()));
                if let Some(further) = health.failures.checked_sub(FAILURES) {
                    let pause = FIRST_PAUSE
                        .saturating_mul(1 << further.min(16))
                        .min(LONGEST_PAUSE);
                    health.paused_until = Some(Instant::now() + pause);
                }
            }
        }
    }

    /// Notes that it has taken at least so long, though its answer is not awaited.
    fn is_slow(&self, at_least: Duration) {
        let mut health = self.health();
        if health.latency.is_none_or(|latency| latency < at_least) {
            health.latency = Some(at_least);
        }
    }
}

impl Health {
    fn is_paused(&self) -> bool {
        self.paused_until
            .is_some_and(|until| Instant::now() < until)
    }

    fn saw(&mut self, took: Duration) {
        self.latency = Some(
            self.latency
                .map_or(took, |latency| (latency * 3 + took) / 4),
        );
    }
}
