//! One KEK: its backend client, health, circuit breaker and metrics.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::Semaphore, time::Instant};

use super::{KekHealth, clients::Label, metrics::KekMetrics};
use crate::{
    backend::{self, BackendError, ErrorKind, Kek},
    clock::Clock,
    crypto::{Dek, KeyringId, WrapContext},
    keyring::{Version, Wrap},
    model::KekUri,
    telemetry::{Registry, seconds},
};

/// Concurrent unwraps per KEK. A start with many versions must not flood it.
const MAX_CONCURRENT_UNWRAPS: usize = 16;
/// The circuit opens after this many consecutive failures.
const FAILURE_THRESHOLD: u32 = 3;
/// How long the circuit stays open at first; doubles with each further failure.
const MIN_OPEN_TIME: Duration = Duration::from_secs(1);
const MAX_OPEN_TIME: Duration = Duration::from_secs(60);

/// A KEK with its health. Plaintext data keys pass through.
pub(super) struct KekClient {
    uri: KekUri,
    kek: Result<Arc<dyn Kek>, BackendError>,
    permits: Semaphore,
    health: Mutex<Health>,
    timeout: Duration,
    clock: Clock,
    metrics: KekMetrics,
}

#[derive(Default)]
struct Health {
    /// Moving average; `None` before the first response.
    latency: Option<Duration>,
    consecutive_failures: u32,
    open_until: Option<Instant>,
    last_success: Option<Timestamp>,
    last_failure: Option<(Timestamp, BackendError)>,
}

/// The order in which KEKs are asked, smallest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) is_circuit_open: bool,
    is_failing: bool,
    latency: Duration,
}

impl KekClient {
    pub(super) fn new(
        uri: &KekUri,
        label: Label<'_>,
        kek: Result<Arc<dyn Kek>, BackendError>,
        timeout: Duration,
        clock: Clock,
        registry: &Arc<Registry>,
    ) -> Self {
        Self {
            uri: uri.clone(),
            kek,
            permits: Semaphore::new(MAX_CONCURRENT_UNWRAPS),
            health: Mutex::default(),
            timeout,
            clock,
            metrics: KekMetrics::new(&label, registry),
        }
    }

    pub(super) async fn wrap(
        &self,
        dek: &Dek,
        context: WrapContext,
    ) -> Result<Vec<u8>, BackendError> {
        self.measure("wrap", async { self.kek.clone()?.wrap(dek, context).await })
            .await
    }

    /// Unwraps one wrap of `version` and verifies that the data key matches its check value and
    /// succession key.
    pub(super) async fn unwrap(
        &self,
        keyring: KeyringId,
        version: &Version,
        wrap: &Wrap,
    ) -> Result<Dek, BackendError> {
        let context = WrapContext {
            keyring,
            version: version.version,
        };
        // The semaphore is never closed, so this always returns a permit.
        let _permit = self.permits.acquire().await;
        let unwrap = async {
            let dek = self
                .kek
                .clone()?
                .unwrap(&wrap.ciphertext.0, context)
                .await?;
            if version.commits_to(&keyring, &dek) {
                return Ok(dek);
            }
            let message = "returned another key than the manifest's check value and succession \
                           key commit to";
            Err(BackendError::new(ErrorKind::Exchanged, &self.uri, message))
        };
        self.measure("unwrap", unwrap).await
    }

    pub(super) fn rank(&self) -> Rank {
        let health = self.lock();
        Rank {
            is_circuit_open: health.is_circuit_open(),
            is_failing: health.consecutive_failures > 0,
            latency: health.latency.unwrap_or_default(),
        }
    }

    pub(super) fn server_time(&self) -> Option<(KekUri, Timestamp)> {
        let time = self.kek.as_ref().ok()?.server_time()?;
        Some((self.uri.clone(), time))
    }

    /// Whether it ever wrapped or unwrapped a key.
    pub(super) fn has_worked(&self) -> bool {
        self.lock().last_success.is_some()
    }

    pub(super) fn health(&self) -> KekHealth {
        let health = self.lock();
        KekHealth {
            uri: self.uri.clone(),
            latency: health.latency,
            consecutive_failures: health.consecutive_failures,
            is_circuit_open: health.is_circuit_open(),
            last_success: health.last_success,
            last_failure: health.last_failure.clone(),
        }
    }

    pub(super) fn update_gauges(&self) {
        let health = self.health();
        self.metrics
            .circuit_open
            .set(if health.is_circuit_open { 1.0 } else { 0.0 });
        if let Some(at) = health.last_success {
            self.metrics.last_success.set(seconds(at));
        }
    }

    /// Records that the KEK takes at least this long, before it has responded.
    pub(super) fn record_slow(&self, at_least: Duration) {
        let mut health = self.lock();
        if health.latency.is_none_or(|latency| latency < at_least) {
            health.latency = Some(at_least);
        }
    }

    /// Counts a request whose response is not awaited.
    pub(super) fn count(&self, operation: &'static str, result: &'static str) {
        self.metrics.requests(operation, result).increment(1);
    }

    /// Runs a request within the time limit and records its result and duration.
    async fn measure<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let start = Instant::now();
        let result = backend::within(self.timeout, request)
            .await
            .unwrap_or_else(|late| Err(late.on(&self.uri, Some("refresh.kek_timeout"))));
        let took = start.elapsed();
        self.metrics.duration.record(took);
        let error = result.as_ref().err();
        self.count(operation, error.map_or("ok", |error| error.kind.kek_code()));
        self.lock().record(error, took, self.clock.now());
        result
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    fn is_circuit_open(&self) -> bool {
        self.open_until.is_some_and(|until| Instant::now() < until)
    }

    fn record(&mut self, error: Option<&BackendError>, took: Duration, now: Timestamp) {
        let latency = self.latency.unwrap_or(took);
        self.latency = Some((latency * 3 + took) / 4);
        let Some(error) = error else {
            self.consecutive_failures = 0;
            self.open_until = None;
            self.last_success = Some(now);
            return;
        };
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        self.last_failure = Some((now, error.clone()));
        if let Some(further) = self.consecutive_failures.checked_sub(FAILURE_THRESHOLD) {
            let open_time = MIN_OPEN_TIME
                .saturating_mul(1 << further.min(16))
                .min(MAX_OPEN_TIME);
            self.open_until = Some(Instant::now() + open_time);
        }
    }
}
