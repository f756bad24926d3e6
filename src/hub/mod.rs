//! The hub: sidecars that have joined it report what they use, and operators reach them through it.
//!
//! A hub has no right to any KEK and holds no key. It verifies signatures of reports, and passes
//! manifests and proofs on as they are: those who need to believe them verify them.

mod barriers;
mod caller;
mod evidence;
mod hints;
mod intake;
mod listener;
mod metrics;
mod proofs;
mod registry;
mod report;
mod requests;
mod rollouts;
mod rollouts_api;
mod routes;
mod seats;
mod server;
mod shares;
mod sidecars;
mod store;
mod streams;
#[cfg(test)]
mod tests;
mod workloads;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::Mutex,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    caller::Callers,
    intake::{Intake, Writer},
    listener::HubListener,
    metrics::{ReportMetrics, StoreMetrics, StreamMetrics},
    routes::Routes,
    seats::Seats,
    server::Server,
    store::Store,
};
use crate::{
    clock::Clock,
    config::{HubSettings, Timeouts},
    http::{
        Accounts, Tls, TlsError, body::BodyLimits, connection::Acceptor, metrics::ConnectionMetrics,
    },
    telemetry::{Registry, keep_up, seconds},
};

pub use self::{caller::CredentialError, store::StoreError};

const BUILD: &str = "sidekey_build_info";
const STARTED: &str = "sidekey_start_time_seconds";

/// An error that keeps a hub from starting.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The listener can't be bound.
    #[error("can't listen on {address} (`listen`): {error}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// The files of TLS can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file of token digests can't be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The database can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How often the hub notes in the database that it watches.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A running hub. Dropping it stops everything at once; [`Hub::stop`] drains first.
pub struct Hub {
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    draining: CancellationToken,
    ending: CancellationToken,
    serving: JoinHandle<()>,
    writing: JoinHandle<()>,
    store: Arc<Store>,
    drain: Duration,
}

/// Starts a hub on the current runtime.
///
/// # Errors
/// The address is taken, or the database or a file can't be used.
pub async fn start(settings: &HubSettings, clock: Clock) -> Result<Hub, HubError> {
    let registry = registry(&clock);
    let tls = match &settings.tls {
        Some(tls) => Some(Tls::for_hub(tls, &registry, &clock).await?),
        None => None,
    };
    let limits = settings.limits.listener();
    let timeouts = Timeouts::default();
    let accounts = Accounts::new(&limits, timeouts.body / 2);
    let callers = Arc::new(Callers::load(settings, &accounts)?);
    let failed = |error| HubError::Listen {
        address: settings.listen,
        error,
    };
    let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (draining, ending) = (CancellationToken::new(), CancellationToken::new());
    let streams = streams::Streams::new(limits.connections, StreamMetrics::new(&registry));
    let metrics = StoreMetrics::new(&registry);
    let store = Store::open(settings, metrics, clock.now()).await?;
    let (hints, barriers) = (Arc::default(), Arc::default());
    let (intake, writing) = Intake::start(Writer {
        store: Arc::clone(&store),
        clock: clock.clone(),
        streams: Arc::clone(&streams),
        hints: Arc::clone(&hints),
        barriers: Arc::clone(&barriers),
        metrics: ReportMetrics::new(&registry),
    });
    let server = Arc::new(Server {
        routes: Routes::new(),
        callers: Arc::clone(&callers),
        accounts,
        store: Arc::clone(&store),
        streams,
        intake,
        hints,
        proofs: proofs::PendingProofs::new(),
        barriers,
        rollouts: rollouts::Rollouts::default(),
        registry: Arc::clone(&registry),
        clock: clock.clone(),
        limits: settings.limits.clone(),
        bodies: BodyLimits::new(&timeouts),
        seats: Seats::new(settings.limits.instances),
        inventories: Mutex::default(),
        report_seconds: settings.report_seconds,
        heads: limits.clone(),
    });
    let acceptor = Acceptor::new(
        server,
        &limits,
        &timeouts,
        ConnectionMetrics::new(&registry, "hub"),
        draining.clone(),
        ending.clone(),
    );
    if let Some(tls) = &tls {
        tokio::spawn(Arc::clone(tls).follow_files(ending.clone()));
    }
    tokio::spawn(ending.clone().run_until_cancelled_owned(keep_up(registry)));
    tokio::spawn(keep_watch(Arc::clone(&store), clock, ending.clone()));
    let listening = HubListener {
        listener,
        tls: tls.clone(),
        callers,
    };
    let serving = tokio::spawn(async move {
        acceptor.accept_all(&listening).await;
        drop(listening);
        acceptor.finished().await;
    });
    info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
    Ok(Hub {
        address,
        tls,
        draining,
        ending,
        serving,
        writing,
        store,
        drain: settings.drain,
    })
}

impl Hub {
    /// The listener's actual address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads the files of TLS again.
    pub fn reload(&self) {
        if let Some(tls) = &self.tls {
            tls.request_reload();
        }
    }

    /// Ends the streams, so that sidecars connect to another replica, then waits for requests in
    /// flight until the drain time-out (`drain_timeout`) or until `hurry` resolves.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        self.draining.cancel();
        let drain = self.drain;
        let orderly = async {
            // Its end drops the intake, which ends the writer once everything is written.
            let _ = (&mut self.serving).await;
            let _ = (&mut self.writing).await;
            self.ending.cancel();
            self.store.close().await;
        };
        tokio::select! {
            result = timeout(drain, orderly) => match result {
                Ok(()) => info!("drained"),
                Err(_) => warn!(drain_timeout = ?drain, "drain timed out with requests in flight"),
            },
            () = hurry => warn!("stopping immediately"),
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.draining.cancel();
        self.ending.cancel();
    }
}

fn registry(clock: &Clock) -> Arc<Registry> {
    let registry = Arc::new(Registry::default());
    metrics::describe(&registry);
    registry.describe_gauge(BUILD, "Always 1; the labels identify the build.");
    registry.describe_gauge(STARTED, "When the process started.");
    registry
        .gauge(BUILD, &[("version", env!("CARGO_PKG_VERSION"))])
        .set(1.0);
    registry.gauge(STARTED, &[]).set(seconds(clock.now()));
    registry
}

/// Notes that the hub watches, until `ending`, and gives up what was silent for too long.
async fn keep_watch(store: Arc<Store>, clock: Clock, ending: CancellationToken) {
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let forever = async {
        loop {
            ticks.tick().await;
            // The log has said why it failed, and the next one shows what wasn't watched.
            let _ = store.tidy(clock.now()).await;
        }
    };
    ending.run_until_cancelled(forever).await;
}
