//! From a request to its answer: route, method, token, keyring, policy, form, body, work.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue},
};
use jiff::Timestamp;
use matchit::Router;
use serde::Serialize;
use tracing::warn;

use super::{
    body::{BodyLimits, Form},
    connection::Handler,
    json,
    meters::{OperationMeters, unrouted},
    octets,
    problem::{Code, Problem},
    session::{Session, message_buffer},
    token::Token,
};
use crate::{
    clock::Clock,
    config::{Limits, Operation, Settings},
    policy::{Caller, Policy},
    refresh::Keyring,
    telemetry::Registry,
};

const KEY_VERSION: HeaderName = HeaderName::from_static("sidekey-key-version");
const OCTETS: &str = "application/octet-stream";
const JSON: &str = "application/json";

/// Answers requests.
pub(super) struct Service {
    router: Router<Route>,
    keyrings: BTreeMap<String, Served>,
    policy: Policy,
    limits: Limits,
    bodies: BodyLimits,
    registry: Arc<Registry>,
    clock: Clock,
}

/// Where requests of one connection come from.
pub(super) struct Source {
    pub(super) caller: Caller,
    pub(super) token: Option<Arc<Token>>,
}

#[derive(Clone, Copy)]
enum Route {
    Keyrings,
    Keyring,
    Work(Operation),
}

struct Served {
    keyring: Arc<Keyring>,
    encrypt: OperationMeters,
    decrypt: OperationMeters,
    rewrap: OperationMeters,
    inspect: OperationMeters,
}

impl Served {
    fn meters(&self, operation: Operation) -> &OperationMeters {
        match operation {
            Operation::Encrypt => &self.encrypt,
            Operation::Decrypt => &self.decrypt,
            Operation::Rewrap => &self.rewrap,
            Operation::Inspect => &self.inspect,
        }
    }
}

type Answer = Response<Bytes>;

impl Service {
    pub(super) fn new(settings: &Settings, keyrings: Vec<Arc<Keyring>>, registry: &Arc<Registry>, clock: Clock) -> Self {
        let serve = |keyring: Arc<Keyring>| {
            let meters = |operation| OperationMeters::new(registry, keyring.name(), operation);
            let [encrypt, decrypt, rewrap, inspect] = Operation::ALL.map(meters);
            (keyring.name().to_string(), Served { keyring, encrypt, decrypt, rewrap, inspect })
        };
        Self {
            router: router(),
            keyrings: keyrings.into_iter().map(serve).collect(),
            policy: Policy::new(&settings.policy),
            limits: settings.limits.clone(),
            bodies: BodyLimits::new(settings.timeouts.body, settings.limits.body_memory),
            registry: Arc::clone(registry),
            clock,
        }
    }

    async fn route(&self, source: &Source, request: Request<Incoming>, start: Instant) -> Result<Answer, Problem> {
        self.check_head(&request)?;
        if let Some(token) = &source.token {
            token.verify(request.headers())?;
        }
        let found =
            self.router.at(request.uri().path()).map_err(|_| Problem::new(Code::NotFound, "docs/api.md lists the paths"))?;
        let allowed = match found.value {
            Route::Keyrings | Route::Keyring => Method::GET,
            Route::Work(_) => Method::POST,
        };
        if request.method() != allowed {
            return Err(Problem::method_not_allowed(if allowed == Method::GET { "GET" } else { "POST" }));
        }
        let (route, name) = (*found.value, found.params.get("keyring").unwrap_or_default());
        let (operation, served) = match route {
            Route::Keyrings => return self.list(source),
            Route::Keyring => (Operation::Inspect, self.served(name)?),
            Route::Work(operation) => (operation, self.served(name)?),
        };
        let meters = served.meters(operation);
        let result = self.work(source, operation, served, request).await;
        let took = start.elapsed();
        Ok(match result {
            Ok(done) => {
                meters.succeeded(done.received, done.sent, took);
                done.answer
            }
            Err(problem) => {
                meters.failed(problem.code, took);
                if problem.code == Code::Forbidden {
                    warn!(caller = ?source.caller, keyring = %served.keyring.name(), operation = operation.as_str(), "denied by the policy");
                }
                problem.into_response()
            }
        })
    }

    fn check_head(&self, request: &Request<Incoming>) -> Result<(), Problem> {
        let uri = request.uri();
        let target = uri.path().len() + uri.query().map_or(0, str::len);
        let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if target + headers > self.limits.header_bytes {
            let detail = format!("path and headers have at most {} bytes together", self.limits.header_bytes);
            return Err(Problem::new(Code::HeadersTooLarge, detail));
        }
        Ok(())
    }

    fn served(&self, name: &str) -> Result<&Served, Problem> {
        self.keyrings
            .get(name)
            .ok_or_else(|| Problem::new(Code::KeyringNotFound, "GET /v1/keyrings lists those that you may use"))
    }

