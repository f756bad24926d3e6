//! Assembles a sidecar: settings, backends and a clock in, a running sidecar out.
//!
//! A sidecar runs on two runtimes. Refreshes, renders and the ops listener run on the caller's
//! runtime (the control plane); applications are served by worker threads of their own (the data
//! plane), so that a busy application delays no refresh.

mod bound;
mod clock_watch;
mod config;
mod data_plane;
mod rehearsal;
mod serving;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, runtime::Handle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    clock_watch::ClockWatch,
    config::{LiveConfig, LiveParts},
    data_plane::Workers,
    serving::{Serving, serve},
};
use crate::{
    api::{self, BindError, Listeners},
    audit::{self, AuditError, Recorder},
    backend::{BackendError, Backends},
    clock::Clock,
    config::Settings,
    crypto::{InstanceId, RandomnessUnavailable, lock_report},
    http::{Tls, TlsError},
    join::{self, Hub, HubError},
    keks::{self, Keks},
    lifecycle::{Readiness, Stopping},
    ops::OpsServer,
    policy::ActivePolicy,
    refresh::{self, Keyring},
    render::{self, Renders},
    secrets::{self, Secrets},
    telemetry::{Registry, keep_up},
};

pub use self::{
    bound::Bound,
    config::{Config, ConfigFile},
    rehearsal::rehearse,
};

