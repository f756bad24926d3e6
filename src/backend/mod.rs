//! The outside systems that hold KEKs and manifests: one room for each, behind the traits that it serves.

mod file;
#[cfg(feature = "local")]
pub mod local;

use std::{future::Future, pin::Pin, sync::Arc};

use crate::{
    config::{KekUri, Location, Malformed},
    crypto::{Dek, WrapContext},
};

pub use file::FileStore;

/// A future that a backend gives.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A key-encryption key. Whoever calls sets the time limit.
pub trait Kek: Send + Sync {
    /// Encrypts a data key, bound to its keyring and version.
    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> Pending<'a, Result<Vec<u8>, KekError>>;

    /// Decrypts a wrap of this KEK.
    fn unwrap<'a>(&'a self, wrap: &'a [u8], context: WrapContext) -> Pending<'a, Result<Dek, KekError>>;
}

/// Why a KEK did not wrap or unwrap: what failed, on which KEK, what to do. Never says anything of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KekError(pub String);

/// The KEK that a URI names.
///
/// # Errors
/// This build has no such backend, or the URI's rest is wrong. Whether the KEK answers shows in use.
pub fn kek(uri: &KekUri) -> Result<Arc<dyn Kek>, KekError> {
    match uri.scheme() {
        #[cfg(feature = "local")]
        "local" => Ok(Arc::new(local::LocalKek::new(uri.rest()))),
        scheme => {
            let known = if cfg!(feature = "local") { "local" } else { "none" };
            Err(KekError(format!("{uri}: this build has no backend `{scheme}`; it has {known}")))
        }
    }
}

/// The same KEK, named so that the name means it from every folder.
///
/// # Errors
/// The working folder is gone.
pub fn anchored(uri: &KekUri) -> Result<KekUri, KekError> {
    if uri.scheme() != "local" {
        return Ok(uri.clone());
    }
    let failed = |reason: String| KekError(format!("{uri}: {reason}"));
    let path = std::path::absolute(uri.rest()).map_err(|error| failed(error.to_string()))?;
    format!("local:{}", path.display()).parse().map_err(|error: Malformed| failed(error.to_string()))
}

/// A place where manifests are kept.
pub trait ManifestStore: Send + Sync {
    /// Its bytes, of which there may be `limit`.
    fn read(&self, limit: usize) -> Pending<'_, Result<Vec<u8>, StoreError>>;

    /// Puts `new` in the place of `expected` (`None`: of nothing), durably and whole or not at all.
    fn replace(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Pending<'_, Result<(), StoreError>>;

    /// Calls `changed` whenever the manifest may have changed, for as long as the guard lives. Calls may be too many, never trusted
    /// to be complete: whoever watches polls as well.
    ///
    /// # Errors
    /// The place can't be watched now.
    fn watch(&self, changed: Box<dyn Fn() + Send + Sync>) -> Result<WatchGuard, StoreError>;
}

/// Ends a watch when it is dropped.
pub struct WatchGuard(#[expect(dead_code, reason = "held for its drop alone")] Box<dyn Send>);

/// Why a manifest was not read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("{0}: there is no manifest; `sidekey keyring init {0} --name NAME --kek URI` makes one")]
    Missing(Location),
    /// There is one already, or another one than was expected.
    #[error("{0}: somebody else changed the manifest meanwhile")]
    Conflict(Location),
    /// Longer than allowed.
    #[error("{location}: the manifest is longer than {limit} bytes (`refresh.manifest_bytes`)")]
    TooLarge {
        /// Where.
        location: Location,
        /// The limit.
        limit: usize,
    },
    /// The system beneath failed.
    #[error("{location}: {reason}")]
    Failed {
        /// Where.
        location: Location,
        /// What it said.
        reason: String,
    },
}

impl StoreError {
    /// A short stable name, for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "source_missing",
            Self::TooLarge { .. } => "malformed",
            Self::Conflict(_) | Self::Failed { .. } => "source_unavailable",
        }
    }
}

/// The store that a location names.
pub fn store(location: &Location) -> Arc<dyn ManifestStore> {
    match location {
        Location::File(path) => Arc::new(FileStore::new(path)),
    }
}

/// Runs file work apart from the tasks, so that a disk that hangs stops nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and drops this future next.
            Err(_) => std::future::pending().await,
        },
    }
}
