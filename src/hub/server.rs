//! Answers the requests of sidecars and operators.

use std::{sync::Arc, time::Duration};

use hyper::{
    Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    http::request,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;

use super::{
    barriers::{Barriers, MAX_WAIT},
    caller::{Access, Caller, Callers, Identity},
    evidence,
    hints::Hints,
    intake::Intake,
    listener::HubPeer,
    metrics,
    proofs::PendingProofs,
    registry::InstanceId,
    report::{self, Received},
    rollouts::Rollouts,
    routes::{Entry, Route, Routes},
    seats::Seats,
    sidecars::{self, Joined},
    store::Store,
    streams::Streams,
};
use crate::{
    clock::Clock,
    config::{HubLimits, Limits},
    encoding::from_hex,
    http::{
        Accounts,
        account::Account,
        body::{BodyLimits, BodySize, BodyStart, BufferedBody, RequestBody},
        connection::{Connection, Handler},
        payload::Payload,
        problem::Problem,
        response::{ResponseBody, ResponseStream},
        token::bearer,
    },
    telemetry::Registry,
    wire::{
        Code, EVENTS, JSON,
        hub::{
            Barrier, BarrierRequest, EvidenceRequest, HintRequest, Hinted, PROTOCOL, ProofAnswer,
            ProofsRequest, StreamEvent, Welcome,
        },
    },
};

/// The API as a document (OpenAPI 3.1).
const OPENAPI: &str = include_str!("../../docs/hub-openapi.json");
const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The longest answer with a proof, or reason that there is none.
const MAX_ANSWER: usize = 16 << 10;
/// The longest request of an operator: a manifest, or many names.
const MAX_REQUEST: usize = 4 << 20;
/// The memory for such a request, as a multiple of its body.
pub(super) const REQUEST_COST: usize = 3;

/// Answers requests.
pub(super) struct Server {
    pub(super) routes: Routes,
    pub(super) callers: Arc<Callers>,
    pub(super) accounts: Arc<Accounts>,
    pub(super) store: Arc<Store>,
    pub(super) streams: Arc<Streams>,
    pub(super) intake: Intake,
    pub(super) hints: Arc<Hints>,
    pub(super) proofs: Arc<PendingProofs>,
    pub(super) barriers: Arc<Barriers>,
    pub(super) rollouts: Rollouts,
    pub(super) registry: Arc<Registry>,
    pub(super) clock: Clock,
    pub(super) limits: HubLimits,
    pub(super) seats: Seats,
    /// Held by what reads much of the database.
    pub(super) inventories: Mutex<()>,
    pub(super) heads: Limits,
    pub(super) bodies: BodyLimits,
    pub(super) report_seconds: u32,
}

/// A request whose route and caller are known.
pub(super) struct Asked<'c> {
    pub(super) connection: &'c Connection<HubPeer>,
    pub(super) head: request::Parts,
    pub(super) body: RequestBody,
}

impl Handler for Server {
    type Peer = HubPeer;

    fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// What a connection holds besides bodies and streams is small, and limited for each.
    fn account(&self, _: Option<&HubPeer>) -> Arc<Account> {
        Arc::clone(self.accounts.of_token_holder())
    }

    fn knows(&self, peer: &HubPeer) -> bool {
        peer.caller().is_some()
    }

    async fn withdrawn(&self, peer: &HubPeer) {
        peer.certificate.withdrawn().await;
    }

    async fn respond(
        &self,
        connection: &Connection<HubPeer>,
        request: Request<RequestBody>,
    ) -> Response<ResponseBody> {
        let (head, body) = request.into_parts();
        let entry = match self.routes.find(head.uri.path(), &head.method) {
            Ok(entry) => entry,
            Err(problem) => return problem.into_response(),
        };
        let asked = Asked {
            connection,
            head,
            body,
        };
        // Boxed, for its state would otherwise be part of every connection's.
        let result = Box::pin(self.answer(entry, asked)).await;
        let code = result.as_ref().err().map(|problem| problem.code);
        metrics::count_request(&self.registry, entry.path, code);
        if let (Route::Report, Some(code)) = (entry.route, code) {
            metrics::count_refused(&self.registry, code);
        }
        result.unwrap_or_else(Problem::into_response)
    }
}

