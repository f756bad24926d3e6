//! The KEKs of a process: one client per KEK with its health, a circuit breaker and metrics, and
//! unwraps that ask the healthiest KEK first and hedge when it is slow.
//!
//! Plaintext data keys pass through here on their way from a KEK to their derivation.

mod client;
mod clients;
mod metrics;
mod unwraps;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    StreamExt, future,
    stream::{self, FuturesUnordered},
};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use self::{
    client::{KekClient, Rank},
    clients::Clients,
    metrics::OVERTAKEN,
};
use crate::{
    backend::{BackendError, Backends, ErrorKind},
    clock::Clock,
    config,
    crypto::{Dek, KeyringId, WrapContext},
    keyring::{Base64, NotUnwrapped, Version, Wrap},
    model::{KekScope, KekUri},
    telemetry::Registry,
};

pub(crate) use self::{metrics::describe as describe_metrics, unwraps::UnwrapTasks};

/// The KEKs of a process. Each client is created at first use and then shared, as long as there is
/// room for it.
pub struct Keks {
    backends: Arc<dyn Backends>,
    clients: Mutex<Clients>,
    /// How long one KEK may take to respond.
    timeout: Duration,
    /// How long an unwrap waits for one KEK before it also asks the next one.
    hedge: Duration,
    clock: Clock,
    registry: Arc<Registry>,
}

/// The health of one KEK, for `/status`.
#[derive(Debug, Clone)]
pub struct KekHealth {
    pub(crate) uri: KekUri,
    /// Moving average over the latest responses; `None` before the first one.
    pub(crate) latency: Option<Duration>,
    pub(crate) consecutive_failures: u32,
    /// While the circuit is open, the KEK is asked only after all others have failed.
    pub(crate) is_circuit_open: bool,
    pub(crate) last_success: Option<Timestamp>,
    pub(crate) last_failure: Option<(Timestamp, BackendError)>,
}

/// The result of one KEK for one version.
pub struct UnwrapAttempt {
    pub(crate) uri: KekUri,
    pub(crate) took: Duration,
    pub(crate) result: Result<(), BackendError>,
}

/// A KEK that may open a version: its rank when it was chosen, its client, and the wrap to open.
type Candidate<'v> = (Rank, Arc<KekClient>, &'v Wrap);

impl Keks {
    /// Returns the KEKs reachable through `backends`. Contacts nothing.
    pub fn new(
        backends: Arc<dyn Backends>,
        settings: &config::Refresh,
        clock: Clock,
        registry: Arc<Registry>,
    ) -> Self {
        Self {
            backends,
            clients: Mutex::default(),
            timeout: settings.kek_timeout,
            hedge: settings.hedge,
            clock,
            registry,
        }
    }

    /// Returns the health of the KEKs that were used.
    pub fn health(&self) -> Vec<KekHealth> {
        self.clients().all().map(KekClient::health).collect()
    }

    /// Returns the time on the clock of each KEK that stated one in its last response.
    pub fn server_times(&self) -> Vec<(KekUri, Timestamp)> {
        self.clients()
            .all()
            .filter_map(KekClient::server_time)
            .collect()
    }

    /// Updates the gauges; called before metrics are rendered.
    pub fn update_gauges(&self) {
        for client in self.clients().all() {
            client.update_gauges();
        }
    }

    /// Wraps a data key under each of `keks`.
    ///
    /// # Errors
    /// Fails with the first error of any KEK.
    pub async fn wrap(
        &self,
        keks: &[KekUri],
        dek: &Dek,
        context: WrapContext,
    ) -> Result<Vec<Wrap>, BackendError> {
        let wraps = keks.iter().map(async |kek| {
            let ciphertext = self.client(kek).wrap(dek, context).await?;
            Ok(Wrap {
                kek: kek.clone(),
                ciphertext: Base64(ciphertext),
                wrapped_at: self.clock.now(),
            })
        });
        future::try_join_all(wraps).await
    }

