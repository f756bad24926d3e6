//! Reloading TLS files on file events, by polling, and on SIGHUP. Invalid files change nothing.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Tls,
    material::{Material, TlsFiles, paths},
};
use crate::files::{ChangeCallback, WatchGuard, run_blocking, watch};

/// How often the files are read without an event, for file systems that report none.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// How long the files must be unchanged before they are read: certificate, key and authorities are
/// written one after another.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// The longest wait for the files to settle.
const MAX_SETTLE_TIME: Duration = Duration::from_secs(2);

enum ReloadOutcome {
    Unchanged,
    Changed(Material, [u8; 32]),
    Failed(String, Option<[u8; 32]>),
}

/// The watches of the files, by path.
struct FileWatches(Vec<(PathBuf, Option<WatchGuard>)>);

impl Tls {
    /// Reads the files now.
    pub fn request_reload(&self) {
        self.changed.notify_one();
    }

    /// Reloads the files when they change, until `ending` is cancelled. Open connections are
    /// affected only if their client certificate is no longer accepted: they close.
    pub async fn follow_files(self: Arc<Self>, ending: CancellationToken) {
        let files = paths(&self.settings).into_iter();
        let mut watches = FileWatches(files.map(|path| (path, None)).collect());
        let follow = async {
            loop {
                // Before reading, so that no change is missed in between.
                watches.renew(&self).await;
                self.reload().await;
                // The files are polled when this times out.
                if timeout(POLL_INTERVAL, self.changed.notified())
                    .await
                    .is_ok()
                {
                    self.settled().await;
                }
            }
        };
        ending.run_until_cancelled(follow).await;
    }

    /// Waits until the files have been unchanged for a moment.
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

    async fn reload(&self) {
        let now = self.clock.now();
        let (settings, client_auth) = (self.settings.clone(), self.client_auth);
        let clock = self.clock.clone();
        let (known, has_failed) = {
            let reloads = self.lock_reloads();
            (reloads.fingerprint, reloads.failure.is_some())
        };
        let outcome = run_blocking(move || {
            let files = match TlsFiles::read(&settings) {
                Ok(files) => files,
                Err(problems) => return ReloadOutcome::Failed(problems.join("; "), None),
            };
            let fingerprint = files.fingerprint();
            if known == Some(fingerprint) && !has_failed {
                return ReloadOutcome::Unchanged;
            }
            let failed = |reason| ReloadOutcome::Failed(reason, Some(fingerprint));
            match files.build(&settings, client_auth, &clock) {
                Err(problems) => failed(problems.join("; ")),
                Ok(material) => match material.invalid_at(now) {
                    // A certificate that is not valid yet is retried with every poll.
                    Some(reason) => failed(format!("{}: {reason}", settings.certificate.display())),
                    None => ReloadOutcome::Changed(material, fingerprint),
                },
            }
        });
        self.apply(outcome.await, now);
    }

    fn apply(&self, outcome: ReloadOutcome, now: Timestamp) {
        let mut reloads = self.lock_reloads();
        match outcome {
            ReloadOutcome::Unchanged => {}
            ReloadOutcome::Changed(material, fingerprint) => {
                let expires_at = material.not_after;
                info!(listener = self.listener, %expires_at, "reloaded TLS files");
                self.metrics.activated(&material);
                self.metrics.reloaded();
                self.metrics.set_failing(false);
                self.active.store(Arc::new(material));
                self.reloaded.notify_waiters();
                reloads.fingerprint = Some(fingerprint);
                reloads.loaded_at = now;
                reloads.failure = None;
            }
            ReloadOutcome::Failed(reason, fingerprint) => {
                self.metrics.reload_failed();
                self.metrics.set_failing(true);
                reloads.fingerprint = fingerprint;
                match &reloads.failure {
                    Some((_, known)) if *known == reason => {}
                    _ => {
                        warn!(
                            listener = self.listener,
                            "can't reload TLS files; keeping the active ones: {reason}"
                        );
                        reloads.failure = Some((now, reason));
                    }
                }
            }
        }
    }
}

impl FileWatches {
    async fn renew(&mut self, tls: &Arc<Tls>) {
        for (path, guard) in &mut self.0 {
            let weak = Arc::downgrade(tls);
            let changed: ChangeCallback = Arc::new(move || {
                if let Some(tls) = weak.upgrade() {
                    tls.request_reload();
                }
            });
            let (watched, former) = (path.clone(), guard.take());
            *guard = Some(run_blocking(move || watch(&watched, former, &changed)).await);
        }
    }
}
