//! From a request to its response: head limits, authentication, route, policy, format, work.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use hyper::{
    HeaderMap, Method, Request, Response,
    header::{CONTENT_TYPE, HeaderValue},
};
use matchit::Router;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    aad, batch,
    denial::{Denials, Resource},
    description::KeyringDescription,
    error::RequestError,
    events::{Events, Subscriber},
    job::{Job, response},
    json::{self, to_json},
    metrics::{OperationMetrics, SecretRequestMetrics, count_other},
    octets,
    secrets::SecretService,
};
use crate::{
    audit::Recorder,
    clock::Clock,
    config::{Limits, Settings},
    http::{
        Accounts, Tls,
        account::Account,
        body::{BodyLimits, BodySize, BodyStart, BufferedBody, RequestBody},
        connection::{Connection, Handler},
        memory::{MemoryShare, UNTRACKED},
        peer::Peer,
        problem::Problem,
        response::{ResponseBody, ResponseStream},
    },
    model::Operation,
    policy::{Caller, Policy},
    refresh::Keyring,
    secrets::Secrets,
    telemetry::Registry,
    wire::{self, Code, JSON, OCTETS},
};

/// The API as a document (OpenAPI 3.1).
const OPENAPI: &str = include_str!("../../docs/openapi.json");
const SUPPORTED_TYPES: &str = "send Content-Type: application/octet-stream, application/json or \
                               application/vnd.sidekey.batch";

/// What the API serves, and how.
pub struct Parts<'s> {
    /// Limits, timeouts and policy.
    pub settings: &'s Settings,
    /// The keyrings to serve.
    pub keyrings: Vec<Arc<Keyring>>,
    /// The secrets to serve.
    pub secrets: Arc<Secrets>,
    /// The metrics.
    pub registry: Arc<Registry>,
    /// What callers share.
    pub accounts: Arc<Accounts>,
    /// Records denied requests.
    pub audit: Recorder,
    /// The time.
    pub clock: Clock,
    /// The TLS of the TCP listener.
    pub tls: Option<Arc<Tls>>,
}

/// Answers the requests of applications.
pub(crate) struct Service {
    router: Router<Route>,
    keyrings: BTreeMap<String, ServedKeyring>,
    secrets: SecretService,
    policy: Arc<Policy>,
    events: Arc<Events>,
    /// Ends event streams.
    draining: CancellationToken,
    limits: Limits,
    bodies: Arc<BodyLimits>,
    accounts: Arc<Accounts>,
    registry: Arc<Registry>,
    denials: Denials,
    clock: Clock,
}

#[derive(Clone, Copy)]
enum Route {
    Keyrings,
    Keyring,
    Secrets,
    Secret,
    Events,
    OpenApi,
    Operation(Operation),
}

struct ServedKeyring {
    keyring: Arc<Keyring>,
    metrics: [Arc<OperationMetrics>; Operation::ALL.len()],
}

impl Service {
    pub(crate) fn new(
        parts: Parts<'_>,
        events: Arc<Events>,
        denials: Denials,
        draining: CancellationToken,
    ) -> Self {
        let Parts {
            settings,
            keyrings,
            secrets,
            registry,
            audit: _,
            accounts,
            clock,
            tls: _,
        } = parts;
        let serve = |keyring: Arc<Keyring>| {
            let metrics = Operation::ALL.map(|operation| {
                Arc::new(OperationMetrics::new(&registry, keyring.name(), operation))
            });
            let name = keyring.name().to_string();
            (name, ServedKeyring { keyring, metrics })
        };
        let policy = Arc::new(Policy::new(&settings.policy));
        Self {
            router: router(),
            keyrings: keyrings.into_iter().map(serve).collect(),
            secrets: SecretService {
                secrets,
                policy: Arc::clone(&policy),
                metrics: SecretRequestMetrics::new(&registry),
                denials: denials.clone(),
            },
            policy,
            events,
            draining,
            limits: settings.limits.clone(),
            bodies: Arc::new(BodyLimits::new(&settings.timeouts)),
            accounts,
            registry,
            denials,
            clock,
        }
    }

