//! Keeps secrets fresh.
//!
//! Each secret has one task. Triggers (start, a reported change, SIGHUP, a push, the poll interval,
//! a lease, a caller) make it read the provider, one read at a time. A read that fails changes
//! nothing for as long as the secret's settings allow.
//!
//! Values pass through here from a provider to the requests for them, in memory that is zeroized.

mod expiry;
mod field;
mod lease;
mod metrics;
mod other_versions;
mod publish;
mod request;
mod rollback;
mod secret;
mod set;
mod state;
mod status;
mod task;
#[cfg(test)]
mod tests;
mod usage;
mod value;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    backend::{BackendError, Backends, ErrorKind, SecretProvider, TimedOut},
    clock::Clock,
    config,
    crypto::MacKey,
    model::{SecretName, SecretSource},
    telemetry::Registry,
};

pub use self::{
    field::{Field, NoField},
    request::{Freshness, GetError, SecretRequest, Served, Stage},
    secret::Secret,
    status::{CurrentVersion, SecretStatus},
    usage::Usage,
    value::{Labels, Value},
};
pub use crate::{backend::VersionSelector, schedule::Trigger};

pub(crate) use self::metrics::{REQUESTS, describe as describe_metrics, render_versions};
pub(crate) use self::set::PreparedSecrets;
use self::set::Set;

/// How many changes a subscriber can lag behind before it has to look at the current state instead.
const CHANGES: usize = 256;
/// How many reads run at once per kind of source. It spreads the load of a start with many secrets,
/// and a provider that hangs does not delay those of another kind.
const CONCURRENT_READS: usize = 64;
/// Like `CONCURRENT_READS`, but for names that never had a value.
const CONCURRENT_NEW_READS: usize = 8;
/// How long the shutdown waits for leases to be revoked.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A secret has a new current value, or its previous value is no longer served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretChange {
    pub(crate) secret: SecretName,
    /// The current version; None if the provider has deleted the secret.
    pub(crate) version: Option<String>,
    /// The previous version, if it is still served.
    pub(crate) previous: Option<String>,
}

