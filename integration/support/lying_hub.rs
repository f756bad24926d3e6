//! A hub for orders and journals that a test can make lie. No sidecar has joined it.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sidekey::{crypto::fingerprint, encoding::to_hex};

use super::small_server::header;

/// What the hub keeps, and may be made to say something else.
#[derive(Default)]
pub struct Kept {
    pub journals: BTreeMap<String, Vec<u8>>,
    pub orders: Vec<KeptOrder>,
}

pub struct KeptOrder {
    pub start: Value,
    pub outcome: Value,
}

#[derive(Clone)]
pub struct LyingHub {
    pub url: String,
    kept: Arc<Mutex<Kept>>,
}

struct Request {
    method: String,
    path: String,
    query: String,
    head: String,
    body: Vec<u8>,
}

type Response = (&'static str, Vec<u8>);

impl LyingHub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            kept: Arc::default(),
        };
        let server = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, stream) = (server.clone(), stream.unwrap());
                std::thread::spawn(move || server.serve(stream));
            }
        });
        hub
    }

    /// Reads or changes what it keeps.
    pub fn with<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        change(&mut self.kept.lock().unwrap())
    }

    /// Returns the journal of `demo`.
    pub fn journal(&self) -> Option<Value> {
        self.with(|kept| {
            let bytes = kept.journals.get("demo")?;
            Some(serde_json::from_slice(bytes).unwrap())
        })
    }

    /// Changes the journal of `demo`.
    pub fn forge(&self, change: impl FnOnce(&mut Value)) {
        self.with(|kept| {
            let bytes = kept.journals.get_mut("demo").unwrap();
            let mut journal: Value = serde_json::from_slice(bytes).unwrap();
            change(&mut journal);
            *bytes = serde_json::to_vec(&journal).unwrap();
        });
    }

    fn serve(&self, mut stream: TcpStream) {
        let Some(request) = read(&stream) else { return };
        let (status, body) = self.answer(&request);
        // The client may have disconnected.
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )
        .and_then(|()| stream.write_all(&body));
    }

    fn answer(&self, request: &Request) -> Response {
        let steps: Vec<&str> = request.path.split('/').skip(2).collect();
        let body = || serde_json::from_slice::<Value>(&request.body).unwrap();
        match (request.method.as_str(), &steps[..]) {
            ("POST", ["barriers"]) => {
                let at = jiff::Timestamp::now().to_string();
                ok(json!({"barrier": 1, "at": at, "unanswered": []}))
            }
            ("GET", ["sidecars"]) => ok(json!({"sidecars": []})),
            ("POST", ["hints"]) => ok(json!({"sent": []})),
            ("POST", ["proofs"]) => ok(json!({"answers": []})),
            ("POST", ["orders"]) => {
                let start = body();
                self.with(|kept| {
                    kept.orders.push(KeptOrder {
                        start,
                        outcome: json!("waiting"),
                    });
                });
                ok(json!({"outcome": "waiting"}))
            }
            ("GET", ["orders", "waiting"]) => self.wait_for_orders(&request.query),
            ("GET", ["orders", id]) => self.order(id, None),
            ("POST", ["orders", id, "outcome"]) => self.order(id, Some(body())),
            ("GET", ["rollouts", keyring]) => self.with(|kept| match kept.journals.get(*keyring) {
                Some(journal) => ("200 OK", journal.clone()),
                None => ("404 Not Found", Vec::new()),
            }),
            ("PUT", ["rollouts", keyring]) => self.replace(keyring, request),
            other => panic!("unexpected request {other:?}"),
        }
    }

    fn wait_for_orders(&self, query: &str) -> Response {
        assert!(query.contains("keyring=demo&"), "{query}");
        let start = Instant::now();
        loop {
            let orders: Vec<Value> = self.with(|kept| {
                let waiting = kept.orders.iter().filter(|one| one.outcome == "waiting");
                waiting.map(|one| one.start.clone()).collect()
            });
            if !orders.is_empty() || start.elapsed() > Duration::from_secs(2) {
                return ok(json!({"orders": orders}));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn order(&self, id: &str, outcome: Option<Value>) -> Response {
        self.with(|kept| {
            let mut orders = kept.orders.iter_mut();
            let Some(order) = orders.find(|one| one.start["order"]["id"] == id) else {
                return ("404 Not Found", Vec::new());
            };
            if let Some(outcome) = outcome {
                order.outcome = outcome;
            }
            ok(json!({"outcome": order.outcome}))
        })
    }

    fn replace(&self, keyring: &str, request: &Request) -> Response {
        self.with(|kept| {
            let present = kept.journals.get(keyring);
            let tag = present.map(|bytes| format!("\"{}\"", to_hex(&fingerprint(bytes))));
            let is_expected = match header(&request.head, "if-match") {
                Some(expected) => tag.as_deref() == Some(expected),
                None => present.is_none() && header(&request.head, "if-none-match") == Some("*"),
            };
            if !is_expected {
                return ("412 Precondition Failed", Vec::new());
            }
            kept.journals.insert(keyring.into(), request.body.clone());
            ("204 No Content", Vec::new())
        })
    }
}

fn ok(body: Value) -> Response {
    ("200 OK", body.to_string().into_bytes())
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = header(&head, "content-length").and_then(|length| length.parse().ok());
    let mut body = Vec::new();
    let mut rest = lines.take(length.unwrap_or(0));
    rest.read_to_end(&mut body).ok()?;
    let mut first = head.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Request {
        method,
        path: path.into(),
        query: query.into(),
        head,
        body,
    })
}
