//! The operators' listener, on the control thread: health, metrics, status and the manifests in force. No keys, no plaintexts.

pub(crate) mod status;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    http::request,
};
use jiff::Timestamp;
use matchit::Router;
use serde::Deserialize;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use self::status::{AuditStatus, KekStatus, KeyMemory, RenderStatus};
pub use self::status::{
    KeyringStatus, SecretStatus, SecretVersionStatus, Status, TlsStatus, VersionStatus,
};
use crate::api::meters::ConnectionMeters;
use crate::http::{
    connection::{Acceptor, Handler, OpsSide},
    identity::Identity,
    problem::{Code, Problem},
    reply::Reply,
    tls::Tls,
};
use crate::{
    audit::Recorder,
    clock::Clock,
    config::{Limits, Timeouts},
    crypto::lock_report,
    keks::Keks,
    refresh::{self, Keyring},
    render::Renders,
    secrets::{self, Secrets},
    telemetry::{Registry, seconds},
    wire::JSON,
};

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const CONNECTIONS: usize = 64;
/// The longest push, in bytes: more than any name and version take.
const PUSH: usize = 16 << 10;
/// Scrapers and probes speak at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
const KEY_MEMORY: &str = "sidekey_key_memory_bytes";
const BUILD: &str = "sidekey_build_info";
const STARTED: &str = "sidekey_start_time_seconds";
const READY: &str = "sidekey_ready";

/// What operators are told of.
pub struct OpsParts {
    /// The keyrings.
    pub keyrings: Vec<Arc<Keyring>>,
    /// The secrets.
    pub secrets: Arc<Secrets>,
    /// The files that are made of them.
    pub renders: Arc<Renders>,
    /// The KEKs.
    pub keks: Arc<Keks>,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// The audit log.
    pub audit: Recorder,
    /// The time.
    pub clock: Clock,
    /// What is not ready yet; empty when all is.
    pub pending: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// TLS of every listener of this process.
    pub tls: Vec<Arc<Tls>>,
}

/// Answers operators.
pub struct OpsServer {
    router: Router<Route>,
    parts: OpsParts,
    started_at: Timestamp,
}

#[derive(Clone, Copy)]
enum Route {
    Live,
    Ready,
    Metrics,
    Status,
    Manifest,
    Push,
}

type Answer = Response<Bytes>;

/// What somebody central says: there is something new.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Push {
    Keyring {
        keyring: String,
        generation: u64,
    },
    Secret {
        secret: String,
        version: Option<String>,
    },
}

impl OpsServer {
    /// A server that isn't listening yet.
    pub fn new(parts: OpsParts) -> Arc<Self> {
        let mut router = Router::new();
        let routes = [
            ("/livez", Route::Live),
            ("/readyz", Route::Ready),
            ("/metrics", Route::Metrics),
            ("/status", Route::Status),
            ("/manifests/{keyring}", Route::Manifest),
            ("/push", Route::Push),
        ];
        for (path, route) in routes {
            if let Err(error) = router.insert(path, route) {
                unreachable!("the routes above don't contradict each other: {error}");
            }
        }
        let registry = &parts.registry;
        registry.describe_gauge(
            KEY_MEMORY,
            "Key memory by whether it is locked against swapping.",
        );
        registry.describe_gauge(BUILD, "Always 1; the labels tell the build.");
        registry.describe_gauge(STARTED, "When the process started.");
        registry.describe_gauge(READY, "1 once /readyz says yes.");
        let started_at = parts.clock.now();
        registry
            .gauge(BUILD, &[("version", env!("CARGO_PKG_VERSION"))])
            .set(1.0);
        registry.gauge(STARTED, &[]).set(seconds(started_at));
        Arc::new(Self {
            router,
            parts,
            started_at,
        })
    }

