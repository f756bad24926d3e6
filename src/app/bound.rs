use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{task::JoinHandle, time::timeout};
use tracing::{info, warn};

use super::data_plane::Workers;
use crate::{
    audit::Recorder,
    config::{LoadError, Settings},
    files::run_blocking,
    http::Tls,
    lifecycle::{Readiness, Signal, Signals, Stopping, notify_stopping},
    refresh::{Keyring, Trigger},
    render::Renders,
    secrets::{self, Secrets},
};

/// The audit event that ends a process's records.
const STOPPED: &str = "sidecar.stopped";
/// How long stopping waits for the audit log to write what is queued.
const AUDIT_FLUSH: Duration = Duration::from_secs(2);

/// A running sidecar. Dropping it stops everything at once; [`Bound::stop`] drains first.
pub struct Bound {
    pub(super) socket: PathBuf,
    pub(super) tcp: Option<SocketAddr>,
    pub(super) ops: SocketAddr,
    pub(super) keyrings: Vec<Arc<Keyring>>,
    pub(super) secrets: Arc<Secrets>,
    pub(super) renders: Arc<Renders>,
    pub(super) tls: Vec<Arc<Tls>>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) audit: Recorder,
    pub(super) stopping: Stopping,
    pub(super) serving: JoinHandle<()>,
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

    /// Takes over what the config may change while a sidecar runs: the losses that each keyring
    /// accepts. Everything else needs a restart. An invalid config changes nothing.
    pub fn reload(&self, config: Result<&Settings, &LoadError>) {
        let settings = match config {
            Ok(settings) => settings,
            Err(error) => {
                warn!("can't reload the config; keeping the old one: {error}");
                return;
            }
        };
        for keyring in &self.keyrings {
            let mut configured = settings.keyrings.iter();
            let Some(settings) = configured.find(|found| found.name == *keyring.name()) else {
                continue;
            };
            if keyring.accept_losses(&settings.accept_lost) {
                info!(
                    keyring = %keyring.name(), versions = ?settings.accept_lost,
                    "the config accepts the loss of other versions"
                );
                keyring.request(Trigger::Signal);
            }
        }
    }

    /// Accepts no more connections, then waits for requests in flight until the drain time-out
    /// (`timeouts.drain`) or until `hurry` resolves.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        self.stopping.draining.cancel();
        // Files are no longer written; running commands may finish meanwhile.
        let (drain, serving, renders) = (self.drain, &mut self.serving, Arc::clone(&self.renders));
        let orderly = async { tokio::join!(timeout(drain, serving), renders.close()).0 };
        tokio::select! {
            result = orderly => match result {
                Ok(_) => info!("drained"),
                Err(_) => warn!(
                    drain_timeout = ?self.drain,
                    "drain timed out with requests still in flight"
                ),
            },
            () = hurry => warn!("stopping immediately"),
        }
        self.secrets.close().await;
        self.audit.close(STOPPED, AUDIT_FLUSH);
    }

    /// Serves until SIGTERM or SIGINT, then stops gracefully; a second one stops at once. SIGHUP
    /// refreshes, and reads the config again with `load`.
    pub async fn run(
        self,
        mut signals: Signals,
        load: impl Fn() -> Result<Settings, LoadError> + Clone + Send + 'static,
    ) {
        // In a task: a config or a directory of users that hangs holds up no signal.
        let mut loading: Option<JoinHandle<Result<Settings, LoadError>>> = None;
        loop {
            let loaded = async {
                match &mut loading {
                    Some(loading) => loading.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Stop => break,
                    Signal::Refresh => {
                        info!(
                            "refreshing all keyrings and secrets; of the config, only accept_lost \
                             is read again"
                        );
                        self.refresh();
                        loading.get_or_insert_with(|| tokio::spawn(run_blocking(load.clone())));
                    }
                },
                loaded = loaded => {
                    loading = None;
                    if let Ok(settings) = loaded {
                        self.reload(settings.as_ref());
                    }
                }
            }
        }
        if let Some(loading) = loading {
            loading.abort();
        }
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
