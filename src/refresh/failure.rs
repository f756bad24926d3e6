//! Why a refresh changed nothing, or left versions that are not unwrapped.

use std::time::Duration;

use crate::{
    backend::{Late, StoreError},
    keyring::{KeyTable, ManifestError, Rejection},
};

/// A refresh that failed: a stable code for metrics and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RefreshFailure {
    /// A stable code, as listed in docs/errors.md.
    pub code: &'static str,
    /// What failed, on what, and what to do.
    pub message: String,
}

impl From<StoreError> for RefreshFailure {
    fn from(error: StoreError) -> Self {
        Self {
            code: error.code(),
            message: error.to_string(),
        }
    }
}

impl From<ManifestError> for RefreshFailure {
    fn from(error: ManifestError) -> Self {
        Self {
            code: "malformed",
            message: error.to_string(),
        }
    }
}

impl From<Rejection> for RefreshFailure {
    fn from(rejection: Rejection) -> Self {
        Self {
            code: rejection.code(),
            message: rejection.to_string(),
        }
    }
}

impl RefreshFailure {
    /// `what` took longer than `limit`.
    pub(super) fn timed_out(what: &str, limit: Duration, late: Late) -> Self {
        let last_error = late
            .heard
            .map_or_else(String::new, |(_, said)| format!("; last error: {said}"));
        Self {
            code: "source_unavailable",
            message: format!("{what} timed out after {limit:?}{last_error}"),
        }
    }

    /// The versions of `table` that no KEK has unwrapped; None if there are none.
    pub(super) fn not_unwrapped(table: &KeyTable) -> Option<Self> {
        let reasons: Vec<String> = table
            .unopened()
            .map(|(version, reason)| format!("version {version}: {reason}"))
            .collect();
        (!reasons.is_empty()).then(|| Self {
            code: "kek_unavailable",
            message: reasons.join("; "),
        })
    }
}
