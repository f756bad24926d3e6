//! The credentials of all AWS clients: the SDK's own chain, which is built again whenever it may
//! find others. By itself, the SDK reads profiles once, and keeps credentials without an expiry.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError, future};
use aws_sdk_kms::config::Credentials;
use futures_util::future::BoxFuture;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::info;

use super::{endpoint, loader};
use crate::config;

/// How long credentials without an expiry are used before their sources are read again.
const MAX_AGE: Duration = Duration::from_secs(60);
/// How long before their expiry credentials are replaced. Those of an instance or a role are
/// replaced five minutes earlier by AWS.
const LEAD: Duration = Duration::from_secs(60);
/// How often refused credentials are looked up again. A role's are requested from AWS each time.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// How long their sources may take together, as in the SDK's own cache.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after the start of a load that failed the next one starts, while those that are held
/// can be used. Between them, a source that hangs delays no request.
const RETRY_AFTER: Duration = Duration::from_secs(10);

type Load =
    Box<dyn Fn() -> BoxFuture<'static, Result<Credentials, CredentialsError>> + Send + Sync>;

/// Credentials that are loaded again when they expire, are refused, or could have been replaced.
pub(super) struct ReloadingCredentials {
    load: Load,
    /// Locked while credentials are loaded, so that concurrent requests share the result.
    held: Mutex<Option<Held>>,
    /// AWS refused the credentials that are held.
    are_refused: AtomicBool,
}

struct Held {
    credentials: Credentials,
    loaded: Instant,
    /// When a load started that should have replaced them, and failed or was abandoned.
    tried: Option<Instant>,
}

impl ReloadingCredentials {
    /// Uses the SDK's default chain as configured. It logs in at endpoints of the kind that all
    /// services use, such as those validated by FIPS 140, and by plain HTTP only at those in
    /// `plain_http`.
    pub(super) fn new(settings: &config::Aws, plain_http: &[String]) -> Arc<Self> {
        let (settings, plain_http) = (settings.clone(), plain_http.to_vec());
        Self::with(Box::new(move || {
            let (loader, plain_http) = (loader(&settings), plain_http.clone());
            Box::pin(async move {
                // A new chain reads environment, files and metadata again.
                let sdk = loader.load().await;
                endpoint::check(&sdk, endpoint::LOGIN_SERVICES, &plain_http)
                    .map_err(CredentialsError::invalid_configuration)?;
                let chain = sdk
                    .credentials_provider()
                    .ok_or_else(CredentialsError::not_loaded_no_source)?;
                chain.provide_credentials().await
            })
        }))
    }

    fn with(load: Load) -> Arc<Self> {
        Arc::new(Self {
            load,
            held: Mutex::default(),
            are_refused: AtomicBool::new(false),
        })
    }

    /// Has other credentials looked up for the next request.
    pub(super) fn refused(&self) {
        self.are_refused.store(true, Ordering::Relaxed);
    }

    async fn get(&self) -> Result<Credentials, CredentialsError> {
        let mut held = self.held.lock().await;
        if let Some(held) = &*held
            && !self.must_reload(held)
        {
            return Ok(held.credentials.clone());
        }
        if let Some(held) = &mut *held {
            // Before the load: its caller may stop waiting.
            held.tried = Some(Instant::now());
        }
        let loaded = timeout(LOAD_TIMEOUT, (self.load)()).await;
        let credentials = match loaded
            .unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(LOAD_TIMEOUT)))
        {
            Ok(credentials) => credentials,
            // Those that are held may still be good.
            Err(error) => match &*held {
                Some(held) if !is_expired(&held.credentials, Duration::ZERO) => {
                    return Ok(held.credentials.clone());
                }
                _ => return Err(error),
            },
        };
        let is_new = held
            .as_ref()
            .is_some_and(|held| held.credentials.access_key_id() != credentials.access_key_id());
        if is_new {
            info!("loaded other AWS credentials");
        }
        self.are_refused.store(false, Ordering::Relaxed);
        *held = Some(Held {
            credentials: credentials.clone(),
            loaded: Instant::now(),
            tried: None,
        });
        Ok(credentials)
    }

    fn must_reload(&self, held: &Held) -> bool {
        let was_tried = held.tried.is_some_and(|at| at.elapsed() < RETRY_AFTER);
        if was_tried && !is_expired(&held.credentials, Duration::ZERO) {
            return false;
        }
        let age = held.loaded.elapsed();
        let are_refused = age >= MIN_INTERVAL && self.are_refused.load(Ordering::Relaxed);
        let may_have_changed = age >= MAX_AGE && held.credentials.expiry().is_none();
        are_refused || may_have_changed || is_expired(&held.credentials, LEAD)
    }
}

fn is_expired(credentials: &Credentials, lead: Duration) -> bool {
    let now = SystemTime::now();
    credentials
        .expiry()
        .is_some_and(|expiry| expiry <= now + lead)
}

/// Whether AWS refused a request because of its credentials, with this error code.
pub(super) fn is_refusal(code: &str) -> bool {
    matches!(
        code,
        "ExpiredTokenException"
            | "ExpiredToken"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "InvalidAccessKeyId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
    )
}

impl ProvideCredentials for ReloadingCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.get())
    }
}

