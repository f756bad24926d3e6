//! The handle of a secret: what the request path, the ops listener and the refresh task share.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Shared, Trigger, Usage, Value, meters::SecretMeters, others::Others, value::State};
use crate::{
    backend::{SecretError, SecretFault, SecretProvider, Which},
    config,
    model::SecretName,
};

/// How many versions' use is remembered.
const USAGES: usize = 32;
/// How many requests may wait for the task. One that finds no room is served by the attempt that is due anyway.
const QUEUE: usize = 16;

/// A secret that is kept fresh. Reading its current value takes no lock.
pub struct Secret {
    pub(super) settings: config::Secret,
    pub(super) shared: Arc<Shared>,
    pub(super) provider: Arc<dyn SecretProvider>,
    state: ArcSwapOption<State>,
    attempts: watch::Sender<Attempts>,
    requests: mpsc::Sender<Trigger>,
    pub(super) others: Others,
    usages: Mutex<VecDeque<Arc<Usage>>>,
    /// Whether it stands under a `*`.
    pub(super) is_wild: bool,
    /// Ends its task.
    pub(super) ending: CancellationToken,
    pub(super) meters: SecretMeters,
}

/// The attempts at reading the current value, by number.
#[derive(Clone, Copy, Default)]
struct Attempts {
    begun: u64,
    ended: u64,
}

/// What a caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Which value.
    pub which: Which,
    /// How fresh it has to be; for the current one.
    pub demand: Demand,
}

/// How fresh a value has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// As it is kept.
    Kept,
    /// As its provider says now.
    Fresh,
    /// Of this version or, where versions are numbers, a later one.
    AtLeast(String),
}

/// A value that is handed out.
pub struct Served {
    /// The value.
    pub value: Arc<Value>,
    /// What it is.
    pub stage: Stage,
    /// For how long its provider has not confirmed it, though it was asked.
    pub stale: Option<Duration>,
}

impl Served {
    /// A value that isn't the current one.
    pub(super) fn other(value: &Arc<Value>, stage: Stage, stale: Option<Duration>) -> Self {
        Self {
            value: Arc::clone(value),
            stage,
            stale,
        }
    }

    /// Whether this is what most ask for, whose answer is kept.
    pub fn is_usual(&self) -> bool {
        self.stage == Stage::Current && self.stale.is_none()
    }
}

/// What a value is to its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The one to be used.
    Current,
    /// The one before.
    Previous,
    /// The one that is being introduced.
    Pending,
    /// Any other.
    Other,
}

impl Stage {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
            Self::Pending => "pending",
            Self::Other => "other",
        }
    }
}

/// Why nothing is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The provider's word, or its silence.
    Provider(SecretError),
    /// There is a value, and it is older than was asked for.
    TooOld {
        /// The version that there is.
        version: String,
    },
    /// The value before the current one isn't handed out any more.
    Over,
}

/// How a secret is doing.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The current value.
    pub current: Option<InForce>,
    /// The version before, while it is still handed out.
    pub previous: Option<String>,
    /// The last attempt's failure, with its time; `None` once one succeeds.
    pub failure: Option<(Timestamp, SecretError)>,
    /// How long the lease still runs.
    pub lease_remaining: Option<Duration>,
}

/// The current value, without it.
#[derive(Debug, Clone)]
pub struct InForce {
    /// Its version.
    pub version: String,
    /// When it was made, if its provider says so.
    pub created_at: Option<Timestamp>,
    /// When it was made or, if its provider doesn't tell, first seen.
    pub since: Timestamp,
    /// When its provider last gave or confirmed it.
    pub confirmed_at: Timestamp,
}

impl Secret {
    pub(super) fn new(
        settings: config::Secret,
        provider: Arc<dyn SecretProvider>,
        shared: &Arc<Shared>,
        is_wild: bool,
    ) -> (Arc<Self>, mpsc::Receiver<Trigger>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let secret = Self {
            meters: SecretMeters::default(),
            settings,
            shared: Arc::clone(shared),
            provider,
            state: ArcSwapOption::empty(),
            attempts: watch::Sender::default(),
            requests,
            others: Others::default(),
            usages: Mutex::default(),
            is_wild,
            ending: shared.shutdown.child_token(),
        };
        (Arc::new(secret), receiver)
    }

