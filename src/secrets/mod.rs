//! Keeping secrets fresh: triggers (start, file, signal, push, interval, lease, a caller's demand) lead to one task per secret, which
//! asks its provider one thing at a time. A read that fails changes nothing, for as long as the secret's settings allow.
//!
//! Values pass through here from a provider to the requests that ask for them, in memory that is zeroized.

mod field;
mod meters;
mod others;
mod secret;
mod task;
#[cfg(test)]
mod tests;
mod value;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, broadcast},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::Recorder,
    backend::{Backends, Late, SecretError, SecretFault},
    clock::Clock,
    config,
    crypto::NamingKey,
    model::{SecretName, SecretSource},
    telemetry::Registry,
};

pub use crate::{backend::Which, schedule::Trigger};
pub use field::{Field, NoField};
pub use meters::{REQUESTS, render_versions};
pub use secret::{Ask, Demand, InForce, Refused, Secret, Served, Stage, Standing};
pub use value::{Labels, Usage, Value};

/// How many changes a listener may be behind before he is told how everything stands instead.
const CHANGES: usize = 256;
/// How many reads of one kind of source run at once: at a start with many secrets, no provider is asked for all of them in one instant,
/// and one that hangs holds up none of another kind.
const READS: usize = 64;
/// The same for names that never had a value.
const NEW_READS: usize = 8;
/// How long the end waits for leases to be given back.
const FAREWELL: Duration = Duration::from_secs(5);

/// A secret has another current value than before, or the one before it isn't handed out any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The secret.
    pub secret: SecretName,
    /// The version; none once the provider has deleted it.
    pub version: Option<String>,
    /// The version before, if it is still handed out.
    pub previous: Option<String>,
}

/// What the secrets of one process share.
pub(super) struct Shared {
    settings: config::Secrets,
    read_timeout: Duration,
    max_backoff: Duration,
    clock: Clock,
    registry: Arc<Registry>,
    audit: Recorder,
    backends: Arc<dyn Backends>,
    /// The control plane, where providers are asked.
    control: Handle,
    reads: Mutex<HashMap<(&'static str, bool), Arc<Semaphore>>>,
    /// Tells values apart without telling anything about them.
    fingerprints: NamingKey,
    changes: broadcast::Sender<Change>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Shared {
    /// New names under a `*` have turns of their own: callers make them up, and others don't wait for them.
    fn reads(&self, source: &SecretSource, is_new: bool) -> Arc<Semaphore> {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let turns = if is_new { NEW_READS } else { READS };
        Arc::clone(
            reads
                .entry((source.scheme(), is_new))
                .or_insert_with(|| Arc::new(Semaphore::new(turns))),
        )
    }
}

/// The secrets of one process.
pub struct Secrets {
    shared: Arc<Shared>,
    named: BTreeMap<String, Arc<Secret>>,
    /// Those under a `*` that somebody asked for.
    wild: ArcSwap<BTreeMap<String, Arc<Secret>>>,
    /// Held while one is added, so that one name has one task.
    adding: Mutex<()>,
}

/// What secrets are kept with.
pub struct Parts<'s> {
    /// The config.
    pub settings: &'s config::Settings,
    /// The time.
    pub clock: Clock,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// Takes note of what comes in force.
    pub audit: Recorder,
    /// The outside systems.
    pub backends: Arc<dyn Backends>,
}

impl Secrets {
    /// Starts to keep the secrets of a config, on the current runtime.
    ///
    /// # Errors
    /// This build has no backend for a source, or its settings are wrong. A secret that can't be read yet is none.
    pub fn start(parts: Parts<'_>) -> Result<Arc<Self>, SecretError> {
        let Parts {
            settings,
            clock,
            registry,
            audit,
            backends,
        } = parts;
        let shared = Arc::new(Shared {
            settings: settings.secrets.clone(),
            read_timeout: settings.refresh.read_timeout,
            max_backoff: settings.refresh.max_backoff,
            clock,
            registry,
            audit,
            backends,
            control: Handle::current(),
            reads: Mutex::default(),
            fingerprints: NamingKey::draw()
                .map_err(|error| SecretError::new(SecretFault::Unavailable, error.to_string()))?,
            changes: broadcast::Sender::new(CHANGES),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        });
        let start = |settings: &config::Secret| {
            Ok((
                settings.name.to_string(),
                shared.spawn(settings.clone(), false)?,
            ))
        };
        let named = settings
            .secrets
            .named
            .iter()
            .map(start)
            .collect::<Result<_, SecretError>>()?;
        Ok(Arc::new(Self {
            shared,
            named,
            wild: ArcSwap::default(),
            adding: Mutex::default(),
        }))
    }

