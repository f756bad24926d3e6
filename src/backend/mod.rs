//! The outside systems that hold KEKs and manifests: one room for each, behind the traits that it serves.

mod file;
#[cfg(feature = "local")]
pub mod local;

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::sync::Semaphore;

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
    /// to be complete: whoever watches polls as well, and watches anew before every read, in place of the `former` guard, because
    /// folders and links may be others than they were.
    fn watch(&self, former: Option<WatchGuard>, changed: Changed) -> Pending<'_, Result<WatchGuard, StoreError>>;
}

/// What a watch calls.
pub type Changed = Arc<dyn Fn() + Send + Sync>;

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

/// File work apart from the tasks, one job at a time for each path: a disk that hangs holds one thread, however often it is asked.
#[derive(Debug, Clone)]
struct Lane(Arc<Semaphore>);

/// How many jobs whose callers still wait run at once: few, so that a start with many keyrings makes no crowd.
static CROWD: Semaphore = Semaphore::const_new(16);

impl Lane {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Waits for the job before it and does `work`. Whoever stops waiting gives up his place in the crowd, not the lane.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (Ok(turn), Ok(_place)) = (Arc::clone(&self.0).acquire_owned().await, CROWD.acquire().await) else {
            unreachable!("nobody closes these semaphores")
        };
        let work = move || {
            let _turn = turn;
            work()
        };
        aside(work).await
    }
}

/// Does work that may take long apart from the tasks.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and drops this future next.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_path_that_hangs_holds_one_thread_and_stops_no_other_path() {
        let (release, hold) = mpsc::channel::<()>();
        let hung = Lane::new();
        let (begun, begins) = mpsc::channel();
        let stuck = {
            let hung = hung.clone();
            tokio::spawn(async move {
                hung.run(move || {
                    begun.send(()).expect("test");
                    hold.recv()
                })
                .await
            })
        };
        tokio::task::spawn_blocking(move || begins.recv()).await.expect("joined").expect("it runs");
        for _ in 0..100 {
            // More often than there are threads or places in the crowd.
            timeout(Duration::from_millis(1), hung.run(|| ())).await.expect_err("its lane is taken");
        }
        assert_eq!(Lane::new().run(|| 7).await, 7);
        release.send(()).expect("waits");
        stuck.await.expect("joined").expect("released");
        hung.run(|| ()).await;
    }
}
