//! The handle of a secret, shared by the request path, the ops listener and the refresh task.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Freshness, GetError, SecretRequest, SecretStatus, Served, Shared, Stage, Trigger, Usage, Value,
    VersionSelector, metrics::SecretMetrics, other_versions::OtherVersions, request::satisfies,
    state::State, usage::Usages,
};
use crate::{
    backend::{BackendError, ErrorKind, FetchedValue, SecretProvider},
    clock::Uptime,
    config::{self, CachePolicy},
    model::{SecretName, SecretSource},
};

/// How many requests can wait for the task. While the queue is full, a read is due anyway.
const QUEUE: usize = 16;

/// A secret that is kept fresh. Reading its current value takes no lock.
pub struct Secret {
    name: SecretName,
    source: SecretSource,
    is_required: AtomicBool,
    cache: ArcSwap<CachePolicy>,
    pub(super) shared: Arc<Shared>,
    pub(super) provider: Arc<dyn SecretProvider>,
    state: ArcSwapOption<State>,
    reads: watch::Sender<ReadCount>,
    /// How many reads must have started to satisfy every caller.
    wanted_reads: AtomicU64,
    requests: mpsc::Sender<Trigger>,
    pub(super) other_versions: OtherVersions,
    usages: Usages,
    /// Whether only a wildcard (`*`) in the config covers it, and it has no entry of its own.
    pub(super) is_wildcard: bool,
    /// Stops its task when it is cancelled.
    pub(super) stopping: CancellationToken,
    pub(super) metrics: SecretMetrics,
}

/// Where a value was found.
enum Found {
    InMemory(Served),
    AtProvider(Stage),
}

/// How many reads of the current value have started and finished.
#[derive(Clone, Copy, Default)]
struct ReadCount {
    started: u64,
    finished: u64,
}

impl Secret {
    pub(super) fn new(
        settings: config::Secret,
        provider: Arc<dyn SecretProvider>,
        shared: &Arc<Shared>,
        is_wildcard: bool,
    ) -> (Arc<Self>, mpsc::Receiver<Trigger>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let config::Secret {
            name,
            source,
            required,
            cache,
        } = settings;
        let secret = Self {
            metrics: SecretMetrics::default(),
            name,
            source,
            is_required: AtomicBool::new(required),
            cache: ArcSwap::from_pointee(cache),
            shared: Arc::clone(shared),
            provider,
            state: ArcSwapOption::empty(),
            reads: watch::Sender::default(),
            wanted_reads: AtomicU64::new(0),
            requests,
            other_versions: OtherVersions::default(),
            usages: Usages::default(),
            is_wildcard,
            stopping: shared.shutdown.child_token(),
        };
        (Arc::new(secret), receiver)
    }

    pub(crate) fn name(&self) -> &SecretName {
        &self.name
    }

    pub(crate) fn source(&self) -> &SecretSource {
        &self.source
    }

    /// Whether readiness waits for it.
    pub(crate) fn is_required(&self) -> bool {
        self.is_required.load(Ordering::Relaxed)
    }

    /// Returns how values are cached, as the config says now.
    pub(crate) fn cache(&self) -> Guard<Arc<CachePolicy>> {
        self.cache.load()
    }

    /// Takes over what another config says of the same source, and reads it if that differs.
    pub(super) fn configure(&self, settings: &config::Secret) {
        self.is_required.store(settings.required, Ordering::Relaxed);
        if **self.cache.load() != settings.cache {
            self.cache.store(Arc::new(settings.cache.clone()));
            self.request(Trigger::Config);
        }
    }

    /// Takes over what `former` serves, until there is a value from this source. Leased values stay
    /// behind: nothing would renew them.
    pub(super) fn inherit(&self, former: &Self) {
        let Some(state) = former.state() else { return };
        let current = state.current.as_ref();
        if current.is_some_and(|current| current.valid_until.is_none()) {
            self.usages.inherit(&former.usages);
            self.publish(State {
                current: current.cloned(),
                previous: state.previous.clone(),
                failure: None,
            });
        }
    }

    /// Returns the requested value, after a read at the provider if the value in memory is not
    /// sufficient.
    ///
    /// # Errors
    /// There is no such value, or it is not fresh enough.
    pub(crate) async fn get(self: &Arc<Self>, request: &SecretRequest) -> Result<Served, GetError> {
        // The usual case first: the current value from memory.
        if request.version == VersionSelector::Current
            && request.freshness == Freshness::Cached
            && let Some(state) = self.state.load().as_ref()
            && state.current.is_some()
        {
            return self.current(state);
        }
        Box::pin(self.get_slowly(request)).await
    }

    async fn get_slowly(self: &Arc<Self>, request: &SecretRequest) -> Result<Served, GetError> {
        let is_refreshed = self.refresh_if_needed(&request.freshness).await;
        let Some(state) = self.state.load_full() else {
            return Err(GetError::Provider(self.timed_out()));
        };
        if request.version == VersionSelector::Current {
            return self.get_current(&state, &request.freshness, is_refreshed);
        }
        // If the provider says that the secret is gone, its other versions are gone, too.
        let current = self.current(&state)?;
        let stage = match self.find_in_memory(&state, &request.version, &current)? {
            Found::InMemory(served) => return Ok(served),
            Found::AtProvider(stage) => stage,
        };
        self.other_versions
            .get(self, &request.version, &current, stage)
            .await
    }