    /// Tries every wrap of a version concurrently. KEKs outside `scope` are not contacted.
    pub async fn try_each(
        &self,
        keyring: KeyringId,
        version: &Version,
        scope: &KekScope,
    ) -> Vec<UnwrapAttempt> {
        let attempts = version.wraps.iter().map(async |wrap| {
            let start = Instant::now();
            let result = if scope.covers(&wrap.kek) {
                let client = self.client(&wrap.kek);
                client.unwrap(keyring, version, wrap).await.map(drop)
            } else {
                Err(out_of_scope(&wrap.kek))
            };
            UnwrapAttempt {
                uri: wrap.kek.clone(),
                took: start.elapsed(),
                result,
            }
        });
        future::join_all(attempts).await
    }

    /// Unwraps several versions, up to `concurrent` at a time. The result has an entry for each.
    pub async fn unwrap_each<'v>(
        &self,
        keyring: KeyringId,
        versions: impl IntoIterator<Item = &'v Version>,
        scope: &KekScope,
        concurrent: usize,
    ) -> Vec<(u32, Result<Dek, NotUnwrapped>)> {
        stream::iter(versions)
            .map(async |version| {
                let dek = self.unwrap(keyring, version, scope).await;
                (version.version, dek)
            })
            .buffer_unordered(concurrent)
            .collect()
            .await
    }

    /// Unwraps a version with any one of its KEKs within `scope`. Healthy and fast KEKs come first;
    /// the next one is asked as soon as one fails or takes longer than the hedge delay.
    ///
    /// # Errors
    /// Fails with the errors of all KEKs, joined by `; `.
    pub async fn unwrap(
        &self,
        keyring: KeyringId,
        version: &Version,
        scope: &KekScope,
    ) -> Result<Dek, NotUnwrapped> {
        let (candidates, mut errors) = self.candidates(version, scope);
        let mut is_exchanged = false;
        let mut candidates = candidates.into_iter().peekable();
        let mut running = FuturesUnordered::new();
        // In the order of asking; `None` once a KEK has responded.
        let mut asked: Vec<Option<Arc<KekClient>>> = Vec::new();
        loop {
            if let Some((_, client, wrap)) = candidates.next() {
                let index = asked.len();
                asked.push(Some(Arc::clone(&client)));
                running.push(async move { (index, client.unwrap(keyring, version, wrap).await) });
            } else if running.is_empty() {
                let message = errors.join("; ");
                return Err(NotUnwrapped {
                    message,
                    is_exchanged,
                });
            }
            // A KEK with an open circuit is asked only after failures, never to hedge.
            let may_hedge = candidates
                .peek()
                .is_some_and(|(rank, ..)| !rank.is_circuit_open);
            tokio::select! {
                Some((index, result)) = running.next() => {
                    asked[index] = None;
                    match result {
                        Ok(dek) => {
                            for slower in asked.iter().flatten() {
                                slower.count("unwrap", OVERTAKEN);
                            }
                            return Ok(dek);
                        }
                        Err(error) => {
                            is_exchanged |= error.kind == ErrorKind::Exchanged;
                            errors.push(error.to_string());
                        }
                    }
                }
                () = sleep(self.hedge), if may_hedge => {
                    if let Some(Some(client)) = asked.last() {
                        client.record_slow(self.hedge);
                    }
                }
            }
        }
    }

    /// Returns the clients to ask, best first, and an error for each KEK outside `scope`. Those are
    /// not contacted: the owner of a foreign KEK knows the data key that its wrap contains.
    fn candidates<'v>(
        &self,
        version: &'v Version,
        scope: &KekScope,
    ) -> (Vec<Candidate<'v>>, Vec<String>) {
        let (mut candidates, mut errors) = (Vec::new(), Vec::new());
        for wrap in &version.wraps {
            if scope.covers(&wrap.kek) {
                let client = self.client(&wrap.kek);
                candidates.push((client.rank(), client, wrap));
            } else {
                errors.push(out_of_scope(&wrap.kek).to_string());
            }
        }
        candidates.sort_by_key(|(rank, ..)| *rank);
        (candidates, errors)
    }

    fn client(&self, uri: &KekUri) -> Arc<KekClient> {
        self.clients().client(uri, |label| {
            let (kek, clock) = (self.backends.kek(uri), self.clock.clone());
            KekClient::new(uri, label, kek, self.timeout, clock, &self.registry)
        })
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn out_of_scope(uri: &KekUri) -> BackendError {
    let message = "not one of the allowed KEKs (`keks` in the config, --allow-kek of a command)";
    BackendError::new(ErrorKind::Misconfigured, uri, message)
}
