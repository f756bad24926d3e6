//! Logging in to Vault, keeping the token alive, and logging in anew when it has ended.

use std::{
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use hyper::{Method, StatusCode, header::HeaderValue};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info};
use zeroize::{Zeroize, Zeroizing};

use super::{ANSWER, Answer, Fault, Vault};
use crate::{
    backend::{KekFault, aside},
    config::VaultLogin,
};

/// How long a renewal may take.
const RENEWAL_TIME: Duration = Duration::from_secs(10);
/// No token is renewed more often, however short it lives.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// Longer than any token lives: whatever a server says, times can be counted with it.
const LONGEST_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a secret id that was refused isn't tried again: at first, and at most. Vault locks a role for everybody after five
/// failures with less than 15 minutes from one to the next.
const FIRST_REFUSAL: Duration = Duration::from_secs(60);
const LONGEST_REFUSAL: Duration = Duration::from_secs(16 * 60);

/// How we log in, and what came of it. The lock is held while one caller logs in, so that many cause one login.
pub(super) struct Session {
    login: VaultLogin,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Token>>,
    /// The last failure, for those who waited for that login.
    failure: Option<(Instant, Fault)>,
    refused: Option<Refused>,
}

/// A secret id that Vault doesn't take.
struct Refused {
    secret_id: Zeroizing<String>,
    fault: Fault,
    pause: Duration,
    until: Instant,
}

/// A token; zeroized on drop, without `Debug`.
pub(super) struct Token(Zeroizing<String>);