    fn find_in_memory(
        &self,
        state: &State,
        selector: &VersionSelector,
        current: &Served,
    ) -> Result<Found, GetError> {
        let in_memory = |value: &Served| Found::InMemory(value.clone());
        let previous = self.previous(state);
        Ok(match selector {
            VersionSelector::Current => in_memory(current),
            VersionSelector::Pending => Found::AtProvider(Stage::Pending),
            VersionSelector::Previous => match &previous {
                Some(previous) => in_memory(previous),
                None if self.has_rotated_recently(&current.value) => {
                    Found::AtProvider(Stage::Previous)
                }
                None => return Err(GetError::PreviousExpired),
            },
            VersionSelector::Version(version) => [Some(current), previous.as_ref()]
                .into_iter()
                .flatten()
                .find(|served| served.value.version() == version)
                .map_or(Found::AtProvider(Stage::Other), in_memory),
        })
    }

    fn get_current(
        &self,
        state: &State,
        freshness: &Freshness,
        is_refreshed: bool,
    ) -> Result<Served, GetError> {
        let mut served = self.current(state)?;
        if !is_refreshed && served.stale.is_none() {
            // The provider was to be asked first and has not responded yet.
            let confirmed_at = state.current.as_ref().map(|current| current.confirmed_at);
            let age = confirmed_at.map(|at| self.shared.clock.now().duration_since(at));
            served.stale = Some(
                age.and_then(|age| Duration::try_from(age).ok())
                    .unwrap_or_default(),
            );
        }
        match freshness {
            Freshness::AtLeast(least) if !satisfies(served.value.version(), least) => {
                Err(match &state.failure {
                    Some(failure) => GetError::Provider(failure.error.clone()),
                    None if !is_refreshed => GetError::Provider(self.timed_out()),
                    None => GetError::VersionTooOld {
                        version: served.value.version().to_owned(),
                    },
                })
            }
            _ => Ok(served),
        }
    }

    /// Waits for a read unless the value in memory is fresh enough. Returns false if the read did
    /// not finish in time.
    async fn refresh_if_needed(&self, freshness: &Freshness) -> bool {
        // Before the state: a read that finishes in between has published its value.
        let mut reads = self.reads.subscribe();
        let ReadCount { started, finished } = *reads.borrow_and_update();
        let wants_newer = {
            let state = self.state.load();
            let current = state.as_ref().and_then(|state| state.current.as_ref());
            match (current, freshness) {
                (Some(_), Freshness::Cached) => return true,
                (Some(current), Freshness::AtLeast(least))
                    if satisfies(current.value.version(), least) =>
                {
                    return true;
                }
                (Some(_), _) => true,
                (None, _) => {
                    // A provider that has just refused would refuse again.
                    let failure = state.as_ref().and_then(|state| state.failure.as_ref());
                    if failure.is_some_and(|failure| {
                        self.uptime().since(failure.uptime) < self.shared.settings.miss_ttl
                    }) {
                        return true;
                    }
                    *freshness != Freshness::Cached
                }
            }
        };
        // A read in progress may predate the change that this caller knows of.
        let wanted = if started > finished && !wants_newer {
            started
        } else {
            started + 1
        };
        if wanted > started {
            self.wanted_reads.fetch_max(wanted, Ordering::AcqRel);
            self.request(Trigger::OnDemand);
        }
        let limit = self.shared.read_timeout + self.shared.settings.force_interval;
        timeout(limit, reads.wait_for(|reads| reads.finished >= wanted))
            .await
            .is_ok()
    }

    /// Returns the current value of `state`, unless the provider said that there is none, the lease
    /// ended, or the value has been stale for longer than `stale_if_error`.
    fn current(&self, state: &State) -> Result<Served, GetError> {
        let Some(current) = &state.current else {
            return Err(GetError::Provider(
                state
                    .failure
                    .as_ref()
                    .map_or_else(|| self.timed_out(), |failure| failure.error.clone()),
            ));
        };
        if current.valid_until.is_some_and(|end| self.uptime() >= end) {
            let expired =
                || BackendError::new(ErrorKind::Unavailable, &self.source, "the lease expired");
            return Err(GetError::Provider(
                state
                    .failure
                    .as_ref()
                    .map_or_else(expired, |failure| failure.error.clone()),
            ));
        }
        Ok(Served::new(
            &current.value,
            Stage::Current,
            self.staleness(state)?,
        ))
    }

    /// Returns for how long reads have been failing; None if the last one succeeded.
    fn staleness(&self, state: &State) -> Result<Option<Duration>, GetError> {
        let Some(failure) = &state.failure else {
            return Ok(None);
        };
        let age = self.uptime().since(failure.since);
        if age > self.cache().stale_if_error {
            return Err(GetError::Provider(failure.error.clone()));
        }
        Ok(Some(age))
    }

