//! From a request to its answer: route, method, token, keyring, policy, form, body, work.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, Response, Version,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue},
};
use matchit::Router;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    Parts,
    batch::Batch,
    description::Description,
    events::{Events, Listener},
    json,
    meters::{Account, OperationMeters, SecretRequests, unrouted},
    octets,
    refusal::{self, Of},
    secrets::{self, Question, SecretDescription},
};
use crate::http::{
    body::{Arriving, BodyLimits, Form},
    connection::{Handler, Source},
    problem::{Code, Problem},
    reply::{Flow, Reply},
};
use crate::session::Session;
use crate::{
    audit::Recorder,
    clock::Clock,
    config::Limits,
    model::{Operation, SecretName},
    policy::{Caller, Policy},
    refresh::Keyring,
    secrets::{Secret, Secrets},
    telemetry::Registry,
    wire::{self, JSON, OCTETS},
};

const KEY_VERSION: HeaderName = HeaderName::from_static("sidekey-key-version");
/// The API as a document (OpenAPI 3.1).
const OPENAPI: &str = include_str!("../../docs/openapi.json");
const UNSUPPORTED: &str = "send Content-Type: application/octet-stream, application/json or application/vnd.sidekey.batch";

/// Answers requests.
pub(crate) struct Service {
    router: Router<Route>,
    keyrings: BTreeMap<String, Served>,
    secrets: Arc<Secrets>,
    secret_meters: SecretRequests,
    policy: Arc<Policy>,
    events: Arc<Events>,
    /// Ends what would never end by itself.
    draining: CancellationToken,
    limits: Limits,
    bodies: Arc<BodyLimits>,
    registry: Arc<Registry>,
    audit: Recorder,
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
    Work(Operation),
}

struct Served {
    keyring: Arc<Keyring>,
    meters: [Arc<OperationMeters>; Operation::ALL.len()],
}

impl Served {
    fn meters(&self, operation: Operation) -> &Arc<OperationMeters> {
        &self.meters[operation as usize]
    }
}

/// What one request wants of one keyring, and what its answer is made with.
pub(crate) struct Job<'s> {
    pub(crate) caller: Caller,
    pub(crate) operation: Operation,
    pub(crate) keyring: &'s Arc<Keyring>,
    pub(crate) meters: &'s Arc<OperationMeters>,
    pub(crate) limits: &'s Limits,
    pub(crate) bodies: &'s Arc<BodyLimits>,
    pub(crate) clock: &'s Clock,
    /// When its head came.
    pub(crate) start: Instant,
}

type Answer = Response<Reply>;

impl Service {
    pub(crate) fn new(parts: Parts<'_>, events: Arc<Events>, draining: CancellationToken) -> Self {
        let Parts {
            settings,
            keyrings,
            secrets,
            registry,
            audit,
            clock,
            tls: _,
        } = parts;
        let serve = |keyring: Arc<Keyring>| {
            let meters = Operation::ALL.map(|operation| {
                Arc::new(OperationMeters::new(&registry, keyring.name(), operation))
            });
            (keyring.name().to_string(), Served { keyring, meters })
        };
        Self {
            router: router(),
            keyrings: keyrings.into_iter().map(serve).collect(),
            secrets,
            secret_meters: SecretRequests::new(&registry),
            policy: Arc::new(Policy::new(&settings.policy)),
            events,
            draining,
            limits: settings.limits.clone(),
            bodies: Arc::new(BodyLimits::new(
                &settings.timeouts,
                settings.limits.body_memory,
            )),
            registry,
            audit,
            clock,
        }
    }

