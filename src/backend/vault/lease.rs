//! `vault-lease:PATH`: dynamic credentials, and those of static roles. Vault creates the former for
//! each read and revokes them when their lease expires; the latter it changes from time to time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::{sync::oneshot, time::timeout};
use tracing::debug;
use zeroize::Zeroizing;

use super::{MAX_RESPONSE, Response, Vault, static_role::StaticCredentials};
use crate::{
    backend::{
        BackendError, ErrorKind, FetchOutcome, FetchedValue, HeldValue, Lease, SecretProvider,
        VersionSelector, error::Failure, secret::value_text,
    },
    clock::{Clock, Uptime},
    crypto::{fingerprint, to_hex},
    model::SecretSource,
};

/// How long to wait for credentials whose caller has left, and for their revocation.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(60);
/// Leases are capped at ten years, in seconds, so that adding one to a time can't overflow.
const MAX_LEASE: u64 = 10 * 365 * 24 * 3600;

/// A path that issues credentials. Every read creates new ones.
pub(super) struct LeasedSecret {
    vault: Arc<Vault>,
    path: String,
    source: SecretSource,
}

#[derive(Deserialize)]
struct CredentialsResponse<'a> {
    #[serde(default)]
    lease_id: String,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    lease_duration: u64,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RenewResponse {
    lease_duration: u64,
}

#[derive(Deserialize)]
struct LookupResponse {
    data: TimeLeft,
}

#[derive(Deserialize)]
struct TimeLeft {
    /// In seconds; negative if the lease is just expiring.
    ttl: i64,
}

impl LeasedSecret {
    pub(super) fn new(vault: Arc<Vault>, path: &str, source: SecretSource) -> Self {
        Self {
            vault,
            path: path.to_owned(),
            source,
        }
    }

    async fn issue(
        &self,
        held: Option<HeldValue<'_>>,
        limit: usize,
    ) -> Result<FetchedValue, BackendError> {
        let (vault, path, source) = (
            Arc::clone(&self.vault),
            self.path.clone(),
            self.source.clone(),
        );
        let (sender, receiver) = oneshot::channel();
        // In a separate task: if the caller stops waiting, the credentials are revoked when they
        // arrive, instead of remaining valid unused.
        tokio::spawn(async move {
            let issued = timeout(ABANDONED_TIMEOUT, issue(&vault, &path, &source, limit)).await;
            let Ok(issued) = issued else {
                return;
            };
            if let Err(Ok(Issued::Leased(FetchedValue {
                lease: Some(lease), ..
            }))) = sender.send(issued)
            {
                revoke_unused(&*lease).await;
            }
        });
        let issued = receiver.await.map_err(|_| {
            let message = format!("no response within {ABANDONED_TIMEOUT:?}");
            BackendError::new(ErrorKind::Unavailable, &self.source, message)
        })??;
        Ok(match issued {
            Issued::Leased(value) => value,
            Issued::Static(credentials) => credentials.into_value(held, Timestamp::now()),
        })
    }
}

enum Issued {
    Leased(FetchedValue),
    Static(StaticCredentials),
}

async fn issue(
    vault: &Arc<Vault>,
    path: &str,
    source: &SecretSource,
    limit: usize,
) -> Result<Issued, BackendError> {
    let clock = Clock::system();
    let start = clock.uptime();
    let failed = |failure: Failure| failure.on(source);
    let response = vault
        .call(Method::GET, path, None, limit.saturating_add(MAX_RESPONSE))
        .await
        .map_err(failed)?;
    if response.status != StatusCode::OK {
        let errors = response.errors();
        // A database engine's response for a missing role.
        if response.status == StatusCode::BAD_REQUEST && errors.contains("unknown role") {
            return Err(BackendError::not_found(source, &errors));
        }
        if response.status == StatusCode::METHOD_NOT_ALLOWED
            || errors.contains("unsupported operation")
        {
            let message = "Vault doesn't allow reads at this path: the engine issues credentials \
                           on a write, as Kubernetes, PKI and SSH do; have Vault Agent render \
                           them to a file, and use file:PATH";
            return Err(BackendError::new(ErrorKind::Misconfigured, source, message));
        }
        return Err(failed(response.failure_at(path, "read")));
    }
    let CredentialsResponse {
        lease_id,
        renewable,
        lease_duration,
        data,
    } = response.parse_borrowed().map_err(failed)?;
    if lease_id.is_empty() {
        if let Some(credentials) = data.and_then(StaticCredentials::of) {
            if credentials.len() > limit {
                return Err(BackendError::secret_too_large(source, limit));
            }
            return Ok(Issued::Static(credentials));
        }
        let message = "the response has neither a lease nor a time of rotation; is this a \
                       key-value secret (vault-kv:)?";
        return Err(BackendError::new(ErrorKind::Misconfigured, source, message));
    }
    let version = to_hex(&fingerprint(lease_id.as_bytes())[..8]);
    let duration = Duration::from_secs(lease_duration.min(MAX_LEASE));
    let lease = VaultLease {
        vault: Arc::clone(vault),
        source: source.clone(),
        id: lease_id,
        duration,
        is_renewable: renewable,
        expires: Mutex::new(start + duration),
        clock,
    };
    let error = match data.map(|data| value_text(data, limit)) {
        Some(Some(bytes)) => {
            return Ok(Issued::Leased(FetchedValue {
                bytes,
                version,
                created_at: None,
                expires_at: None,
                lease: Some(Arc::new(lease)),
            }));
        }
        Some(None) => BackendError::secret_too_large(source, limit),
        None => BackendError::not_found(source, "the lease has no credentials"),
    };
    revoke_unused(&lease).await;
    Err(error)
}

