//! Keeping keyrings fresh: triggers (start, file, signal, poll, retry, unknown version) lead to one task per keyring, which refreshes
//! one at a time: read, validate whole, open what is new, swap. A refresh that fails changes nothing (I3).
//!
//! Plain data keys pass through here between unwrap and derivation; what stays is in [`Snapshot`]'s locked memory.

mod failure;
mod keyring;
mod meters;
mod recall;
mod snapshot;
mod task;
#[cfg(test)]
mod tests;
mod witness;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    audit::Recorder,
    backend::{Backends, StoreError},
    clock::Clock,
    config,
    keks::Keks,
    model::Wave,
    telemetry::Registry,
};

pub use failure::Failure;
pub use keyring::{Keyring, Standing};
pub use snapshot::{Snapshot, VersionMeter};

/// What made a refresh happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The process started.
    Start,
    /// The process started, and there is a copy of the manifest.
    Copy,
    /// The place where the manifest is reported a change.
    File,
    /// SIGHUP.
    Signal,
    /// Somebody central says that there is a newer generation.
    Push,
    /// The interval was over.
    Poll,
    /// The refresh before had failed or left versions unopened.
    Retry,
    /// A ciphertext named a version that the table lacks (I2).
    UnknownVersion,
}

impl Trigger {
    const ALL: [Self; 8] = [
        Self::Start,
        Self::Copy,
        Self::File,
        Self::Signal,
        Self::Push,
        Self::Poll,
        Self::Retry,
        Self::UnknownVersion,
    ];

    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Copy => "copy",
            Self::File => "file",
            Self::Signal => "signal",
            Self::Push => "push",
            Self::Poll => "poll",
            Self::Retry => "retry",
            Self::UnknownVersion => "unknown_version",
        }
    }
}

/// What the keyrings of one process share.
#[derive(Clone)]
pub struct Shared {
    /// Intervals and limits.
    pub settings: config::Refresh,
    /// The wave of keyrings that name none.
    pub wave: Wave,
    /// The time.
    pub clock: Clock,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// The outside systems.
    pub backends: Arc<dyn Backends>,
    /// The KEKs' clients.
    pub keks: Arc<Keks>,
    /// Takes note of what comes in force.
    pub audit: Recorder,
    /// Ends the tasks.
    pub shutdown: CancellationToken,
}

/// Starts to keep a keyring fresh, on the current runtime, and gives the handle that requests are served from.
///
/// # Errors
/// This build has no backend for the keyring's location, or its settings are wrong.
pub fn spawn(settings: &config::Keyring, shared: &Shared) -> Result<Arc<Keyring>, StoreError> {
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

/// Describes the metrics of every keyring.
pub fn describe_metrics(registry: &Registry) {
    meters::describe(registry);
    VersionMeter::describe(registry);
}
