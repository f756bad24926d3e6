use std::error::Error;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Response, body::Incoming};
use serde::Deserialize;

use super::error::SidecarError;

/// The longest response that is read into memory, in bytes.
pub const MAX_RESPONSE: usize = 64 << 20;

/// Problem details of an error response (RFC 9457).
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    /// The stable code.
    pub code: String,
    /// What the code means; the same for every occurrence.
    pub title: String,
    /// What is specific to this occurrence.
    pub detail: String,
}

impl Problem {
    /// Returns title and detail.
    pub fn message(&self) -> String {
        format!("{}: {}", self.title, self.detail)
    }

    /// Parses the problem in an error response.
    ///
    /// # Errors
    /// The body is incomplete or not a problem.
    pub async fn from_response(response: Response<Incoming>) -> Result<Self, SidecarError> {
        let status = response.status();
        let body = read_body(response).await?;
        serde_json::from_slice(&body)
            .map_err(|_| SidecarError::Unexpected(format!("status {status}")))
    }
}

impl From<Problem> for SidecarError {
    fn from(problem: Problem) -> Self {
        Self::Refused {
            message: problem.message(),
            code: problem.code,
        }
    }
}

/// Converts an error response.
pub async fn error_of(response: Response<Incoming>) -> SidecarError {
    Problem::from_response(response)
        .await
        .map_or_else(|error| error, SidecarError::from)
}

/// Reads a response's body.
///
/// # Errors
/// The body is incomplete, or longer than [`MAX_RESPONSE`].
pub async fn read_body(response: Response<Incoming>) -> Result<Bytes, SidecarError> {
    let body = Limited::new(response.into_body(), MAX_RESPONSE)
        .collect()
        .await;
    Ok(body.map_err(|error| incomplete(&*error))?.to_bytes())
}

/// The error of a response whose body is incomplete.
pub fn incomplete(error: &dyn Error) -> SidecarError {
    SidecarError::Unexpected(format!("incomplete body, discarded: {error}"))
}