    /// Returns the problems of requests on no keyring or secret. Others are counted where they
    /// occur.
    async fn route(
        &self,
        connection: &Connection<Peer>,
        request: Request<RequestBody>,
        start: Instant,
    ) -> Result<Response<ResponseBody>, Problem> {
        let peer = &connection.peer;
        let head_len = self.check_head(&request)?;
        peer.certificate.require()?;
        if let Some(token) = &peer.token {
            token.verify(request.headers())?;
            if self.policy.knows(&peer.caller) {
                connection.activity.recognize();
            }
        }
        let _head = match head_len {
            // Boxed, because most heads are short.
            UNTRACKED.. => Box::pin(connection.account.reserve(head_len)).await?,
            _ => MemoryShare::default(),
        };
        let (route, name) = self.find_route(&request)?;
        let (operation, served) = match route {
            Route::Keyrings | Route::Secrets | Route::Events | Route::OpenApi
                if !self.policy.knows(&peer.caller) =>
            {
                return Err(Problem::new(
                    Code::Forbidden,
                    "no rule allows this caller anything",
                ));
            }
            Route::Keyrings => return self.respond_json(&self.list_keyrings(peer)),
            Route::Secrets => return self.respond_json(&self.secrets.list(peer)),
            Route::Secret => {
                let secrets = &self.secrets;
                return Ok(secrets.respond(connection, name, &request, start).await);
            }
            Route::Events => return self.subscribe(connection, request.headers()),
            Route::OpenApi => {
                count_other(&self.registry, "ok");
                return Ok(response(OPENAPI.into(), JSON, None));
            }
            Route::Keyring => (Operation::Inspect, self.keyring(name)?),
            Route::Operation(operation) => (operation, self.keyring(name)?),
        };
        let job = Job {
            caller: peer.caller,
            operation,
            keyring: &served.keyring,
            metrics: &served.metrics[operation as usize],
            limits: &self.limits,
            bodies: &self.bodies,
            denials: &self.denials,
            account: &connection.account,
            clock: &self.clock,
            http_version: request.version(),
            start,
        };
        let error = match self.perform(&job, request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        Ok(fail(&job, error))
    }

    /// Returns the route of a request and the name in its path.
    fn find_route<'r>(
        &self,
        request: &'r Request<RequestBody>,
    ) -> Result<(Route, &'r str), Problem> {
        let found = self
            .router
            .at(request.uri().path())
            .map_err(|_| Problem::new(Code::NotFound, "docs/api.md lists the valid paths"))?;
        let (allowed, allow) = match found.value {
            Route::Operation(_) => (Method::POST, "POST"),
            _ => (Method::GET, "GET"),
        };
        if request.method() != allowed {
            return Err(Problem::method_not_allowed(allow));
        }
        Ok((*found.value, found.params.get("name").unwrap_or_default()))
    }

    /// Returns the length of the head.
    fn check_head(&self, request: &Request<RequestBody>) -> Result<usize, Problem> {
        let uri = request.uri();
        let target = uri.path().len() + uri.query().map_or(0, str::len);
        let headers: usize = request
            .headers()
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        let max = self.limits.header_bytes;
        if target + headers > max {
            let detail = format!("path and headers may have at most {max} bytes together");
            return Err(Problem::new(Code::HeadersTooLarge, detail));
        }
        Ok(target + headers)
    }

    fn keyring(&self, name: &str) -> Result<&ServedKeyring, Problem> {
        self.keyrings.get(name).ok_or_else(|| {
            Problem::new(
                Code::KeyringNotFound,
                "GET /v1/keyrings lists the keyrings you may use",
            )
        })
    }

