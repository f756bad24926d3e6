//! Why a refresh changed nothing.

use crate::{
    backend::{Late, StoreError},
    keyring::{ManifestError, Rejection},
};

/// A refresh that failed: a stable code for metrics and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// A short stable name (docs/errors.md lists them).
    pub code: &'static str,
    /// What failed, on what, what to do.
    pub message: String,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self {
            code: error.code(),
            message: error.to_string(),
        }
    }
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        Self {
            code: "malformed",
            message: error.to_string(),
        }
    }
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Self {
            code: rejection.code(),
            message: rejection.to_string(),
        }
    }
}

impl Failure {
    /// Nothing came in time.
    pub(super) fn timed_out(what: &str, limit: std::time::Duration, late: Late) -> Self {
        let heard = late
            .heard
            .map_or_else(String::new, |(_, said)| format!("; until then: {said}"));
        Self {
            code: "source_unavailable",
            message: format!("{what} took longer than {limit:?}{heard}"),
        }
    }
}