    /// Its name.
    pub fn name(&self) -> &SecretName {
        &self.settings.name
    }

    /// Where it comes from and how it is kept.
    pub fn settings(&self) -> &config::Secret {
        &self.settings
    }

    /// What a caller asked for.
    ///
    /// # Errors
    /// [`Refused`]
    pub async fn get(self: &Arc<Self>, ask: &Ask) -> Result<Served, Refused> {
        // The usual case first: the current value, as it is kept.
        if ask.which == Which::Current
            && ask.demand == Demand::Kept
            && let Some(state) = self.state.load().as_ref()
            && state.current.is_some()
        {
            return self.current(state);
        }
        Box::pin(self.get_slowly(ask)).await
    }

    async fn get_slowly(self: &Arc<Self>, ask: &Ask) -> Result<Served, Refused> {
        let is_answered = self.refreshed(&ask.demand).await;
        let Some(state) = self.state.load_full() else {
            return Err(Refused::Provider(self.silent()));
        };
        match &ask.which {
            Which::Current => {
                let mut served = self.current(&state)?;
                if !is_answered && served.stale.is_none() {
                    // Its provider was to be asked first, and hasn't answered yet.
                    let confirmed_at = state.current.as_ref().map(|current| current.confirmed_at);
                    let age = confirmed_at.map(|at| self.shared.clock.now().duration_since(at));
                    served.stale = Some(
                        age.and_then(|age| Duration::try_from(age).ok())
                            .unwrap_or_default(),
                    );
                }
                match &ask.demand {
                    Demand::AtLeast(least) if !satisfies(served.value.version(), least) => {
                        Err(match &state.failure {
                            Some(failed) => Refused::Provider(failed.error.clone()),
                            None if !is_answered => Refused::Provider(self.silent()),
                            None => Refused::TooOld {
                                version: served.value.version().to_owned(),
                            },
                        })
                    }
                    _ => Ok(served),
                }
            }
            Which::Previous => {
                // An authentic answer that there is no current value is one for the others, too.
                let current = self.current(&state)?;
                match self.previous(&state) {
                    Some(previous) => Ok(previous),
                    None if self.has_rotated_lately(&current.value) => {
                        self.others
                            .get(self, &ask.which, &current, Stage::Previous)
                            .await
                    }
                    None => Err(Refused::Over),
                }
            }
            Which::Pending => {
                self.others
                    .get(self, &ask.which, &self.current(&state)?, Stage::Pending)
                    .await
            }
            Which::Version(version) => {
                let current = self.current(&state)?;
                if current.value.version() == version {
                    return Ok(current);
                }
                match self
                    .previous(&state)
                    .filter(|previous| previous.value.version() == version)
                {
                    Some(previous) => Ok(previous),
                    None => {
                        self.others
                            .get(self, &ask.which, &current, Stage::Other)
                            .await
                    }
                }
            }
        }
    }

    /// Waits for an attempt, if what is held won't do; whether there was one, or none was needed.
    async fn refreshed(&self, demand: &Demand) -> bool {
        let wants_newer = {
            let state = self.state.load();
            let held = state.as_ref().and_then(|state| state.current.as_ref());
            match (held, demand) {
                (Some(_), Demand::Kept) => return true,
                (Some(current), Demand::AtLeast(least))
                    if satisfies(current.value.version(), least) =>
                {
                    return true;
                }
                (Some(_), _) => true,
                (None, _) => {
                    // What a provider just refused it refuses again.
                    let failed = state.as_ref().and_then(|state| state.failure.as_ref());
                    if failed.is_some_and(|failed| {
                        failed.instant.elapsed() < self.shared.settings.miss_ttl
                    }) {
                        return true;
                    }
                    *demand != Demand::Kept
                }
            }
        };
        let mut attempts = self.attempts.subscribe();
        let Attempts { begun, ended } = *attempts.borrow_and_update();
        // An attempt that has begun already may have read before the change that this caller knows of.
        let wanted = if begun > ended && !wants_newer {
            begun
        } else {
            begun + 1
        };
        if wanted > begun {
            // A full queue means that an attempt is due anyway.
            let _ = self.requests.try_send(Trigger::OnDemand);
        }
        let patience = self.shared.read_timeout + self.shared.settings.force_interval;
        timeout(
            patience,
            attempts.wait_for(|attempts| attempts.ended >= wanted),
        )
        .await
        .is_ok()
    }

