//! The operators' listener, on the control thread: health, metrics, status and the manifests in force. No keys, no plaintexts.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use jiff::Timestamp;
use matchit::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Acceptor, Handler, OpsSide},
    identity::Identity,
    meters::ConnectionMeters,
    problem::{Code, Problem},
    reply::Reply,
    status::{AuditStatus, KekStatus, KeyMemory, KeyringStatus, SecretStatus, Status},
    tls::Tls,
};
use crate::{
    audit::Recorder,
    clock::Clock,
    config::{Limits, Timeouts},
    crypto::lock_report,
    refresh::{Keks, Keyring},
    secrets::Secrets,
    telemetry::Registry,
};

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const CONNECTIONS: usize = 64;
/// Scrapers and probes speak at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
const KEY_MEMORY: &str = "sidekey_key_memory_bytes";
const BUILD: &str = "sidekey_build_info";
const STARTED: &str = "sidekey_start_time_seconds";
const READY: &str = "sidekey_ready";

/// What is not ready yet; empty when all is.
pub(super) type Pending = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// Answers operators.
pub struct OpsServer {
    router: Router<Route>,
    keyrings: Vec<Arc<Keyring>>,
    secrets: Arc<Secrets>,
    keks: Arc<Keks>,
    registry: Arc<Registry>,
    audit: Recorder,
    clock: Clock,
    started_at: Timestamp,
    pending: Pending,
    tls: Vec<Arc<Tls>>,
}

#[derive(Clone, Copy)]
enum Route {
    Live,
    Ready,
    Metrics,
    Status,
    Manifest,
}

type Answer = Response<Bytes>;

impl OpsServer {
    /// A server that isn't listening yet. `tls` is that of every listener of this process, for `/status`.
    pub fn new(
        keyrings: Vec<Arc<Keyring>>,
        secrets: Arc<Secrets>,
        keks: Arc<Keks>,
        registry: Arc<Registry>,
        audit: Recorder,
        clock: Clock,
        pending: Pending,
        tls: Vec<Arc<Tls>>,
    ) -> Arc<Self> {
        let mut router = Router::new();
        let routes = [
            ("/livez", Route::Live),
            ("/readyz", Route::Ready),
            ("/metrics", Route::Metrics),
            ("/status", Route::Status),
            ("/manifests/{keyring}", Route::Manifest),
        ];
        for (path, route) in routes {
            if let Err(error) = router.insert(path, route) {
                unreachable!("the routes above don't contradict each other: {error}");
            }
        }
        registry.describe_gauge(KEY_MEMORY, "Key memory by whether it is locked against swapping.");
        registry.describe_gauge(BUILD, "Always 1; the labels tell the build.");
        registry.describe_gauge(STARTED, "When the process started.");
        registry.describe_gauge(READY, "1 once /readyz says yes.");
        let started_at = clock.now();
        registry.gauge(BUILD, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        registry.gauge(STARTED, &[]).set(started_at.as_millisecond() as f64 / 1000.0);
        Arc::new(Self { router, keyrings, secrets, keks, registry, audit, clock, started_at, pending, tls })
    }

    /// Binds the listener.
    ///
    /// # Errors
    /// The address is taken, or not this machine's.
    pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind(address).await
    }

    /// Answers until `ending` is cancelled, over TLS if the listener has it.
    pub async fn run(self: Arc<Self>, listener: TcpListener, tls: Option<Arc<Tls>>, ending: CancellationToken) {
        let limits = Limits { connections: CONNECTIONS, ..Limits::default() };
        let timeouts = Timeouts { header: HEADER_TIMEOUT, ..Timeouts::default() };
        let meters = ConnectionMeters::new(&self.registry, "ops");
        let acceptor = Acceptor::new(self, &limits, &timeouts, meters, ending.clone(), ending);
        acceptor.accept_all(&OpsSide { listener, tls }).await;
    }

    fn route(&self, identity: Identity, request: &Request<Incoming>) -> Result<Answer, Problem> {
        let found = self
            .router
            .at(request.uri().path())
            .map_err(|_| Problem::new(Code::NotFound, "here are /livez, /readyz, /metrics, /status and /manifests/{keyring}"))?;
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(Problem::method_not_allowed("GET, HEAD"));
        }
        // A kubelet that probes has no certificate to show.
        if !matches!(found.value, Route::Live | Route::Ready) {
            identity.demand()?;
        }
        match found.value {
            Route::Live => Ok(answer(StatusCode::OK, TEXT, "ok\n")),
            Route::Ready => Ok(self.ready()),
            Route::Metrics => Ok(answer(StatusCode::OK, PROMETHEUS, self.metrics())),
            Route::Status => {
                let body = serde_json::to_vec(&self.status()).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
                Ok(answer(StatusCode::OK, JSON, body))
            }
            Route::Manifest => self.manifest(found.params.get("keyring").unwrap_or_default()),
        }
    }

    fn ready(&self) -> Answer {
        let pending = (self.pending)();
        if pending.is_empty() {
            answer(StatusCode::OK, TEXT, "ok\n")
        } else {
            answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, pending.iter().map(|what| format!("{what}\n")).collect::<String>())
        }
    }

    fn metrics(&self) -> String {
        let now = self.clock.now();
        for keyring in &self.keyrings {
            keyring.observe(&self.registry, now);
        }
        for secret in self.secrets.all() {
            secret.observe(&self.registry, now);
        }
        self.keks.observe();
        // A sink that hangs gives no error; asking shows it.
        let _ = self.audit.standing();
        let memory = lock_report();
        self.registry.gauge(KEY_MEMORY, &[("locked", "true")]).set(memory.locked as f64);
        self.registry.gauge(KEY_MEMORY, &[("locked", "false")]).set(memory.unlocked as f64);
        self.registry.gauge(READY, &[]).set(if (self.pending)().is_empty() { 1.0 } else { 0.0 });
        self.registry.render()
    }

    fn status(&self) -> Status {
        let now = self.clock.now();
        let pending = (self.pending)();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: self.started_at,
            ready: pending.is_empty(),
            pending,
            key_memory: KeyMemory::now(),
            tls: self.tls.iter().map(|tls| tls.status()).collect(),
            audit: self.audit.standing().map(AuditStatus::from),
            keks: self.keks.health().into_iter().map(KekStatus::from).collect(),
            keyrings: self.keyrings.iter().map(|keyring| KeyringStatus::of(keyring, now)).collect(),
            secrets: self.secrets.all().iter().map(|secret| SecretStatus::of(secret)).collect(),
        }
    }

    fn manifest(&self, name: &str) -> Result<Answer, Problem> {
        let keyring = self.keyrings.iter().find(|keyring| keyring.name().as_str() == name);
        let keyring = keyring.ok_or_else(|| Problem::new(Code::KeyringNotFound, "/status lists the keyrings that are served"))?;
        let snapshot = keyring.snapshot().clone();
        let snapshot = snapshot.ok_or_else(|| {
            Problem::new(Code::ProviderUnavailable, "no manifest is in force yet; /status says why").retry_after(1)
        })?;
        Ok(answer(StatusCode::OK, JSON, snapshot.table.document().bytes().to_vec()))
    }
}

impl Handler for OpsServer {
    type Source = Identity;

    async fn answer(&self, identity: &Identity, request: Request<Incoming>) -> Response<Reply> {
        self.route(*identity, &request).unwrap_or_else(Problem::into_response).map(Reply::from)
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