    async fn work(
        &self,
        source: &Source,
        operation: Operation,
        served: &Served,
        request: Request<Incoming>,
    ) -> Result<Done, Problem> {
        let keyring = &served.keyring;
        if !self.policy.permissions(&source.caller, keyring.name()).allow(operation) {
            let detail = format!("no rule lets this caller {} with keyring {}", operation.as_str(), keyring.name());
            return Err(Problem::new(Code::Forbidden, detail));
        }
        if operation == Operation::Inspect {
            let body = to_json(&self.describe(keyring)?)?;
            return Ok(Done::new(0, Bytes::from(body), JSON, None));
        }
        let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        if essence.eq_ignore_ascii_case(OCTETS.as_bytes()) {
            let aad = octets::aad(request.headers())?;
            let (limit, buffer): (_, fn(usize) -> Vec<u8>) = match operation {
                Operation::Encrypt => (self.limits.body, message_buffer),
                // A ciphertext may be as long as the longest plaintext makes it.
                _ => (self.limits.body + crate::crypto::OVERHEAD, |length| Vec::with_capacity(length)),
            };
            let body = self.bodies.read(request.into_body(), Form { limit, cost: 1 }, buffer).await?;
            let received = body.length;
            let mut session = Session::new(keyring, self.clock.now())?;
            let (bytes, version) = octets::perform(operation, &mut session, &aad, body).await?;
            Ok(Done::new(received, bytes, OCTETS, Some(version)))
        } else if essence.eq_ignore_ascii_case(JSON.as_bytes()) {
            let form = Form { limit: self.limits.json_body, cost: Limits::JSON_COST };
            let body = self.bodies.read(request.into_body(), form, Vec::with_capacity).await?;
            let mut session = Session::new(keyring, self.clock.now())?;
            let answer = json::perform(operation, &mut session, &body.bytes, self.limits.batch_items).await?;
            for code in answer.failures {
                served.meters(operation).item_failed(code);
            }
            Ok(Done::new(body.length, body.share.keep_for(answer.body), JSON, answer.version))
        } else {
            Err(Problem::new(Code::UnsupportedMediaType, "send Content-Type: application/octet-stream or application/json"))
        }
    }

    fn list(&self, source: &Source) -> Result<Answer, Problem> {
        let visible = self
            .keyrings
            .values()
            .map(|served| &served.keyring)
            .filter(|keyring| self.policy.permissions(&source.caller, keyring.name()).allow(Operation::Inspect))
            // One that isn't loaded can't be used yet.
            .filter_map(|keyring| self.describe(keyring).ok());
        let keyrings = Keyrings { keyrings: visible.collect() };
        unrouted(&self.registry, "ok");
        Ok(Done::new(0, Bytes::from(to_json(&keyrings)?), JSON, None).answer)
    }

    fn describe(&self, keyring: &Keyring) -> Result<Description, Problem> {
        let now = self.clock.now();
        let snapshot = keyring.snapshot();
        let Some(snapshot) = snapshot.as_ref() else {
            return Err(Problem::new(Code::ProviderUnavailable, "the keyring has not been loaded yet").retry_after(1));
        };
        let table = &snapshot.table;
        let versions = table.manifest().versions.iter().filter_map(|version| {
            let role = table.role(version.version, now)?.as_str();
            Some(VersionDescription {
                version: version.version,
                role,
                compromised: version.compromised,
                created_at: version.created_at,
            })
        });
        Ok(Description {
            name: keyring.name().to_string(),
            id: table.id().to_string(),
            generation: table.generation(),
            wave: table.wave().to_string(),
            primary: table.primary(now),
            encrypt_until: keyring.lease_end(table),
            versions: versions.collect(),
        })
    }
}

impl Handler for Service {
    type Source = Source;

    /// Answers one request; whatever is wrong with it is an answer, too.
    async fn answer(&self, source: &Source, request: Request<Incoming>) -> Answer {
        let start = Instant::now();
        match self.route(source, request, start).await {
            Ok(answer) => answer,
            Err(problem) => {
                unrouted(&self.registry, problem.code.as_str());
                problem.into_response()
            }
        }
    }
}

fn router() -> Router<Route> {
    let mut router = Router::new();
    let routes = [
        ("/v1/keyrings", Route::Keyrings),
        ("/v1/keyrings/{keyring}", Route::Keyring),
        ("/v1/keyrings/{keyring}/encrypt", Route::Work(Operation::Encrypt)),
        ("/v1/keyrings/{keyring}/decrypt", Route::Work(Operation::Decrypt)),
        ("/v1/keyrings/{keyring}/rewrap", Route::Work(Operation::Rewrap)),
    ];
    for (path, route) in routes {
        if let Err(error) = router.insert(path, route) {
            unreachable!("the routes above don't contradict each other: {error}");
        }
    }
    router
}

struct Done {
    received: usize,
    sent: usize,
    answer: Answer,
}

impl Done {
    fn new(received: usize, body: Bytes, content_type: &'static str, version: Option<u32>) -> Self {
        let sent = body.len();
        let mut answer = Response::new(body);
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(version) = version {
            headers.insert(KEY_VERSION, version.into());
        }
        Self { received, sent, answer }
    }
}

#[derive(Serialize)]
struct Keyrings {
    keyrings: Vec<Description>,
}

#[derive(Serialize)]
struct Description {
    name: String,
    id: String,
    generation: u64,
    wave: String,
    primary: Option<u32>,
    encrypt_until: Timestamp,
    versions: Vec<VersionDescription>,
}

#[derive(Serialize)]
struct VersionDescription {
    version: u32,
    role: &'static str,
    compromised: bool,
    created_at: Timestamp,
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|error| Problem::new(Code::Internal, error.to_string()))
}
