//! A hub on loopback, and clients of it.

mod access;
mod bounds;
mod certificates;
mod outage;
mod reports;
mod streams;
mod waiting;

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{Hub, start};
use crate::{
    clock::{Clock, ManualClock},
    config::{self, HubSettings},
    crypto::{SigningKey, fingerprint, to_hex},
    wire::{
        PROBLEM,
        hub::{PROTOCOL, REPORT_DOMAIN, SIGNATURE_HEADER},
    },
};

/// The tokens, by what their holders may do.
const ORDERS: &str = "orders-0123456789abcdef0123456789abcdef";
const BILLING: &str = "billing-0123456789abcdef0123456789abcdef";
const VIEWER: &str = "viewer-0123456789abcdef0123456789abcdef";
const OPERATOR: &str = "operator-0123456789abcdef0123456789abcdef";
const SIGNER: &str = "signer-0123456789abcdef0123456789abcdef";
const APPROVER: &str = "approver-0123456789abcdef0123456789abcdef";

const KEYRING_ID: &str = "6aa04d462abfa7a377ccded916eb6fd8";

/// A running hub.
struct World {
    /// None once a test has taken it.
    hub: Option<Hub>,
    address: SocketAddr,
    clock: ManualClock,
    folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with("").await
    }

    /// A hub with more config.
    async fn with(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = settings(folder.path(), more);
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().expect("a time");
        let (clock, hands) = Clock::manual(now);
        let hub = start(&settings, clock).await.expect("a hub");
        Self {
            address: hub.address(),
            hub: Some(hub),
            clock: hands,
            folder,
        }
    }

    /// Sends a request on a connection of its own.
    async fn send(
        &self,
        token: &str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.expect("connect");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .expect("handshake");
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "hub");
        if !token.is_empty() {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        sender.send_request(request).await.expect("a response")
    }

    async fn get(&self, token: &str, path: &str) -> (StatusCode, Value) {
        parts(self.send(token, Method::GET, path, &[], "").await).await
    }

    async fn post(&self, token: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        let body = body.to_string();
        parts(self.send(token, Method::POST, path, &[], body).await).await
    }

    /// Posts a body as a report that `key` signs.
    async fn post_report(&self, token: &str, key: &SigningKey, body: &str) -> (StatusCode, Value) {
        let signature = key.sign(&[REPORT_DOMAIN, body.as_bytes()].concat());
        let headers = [(SIGNATURE_HEADER, &*STANDARD.encode(signature))];
        let body = body.to_owned();
        let response = self
            .send(token, Method::POST, "/v1/reports", &headers, body)
            .await;
        parts(response).await
    }

    /// Returns the code of the problem that a report meets; `ok` if it is taken.
    async fn report(&self, sidecar: &TestSidecar, sequence: u64) -> String {
        let body = sidecar.report(sequence).to_string();
        code(self.post_report(sidecar.token, &sidecar.key, &body).await)
    }

    async fn open(&self, token: &str, sidecar: &TestSidecar) -> EventReader {
        let path = format!("/v1/stream?instance={}", to_hex(&sidecar.instance));
        let response = self.send(token, Method::GET, &path, &[], "").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
        EventReader {
            body: response.into_body(),
            text: String::new(),
        }
    }

    /// Opens the stream of a sidecar and reads its first event.
    async fn join(&self, sidecar: &TestSidecar) -> EventReader {
        let mut events = self.open(sidecar.token, sidecar).await;
        let (name, data) = events.next().await.expect("a first event");
        assert_eq!(name, "welcome");
        assert_eq!(data["report_seconds"], 30);
        events
    }

    async fn sidecars(&self) -> Vec<Value> {
        let (status, list) = self.get(VIEWER, "/v1/sidecars").await;
        assert_eq!(status, StatusCode::OK);
        list["sidecars"].as_array().expect("a list").clone()
    }
}