impl fmt::Debug for ReloadingCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReloadingCredentials")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;

    use tokio::time::advance;

    use super::*;

    /// The key that the chain finds next, if any, and its expiry.
    type Next = Arc<StdMutex<Option<(&'static str, Option<SystemTime>)>>>;

    /// A key whose load never ends.
    const HANGS: &str = "hangs";

    struct Script {
        credentials: Arc<ReloadingCredentials>,
        next: Next,
        loads: Arc<StdMutex<usize>>,
    }

    impl Script {
        fn new() -> Self {
            let next = Next::default();
            let loads: Arc<StdMutex<usize>> = Arc::default();
            let (answer, count) = (Arc::clone(&next), Arc::clone(&loads));
            let credentials = ReloadingCredentials::with(Box::new(move || {
                *count.lock().expect("a count") += 1;
                let answer = *answer.lock().expect("an answer");
                Box::pin(async move {
                    let (key, expiry) =
                        answer.ok_or_else(|| CredentialsError::not_loaded("none in this test"))?;
                    if key == HANGS {
                        std::future::pending::<()>().await;
                    }
                    Ok(Credentials::new(key, "secret", None, expiry, "test"))
                })
            }));
            Self {
                credentials,
                next,
                loads,
            }
        }

        fn set(&self, key: Option<&'static str>, expires_in: Option<Duration>) {
            let expiry = expires_in.map(|left| SystemTime::now() + left);
            *self.next.lock().expect("an answer") = key.map(|key| (key, expiry));
        }

        async fn key(&self) -> Option<String> {
            let credentials = self.credentials.get().await.ok()?;
            Some(credentials.access_key_id().to_owned())
        }

        fn loads(&self) -> usize {
            *self.loads.lock().expect("a count")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_are_looked_up_again_at_a_bounded_rate() {
        let script = Script::new();
        script.set(Some("old"), None);
        assert_eq!(script.key().await.as_deref(), Some("old"));
        script.set(Some("new"), None);
        advance(MIN_INTERVAL).await;
        assert_eq!(
            script.key().await.as_deref(),
            Some("old"),
            "not yet refused"
        );
        script.credentials.refused();
        assert_eq!(script.key().await.as_deref(), Some("new"));
        script.credentials.refused();
        for _ in 0..10 {
            assert_eq!(script.key().await.as_deref(), Some("new"));
        }
        assert_eq!(script.loads(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn files_may_change_where_credentials_have_no_expiry() {
        let script = Script::new();
        script.set(Some("old"), None);
        script.key().await;
        script.set(Some("new"), None);
        advance(MAX_AGE).await;
        assert_eq!(script.key().await.as_deref(), Some("new"));
        // An outage of their source changes nothing.
        script.set(None, None);
        advance(MAX_AGE).await;
        assert_eq!(script.key().await.as_deref(), Some("new"));
    }

    #[tokio::test(start_paused = true)]
    async fn while_their_source_hangs_or_fails_credentials_stay_usable() {
        let script = Script::new();
        script.set(Some("old"), Some(LEAD / 2));
        script.key().await;
        script.set(Some(HANGS), None);
        let started = Instant::now();
        for _ in 0..10 {
            assert_eq!(script.key().await.as_deref(), Some("old"));
        }
        assert_eq!((started.elapsed(), script.loads()), (LOAD_TIMEOUT, 2));
        // A caller that stops waiting leaves the next ones no second wait.
        advance(RETRY_AFTER).await;
        timeout(MIN_INTERVAL, script.key())
            .await
            .expect_err("abandoned");
        assert_eq!(script.key().await.as_deref(), Some("old"));
        assert_eq!(script.loads(), 3);
        script.set(None, None);
        advance(RETRY_AFTER).await;
        for _ in 0..10 {
            assert_eq!(script.key().await.as_deref(), Some("old"));
        }
        assert_eq!(script.loads(), 4);
        script.set(Some("new"), None);
        advance(RETRY_AFTER).await;
        assert_eq!(script.key().await.as_deref(), Some("new"));
    }

    #[tokio::test(start_paused = true)]
    async fn without_usable_credentials_a_source_that_hangs_is_an_error_and_tried_again() {
        let script = Script::new();
        script.set(Some(HANGS), None);
        let error = script.credentials.get().await.expect_err("too late");
        assert!(
            matches!(error, CredentialsError::ProviderTimedOut(_)),
            "{error}"
        );
        script.set(Some("first"), Some(Duration::ZERO));
        assert_eq!(script.key().await.as_deref(), Some("first"));
        script.set(None, None);
        assert_eq!(script.key().await, None);
        script.set(Some("second"), None);
        assert_eq!(script.key().await.as_deref(), Some("second"));
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_are_replaced_before_they_expire_and_never_used_after() {
        let script = Script::new();
        script.set(Some("first"), Some(LEAD * 10));
        script.key().await;
        script.set(Some("second"), Some(LEAD / 2));
        advance(MAX_AGE).await;
        assert_eq!(script.key().await.as_deref(), Some("first"));
        script.credentials.refused();
        assert_eq!(script.key().await.as_deref(), Some("second"));
        script.set(Some("third"), Some(Duration::ZERO));
        advance(MIN_INTERVAL).await;
        assert_eq!(script.key().await.as_deref(), Some("third"));
        script.set(None, None);
        advance(MIN_INTERVAL).await;
        assert_eq!(script.key().await, None);
    }
}