/// What all secrets of a process share.
pub(super) struct Shared {
    settings: config::Secrets,
    read_timeout: Duration,
    max_backoff: Duration,
    clock: Clock,
    registry: Arc<Registry>,
    audit: Recorder,
    backends: Arc<dyn Backends>,
    /// The control plane's runtime, which runs the tasks and all reads.
    control: Handle,
    /// By the scheme of the source, and whether the name never had a value.
    reads: Mutex<HashMap<(&'static str, bool), Arc<Semaphore>>>,
    /// Distinguishes values without revealing anything about them.
    fingerprints: MacKey,
    changes: broadcast::Sender<SecretChange>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Shared {
    /// Returns the semaphore that limits reads of `source`. New names covered by a wildcard have
    /// one of their own: callers can make them up, and must not delay other secrets.
    fn reads(&self, source: &SecretSource, is_new: bool) -> Arc<Semaphore> {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let permits = if is_new {
            CONCURRENT_NEW_READS
        } else {
            CONCURRENT_READS
        };
        Arc::clone(
            reads
                .entry((source.scheme(), is_new))
                .or_insert_with(|| Arc::new(Semaphore::new(permits))),
        )
    }

    fn spawn(
        self: &Arc<Self>,
        settings: config::Secret,
        is_wildcard: bool,
    ) -> Result<Arc<Secret>, BackendError> {
        let provider = self.backends.secret(&settings.source)?;
        Ok(self.spawn_after(None, provider, settings, is_wildcard))
    }

    /// Like [`Shared::spawn`], for a secret that serves what `former` did until it has a value.
    fn spawn_after(
        self: &Arc<Self>,
        former: Option<&Arc<Secret>>,
        provider: Arc<dyn SecretProvider>,
        settings: config::Secret,
        is_wildcard: bool,
    ) -> Arc<Secret> {
        let (secret, requests) = Secret::new(settings, provider, self, is_wildcard);
        if let Some(former) = former {
            secret.inherit(former);
        }
        self.tasks.spawn_on(
            task::Refresher::new(Arc::clone(&secret), requests).run(),
            &self.control,
        );
        secret
    }
}

/// The secrets of a process.
pub struct Secrets {
    shared: Arc<Shared>,
    set: ArcSwap<Set>,
    /// Locked while the set is changed, so that each name has one task.
    changing: Mutex<()>,
}

/// What [`Secrets`] are started with.
pub struct Parts<'s> {
    pub(crate) settings: &'s config::Settings,
    pub(crate) clock: Clock,
    pub(crate) registry: Arc<Registry>,
    pub(crate) audit: Recorder,
    pub(crate) backends: Arc<dyn Backends>,
}

impl Secrets {
    /// Spawns the tasks of all configured secrets on the current runtime.
    ///
    /// # Errors
    /// This build has no backend for a source, or a backend's settings are invalid. A secret that
    /// can't be read yet is not an error.
    pub(crate) fn start(parts: Parts<'_>) -> Result<Arc<Self>, BackendError> {
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
            fingerprints: MacKey::generate().map_err(|error| {
                let kind = ErrorKind::Unavailable;
                BackendError::new(kind, "secrets", error.to_string())
            })?,
            changes: broadcast::Sender::new(CHANGES),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        });
        let start = |settings: &config::Secret| {
            let secret = shared.spawn(settings.clone(), false)?;
            Ok((settings.name.to_string(), secret))
        };
        let named = settings
            .secrets
            .named
            .iter()
            .map(start)
            .collect::<Result<_, BackendError>>()?;
        Ok(Arc::new(Self {
            set: ArcSwap::from_pointee(Set {
                settings: Arc::new(settings.secrets.clone()),
                named: Arc::new(named),
                wildcard: Default::default(),
            }),
            shared,
            changing: Mutex::default(),
        }))
    }

    /// Does everything about another config's secrets that can fail. Changes nothing.
    ///
    /// # Errors
    /// As for [`Secrets::start`].
    pub(crate) fn prepare(
        &self,
        settings: &config::Secrets,
    ) -> Result<PreparedSecrets, BackendError> {
        self.set.load().prepare(settings, &self.shared)
    }

    /// Serves another config's secrets: one that is new is read, one that is gone is dropped, and
    /// one with another source serves its former value until it was read.
    pub(crate) fn install(&self, prepared: PreparedSecrets) {
        let _guard = self.lock();
        let former = self.set.load_full();
        let next = former.succeeded_by(prepared, &self.shared);
        self.set.store(Arc::new(next.clone()));
        former.retire_for(&next);
    }

    /// Returns a secret that has a task already.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Secret>> {
        self.set.load().get(name).map(Arc::clone)
    }

    /// Returns a secret that is configured by name or covered by a wildcard. From now on it is kept
    /// fresh; it may have no value.
    ///
    /// Returns None if the name is not configured, or if `secrets.wild_names` is exhausted.
    pub(crate) fn get_or_add(&self, name: &str) -> Option<Arc<Secret>> {
        self.get(name).or_else(|| self.add(name))
    }

    /// Whether a name is configured, or covered by a wildcard.
    pub(crate) fn is_configured(&self, name: &str) -> bool {
        self.set.load().settings.find(name).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: &str) -> Option<Arc<Secret>> {
        let _guard = self.lock();
        let mut set = Set::clone(&self.set.load());
        if let Some(secret) = set.get(name) {
            return Some(Arc::clone(secret));
        }
        let settings = set.settings.find(name)?;
        let mut secrets = std::mem::take(&mut set.wildcard);
        if secrets.len() >= self.shared.settings.wild_names {
            // Names without a value make room for others.
            let (idle, kept) = secrets
                .into_iter()
                .partition(|(_, secret)| secret.is_idle());
            secrets = kept;
            let idle: BTreeMap<String, Arc<Secret>> = idle;
            for secret in idle.into_values() {
                secret.end();
            }
        }
        let name = settings.name.clone();
        if secrets.len() >= self.shared.settings.wild_names {
            tracing::warn!(
                secret = %name,
                "secret not served: the limit of secrets covered by wildcards is reached \
                 (`secrets.wild_names`)"
            );
            return None;
        }
        // The config check has already created a provider for this kind of source.
        let secret = self.shared.spawn(settings, true).ok()?;
        secrets.insert(name.to_string(), Arc::clone(&secret));
        set.wildcard = secrets;
        self.set.store(Arc::new(set));
        Some(secret)
    }

    /// Returns the configured secrets, and those covered by a wildcard that were requested.
    pub(crate) fn all(&self) -> Vec<Arc<Secret>> {
        self.set.load().all().cloned().collect()
    }

    /// Requests a read of every secret.
    pub(crate) fn request(&self, trigger: Trigger) {
        for secret in self.all() {
            secret.request(trigger);
        }
    }

    /// Subscribes to changes from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<SecretChange> {
        self.shared.changes.subscribe()
    }

    /// Stops the tasks, and revokes the leases of secrets that are configured to do so.
    pub(crate) async fn close(&self) {
        self.shared.shutdown.cancel();
        self.shared.tasks.close();
        if timeout(REVOKE_TIMEOUT, self.shared.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                "not all leases were revoked within {REVOKE_TIMEOUT:?}; the rest ends when it \
                 expires"
            );
        }
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.shared.shutdown.cancel();
    }
}

/// The provider did not respond within `limit`. Its last error, if any, says why.
fn timed_out(source: &SecretSource, timed_out: TimedOut) -> BackendError {
    timed_out.on(source, Some("refresh.read_timeout"))
}
