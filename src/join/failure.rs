//! Why a sidecar isn't connected to its hub, or why a report isn't accepted.

/// A stable code (docs/errors.md), and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Failure {
    /// A file can't be used.
    pub(super) fn files(message: impl Into<String>) -> Self {
        Self::new("hub_files", message)
    }

    /// There is no connection, or no answer.
    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self::new("hub_unreachable", message)
    }

    /// The hub answered with an error.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::new("hub_refused", message)
    }

    /// What the hub sent is no such stream or answer.
    pub(super) fn protocol(message: impl Into<String>) -> Self {
        Self::new("hub_protocol", message)
    }

    /// Whether the hub has decided: sending the same again changes nothing.
    pub(super) fn is_refusal(&self) -> bool {
        self.code == "hub_refused"
    }

    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}
