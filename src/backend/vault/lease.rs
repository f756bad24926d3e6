//! `vault-lease:PATH`: credentials that Vault makes anew for everyone who asks, and takes back when their lease ends.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use tracing::debug;
use zeroize::Zeroizing;

use super::{ANSWER, Answer as Response, Fault, Vault};
use crate::{
    backend::{
        Answer, Fetched, Held, KekFault, Lease, SecretError, SecretFault, SecretProvider, Which,
        secret::value_text,
    },
    crypto::{fingerprint, to_hex},
    model::SecretSource,
};

/// How long credentials are waited for when nobody else does any more, and how long giving them back then may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than any lease: whatever a server says, times can be counted with it.
const LONGEST: u64 = 10 * 365 * 24 * 3600;

/// Where credentials are made. Every read makes new ones.
pub(super) struct LeasedSecret {
    vault: Arc<Vault>,
    path: String,
    source: SecretSource,
}

/// What an engine gives.
#[derive(Deserialize)]
struct Credentials<'a> {
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
struct Renewed {
    lease_duration: u64,
}

#[derive(Deserialize)]
struct LookedUp {
    data: Remaining,
}

#[derive(Deserialize)]
struct Remaining {
    /// In seconds; negative, should it be ending just now.
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

    async fn make(&self, limit: usize) -> Result<Fetched, SecretError> {
        let (vault, path, source) = (
            Arc::clone(&self.vault),
            self.path.clone(),
            self.source.clone(),
        );
        let (sender, receiver) = oneshot::channel();
        // In a task of its own: credentials that come when nobody waits for them any more are given back instead of being left behind.
        tokio::spawn(async move {
            let Ok(made) = timeout(PATIENCE, ask(&vault, &path, &source, limit)).await else {
                return;
            };
            if let Err(Ok(Fetched {
                lease: Some(lease), ..
            })) = sender.send(made)
            {
                give_back(&*lease).await;
            }
        });
        let late = |_| {
            SecretError::new(
                SecretFault::Unavailable,
                format!("{}: no answer in {PATIENCE:?}", self.source),
            )
        };
        receiver.await.map_err(late)?
    }
}

async fn ask(
    vault: &Arc<Vault>,
    path: &str,
    source: &SecretSource,
    limit: usize,
) -> Result<Fetched, SecretError> {
    let asked = Instant::now();
    let failed = |fault: Fault| fault.of_secret(source);
    let answer = vault
        .call(Method::GET, path, None, limit.saturating_add(ANSWER))
        .await
        .map_err(failed)?;
    if answer.status != StatusCode::OK {
        let errors = answer.errors();
        let fault = answer.fault_of(path, "read");
        return Err(match answer.status {
            // A database's words for a role that isn't there.
            StatusCode::BAD_REQUEST if errors.contains("unknown role") => {
                SecretError::not_found(source, &errors)
            }
            _ => failed(fault),
        });
    }
    let Credentials {
        lease_id,
        renewable,
        lease_duration,
        data,
    } = answer.parse_borrowed().map_err(failed)?;
    if lease_id.is_empty() {
        let how = "what Vault gives there has no lease; is it a key-value secret (vault-kv:)?";
        return Err(SecretError::new(
            SecretFault::Misconfigured,
            format!("{source}: {how}"),
        ));
    }
    let version = to_hex(&fingerprint(lease_id.as_bytes())[..8]);
    let duration = Duration::from_secs(lease_duration.min(LONGEST));
    let lease = VaultLease {
        vault: Arc::clone(vault),
        source: source.clone(),
        id: lease_id,
        duration,
        is_renewable: renewable,
        end: Mutex::new(asked + duration),
    };
    let bytes = match data.map(|data| value_text(data, limit)) {
        Some(Some(bytes)) => bytes,
        unusable => {
            give_back(&lease).await;
            return Err(match unusable {
                None => SecretError::not_found(source, "Vault gave a lease of nothing"),
                Some(_) => SecretError::too_long(source, limit),
            });
        }
    };
    Ok(Fetched {
        bytes,
        version,
        created_at: None,
        expires_at: None,
        lease: Some(Arc::new(lease)),
    })
}