/// Revokes credentials that will not be used. If that fails, they expire with their lease.
async fn revoke_unused(lease: &dyn Lease) {
    match timeout(ABANDONED_TIMEOUT, lease.revoke()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "can't revoke unused credentials"),
        Err(_) => debug!("can't revoke unused credentials: no response"),
    }
}

struct VaultLease {
    vault: Arc<Vault>,
    source: SecretSource,
    id: String,
    duration: Duration,
    is_renewable: bool,
    /// When the lease expires, as far as known.
    expires: Mutex<Uptime>,
    clock: Clock,
}

impl VaultLease {
    async fn extend(&self) -> Result<Duration, BackendError> {
        let start = self.clock.uptime();
        let body = json!({ "lease_id": self.id, "increment": self.duration.as_secs() });
        let response = self.call("renew", &body).await?;
        let RenewResponse { lease_duration } = self.parse(&response, "renew")?;
        Ok(self.set_time_left(start, lease_duration))
    }

    async fn look_up(&self) -> Result<Duration, BackendError> {
        let start = self.clock.uptime();
        let response = self.call("lookup", &json!({ "lease_id": self.id })).await?;
        if response.status == StatusCode::FORBIDDEN {
            // The permission is optional. Without it, the lease lasts as long as granted.
            let expires = *self.expires.lock().unwrap_or_else(PoisonError::into_inner);
            let left = expires.since(start);
            return if left.is_zero() {
                Err(self.expired("no time left"))
            } else {
                Ok(left)
            };
        }
        let LookupResponse {
            data: TimeLeft { ttl },
        } = self.parse(&response, "lookup")?;
        match u64::try_from(ttl) {
            Ok(ttl) if ttl > 0 => Ok(self.set_time_left(start, ttl)),
            _ => Err(self.expired("no time left")),
        }
    }

    async fn end(&self) -> Result<(), BackendError> {
        let response = self.call("revoke", &json!({ "lease_id": self.id })).await?;
        // Vault reports the same success for a lease that has already expired.
        if response.status.is_success() {
            Ok(())
        } else {
            Err(self.error(&response, "revoke"))
        }
    }

    async fn call(
        &self,
        operation: &str,
        body: &serde_json::Value,
    ) -> Result<Response, BackendError> {
        let body = Zeroizing::new(body.to_string().into_bytes());
        self.vault
            .call(
                Method::PUT,
                &format!("sys/leases/{operation}"),
                Some(body),
                MAX_RESPONSE,
            )
            .await
            .map_err(|failure| failure.on(&self.source))
    }

    fn parse<'a, T: Deserialize<'a>>(
        &self,
        response: &'a Response,
        operation: &str,
    ) -> Result<T, BackendError> {
        if !response.status.is_success() {
            return Err(self.error(response, operation));
        }
        response
            .parse_borrowed()
            .map_err(|failure| failure.on(&self.source))
    }

    fn error(&self, response: &Response, operation: &str) -> BackendError {
        let errors = response.errors();
        let is_gone = ["lease not found", "invalid lease", "lease expired"]
            .iter()
            .any(|text| errors.contains(text));
        let failure = response.failure_at(&format!("sys/leases/{operation}"), "update");
        match failure.kind {
            ErrorKind::Rejected | ErrorKind::NotFound if is_gone => self.expired(&errors),
            _ => failure.on(&self.source),
        }
    }

    fn expired(&self, reason: &str) -> BackendError {
        let message = format!("the lease expired or was revoked: {reason}");
        BackendError::not_found(&self.source, &message)
    }

    fn set_time_left(&self, since: Uptime, seconds: u64) -> Duration {
        let left = Duration::from_secs(seconds.min(MAX_LEASE));
        *self.expires.lock().unwrap_or_else(PoisonError::into_inner) = since + left;
        left
    }
}

impl Lease for VaultLease {
    fn duration(&self) -> Duration {
        self.duration
    }

    fn is_renewable(&self) -> bool {
        self.is_renewable
    }

    fn renew(&self) -> BoxFuture<'_, Result<Duration, BackendError>> {
        Box::pin(async move {
            if self.is_renewable {
                self.extend().await
            } else {
                self.look_up().await
            }
        })
    }

    fn revoke(&self) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(self.end())
    }
}

impl SecretProvider for LeasedSecret {
    fn fetch<'a>(
        &'a self,
        version: &'a VersionSelector,
        held: Option<HeldValue<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<FetchOutcome, BackendError>> {
        Box::pin(async move {
            match version {
                VersionSelector::Current => {
                    let issued = self.issue(held, limit).await?;
                    if issued.lease.is_some() {
                        return Ok(FetchOutcome::Value(issued));
                    }
                    Ok(FetchOutcome::current(issued, held))
                }
                _ => Err(BackendError::not_found(
                    &self.source,
                    "Vault keeps no other versions of these credentials",
                )),
            }
        })
    }
}
