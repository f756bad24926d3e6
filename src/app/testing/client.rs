use std::{io, net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn,
    header::HOST,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};

use super::time::Time;

pub(crate) const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");
pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");

/// The host that requests name, unless the test names another.
const HOST_NAME: &str = "localhost";

/// A connection's bytes.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// One connection to a sidecar.
pub(crate) struct Client {
    sender: Sender,
    host: &'static str,
    time: Arc<Time>,
}

enum Sender {
    Http1(conn::http1::SendRequest<RequestBody>),
    Http2(conn::http2::SendRequest<RequestBody>),
}

pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// Returns a body with a `content-length`.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Returns a body that comes from a channel, without a `content-length`. An error breaks the
/// request off.
pub(crate) fn channel() -> (mpsc::Sender<io::Result<Bytes>>, RequestBody) {
    let (sender, mut receiver) = mpsc::channel(1);
    let chunks = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let frames =
        futures_util::StreamExt::map(chunks, |chunk: io::Result<Bytes>| chunk.map(Frame::data));
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// Returns a body that is complete but has no `content-length`.
pub(crate) fn unannounced(bytes: impl Into<Bytes>) -> RequestBody {
    let frame = Ok(Frame::data(bytes.into()));
    StreamBody::new(futures_util::stream::once(std::future::ready(frame))).boxed_unsync()
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// Returns the body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// Returns the problem's code, after checking that the body is a well-formed problem.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{:?}",
            self.body
        );
        assert_eq!(self.headers["cache-control"], "no-store");
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16());
        assert!(problem["title"].is_string() && problem["detail"].is_string());
        problem["code"].as_str().expect("a code").to_owned()
    }

    /// Returns the key version that the response names.
    pub(crate) fn version(&self) -> u32 {
        self.headers["sidekey-key-version"]
            .to_str()
            .ok()
            .and_then(|version| version.parse().ok())
            .expect("a version")
    }

    /// Asserts that the request succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, StatusCode::OK, "{:?}", self.body);
        self
    }
}

impl Client {
    pub(super) async fn http1(socket: &Path, time: Arc<Time>) -> Self {
        let stream = UnixStream::connect(socket).await.expect("connected");
        Self::on_http1(stream, time).await
    }

    pub(super) async fn http2(socket: &Path, time: Arc<Time>) -> Self {
        let stream = UnixStream::connect(socket).await.expect("connected");
        Self::on_http2(
            stream,
            &conn::http2::Builder::new(TokioExecutor::new()),
            time,
        )
        .await
    }

    /// An HTTP/2 connection whose client takes heads of responses but no body.
    pub(super) async fn taking_no_body(stream: impl Stream, time: Arc<Time>) -> Self {
        let mut builder = conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(0);
        Self::on_http2(stream, &builder, time).await
    }

    pub(super) async fn on_http2(
        stream: impl Stream,
        builder: &conn::http2::Builder<TokioExecutor>,
        time: Arc<Time>,
    ) -> Self {
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .expect("a handshake");
        tokio::spawn(connection);
        Self {
            sender: Sender::Http2(sender),
            host: HOST_NAME,
            time,
        }
    }

    pub(super) async fn tcp(address: SocketAddr, time: Arc<Time>) -> Self {
        let stream = TcpStream::connect(address).await.expect("connected");
        Self::on_http1(stream, time).await
    }

    pub(super) async fn on_http1(stream: impl Stream, time: Arc<Time>) -> Self {
        let (sender, connection) = conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("a handshake");
        tokio::spawn(connection);
        Self {
            sender: Sender::Http1(sender),
            host: HOST_NAME,
            time,
        }
    }

    /// Names another host from now on.
    pub(crate) fn name_host(&mut self, host: &'static str) {
        self.host = host;
    }

    /// Returns another client on the same HTTP/2 connection.
    pub(crate) fn again(&self) -> Self {
        let Sender::Http2(sender) = &self.sender else {
            panic!("an HTTP/1.1 connection carries one request at a time");
        };
        Self {
            sender: Sender::Http2(sender.clone()),
            host: self.host,
            time: Arc::clone(&self.time),
        }
    }

    /// Sends a request and waits for the whole response.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.try_send(method, path, headers, body)
            .await
            .expect("a response")
    }

    /// Like [`Client::send`], but returns the error if the connection breaks.
    pub(crate) async fn try_send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, hyper::Error> {
        let time = Arc::clone(&self.time);
        time.within(async {
            let response = self.open(method, path, headers, whole(body)).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
            })
        })
        .await
    }

    /// Sends a request with any body, and returns once the response's head is there.
    pub(crate) async fn open(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let uri = if matches!(self.sender, Sender::Http2(_)) {
            format!("http://{}{path}", self.host)
        } else {
            path.to_owned()
        };
        let mut request = Request::builder().method(method).uri(uri);
        if matches!(self.sender, Sender::Http1(_)) {
            request = request.header(HOST, self.host);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).expect("a valid request");
        let time = Arc::clone(&self.time);
        time.within(async {
            match &mut self.sender {
                Sender::Http1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Sender::Http2(sender) => sender.send_request(request).await,
            }
        })
        .await
    }

    /// Sends a POST request.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.send(Method::POST, path, headers, body).await
    }

    /// Sends a GET request.
    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// Encrypts with `demo`.
    pub(crate) async fn encrypt(&mut self, plaintext: &[u8]) -> Answer {
        self.post("/v1/keyrings/demo/encrypt", &[OCTETS], plaintext.to_vec())
            .await
    }

    /// Decrypts with `demo`.
    pub(crate) async fn decrypt(&mut self, ciphertext: &[u8]) -> Answer {
        self.post("/v1/keyrings/demo/decrypt", &[OCTETS], ciphertext.to_vec())
            .await
    }

    /// Posts JSON to an operation of `demo`.
    pub(crate) async fn json(&mut self, operation: &str, body: Value) -> Answer {
        let path = format!("/v1/keyrings/demo/{operation}");
        self.post(&path, &[JSON], body.to_string()).await
    }
}
