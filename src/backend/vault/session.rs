//! The session with Vault: a token that is renewed while in use, and a new login when it expires.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use hyper::{Method, StatusCode};
use serde_json::json;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info};
use zeroize::{Zeroize, Zeroizing};

use super::{
    MAX_RESPONSE, Response, Vault,
    login::RejectedSecretId,
    token::{LoginResponse, Token, TokenLife},
};
use crate::{
    backend::{ErrorKind, error::Failure},
    config::VaultLogin,
};

const RENEWAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Tokens with a shorter lifetime are renewed no more often than this.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);

/// The configured login and its result. Locked during a login, so that concurrent callers share it.
pub(super) struct Session {
    pub(super) login: VaultLogin,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Token>>,
    /// The last failed login, for the callers that waited for it.
    failure: Option<(Instant, Failure)>,
    rejected: Option<RejectedSecretId>,
}

impl Session {
    pub(super) fn new(login: VaultLogin) -> Self {
        Self {
            login,
            state: Mutex::default(),
        }
    }
}

impl Vault {
    /// Returns the token; logs in if there is none.
    pub(super) async fn token(self: &Arc<Self>) -> Result<Arc<Token>, Failure> {
        let start = Instant::now();
        let mut state = self.session.state.lock().await;
        if let Some(token) = &state.token {
            return Ok(Arc::clone(token));
        }
        if let Some((at, failure)) = &state.failure
            && *at >= start
        {
            return Err(failure.clone());
        }
        let (token, life) = match self.log_in(&mut state.rejected).await {
            Ok(login) => login,
            Err(failure) => {
                state.failure = Some((Instant::now(), failure.clone()));
                return Err(failure);
            }
        };
        let token = Arc::new(token);
        info!(address = %self.address, "logged in to Vault");
        if life.is_renewable && !life.duration.is_zero() {
            tokio::spawn(keep_alive(
                Arc::downgrade(self),
                Arc::downgrade(&token),
                life.duration,
            ));
        }
        *state = State {
            token: Some(Arc::clone(&token)),
            ..State::default()
        };
        Ok(token)
    }

    /// Discards a token, unless it has already been replaced.
    pub(super) async fn discard(&self, token: &Arc<Token>) {
        let mut state = self.session.state.lock().await;
        if state
            .token
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, token))
        {
            state.token = None;
        }
    }

    /// Whether Vault still accepts a token, after it `denied` a request with it.
    pub(super) async fn is_alive(&self, token: &Token, denied: &Response) -> Result<bool, Failure> {
        if denied.is_invalid_token() {
            return Ok(false);
        }
        let response = self
            .send(
                Method::GET,
                "auth/token/lookup-self",
                None,
                Some(token),
                MAX_RESPONSE,
            )
            .await?;
        match response.status {
            // Not every server says why. An unnecessary login is harmless.
            StatusCode::FORBIDDEN => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(response.failure()),
        }
    }

    async fn renew(&self, token: &Token) -> Result<TokenLife, Failure> {
        let body = Zeroizing::new(json!({}).to_string().into_bytes());
        let response = self
            .send(
                Method::POST,
                "auth/token/renew-self",
                Some(body),
                Some(token),
                MAX_RESPONSE,
            )
            .await?
            .ok()?;
        let LoginResponse { mut auth } = response.parse()?;
        auth.client_token.zeroize();
        Ok(TokenLife::new(auth.lease_duration, auth.renewable))
    }
}

/// Renews a token at two thirds of its lifetime, as long as it is in use and Vault extends it.
async fn keep_alive(vault: Weak<Vault>, token: Weak<Token>, mut life: Duration) {
    loop {
        sleep((life * 2 / 3).max(MIN_RENEWAL_INTERVAL)).await;
        let (Some(vault), Some(token)) = (vault.upgrade(), token.upgrade()) else {
            return;
        };
        match timeout(RENEWAL_TIMEOUT, vault.renew(&token)).await {
            // Near its maximum lifetime a token is no longer extended. It is then discarded, so
            // that the next request logs in before it expires.
            Ok(Ok(renewed)) if renewed.is_renewable && renewed.duration > life / 3 => {
                life = renewed.duration;
            }
            Ok(Err(failure))
                if matches!(failure.kind, ErrorKind::Unavailable | ErrorKind::Throttled) =>
            {
                life /= 3;
            }
            Err(_) => life /= 3,
            renewed => {
                let was_renewed = renewed.is_ok_and(|renewed| renewed.is_ok());
                debug!(was_renewed, "discarding the Vault token");
                vault.discard(&token).await;
                return;
            }
        }
        if life < MIN_RENEWAL_INTERVAL {
            vault.discard(&token).await;
            return;
        }
    }
}