impl Server {
    async fn answer(
        &self,
        entry: &Entry,
        asked: Asked<'_>,
    ) -> Result<Response<ResponseBody>, Problem> {
        entry.require(&asked.head.method)?;
        self.check_head(&asked.head)?;
        if entry.access == Access::Open {
            return Ok(match entry.route {
                Route::OpenApi => response(JSON, OPENAPI),
                _ => response(TEXT, "ok\n"),
            });
        }
        let caller = self.caller(&asked)?;
        asked.connection.activity.recognize();
        caller.require(entry.access)?;
        match caller {
            Caller::Sidecar(identity) => self.serve_sidecar(entry.route, &identity, asked).await,
            Caller::Operator(person) => {
                let result = if entry.route.is_about_rollouts() {
                    self.serve_rollouts(entry.route, &person, asked).await
                } else {
                    self.serve_operator(entry.route, asked).await
                };
                // A signer writes all the time, and logs itself.
                if entry.access == Access::Act && !person.is_signer() {
                    let code = result
                        .as_ref()
                        .map_or_else(|problem| problem.code.as_str(), |_| "ok");
                    tracing::info!(operator = person.name, path = entry.path, code, "asked");
                }
                result
            }
        }
    }

    /// Who asks: by the token, or else by the connection's certificate.
    fn caller(&self, asked: &Asked<'_>) -> Result<Caller, Problem> {
        let caller = match bearer(&asked.head.headers) {
            Some(token) => self.callers.by_token(token),
            None => asked.connection.peer.caller(),
        };
        caller.cloned().ok_or_else(|| {
            Problem::new(
                Code::Unauthorized,
                "send `Authorization: Bearer TOKEN` with a token that a `token_file` of the hub \
                 lists, or present a client certificate that the hub's config names",
            )
        })
    }

    fn check_head(&self, head: &request::Parts) -> Result<(), Problem> {
        let target = head.uri.path().len() + head.uri.query().map_or(0, str::len);
        let headers = head.headers.iter();
        let length: usize = headers
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        let max = self.heads.header_bytes;
        if target + length > max {
            let detail = format!("path and headers may have at most {max} bytes together");
            return Err(Problem::new(Code::HeadersTooLarge, detail));
        }
        Ok(())
    }

    async fn serve_sidecar(
        &self,
        route: Route,
        identity: &Arc<Identity>,
        asked: Asked<'_>,
    ) -> Result<Response<ResponseBody>, Problem> {
        let account = &identity.account;
        match route {
            Route::Stream => self.open_stream(identity, &asked).await,
            Route::Report => {
                let headers = asked.head.headers;
                let size = BodySize {
                    max_len: self.limits.report,
                    memory_factor: HubLimits::REPORT_COST,
                };
                let body = self.read(account, asked.body, size).await?;
                self.take_report(identity, &headers, body).await
            }
            _ => {
                let size = BodySize {
                    max_len: MAX_ANSWER,
                    memory_factor: REQUEST_COST,
                };
                let body = self.read(account, asked.body, size).await?;
                let answer: ProofAnswer = parse(&body, "a proof's answer")?;
                self.proofs.take(&self.streams, identity, answer)?;
                Ok(response(JSON, "{}"))
            }
        }
    }

    async fn open_stream(
        &self,
        identity: &Arc<Identity>,
        asked: &Asked<'_>,
    ) -> Result<Response<ResponseBody>, Problem> {
        let instance = instance(asked.head.uri.query().unwrap_or_default())?;
        let owner = self.store.find(&instance).await?;
        if let Some(owner) = &owner {
            identity.require_own(&owner.identity)?;
            identity.require(&owner.name, &owner.workload)?;
        }
        let name = owner.map(|owner| (owner.name, owner.workload));
        let welcome = StreamEvent::Welcome(Welcome {
            protocol: PROTOCOL,
            hub: env!("CARGO_PKG_VERSION").into(),
            report_seconds: self.report_seconds,
        });
        let first: Vec<StreamEvent> = [Some(welcome), self.barriers.last()]
            .into_iter()
            .flatten()
            .collect();
        let draining = asked.connection.draining.clone();
        let owner = self.seats.owner(&instance);
        let owner = (owner.as_ref(), name);
        let events = self
            .streams
            .open(instance, identity, owner, &first, draining)?;
        let body = ResponseBody::from(ResponseStream::new(events, None));
        Ok(respond_with(EVENTS, body))
    }

    async fn take_report(
        &self,
        identity: &Arc<Identity>,
        headers: &hyper::HeaderMap,
        body: BufferedBody,
    ) -> Result<Response<ResponseBody>, Problem> {
        let (report, digest) = report::verify(headers, &body.bytes)?;
        identity.require(&report.name, &report.workload)?;
        let instance = report.instance;
        let is_final = report.is_final;
        let refusal = self.seats.take(&instance, identity).err();
        let received = Received {
            report,
            digest,
            at: self.clock.now(),
            _share: body.share,
        };
        self.intake
            .take(received, Arc::clone(identity), refusal)
            .await?;
        if is_final {
            self.seats.free(&instance);
        }
        Ok(response(JSON, "{}"))
    }

