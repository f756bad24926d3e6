//! `GET /v1/secrets` and `GET /v1/secrets/{name}`.

mod request;
mod response;

use std::{sync::Arc, time::Instant};

use hyper::{Method, Request, Response};
use jiff::Timestamp;
use serde::Serialize;

use self::request::SecretQuery;
use super::{
    denial::{Denials, Resource},
    metrics::SecretRequestMetrics,
};
use crate::{
    http::{
        body::RequestBody, connection::Connection, peer::Peer, problem::Problem,
        response::ResponseBody,
    },
    model::SecretName,
    policy::{ActivePolicy, Policy},
    secrets::{Secret, Secrets},
    wire::Code,
};

/// Serves secrets.
pub(crate) struct SecretService {
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) policy: Arc<ActivePolicy>,
    pub(crate) metrics: SecretRequestMetrics,
    pub(crate) denials: Denials,
}

/// The list of secrets.
#[derive(Serialize)]
pub(crate) struct SecretList {
    secrets: Vec<SecretDescription>,
}

/// A secret without its value.
#[derive(Serialize)]
struct SecretDescription {
    name: String,
    version: String,
    created_at: Option<Timestamp>,
    confirmed_at: Timestamp,
    stale: bool,
}

/// A problem, with the name of the secret for metrics and audit. Names that are not configured have
/// none, so that callers can't create series.
type FetchError = (Option<SecretName>, Problem);

impl SecretService {
    /// Lists the secrets that the caller may fetch and that have a value. Requesting one that is
    /// not listed returns the reason.
    pub(crate) fn list(&self, peer: &Peer) -> SecretList {
        let visible = self.policy.decide(|policy| {
            let mut secrets = self.secrets.all();
            secrets.retain(|secret| policy.may_fetch(&peer.caller, secret.name()));
            secrets
        });
        SecretList {
            secrets: visible
                .iter()
                .filter_map(|secret| SecretDescription::of(secret))
                .collect(),
        }
    }

    /// Responds with a secret's value or a problem, and counts the request, whose head arrived at
    /// `start`.
    pub(crate) async fn respond(
        &self,
        connection: &Connection<Peer>,
        name: &str,
        request: &Request<RequestBody>,
        start: Instant,
    ) -> Response<ResponseBody> {
        let (name, problem) = match self.fetch(connection, name, request).await {
            Ok(response) => {
                self.metrics.succeeded(start.elapsed());
                return response;
            }
            Err(error) => error,
        };
        let (caller, code) = (&connection.peer.caller, problem.code);
        self.metrics.failed(name.as_ref(), code, start.elapsed());
        let resource = Resource::Secret(name.as_ref());
        self.denials.add(caller, resource, code, None);
        problem.into_response()
    }

    async fn fetch(
        &self,
        connection: &Connection<Peer>,
        name: &str,
        request: &Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, FetchError> {
        let (peer, account) = (&connection.peer, &connection.account);
        let secret = self.policy.decide(|policy| match self.secrets.get(name) {
            // The usual case first: a secret that is held and that the caller may fetch.
            Some(secret) if policy.may_fetch(&peer.caller, secret.name()) => Ok(secret),
            _ => self.find(policy, peer, name),
        })?;
        let with_name = |problem| (secret.has_series().then(|| secret.name().clone()), problem);
        let (uri, headers) = (request.uri(), request.headers());
        let query = SecretQuery::parse(uri.query(), headers).map_err(with_name)?;
        let served = secret.get(&query.request).await.map_err(|reason| {
            with_name(response::refused(&secret, &query.request.version, reason))
        })?;
        let response = response::respond(&secret, &query, &served, headers, account)
            .await
            .map_err(with_name)?;
        if request.method() != Method::HEAD {
            secret.record_served(&served);
        }
        Ok(response)
    }

    fn find(&self, policy: &Policy, peer: &Peer, name: &str) -> Result<Arc<Secret>, FetchError> {
        let unknown = || {
            let detail = "GET /v1/secrets lists the secrets that are held and you may fetch";
            (None, Problem::new(Code::SecretNotFound, detail))
        };
        let parsed: SecretName = name.parse().map_err(|_| unknown())?;
        if !policy.may_fetch(&peer.caller, &parsed) {
            let held = self.secrets.get(name).map(|secret| secret.name().clone());
            let detail = format!("no rule allows this caller to fetch secret {parsed}");
            return Err((held, Problem::new(Code::Forbidden, detail)));
        }
        match self.secrets.get_or_add(name) {
            Some(secret) => Ok(secret),
            None if self.secrets.is_configured(name) => {
                let detail = "the limit `secrets.wild_names` of secrets under a `*` is reached";
                Err((None, Problem::new(Code::Overloaded, detail).retry_after(5)))
            }
            None => Err(unknown()),
        }
    }
}

impl SecretDescription {
    /// Returns None while no value is held.
    fn of(secret: &Secret) -> Option<Self> {
        let status = secret.status();
        let current = status.current?;
        Some(Self {
            name: secret.name().to_string(),
            version: current.version,
            created_at: current.created_at,
            confirmed_at: current.confirmed_at,
            stale: status.failure.is_some(),
        })
    }
}