    /// Binds the listener.
    ///
    /// # Errors
    /// The address is taken, or not this machine's.
    pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind(address).await
    }

    /// Answers until `ending` is cancelled, over TLS if the listener has it.
    pub async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<Tls>>,
        ending: CancellationToken,
    ) {
        let limits = Limits {
            connections: CONNECTIONS,
            ..Limits::default()
        };
        let timeouts = Timeouts {
            header: HEADER_TIMEOUT,
            ..Timeouts::default()
        };
        let meters = ConnectionMeters::new(&self.parts.registry, "ops");
        let acceptor = Acceptor::new(self, &limits, &timeouts, meters, ending.clone(), ending);
        acceptor.accept_all(&OpsSide { listener, tls }).await;
    }

    fn route(
        &self,
        identity: Identity,
        head: &request::Parts,
        body: &[u8],
    ) -> Result<Answer, Problem> {
        let found = self.router.at(head.uri.path()).map_err(|_| {
            Problem::new(
                Code::NotFound,
                "here are /livez, /readyz, /metrics, /status, /manifests/{keyring} and /push",
            )
        })?;
        let is_read = head.method == Method::GET || head.method == Method::HEAD;
        match found.value {
            Route::Push if head.method != Method::POST => {
                return Err(Problem::method_not_allowed("POST"));
            }
            Route::Push => {}
            _ if !is_read => return Err(Problem::method_not_allowed("GET, HEAD")),
            _ => {}
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
                let body = serde_json::to_vec(&self.status())
                    .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
                Ok(answer(StatusCode::OK, JSON, body))
            }
            Route::Manifest => self.manifest(found.params.get("keyring").unwrap_or_default()),
            Route::Push => self.push(identity, body),
        }
    }

    fn ready(&self) -> Answer {
        let pending = (self.parts.pending)();
        if pending.is_empty() {
            answer(StatusCode::OK, TEXT, "ok\n")
        } else {
            answer(
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                pending
                    .iter()
                    .map(|what| format!("{what}\n"))
                    .collect::<String>(),
            )
        }
    }

    fn metrics(&self) -> String {
        let now = self.parts.clock.now();
        for keyring in &self.parts.keyrings {
            keyring.update_gauges(&self.parts.registry, now);
        }
        let secrets = self.parts.secrets.all();
        for secret in &secrets {
            secret.observe(&self.parts.registry, now);
        }
        self.parts.keks.update_gauges();
        // A sink that hangs gives no error; asking shows it.
        let _ = self.parts.audit.standing();
        let memory = lock_report();
        self.parts
            .registry
            .gauge(KEY_MEMORY, &[("locked", "true")])
            .set(memory.locked as f64);
        self.parts
            .registry
            .gauge(KEY_MEMORY, &[("locked", "false")])
            .set(memory.unlocked as f64);
        self.parts
            .registry
            .gauge(READY, &[])
            .set(if (self.parts.pending)().is_empty() {
                1.0
            } else {
                0.0
            });
        self.parts.registry.render() + &secrets::render_versions(&secrets)
    }

    fn status(&self) -> Status {
        let now = self.parts.clock.now();
        let pending = (self.parts.pending)();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: self.started_at,
            ready: pending.is_empty(),
            pending,
            key_memory: KeyMemory::now(),
            tls: self.parts.tls.iter().map(|tls| tls.status()).collect(),
            audit: self.parts.audit.standing().map(AuditStatus::from),
            keks: self
                .parts
                .keks
                .health()
                .into_iter()
                .map(KekStatus::from)
                .collect(),
            keyrings: self
                .parts
                .keyrings
                .iter()
                .map(|keyring| KeyringStatus::of(keyring, now))
                .collect(),
            secrets: self
                .parts
                .secrets
                .all()
                .iter()
                .map(|secret| SecretStatus::of(secret))
                .collect(),
            renders: self
                .parts
                .renders
                .all()
                .iter()
                .map(|render| RenderStatus::of(render))
                .collect(),
        }
    }

    /// Takes a hint that there is something new. It carries nothing but a name: what is new is read where it always is.
    fn push(&self, identity: Identity, body: &[u8]) -> Result<Answer, Problem> {
        if identity != Identity::Proven {
            let detail =
                "a push needs a client certificate, which `ops.tls` with `client_ca` asks for";
            return Err(Problem::new(Code::Forbidden, detail));
        }
        let invalid = |detail: String| Problem::new(Code::InvalidRequest, detail);
        let push: Push = serde_json::from_slice(body).map_err(|error| {
            invalid(format!("send {{\"keyring\": NAME, \"generation\": N}} or {{\"secret\": NAME, \"version\": V}}: {error}"))
        })?;
        let is_news = match push {
            Push::Keyring {
                keyring: name,
                generation,
            } => {
                let keyring = self.keyring(&name)?;
                let in_force = keyring
                    .snapshot()
                    .as_ref()
                    .map_or(0, |snapshot| snapshot.table.generation());
                let is_news = generation > in_force;
                if is_news {
                    keyring.request(refresh::Trigger::Push);
                }
                is_news
            }
            Push::Secret {
                secret: name,
                version,
            } => {
                let secret = self
                    .parts
                    .secrets
                    .all()
                    .into_iter()
                    .find(|secret| secret.name().as_str() == name);
                // One under a `*` that nobody here asked for is read when somebody does.
                let secret = secret.ok_or_else(|| {
                    Problem::new(
                        Code::SecretNotFound,
                        "/status lists the secrets that are kept",
                    )
                })?;
                let in_force = secret.standing().current.map(|current| current.version);
                let is_news = version.is_none() || version != in_force;
                if is_news {
                    secret.request(secrets::Trigger::Push);
                }
                is_news
            }
        };
        Ok(answer(
            StatusCode::ACCEPTED,
            JSON,
            if is_news {
                "{\"refreshing\":true}"
            } else {
                "{\"refreshing\":false}"
            },
        ))
    }

    fn keyring(&self, name: &str) -> Result<&Arc<Keyring>, Problem> {
        let keyring = self
            .parts
            .keyrings
            .iter()
            .find(|keyring| keyring.name().as_str() == name);
        keyring.ok_or_else(|| {
            Problem::new(
                Code::KeyringNotFound,
                "/status lists the keyrings that are served",
            )
        })
    }

    fn manifest(&self, name: &str) -> Result<Answer, Problem> {
        let snapshot = self.keyring(name)?.snapshot().clone();
        let snapshot = snapshot.ok_or_else(|| {
            Problem::new(
                Code::ProviderUnavailable,
                "no manifest is in force yet; /status says why",
            )
            .retry_after(1)
        })?;
        Ok(answer(
            StatusCode::OK,
            JSON,
            snapshot.table.document().bytes().clone(),
        ))
    }
}

impl Handler for OpsServer {
    type Source = Identity;

    async fn answer(&self, identity: &Identity, request: Request<Incoming>) -> Response<Reply> {
        let (head, body) = request.into_parts();
        // Whatever comes of it: a peer whose body is left unread takes the answer for a connection that broke.
        let answer = match read(body).await {
            Ok(body) => self.route(*identity, &head, &body),
            Err(problem) => Err(problem),
        };
        answer
            .unwrap_or_else(Problem::into_response)
            .map(Reply::from)
    }
}

async fn read(body: Incoming) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let body = timeout(HEADER_TIMEOUT, Limited::new(body, PUSH).collect()).await;
    let body =
        body.map_err(|_| Problem::new(Code::RequestTimeout, "the body didn't arrive in time"))?;
    let too_large = |_| {
        Problem::new(
            Code::BodyTooLarge,
            format!("a push has at most {PUSH} bytes"),
        )
    };
    Ok(body.map_err(too_large)?.to_bytes())
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
