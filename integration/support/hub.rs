//! Starts hubs, and reports to them as a sidecar does.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use serde_json::{Value, json};
use sidekey::{
    crypto::{SigningKey, fingerprint, to_hex},
    wire::hub::{PROTOCOL, REPORT_DOMAIN, SIGNATURE_HEADER},
};

use super::harness::{Answer, Client, JSON, wait};

pub const SIDECARS: &str = "sidecars-0123456789abcdef0123456789abcdef";
pub const OPERATOR: &str = "operator-0123456789abcdef0123456789abcdef";

/// A hub's files.
pub struct HubWorld {
    folder: tempfile::TempDir,
}

impl HubWorld {
    /// A hub with a token for sidecars and one for an operator.
    pub fn new() -> Self {
        Self::with("")
    }

    /// Like the above, with more config at its end.
    pub fn with(more: &str) -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for (name, token) in [("sidecars", SIDECARS), ("operator", OPERATOR)] {
            world.write_private(&format!("{name}.token"), &format!("{token}\n"));
            let digest = to_hex(&fingerprint(token.as_bytes()));
            world.write_private(&format!("{name}.sha256"), &format!("{digest}  -\n"));
        }
        let config = format!(
            "listen = \"127.0.0.1:0\"\nstate_dir = \".\"\n\
             [[sidecar_identity]]\ntoken_file = \"sidecars.sha256\"\nworkloads = [\"*\"]\n\
             [[operator]]\nname = \"sam\"\ntoken_file = \"operator.sha256\"\nrole = \"operator\"\n{more}"
        );
        fs::write(world.path("hub.toml"), config).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_private(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn start(&self) -> HubProcess {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sidekey-hub"))
            .args(["serve", "--config"])
            .arg(self.path("hub.toml"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the hub exited");
        }
        let address = line.split_once("address=").unwrap().1;
        let address = address.split_whitespace().next().unwrap().parse().unwrap();
        HubProcess {
            child,
            address,
            log: Some(log),
        }
    }
}

/// A running hub, killed when dropped.
pub struct HubProcess {
    child: Child,
    pub address: SocketAddr,
    log: Option<BufReader<std::process::ChildStderr>>,
}

impl HubProcess {
    /// Closes the other end of its standard error.
    pub fn close_log(&mut self) {
        self.log = None;
    }

    pub fn terminate(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut status = None;
        wait("the hub's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a request of the operator.
    pub async fn ask(&self, method: Method, path: &str, body: &Value) -> Answer {
        let authorization = format!("Bearer {OPERATOR}");
        let headers = [("authorization", &*authorization), JSON];
        let mut client = Client::tcp(self.address).await;
        client.send(method, path, &headers, body.to_string()).await
    }

    pub async fn sidecars(&self) -> Vec<Value> {
        let answer = self.ask(Method::GET, "/v1/sidecars", &Value::Null).await;
        answer.ok().json()["sidecars"].as_array().unwrap().clone()
    }
}

impl Drop for HubProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reports as a sidecar does.
pub struct Reporter {
    number: u8,
    key: SigningKey,
}

impl Reporter {
    pub fn new(number: u8) -> Self {
        // RFC 8410: a private key with this seed.
        let head = [
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        let der = [&head[..], &[number; 32]].concat();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            STANDARD.encode(der)
        );
        Self {
            number,
            key: SigningKey::from_pem(pem.as_bytes()).unwrap(),
        }
    }

    pub fn instance(&self) -> String {
        to_hex(&[self.number; 16])
    }

    pub async fn report(&self, hub: &HubProcess, sequence: u64, is_final: bool) -> Answer {
        self.send(hub, sequence, is_final, json!([])).await
    }

    pub async fn report_usage(&self, hub: &HubProcess, sequence: u64, usage: Value) -> Answer {
        self.send(hub, sequence, false, usage).await
    }

    async fn send(&self, hub: &HubProcess, sequence: u64, is_final: bool, usage: Value) -> Answer {
        let report = json!({
            "protocol": PROTOCOL,
            "instance": self.instance(),
            "key": STANDARD.encode(self.key.public_key()),
            "sequence": sequence,
            "final": is_final,
            "name": format!("orders-{}", self.number),
            "workload": "orders",
            "usage": usage,
            "status": {
                "version": "0.1.0", "started_at": "2026-11-30T11:00:00Z", "ready": true,
                "pending": [], "keks": [], "keyrings": [],
                "key_memory": {"locked_bytes": 0, "unlocked_bytes": 0, "limit_bytes": null},
            },
        });
        let body = report.to_string();
        let signature = self.key.sign(&[REPORT_DOMAIN, body.as_bytes()].concat());
        let (signature, authorization) = (STANDARD.encode(signature), format!("Bearer {SIDECARS}"));
        let headers = [
            ("authorization", &*authorization),
            (SIGNATURE_HEADER, &*signature),
            JSON,
        ];
        let mut client = Client::tcp(hub.address).await;
        client.post("/v1/reports", &headers, body).await
    }
}