impl Token {
    pub(super) fn header(&self) -> Result<HeaderValue, Fault> {
        let mut value = HeaderValue::from_str(&self.0).map_err(|_| {
            Fault::new(
                KekFault::Denied,
                "the token has characters that no token has",
            )
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// How long a token lives.
struct Lease {
    duration: Duration,
    is_renewable: bool,
}

impl Lease {
    fn new(seconds: u64, is_renewable: bool) -> Self {
        Self {
            duration: Duration::from_secs(seconds).min(LONGEST_LIFE),
            is_renewable,
        }
    }
}

#[derive(Deserialize)]
struct LoginAnswer {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    lease_duration: u64,
    renewable: bool,
}

#[derive(Deserialize)]
struct LookupAnswer {
    data: Lookup,
}

#[derive(Deserialize)]
struct Lookup {
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

impl Session {
    pub(super) fn new(login: VaultLogin) -> Self {
        Self {
            login,
            state: Mutex::default(),
        }
    }
}

fn next_pause(pause: Duration) -> Duration {
    (pause * 4).min(LONGEST_REFUSAL)
}

impl State {
    /// Notes that a secret id wasn't taken.
    fn refuse(
        &mut self,
        secret_id: Zeroizing<String>,
        file: &Path,
        fault: Fault,
        pause: Duration,
    ) -> Fault {
        // The same words each time, so that they are logged once.
        let how = "is tried again rarely, because five failures lock the role; another one in its place is tried at once";
        let fault = Fault::new(
            fault.kind,
            format!(
                "{}; the secret id in {} {how}",
                fault.reason,
                file.display()
            ),
        );
        self.refused = Some(Refused {
            secret_id,
            fault: fault.clone(),
            pause,
            until: Instant::now() + pause,
        });
        fault
    }
}

impl Vault {
    /// The token, after a login if there is none.
    pub(super) async fn token(self: &Arc<Self>) -> Result<Arc<Token>, Fault> {
        let asked = Instant::now();
        let mut state = self.session.state.lock().await;
        if let Some(token) = &state.token {
            return Ok(Arc::clone(token));
        }
        if let Some((at, fault)) = &state.failure
            && *at >= asked
        {
            return Err(fault.clone());
        }
        let (token, lease) = match self.log_in(&mut state).await {
            Ok(let_in) => let_in,
            Err(fault) => {
                state.failure = Some((Instant::now(), fault.clone()));
                return Err(fault);
            }
        };
        let token = Arc::new(token);
        info!(address = %self.address, "logged in to Vault");
        if lease.is_renewable && !lease.duration.is_zero() {
            tokio::spawn(keep_alive(
                Arc::downgrade(self),
                Arc::downgrade(&token),
                lease.duration,
            ));
        }
        *state = State {
            token: Some(Arc::clone(&token)),
            ..State::default()
        };
        Ok(token)
    }

    /// Gives a token up, unless another has taken its place already.
    pub(super) async fn forget(&self, token: &Arc<Token>) {
        let mut state = self.session.state.lock().await;
        if state
            .token
            .as_ref()
            .is_some_and(|held| Arc::ptr_eq(held, token))
        {
            state.token = None;
        }
    }

    /// Whether Vault still knows a token with which it `denied` something.
    pub(super) async fn is_alive(&self, token: &Token, denied: &Answer) -> Result<bool, Fault> {
        if denied.is_of_unknown_token() {
            return Ok(false);
        }
        let answer = self
            .send(
                Method::GET,
                "auth/token/lookup-self",
                None,
                Some(token),
                ANSWER,
            )
            .await?;
        match answer.status {
            // Not every server says why; another login does no harm.
            StatusCode::FORBIDDEN => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(answer.fault()),
        }
    }

    async fn log_in(&self, state: &mut State) -> Result<(Token, Lease), Fault> {
        match &self.session.login {
            VaultLogin::Environment => {
                let token = match std::env::var("VAULT_TOKEN") {
                    Ok(token) if !token.is_empty() => Zeroizing::new(token),
                    _ => {
                        let home = std::env::home_dir()
                            .ok_or_else(|| no_token("there is no home folder either"))?;
                        let read = read(&home.join(".vault-token")).await;
                        read.map_err(|fault| no_token(&fault.reason))?
                    }
                };
                self.look_up(Token(token)).await
            }
            VaultLogin::TokenFile(file) => self.look_up(Token(read(file).await?)).await,
            VaultLogin::AppRole {
                mount,
                role_id,
                secret_id_file,
            } => {
                let secret_id = read(secret_id_file).await?;
                let same = state
                    .refused
                    .as_ref()
                    .filter(|refused| *refused.secret_id == *secret_id);
                if let Some(refused) = same.filter(|refused| Instant::now() < refused.until) {
                    return Err(refused.fault.clone());
                }
                let pause = same.map_or(FIRST_REFUSAL, |refused| next_pause(refused.pause));
                match self
                    .authenticate(mount, &[("role_id", role_id), ("secret_id", &secret_id)])
                    .await
                {
                    Err(fault) if fault.kind == KekFault::Denied => {
                        Err(state.refuse(secret_id, secret_id_file, fault, pause))
                    }
                    result => result,
                }
            }
            VaultLogin::Jwt {
                mount,
                role,
                token_file,
            } => {
                let jwt = read(token_file).await?;
                self.authenticate(mount, &[("role", role), ("jwt", &jwt)])
                    .await
            }
        }
    }

    async fn authenticate(
        &self,
        mount: &str,
        members: &[(&str, &str)],
    ) -> Result<(Token, Lease), Fault> {
        let mut body = Zeroizing::new(Vec::with_capacity(8192));
        let members: std::collections::BTreeMap<_, _> = members.iter().copied().collect();
        serde_json::to_writer(&mut *body, &members)
            .map_err(|error| Fault::new(KekFault::Misconfigured, error.to_string()))?;
        let answer = self
            .send(
                Method::POST,
                &format!("auth/{mount}/login"),
                Some(body),
                None,
                ANSWER,
            )
            .await?;
        let answer: LoginAnswer = answer
            .ok()
            .map_err(|fault| not_let_in(mount, fault))?
            .parse()?;
        let Auth {
            client_token,
            lease_duration,
            renewable,
        } = answer.auth;
        Ok((
            Token(Zeroizing::new(client_token)),
            Lease::new(lease_duration, renewable),
        ))
    }

    async fn look_up(&self, token: Token) -> Result<(Token, Lease), Fault> {
        let answer = self
            .send(
                Method::GET,
                "auth/token/lookup-self",
                None,
                Some(&token),
                ANSWER,
            )
            .await?;
        let lease = match answer.status {
            StatusCode::OK => {
                let LookupAnswer { data } = answer.parse()?;
                Lease::new(data.ttl, data.renewable)
            }
            // It may do other things, though not look itself up: it was made without the policy `default`.
            StatusCode::FORBIDDEN
                if !answer.is_of_unknown_token() && self.knows(&token).await? =>
            {
                Lease::new(0, false)
            }
            StatusCode::FORBIDDEN => {
                let reason =
                    "Vault doesn't know the token: it ended, was revoked, or is another server's";
                return Err(Fault::new(KekFault::Denied, reason));
            }
            _ => return Err(answer.fault()),
        };
        Ok((token, lease))
    }

    /// Whether the server knows a token that may not look itself up: OpenBao says "permission denied" to strangers as well. Every token
    /// that lives, whatever its policies, may ask which mounts it can see.
    async fn knows(&self, token: &Token) -> Result<bool, Fault> {
        let answer = self
            .send(
                Method::GET,
                "sys/internal/ui/mounts",
                None,
                Some(token),
                ANSWER,
            )
            .await?;
        Ok(answer.status != StatusCode::FORBIDDEN)
    }

    async fn renew(&self, token: &Token) -> Result<Lease, Fault> {
        let body = Zeroizing::new(json!({}).to_string().into_bytes());
        let answer: Answer = self
            .send(
                Method::POST,
                "auth/token/renew-self",
                Some(body),
                Some(token),
                ANSWER,
            )
            .await?
            .ok()?;
        let LoginAnswer { mut auth } = answer.parse()?;
        auth.client_token.zeroize();
        Ok(Lease::new(auth.lease_duration, auth.renewable))
    }
}

fn not_let_in(mount: &str, fault: Fault) -> Fault {
    let kind = if matches!(fault.kind, KekFault::Refused | KekFault::Missing) {
        KekFault::Denied
    } else {
        fault.kind
    };
    Fault::new(
        kind,
        format!("can't log in at auth/{mount}: {}", fault.reason),
    )
}

fn no_token(why: &str) -> Fault {
    Fault::new(
        KekFault::Denied,
        format!("set VAULT_TOKEN or configure [vault.login]; {why}"),
    )
}

/// A secret in a file, without white space around it.
async fn read(file: &Path) -> Result<Zeroizing<String>, Fault> {
    let path = file.to_owned();
    let text = aside(move || std::fs::read_to_string(path)).await;
    let text = Zeroizing::new(text.map_err(|error| {
        Fault::new(
            KekFault::Denied,
            format!("can't read {}: {error}", file.display()),
        )
    })?);
    match text.trim() {
        "" => Err(Fault::new(
            KekFault::Denied,
            format!("{} is empty", file.display()),
        )),
        secret => Ok(Zeroizing::new(secret.to_owned())),
    }
}

/// Renews a token at two thirds of its life for as long as it is in use and Vault does so.
async fn keep_alive(vault: Weak<Vault>, token: Weak<Token>, mut life: Duration) {
    loop {
        sleep((life * 2 / 3).max(LEAST_PAUSE)).await;
        let (Some(vault), Some(token)) = (vault.upgrade(), token.upgrade()) else {
            return;
        };
        match timeout(RENEWAL_TIME, vault.renew(&token)).await {
            // At its greatest age a token gets no more time, and another login is due before it ends.
            Ok(Ok(lease)) if lease.is_renewable && lease.duration > life / 3 => {
                life = lease.duration
            }
            Ok(Err(fault)) if matches!(fault.kind, KekFault::Unavailable | KekFault::Throttled) => {
                life /= 3
            }
            Err(_) => life /= 3,
            ended => {
                debug!(
                    is_renewed = ended.is_ok_and(|renewed| renewed.is_ok()),
                    "the Vault token is given up"
                );
                vault.forget(&token).await;
                return;
            }
        }
        if life < LEAST_PAUSE {
            vault.forget(&token).await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_life_is_too_long_to_be_counted_with() {
        let Lease { duration, .. } = Lease::new(u64::MAX, true);
        assert!(Instant::now().checked_add(duration * 2).is_some());
    }

    #[test]
    fn a_refused_secret_id_alone_never_locks_its_role() {
        // Vault's defaults: five failures lock, and a quarter of an hour without one is forgiven.
        let (mut failures, mut pause) = (1, FIRST_REFUSAL);
        while pause <= Duration::from_secs(15 * 60) {
            failures += 1;
            pause = next_pause(pause);
        }
        assert!(failures < 5, "{failures}");
        assert_eq!(next_pause(LONGEST_REFUSAL), LONGEST_REFUSAL);
    }
}
