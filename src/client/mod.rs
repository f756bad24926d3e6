//! A client of the applications' API (docs/api.md): requests over the Unix socket, problems and
//! events.
//!
//! Plaintexts and secrets pass through here in requests and responses.

mod events;
mod secrets;

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Body, Incoming},
    client::conn::http1::{self, SendRequest},
    header::HOST,
    http::request,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

pub use self::{
    events::{EventStream, ServerEvent, StreamItem},
    secrets::{Fetched, fetch_secret},
};

/// The longest response that is read into memory, in bytes.
pub const MAX_RESPONSE: usize = 64 << 20;

/// A request body, streamed or in memory.
pub type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// Creates a body from bytes in memory.
pub fn full_body(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Starts a request for `path`.
pub fn request(method: Method, path: &str) -> request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "sidekey")
}

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

    /// Whether the secret doesn't exist (yet).
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "secret_not_found")
    }
}

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

/// A sidecar's Unix socket.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
}

impl Socket {
    /// Creates a client for the socket at `path`, without connecting.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens an HTTP/1.1 connection. Must be called in a Tokio runtime.
    ///
    /// # Errors
    /// [`SidecarError::Unreachable`]
    pub async fn connect<B>(&self) -> Result<SendRequest<B>, SidecarError>
    where
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(&error))?;
        // Errors of the connection are reported through the sender.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends a request over a new connection. Returns when the response's head was received.
    ///
    /// # Errors
    /// [`SidecarError`] if there is no response; an error response is not an error here.
    pub async fn send(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SidecarError> {
        self.connect()
            .await?
            .send_request(request)
            .await
            .map_err(|error| self.send_error(&error))
    }

    /// Converts the error of a request without a response.
    pub fn send_error(&self, error: &hyper::Error) -> SidecarError {
        if error.is_user() {
            // From the request's body; only bodies read from files can fail.
            return SidecarError::Unreadable(
                error
                    .source()
                    .map_or_else(|| error.to_string(), ToString::to_string),
            );
        }
        self.unreachable(error)
    }

    fn unreachable(&self, error: &dyn Error) -> SidecarError {
        SidecarError::Unreachable {
            socket: self.path.clone(),
            error: error.to_string(),
        }
    }
}
