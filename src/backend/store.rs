//! What a system that stores manifests can do.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::BackendError;
use crate::files::{ChangeCallback, WatchGuard};

/// One manifest's location. Callers set the time limit.
pub trait ManifestStore: Send + Sync {
    /// Reads the manifest, which may have at most `limit` bytes.
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, BackendError>>;

    /// Compare-and-swap: replaces `expected` (`None`: no manifest) with `new`, atomically and
    /// durably. Fails with [`ErrorKind::Conflict`](super::ErrorKind::Conflict) if the location
    /// contains something else.
    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), BackendError>>;

    /// Returns the size of the largest manifest that the location stores, in bytes, if it has such
    /// a limit.
    fn capacity(&self) -> Option<usize> {
        None
    }

    /// Returns the time on the location's own clock, as its last response stated, if it has one
    /// that is independent of this machine's.
    fn server_time(&self) -> Option<Timestamp> {
        None
    }

    /// Like `read`, but also watches the manifest: `on_change` is called when it may have changed,
    /// for as long as the guard lives.
    ///
    /// Calls may be spurious or missing, so callers poll as well. Each read replaces the `former`
    /// guard, because folders and links on the path may have changed. `None` means that the
    /// location has no notifications.
    fn read_watched(
        &self,
        limit: usize,
        former: Option<WatchGuard>,
        on_change: ChangeCallback,
    ) -> BoxFuture<'_, WatchedRead> {
        // By default a store has no notifications and is only polled.
        drop((former, on_change));
        Box::pin(async move { (self.read(limit).await, None) })
    }
}

/// The manifest's bytes, and the watch on it.
pub type WatchedRead = (Result<Bytes, BackendError>, Option<WatchGuard>);
