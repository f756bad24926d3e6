//! Why a refresh changed nothing, or left versions that are not unwrapped.

use crate::{
    backend::BackendError,
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

impl From<BackendError> for RefreshFailure {
    fn from(error: BackendError) -> Self {
        Self {
            code: error.kind.store_code(),
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
    /// The versions of `table` that no KEK has unwrapped; None if there are none.
    pub(super) fn not_unwrapped(table: &KeyTable) -> Option<Self> {
        let reasons: Vec<String> = table
            .not_unwrapped()
            .map(|(version, reason)| format!("version {version}: {reason}"))
            .collect();
        let is_exchanged = table.not_unwrapped().any(|(_, reason)| reason.is_exchanged);
        (!reasons.is_empty()).then(|| Self {
            code: if is_exchanged {
                "exchanged"
            } else {
                "kek_unavailable"
            },
            message: reasons.join("; "),
        })
    }
}
