//! The watch on a source, between two reads.

use crate::files::WatchGuard;

/// Holds the watch on a source and remembers whether its failure has been logged.
///
/// The watch is armed again with every read, because folders and symbolic links may have been
/// replaced since.
#[derive(Default)]
pub(crate) struct WatchKeeper {
    guard: Option<WatchGuard>,
    has_reported: bool,
}

impl WatchKeeper {
    /// Takes the guard of the former watch, which the backend drops once the new one is armed.
    pub(crate) fn take(&mut self) -> Option<WatchGuard> {
        self.guard.take()
    }

    /// Keeps the guard of the new watch. Returns the error if watching failed and that has not
    /// been reported since it last worked.
    pub(crate) fn renew<E>(&mut self, armed: Result<Option<WatchGuard>, E>) -> Option<E> {
        match armed {
            Ok(guard) => {
                self.guard = guard;
                self.has_reported = false;
                None
            }
            Err(error) => {
                let is_known = std::mem::replace(&mut self.has_reported, true);
                (!is_known).then_some(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::backend::{BackendError, ManifestStore};

    struct UnwatchedStore;

    impl ManifestStore for UnwatchedStore {
        fn read(&self, _: usize) -> BoxFuture<'_, Result<Bytes, BackendError>> {
            Box::pin(async { Ok(Bytes::new()) })
        }

        fn replace(
            &self,
            _: Option<Vec<u8>>,
            _: Vec<u8>,
        ) -> BoxFuture<'_, Result<(), BackendError>> {
            Box::pin(async { Ok(()) })
        }
    }

    async fn armed() -> Result<Option<WatchGuard>, BackendError> {
        let (_, watch) = UnwatchedStore.read_watched(0, None, Arc::new(|| {})).await;
        watch.map(Some)
    }

    #[tokio::test]
    async fn the_guard_is_held_until_the_next_read_takes_it() {
        let mut keeper = WatchKeeper::default();
        assert!(keeper.take().is_none());
        assert!(keeper.renew(armed().await).is_none());
        assert!(keeper.take().is_some() && keeper.take().is_none());
    }

    #[tokio::test]
    async fn a_failure_is_reported_once_until_watching_works_again() {
        let mut keeper = WatchKeeper::default();
        assert_eq!(keeper.renew(Err("no inotify")), Some("no inotify"));
        assert_eq!(keeper.renew(Err("no inotify")), None);
        assert!(keeper.renew(armed().await).is_none());
        assert_eq!(keeper.renew(Err("no inotify")), Some("no inotify"));
    }
}
