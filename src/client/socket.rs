use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Body, Incoming},
    client::conn::http1::{self, SendRequest},
    header::HOST,
    http::request,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::error::SidecarError;

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
