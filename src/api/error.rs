//! The one place where domain errors become problems.

use crate::{
    crypto::{CiphertextError, RandomnessUnavailable},
    http::problem::Problem,
    session::SessionError,
    wire::Code,
};

/// Why a request on a keyring failed.
#[derive(Debug)]
pub(crate) struct RequestError {
    pub(crate) problem: Problem,
    /// The key version that was refused, for the audit log.
    pub(crate) version: Option<u32>,
}

impl From<Problem> for RequestError {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            version: None,
        }
    }
}

impl From<SessionError> for RequestError {
    fn from(error: SessionError) -> Self {
        Self {
            version: error.version(),
            problem: error.into(),
        }
    }
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        let code = match &error {
            SessionError::NotLoaded => Code::ProviderUnavailable,
            SessionError::NoPrimary { .. } => Code::NoPrimary,
            SessionError::KeyLost { .. } => Code::KeyLost,
            SessionError::LeaseExpired { .. } => Code::LeaseExpired,
            SessionError::VersionUnavailable { .. } => Code::KeyVersionUnavailable,
            SessionError::VersionDisabled { .. } => Code::KeyVersionDisabled,
            SessionError::VersionDestroyed { .. } => Code::KeyVersionDestroyed,
            SessionError::Message(error) => return Self::from(*error),
            SessionError::Randomness(error) => return Self::from(*error),
        };
        let problem = Self::new(code, error.to_string());
        match error.retry_after() {
            Some(delay) => problem.retry_after(u32::try_from(delay.as_secs()).unwrap_or(u32::MAX)),
            None => problem,
        }
    }
}

impl From<CiphertextError> for Problem {
    fn from(error: CiphertextError) -> Self {
        match error {
            CiphertextError::Malformed(reason) => Self::new(Code::MalformedCiphertext, reason),
            CiphertextError::WrongKeyring => Self::new(
                Code::WrongKeyring,
                "send the ciphertext to the keyring that encrypted it",
            ),
            CiphertextError::DecryptionFailed => Self::new(
                Code::DecryptionFailed,
                "the ciphertext was modified, or the AAD differs from the one used to encrypt it",
            ),
        }
    }
}

impl From<RandomnessUnavailable> for Problem {
    fn from(error: RandomnessUnavailable) -> Self {
        Self::new(Code::Internal, error.to_string())
    }
}