    fn previous(&self, state: &State) -> Option<Served> {
        let previous = state
            .previous
            .as_ref()
            .filter(|previous| self.uptime() < previous.until)?;
        Some(Served::new(&previous.value, Stage::Previous, None))
    }

    /// Whether the previous value would still be served if this sidecar had seen the rotation.
    fn has_rotated_recently(&self, current: &Value) -> bool {
        let until = current
            .created_at()
            .and_then(|created| created.checked_add(self.cache().previous_ttl).ok());
        until.is_some_and(|until| self.shared.clock.now() < until)
    }

    fn uptime(&self) -> Uptime {
        self.shared.clock.uptime()
    }

    fn timed_out(&self) -> BackendError {
        let message = format!(
            "no response within {:?} (`refresh.read_timeout`)",
            self.shared.read_timeout
        );
        BackendError::new(ErrorKind::Unavailable, &self.source, message)
    }

    /// Counts a value that was served.
    pub(crate) fn record_served(&self, served: &Served) {
        let metrics = self.metrics.of(self.name(), &self.shared.registry);
        metrics.ok.increment(1);
        served.value.record_use(self.shared.clock.now());
        if served.stale.is_some() {
            metrics.served_stale.increment(1);
        }
    }

    /// Requests a read at the provider without waiting for it.
    pub(crate) fn request(&self, trigger: Trigger) {
        // A full queue means that a read is due anyway.
        let _ = self.requests.try_send(trigger);
    }

    /// Whether a caller waits for a read that has not started. A request can arrive after a read
    /// that satisfies it.
    pub(super) fn is_read_wanted(&self) -> bool {
        self.wanted_reads.load(Ordering::Acquire) > self.reads.borrow().started
    }

    pub(crate) fn status(&self) -> SecretStatus {
        let state = self.state.load();
        state
            .as_deref()
            .map_or_else(SecretStatus::default, |state| {
                SecretStatus::of(state, self.uptime())
            })
    }

    /// Returns the usage of the latest versions, the newest last.
    pub(crate) fn usages(&self) -> Vec<Arc<Usage>> {
        self.usages.all()
    }

    /// Takes ownership of a value from the provider.
    pub(super) fn adopt(&self, fetched: FetchedValue) -> Arc<Value> {
        let usage = self.usages.of(&fetched.version);
        let fingerprint = self.shared.fingerprints.mac(&[&fetched.bytes]);
        let now = self.shared.clock.now();
        Arc::new(Value::new(fetched, now, &fingerprint, usage))
    }

    /// Whether metrics may use its name. Callers could make up any number of names that a wildcard
    /// covers.
    pub(crate) fn has_series(&self) -> bool {
        !self.is_wildcard || self.had_value()
    }

    /// Counts a read at the provider. Names covered by a wildcard that never had a value share one
    /// series.
    pub(super) fn count_fetch(&self, trigger: Trigger, result: &str) {
        let name = if self.has_series() {
            self.name().as_str()
        } else {
            ""
        };
        self.metrics
            .count_fetch(&self.shared.registry, name, trigger, result);
    }

    /// Whether this sidecar has ever had a value of the secret.
    pub(crate) fn had_value(&self) -> bool {
        !self.usages.is_empty()
    }

    /// Whether it has no value and no caller is waiting for one.
    pub(super) fn is_idle(&self) -> bool {
        let ReadCount { started, finished } = *self.reads.borrow();
        started > 0
            && started == finished
            && self
                .state
                .load()
                .as_ref()
                .is_none_or(|state| state.current.is_none())
    }

    /// Drops other versions that have expired, or were read while a former value was current.
    pub(super) fn sweep_other_versions(&self) {
        let state = self.state.load_full();
        let current = state.as_ref().and_then(|state| state.current.as_ref());
        let has_rotated_recently =
            current.is_some_and(|current| self.has_rotated_recently(&current.value));
        self.other_versions.sweep(
            current.map(|current| current.value.version()),
            has_rotated_recently,
        );
    }

    pub(super) fn state(&self) -> Option<Arc<State>> {
        self.state.load_full()
    }

    pub(super) fn publish(&self, state: State) {
        self.state.store(Some(Arc::new(state)));
    }

    /// Stops the task. No one waits for a read any more.
    pub(super) fn end(&self) {
        self.stopping.cancel();
        self.reads.send_modify(|reads| reads.finished = u64::MAX);
    }

    pub(super) fn begin_read(&self) {
        self.reads.send_modify(|reads| reads.started += 1);
    }

    pub(super) fn end_read(&self) {
        self.reads
            .send_modify(|reads| reads.finished = reads.started);
    }

    /// Subscribes to reads: the receiver changes whenever one starts or ends.
    pub(crate) fn reads(&self) -> watch::Receiver<impl Sized + use<>> {
        self.reads.subscribe()
    }
}
