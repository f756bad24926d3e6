//! Logging in to Vault, by each of the configured methods.

use std::{collections::BTreeMap, path::Path, time::Duration};

use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    MAX_RESPONSE, Vault,
    token::{Auth, LoginResponse, Token, TokenLife},
};
use crate::{
    backend::{ErrorKind, error::Failure},
    config::VaultLogin,
    files::run_blocking,
};

/// The capacity of login requests, so that the buffer is never reallocated.
const BODY_CAPACITY: usize = 8192;
/// How long a rejected secret id is not retried, at first and at most. Vault locks a role after
/// five failures that are less than 15 minutes apart.
const FIRST_REJECTION: Duration = Duration::from_secs(60);
const MAX_REJECTION: Duration = Duration::from_secs(16 * 60);

/// A secret id that Vault has rejected.
pub(super) struct RejectedSecretId {
    secret_id: Zeroizing<String>,
    failure: Failure,
    pause: Duration,
    until: Instant,
}

#[derive(Deserialize)]
struct LookupResponse {
    data: TokenData,
}

#[derive(Deserialize)]
struct TokenData {
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

impl RejectedSecretId {
    fn new(secret_id: Zeroizing<String>, file: &Path, failure: &Failure, pause: Duration) -> Self {
        // The same text each time, so that it is logged once.
        let message = format!(
            "{}; the secret id in {} is rarely retried, because five failures lock the role; a \
             new one is used at once",
            failure.message,
            file.display()
        );
        Self {
            secret_id,
            failure: Failure::new(failure.kind, message),
            pause,
            until: Instant::now() + pause,
        }
    }
}

impl Vault {
    /// Logs in by the configured method. `rejected` remembers a secret id that Vault rejected.
    pub(super) async fn log_in(
        &self,
        rejected: &mut Option<RejectedSecretId>,
    ) -> Result<(Token, TokenLife), Failure> {
        match &self.session.login {
            VaultLogin::Environment => self.look_up(Token(token_of_environment().await?)).await,
            VaultLogin::TokenFile(file) => self.look_up(Token(read_credential(file).await?)).await,
            VaultLogin::AppRole {
                mount,
                role_id,
                secret_id_file,
            } => {
                self.log_in_to_role(rejected, mount, role_id, secret_id_file)
                    .await
            }
            VaultLogin::Jwt {
                mount,
                role,
                token_file,
            } => {
                let jwt = read_credential(token_file).await?;
                self.authenticate(mount, &[("role", role), ("jwt", &jwt)])
                    .await
            }
        }
    }

    async fn log_in_to_role(
        &self,
        rejected: &mut Option<RejectedSecretId>,
        mount: &str,
        role_id: &str,
        secret_id_file: &Path,
    ) -> Result<(Token, TokenLife), Failure> {
        let secret_id = read_credential(secret_id_file).await?;
        let same = rejected
            .as_ref()
            .filter(|rejected| *rejected.secret_id == *secret_id);
        if let Some(rejected) = same.filter(|rejected| Instant::now() < rejected.until) {
            return Err(rejected.failure.clone());
        }
        let pause = same.map_or(FIRST_REJECTION, |rejected| next_pause(rejected.pause));
        let members = [("role_id", role_id), ("secret_id", &secret_id)];
        match self.authenticate(mount, &members).await {
            Err(failure) if failure.kind == ErrorKind::Denied => {
                let again = RejectedSecretId::new(secret_id, secret_id_file, &failure, pause);
                Err(rejected.insert(again).failure.clone())
            }
            result => result,
        }
    }

    async fn authenticate(
        &self,
        mount: &str,
        members: &[(&str, &str)],
    ) -> Result<(Token, TokenLife), Failure> {
        let mut body = Zeroizing::new(Vec::with_capacity(BODY_CAPACITY));
        let members: BTreeMap<_, _> = members.iter().copied().collect();
        serde_json::to_writer(&mut *body, &members)
            .map_err(|error| Failure::new(ErrorKind::Misconfigured, error.to_string()))?;
        let response = self
            .send(
                Method::POST,
                &format!("auth/{mount}/login"),
                Some(body),
                None,
                MAX_RESPONSE,
            )
            .await?;
        let Auth {
            client_token,
            lease_duration,
            renewable,
        } = response
            .ok()
            .map_err(|failure| login_failed(mount, &failure))?
            .parse::<LoginResponse>()?
            .auth;
        Ok((
            Token(Zeroizing::new(client_token)),
            TokenLife::new(lease_duration, renewable),
        ))
    }

