//! A sidecar from the applications' side: its Unix socket, its problems, its events. docs/api.md says what is asked and answered.
//!
//! Plaintexts and secrets pass through here in requests and answers.

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
    events::{Event, Feed, News},
    secrets::{Fetched, fetch_secret},
};

/// The longest answer that is read whole, in bytes.
pub const LONGEST_ANSWER: usize = 64 << 20;

/// A request's body of any kind.
pub type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// A body that is all there.
pub fn whole(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A request for `path`, without headers of its own.
pub fn request(method: Method, path: &str) -> request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "sidekey")
}

/// Why a sidecar did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// It can't be reached.
    #[error("{}: {error}; is the sidecar running, and is this its socket (--socket, SIDEKEY_SOCKET)?", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        error: String,
    },
    /// It answers with something else than an API of Sidekey would.
    #[error("the sidecar's answer is not as expected: {0}")]
    Unexpected(String),
    /// A file that is sent to it can't be read.
    #[error("{0}")]
    Unreadable(String),
    /// It refuses to do this at all.
    #[error("{message} ({code})")]
    Refused {
        /// The problem's code.
        code: String,
        /// What it says.
        message: String,
    },
}

impl SidecarError {
    /// Whether the sidecar would say the same to whoever asks again, until somebody changes something.
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

    /// Whether there is no secret of that name, or none yet.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "secret_not_found")
    }
}

/// What the sidecar says when it doesn't do what it was asked for (RFC 9457).
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    /// The stable code.
    pub code: String,
    /// What the code means, the same every time.
    pub title: String,
    /// What it is about this time.
    pub detail: String,
}

impl Problem {
    /// Title and detail, for people.
    pub fn message(&self) -> String {
        format!("{}: {}", self.title, self.detail)
    }

    /// The problem that an answer carries.
    ///
    /// # Errors
    /// It carries none.
    pub async fn of(response: Response<Incoming>) -> Result<Self, SidecarError> {
        let status = response.status();
        let body = read(response).await?;
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

/// Why an answer that isn't good isn't.
pub async fn refusal(response: Response<Incoming>) -> SidecarError {
    Problem::of(response)
        .await
        .map_or_else(|error| error, SidecarError::from)
}

/// An answer's whole body.
///
/// # Errors
/// It broke off, or is longer than [`LONGEST_ANSWER`].
pub async fn read(response: Response<Incoming>) -> Result<Bytes, SidecarError> {
    let body = Limited::new(response.into_body(), LONGEST_ANSWER)
        .collect()
        .await;
    Ok(body.map_err(|error| broken_off(&*error))?.to_bytes())
}

/// What to say of an answer that broke off.
pub fn broken_off(error: &dyn Error) -> SidecarError {
    SidecarError::Unexpected(format!(
        "it broke off, so nothing of it can be relied on: {error}"
    ))
}

/// A sidecar's Unix socket.
#[derive(Debug, Clone)]
pub struct Socket {
    path: PathBuf,
}

impl Socket {
    /// The socket at `path`. Nothing is sent yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new connection, for HTTP/1.1. Needs a Tokio runtime.
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
        // Its end shows at the sender.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends a request over a connection of its own; gives the answer when its head has come.
    ///
    /// # Errors
    /// Whatever keeps an answer from coming. An answer that is a problem is no error here.
    pub async fn send(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SidecarError> {
        self.connect()
            .await?
            .send_request(request)
            .await
            .map_err(|error| self.not_sent(&error))
    }

    /// What to say of a request that did not get through.
    pub fn not_sent(&self, error: &hyper::Error) -> SidecarError {
        if error.is_user() {
            // Of a body that is read while it is sent: the only bodies that fail are files.
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