    async fn serve_operator(
        &self,
        route: Route,
        asked: Asked<'_>,
    ) -> Result<Response<ResponseBody>, Problem> {
        let account = self.accounts.of_operators();
        let size = BodySize {
            max_len: MAX_REQUEST,
            memory_factor: REQUEST_COST,
        };
        match route {
            Route::Metrics => charged(self.registry.render(), PROMETHEUS, account),
            Route::Sidecars => {
                let list = sidecars::list(self.joined());
                let body = ResponseBody::from(ResponseStream::new(list, None));
                Ok(respond_with(JSON, body))
            }
            Route::Keyrings => {
                // One at a time: each holds the statuses of the whole fleet.
                let _turn = self.inventories.lock().await;
                json(&sidecars::inventory(self.joined()).await?, account)
            }
            Route::Hint => {
                let body = self.read(account, asked.body, size).await?;
                let hint: HintRequest = parse(&body, "a hint")?;
                let sent = self.hints.send(&self.streams, hint)?;
                metrics::count_events(&self.registry, "hint", sent.len());
                json(&Hinted { sent }, account)
            }
            Route::Proofs => {
                let body = self.read(account, asked.body, size).await?;
                let request: ProofsRequest = parse(&body, "a request for proofs")?;
                let asked = request.sidecars.len();
                let proofs = self.proofs.ask(&self.streams, request).await?;
                metrics::count_events(&self.registry, "prove", asked);
                json(&proofs, account)
            }
            Route::Evidence => {
                let body = self.read(account, asked.body, size).await?;
                let request: EvidenceRequest = parse(&body, "a request for evidence")?;
                let barrier = self.barrier(evidence::PATIENCE).await?;
                // One at a time: each holds the books of a whole fleet.
                let _turn = self.inventories.lock().await;
                let judging = evidence::judge(&self.store, &request, &barrier, &self.clock);
                let verdict = judging.await?;
                json(&verdict, account)
            }
            _ => {
                let body = self.read(account, asked.body, size).await?;
                let request: BarrierRequest = parse(&body, "a request for a barrier")?;
                self.set_barrier(&request, account).await
            }
        }
    }

    fn joined(&self) -> Joined {
        Joined::new(Arc::clone(&self.store), Arc::clone(&self.streams))
    }

    async fn set_barrier(
        &self,
        request: &BarrierRequest,
        account: &Arc<Account>,
    ) -> Result<Response<ResponseBody>, Problem> {
        let seconds = request.wait_seconds;
        if seconds > MAX_WAIT {
            let detail = format!("wait_seconds must be 0 to {MAX_WAIT}");
            return Err(Problem::new(Code::InvalidRequest, detail));
        }
        let wait = Duration::from_secs(seconds.into());
        let barrier = self.barrier(wait).await?;
        json(&barrier, account)
    }

    async fn barrier(&self, wait: Duration) -> Result<Barrier, Problem> {
        let set = self
            .barriers
            .set(&self.store, &self.streams, &self.clock, wait);
        let barrier = set.await?;
        metrics::barrier_set(&self.registry, barrier.at);
        Ok(barrier)
    }

    pub(super) async fn read(
        &self,
        account: &Arc<Account>,
        body: RequestBody,
        size: BodySize,
    ) -> Result<BufferedBody, Problem> {
        self.bodies
            .read(
                account,
                body,
                BodyStart::default(),
                size,
                Vec::with_capacity,
            )
            .await
    }
}

/// Returns the instance that a stream is for.
fn instance(query: &str) -> Result<InstanceId, Problem> {
    let mut members = form_urlencoded::parse(query.as_bytes());
    members
        .find(|(name, _)| name == "instance")
        .and_then(|(_, value)| from_hex(value.as_bytes()))
        .ok_or_else(|| {
            Problem::new(
                Code::InvalidRequest,
                "the query must be instance= and 32 hexadecimal digits",
            )
        })
}

pub(super) fn parse<T: DeserializeOwned>(body: &BufferedBody, what: &str) -> Result<T, Problem> {
    serde_json::from_slice(&body.bytes).map_err(|error| {
        Problem::new(
            Code::InvalidRequest,
            format!("the body is not {what}: {error}"),
        )
    })
}

pub(super) fn json(
    value: &impl Serialize,
    account: &Arc<Account>,
) -> Result<Response<ResponseBody>, Problem> {
    let text = serde_json::to_string(value)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    charged(text, JSON, account)
}

/// Responds with a text that is charged to `account`.
fn charged(
    text: String,
    content_type: &'static str,
    account: &Arc<Account>,
) -> Result<Response<ResponseBody>, Problem> {
    let mut payload = Payload::from(text);
    if !payload.charge(account) {
        return Err(crate::http::memory::overloaded());
    }
    Ok(respond_with(content_type, payload.into()))
}

pub(super) fn response(
    content_type: &'static str,
    body: impl Into<Payload>,
) -> Response<ResponseBody> {
    respond_with(content_type, ResponseBody::from(body))
}

pub(super) fn respond_with(
    content_type: &'static str,
    body: ResponseBody,
) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
