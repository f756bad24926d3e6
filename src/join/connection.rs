//! One HTTP/2 connection to a hub, and the requests on it.

use std::{error::Error, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{CertificateError, pki_types::ServerName};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{
    credentials::{Credentials, TlsMaterial},
    failure::Failure,
};
use crate::{
    model::HubUrl,
    wire::{EVENTS, JSON},
};

/// How long a connection may take, its handshakes included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the head of a response may take, and then its body.
const RESPONSE_LIMIT: Duration = Duration::from_secs(10);
/// How long a peer may be silent before it is asked whether it lives (RFC 9113 §6.7), and how long
/// that answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_LIMIT: Duration = Duration::from_secs(20);
/// The most bytes of a response that isn't the stream, and of a response's head.
const MAX_RESPONSE: usize = 16 << 10;
const MAX_HEAD: u32 = 16 << 10;
/// The most bytes that arrive before they are read: of a response, and of all.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
const FRAME: u32 = 16 << 10;
/// The most characters of a hub's message that are logged and shown.
const MAX_MESSAGE: usize = 300;

/// A connection to a hub. Dropping it closes it.
pub(super) struct Connection {
    requests: Requests,
    /// Identifies the files that it was made with.
    pub(super) fingerprint: Option<[u8; 32]>,
    _driver: AbortOnDropHandle<()>,
}

/// Sends requests on a connection, as long as it is open.
#[derive(Clone)]
pub(super) struct Requests {
    sender: SendRequest<Full<Bytes>>,
    credentials: Arc<Credentials>,
    url: HubUrl,
}

/// A connection's bytes.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Connection {
    pub(super) async fn open(
        url: &HubUrl,
        credentials: &Arc<Credentials>,
    ) -> Result<Self, Failure> {
        let tls = credentials.tls().await?;
        let fingerprint = tls.as_ref().map(|tls| tls.fingerprint);
        let connecting = timeout(CONNECT_LIMIT, connect(url, tls));
        let (sender, driver) = connecting.await.map_err(|_| {
            Failure::unreachable(format!("{url}: no connection within {CONNECT_LIMIT:?}"))
        })??;
        Ok(Self {
            requests: Requests {
                sender,
                credentials: Arc::clone(credentials),
                url: url.clone(),
            },
            fingerprint,
            _driver: driver,
        })
    }

    pub(super) fn requests(&self) -> &Requests {
        &self.requests
    }
}

async fn connect(
    url: &HubUrl,
    tls: Option<TlsMaterial>,
) -> Result<(SendRequest<Full<Bytes>>, AbortOnDropHandle<()>), Failure> {
    let failed =
        |error: &(dyn Error + 'static)| Failure::unreachable(format!("{url}: {}", reason(error)));
    let connected = TcpStream::connect((url.host(), url.port())).await;
    let tcp = connected.map_err(|error| failed(&error))?;
    tcp.set_nodelay(true).map_err(|error| failed(&error))?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(tcp),
        Some(tls) => {
            let name = ServerName::try_from(url.host().to_owned())
                .map_err(|error| Failure::files(format!("{url}: {error}")))?;
            let handshake = TlsConnector::from(tls.config).connect(name, tcp).await;
            let stream = handshake.map_err(|error| failed(&error))?;
            if stream.get_ref().1.alpn_protocol().is_none() {
                return Err(Failure::protocol(format!("{url} doesn't speak HTTP/2")));
            }
            Box::new(stream)
        }
    };
    let handshake = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(MAX_HEAD)
        .handshake(TokioIo::new(stream));
    let (sender, driver) = handshake.await.map_err(|error| failed(&error))?;
    let driver = tokio::spawn(async move {
        // Every request on the connection reports its error.
        let _ = driver.await;
    });
    Ok((sender, AbortOnDropHandle::new(driver)))
}