    async fn route(
        &self,
        source: &Source,
        request: Request<Incoming>,
        start: Instant,
    ) -> Result<Answer, Problem> {
        self.check_head(&request)?;
        source.identity.demand()?;
        if let Some(token) = &source.token {
            token.verify(request.headers())?;
        }
        let found = self
            .router
            .at(request.uri().path())
            .map_err(|_| Problem::new(Code::NotFound, "docs/api.md lists the paths"))?;
        let allowed = match found.value {
            Route::Keyrings
            | Route::Keyring
            | Route::Secrets
            | Route::Secret
            | Route::Events
            | Route::OpenApi => Method::GET,
            Route::Work(_) => Method::POST,
        };
        if request.method() != allowed {
            return Err(Problem::method_not_allowed(if allowed == Method::GET {
                "GET"
            } else {
                "POST"
            }));
        }
        let (route, name) = (*found.value, found.params.get("name").unwrap_or_default());
        let (operation, served) = match route {
            // A stranger doesn't get so far that his connection is worth keeping.
            Route::Keyrings | Route::Secrets | Route::Events | Route::OpenApi
                if !self.policy.knows(&source.caller) =>
            {
                return Err(Problem::new(
                    Code::Forbidden,
                    "no rule lets this caller do anything",
                ));
            }
            Route::Keyrings => return self.list(source),
            Route::Secrets => return self.list_secrets(source),
            Route::Secret => return Ok(self.secret(source, name, &request, start).await),
            Route::Events => return self.listen(source, request.headers()),
            Route::OpenApi => {
                unrouted(&self.registry, "ok");
                return Ok(answer(Reply::from(OPENAPI), JSON, None));
            }
            Route::Keyring => (Operation::Inspect, self.served(name)?),
            Route::Work(operation) => (operation, self.served(name)?),
        };
        let meters = served.meters(operation);
        let job = Job {
            caller: source.caller,
            operation,
            keyring: &served.keyring,
            meters,
            limits: &self.limits,
            bodies: &self.bodies,
            clock: &self.clock,
            start,
        };
        Ok(match self.work(source, &job, request).await {
            Ok(done) => {
                if let Some((received, sent)) = done.moved {
                    meters.succeeded(received, sent, start.elapsed());
                }
                done.answer
            }
            Err(problem) => {
                meters.failed(problem.code, start.elapsed());
                let of = Of::Keyring(served.keyring.name(), operation);
                refusal::note(
                    &self.audit,
                    &source.caller,
                    of,
                    problem.code,
                    problem.version,
                );
                if problem.code == Code::Forbidden {
                    warn!(caller = ?source.caller, keyring = %served.keyring.name(), operation = operation.as_str(), "denied by the policy");
                }
                problem.into_response().map(Reply::from)
            }
        })
    }

    fn check_head(&self, request: &Request<Incoming>) -> Result<(), Problem> {
        let uri = request.uri();
        let target = uri.path().len() + uri.query().map_or(0, str::len);
        let headers: usize = request
            .headers()
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        if target + headers > self.limits.header_bytes {
            let detail = format!(
                "path and headers have at most {} bytes together",
                self.limits.header_bytes
            );
            return Err(Problem::new(Code::HeadersTooLarge, detail));
        }
        Ok(())
    }

    fn served(&self, name: &str) -> Result<&Served, Problem> {
        self.keyrings.get(name).ok_or_else(|| {
            Problem::new(
                Code::KeyringNotFound,
                "GET /v1/keyrings lists those that you may use",
            )
        })
    }

    async fn work(
        &self,
        source: &Source,
        job: &Job<'_>,
        request: Request<Incoming>,
    ) -> Result<Done, Problem> {
        let (operation, keyring) = (job.operation, job.keyring);
        if !self
            .policy
            .permissions(&source.caller, keyring.name())
            .allow(operation)
        {
            let mut detail = format!(
                "no rule lets this caller {} with keyring {}",
                operation.as_str(),
                keyring.name()
            );
            if !operation.is_implied() {
                detail.push_str("; a rule must name this operation, \"*\" doesn't include it");
            }
            return Err(Problem::new(Code::Forbidden, detail));
        }
        if operation == Operation::Inspect {
            let body = to_json(&Description::of(keyring, self.clock.now())?)?;
            return Ok(Done::whole(0, Bytes::from(body), JSON, None));
        }
        let content_type = request
            .headers()
            .get(CONTENT_TYPE)
            .map_or(&b""[..], HeaderValue::as_bytes);
        let essence = content_type
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
            .trim_ascii();
        let is = |form: &str| essence.eq_ignore_ascii_case(form.as_bytes());
        if operation == Operation::DataKey {
            octets::no_aad(request.headers())?;
            return Box::pin(self.data_key(job, is(JSON), Arriving::new(request.into_body())))
                .await;
        }
        if is(OCTETS) {
            let aad = octets::aad(request.headers())?;
            let http = request.version();
            match octets::perform(job, aad, Arriving::new(request.into_body())).await? {
                octets::Answer::Whole {
                    received,
                    bytes,
                    version,
                } => Ok(Done::whole(received, bytes, OCTETS, Some(version))),
                octets::Answer::Flow(flow, version) => {
                    Done::flow(flow, http, OCTETS, Some(version))
                }
            }
        } else if is(wire::BATCH) {
            Box::pin(self.batch(job, request)).await
        } else if is(JSON) {
            Box::pin(self.json(job, request)).await
        } else {
            Err(Problem::new(Code::UnsupportedMediaType, UNSUPPORTED))
        }
    }

