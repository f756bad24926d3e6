//! What the errors of a PKCS#11 library mean.

use cryptoki::error::{Error, RvError};

use crate::backend::{ErrorKind, error::Failure};

/// An error of a token.
pub(super) struct TokenError {
    pub(super) failure: Failure,
    /// Whether the operation may succeed in a new session.
    pub(super) is_session_error: bool,
}

impl TokenError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            failure: Failure::new(kind, message),
            is_session_error: false,
        }
    }
}

impl From<Error> for TokenError {
    fn from(error: Error) -> Self {
        let Error::Pkcs11(code, _) = &error else {
            let message = format!("the PKCS#11 library failed: {error}");
            return Self::new(ErrorKind::Unavailable, message);
        };
        let (kind, explanation) = explain(code);
        let is_session_error = kind == ErrorKind::Unavailable || *code == RvError::UserNotLoggedIn;
        Self {
            failure: Failure::new(kind, format!("{explanation} ({error})")),
            is_session_error,
        }
    }
}

fn explain(code: &RvError) -> (ErrorKind, &'static str) {
    use RvError as Rv;
    match code {
        Rv::PinIncorrect | Rv::PinInvalid | Rv::PinLenRange => {
            (ErrorKind::Denied, "the PIN is wrong")
        }
        Rv::PinLocked => (
            ErrorKind::Denied,
            "the token has locked the PIN; its security officer must unlock it",
        ),
        Rv::PinExpired | Rv::UserPinNotInitialized => {
            (ErrorKind::Denied, "the token requires a new PIN to be set")
        }
        Rv::UserNotLoggedIn => (
            ErrorKind::Denied,
            "the token requires a login; add pin-source to the URI",
        ),
        Rv::KeyFunctionNotPermitted => (
            ErrorKind::Misconfigured,
            "the key's attributes forbid it: CKA_ENCRYPT and CKA_DECRYPT must be true",
        ),
        Rv::KeyTypeInconsistent
        | Rv::MechanismInvalid
        | Rv::MechanismParamInvalid
        | Rv::KeySizeRange => (
            ErrorKind::Misconfigured,
            "the token does not support AES-GCM or RSA-OAEP with this key",
        ),
        Rv::EncryptedDataInvalid
        | Rv::EncryptedDataLenRange
        | Rv::DataInvalid
        | Rv::DataLenRange => (
            ErrorKind::Rejected,
            "the key cannot decrypt the wrap: another key made it, or it was modified",
        ),
        Rv::TokenNotPresent | Rv::TokenNotRecognized | Rv::DeviceRemoved => {
            (ErrorKind::Unavailable, "the token was removed")
        }
        _ => (ErrorKind::Unavailable, "the token failed"),
    }
}