/// An error that keeps a sidecar from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An application listener can't be set up.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The ops listener can't be bound.
    #[error("can't listen on {address} (`ops.listen`): {error}")]
    Ops {
        /// The configured address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// A listener's TLS files can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The files with which the sidecar joins its hub can't be used.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The worker threads can't be started.
    #[error("can't start worker threads: {0}")]
    Threads(io::Error),
    /// A manifest's location or a secret's source can't be used.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The audit log's key can't be read. An audit log that can't be written is no error here.
    #[error("{0} (`audit.key_file`)")]
    Audit(#[from] AuditError),
    /// The process can't draw its identity.
    #[error(transparent)]
    Randomness(#[from] RandomnessUnavailable),
}

/// Starts a sidecar. The current runtime becomes its control plane.
///
/// `backends` are the outside systems and `clock` tells the time; the process passes
/// [`backend::configured`](crate::backend::configured) and [`Clock::system`].
///
/// # Errors
/// Fails if a listener, a file of TLS, the audit key or a backend's settings can't be used. A
/// keyring or secret that can't be read yet is not an error: it is retried, and readiness waits
/// for it.
pub async fn build(
    config: &Config,
    backends: Arc<dyn Backends>,
    clock: Clock,
) -> Result<Bound, StartError> {
    let workers = Workers::start(&config.settings.runtime).map_err(StartError::Threads)?;
    let mut bound = build_on(workers.handle(), config, backends, clock).await?;
    bound.workers = Some(workers);
    Ok(bound)
}

/// Like [`build`], but with `data_plane` as the runtime that serves applications. Tests pass their
/// own runtime, whose time they control.
///
/// # Errors
/// See [`build`].
async fn build_on(
    data_plane: &Handle,
    config: &Config,
    backends: Arc<dyn Backends>,
    clock: Clock,
) -> Result<Bound, StartError> {
    let settings = &config.settings;
    let registry = registry();
    let tls = ListenerTls::load(settings, &registry, &clock).await?;
    let hub = load_hub(settings, &registry, &clock).await?;
    let sockets = Sockets::bind(settings).await?;
    let audit = open_audit(settings, &clock, &registry)?;
    audit.record("sidecar.started", |event| {
        event
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("ops", sockets.ops_address.to_string())
    });
    let context = Context {
        settings,
        clock,
        registry,
        audit,
        backends,
        stopping: Stopping::default(),
    };
    let state = State::start(&context, config)?;
    let (socket, tcp) = (
        sockets.applications.socket().to_owned(),
        sockets.applications.tcp(),
    );
    let ops = sockets.ops_address;
    let Serving {
        applications,
        closing,
        membership,
    } = serve(&context, &state, &tls, hub, sockets, data_plane)?;
    let ending = context.stopping.ending.clone();
    let upkeep = keep_up(Arc::clone(&context.registry));
    tokio::spawn(ending.run_until_cancelled_owned(upkeep));
    let clock_watch = ClockWatch {
        clock: context.clock.clone(),
        registry: Arc::clone(&context.registry),
        keyrings: state.keyrings.clone(),
        secrets: Arc::clone(&state.secrets),
        renders: Arc::clone(&state.renders),
    };
    tokio::spawn(clock_watch.run(context.stopping.ending.clone()));
    tokio::spawn(announce_readiness(
        Arc::clone(&state.readiness),
        context.stopping.draining.clone(),
    ));
    Ok(Bound {
        socket,
        tcp,
        ops,
        keyrings: state.keyrings,
        secrets: state.secrets,
        renders: state.renders,
        config: state.config,
        tls: tls.all(),
        readiness: state.readiness,
        audit: context.audit,
        stopping: context.stopping,
        serving: applications,
        closing,
        membership,
        workers: None,
        drain: settings.timeouts.drain,
    })
}

/// What the parts of one sidecar share.
struct Context<'s> {
    settings: &'s Settings,
    clock: Clock,
    registry: Arc<Registry>,
    audit: Recorder,
    backends: Arc<dyn Backends>,
    stopping: Stopping,
}

fn registry() -> Arc<Registry> {
    let registry = Arc::new(Registry::default());
    keks::describe_metrics(&registry);
    refresh::describe_metrics(&registry);
    secrets::describe_metrics(&registry);
    render::describe_metrics(&registry);
    api::describe_metrics(&registry);
    audit::describe_metrics(&registry);
    clock_watch::describe_metrics(&registry);
    config::describe_metrics(&registry);
    join::describe_metrics(&registry);
    registry
}

async fn load_hub(
    settings: &Settings,
    registry: &Registry,
    clock: &Clock,
) -> Result<Option<Hub>, HubError> {
    match &settings.hub {
        Some(hub) => Hub::load(hub, registry, clock).await.map(Some),
        None => Ok(None),
    }
}

/// TLS of each listener that has it.
struct ListenerTls {
    applications: Option<Arc<Tls>>,
    operators: Option<Arc<Tls>>,
}

impl ListenerTls {
    async fn load(
        settings: &Settings,
        registry: &Arc<Registry>,
        clock: &Clock,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            operators: Self::operators(settings, registry, clock).await?,
            applications: Self::applications(settings, registry, clock).await?,
        })
    }

    async fn operators(
        settings: &Settings,
        registry: &Arc<Registry>,
        clock: &Clock,
    ) -> Result<Option<Arc<Tls>>, TlsError> {
        match &settings.ops.tls {
            Some(tls) => Tls::for_operators(tls, registry, clock).await.map(Some),
            None => Ok(None),
        }
    }

    async fn applications(
        settings: &Settings,
        registry: &Arc<Registry>,
        clock: &Clock,
    ) -> Result<Option<Arc<Tls>>, TlsError> {
        let tcp = settings.listen.tcp.as_ref();
        match tcp.and_then(|tcp| tcp.tls.as_ref()) {
            Some(tls) => Tls::for_applications(tls, registry, clock).await.map(Some),
            None => Ok(None),
        }
    }

    fn all(&self) -> Vec<Arc<Tls>> {
        [&self.applications, &self.operators]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}

/// The listeners, bound but not yet served.
struct Sockets {
    applications: Listeners,
    ops: TcpListener,
    ops_address: SocketAddr,
}

