//! A proxy in front of a real server, which injects faults that the server can't produce itself.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1 as client,
    header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The fault injected into a request.
#[derive(Clone)]
pub enum Fault {
    /// No fault: the real server responds.
    None,
    /// Responds with this status and JSON body.
    Answer(u16, String),
    /// Like `Answer`, but only for this operation.
    AnswerTo(&'static str, u16, String),
    /// Never responds.
    Hang,
    /// Forwards this many responses of the real server, then never responds.
    HangAfter(usize),
    /// Delays the real server's response.
    Slow(Duration),
    /// Replaces a text in the real server's response with another of the same length.
    Forged(fn(&str) -> String),
}

struct Shared {
    upstream: String,
    fault: Mutex<Fault>,
    counts: Mutex<BTreeMap<String, usize>>,
}

pub struct FaultProxy {
    pub address: String,
    shared: Arc<Shared>,
    alive: watch::Sender<bool>,
}

impl FaultProxy {
    /// Starts a proxy in front of `upstream`, an address. Requires a multi-threaded runtime.
    pub async fn before(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            fault: Mutex::new(Fault::None),
            counts: Mutex::default(),
        });
        let (alive, mut dead) = watch::channel(true);
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            let accept = async {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (shared, mut dead) = (Arc::clone(&serving), dead.clone());
                    tokio::spawn(async move {
                        let answer = service_fn(|request| answer(Arc::clone(&shared), request));
                        tokio::select! {
                            _ = server::Builder::new()
                                .serve_connection(TokioIo::new(stream), answer) => {}
                            _ = dead.wait_for(|alive| !alive) => {}
                        }
                    });
                }
            };
            let mut killed = dead.clone();
            tokio::select! {
                () = accept => {}
                _ = killed.wait_for(|alive| !alive) => {}
            }
            drop(dead.changed());
        });
        Self {
            address,
            shared,
            alive,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Refuses connections from now on.
    pub fn kill(&self) {
        self.alive.send_replace(false);
    }

    /// Returns the number of requests for an AWS operation, by its name in X-Amz-Target. Other
    /// requests have an empty name.
    pub fn count(&self, operation: &str) -> usize {
        self.shared
            .counts
            .lock()
            .unwrap()
            .get(operation)
            .copied()
            .unwrap_or(0)
    }
}

type Answer = Response<Full<Bytes>>;

/// Returns the fault for this request.
fn next(fault: &mut Fault) -> Fault {
    match fault {
        Fault::HangAfter(0) => Fault::Hang,
        Fault::HangAfter(left) => {
            *left -= 1;
            Fault::None
        }
        fault => fault.clone(),
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let target = request
        .headers()
        .get("x-amz-target")
        .map(|target| target.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    *shared
        .counts
        .lock()
        .unwrap()
        .entry(operation.clone())
        .or_default() += 1;
    let fault = match next(&mut shared.fault.lock().unwrap()) {
        Fault::AnswerTo(asked, status, body) if asked == operation => Fault::Answer(status, body),
        fault => fault,
    };
    Ok(match fault {
        Fault::None | Fault::AnswerTo(..) => forward(&shared.upstream, request).await,
        Fault::Answer(status, body) => {
            let mut answer = Response::new(Full::from(body));
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            answer
                .headers_mut()
                .insert(CONTENT_TYPE, "application/x-amz-json-1.1".parse().unwrap());
            answer
        }
        Fault::Hang | Fault::HangAfter(_) => std::future::pending().await,
        Fault::Slow(time) => {
            tokio::time::sleep(time).await;
            forward(&shared.upstream, request).await
        }
        Fault::Forged(forge) => {
            let (mut head, body) = forward(&shared.upstream, request).await.into_parts();
            head.headers.remove(CONTENT_LENGTH);
            let body =
                String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
            Response::from_parts(head, Full::from(forge(&body)))
        }
    })
}

async fn forward(upstream: &str, request: Request<Incoming>) -> Answer {
    let stream = TcpStream::connect(upstream).await.unwrap();
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (mut head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    head.headers.remove(TRANSFER_ENCODING);
    head.headers.insert(CONTENT_LENGTH, body.len().into());
    let (mut head, body) = sender
        .send_request(Request::from_parts(head, Full::new(body)))
        .await
        .unwrap()
        .into_parts();
    head.headers.remove(TRANSFER_ENCODING);
    Response::from_parts(head, Full::new(body.collect().await.unwrap().to_bytes()))
}
