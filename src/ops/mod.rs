//! The operators' listener, on the control thread: health, metrics, status, active manifests,
//! pushes and proofs. It serves no keys and no plaintexts.

mod copy;
mod host;
mod prove;
mod push;
mod status;
#[cfg(test)]
mod tests;

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Body,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    http::request,
};
use jiff::Timestamp;
use matchit::Router;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use self::copy::SharedCopy;
use crate::{
    audit::Recorder,
    clock::Clock,
    config::{Limits, Timeouts},
    crypto::lock_report,
    http::{
        Accounts,
        account::Account,
        body::RequestBody,
        connection::{Acceptor, Connection, Handler},
        listeners::OpsListener,
        memory::overloaded,
        metrics::ConnectionMetrics,
        payload::Payload,
        peer::{ClientCertificate, PeerCertificate},
        problem::Problem,
        response::ResponseBody,
        tls::Tls,
    },
    keks::Keks,
    refresh::Keyring,
    render::Renders,
    secrets::{self, Secrets},
    session::Prover,
    telemetry::{Registry, seconds},
    wire::{
        Code, JSON,
        hub::ProofResult,
        proof::ProofRequest,
        status::{ConfigStatus, HubStatus, Status},
    },
};

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const MAX_CONNECTIONS: usize = 64;
/// Concurrent HTTP/2 requests of a connection.
const MAX_STREAMS: u32 = 4;
/// The longest request body: more than any name and version need.
const MAX_BODY: usize = 16 << 10;
/// How long a head or body may take, and up to twice as long, how long a response may be left
/// unread. Scrapers and probes send and read at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const KEY_MEMORY: &str = "sidekey_key_memory_bytes";
const BUILD: &str = "sidekey_build_info";
const STARTED: &str = "sidekey_start_time_seconds";
const READY: &str = "sidekey_ready";

/// What the ops listener reports on.
pub struct OpsParts {
    /// The keyrings served.
    pub keyrings: Vec<Arc<Keyring>>,
    /// The secrets held.
    pub secrets: Arc<Secrets>,
    /// The files rendered from secrets.
    pub renders: Arc<Renders>,
    /// The KEKs used.
    pub keks: Arc<Keks>,
    /// Proves that keys are held.
    pub prover: Prover,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// The audit log.
    pub audit: Recorder,
    /// The time.
    pub clock: Clock,
    /// What callers share.
    pub accounts: Arc<Accounts>,
    /// The names that requests may use besides addresses and localhost. None over TLS, where the
    /// certificate already decides.
    pub hosts: Option<Vec<String>>,
    /// Returns what there is to say of the config.
    pub config: Box<dyn Fn() -> Option<ConfigStatus> + Send + Sync>,
    /// Returns what there is to say of the hub, if the sidecar joins one.
    pub hub: Box<dyn Fn() -> Option<HubStatus> + Send + Sync>,
    /// Returns what readiness waits for; empty when ready.
    pub pending: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The TLS of every listener of this process.
    pub tls: Vec<Arc<Tls>>,
}

/// Answers the requests of operators.
pub struct OpsServer {
    router: Router<Route>,
    parts: OpsParts,
    started_at: Timestamp,
    metrics: SharedCopy,
    status: SharedCopy,
}

#[derive(Clone, Copy)]
enum Route {
    Live,
    Ready,
    Metrics,
    Status,
    Manifest,
    Push,
    Prove,
}

impl OpsServer {
    /// Creates a server without a listener.
    pub fn new(parts: OpsParts) -> Arc<Self> {
        let registry = &parts.registry;
        registry.describe_gauge(
            KEY_MEMORY,
            "Key memory by whether it is locked against swapping.",
        );
        registry.describe_gauge(BUILD, "Always 1; the labels identify the build.");
        registry.describe_gauge(STARTED, "When the process started.");
        registry.describe_gauge(READY, "1 while /readyz reports ready.");
        registry.describe_counter(
            prove::PROOFS,
            "Requests to prove that a key version is held, by result.",
        );
        let started_at = parts.clock.now();
        registry
            .gauge(BUILD, &[("version", env!("CARGO_PKG_VERSION"))])
            .set(1.0);
        registry.gauge(STARTED, &[]).set(seconds(started_at));
        Arc::new(Self {
            router: router(),
            parts,
            started_at,
            metrics: SharedCopy::default(),
            status: SharedCopy::default(),
        })
    }

