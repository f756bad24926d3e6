//! Reads the config file again on request and when it changes. A file that hangs holds up neither
//! the sidecar nor its end.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{Config, ConfigFile, ReloadError};
use crate::{
    clock::{backoff, spread},
    config::LoadError,
    files::{self, BlockingPool, ChangeCallback, WatchGuard},
};

/// How long reading the file, and what it names, may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait before a file that took too long is read again.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// How long the file must be unchanged before it is read: an editor may write it in pieces.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// The longest wait for the file to settle.
const MAX_SETTLE_TIME: Duration = Duration::from_secs(2);

/// Follows a config file until it is dropped.
pub(in crate::app) struct ConfigWatch {
    requested: Arc<Notify>,
    loaded: mpsc::Receiver<Result<Config, ReloadError>>,
    _task: AbortOnDropHandle<()>,
}

impl ConfigWatch {
    /// Follows the file, whose content last had the hash `sha256`. One that isn't regular, such as
    /// a pipe, is read on request only.
    pub(in crate::app) fn start(file: ConfigFile, sha256: String) -> Self {
        let path = file.path().to_owned();
        Self::start_with(path, sha256, move || file.load_again())
    }

    fn start_with(
        path: PathBuf,
        sha256: String,
        load: impl Fn() -> Result<Config, LoadError> + Clone + Send + Sync + 'static,
    ) -> Self {
        let (sender, loaded) = mpsc::channel(1);
        let requested = Arc::new(Notify::new());
        let follower = Follower {
            path,
            load,
            requested: Arc::clone(&requested),
            changed: Arc::new(Notify::new()),
            pool: BlockingPool::new(1),
            watch: None,
            time_outs: 0,
            retry: None,
            last: Content::Known(sha256),
        };
        Self {
            requested,
            loaded,
            _task: AbortOnDropHandle::new(tokio::spawn(follower.run(sender))),
        }
    }

    /// Reads the file again, whether it changed or not.
    pub(in crate::app) fn request(&self) {
        self.requested.notify_one();
    }

    /// Returns what was read, on request or because it changed. Dropping the future loses nothing.
    pub(in crate::app) async fn next(&mut self) -> Result<Config, ReloadError> {
        match self.loaded.recv().await {
            Some(loaded) => loaded,
            // The task ends only with this.
            None => std::future::pending().await,
        }
    }
}

/// What a read found.
#[derive(PartialEq)]
enum Content {
    /// A valid config with this hash.
    Known(String),
    /// Nothing that can be used; the reason.
    Unusable(String),
}

impl Content {
    fn of(read: &Result<Config, ReloadError>) -> Self {
        match read {
            Ok(config) => Self::Known(config.sha256.clone()),
            Err(error) => Self::Unusable(error.to_string()),
        }
    }
}

struct Follower<F> {
    path: PathBuf,
    load: F,
    requested: Arc<Notify>,
    changed: Arc<Notify>,
    pool: BlockingPool,
    watch: Option<WatchGuard>,
    /// How often in a row reading has taken too long.
    time_outs: u32,
    /// When to read the file again because no change of it would be noticed.
    retry: Option<Instant>,
    last: Content,
}

impl<F> Follower<F>
where
    F: Fn() -> Result<Config, LoadError> + Clone + Send + Sync + 'static,
{
    async fn run(mut self, loaded: mpsc::Sender<Result<Config, ReloadError>>) {
        let path = self.path.clone();
        let inspected = self.pool.run(move || is_watchable(&path));
        let is_watchable = timeout(READ_TIMEOUT, inspected).await.unwrap_or(true);
        // At once, because the file may have changed since the sidecar was started from it.
        let mut is_requested = false;
        loop {
            if is_watchable || is_requested {
                let read = self.read(is_watchable).await;
                let content = Content::of(&read);
                let is_news = content != self.last;
                self.last = content;
                if (is_requested || is_news) && loaded.send(read).await.is_err() {
                    return;
                }
            }
            is_requested = self.due().await;
        }
    }

    /// Waits until the file has to be read. Returns whether that was requested.
    async fn due(&self) -> bool {
        let retry = async {
            match self.retry {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.requested.notified() => true,
            () = self.changed.notified() => {
                self.settled().await;
                false
            }
            () = retry => false,
        }
    }

    /// Waits until the file has been unchanged for a moment.
    async fn settled(&self) {
        let end = Instant::now() + MAX_SETTLE_TIME;
        let settle_end = || end.min(Instant::now() + SETTLE_TIME);
        while timeout_at(settle_end(), self.changed.notified())
            .await
            .is_ok()
        {
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// Reads the file, and watches it from then on.
    async fn read(&mut self, is_watchable: bool) -> Result<Config, ReloadError> {
        let changed = Arc::clone(&self.changed);
        let on_change: ChangeCallback = Arc::new(move || changed.notify_one());
        let (path, former, load) = (self.path.clone(), self.watch.take(), self.load.clone());
        let read = self.pool.run(move || {
            // Before reading, so that no change in between is missed.
            let watch = is_watchable.then(|| files::watch(&path, former, &on_change));
            (watch, load())
        });
        match timeout(READ_TIMEOUT, read).await {
            Ok((watch, loaded)) => {
                self.watch = watch;
                (self.time_outs, self.retry) = (0, None);
                Ok(loaded?)
            }
            Err(_) => {
                self.time_outs = self.time_outs.saturating_add(1);
                let wait = backoff(READ_TIMEOUT, self.time_outs, MAX_BACKOFF);
                self.retry = Some(Instant::now() + spread(wait));
                Err(ReloadError::TimedOut {
                    file: self.path.clone(),
                    limit: READ_TIMEOUT,
                })
            }
        }
    }
}

/// Whether the file can be read again when it changes. One that is missing may come back.
fn is_watchable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file()) || !path.exists()
}

#[cfg(test)]
mod tests;