    /// Boxed by its caller, as is what follows: a connection keeps room for all that any request may need, and most send bytes.
    async fn json(&self, job: &Job<'_>, request: Request<Incoming>) -> Result<Done, Problem> {
        octets::no_aad(request.headers())?;
        let form = Form {
            limit: self.limits.json_body,
            cost: Limits::JSON_COST,
        };
        let body = self
            .bodies
            .read(
                Arriving::new(request.into_body()),
                Bytes::new(),
                form,
                Vec::with_capacity,
            )
            .await?;
        let mut session = Session::new(job.keyring, self.clock.now())?;
        let answer = json::perform(job.operation, &mut session, &body.bytes, &self.limits).await?;
        for (code, version) in answer.failures {
            job.meters.item_failed(code);
            refusal::note(
                &self.audit,
                &job.caller,
                Of::Keyring(job.keyring.name(), job.operation),
                code,
                version,
            );
        }
        Ok(Done::whole(
            body.length,
            body.share.keep_for(answer.body),
            JSON,
            answer.version,
        ))
    }

    async fn batch(&self, job: &Job<'_>, request: Request<Incoming>) -> Result<Done, Problem> {
        let http = request.version();
        let aad = octets::aad(request.headers())?;
        let inflow = self
            .bodies
            .flow(Arriving::new(request.into_body()), Bytes::new())
            .await?;
        let received = inflow.received();
        let batch = Batch {
            operation: job.operation,
            keyring: Arc::clone(job.keyring),
            meters: Arc::clone(job.meters),
            clock: self.clock.clone(),
            audit: self.audit.clone(),
            caller: job.caller,
            aad,
            inflow,
            plaintext_limit: self.limits.body,
        };
        let (pieces, version) = batch.perform()?;
        let account = Account::new(Arc::clone(job.meters), job.start, received);
        Done::flow(
            Flow::begin(pieces, None, account).await?,
            http,
            wire::BATCH,
            version,
        )
    }

    async fn data_key(
        &self,
        job: &Job<'_>,
        is_json: bool,
        body: Arriving,
    ) -> Result<Done, Problem> {
        let form = Form {
            limit: self.limits.json_body,
            cost: Limits::JSON_COST,
        };
        let body = self
            .bodies
            .read(body, Bytes::new(), form, Vec::with_capacity)
            .await?;
        // Who binds the key to nothing has nothing to send.
        if !is_json && body.length > 0 {
            return Err(Problem::new(
                Code::UnsupportedMediaType,
                "send Content-Type: application/json, or no body",
            ));
        }
        let answer = json::data_key(&Session::new(job.keyring, self.clock.now())?, &body.bytes)?;
        Ok(Done::whole(
            body.length,
            answer.body.into(),
            JSON,
            answer.version,
        ))
    }

    fn list(&self, source: &Source) -> Result<Answer, Problem> {
        let now = self.clock.now();
        let visible = self
            .keyrings
            .values()
            .map(|served| &served.keyring)
            .filter(|keyring| {
                self.policy
                    .permissions(&source.caller, keyring.name())
                    .allow(Operation::Inspect)
            })
            // One that isn't loaded can't be used yet.
            .filter_map(|keyring| Description::of(keyring, now).ok());
        let keyrings = Keyrings {
            keyrings: visible.collect(),
        };
        unrouted(&self.registry, "ok");
        Ok(answer(Reply::from(to_json(&keyrings)?), JSON, None))
    }

    fn list_secrets(&self, source: &Source) -> Result<Answer, Problem> {
        let visible = self
            .secrets
            .all()
            .into_iter()
            .filter(|secret| self.policy.may_fetch(&source.caller, secret.name()));
        // One that isn't held can't be had now; asking for it tells why.
        let secrets = SecretList {
            secrets: visible
                .filter_map(|secret| SecretDescription::of(&secret))
                .collect(),
        };
        unrouted(&self.registry, "ok");
        Ok(answer(Reply::from(to_json(&secrets)?), JSON, None))
    }

    async fn secret(
        &self,
        source: &Source,
        name: &str,
        request: &Request<Incoming>,
        start: Instant,
    ) -> Answer {
        match self.fetch(source, name, request).await {
            Ok(answer) => {
                self.secret_meters.succeeded(start.elapsed());
                answer
            }
            Err((secret, problem)) => {
                self.secret_meters
                    .failed(secret.as_ref(), problem.code, start.elapsed());
                refusal::note(
                    &self.audit,
                    &source.caller,
                    Of::Secret(secret.as_ref()),
                    problem.code,
                    None,
                );
                if problem.code == Code::Forbidden {
                    warn!(caller = ?source.caller, secret = secret.map(tracing::field::display), "denied by the policy");
                }
                problem.into_response().map(Reply::from)
            }
        }
    }

    /// A problem comes with the secret's name, if there is such a secret.
    async fn fetch(
        &self,
        source: &Source,
        name: &str,
        request: &Request<Incoming>,
    ) -> Result<Answer, (Option<SecretName>, Problem)> {
        // The usual case first: one that is kept, and that this caller may have.
        let secret = match self.secrets.kept(name) {
            Some(secret) if self.policy.may_fetch(&source.caller, secret.name()) => secret,
            _ => self.find_secret(source, name)?,
        };
        let with_name = |problem| (secret.has_series().then(|| secret.name().clone()), problem);
        let question =
            Question::parse(request.uri().query(), request.headers()).map_err(with_name)?;
        let served = secret.get(&question.ask).await;
        let served =
            served.map_err(|why| with_name(secrets::refused(&secret, &question.ask.which, why)))?;
        let answer = secrets::answer(&secret, &question, &served, request.headers(), &self.bodies)
            .await
            .map_err(with_name)?;
        secret.handed_out(&served);
        Ok(answer)
    }