    /// Binds the listener.
    ///
    /// # Errors
    /// The address is in use or not available on this machine.
    pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind(address).await
    }

    /// Serves `listener` until `ending` is cancelled.
    pub async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<Tls>>,
        ending: CancellationToken,
    ) {
        let limits = Limits {
            connections: MAX_CONNECTIONS,
            streams: MAX_STREAMS,
            ..Limits::default()
        };
        let timeouts = Timeouts {
            header: REQUEST_TIMEOUT,
            body: REQUEST_TIMEOUT,
            ..Timeouts::default()
        };
        let metrics = ConnectionMetrics::new(&self.parts.registry, "ops");
        let acceptor = Acceptor::new(self, &limits, &timeouts, metrics, ending.clone(), ending);
        acceptor.accept_all(&OpsListener { listener, tls }).await;
    }

    fn route(
        &self,
        certificate: ClientCertificate,
        head: &request::Parts,
        body: &[u8],
    ) -> Result<Response<ResponseBody>, Problem> {
        let found = self.router.at(head.uri.path()).map_err(|_| {
            Problem::new(
                Code::NotFound,
                "unknown path; valid paths: /livez, /readyz, /metrics, /status, \
                 /manifests/{keyring}, /push, /prove",
            )
        })?;
        let is_read = head.method == Method::GET || head.method == Method::HEAD;
        match found.value {
            Route::Push | Route::Prove if head.method != Method::POST => {
                return Err(Problem::method_not_allowed("POST"));
            }
            Route::Push | Route::Prove => {}
            _ if !is_read => return Err(Problem::method_not_allowed("GET, HEAD")),
            _ => {}
        }
        // Kubelet probes present no certificate.
        if !matches!(found.value, Route::Live | Route::Ready) {
            certificate.require()?;
            if let Some(names) = &self.parts.hosts {
                host::check(head, names)?;
            }
        }
        match found.value {
            Route::Live => Ok(response(StatusCode::OK, TEXT, "ok\n")),
            Route::Ready => Ok(self.ready()),
            Route::Metrics => {
                let write = || Ok(self.metrics().into_bytes());
                self.shared(&self.metrics, PROMETHEUS, write)
            }
            Route::Status => self.shared(&self.status, JSON, || {
                serde_json::to_vec(&self.state())
                    .map_err(|error| Problem::new(Code::Internal, error.to_string()))
            }),
            Route::Manifest => self.manifest(found.params.get("keyring").unwrap_or_default()),
            Route::Push => push::push(&self.parts, certificate, body),
            Route::Prove => prove::prove(&self.parts, head, body),
        }
    }

    /// What `/status` says.
    pub fn state(&self) -> Status {
        status::status(&self.parts, self.started_at)
    }

    /// Answers a hub's request for a proof, like that of an operator.
    pub fn prove(&self, request: &ProofRequest) -> ProofResult {
        match prove::answer(&self.parts, request) {
            Ok(proof) => ProofResult::Proof(proof),
            Err(problem) => ProofResult::Refused(problem.detail().into()),
        }
    }

    /// Responds with a copy of a document that responses share.
    fn shared(
        &self,
        document: &SharedCopy,
        content_type: &'static str,
        write: impl FnOnce() -> Result<Vec<u8>, Problem>,
    ) -> Result<Response<ResponseBody>, Problem> {
        let bytes = document.bytes(self.parts.accounts.of_operators(), write)?;
        let bytes = bytes.ok_or_else(overloaded)?;
        Ok(response(StatusCode::OK, content_type, bytes))
    }

    fn ready(&self) -> Response<ResponseBody> {
        let pending = (self.parts.pending)();
        if pending.is_empty() {
            return response(StatusCode::OK, TEXT, "ok\n");
        }
        let lines: String = pending.iter().map(|what| format!("{what}\n")).collect();
        response(StatusCode::SERVICE_UNAVAILABLE, TEXT, lines)
    }

    fn metrics(&self) -> String {
        let parts = &self.parts;
        let now = parts.clock.now();
        for keyring in &parts.keyrings {
            keyring.update_gauges(&parts.registry, now);
        }
        let secrets = parts.secrets.all();
        for secret in &secrets {
            secret.update_gauges(&parts.registry, now);
        }
        parts.keks.update_gauges();
        // A sink that hangs reports no error; asking for its state detects that.
        let _ = parts.audit.health();
        let memory = lock_report();
        for (locked, bytes) in [("true", memory.locked), ("false", memory.unlocked)] {
            parts
                .registry
                .gauge(KEY_MEMORY, &[("locked", locked)])
                .set(bytes as f64);
        }
        let is_ready = (parts.pending)().is_empty();
        parts
            .registry
            .gauge(READY, &[])
            .set(if is_ready { 1.0 } else { 0.0 });
        parts.registry.render() + &secrets::render_versions(&secrets)
    }

    fn manifest(&self, name: &str) -> Result<Response<ResponseBody>, Problem> {
        let snapshot = find_keyring(&self.parts, name)?.snapshot().clone();
        let snapshot = snapshot.ok_or_else(|| {
            Problem::new(
                Code::ProviderUnavailable,
                "no manifest is active yet; /status says why",
            )
            .retry_after(1)
        })?;
        let manifest = snapshot.table.document().bytes().clone();
        Ok(response(StatusCode::OK, JSON, manifest))
    }
}