/// Gives back what nobody will use.
async fn give_back(lease: &dyn Lease) {
    match timeout(PATIENCE, lease.revoke()).await {
        Ok(Ok(())) => {}
        // It ends by itself.
        Ok(Err(error)) => {
            debug!(%error, "credentials that nobody waited for could not be given back")
        }
        Err(_) => debug!("credentials that nobody waited for could not be given back in time"),
    }
}

struct VaultLease {
    vault: Arc<Vault>,
    source: SecretSource,
    id: String,
    duration: Duration,
    is_renewable: bool,
    /// When it ends, as far as we know.
    end: Mutex<Instant>,
}

impl VaultLease {
    async fn extend(&self) -> Result<Duration, SecretError> {
        let asked = Instant::now();
        let body = json!({ "lease_id": self.id, "increment": self.duration.as_secs() });
        let answer = self.call("renew", &body).await?;
        let Renewed { lease_duration } = self.accepted(&answer, "renew")?;
        Ok(self.runs(asked, lease_duration))
    }

    async fn look(&self) -> Result<Duration, SecretError> {
        let asked = Instant::now();
        let answer = self.call("lookup", &json!({ "lease_id": self.id })).await?;
        if answer.status == StatusCode::FORBIDDEN {
            // A right that nobody needs. Then it runs as long as it was given for.
            let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
            return match end.checked_duration_since(asked) {
                Some(left) if !left.is_zero() => Ok(left),
                _ => Err(self.ended("its time is over")),
            };
        }
        let LookedUp {
            data: Remaining { ttl },
        } = self.accepted(&answer, "lookup")?;
        match u64::try_from(ttl) {
            Ok(ttl) if ttl > 0 => Ok(self.runs(asked, ttl)),
            _ => Err(self.ended("its time is over")),
        }
    }

    async fn end(&self) -> Result<(), SecretError> {
        let answer = self.call("revoke", &json!({ "lease_id": self.id })).await?;
        // One that has ended already is answered in the same way.
        if answer.status.is_success() {
            Ok(())
        } else {
            Err(self.refused(&answer, "revoke"))
        }
    }

    async fn call(
        &self,
        operation: &str,
        body: &serde_json::Value,
    ) -> Result<Response, SecretError> {
        let body = Zeroizing::new(body.to_string().into_bytes());
        let answer = self
            .vault
            .call(
                Method::PUT,
                &format!("sys/leases/{operation}"),
                Some(body),
                ANSWER,
            )
            .await;
        answer.map_err(|fault| fault.of_secret(&self.source))
    }

    fn accepted<'a, T: Deserialize<'a>>(
        &self,
        answer: &'a Response,
        operation: &str,
    ) -> Result<T, SecretError> {
        if !answer.status.is_success() {
            return Err(self.refused(answer, operation));
        }
        answer
            .parse_borrowed()
            .map_err(|fault| fault.of_secret(&self.source))
    }

    fn refused(&self, answer: &Response, operation: &str) -> SecretError {
        let errors = answer.errors();
        let is_gone = ["lease not found", "invalid lease", "lease expired"]
            .iter()
            .any(|words| errors.contains(words));
        match answer.fault_of(&format!("sys/leases/{operation}"), "update") {
            Fault {
                kind: KekFault::Refused | KekFault::Missing,
                ..
            } if is_gone => self.ended(&errors),
            fault => fault.of_secret(&self.source),
        }
    }

    fn ended(&self, why: &str) -> SecretError {
        SecretError::not_found(
            &self.source,
            &format!("the lease ended or was revoked: {why}"),
        )
    }

    fn runs(&self, asked: Instant, seconds: u64) -> Duration {
        let left = Duration::from_secs(seconds.min(LONGEST));
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = asked + left;
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

    fn renew(&self) -> BoxFuture<'_, Result<Duration, SecretError>> {
        Box::pin(async move {
            if self.is_renewable {
                self.extend().await
            } else {
                self.look().await
            }
        })
    }

    fn revoke(&self) -> BoxFuture<'_, Result<(), SecretError>> {
        Box::pin(self.end())
    }
}

impl SecretProvider for LeasedSecret {
    fn fetch<'a>(
        &'a self,
        which: &'a Which,
        _: Option<Held<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Answer, SecretError>> {
        Box::pin(async move {
            match which {
                Which::Current => self.make(limit).await.map(Answer::Value),
                _ => Err(SecretError::not_found(
                    &self.source,
                    "leased credentials are made anew, and no others are kept",
                )),
            }
        })
    }
}
