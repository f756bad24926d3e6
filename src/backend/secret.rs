//! What a system that stores secrets can do.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::BackendError;
use crate::files::{ChangeCallback, WatchGuard};

/// One secret's source. Callers set the time limit.
pub trait SecretProvider: Send + Sync {
    /// Reads a value of at most `limit` bytes.
    ///
    /// `held` is the value that is served as the current one. If it still is the current one,
    /// the provider may return [`FetchOutcome::Unchanged`] without reading the value. Providers
    /// that number their versions look for the previous version starting from `held`.
    fn fetch<'a>(
        &'a self,
        version: &'a VersionSelector,
        held: Option<HeldValue<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<FetchOutcome, BackendError>>;

    /// Calls `on_change` when the value may have changed, for as long as the guard lives. It
    /// replaces the `former` guard. Calls may be spurious or missing, so callers poll as well.
    /// Returns `None` if the source has no notifications.
    fn watch(
        &self,
        former: Option<WatchGuard>,
        on_change: ChangeCallback,
    ) -> BoxFuture<'_, Option<WatchGuard>> {
        drop((former, on_change));
        Box::pin(async { None })
    }
}

/// Selects one of a secret's values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VersionSelector {
    /// The value to use now.
    Current,
    /// The value before the current one.
    Previous,
    /// The value that is being introduced, if the provider has such a stage.
    Pending,
    /// The value with this version.
    Version(String),
}

/// The current value as the caller holds it.
#[derive(Clone, Copy)]
pub struct HeldValue<'a> {
    /// The version that the provider returned with it.
    pub version: &'a str,
    /// The value.
    pub bytes: &'a [u8],
}

impl HeldValue<'_> {
    /// Returns a unique version for a value that its provider calls `version`.
    ///
    /// Some providers reuse versions: a secret that was deleted and created again counts from 1
    /// again. If the held value has the same version and other bytes, `~` is appended.
    pub(super) fn distinct_version(
        held: Option<HeldValue<'_>>,
        version: String,
        bytes: &[u8],
    ) -> String {
        match held {
            Some(held) if provider_version(held.version) != version => version,
            Some(held) if held.bytes == bytes => held.version.to_owned(),
            Some(held) => format!("{}~", held.version),
            None => version,
        }
    }

    /// Returns the version's number, for providers that number their versions.
    #[cfg(any(feature = "aws", feature = "vault"))]
    pub(super) fn number(&self) -> Option<u64> {
        version_number(provider_version(self.version))
    }
}

/// Returns the text of a JSON value, or `None` if it is longer than `limit` bytes.
#[cfg(feature = "vault")]
pub(super) fn value_text(
    value: &serde_json::value::RawValue,
    limit: usize,
) -> Option<Zeroizing<Vec<u8>>> {
    let text = value.get().as_bytes();
    (text.len() <= limit).then(|| Zeroizing::new(text.to_vec()))
}

/// Returns a version without the `~` of [`HeldValue::distinct_version`].
fn provider_version(version: &str) -> &str {
    version.trim_end_matches('~')
}

/// Parses a version number in its canonical form: decimal, from 1, without leading zeros.
#[cfg(any(feature = "aws", feature = "vault"))]
pub(super) fn version_number(version: &str) -> Option<u64> {
    let is_canonical =
        !version.starts_with('0') && version.bytes().all(|byte| byte.is_ascii_digit());
    version.parse().ok().filter(|_| is_canonical)
}

/// The result of [`SecretProvider::fetch`].
pub enum FetchOutcome {
    /// The held value is still the current one.
    Unchanged,
    /// Another value, or any value if none is held.
    Value(FetchedValue),
}

#[cfg(any(feature = "aws", feature = "azure", feature = "vault"))]
impl FetchOutcome {
    /// Compares the current value with the held one.
    pub(super) fn current(fetched: FetchedValue, held: Option<HeldValue<'_>>) -> Self {
        match held {
            Some(held) if held.version == fetched.version && *held.bytes == **fetched.bytes => {
                Self::Unchanged
            }
            _ => Self::Value(fetched),
        }
    }
}

/// A value as read from its provider. Deliberately has no `Debug`.
pub struct FetchedValue {
    /// Text, JSON or any other bytes.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The provider's version: 1 to 128 visible ASCII characters without `"`, unique per secret.
    pub version: String,
    /// When the version was created, if the provider reports it.
    pub created_at: Option<Timestamp>,
    /// When the value expires, if the provider reports it; `None` for leases.
    pub expires_at: Option<Timestamp>,
    /// The lease of dynamic credentials.
    pub lease: Option<Arc<dyn Lease>>,
}

/// The lease of dynamic credentials.
pub trait Lease: Send + Sync {
    /// Returns the duration for which the lease was granted.
    fn duration(&self) -> Duration;

    /// Whether the lease can be extended.
    fn is_renewable(&self) -> bool;

    /// Renews the lease and returns how long it is valid from now on, which is less than requested
    /// near its maximum lifetime. Of a lease that isn't renewable, only the time left is looked up.
    ///
    /// Fails with [`ErrorKind::NotFound`](super::ErrorKind::NotFound) if the lease has expired or
    /// was revoked.
    fn renew(&self) -> BoxFuture<'_, Result<Duration, BackendError>>;

    /// Revokes the lease; its credentials stop working.
    fn revoke(&self) -> BoxFuture<'_, Result<(), BackendError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_version_with_another_value_is_marked() {
        let distinct = |version, bytes| {
            let held = HeldValue {
                version,
                bytes: b"held",
            };
            HeldValue::distinct_version(Some(held), "1".into(), bytes)
        };
        assert_eq!(HeldValue::distinct_version(None, "1".into(), b"new"), "1");
        assert_eq!(distinct("1", b"held"), "1");
        assert_eq!(distinct("1", b"new"), "1~");
        assert_eq!(distinct("1~", b"held"), "1~");
        assert_eq!(distinct("1~", b"new"), "1~~");
        assert_eq!(distinct("7", b"new"), "1");
    }

    #[cfg(any(feature = "aws", feature = "vault"))]
    #[test]
    fn version_numbers_have_one_canonical_form() {
        let held = HeldValue {
            version: "17~",
            bytes: b"",
        };
        assert_eq!((version_number("17"), held.number()), (Some(17), Some(17)));
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
            assert_eq!(version_number(other), None, "{other}");
        }
    }
}
