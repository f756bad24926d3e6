//! Starts sidecars, runs commands and talks to both.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

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
use tokio::net::{TcpStream, UnixStream};

/// Longer than anything should take on a busy machine; a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_sidekey")
}

/// A directory with a KEK and the keyrings made in it.
pub struct World {
    folder: tempfile::TempDir,
    /// Environment variables for every process started here, in addition to the tests' own.
    pub env: Vec<(&'static str, String)>,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state").display().to_string();
        let world = Self {
            folder,
            env: vec![("SIDEKEY_STATE_DIR", state)],
        };
        sidekey::backend::local::LocalKek::create(&world.path("kek")).unwrap();
        world
    }

    /// Returns a world with one keyring, `demo`.
    pub fn with_demo() -> Self {
        let world = Self::new();
        world.init("demo", &[]);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn manifest(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.json"))
    }

    pub fn read_manifest(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.manifest(name)).unwrap()).unwrap()
    }

    pub fn init(&self, name: &str, extra: &[&str]) {
        let (manifest, kek) = (
            self.manifest(name),
            format!("local:{}", self.path("kek").display()),
        );
        let arguments = [
            "keyring",
            "init",
            manifest.to_str().unwrap(),
            "--name",
            name,
            "--kek",
            &kek,
        ];
        self.succeed(&[&arguments, extra].concat());
    }

    /// Makes the next commands run as on a machine that has seen no keyring.
    pub fn forget(&self) {
        fs::remove_dir_all(self.path("state")).unwrap();
    }

    /// Runs a command in this world's environment.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(binary())
            .args(arguments)
            .envs(self.env.iter().cloned())
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "sidekey {arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Runs `sidekey keyring COMMAND MANIFEST …`, which must succeed.
    pub fn keyring(&self, command: &str, name: &str, extra: &[&str]) -> String {
        self.succeed(
            &[
                &["keyring", command, self.manifest(name).to_str().unwrap()],
                extra,
            ]
            .concat(),
        )
    }

    /// Like `keyring`, but the command may fail.
    pub fn try_keyring(&self, command: &str, name: &str, extra: &[&str]) -> Output {
        self.run(
            &[
                &["keyring", command, self.manifest(name).to_str().unwrap()],
                extra,
            ]
            .concat(),
        )
    }

    /// Starts a sidecar that serves `demo`.
    pub fn start(&self) -> Sidecar {
        self.start_with("one", "", &["demo"])
    }

    /// Starts a sidecar called `name` with more config before its keyrings.
    pub fn start_with(&self, name: &str, config: &str, keyrings: &[&str]) -> Sidecar {
        let sidecar = self.launch(name, config, keyrings);
        sidecar.wait_ready();
        sidecar
    }

    /// Like `start_with`, but doesn't wait until it is ready.
    pub fn launch(&self, name: &str, config: &str, keyrings: &[&str]) -> Sidecar {
        let file = self.configure(name, config, keyrings);
        let socket = self.path(&format!("{name}.sock"));
        Sidecar::spawn(&file, socket, &self.env)
    }

    /// Writes the config file of a sidecar called `name`.
    pub fn configure(&self, name: &str, config: &str, keyrings: &[&str]) -> PathBuf {
        let socket = self.path(&format!("{name}.sock"));
        let listen = if config.contains("[listen]") {
            String::new()
        } else {
            format!("[listen]\nsocket = {socket:?}\n")
        };
        let keyrings: String = keyrings
            .iter()
            .map(|keyring| {
                format!(
                    "[[keyring]]\nname = {keyring:?}\n\
                     location = \"{keyring}.json\"\nkeks = [\"local:*\"]\n"
                )
            })
            .collect();
        // The setting comes first, before any table. Most tests use local KEKs.
        let text = format!(
            "backends.local_keks = true\n{config}\n{listen}\n[ops]\nlisten = \"127.0.0.1:0\"\n\
             {keyrings}"
        );
        let file = self.path(&format!("{name}.toml"));
        fs::write(&file, text).unwrap();
        file
    }

    /// Starts a sidecar with the config file `config`, which must use the socket of `name`.
    pub fn launch_config(&self, config: &str, name: &str) -> Sidecar {
        Sidecar::spawn(
            &self.path(&format!("{config}.toml")),
            self.path(&format!("{name}.sock")),
            &self.env,
        )
    }
}

/// Returns the uid that runs the tests, for policies.
pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Panics unless the tests run as root.
pub fn require_root() {
    assert_eq!(
        uid(),
        0,
        "this test requires root: run integration/run as root"
    );
}

/// Runs a command that remembers nothing from earlier ones.
pub fn run(arguments: &[&str]) -> Output {
    let state = tempfile::tempdir().unwrap();
    Command::new(binary())
        .args(arguments)
        .env("SIDEKEY_STATE_DIR", state.path())
        .output()
        .unwrap()
}

/// A running sidecar, killed when dropped.
pub struct Sidecar {
    pub child: Child,
    pub socket: PathBuf,
    pub ops: SocketAddr,
    pub tcp: Option<SocketAddr>,
    log: Arc<Mutex<String>>,
    /// Ends with the log.
    log_reader: Option<JoinHandle<()>>,
}

