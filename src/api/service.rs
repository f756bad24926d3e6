//! From a request to its response: head limits, authentication, route, policy, work.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use hyper::{HeaderMap, Request, Response};
use serde::Serialize;

use super::{
    denial::{Denials, Resource},
    description::KeyringDescription,
    error::RequestError,
    events::{Events, Subscriber},
    forms,
    job::{Job, response},
    json::to_json,
    metrics::{OperationMetrics, SecretRequestMetrics, count_other},
    routes::{Route, Routes},
    secrets::SecretService,
};
use crate::{
    audit::Recorder,
    clock::Clock,
    config::{Limits, Settings},
    http::{
        Accounts, Tls,
        account::Account,
        body::{BodyLimits, RequestBody},
        connection::{Connection, Handler},
        memory::{MemoryShare, UNTRACKED},
        peer::Peer,
        problem::Problem,
        response::{ResponseBody, ResponseStream},
    },
    model::Operation,
    policy::{ActivePolicy, Caller, Policy},
    refresh::Keyring,
    secrets::Secrets,
    telemetry::Registry,
    wire::{self, Code, JSON},
};

/// The API as a document (OpenAPI 3.1).
const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// What the API serves, and how.
pub struct Parts<'s> {
    /// Limits and timeouts.
    pub settings: &'s Settings,
    /// Who may do what.
    pub policy: Arc<ActivePolicy>,
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
    routes: Routes,
    keyrings: BTreeMap<String, ServedKeyring>,
    secrets: SecretService,
    policy: Arc<ActivePolicy>,
    events: Arc<Events>,
    limits: Limits,
    bodies: Arc<BodyLimits>,
    accounts: Arc<Accounts>,
    registry: Arc<Registry>,
    denials: Denials,
    clock: Clock,
}

struct ServedKeyring {
    keyring: Arc<Keyring>,
    metrics: [Arc<OperationMetrics>; Operation::ALL.len()],
}

impl Service {
    pub(crate) fn new(parts: Parts<'_>, events: Arc<Events>, denials: Denials) -> Self {
        let Parts {
            settings,
            policy,
            keyrings,
            secrets,
            registry,
            audit: _,
            accounts,
            clock,
            tls: _,
        } = parts;
        let serve = |keyring: Arc<Keyring>| {
            let metrics = Operation::ALL
                .map(|operation| Arc::new(OperationMetrics::new(&registry, &keyring, operation)));
            let name = keyring.name().to_string();
            (name, ServedKeyring { keyring, metrics })
        };
        Self {
            routes: Routes::new(),
            keyrings: keyrings.into_iter().map(serve).collect(),
            secrets: SecretService {
                secrets,
                policy: Arc::clone(&policy),
                metrics: SecretRequestMetrics::new(&registry),
                denials: denials.clone(),
            },
            policy,
            events,
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
        peer.certificate.verdict().require()?;
        if let Some(token) = &peer.token {
            token.verify(request.headers())?;
        }
        let policy = self.policy.current();
        // Only a request shows who holds the token, and rules that are new know others.
        if !connection.activity.is_known() && policy.knows(&peer.caller) {
            connection.activity.recognize();
        }
        let _head = match head_len {
            // Boxed, because most heads are short.
            UNTRACKED.. => Box::pin(connection.account.reserve(head_len)).await?,
            _ => MemoryShare::default(),
        };
        let (operation, served) = {
            let (route, name) = self.routes.find(request.method(), request.uri().path())?;
            match route {
                Route::Keyrings | Route::Secrets | Route::Events | Route::OpenApi
                    if !policy.knows(&peer.caller) =>
                {
                    return Err(Problem::new(
                        Code::Forbidden,
                        "no rule allows this caller anything",
                    ));
                }
                Route::Keyrings => return self.respond_json(&self.list_keyrings(&policy, peer)),
                Route::Secrets => return self.respond_json(&self.secrets.list(peer)),
                Route::Secret => {
                    let secrets = &self.secrets;
                    return Ok(secrets.respond(connection, &name, &request, start).await);
                }
                Route::Events => return self.subscribe(connection, request.headers()),
                Route::OpenApi => {
                    count_other(&self.registry, "ok");
                    return Ok(response(OPENAPI.into(), JSON, None));
                }
                Route::Keyring => (Operation::Inspect, self.keyring(&name)?),
                Route::Operation(operation) => (operation, self.keyring(&name)?),
            }
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
        let error = match self.perform(&job, &policy, request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        Ok(fail(&job, error))
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
        policy: &Policy,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, RequestError> {
        authorize(job, policy)?;
        match job.operation {
            Operation::Inspect => {
                let json = to_json(&KeyringDescription::of(job.keyring, job.now())?)?;
                Ok(job.respond(0, json, JSON, None))
            }
            Operation::DataKey => Box::pin(forms::data_key(job, request)).await,
            Operation::Encrypt | Operation::Decrypt | Operation::Rewrap => {
                forms::perform(job, request).await
            }
        }
    }

    fn list_keyrings(&self, policy: &Policy, peer: &Peer) -> KeyringList {
        let now = self.clock.now();
        let visible = self
            .keyrings
            .values()
            .map(|served| &served.keyring)
            .filter(|keyring| {
                policy
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
            .subscribe(subscriber, last_id, connection.draining.clone())?;
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
        peer.token.is_none() && self.policy.current().knows(&peer.caller)
    }

    async fn withdrawn(&self, peer: &Peer) {
        tokio::select! {
            () = peer.certificate.withdrawn() => {}
            () = self.policy.withdrawn(&peer.caller) => {}
        }
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

fn authorize(job: &Job<'_>, policy: &Policy) -> Result<(), Problem> {
    let (operation, keyring) = (job.operation, job.keyring.name());
    if policy.permissions(&job.caller, keyring).allow(operation) {
        return Ok(());
    }
    let name = operation.as_str();
    let mut detail = format!("no rule allows this caller `{name}` on keyring {keyring}");
    if !operation.is_implied() {
        detail.push_str("; a rule must name this operation, \"*\" does not include it");
    }
    Err(Problem::new(Code::Forbidden, detail))
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

#[derive(Serialize)]
struct KeyringList {
    keyrings: Vec<KeyringDescription>,
}