    /// The current value of a state, unless its provider said that there is none, or was silent for too long.
    fn current(&self, state: &State) -> Result<Served, Refused> {
        let Some(current) = &state.current else {
            return Err(Refused::Provider(
                state
                    .failure
                    .as_ref()
                    .map_or_else(|| self.silent(), |failed| failed.error.clone()),
            ));
        };
        if current.valid_until.is_some_and(|end| Instant::now() >= end) {
            let ended = || {
                SecretError::new(
                    SecretFault::Unavailable,
                    format!("{}: the lease ended", self.settings.source),
                )
            };
            return Err(Refused::Provider(
                state
                    .failure
                    .as_ref()
                    .map_or_else(ended, |failed| failed.error.clone()),
            ));
        }
        let stale = match &state.failure {
            None => None,
            Some(failed) => {
                let age = failed.since.elapsed();
                if age > self.settings.keeping.stale_if_error {
                    return Err(Refused::Provider(failed.error.clone()));
                }
                Some(age)
            }
        };
        Ok(Served {
            value: Arc::clone(&current.value),
            stage: Stage::Current,
            stale,
        })
    }

    fn previous(&self, state: &State) -> Option<Served> {
        let previous = state
            .previous
            .as_ref()
            .filter(|previous| Instant::now() < previous.until)?;
        Some(Served::other(&previous.value, Stage::Previous, None))
    }

    /// Whether the value before the current one would still be handed out, had this sidecar seen the rotation.
    fn has_rotated_lately(&self, current: &Value) -> bool {
        let until = current
            .created_at()
            .and_then(|made| made.checked_add(self.settings.keeping.previous_ttl).ok());
        until.is_some_and(|until| self.shared.clock.now() < until)
    }

    fn silent(&self) -> SecretError {
        let message = format!(
            "{}: no answer within {:?}",
            self.settings.source, self.shared.read_timeout
        );
        SecretError::new(SecretFault::Unavailable, message)
    }

    /// Notes that a value was handed out.
    pub fn handed_out(&self, served: &Served) {
        let meters = self.meters.of(self.name(), &self.shared.registry);
        meters.ok.increment(1);
        served.value.used(self.shared.clock.now());
        if served.stale.is_some() {
            meters.served_stale.increment(1);
        }
    }

    /// Asks for a read at the provider and doesn't wait for it.
    pub fn request(&self, trigger: Trigger) {
        // A full queue means that an attempt is due anyway.
        let _ = self.requests.try_send(trigger);
    }

    /// How it is doing.
    pub fn standing(&self) -> Standing {
        let state = self.state.load();
        let state = state.as_deref();
        let current = state
            .and_then(|state| state.current.as_ref())
            .map(|current| InForce {
                version: current.value.version().to_owned(),
                created_at: current.value.created_at(),
                since: current.since,
                confirmed_at: current.confirmed_at,
            });
        let previous = state
            .and_then(|state| state.previous.as_ref())
            .filter(|previous| Instant::now() < previous.until);
        let lease_end = state
            .and_then(|state| state.current.as_ref())
            .and_then(|current| current.valid_until);
        Standing {
            current,
            previous: previous.map(|previous| previous.value.version().to_owned()),
            failure: state
                .and_then(|state| state.failure.as_ref())
                .map(|failed| (failed.at, failed.error.clone())),
            lease_remaining: lease_end.map(|end| end.saturating_duration_since(Instant::now())),
        }
    }

