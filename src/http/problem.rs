//! What callers are told when something is wrong: RFC 9457 problem details with a stable code. docs/errors.md lists the codes.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::crypto::{MessageError, RandomnessUnavailable};

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

            /// The HTTP status that goes with it.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            /// What it means, the same every time.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }
        }
    };
}

codes! {
    DecryptionFailed = "decryption_failed", UNPROCESSABLE_ENTITY, "The ciphertext can't be decrypted";
    MalformedCiphertext = "malformed_ciphertext", BAD_REQUEST, "This is not a ciphertext";
    WrongKeyring = "wrong_keyring", UNPROCESSABLE_ENTITY, "The ciphertext belongs to another keyring";
    KeyVersionUnavailable = "key_version_unavailable", SERVICE_UNAVAILABLE, "The key version is not available yet";
    KeyVersionDisabled = "key_version_disabled", CONFLICT, "The key version is disabled";
    KeyVersionDestroyed = "key_version_destroyed", GONE, "The key version was destroyed";
    NoPrimary = "no_primary", SERVICE_UNAVAILABLE, "No key version encrypts for this wave";
    LeaseExpired = "lease_expired", SERVICE_UNAVAILABLE, "The encrypt lease is over";
    KeyringNotFound = "keyring_not_found", NOT_FOUND, "There is no such keyring here";
    Forbidden = "forbidden", FORBIDDEN, "The policy doesn't allow this";
    Unauthorized = "unauthorized", UNAUTHORIZED, "The bearer token is missing or wrong";
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The body is too large";
    BatchTooLarge = "batch_too_large", PAYLOAD_TOO_LARGE, "The batch has too many items";
    HeadersTooLarge = "headers_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large";
    InvalidRequest = "invalid_request", BAD_REQUEST, "The request is not valid";
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The content type is not supported";
    NotFound = "not_found", NOT_FOUND, "There is nothing here";
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "The method is not allowed here";
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "The request took too long to arrive";
    TooManyConnections = "too_many_connections", SERVICE_UNAVAILABLE, "There are too many connections";
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "There is no memory left for this request";
    SecretNotFound = "secret_not_found", NOT_FOUND, "There is no such secret";
    SecretFieldNotFound = "secret_field_not_found", NOT_FOUND, "The secret has no such field";
    SecretVersionUnavailable = "secret_version_unavailable", SERVICE_UNAVAILABLE, "The provider has no such new version yet";
    ProviderDenied = "provider_denied", BAD_GATEWAY, "The sidecar may not have what this depends on";
    ProviderThrottled = "provider_throttled", SERVICE_UNAVAILABLE, "What this depends on wants fewer requests";
    ProviderUnavailable = "provider_unavailable", SERVICE_UNAVAILABLE, "What this depends on does not answer";
    Internal = "internal", INTERNAL_SERVER_ERROR, "Sidekey can't do its work";
}

/// An error's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its code.
    pub code: Code,
    detail: Cow<'static, str>,
    /// Seconds after which trying again may help.
    retry_after: Option<u32>,
    allow: Option<&'static str>,
    /// The key version that was refused, for the audit log.
    pub(crate) version: Option<u32>,
}

impl Problem {
    /// A problem with what this caller can do about it.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retry_after: None,
            allow: None,
            version: None,
        }
    }

    /// Says that trying again in so many seconds may help.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Says which key version was refused.
    pub(crate) fn of_version(mut self, version: u32) -> Self {
        self.version = Some(version);
        self
    }

    /// Says which methods are allowed.
    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(Code::MethodNotAllowed, format!("allowed here: {allow}"))
        }
    }

    /// The problem details.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        match serde_json::to_vec(self) {
            Ok(json) => json,
            Err(error) => unreachable!("four plain members serialize: {error}"),
        }
    }

    /// The HTTP answer.
    pub fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(self.to_json()));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.code == Code::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_struct("Problem", 4)?;
        members.serialize_field("code", self.code.as_str())?;
        members.serialize_field("title", self.code.title())?;
        members.serialize_field("status", &self.code.status().as_u16())?;
        members.serialize_field("detail", &self.detail)?;
        members.end()
    }
}

impl From<MessageError> for Problem {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Malformed(reason) => Self::new(Code::MalformedCiphertext, reason),
            MessageError::WrongKeyring => Self::new(
                Code::WrongKeyring,
                "send it to the keyring that encrypted it",
            ),
            MessageError::DecryptionFailed => Self::new(
                Code::DecryptionFailed,
                "the ciphertext was changed, or the AAD is not the one it was encrypted with",
            ),
        }
    }
}

impl From<RandomnessUnavailable> for Problem {
    fn from(error: RandomnessUnavailable) -> Self {
        Self::new(Code::Internal, error.to_string())
    }
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