/// Settings with an identity for two workloads, and an operator of each role.
fn settings(folder: &Path, more: &str) -> HubSettings {
    for (name, token) in [
        ("orders", ORDERS),
        ("billing", BILLING),
        ("viewer", VIEWER),
        ("operator", OPERATOR),
        ("approver", APPROVER),
        ("signer", SIGNER),
    ] {
        let digest = format!("{}  -\n", to_hex(&fingerprint(token.as_bytes())));
        fs::write(folder.join(name), digest).expect("write");
        rustix::fs::chmod(folder.join(name), rustix::fs::Mode::RUSR).expect("chmod");
    }
    let operators: String = ["viewer", "operator", "approver", "signer"]
        .iter()
        .map(|role| {
            format!("[[operator]]\nname = \"{role}\"\ntoken_file = \"{role}\"\nrole = \"{role}\"\n")
        })
        .collect();
    let text = format!(
        "listen = \"127.0.0.1:0\"\nstate_dir = \"state\"\n{more}\n\
         [[sidecar_identity]]\ntoken_file = \"orders\"\nnames = [\"orders-*\"]\n\
         workloads = [\"orders\"]\n\
         [[sidecar_identity]]\ntoken_file = \"billing\"\nworkloads = [\"billing\"]\n{operators}"
    );
    config::parse_hub(&folder.join("hub.toml"), &text).expect("valid")
}

/// The number of the first barrier: one after the milliseconds of the clock's time.
const FIRST_BARRIER: u64 = 1_796_040_000_001;

/// A sidecar as a hub sees it.
struct TestSidecar {
    token: &'static str,
    instance: [u8; 16],
    key: SigningKey,
    name: String,
    workload: &'static str,
    /// The generation of its keyring.
    generation: u64,
    /// The barrier that its reports answer. An answer isn't kept waiting for other reports.
    answers: u64,
}

impl TestSidecar {
    /// The sidecar `orders-NUMBER`.
    fn orders(number: u8) -> Self {
        Self {
            token: ORDERS,
            instance: [number; 16],
            key: key(number),
            name: format!("orders-{number}"),
            workload: "orders",
            generation: 1,
            answers: 0,
        }
    }

    fn report(&self, sequence: u64) -> Value {
        let time = "2026-11-30T11:00:00Z";
        json!({
            "protocol": PROTOCOL,
            "instance": to_hex(&self.instance),
            "key": STANDARD.encode(self.key.public_key()),
            "sequence": sequence,
            "answers": self.answers,
            "name": self.name,
            "workload": self.workload,
            "usage": [{
                "name": "demo", "id": KEYRING_ID, "generation": self.generation,
                "versions": [{"version": 1, "encrypted": 1, "decrypted": 2, "refused": 0}],
            }],
            "status": {
                "version": "0.1.0", "started_at": time, "ready": true, "pending": [],
                "key_memory": {"locked_bytes": 0, "unlocked_bytes": 0, "limit_bytes": null},
                "keks": [], "keyrings": [],
            },
        })
    }
}

/// The events of a stream.
struct EventReader {
    body: Incoming,
    text: String,
}

impl EventReader {
    /// Returns the name and data of the next event; None at a clean end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                if let Some((name, data)) = event.split_once("\ndata: ") {
                    let name = name.strip_prefix("event: ").expect("a name").to_owned();
                    return Some((name, serde_json::from_str(data).expect("JSON")));
                }
                continue;
            }
            let frame = self.body.frame().await?.expect("no error");
            let data = frame.into_data().expect("data");
            self.text
                .push_str(std::str::from_utf8(&data).expect("text"));
        }
    }
}

fn key(seed: u8) -> SigningKey {
    // RFC 8410: a private key with this seed.
    let mut der = vec![
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    der.extend([seed; 32]);
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der)
    );
    SigningKey::from_pem(pem.as_bytes()).expect("a key")
}

async fn parts(response: Response<Incoming>) -> (StatusCode, Value) {
    let status = response.status();
    let is_problem = response.headers()[CONTENT_TYPE] == PROBLEM;
    let body = response.into_body().collect().await.expect("a body");
    let bytes = body.to_bytes();
    assert_eq!(is_problem, !status.is_success());
    (
        status,
        serde_json::from_slice(&bytes).unwrap_or(Value::Null),
    )
}

/// The code of a response.
fn code((status, body): (StatusCode, Value)) -> String {
    if status.is_success() {
        return "ok".into();
    }
    assert_eq!(body["status"], status.as_u16());
    body["code"].as_str().expect("a code").to_owned()
}
