//! Vault's responses, and what their errors mean.

use hyper::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::backend::{ErrorKind, error::Failure};

/// Vault's error messages are cut after this many characters.
const MAX_TEXT: usize = 300;

/// A response of any status. Its body may contain a key, so it is zeroized.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Response {
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.parse_borrowed()
    }

    /// Like `parse`, but borrows from the zeroized body.
    pub(super) fn parse_borrowed<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        // serde's error could quote a value, which may be a key.
        serde_json::from_slice(&self.body).map_err(|_| {
            let message = "unexpected response; is this the address of a Vault server?";
            Failure::new(ErrorKind::Unavailable, message)
        })
    }

    /// Returns Vault's error messages on one line.
    pub(super) fn errors(&self) -> String {
        #[derive(Deserialize)]
        struct Errors {
            #[serde(default)]
            errors: Vec<String>,
        }
        let errors = serde_json::from_slice::<Errors>(&self.body)
            .map(|body| body.errors)
            .unwrap_or_default();
        let text = errors
            .join("; ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        let text = text.replace("1 error occurred: * ", "");
        text.chars().take(MAX_TEXT).collect()
    }

    /// Explains an error status.
    pub(super) fn failure(&self) -> Failure {
        let errors = self.errors();
        let status = self.status;
        if status == StatusCode::SERVICE_UNAVAILABLE && errors.contains("sealed") {
            return Failure::new(ErrorKind::Unavailable, "Vault is sealed; unseal it");
        }
        let kind = match status.as_u16() {
            403 => ErrorKind::Denied,
            // A standby that has not yet replicated another server's write.
            412 => ErrorKind::Unavailable,
            404 => ErrorKind::NotFound,
            429 => ErrorKind::Throttled,
            400..500 => ErrorKind::Rejected,
            _ => ErrorKind::Unavailable,
        };
        let message = if errors.is_empty() {
            format!("Vault responded with {status}")
        } else {
            format!("Vault responded with {status}: {errors}")
        };
        Failure::new(kind, message)
    }

    /// Like `failure`, but explains which policy a denied request to `path` needs.
    pub(super) fn failure_at(&self, path: &str, capability: &str) -> Failure {
        let failure = self.failure();
        if failure.kind == ErrorKind::Denied {
            policy_denies(path, capability)
        } else {
            failure
        }
    }

    /// Whether the request was denied because the token is invalid. Older servers don't say why.
    pub(super) fn is_invalid_token(&self) -> bool {
        self.errors().contains("invalid token")
    }

    /// Returns the response if its status is a success.
    pub(super) fn ok(self) -> Result<Self, Failure> {
        if self.status.is_success() {
            Ok(self)
        } else {
            Err(self.failure())
        }
    }
}

pub(super) fn policy_denies(path: &str, capability: &str) -> Failure {
    let message = format!(
        "the token's policy denies it; it needs: \
         path \"{path}\" {{ capabilities = [\"{capability}\"] }}"
    );
    Failure::new(ErrorKind::Denied, message)
}
