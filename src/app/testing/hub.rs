use std::{
    convert::Infallible,
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::AUTHORIZATION,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
    task::yield_now,
};
use tokio_util::sync::CancellationToken;

use crate::{
    crypto::verify_signature,
    wire::hub::{
        PROTOCOL, ProofAnswer, REPORT_DOMAIN, Report, SIGNATURE_HEADER, StreamEvent, Welcome,
    },
};

/// A hub in the test, over plain HTTP/2 on loopback. It keeps what it receives.
pub(crate) struct FakeHub {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Cancelled when it goes down.
    up: CancellationToken,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Received>,
    /// What every report is answered with.
    refusal: Mutex<Option<StatusCode>>,
}

#[derive(Default)]
struct Received {
    reports: Vec<Report>,
    answers: Vec<ProofAnswer>,
    /// The `Authorization` of every request.
    tokens: Vec<String>,
    streams: Vec<mpsc::UnboundedSender<Bytes>>,
    /// The paths and queries of streams.
    opened: Vec<String>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl FakeHub {
    pub(crate) async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::default()).await
    }

    async fn start_at(address: SocketAddr, shared: Arc<Shared>) -> Self {
        let listener = loop {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("an option");
            match socket.bind(address).and_then(|()| socket.listen(16)) {
                Ok(listener) => break listener,
                // The former listener is on its way out.
                Err(error) if error.kind() == ErrorKind::AddrInUse => yield_now().await,
                Err(error) => panic!("{address}: {error}"),
            }
        };
        let hub = Self {
            address: listener.local_addr().expect("an address"),
            shared,
            up: CancellationToken::new(),
        };
        tokio::spawn(serve(listener, Arc::clone(&hub.shared), hub.up.clone()));
        hub
    }

    /// The config of a sidecar that joins it.
    pub(crate) fn config(&self, more: &str) -> String {
        let address = self.address;
        format!("[hub]\nurl = \"http://{address}\"\nname = \"one\"\nworkload = \"shop\"\n{more}\n")
    }

    /// Breaks all connections and takes no others.
    pub(crate) fn go_down(&self) {
        self.up.cancel();
        self.received().streams.clear();
    }

    /// Comes back at the same address, with what was received.
    pub(crate) async fn come_back(&mut self) {
        *self = Self::start_at(self.address, Arc::clone(&self.shared)).await;
    }

    /// Breaks all connections.
    pub(crate) async fn break_connections(&mut self) {
        self.go_down();
        self.come_back().await;
    }

    /// Answers reports with this status from now on.
    pub(crate) fn refuse(&self, status: Option<StatusCode>) {
        *self
            .shared
            .refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// Sends an event on every stream.
    pub(crate) fn send(&self, event: &StreamEvent) {
        self.send_text(Self::text(event));
    }

    /// Returns an event as it is sent.
    pub(crate) fn text(event: &StreamEvent) -> String {
        let data = event.to_json().expect("JSON");
        format!("event: {}\ndata: {data}\n\n", event.name())
    }

    /// Sends any text on every stream.
    pub(crate) fn send_text(&self, text: impl Into<Bytes>) {
        let text = text.into();
        let mut received = self.received();
        received
            .streams
            .retain(|stream| stream.send(text.clone()).is_ok());
    }

    /// Returns how many streams were opened so far.
    pub(crate) fn streams(&self) -> usize {
        self.received().opened.len()
    }

    /// Returns the path and query of the last stream.
    pub(crate) fn last_stream(&self) -> String {
        self.received().opened.last().expect("a stream").clone()
    }

    /// Returns all reports so far.
    pub(crate) fn reports(&self) -> Vec<Report> {
        self.received().reports.clone()
    }

    /// Returns the last report.
    pub(crate) fn last_report(&self) -> Report {
        self.received().reports.last().expect("a report").clone()
    }

    /// Returns all proofs so far.
    pub(crate) fn answers(&self) -> Vec<ProofAnswer> {
        self.received().answers.clone()
    }

    /// Returns the last `Authorization` that was presented.
    pub(crate) fn last_token(&self) -> String {
        self.received().tokens.last().expect("a request").clone()
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.shared.received()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.up.cancel();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, up: CancellationToken) {
    let accept = async {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let shared = Arc::clone(&shared);
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(shared.respond(request).await) }
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(up.clone().run_until_cancelled_owned(connection));
        }
    };
    up.run_until_cancelled(accept).await;
}

impl Shared {
    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let token = head.headers.get(AUTHORIZATION);
        let token = token.map_or("", |token| token.to_str().expect("text"));
        self.received().tokens.push(token.to_owned());
        match head.uri.path() {
            "/v1/stream" => {
                let path = head.uri.path_and_query().expect("a path");
                self.open(path.as_str())
            }
            "/v1/reports" => {
                let Ok(body) = body.collect().await else {
                    return status(StatusCode::BAD_REQUEST);
                };
                let refusal = *self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(refusal) = refusal {
                    return status(refusal);
                }
                let signature = head.headers[SIGNATURE_HEADER].as_bytes();
                self.take(&body.to_bytes(), signature);
                status(StatusCode::NO_CONTENT)
            }
            "/v1/proof-answers" => {
                let body = body.collect().await.expect("a body").to_bytes();
                let answer = serde_json::from_slice(&body).expect("an answer");
                self.received().answers.push(answer);
                status(StatusCode::NO_CONTENT)
            }
            path => panic!("{path}"),
        }
    }

    fn open(&self, path: &str) -> Response<Body> {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Bytes>();
        let mut received = self.received();
        received.opened.push(path.to_owned());
        received.streams.push(sender);
        let welcome = StreamEvent::Welcome(Welcome {
            protocol: PROTOCOL,
            hub: "test".into(),
            report_seconds: 10,
        });
        let first = Bytes::from(format!(": hello\n{}", FakeHub::text(&welcome)));
        let rest = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let chunks = futures_util::stream::once(async { first }).chain(rest);
        let frames = chunks.map(|chunk| Ok(Frame::data(chunk)));
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(StreamBody::new(frames).boxed_unsync())
            .expect("a response")
    }

    /// Takes a report that is signed by the key in it, which is that of the process.
    fn take(&self, body: &[u8], signature: &[u8]) {
        let report: Report = serde_json::from_slice(body).expect("a report");
        let signature = STANDARD.decode(signature).expect("base64");
        let signed = [REPORT_DOMAIN, body].concat();
        assert!(verify_signature(&report.key, &signed, &signature));
        let mut received = self.received();
        for former in &received.reports {
            if former.instance == report.instance {
                assert_eq!(former.key, report.key);
                assert!(
                    former.sequence < report.sequence,
                    "each number is used once"
                );
                assert!(!former.is_final, "nothing follows the last report");
            }
        }
        received.reports.push(report);
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
    *response.status_mut() = status;
    response
}
