//! Requests for a secret's value, and their results.

use std::{sync::Arc, time::Duration};

use super::{Value, VersionSelector};
use crate::backend::BackendError;

/// A request for a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRequest {
    pub(crate) version: VersionSelector,
    /// Applies to the current value only.
    pub(crate) freshness: Freshness,
}

/// How fresh a value has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// The value in memory is sufficient.
    Cached,
    /// The provider is asked first.
    Revalidated,
    /// The value must have this version or, if versions are numbers, a later one.
    AtLeast(String),
}

/// A value that is served.
#[derive(Clone)]
pub struct Served {
    pub(crate) value: Arc<Value>,
    pub(crate) stage: Stage,
    /// For how long the provider has failed to confirm the value; None if it is up to date.
    pub(crate) stale: Option<Duration>,
}

impl Served {
    pub(super) fn new(value: &Arc<Value>, stage: Stage, stale: Option<Duration>) -> Self {
        Self {
            value: Arc::clone(value),
            stage,
            stale,
        }
    }

    /// Whether the response can be cached with the value.
    pub(crate) fn is_cacheable(&self) -> bool {
        self.stage == Stage::Current && self.stale.is_none()
    }
}

/// The role of a value in its secret's rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The value to use.
    Current,
    /// The value that the current one replaced.
    Previous,
    /// The value that is being introduced.
    Pending,
    /// Any other value.
    Other,
}

impl Stage {
    /// Returns the name used in responses.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
            Self::Pending => "pending",
            Self::Other => "other",
        }
    }
}

/// Why no value is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GetError {
    /// The provider returned an error or did not respond.
    Provider(BackendError),
    /// The provider's current version is older than the one requested.
    VersionTooOld {
        /// The current version.
        version: String,
    },
    /// The previous value is no longer served.
    PreviousExpired,
}

/// Returns a version as a number, if it is one. A trailing `~` distinguishes another value of the
/// same number.
pub(super) fn number(version: &str) -> Option<u64> {
    version.trim_end_matches('~').parse().ok()
}

/// Whether `version` is `least` or, if both are numbers, not below it.
pub(super) fn satisfies(version: &str, least: &str) -> bool {
    version == least
        || number(version)
            .zip(number(least))
            .is_some_and(|(version, least)| version >= least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ordered_and_other_versions_are_not() {
        assert!(
            satisfies("7", "7")
                && satisfies("2~", "2")
                && satisfies("10", "9")
                && !satisfies("9", "10")
        );
        assert!(satisfies("b", "b") && !satisfies("b", "a"));
    }
}
