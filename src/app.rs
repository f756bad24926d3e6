//! The sidecar, put together: config and clock in, a running sidecar out. Refreshes, ops listener and signals live on the thread
//! that calls (the control thread); requests are served by worker threads of their own.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime,
    task::JoinHandle,
    time::{interval, timeout},
};
use tracing::{info, warn};

use crate::{
    api::{self, BindError, Listeners, Parts},
    audit::{self, AuditError, Recorder},
    backend::{self, SecretError, StoreError},
    clock::Clock,
    config::Settings,
    crypto::lock_report,
    http::{Tls, TlsError},
    keks::{self, Keks},
    lifecycle::{Readiness, Signal, Signals, Stopping, tell_stopping},
    ops::{OpsParts, OpsServer},
    refresh::{self, Keyring, Trigger},
    render::{self, Renders},
    secrets::{self, Secrets},
    telemetry::{Registry, UPKEEP_INTERVAL},
};

/// The last record of a process.
const STOPPED: &str = "sidecar.stopped";
/// How long the end waits for the audit log to take what is left.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// Why a sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The applications' listeners.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The ops listener.
    #[error("can't listen on {address} (`ops.listen`): {error}")]
    Ops {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        error: io::Error,
    },
    /// The files of a listener's TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The worker threads.
    #[error("can't start the worker threads: {0}")]
    Threads(io::Error),
    /// A manifest's location.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A secret's source.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The audit log's key. A log that can't be written stops no sidecar.
    #[error("{0} (`audit.key_file`)")]
    Audit(#[from] AuditError),
    /// The signal handlers.
    #[error("can't listen to signals: {0}")]
    Signals(io::Error),
}

/// A sidecar that runs.
pub struct Bound {
    socket: PathBuf,
    tcp: Option<SocketAddr>,
    ops: SocketAddr,
    keyrings: Vec<Arc<Keyring>>,
    secrets: Arc<Secrets>,
    renders: Arc<Renders>,
    tls: Vec<Arc<Tls>>,
    readiness: Arc<Readiness>,
    audit: Recorder,
    stopping: Stopping,
    serving: JoinHandle<()>,
    workers: Option<runtime::Runtime>,
    drain: Duration,
}

/// Starts a sidecar. The current runtime becomes its control plane.
///
/// # Errors
/// [`StartError`]. A keyring that can't be loaded yet is none: it is tried again, and readiness waits for it.
pub async fn build(settings: &Settings, clock: Clock) -> Result<Bound, StartError> {
    let registry = Arc::new(Registry::default());
    keks::describe_metrics(&registry);
    refresh::describe_metrics(&registry);
    secrets::describe_metrics(&registry);
    render::describe_metrics(&registry);
    api::describe_metrics(&registry);
    let ops_tls = match &settings.ops.tls {
        Some(tls) => Some(Tls::for_operators(tls, &registry, &clock).await?),
        None => None,
    };
    let tcp_tls = match settings
        .listen
        .tcp
        .as_ref()
        .and_then(|tcp| tcp.tls.as_ref())
    {
        Some(tls) => Some(Tls::for_applications(tls, &registry, &clock).await?),
        None => None,
    };
    let address = settings.ops.listen;
    let ops_failed = |error| StartError::Ops { address, error };
    let ops_listener = OpsServer::bind(address).await.map_err(ops_failed)?;
    let ops = ops_listener.local_addr().map_err(ops_failed)?;
    let listeners = Listeners::bind(settings)?;
    let (socket, tcp) = (listeners.socket().to_owned(), listeners.tcp());
    info!(socket = %socket.display(), tcp = tcp.map(tracing::field::display), %ops, version = env!("CARGO_PKG_VERSION"), "listening");

    audit::describe_metrics(&registry);
    let audit = match &settings.audit {
        Some(settings) => Recorder::start(audit::open(settings)?, clock.clone(), &registry)
            .map_err(StartError::Threads)?,
        None => Recorder::default(),
    };
    audit.record("sidecar.started", |event| {
        event
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("ops", ops.to_string())
    });
    let stopping = Stopping::default();
    let backends = backend::configured(&settings.backends);
    let keks = Arc::new(Keks::new(
        Arc::clone(&backends),
        &settings.refresh,
        clock.clone(),
        Arc::clone(&registry),
    ));
    let shared = refresh::Shared {
        settings: settings.refresh.clone(),
        wave: settings.wave.clone(),
        clock: clock.clone(),
        registry: Arc::clone(&registry),
        keks: Arc::clone(&keks),
        audit: audit.clone(),
        backends: Arc::clone(&backends),
        shutdown: stopping.ending.clone(),
    };
    let keyrings: Vec<_> = settings
        .keyrings
        .iter()
        .map(|keyring| refresh::spawn(keyring, &shared))
        .collect::<Result<_, _>>()?;
    let parts = secrets::Parts {
        settings,
        clock: clock.clone(),
        registry: Arc::clone(&registry),
        audit: audit.clone(),
        backends,
    };
    let secrets = Secrets::start(parts)?;
    let parts = render::Parts {
        settings,
        secrets: &secrets,
        clock: clock.clone(),
        registry: Arc::clone(&registry),
        audit: audit.clone(),
    };
    let renders = Arc::new(Renders::start(&parts));
    let readiness = Arc::new(Readiness::new(
        keyrings.clone(),
        &secrets,
        &renders,
        stopping.draining.clone(),
        clock.clone(),
    ));
    let pending = {
        let readiness = Arc::clone(&readiness);
        Box::new(move || readiness.pending())
    };
    let tls: Vec<_> = [&tcp_tls, &ops_tls]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    for tls in &tls {
        tokio::spawn(Arc::clone(tls).follow_files(stopping.ending.clone()));
    }
    let ops_server = OpsServer::new(OpsParts {
        keyrings: keyrings.clone(),
        secrets: Arc::clone(&secrets),
        renders: Arc::clone(&renders),
        keks,
        registry: Arc::clone(&registry),
        audit: audit.clone(),
        clock: clock.clone(),
        pending,
        tls: tls.clone(),
    });
    tokio::spawn(ops_server.run(ops_listener, ops_tls, stopping.ending.clone()));
    tokio::spawn(keep_up(Arc::clone(&registry), stopping.clone()));

    let mut workers = runtime::Builder::new_multi_thread();
    if let Some(count) = settings.runtime.workers {
        workers.worker_threads(count);
    }
    let workers = workers
        .thread_name("sidekey-data")
        .enable_all()
        .build()
        .map_err(StartError::Threads)?;
    let parts = Parts {
        settings,
        keyrings: keyrings.clone(),
        secrets: Arc::clone(&secrets),
        registry,
        audit: audit.clone(),
        clock,
        tls: tcp_tls,
    };
    let serving = listeners.serve(
        parts,
        stopping.draining.clone(),
        stopping.ending.clone(),
        workers.handle(),
    );
    tokio::spawn(announce(Arc::clone(&readiness), stopping.clone()));
    Ok(Bound {
        socket,
        tcp,
        ops,
        keyrings,
        secrets,
        renders,
        tls,
        readiness,
        audit,
        stopping,
        serving,
        workers: Some(workers),
        drain: settings.timeouts.drain,
    })
}

