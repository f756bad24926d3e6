use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::{mode::Mode, watches::Watches};
use crate::{
    backend::{BackendError, ErrorKind, ManifestStore, WatchedRead},
    files::{ChangeCallback, WatchGuard},
    model::Location,
};

/// A manifest's location in memory. Like a file, it notifies its watchers of every change.
pub(crate) struct FakeStore {
    location: Location,
    content: Mutex<Option<Bytes>>,
    watches: Watches,
    is_muted: AtomicBool,
    mode: Mode<()>,
    reads: AtomicUsize,
    time: Mutex<Option<Timestamp>>,
}

impl FakeStore {
    pub(super) fn new(location: &Location) -> Self {
        Self {
            location: location.clone(),
            content: Mutex::default(),
            watches: Watches::default(),
            is_muted: AtomicBool::new(false),
            mode: Mode::default(),
            reads: AtomicUsize::new(0),
            time: Mutex::default(),
        }
    }

    /// Returns the manifest, if there is one.
    pub(crate) fn get(&self) -> Option<Bytes> {
        self.content().clone()
    }

    /// Replaces the manifest.
    pub(crate) fn set(&self, bytes: impl Into<Bytes>) {
        *self.content() = Some(bytes.into());
        self.changed();
    }

    /// Removes the manifest.
    pub(crate) fn remove(&self) {
        *self.content() = None;
        self.changed();
    }

    /// Sets the clock that responses state.
    pub(crate) fn set_time(&self, time: Timestamp) {
        *self.time.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }

    /// Stops notifying watchers: from now on, only a poll finds changes.
    pub(crate) fn mute(&self) {
        self.is_muted.store(true, Ordering::Relaxed);
    }

    fn changed(&self) {
        if !self.is_muted.load(Ordering::Relaxed) {
            self.notify();
        }
    }

    /// Notifies all watchers, whether or not anything changed.
    pub(crate) fn notify(&self) {
        self.watches.notify();
    }

    /// Fails every call from now on.
    pub(crate) fn fail(&self) {
        self.mode.fail(());
    }

    /// Hangs every call from now on.
    pub(crate) fn hang(&self) {
        self.mode.hang();
    }

    /// Answers calls again, including those that hang.
    pub(crate) fn work(&self) {
        self.mode.work();
    }

    /// Returns how many times it was read.
    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    async fn answer(&self) -> Result<(), BackendError> {
        self.mode.answer().await.map_err(|()| {
            let message = "the test makes it fail";
            BackendError::new(ErrorKind::Unavailable, &self.location, message)
        })
    }

    fn content(&self) -> MutexGuard<'_, Option<Bytes>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ManifestStore for FakeStore {
    fn server_time(&self) -> Option<Timestamp> {
        *self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, BackendError>> {
        Box::pin(async move {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.answer().await?;
            match self.get() {
                None => Err(BackendError::no_manifest(&self.location)),
                Some(bytes) if bytes.len() > limit => {
                    Err(BackendError::manifest_too_large(&self.location, limit))
                }
                Some(bytes) => Ok(bytes),
            }
        })
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            self.answer().await?;
            if self.get().as_deref() != expected.as_deref() {
                return Err(BackendError::conflict(&self.location));
            }
            self.set(new);
            Ok(())
        })
    }

    fn read_watched(
        &self,
        limit: usize,
        former: Option<WatchGuard>,
        changed: ChangeCallback,
    ) -> BoxFuture<'_, WatchedRead> {
        drop(former);
        let guard = self.watches.add(changed);
        Box::pin(async move { (self.read(limit).await, Some(guard)) })
    }
}
