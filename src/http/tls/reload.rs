//! How TLS follows its files: by their events, by looking now and then, and on SIGHUP. What is bad changes nothing.

use std::{
    mem,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Tls,
    material::{Files, Material, paths},
};
use crate::backend::{Changed, FileStore, WatchGuard, aside};

/// How often the files are read without an event, for file systems that give none.
const POLL: Duration = Duration::from_secs(60);
/// For how long the files have to be left alone before they are read: certificate, key and authorities are written one after the other.
const SETTLE: Duration = Duration::from_millis(100);
/// How long they are waited for at most.
const PATIENCE: Duration = Duration::from_secs(2);

/// What reading the files came to.
enum Outcome {
    /// They are those in force.
    Unchanged,
    Changed(Material, [u8; 32]),
    Failed(String, Option<[u8; 32]>),
}

/// The watches of the files, by path.
struct Watches {
    each: Vec<(PathBuf, Option<WatchGuard>)>,
    has_warned: bool,
}

impl Tls {
    /// Looks at the files now.
    pub fn request_reload(&self) {
        self.changed.notify_one();
    }

    /// Follows the files until `ending` is cancelled. Connections keep what they were opened under.
    pub async fn follow(self: Arc<Self>, ending: CancellationToken) {
        let mut watches = Watches {
            each: paths(&self.settings)
                .into_iter()
                .map(|path| (path, None))
                .collect(),
            has_warned: false,
        };
        let forever = async {
            loop {
                // Before reading, so that no change falls between the two.
                watches.renew(&self).await;
                self.reload().await;
                // Its elapsing is the poll.
                if timeout(POLL, self.changed.notified()).await.is_ok() {
                    self.settled().await;
                }
            }
        };
        ending.run_until_cancelled(forever).await;
    }

    /// Waits until nobody has touched the files for a moment.
    async fn settled(&self) {
        let end = Instant::now() + PATIENCE;
        while timeout_at(end.min(Instant::now() + SETTLE), self.changed.notified())
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
        let (settings, demand) = (self.settings.clone(), self.demand);
        let (known, has_failed) = {
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            (standing.fingerprint, standing.failure.is_some())
        };
        let outcome = aside(move || {
            let files = match Files::read(&settings) {
                Ok(files) => files,
                Err(wrong) => return Outcome::Failed(wrong.join("; "), None),
            };
            let fingerprint = files.fingerprint();
            if known == Some(fingerprint) && !has_failed {
                return Outcome::Unchanged;
            }
            match files.build(&settings, demand) {
                Err(wrong) => Outcome::Failed(wrong.join("; "), Some(fingerprint)),
                Ok(material) => match material.unusable(now) {
                    // One that isn't valid yet comes into force when it is: by then it is looked at again.
                    Some(why) => Outcome::Failed(
                        format!("{}: {why}", settings.certificate.display()),
                        Some(fingerprint),
                    ),
                    None => Outcome::Changed(material, fingerprint),
                },
            }
        });
        self.take_up(outcome.await, now);
    }

    fn take_up(&self, outcome: Outcome, now: Timestamp) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Outcome::Unchanged => {}
            Outcome::Changed(material, fingerprint) => {
                info!(listener = self.listener, expires_at = %material.not_after, "new TLS files are in force");
                self.meters.in_force(&material);
                self.meters.reloaded();
                self.meters.failing(false);
                self.in_force.store(Arc::new(material));
                standing.fingerprint = Some(fingerprint);
                standing.loaded_at = now;
                standing.failure = None;
            }
            Outcome::Failed(reason, fingerprint) => {
                self.meters.reload_failed();
                self.meters.failing(true);
                standing.fingerprint = fingerprint;
                let (at, known) = standing
                    .failure
                    .take()
                    .map_or((now, None), |(at, reason)| (at, Some(reason)));
                if known.as_ref() == Some(&reason) {
                    standing.failure = Some((at, reason));
                } else {
                    warn!(
                        listener = self.listener,
                        "the TLS files can't be taken up, so the former ones stay in force: {reason}"
                    );
                    standing.failure = Some((now, reason));
                }
            }
        }
    }
}

impl Watches {
    async fn renew(&mut self, tls: &Arc<Tls>) {
        for (path, guard) in &mut self.each {
            let weak = Arc::downgrade(tls);
            let changed: Changed = Arc::new(move || {
                if let Some(tls) = weak.upgrade() {
                    tls.request_reload();
                }
            });
            match FileStore::new(path.as_path())
                .watch(guard.take(), changed)
                .await
            {
                Ok(watch) => *guard = Some(watch),
                Err(error) if !mem::replace(&mut self.has_warned, true) => {
                    warn!(listener = tls.listener, %error, poll = ?POLL, "changes of TLS files are found by looking alone");
                }
                Err(_) => {}
            }
        }
    }
}
