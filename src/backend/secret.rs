use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{Changed, KekFault, WatchGuard};
#[cfg(any(feature = "aws", feature = "azure", feature = "vault"))]
use crate::model::SecretSource;

/// A place that gives one secret's values.
pub trait SecretProvider: Send + Sync {
    /// Reads a value of at most `limit` bytes. `held` is what is served as the current one, if anything is: a provider that can tell
    /// without reading that it still is the current one answers [`Answer::Unchanged`], and one that counts versions goes back from it.
    fn fetch<'a>(
        &'a self,
        which: &'a Which,
        held: Option<Held<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Answer, SecretError>>;

    /// Calls `changed` whenever the value may have changed since, for as long as the guard lives; in place of the `former` guard.
    /// Calls may be too many, never trusted to be complete. No guard comes from a place that tells nobody.
    fn watch(
        &self,
        former: Option<WatchGuard>,
        changed: Changed,
    ) -> BoxFuture<'_, Result<Option<WatchGuard>, SecretError>> {
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

impl Held<'_> {
    /// A version for a value that its provider calls `version`, where a provider may give the same name to another value later on: a
    /// secret that is made anew counts from one again. Told apart from the one held by a `~`.
    pub(super) fn told_apart(held: Option<Held<'_>>, version: String, bytes: &[u8]) -> String {
        match held {
            Some(held) if plain(held.version) != version => version,
            Some(held) if held.bytes == bytes => held.version.to_owned(),
            Some(held) => format!("{}~", held.version),
            None => version,
        }
    }

    /// The number of a provider that counts versions.
    #[cfg(any(feature = "aws", feature = "vault"))]
    pub(super) fn number(&self) -> Option<u64> {
        number(plain(self.version))
    }
}

/// A JSON value's own text, of at most `limit` bytes.
#[cfg(feature = "vault")]
pub(super) fn value_text(
    value: &serde_json::value::RawValue,
    limit: usize,
) -> Option<Zeroizing<Vec<u8>>> {
    let text = value.get().as_bytes();
    (text.len() <= limit).then(|| Zeroizing::new(text.to_vec()))
}

/// A version as its provider calls it.
fn plain(version: &str) -> &str {
    version.trim_end_matches('~')
}

/// A version's number, from 1, as a provider that counts versions writes it.
#[cfg(any(feature = "aws", feature = "vault"))]
pub(super) fn number(version: &str) -> Option<u64> {
    let is_canonical =
        !version.starts_with('0') && version.bytes().all(|byte| byte.is_ascii_digit());
    version.parse().ok().filter(|_| is_canonical)
}

/// What a provider gives.
pub enum Answer {
    /// What is held is still the current value.
    Unchanged,
    /// A value.
    Value(Fetched),
}

#[cfg(any(feature = "aws", feature = "azure", feature = "vault"))]
impl Answer {
    /// A value that was read as the current one, which may be the one held still.
    pub(super) fn current(fetched: Fetched, held: Option<Held<'_>>) -> Self {
        match held {
            Some(held) if held.version == fetched.version && *held.bytes == **fetched.bytes => {
                Self::Unchanged
            }
            _ => Self::Value(fetched),
        }
    }
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
    fn renew(&self) -> BoxFuture<'_, Result<Duration, SecretError>>;

    /// Gives it back: the credentials end.
    fn revoke(&self) -> BoxFuture<'_, Result<(), SecretError>>;
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
        Self {
            fault,
            message: message.into(),
        }
    }

    /// There is no such value.
    #[cfg(any(feature = "aws", feature = "azure", feature = "vault"))]
    pub(super) fn not_found(source: &SecretSource, what: &str) -> Self {
        Self::new(SecretFault::NotFound, format!("{source}: {what}"))
    }

    /// A value that is longer than allowed.
    #[cfg(any(feature = "aws", feature = "azure", feature = "vault"))]
    pub(super) fn too_long(source: &SecretSource, limit: usize) -> Self {
        Self::new(
            SecretFault::TooLong,
            format!("{source}: longer than {limit} bytes (`secrets.value_bytes`)"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_value_of_the_same_name_is_told_apart() {
        let told = |version, bytes| {
            Held::told_apart(
                Some(Held {
                    version,
                    bytes: b"held",
                }),
                "1".into(),
                bytes,
            )
        };
        assert_eq!(Held::told_apart(None, "1".into(), b"new"), "1");
        assert_eq!(told("1", b"held"), "1");
        assert_eq!(told("1", b"new"), "1~");
        assert_eq!(told("1~", b"held"), "1~");
        assert_eq!(told("1~", b"new"), "1~~");
        assert_eq!(told("7", b"new"), "1");
    }

    #[cfg(any(feature = "aws", feature = "vault"))]
    #[test]
    fn a_number_is_written_in_one_way() {
        assert_eq!(
            (
                number("17"),
                Held {
                    version: "17~",
                    bytes: b""
                }
                .number()
            ),
            (Some(17), Some(17))
        );
        for other in [
            "",
            "0",
            "017",
            "+17",
            "17+",
            "-1",
            "1?a=b",
            "latest",
            "99999999999999999999",
        ] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