async fn keep_up(registry: Arc<Registry>, stopping: Stopping) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    let forever = async {
        loop {
            ticks.tick().await;
            registry.upkeep();
        }
    };
    stopping.ending.run_until_cancelled(forever).await;
}

async fn announce(readiness: Arc<Readiness>, stopping: Stopping) {
    if stopping
        .draining
        .run_until_cancelled(readiness.reached())
        .await
        .is_none()
    {
        return;
    }
    info!("ready");
    let memory = lock_report();
    if memory.unlocked > 0 {
        let limit = memory
            .limit
            .map_or_else(|| "unlimited".into(), |limit| format!("{limit} bytes"));
        warn!(
            "{} bytes of key memory could be swapped to disk: RLIMIT_MEMLOCK is {limit}. Set it to at least {} bytes \
             (`ulimit -l`, LimitMEMLOCK= in a systemd unit) or add the capability IPC_LOCK",
            memory.unlocked,
            // Twice what is needed now, for the versions to come.
            (memory.locked + memory.unlocked) * 2
        );
    }
}

impl Bound {
    /// The Unix socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The TCP listener's real address.
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// The ops listener's real address.
    pub fn ops(&self) -> SocketAddr {
        self.ops
    }

    /// The keyrings that are served.
    pub fn keyrings(&self) -> &[Arc<Keyring>] {
        &self.keyrings
    }

    /// Resolves when every keyring can encrypt and every required secret is there.
    pub async fn ready(&self) {
        self.readiness.reached().await;
    }

    /// Refreshes every keyring and secret, renders every file anew, looks at the files of TLS, and opens the audit log anew.
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

    /// Stops: no new connections, then up to `drain_timeout` for requests in flight, or until `hurry` resolves.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        self.stopping.draining.cancel();
        // No file is written any more; commands that run may come to their end meanwhile.
        let (drain, serving, renders) = (self.drain, &mut self.serving, Arc::clone(&self.renders));
        let orderly = async { tokio::join!(timeout(drain, serving), renders.close()).0 };
        tokio::select! {
            result = orderly => match result {
                Ok(_) => info!("drained"),
                Err(_) => warn!(drain_timeout = ?self.drain, "requests were still in flight when the drain time was over"),
            },
            () = hurry => warn!("stopping at once"),
        }
        self.secrets.close().await;
        self.audit.close(STOPPED, LAST_RECORDS);
    }

    /// Serves until SIGTERM or SIGINT, then stops; a second one ends at once. SIGHUP refreshes.
    pub async fn run(self, mut signals: Signals) {
        while signals.next().await == Signal::Refresh {
            info!("refreshing every keyring and secret");
            self.refresh();
        }
        info!(drain_timeout = ?self.drain, "stopping");
        tell_stopping();
        let second = async { while signals.next().await != Signal::Stop {} };
        self.stop(second).await;
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.stopping.draining.cancel();
        self.stopping.ending.cancel();
        self.audit.close(STOPPED, Duration::ZERO);
        if let Some(workers) = self.workers.take() {
            // Waiting for them would block the control thread, on which this may run.
            workers.shutdown_background();
        }
    }
}
