use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{Changed, KekFault, Pending, WatchGuard};

/// A place that gives one secret's values.
pub trait SecretProvider: Send + Sync {
    /// Reads a value of at most `limit` bytes. `held` is what is served as the current one, if anything is: a provider that can tell
    /// without reading that it still is the current one answers [`Answer::Unchanged`], and one that counts versions goes back from it.
    fn fetch<'a>(&'a self, which: &'a Which, held: Option<Held<'a>>, limit: usize) -> Pending<'a, Result<Answer, SecretError>>;

    /// Calls `changed` whenever the value may have changed since, for as long as the guard lives; in place of the `former` guard.
    /// Calls may be too many, never trusted to be complete. No guard comes from a place that tells nobody.
    fn watch(&self, former: Option<WatchGuard>, changed: Changed) -> Pending<'_, Result<Option<WatchGuard>, SecretError>> {
        drop((former, changed));
        Box::pin(async { Ok(None) })
    }
}

/// Which of a secret's values is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// The one to be used now.
    Current,
    /// The one before.
    Previous,
    /// The one that is being introduced, where a provider has such.
    Pending,
    /// The one of this version.
    Version(String),
}

/// What is held of a secret.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// Its version.
    pub version: &'a str,
    /// The value.
    pub bytes: &'a [u8],
}

/// What a provider gives.
pub enum Answer {
    /// What is held is still the current value.
    Unchanged,
    /// A value.
    Value(Fetched),
}

/// A value as a provider gives it. It has no `Debug`.
pub struct Fetched {
    /// The value: text, JSON, or bytes of any kind.
    pub bytes: Zeroizing<Vec<u8>>,
    /// What the provider calls this value: 1 to 128 visible ASCII characters without `"`; two values of a secret never share it.
    pub version: String,
    /// When it was made, if the provider says so.
    pub created_at: Option<Timestamp>,
    /// When it stops being any use, if the provider says so; not for leases, which say it themselves.
    pub expires_at: Option<Timestamp>,
    /// The lease that it lives by.
    pub lease: Option<Arc<dyn Lease>>,
}

/// The right to use credentials for a while.
pub trait Lease: Send + Sync {
    /// How long it ran when it was given.
    fn duration(&self) -> Duration;

    /// Whether it can be made longer.
    fn is_renewable(&self) -> bool;

    /// Asks for more time, and gives how long it runs from now on: less than was asked for, once it nears its greatest age. Of a lease
    /// that can't be renewed it only asks whether it still runs.
    ///
    /// # Errors
    /// [`SecretFault::NotFound`]: it ended, or was revoked.
    fn renew(&self) -> Pending<'_, Result<Duration, SecretError>>;

    /// Gives it back: the credentials end.
    fn revoke(&self) -> Pending<'_, Result<(), SecretError>>;
}

/// What kept a provider from giving a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretFault {
    /// It has no such secret, or no such value of it: it was never there, was deleted, or is disabled.
    NotFound,
    /// We may not: no login, or no right.
    Denied,
    /// Too many requests.
    Throttled,
    /// It doesn't answer, or not what was asked.
    Unavailable,
    /// The config names something that can't work.
    Misconfigured,
    /// The value is longer than allowed.
    TooLong,
}

impl SecretFault {
    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Misconfigured => "misconfigured",
            Self::TooLong => "too_long",
        }
    }
}

impl From<KekFault> for SecretFault {
    fn from(fault: KekFault) -> Self {
        match fault {
            KekFault::Missing => Self::NotFound,
            KekFault::Denied => Self::Denied,
            KekFault::Throttled => Self::Throttled,
            KekFault::Misconfigured => Self::Misconfigured,
            KekFault::Unavailable | KekFault::Disabled | KekFault::Refused => Self::Unavailable,
        }
    }
}

/// Why there is no value. Its words name the source and never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SecretError {
    /// Of what kind.
    pub fault: SecretFault,
    message: String,
}

impl SecretError {
    /// An error: what failed, on what, what to do.
    pub fn new(fault: SecretFault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }
}