impl Handler for OpsServer {
    type Peer = PeerCertificate;

    fn accounts(&self) -> &Accounts {
        &self.parts.accounts
    }

    fn account(&self, _: Option<&PeerCertificate>) -> Arc<Account> {
        Arc::clone(self.parts.accounts.of_operators())
    }

    /// Without a certificate, anyone may ask, and no one is known.
    fn knows(&self, certificate: &PeerCertificate) -> bool {
        certificate.verdict() == ClientCertificate::Accepted
    }

    async fn withdrawn(&self, certificate: &PeerCertificate) {
        certificate.withdrawn().await;
    }

    async fn respond(
        &self,
        connection: &Connection<PeerCertificate>,
        request: Request<RequestBody>,
    ) -> Response<ResponseBody> {
        let (head, body) = request.into_parts();
        let response = match read(body).await {
            Ok(body) => self.route(connection.peer.verdict(), &head, &body),
            Err(problem) => Err(problem),
        };
        response.unwrap_or_else(Problem::into_response)
    }
}

fn router() -> Router<Route> {
    let mut router = Router::new();
    let routes = [
        ("/livez", Route::Live),
        ("/readyz", Route::Ready),
        ("/metrics", Route::Metrics),
        ("/status", Route::Status),
        ("/manifests/{keyring}", Route::Manifest),
        ("/push", Route::Push),
        ("/prove", Route::Prove),
    ];
    for (path, route) in routes {
        if let Err(error) = router.insert(path, route) {
            unreachable!("the routes above do not conflict: {error}");
        }
    }
    router
}

fn find_keyring<'p>(parts: &'p OpsParts, name: &str) -> Result<&'p Arc<Keyring>, Problem> {
    let keyring = parts
        .keyrings
        .iter()
        .find(|keyring| keyring.name().as_str() == name);
    keyring.ok_or_else(|| Problem::new(Code::KeyringNotFound, "/status lists the keyrings served"))
}

async fn read<B>(body: B) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let body = timeout(REQUEST_TIMEOUT, Limited::new(body, MAX_BODY).collect())
        .await
        .map_err(|_| {
            let detail = format!("the body did not arrive within {REQUEST_TIMEOUT:?}");
            Problem::new(Code::RequestTimeout, detail)
        })?;
    let body = body.map_err(|_| {
        let detail = format!("the body may have at most {MAX_BODY} bytes");
        Problem::new(Code::BodyTooLarge, detail)
    })?;
    Ok(body.to_bytes())
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Payload>,
) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