    async fn perform(
        &self,
        job: &Job<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, RequestError> {
        self.authorize(job)?;
        match job.operation {
            Operation::Inspect => {
                let json = to_json(&KeyringDescription::of(job.keyring, job.now())?)?;
                return Ok(job.respond(0, json, JSON, None));
            }
            Operation::DataKey => return Box::pin(self.data_key(job, request)).await,
            Operation::Encrypt | Operation::Decrypt | Operation::Rewrap => {}
        }
        let media_type = media_type(request.headers());
        if media_type.eq_ignore_ascii_case(OCTETS.as_bytes()) {
            let aad = aad::from_headers(request.headers())?;
            octets::perform(job, aad, request.into_body()).await
        } else if media_type.eq_ignore_ascii_case(wire::BATCH.as_bytes()) {
            Box::pin(self.batch(job, request)).await
        } else if media_type.eq_ignore_ascii_case(JSON.as_bytes()) {
            Box::pin(self.json(job, request)).await
        } else {
            Err(Problem::new(Code::UnsupportedMediaType, SUPPORTED_TYPES).into())
        }
    }

    fn authorize(&self, job: &Job<'_>) -> Result<(), Problem> {
        let (operation, keyring) = (job.operation, job.keyring.name());
        if self
            .policy
            .permissions(&job.caller, keyring)
            .allow(operation)
        {
            return Ok(());
        }
        let name = operation.as_str();
        let mut detail = format!("no rule allows this caller `{name}` on keyring {keyring}");
        if !operation.is_implied() {
            detail.push_str("; a rule must name this operation, \"*\" does not include it");
        }
        Err(Problem::new(Code::Forbidden, detail))
    }

    /// Boxed by its caller, like the next two: a connection reserves room for the largest future of
    /// any request, and most requests send bytes.
    async fn json(
        &self,
        job: &Job<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, RequestError> {
        aad::reject_header(request.headers())?;
        let body = self.read_json(job, request).await?;
        json::perform(job, body).await
    }

    async fn batch(
        &self,
        job: &Job<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, RequestError> {
        let aad = aad::from_headers(request.headers())?;
        let body = request.into_body();
        let start = BodyStart::default();
        let body = self.bodies.stream(job.account, body, start).await?;
        batch::perform(job, aad, body).await
    }

    async fn data_key(
        &self,
        job: &Job<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, RequestError> {
        aad::reject_header(request.headers())?;
        let is_json = media_type(request.headers()).eq_ignore_ascii_case(JSON.as_bytes());
        let body = self.read_json(job, request).await?;
        if !is_json && body.length > 0 {
            return Err(Problem::new(
                Code::UnsupportedMediaType,
                "send Content-Type: application/json, or no body",
            )
            .into());
        }
        json::data_key(job, body)
    }

    async fn read_json(
        &self,
        job: &Job<'_>,
        request: Request<RequestBody>,
    ) -> Result<BufferedBody, Problem> {
        let size = BodySize {
            max_len: self.limits.json_body,
            memory_factor: Limits::JSON_COST,
        };
        let (body, start) = (request.into_body(), BodyStart::default());
        self.bodies
            .read(job.account, body, start, size, Vec::with_capacity)
            .await
    }

    fn list_keyrings(&self, peer: &Peer) -> KeyringList {
        let now = self.clock.now();
        let visible = self
            .keyrings
            .values()
            .map(|served| &served.keyring)
            .filter(|keyring| {
                self.policy
                    .permissions(&peer.caller, keyring.name())
                    .allow(Operation::Inspect)
            })
            // A keyring that is not loaded can't be used yet.
            .filter_map(|keyring| KeyringDescription::of(keyring, now).ok());
        KeyringList {
            keyrings: visible.collect(),
        }
    }

    fn respond_json(&self, value: &impl Serialize) -> Result<Response<ResponseBody>, Problem> {
        let json = to_json(value)?;
        count_other(&self.registry, "ok");
        Ok(response(json.into(), JSON, None))
    }

    fn subscribe(
        &self,
        connection: &Connection<Peer>,
        headers: &HeaderMap,
    ) -> Result<Response<ResponseBody>, Problem> {
        let subscriber = Subscriber {
            caller: connection.peer.caller,
            account: Arc::clone(&connection.account),
            policy: Arc::clone(&self.policy),
        };
        let last_id = headers.get("last-event-id").and_then(|id| id.to_str().ok());
        let events = self
            .events
            .subscribe(subscriber, last_id, self.draining.clone())?;
        count_other(&self.registry, "ok");
        let stream = ResponseStream::new(events, None);
        Ok(response(stream.into(), wire::EVENTS, None))
    }
}

impl Handler for Service {
    type Peer = Peer;

    fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    fn account(&self, peer: Option<&Peer>) -> Arc<Account> {
        match peer.map(|peer| peer.caller) {
            Some(Caller::Process { uid, .. }) => self.accounts.of_user(uid),
            Some(Caller::TokenHolder) | None => Arc::clone(self.accounts.of_token_holder()),
        }
    }

    /// The holder of the token is known only once a request presents it.
    fn knows(&self, peer: &Peer) -> bool {
        peer.token.is_none() && self.policy.knows(&peer.caller)
    }

    async fn respond(
        &self,
        connection: &Connection<Peer>,
        request: Request<RequestBody>,
    ) -> Response<ResponseBody> {
        let start = Instant::now();
        let problem = match self.route(connection, request, start).await {
            Ok(response) => return response,
            Err(problem) => problem,
        };
        count_other(&self.registry, problem.code.as_str());
        let resource = Resource::Other;
        self.denials
            .add(&connection.peer.caller, resource, problem.code, None);
        problem.into_response()
    }
}

/// Counts a failed job and responds with its problem.
fn fail(job: &Job<'_>, error: RequestError) -> Response<ResponseBody> {
    let RequestError { problem, version } = error;
    let (keyring, operation, caller) = (job.keyring.name(), job.operation, &job.caller);
    job.metrics.failed(problem.code, job.start.elapsed());
    let resource = Resource::Keyring(keyring, operation);
    job.denials.add(caller, resource, problem.code, version);
    problem.into_response()
}

/// The media type of a request without parameters; empty if there is none.
fn media_type(headers: &HeaderMap) -> &[u8] {
    headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes)
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii()
}

fn router() -> Router<Route> {
    let mut router = Router::new();
    let routes = [
        ("/v1/keyrings", Route::Keyrings),
        ("/v1/keyrings/{name}", Route::Keyring),
        ("/v1/secrets", Route::Secrets),
        ("/v1/secrets/{name}", Route::Secret),
        ("/v1/events", Route::Events),
        ("/v1/openapi.json", Route::OpenApi),
        (
            "/v1/keyrings/{name}/data-key",
            Route::Operation(Operation::DataKey),
        ),
        (
            "/v1/keyrings/{name}/encrypt",
            Route::Operation(Operation::Encrypt),
        ),
        (
            "/v1/keyrings/{name}/decrypt",
            Route::Operation(Operation::Decrypt),
        ),
        (
            "/v1/keyrings/{name}/rewrap",
            Route::Operation(Operation::Rewrap),
        ),
    ];
    for (path, route) in routes {
        if let Err(error) = router.insert(path, route) {
            unreachable!("the routes above do not conflict: {error}");
        }
    }
    router
}

#[derive(Serialize)]
struct KeyringList {
    keyrings: Vec<KeyringDescription>,
}
