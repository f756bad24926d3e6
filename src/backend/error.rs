//! The errors of all backends: a kind, what was acted on, and a message that says how to fix it.

use std::fmt::Display;

use crate::model::Location;

/// Why a backend failed: what failed, on what, and what to do. Never contains a key or a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{target}: {message}")]
pub struct BackendError {
    /// Decides about retries and about the stable code.
    pub kind: ErrorKind,
    /// The KEK, location or source, as a URI.
    target: String,
    message: String,
}

impl BackendError {
    /// Creates an error about `target`: a KEK, location or source.
    pub fn new(kind: ErrorKind, target: impl Display, message: impl Into<String>) -> Self {
        Failure::new(kind, message).on(target)
    }

    #[cfg(any(feature = "aws", feature = "azure", feature = "vault"))]
    pub(super) fn not_found(target: impl Display, message: &str) -> Self {
        Self::new(ErrorKind::NotFound, target, message)
    }

    /// There is no manifest at `location`.
    pub fn no_manifest(location: &Location) -> Self {
        let message = format!(
            "there is no manifest; create one with \
             `sidekey keyring init {location} --name NAME --kek URI`"
        );
        Self::new(ErrorKind::NotFound, location, message)
    }

    /// The manifest at `location` is not the one that a change was based on.
    pub fn conflict(location: &Location) -> Self {
        let message = "the manifest was changed concurrently";
        Self::new(ErrorKind::Conflict, location, message)
    }

    /// The manifest at `location` is longer than `limit` bytes.
    pub fn manifest_too_large(location: &Location, limit: usize) -> Self {
        let message =
            format!("the manifest is longer than {limit} bytes (`refresh.manifest_bytes`)");
        Self::new(ErrorKind::TooLarge, location, message)
    }

    /// The secret is longer than `limit` bytes.
    pub fn secret_too_large(source: impl Display, limit: usize) -> Self {
        let message = format!("the value is longer than {limit} bytes (`secrets.value_bytes`)");
        Self::new(ErrorKind::TooLarge, source, message)
    }
}

/// An error that is not attributed to a KEK, location or source yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(crate) fn on(self, target: impl Display) -> BackendError {
        BackendError {
            kind: self.kind,
            target: target.to_string(),
            message: self.message,
        }
    }
}

/// The kind of a backend's error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No usable response: unreachable, sealed, failing or too slow. A retry may help.
    Unavailable,
    /// The rate limit was exceeded. A retry helps after a while.
    Throttled,
    /// Not logged in, or not permitted.
    Denied,
    /// No such key, manifest or secret.
    NotFound,
    /// The key exists and is disabled or scheduled for deletion.
    Disabled,
    /// The system rejected the request, such as a wrap made by another key.
    Rejected,
    /// A KEK returned another key than the manifest commits to.
    Exchanged,
    /// The settings, the URI or the type of the key can't work.
    Misconfigured,
    /// A concurrent change was detected; nothing was written.
    Conflict,
    /// Longer than the configured limit.
    TooLarge,
}

impl ErrorKind {
    /// Returns whether a later try may succeed without any change of settings.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Unavailable | Self::Throttled)
    }

    /// Returns the stable code of a KEK's error, for metrics and `/status`.
    pub fn kek_code(self) -> &'static str {
        match self {
            Self::Unavailable | Self::Conflict | Self::TooLarge => "unavailable",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::NotFound => "missing",
            Self::Disabled => "disabled",
            Self::Rejected => "refused",
            Self::Exchanged => "exchanged",
            Self::Misconfigured => "misconfigured",
        }
    }

    /// Returns the stable code of a failed refresh whose manifest could not be read.
    pub fn store_code(self) -> &'static str {
        match self {
            Self::NotFound => "source_missing",
            Self::TooLarge => "malformed",
            Self::Denied => "source_denied",
            Self::Unavailable
            | Self::Throttled
            | Self::Disabled
            | Self::Rejected
            | Self::Exchanged
            | Self::Misconfigured
            | Self::Conflict => "source_unavailable",
        }
    }

    /// Returns the stable code of a secret's error, for metrics, `/status` and the audit log.
    pub fn secret_code(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Throttled => "throttled",
            Self::Misconfigured => "misconfigured",
            Self::TooLarge => "too_long",
            Self::Unavailable
            | Self::Disabled
            | Self::Rejected
            | Self::Exchanged
            | Self::Conflict => "unavailable",
        }
    }
}

/// Returns an error and its causes, the outermost first.
#[cfg(any(feature = "aws", feature = "https-client"))]
pub(super) fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Returns the text of an error and its causes, on one line.
#[cfg(any(feature = "aws", feature = "azure"))]
pub(super) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error).map(ToString::to_string) {
        // Some errors already contain the text of their cause.
        if !cause.is_empty() && !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{separator}{cause}");
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