    async fn look_up(&self, token: Token) -> Result<(Token, TokenLife), Failure> {
        let response = self
            .send(
                Method::GET,
                "auth/token/lookup-self",
                None,
                Some(&token),
                MAX_RESPONSE,
            )
            .await?;
        let life = match response.status {
            StatusCode::OK => {
                let LookupResponse { data } = response.parse()?;
                TokenLife::new(data.ttl, data.renewable)
            }
            // The token is valid but may not look itself up: it lacks the policy `default`.
            StatusCode::FORBIDDEN
                if !response.is_invalid_token() && self.accepts(&token).await? =>
            {
                TokenLife::new(0, false)
            }
            StatusCode::FORBIDDEN => {
                let message = "Vault does not know the token: it expired, was revoked, or belongs \
                               to another server";
                return Err(Failure::new(ErrorKind::Denied, message));
            }
            _ => return Err(response.failure()),
        };
        Ok((token, life))
    }

    /// Whether the server accepts a token that may not look itself up. OpenBao also responds with
    /// "permission denied" to invalid tokens. Every valid token may list the mounts visible to it.
    async fn accepts(&self, token: &Token) -> Result<bool, Failure> {
        let response = self
            .send(
                Method::GET,
                "sys/internal/ui/mounts",
                None,
                Some(token),
                MAX_RESPONSE,
            )
            .await?;
        Ok(response.status != StatusCode::FORBIDDEN)
    }
}

fn next_pause(pause: Duration) -> Duration {
    (pause * 4).min(MAX_REJECTION)
}

fn login_failed(mount: &str, failure: &Failure) -> Failure {
    let kind = match failure.kind {
        ErrorKind::Rejected | ErrorKind::NotFound => ErrorKind::Denied,
        kind => kind,
    };
    let message = format!("can't log in at auth/{mount}: {}", failure.message);
    Failure::new(kind, message)
}

/// Returns `VAULT_TOKEN`, or else the token that `vault login` stored.
async fn token_of_environment() -> Result<Zeroizing<String>, Failure> {
    let no_token = |reason: &str| {
        let message = format!("set VAULT_TOKEN or configure [vault.login]; {reason}");
        Failure::new(ErrorKind::Denied, message)
    };
    match std::env::var("VAULT_TOKEN") {
        Ok(token) if !token.is_empty() => Ok(Zeroizing::new(token)),
        _ => {
            let home = std::env::home_dir().ok_or_else(|| no_token("there is no home folder"))?;
            read_credential(&home.join(".vault-token"))
                .await
                .map_err(|failure| no_token(&failure.message))
        }
    }
}

/// Reads a credential from a file, without surrounding white space.
async fn read_credential(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let path = file.to_owned();
    let denied = |message| Failure::new(ErrorKind::Denied, message);
    let text = run_blocking(move || std::fs::read_to_string(path))
        .await
        .map_err(|error| denied(format!("can't read {}: {error}", file.display())))?;
    let text = Zeroizing::new(text);
    match text.trim() {
        "" => Err(denied(format!("{} is empty", file.display()))),
        credential => Ok(Zeroizing::new(credential.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_secret_id_alone_never_locks_its_role() {
        // Vault's defaults: five failures lock, and 15 minutes without one reset the count.
        let (mut failures, mut pause) = (1, FIRST_REJECTION);
        while pause <= Duration::from_secs(15 * 60) {
            failures += 1;
            pause = next_pause(pause);
        }
        assert!(failures < 5, "{failures}");
        assert_eq!(next_pause(MAX_REJECTION), MAX_REJECTION);
    }
}
