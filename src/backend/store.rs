use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::model::Location;

/// A place where manifests are kept.
pub trait ManifestStore: Send + Sync {
    /// Its bytes, of which there may be `limit`.
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, StoreError>>;

    /// Puts `new` in the place of `expected` (`None`: of nothing), durably and whole or not at all.
    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The same, and calls `changed` whenever the manifest may have changed since, for as long as the guard lives. Calls may be too
    /// many, never trusted to be complete: whoever watches polls as well, and watches anew with every read, in place of the `former`
    /// guard, because folders and links may be others than they were.
    fn read_watched(
        &self,
        limit: usize,
        former: Option<WatchGuard>,
        changed: Changed,
    ) -> BoxFuture<'_, Watched> {
        // A place that tells nobody is polled alone.
        drop((former, changed));
        Box::pin(async move { (self.read(limit).await, Ok(WatchGuard(Box::new(())))) })
    }
}

/// A manifest's bytes, and the watch on it.
pub type Watched = (Result<Bytes, StoreError>, Result<WatchGuard, StoreError>);

/// What a watch calls.
pub type Changed = Arc<dyn Fn() + Send + Sync>;

/// Ends a watch when it is dropped.
pub struct WatchGuard(
    #[expect(dead_code, reason = "held for its drop alone")] pub(super) Box<dyn Send>,
);

impl WatchGuard {
    /// Returns a guard of a watch that ends when `held` is dropped.
    #[cfg(test)]
    pub(crate) fn new(held: impl Send + 'static) -> Self {
        Self(Box::new(held))
    }
}

/// Why a manifest was not read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error(
        "{0}: there is no manifest; `sidekey keyring init {0} --name NAME --kek URI` makes one"
    )]
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
    /// We may not: no login, or no right.
    #[error("{location}: {reason}")]
    Denied {
        /// Where.
        location: Location,
        /// What is missing.
        reason: String,
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
            Self::Denied { .. } => "source_denied",
            Self::Conflict(_) | Self::Failed { .. } => "source_unavailable",
        }
    }
}