impl Requests {
    /// Opens the stream of events.
    pub(super) async fn stream(&self, instance: &str) -> Result<Incoming, Failure> {
        let path = format!("/v1/stream?instance={instance}");
        let accept = (ACCEPT, HeaderValue::from_static(EVENTS));
        let response = self
            .send(Method::GET, &path, [accept], Bytes::new())
            .await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(&path, response).await);
        }
        let content_type = response.headers().get(CONTENT_TYPE);
        let is_stream =
            content_type.is_some_and(|kind| kind.as_bytes().starts_with(EVENTS.as_bytes()));
        if !is_stream {
            return Err(self.protocol(&path, "is not a stream of events"));
        }
        Ok(response.into_body())
    }

    /// Posts JSON. What the hub answers doesn't matter, unless it is an error.
    pub(super) async fn post(
        &self,
        path: &str,
        header: Option<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<(), Failure> {
        let content_type = (CONTENT_TYPE, HeaderValue::from_static(JSON));
        let headers = header.into_iter().chain([content_type]);
        let response = self.send(Method::POST, path, headers, body).await?;
        if !response.status().is_success() {
            return Err(self.refusal(path, response).await);
        }
        // Read, so that the connection can be used further.
        self.read(path, response.into_body()).await.map(drop)
    }

    /// Sends a request, and returns the response once its head is there.
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let authorization = self.credentials.authorization().await?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.url)
            .parse()
            .map_err(|error| Failure::protocol(format!("{}{path}: {error}", self.url)))?;
        let presented = authorization.map(|value| (AUTHORIZATION, value));
        request.headers_mut().extend(headers);
        request.headers_mut().extend(presented);
        let mut sender = self.sender.clone();
        let sending = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        match timeout(RESPONSE_LIMIT, sending).await {
            Ok(sent) => sent.map_err(|error| self.lost(path, &error)),
            Err(_) => Err(self.silent(path)),
        }
    }

    async fn read(&self, path: &str, body: Incoming) -> Result<Bytes, Failure> {
        match timeout(RESPONSE_LIMIT, Limited::new(body, MAX_RESPONSE).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(self.lost(path, &*error)),
            Err(_) => Err(self.silent(path)),
        }
    }

    async fn refusal(&self, path: &str, response: Response<Incoming>) -> Failure {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Problem {
            code: String,
            detail: String,
        }

        let status = response.status();
        let body = self.read(path, response.into_body()).await;
        let problem = body.map(|body| serde_json::from_slice(&body).unwrap_or_default());
        let Problem { code, detail } = problem.unwrap_or_default();
        let words = [code, detail].map(|text| shown(&text));
        let words: Vec<String> = words.into_iter().filter(|text| !text.is_empty()).collect();
        let url = &self.url;
        Failure::refused(format!(
            "{url}{}: {status} {}",
            without_query(path),
            words.join(": ")
        ))
    }

    /// The connection broke, or its limits were exceeded.
    pub(super) fn lost(&self, path: &str, error: &(dyn Error + 'static)) -> Failure {
        let path = without_query(path);
        Failure::unreachable(format!("{}{path}: {}", self.url, reason(error)))
    }

    pub(super) fn protocol(&self, path: &str, what: &str) -> Failure {
        Failure::protocol(format!("{}{} {what}", self.url, without_query(path)))
    }

    pub(super) fn ended(&self, path: &str) -> Failure {
        Failure::unreachable(format!("{}{path}: the hub ended the stream", self.url))
    }

    fn silent(&self, path: &str) -> Failure {
        let path = without_query(path);
        Failure::unreachable(format!(
            "{}{path}: no answer within {RESPONSE_LIMIT:?}",
            self.url
        ))
    }
}

fn without_query(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

/// The root cause says what failed; the errors around it only that something did.
fn reason(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let wrapped = cause
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    let tls = match wrapped {
        Some(inner) => inner.downcast_ref::<rustls::Error>(),
        None => cause.downcast_ref(),
    };
    match tls {
        Some(rustls::Error::InvalidCertificate(
            // A bad signature is that of another authority of the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => "the hub's certificate is from an authority that is not trusted here; name the \
               authority's certificate in `hub.ca_file`"
            .into(),
        _ => cause.to_string(),
    }
}

/// A hub's words as they may be logged: short, and without control characters.
fn shown(text: &str) -> String {
    let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    visible.take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_hub_are_short_and_on_one_line() {
        assert_eq!(shown("a\nb\u{1b}[31m"), "a b [31m");
        assert_eq!(shown(&"é".repeat(1000)).chars().count(), MAX_MESSAGE);
        assert_eq!(without_query("/v1/stream?instance=1"), "/v1/stream");
    }
}