    fn find_secret(
        &self,
        source: &Source,
        name: &str,
    ) -> Result<Arc<Secret>, (Option<SecretName>, Problem)> {
        let unknown = || {
            (
                None,
                Problem::new(
                    Code::SecretNotFound,
                    "GET /v1/secrets lists those that you may fetch and that are held",
                ),
            )
        };
        let asked: SecretName = name.parse().map_err(|_| unknown())?;
        if !self.policy.may_fetch(&source.caller, &asked) {
            // A name that nobody was given has no series that a stranger could make.
            let name = self.secrets.kept(name).map(|secret| secret.name().clone());
            return Err((
                name,
                Problem::new(
                    Code::Forbidden,
                    format!("no rule lets this caller fetch secret {asked}"),
                ),
            ));
        }
        match self.secrets.find(name) {
            Some(secret) => Ok(secret),
            None if self.secrets.knows(name) => {
                let detail = "as many secrets under a `*` are held as `secrets.wild_names` allows";
                Err((None, Problem::new(Code::Overloaded, detail).retry_after(5)))
            }
            None => Err(unknown()),
        }
    }

    fn listen(&self, source: &Source, headers: &HeaderMap) -> Result<Answer, Problem> {
        let listener = Listener {
            caller: source.caller,
            policy: Arc::clone(&self.policy),
        };
        let last_id = headers.get("last-event-id").and_then(|id| id.to_str().ok());
        let pieces = self
            .events
            .listen(listener, last_id, self.draining.clone())?;
        unrouted(&self.registry, "ok");
        Ok(answer(
            Reply::Flow(Flow::endless(pieces)),
            wire::EVENTS,
            None,
        ))
    }
}

impl Handler for Service {
    type Source = Source;

    fn is_pressed(&self) -> bool {
        self.bodies.is_pressed()
    }

    /// Answers one request; whatever is wrong with it is an answer, too.
    async fn answer(&self, source: &Source, request: Request<Incoming>) -> Answer {
        let start = Instant::now();
        match self.route(source, request, start).await {
            Ok(answer) => answer,
            Err(problem) => {
                unrouted(&self.registry, problem.code.as_str());
                refusal::note(&self.audit, &source.caller, Of::Nothing, problem.code, None);
                problem.into_response().map(Reply::from)
            }
        }
    }
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
            Route::Work(Operation::DataKey),
        ),
        (
            "/v1/keyrings/{name}/encrypt",
            Route::Work(Operation::Encrypt),
        ),
        (
            "/v1/keyrings/{name}/decrypt",
            Route::Work(Operation::Decrypt),
        ),
        ("/v1/keyrings/{name}/rewrap", Route::Work(Operation::Rewrap)),
    ];
    for (path, route) in routes {
        if let Err(error) = router.insert(path, route) {
            unreachable!("the routes above don't contradict each other: {error}");
        }
    }
    router
}

struct Done {
    /// The bytes received and sent; none of a flow, which counts for itself.
    moved: Option<(usize, usize)>,
    answer: Answer,
}

impl Done {
    fn whole(
        received: usize,
        body: Bytes,
        content_type: &'static str,
        version: Option<u32>,
    ) -> Self {
        Self {
            moved: Some((received, body.len())),
            answer: answer(body.into(), content_type, version),
        }
    }

    fn flow(
        flow: Flow,
        http: Version,
        content_type: &'static str,
        version: Option<u32>,
    ) -> Result<Self, Problem> {
        // There, an answer without a length ends like one that breaks off.
        if http < Version::HTTP_11 && !flow.has_length() {
            flow.cancel();
            return Err(Problem::new(
                Code::InvalidRequest,
                "HTTP/1.0 can't tell such an answer's end; use HTTP/1.1 or HTTP/2",
            ));
        }
        Ok(Self {
            moved: None,
            answer: answer(Reply::Flow(flow), content_type, version),
        })
    }
}

fn answer(reply: Reply, content_type: &'static str, version: Option<u32>) -> Answer {
    let mut answer = Response::new(reply);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(version) = version {
        headers.insert(KEY_VERSION, version.into());
    }
    answer
}

#[derive(Serialize)]
struct Keyrings {
    keyrings: Vec<Description>,
}

#[derive(Serialize)]
struct SecretList {
    secrets: Vec<SecretDescription>,
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|error| Problem::new(Code::Internal, error.to_string()))
}