impl Sockets {
    async fn bind(settings: &Settings) -> Result<Self, StartError> {
        let address = settings.ops.listen;
        let failed = |error| StartError::Ops { address, error };
        let ops = OpsServer::bind(address).await.map_err(failed)?;
        let ops_address = ops.local_addr().map_err(failed)?;
        let applications = Listeners::bind(settings)?;
        info!(
            socket = %applications.socket().display(),
            tcp = applications.tcp().map(tracing::field::display),
            ops = %ops_address,
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        Ok(Self {
            applications,
            ops,
            ops_address,
        })
    }
}

fn open_audit(
    settings: &Settings,
    clock: &Clock,
    registry: &Arc<Registry>,
) -> Result<Recorder, StartError> {
    let Some(settings) = &settings.audit else {
        return Ok(Recorder::default());
    };
    let recorder = Recorder::start(audit::open(settings)?, clock.clone(), registry)
        .map_err(StartError::Threads)?;
    recorder.forward_to(&settings.forwards);
    Ok(recorder)
}

/// The keyrings, secrets and files that the control plane keeps fresh.
struct State {
    keks: Arc<Keks>,
    keyrings: Vec<Arc<Keyring>>,
    secrets: Arc<Secrets>,
    renders: Arc<Renders>,
    readiness: Arc<Readiness>,
    policy: Arc<ActivePolicy>,
    config: Arc<LiveConfig>,
}

impl State {
    fn start(context: &Context<'_>, config: &Config) -> Result<Self, StartError> {
        let settings = context.settings;
        let keks = Arc::new(Keks::new(
            Arc::clone(&context.backends),
            &settings.refresh,
            context.clock.clone(),
            Arc::clone(&context.registry),
        ));
        let instance = InstanceId::generate()?;
        let keyrings = start_keyrings(context, &keks, instance)?;
        let secrets = Secrets::start(secrets::Parts {
            settings,
            clock: context.clock.clone(),
            registry: Arc::clone(&context.registry),
            audit: context.audit.clone(),
            backends: Arc::clone(&context.backends),
        })?;
        let renders = Arc::new(Renders::start(&render::Parts {
            settings,
            secrets: &secrets,
            clock: context.clock.clone(),
            registry: Arc::clone(&context.registry),
            audit: context.audit.clone(),
        }));
        let readiness = Arc::new(Readiness::new(
            keyrings.clone(),
            Arc::clone(&secrets),
            Arc::clone(&renders),
            context.stopping.draining.clone(),
            context.clock.clone(),
        ));
        let policy = ActivePolicy::new(&settings.policy);
        let parts = LiveParts {
            keyrings: keyrings.clone(),
            secrets: Arc::clone(&secrets),
            renders: Arc::clone(&renders),
            policy: Arc::clone(&policy),
            readiness: Arc::clone(&readiness),
            audit: context.audit.clone(),
            clock: context.clock.clone(),
        };
        let config = Arc::new(LiveConfig::new(config, parts, &context.registry));
        Ok(Self {
            policy,
            config,
            keks,
            keyrings,
            secrets,
            renders,
            readiness,
        })
    }
}

fn start_keyrings(
    context: &Context<'_>,
    keks: &Arc<Keks>,
    instance: InstanceId,
) -> Result<Vec<Arc<Keyring>>, BackendError> {
    let shared = refresh::Shared {
        settings: context.settings.refresh.clone(),
        wave: context.settings.wave.clone(),
        clock: context.clock.clone(),
        registry: Arc::clone(&context.registry),
        keks: Arc::clone(keks),
        audit: context.audit.clone(),
        instance,
        backends: Arc::clone(&context.backends),
        shutdown: context.stopping.ending.clone(),
    };
    context
        .settings
        .keyrings
        .iter()
        .map(|keyring| refresh::spawn(keyring, &shared))
        .collect()
}

/// Logs once the sidecar is ready, and warns of key memory that could be swapped to disk.
async fn announce_readiness(readiness: Arc<Readiness>, draining: CancellationToken) {
    let reached = readiness.reached();
    if draining.run_until_cancelled(reached).await.is_none() {
        return;
    }
    info!("ready");
    let memory = lock_report();
    if memory.unlocked > 0 {
        let limit = memory
            .limit
            .map_or_else(|| "unlimited".into(), |limit| format!("{limit} bytes"));
        warn!(
            "{} bytes of key memory could be swapped to disk: RLIMIT_MEMLOCK is {limit}. Set it \
             to at least {} bytes (`ulimit -l`, LimitMEMLOCK= in a systemd unit) or add the \
             capability IPC_LOCK",
            memory.unlocked,
            // Twice the current need leaves room for future versions.
            (memory.locked + memory.unlocked) * 2
        );
    }
}