    /// What is known of the use of its versions, the newest last.
    pub fn usages(&self) -> Vec<Arc<Usage>> {
        self.lock_usages().iter().cloned().collect()
    }

    fn lock_usages(&self) -> MutexGuard<'_, VecDeque<Arc<Usage>>> {
        self.usages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a value that was fetched; the count of a version that was known goes on.
    pub(super) fn adopt(&self, fetched: crate::backend::Fetched) -> Arc<Value> {
        let mut usages = self.lock_usages();
        let known = usages
            .iter()
            .find(|usage| usage.version() == fetched.version)
            .cloned();
        let is_new = known.is_none();
        let fingerprint = self.shared.fingerprints.name(&fetched.bytes);
        let value = Arc::new(Value::new(
            fetched,
            self.shared.clock.now(),
            &fingerprint,
            known,
        ));
        if is_new {
            // Never that of a value that may still be handed out.
            let oldest = usages
                .iter()
                .position(|usage| Arc::strong_count(usage) == 1);
            if usages.len() >= USAGES
                && let Some(oldest) = oldest
            {
                usages.remove(oldest);
            }
            usages.push_back(Arc::clone(value.usage()));
        }
        value
    }

    /// Whether metrics may name it: callers could make up names under a `*` without end.
    pub fn has_series(&self) -> bool {
        !self.is_wild || self.had_value()
    }

    /// Counts a read at the provider. A name under a `*` that never had a value counts among all such.
    pub(super) fn fetched(&self, trigger: Trigger, result: &str) {
        let name = if self.has_series() {
            self.name().as_str()
        } else {
            ""
        };
        self.meters
            .fetched(&self.shared.registry, name, trigger, result);
    }

    /// Whether it ever had a value here.
    pub fn had_value(&self) -> bool {
        !self.lock_usages().is_empty()
    }

    /// Whether it leads to nothing and nobody waits for it.
    pub(super) fn is_idle(&self) -> bool {
        let Attempts { begun, ended } = *self.attempts.borrow();
        begun > 0
            && begun == ended
            && self
                .state
                .load()
                .as_ref()
                .is_none_or(|state| state.current.is_none())
    }

    /// Forgets values that stood beside another current one, or whose time is over.
    pub(super) fn sweep_others(&self) {
        let state = self.state.load_full();
        let current = state.as_ref().and_then(|state| state.current.as_ref());
        let has_rotated_lately =
            current.is_some_and(|current| self.has_rotated_lately(&current.value));
        self.others.sweep(
            current.map(|current| current.value.version()),
            has_rotated_lately,
        );
    }

    pub(super) fn state(&self) -> Option<Arc<State>> {
        self.state.load_full()
    }

    pub(super) fn publish(&self, state: State) {
        self.state.store(Some(Arc::new(state)));
    }

    pub(super) fn begin_attempt(&self) {
        self.attempts.send_modify(|attempts| attempts.begun += 1);
    }

    pub(super) fn end_attempt(&self) {
        self.attempts
            .send_modify(|attempts| attempts.ended = attempts.begun);
    }

    /// Tells of every attempt that ended.
    pub fn attempts(&self) -> watch::Receiver<impl Sized + use<>> {
        self.attempts.subscribe()
    }
}

/// A version's number, if it is one; a `~` tells another value of the same number apart.
pub(super) fn number(version: &str) -> Option<u64> {
    version.trim_end_matches('~').parse().ok()
}

/// Whether a version will do for who wants `least`: the same or, of numbers, a greater one.
fn satisfies(version: &str, least: &str) -> bool {
    version == least
        || number(version)
            .zip(number(least))
            .is_some_and(|(version, least)| version >= least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_an_order_and_ids_have_none() {
        assert!(
            satisfies("7", "7")
                && satisfies("2~", "2")
                && satisfies("10", "9")
                && !satisfies("9", "10")
        );
        assert!(satisfies("b", "b") && !satisfies("b", "a"));
    }
}
