use std::path::PathBuf;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The sidecar can't be reached.
    #[error(
        "{}: {error}; is the sidecar running, and is this its socket (--socket, SIDEKEY_SOCKET)?",
        socket.display()
    )]
    Unreachable {
        /// The sidecar's socket.
        socket: PathBuf,
        /// The reason.
        error: String,
    },
    /// The response doesn't conform to the API.
    #[error("unexpected response from the sidecar: {0}")]
    Unexpected(String),
    /// The file to send can't be read.
    #[error("{0}")]
    Unreadable(String),
    /// The sidecar returned a problem.
    #[error("{message} ({code})")]
    Refused {
        /// The stable code.
        code: String,
        /// Title and detail.
        message: String,
    },
}

impl SidecarError {
    /// Whether a retry fails as well until something is changed.
    pub fn is_final(&self) -> bool {
        const FINAL: [&str; 7] = [
            "forbidden",
            "invalid_request",
            "not_found",
            "provider_denied",
            "secret_field_not_found",
            "secret_not_found",
            "unauthorized",
        ];
        matches!(self, Self::Refused { code, .. } if FINAL.contains(&code.as_str()))
    }

    /// Whether the secret, or the field of it, doesn't exist (yet).
    pub fn is_missing(&self) -> bool {
        const MISSING: [&str; 2] = ["secret_field_not_found", "secret_not_found"];
        matches!(self, Self::Refused { code, .. } if MISSING.contains(&code.as_str()))
    }
}
