//! The stable codes of problems, their HTTP statuses and titles. docs/errors.md explains each.

use hyper::StatusCode;

macro_rules! codes {
    ($($variant:ident = $code:literal, $status:ident, $title:literal;)*) => {
        /// The stable code of a problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $title] $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code as text.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The HTTP status of responses with this code.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            /// A summary that is the same for every problem with this code.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }
        }
    };
}

codes! {
    DecryptionFailed = "decryption_failed", UNPROCESSABLE_ENTITY, "Decryption failed";
    MalformedCiphertext = "malformed_ciphertext", BAD_REQUEST, "Malformed ciphertext";
    WrongKeyring = "wrong_keyring", UNPROCESSABLE_ENTITY, "Ciphertext of another keyring";
    KeyVersionUnavailable = "key_version_unavailable", SERVICE_UNAVAILABLE,
        "Key version not available yet";
    KeyVersionDisabled = "key_version_disabled", CONFLICT, "Key version disabled";
    KeyVersionDestroyed = "key_version_destroyed", GONE, "Key version destroyed";
    NoPrimary = "no_primary", SERVICE_UNAVAILABLE, "No primary key version for this wave";
    KeyLost = "key_lost", SERVICE_UNAVAILABLE, "Key lost";
    LeaseExpired = "lease_expired", SERVICE_UNAVAILABLE, "Encrypt lease expired";
    KeyringNotFound = "keyring_not_found", NOT_FOUND, "Unknown keyring";
    Forbidden = "forbidden", FORBIDDEN, "Forbidden";
    Unauthorized = "unauthorized", UNAUTHORIZED, "Missing or invalid bearer token";
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "Body too large";
    BatchTooLarge = "batch_too_large", PAYLOAD_TOO_LARGE, "Too many items in the batch";
    HeadersTooLarge = "headers_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE,
        "Request head too large";
    InvalidRequest = "invalid_request", BAD_REQUEST, "Invalid request";
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE,
        "Unsupported media type";
    NotFound = "not_found", NOT_FOUND, "Unknown path";
    NoSuchRollout = "no_such_rollout", NOT_FOUND, "Unknown order or rollout";
    PreconditionFailed = "precondition_failed", PRECONDITION_FAILED, "Changed meanwhile";
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "Method not allowed";
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "Request timed out";
    TooManyConnections = "too_many_connections", SERVICE_UNAVAILABLE, "Too many connections";
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "Overloaded";
    SecretNotFound = "secret_not_found", NOT_FOUND, "Unknown secret";
    SecretFieldNotFound = "secret_field_not_found", NOT_FOUND, "Unknown secret field";
    SecretVersionUnavailable = "secret_version_unavailable", SERVICE_UNAVAILABLE,
        "Secret version not available yet";
    ProviderDenied = "provider_denied", BAD_GATEWAY, "Access denied by the provider";
    ProviderThrottled = "provider_throttled", SERVICE_UNAVAILABLE, "Rate limited by the provider";
    ProviderUnavailable = "provider_unavailable", SERVICE_UNAVAILABLE, "Provider unavailable";
    InvalidSignature = "invalid_signature", FORBIDDEN, "Invalid signature";
    DatabaseUnavailable = "database_unavailable", SERVICE_UNAVAILABLE, "The database fails";
    OtherKey = "other_key", CONFLICT, "Another key was first";
    ReportConflict = "report_conflict", CONFLICT, "Contradicts an earlier report";
    ProofNotPending = "proof_not_pending", NOT_FOUND, "No such proof awaited";
    Internal = "internal", INTERNAL_SERVER_ERROR, "Internal error";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented_with_its_status() {
        let page = include_str!("../../docs/errors.md");
        for code in Code::ALL {
            let row = format!("| `{}` | {} |", code.as_str(), code.status().as_u16());
            assert!(
                page.contains(&row),
                "docs/errors.md lacks a row that begins with {row}"
            );
        }
    }
}
