use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    config::{Config, ConfigFile, ConfigWatch, LiveConfig, ReloadError},
    data_plane::Workers,
};
use crate::{
    audit::Recorder,
    http::Tls,
    join::Membership,
    lifecycle::{Readiness, Signal, Signals, Stopping, notify_stopping},
    refresh::{Keyring, Trigger},
    render::Renders,
    secrets::{self, Secrets},
};

/// The audit event that ends a process's records.
const STOPPED: &str = "sidecar.stopped";
/// How long stopping waits for the audit log to write what is queued.
const AUDIT_FLUSH: Duration = Duration::from_secs(2);
/// How long connections may take to close that are cut off.
const CUT_OFF: Duration = Duration::from_millis(500);

/// A running sidecar. Dropping it stops everything at once; [`Bound::stop`] drains first.
pub struct Bound {
    pub(super) socket: PathBuf,
    pub(super) tcp: Option<SocketAddr>,
    pub(super) ops: SocketAddr,
    pub(super) keyrings: Vec<Arc<Keyring>>,
    pub(super) secrets: Arc<Secrets>,
    pub(super) renders: Arc<Renders>,
    pub(super) config: Arc<LiveConfig>,
    pub(super) tls: Vec<Arc<Tls>>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) audit: Recorder,
    pub(super) stopping: Stopping,
    pub(super) serving: JoinHandle<()>,
    /// Closes the connections of applications.
    pub(super) closing: CancellationToken,
    /// `None` if no hub is configured.
    pub(super) membership: Option<Membership>,
    /// `None` if the caller lent the data plane's runtime.
    pub(super) workers: Option<Workers>,
    pub(super) drain: Duration,
}

impl Bound {
    /// The Unix socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The TCP listener's actual address, if there is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// The ops listener's actual address.
    pub fn ops(&self) -> SocketAddr {
        self.ops
    }

    /// The served keyrings.
    pub fn keyrings(&self) -> &[Arc<Keyring>] {
        &self.keyrings
    }

    /// Resolves once every keyring can encrypt and every required secret and file is present.
    pub async fn ready(&self) {
        self.readiness.reached().await;
    }

    /// What the sidecar still waits for, one line each; empty once it is ready.
    pub fn pending(&self) -> Vec<String> {
        self.readiness.pending()
    }

    /// Refreshes every keyring and secret, renders every file again, reloads TLS files and reopens
    /// the audit log.
    pub fn refresh(&self) {
        self.audit.reopen();
        for keyring in &self.keyrings {
            keyring.request(Trigger::Signal);
        }
        self.secrets.request(secrets::Trigger::Signal);
        self.renders.request();
        for tls in &self.tls {
            tls.request_reload();
        }
    }

    /// Takes over what another config may change while the sidecar runs. An invalid one changes
    /// nothing.
    pub(super) fn reload(&self, config: Result<Config, ReloadError>) {
        self.config.reload(config);
    }

    /// Accepts no more connections, then waits for requests in flight until the drain time-out
    /// (`timeouts.drain`) or until `hurry` resolves. Then the hub gets its last report.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        self.stopping.draining.cancel();
        let secrets = Arc::clone(&self.secrets);
        tokio::select! {
            () = self.stop_orderly() => {}
            () = hurry => {
                warn!("stopping immediately");
                secrets.close().await;
            }
        }
        self.audit.close(STOPPED, AUDIT_FLUSH);
        self.audit.finish_forwards(AUDIT_FLUSH).await;
    }

    async fn stop_orderly(&mut self) {
        // Files are no longer written; running commands may finish meanwhile.
        let (drain, serving, renders) = (self.drain, &mut self.serving, Arc::clone(&self.renders));
        let is_drained = tokio::join!(timeout(drain, serving), renders.close())
            .0
            .is_ok();
        if is_drained {
            info!("drained");
        } else {
            warn!(
                drain_timeout = ?self.drain,
                "drain timed out with requests still in flight"
            );
        }
        let secrets = Arc::clone(&self.secrets);
        tokio::join!(secrets.close(), self.leave(is_drained));
    }

    /// Tells the hub that no version is used any more. A request that may still use one is cut off;
    /// while one can't be, the hub has to assume that it did.
    async fn leave(&mut self, is_drained: bool) {
        let Some(membership) = self.membership.take() else {
            return;
        };
        self.closing.cancel();
        if is_drained || timeout(CUT_OFF, &mut self.serving).await.is_ok() {
            membership.end().await;
        }
    }

    /// Serves until SIGTERM or SIGINT, then stops gracefully; a second one stops at once. SIGHUP
    /// refreshes, and reads the config in `file` again. So does a change of that file.
    pub async fn run(self, mut signals: Signals, file: ConfigFile) {
        // Reads in a task: a config or a directory of users that hangs holds up no signal.
        let mut config = ConfigWatch::start(file, self.config.status().sha256);
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Stop => break,
                    Signal::Refresh => {
                        info!("refreshing all keyrings and secrets, and reading the config again");
                        self.refresh();
                        config.request();
                    }
                },
                loaded = config.next() => self.reload(loaded),
            }
        }
        drop(config);
        info!(drain_timeout = ?self.drain, "stopping");
        notify_stopping();
        let second = async { while signals.next().await != Signal::Stop {} };
        self.stop(second).await;
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.stopping.draining.cancel();
        self.stopping.ending.cancel();
        self.audit.close(STOPPED, Duration::ZERO);
    }
}