impl Sidecar {
    fn spawn(config: &Path, socket: PathBuf, env: &[(&'static str, String)]) -> Self {
        let mut child = Command::new(binary())
            .args(["serve", "--config"])
            .arg(config)
            .envs(env.iter().cloned())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let mut first = String::new();
        while !first.contains("listening") {
            first.clear();
            if lines.read_line(&mut first).unwrap() == 0 {
                panic!("the sidecar exited: {}", log.lock().unwrap());
            }
            log.lock().unwrap().push_str(&first);
        }
        // The text form has name=value, the JSON form "name":"value".
        let field = |name: &str| {
            let json = serde_json::from_str::<Value>(&first)
                .ok()
                .and_then(|line| Some(line[name].as_str()?.to_owned()));
            let text = || {
                first
                    .split_once(&format!("{name}="))?
                    .1
                    .split_whitespace()
                    .next()
                    .map(str::to_owned)
            };
            json.or_else(text)?.parse().ok()
        };
        let (ops, tcp) = (field("ops").unwrap(), field("tcp"));
        let kept = Arc::clone(&log);
        let log_reader = std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
                kept.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        Self {
            child,
            socket,
            ops,
            tcp,
            log,
            log_reader: Some(log_reader),
        }
    }

    /// Returns what was read of the log, which lags behind the sidecar until it has ended.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn wait_log(&self, text: &str) {
        wait(text, || self.log().contains(text));
    }

    pub fn wait_ready(&self) {
        wait("readiness", || self.ops("/readyz").0 == 200);
    }

    /// Sends `GET` to the ops listener.
    pub fn ops(&self, path: &str) -> (u16, String) {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(self.ops).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ops("/status").1).unwrap()
    }

    /// Returns the status of the first keyring.
    pub fn keyring(&self) -> Value {
        self.status()["keyrings"][0].clone()
    }

    pub fn wait_generation(&self, generation: u64) {
        wait("a generation", || {
            self.keyring()["active"]["generation"].as_u64() >= Some(generation)
        });
    }

    pub fn signal(&self, name: &str) {
        assert!(
            Command::new("kill")
                .args(["-s", name, &self.child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits until the process has exited and its log is complete.
    pub fn ended(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        wait("the sidecar's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        if let Some(reader) = self.log_reader.take() {
            reader.join().unwrap();
        }
        status.unwrap()
    }

    pub async fn client(&self) -> Client {
        Client::http1(&self.socket).await
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until another process has done something. Panics when that takes too long.
pub fn wait(what: &str, mut is_there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");
pub const JSON: (&str, &str) = ("content-type", "application/json");

/// One connection to a sidecar.
pub enum Client {
    Http1(conn::http1::SendRequest<RequestBody>),
    Http2(conn::http2::SendRequest<RequestBody>),
}

pub type RequestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Returns a complete body with a `content-length`.
pub fn whole(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Returns a body that comes from a channel, without a `content-length`. An error aborts the
/// request.
pub fn channel() -> (
    tokio::sync::mpsc::Sender<std::io::Result<Bytes>>,
    RequestBody,
) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let pieces = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let frames = futures_util::StreamExt::map(pieces, |piece: std::io::Result<Bytes>| {
        piece.map(Frame::data)
    });
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// Returns a complete body without a `content-length`.
pub fn unannounced(bytes: impl Into<Bytes>) -> RequestBody {
    let frame = Ok(Frame::data(bytes.into()));
    StreamBody::new(futures_util::stream::once(std::future::ready(frame))).boxed_unsync()
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// Returns the problem's code, after checking that the body is a well-formed problem.
    pub fn problem(&self) -> String {
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{:?}",
            self.body
        );
        assert_eq!(self.headers["cache-control"], "no-store");
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16());
        assert!(problem["title"].is_string() && problem["detail"].is_string());
        problem["code"].as_str().unwrap().to_owned()
    }

    pub fn version(&self) -> u32 {
        self.headers["sidekey-key-version"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.status, StatusCode::OK, "{:?}", self.body);
        self
    }
}

impl Client {
    pub async fn http1(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    pub async fn http2(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (sender, connection) =
            conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub async fn tcp(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.try_send(method, path, headers, body).await.unwrap()
    }

    pub async fn try_send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, hyper::Error> {
        let (head, body) = self
            .open(method, path, headers, whole(body))
            .await?
            .into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    /// Sends a request with any body, and returns once the response's head has arrived.
    pub async fn open(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: RequestBody,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let uri = if matches!(self, Self::Http2(_)) {
            format!("http://sidekey{path}")
        } else {
            path.to_owned()
        };
        let mut request = Request::builder().method(method).uri(uri);
        if matches!(self, Self::Http1(_)) {
            request = request.header(HOST, "sidekey");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }

    pub async fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.send(Method::POST, path, headers, body).await
    }

    /// Encrypts with `demo`.
    pub async fn encrypt(&mut self, plaintext: &[u8]) -> Answer {
        self.post("/v1/keyrings/demo/encrypt", &[OCTETS], plaintext.to_vec())
            .await
    }

    /// Decrypts with `demo`.
    pub async fn decrypt(&mut self, ciphertext: &[u8]) -> Answer {
        self.post("/v1/keyrings/demo/decrypt", &[OCTETS], ciphertext.to_vec())
            .await
    }

    pub async fn json(&mut self, operation: &str, body: Value) -> Answer {
        self.post(
            &format!("/v1/keyrings/demo/{operation}"),
            &[JSON],
            body.to_string(),
        )
        .await
    }
}
