//! Keeps keyrings fresh.
//!
//! Each keyring has one task. Triggers (start, a reported change, SIGHUP, a push, the poll
//! interval, a retry, an unknown version) make it refresh, one refresh at a time: read the
//! manifest, validate all of it, unwrap what is new, swap the key table. A refresh that fails
//! changes nothing (I3).
//!
//! Plaintext data keys pass through here between unwrap and derivation. Only derived keys are kept,
//! in the locked memory of a [`Snapshot`].

mod audit_observer;
mod cache;
mod candidate;
mod failure;
mod failures;
mod keyring;
mod metrics;
mod report;
mod snapshot;
mod task;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod trust;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    audit::Recorder,
    backend::{BackendError, Backends},
    clock::Clock,
    config,
    crypto::InstanceId,
    keks::Keks,
    model::Wave,
    telemetry::Registry,
};

pub use crate::schedule::Trigger;
pub use failure::RefreshFailure;
pub use failures::FailureCounts;
pub use keyring::{Keyring, RefreshStatus};
pub use snapshot::{Snapshot, Uses, VersionUsage};

/// What all keyrings of a process share.
#[derive(Clone)]
pub struct Shared {
    /// Intervals and limits.
    pub(crate) settings: config::Refresh,
    /// The wave of keyrings that don't set one.
    pub(crate) wave: Wave,
    pub(crate) clock: Clock,
    pub(crate) registry: Arc<Registry>,
    pub(crate) backends: Arc<dyn Backends>,
    pub(crate) keks: Arc<Keks>,
    pub(crate) audit: Recorder,
    /// Names this process: it decides when a new version is unwrapped (`spread`).
    pub(crate) instance: InstanceId,
    /// Stops the tasks when it is cancelled.
    pub(crate) shutdown: CancellationToken,
}

/// Spawns the refresh task of a keyring on the current runtime.
///
/// Requests are served from the returned handle. It has no snapshot until the first refresh
/// succeeds.
///
/// # Errors
/// This build has no backend for the keyring's location, or the backend's settings are invalid.
pub fn spawn(settings: &config::Keyring, shared: &Shared) -> Result<Arc<Keyring>, BackendError> {
    let store = shared.backends.store(&settings.location)?;
    let (keyring, requests) = Keyring::new(settings, shared);
    tokio::spawn(
        task::Refresher::new(
            Arc::clone(&keyring),
            store,
            settings,
            shared.clone(),
            requests,
        )
        .run(),
    );
    Ok(keyring)
}

/// Describes the metrics of keyrings.
pub fn describe_metrics(registry: &Registry) {
    metrics::describe(registry);
}