    /// The secret of a name that is kept already.
    pub fn kept(&self, name: &str) -> Option<Arc<Secret>> {
        if let Some(secret) = self.named.get(name) {
            return Some(Arc::clone(secret));
        }
        self.wild.load().get(name).map(Arc::clone)
    }

    /// The secret of a name that is configured, or stands under a `*` and is allowed there, which is kept from now on. It
    /// may have no value. None either while there are as many under a `*` as there may be.
    pub fn find(&self, name: &str) -> Option<Arc<Secret>> {
        self.kept(name)
            .or_else(|| self.add(self.shared.settings.find(name)?))
    }

    /// Whether a name is configured, or stands under a `*` and is allowed there.
    pub fn knows(&self, name: &str) -> bool {
        self.shared.settings.find(name).is_some()
    }

    fn add(&self, settings: config::Secret) -> Option<Arc<Secret>> {
        let _turn = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wild = BTreeMap::clone(&self.wild.load());
        if let Some(secret) = wild.get(settings.name.as_str()) {
            return Some(Arc::clone(secret));
        }
        if wild.len() >= self.shared.settings.wild_names {
            // Names that lead to nothing make room for others.
            let (dropped, kept) = wild.into_iter().partition(|(_, secret)| secret.is_idle());
            wild = kept;
            for secret in BTreeMap::into_values(dropped) {
                secret.ending.cancel();
            }
        }
        let name = settings.name.clone();
        if wild.len() >= self.shared.settings.wild_names {
            tracing::warn!(secret = %name, "not served: as many secrets under a `*` as `secrets.wild_names` allows are held already");
            return None;
        }
        // The config has tried the source's form already.
        let secret = self.shared.spawn(settings, true).ok()?;
        wild.insert(name.to_string(), Arc::clone(&secret));
        self.wild.store(Arc::new(wild));
        Some(secret)
    }

    /// All secrets, and those under a `*` that somebody asked for.
    pub fn all(&self) -> Vec<Arc<Secret>> {
        self.named
            .values()
            .cloned()
            .chain(self.wild.load().values().cloned())
            .collect()
    }

    /// Reads every secret anew.
    pub fn request(&self, trigger: Trigger) {
        for secret in self.all() {
            secret.request(trigger);
        }
    }

    /// Tells of changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// Ends, and gives back the leases whose settings ask for it.
    pub async fn close(&self) {
        self.shared.shutdown.cancel();
        self.shared.tasks.close();
        if timeout(FAREWELL, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("not every lease could be given back in time; they end by themselves");
        }
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.shared.shutdown.cancel();
    }
}

impl Shared {
    fn spawn(
        self: &Arc<Self>,
        settings: config::Secret,
        is_wild: bool,
    ) -> Result<Arc<Secret>, SecretError> {
        let provider = self.backends.secret(&settings.source)?;
        let (secret, requests) = Secret::new(settings, provider, self, is_wild);
        self.tasks.spawn_on(
            task::Refresher::new(Arc::clone(&secret), requests).run(),
            &self.control,
        );
        Ok(secret)
    }
}

/// Describes the metrics of every secret.
pub fn describe_metrics(registry: &Registry) {
    meters::describe(registry);
}

/// There was no answer in time: what the provider said until then is why.
fn late(source: &SecretSource, limit: Duration, late: Late) -> SecretError {
    let (fault, said) = match late.heard {
        Some((fault, said)) => (SecretFault::from(fault), format!("; until then: {said}")),
        None => (SecretFault::Unavailable, String::new()),
    };
    SecretError::new(fault, format!("{source}: no answer within {limit:?}{said}"))
}
