use std::{
    fs::{self, File},
    path::Path,
    sync::Mutex,
    time::SystemTime,
};

use http_body_util::{Full, StreamBody};
use hyper::{body::Frame, header::ALLOW};
use serde_json::{Value, json};

use super::*;
use crate::{
    backend,
    config::{self, Settings},
    refresh::testing::ManualKeyring,
    render,
    session::testing::{empty_keyring, keyring_with, manifest, start, table},
};

const ANONYMOUS: ClientCertificate = ClientCertificate::Missing;
const TRUSTED: ClientCertificate = ClientCertificate::Accepted;
const PLAIN: ClientCertificate = ClientCertificate::NotRequested;

/// An ops server without a listener, and what it reports on.
struct World {
    folder: tempfile::TempDir,
    server: Arc<OpsServer>,
    pending: Arc<Mutex<Vec<String>>>,
}

fn settings(folder: &Path) -> Settings {
    let text = "[listen]\nsocket = \"s\"\n[[secret]]\nname = \"db\"\nsource = \"file:db\"\n";
    config::parse(&folder.join("sidekey.toml"), text).expect("a config")
}

impl World {
    /// `keyrings` and the secret `db`, which has no value yet.
    fn new(keyrings: &[&ManualKeyring]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let settings = settings(folder.path());
        let (clock, _) = Clock::manual(start());
        let registry = Arc::new(Registry::default());
        let backends = backend::configured(&settings.backends);
        let secrets = Secrets::start(secrets::Parts {
            settings: &settings,
            clock: clock.clone(),
            registry: Arc::clone(&registry),
            audit: Recorder::default(),
            backends: Arc::clone(&backends),
        })
        .expect("secrets");
        let renders = Renders::start(&render::Parts {
            settings: &settings,
            secrets: &secrets,
            clock: clock.clone(),
            registry: Arc::clone(&registry),
            audit: Recorder::default(),
        });
        let keks = Keks::new(
            backends,
            &settings.refresh,
            clock.clone(),
            Arc::clone(&registry),
        );
        let pending = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&pending);
        let server = OpsServer::new(OpsParts {
            keyrings: keyrings
                .iter()
                .map(|manual| Arc::clone(&manual.keyring))
                .collect(),
            secrets,
            renders: Arc::new(renders),
            keks: Arc::new(keks),
            registry,
            audit: Recorder::default(),
            clock,
            prover: Prover::new().expect("randomness"),
            config: Box::new(|| None),
            hub: Box::new(|| None),
            pending: Box::new(move || shared.lock().expect("test").clone()),
            accounts: Accounts::new(&settings.limits, Duration::ZERO),
            hosts: Some(Vec::new()),
            tls: Vec::new(),
        });
        Self {
            folder,
            server,
            pending,
        }
    }

    fn wait_for(&self, what: &[&str]) {
        *self.pending.lock().expect("test") = what.iter().map(|&what| what.into()).collect();
    }

    /// Gives `db` a value, and returns its version.
    async fn load_secret(&self) -> String {
        let mut changes = self.server.parts.secrets.changes();
        let path = self.folder.path().join("db");
        fs::write(&path, "value").expect("write");
        let file = File::options().append(true).open(&path).expect("open");
        // Old enough to be complete.
        file.set_modified(SystemTime::UNIX_EPOCH).expect("a time");
        self.server.parts.secrets.request(secrets::Trigger::Signal);
        let change = changes.recv().await.expect("a change");
        change.version.expect("a version")
    }

    fn route(
        &self,
        certificate: ClientCertificate,
        method: Method,
        path: &str,
        body: &str,
    ) -> Result<Response<ResponseBody>, Problem> {
        let request = Request::builder().method(method).uri(path).body(());
        let (head, ()) = request.expect("a request").into_parts();
        self.server.route(certificate, &head, body.as_bytes())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = self.route(PLAIN, Method::GET, path, "");
        text(response.unwrap_or_else(Problem::into_response)).await
    }

    async fn push(&self, hint: &Value) -> Result<Value, Code> {
        let hint = hint.to_string();
        let response = self.route(TRUSTED, Method::POST, "/push", &hint);
        let (status, body) = text(response.map_err(|problem| problem.code)?).await;
        assert_eq!(status, 202);
        let body: Value = serde_json::from_str(&body).expect("JSON");
        Ok(body["refreshing"].clone())
    }
}

async fn text(response: Response<ResponseBody>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await;
    let bytes = body.unwrap_or_else(|_| panic!("a whole body")).to_bytes();
    (status, String::from_utf8(bytes.to_vec()).expect("text"))
}

fn refused(response: Result<Response<ResponseBody>, Problem>) -> Code {
    response.err().expect("refused").code
}

#[tokio::test]
async fn each_path_has_its_methods() {
    let world = World::new(&[]);
    for path in ["/livez", "/readyz", "/metrics", "/status"] {
        for method in [Method::GET, Method::HEAD] {
            let response = world.route(PLAIN, method, path, "").expect("allowed");
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store", "{path}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let problem = world.route(PLAIN, method, path, "").err();
            let response: Response<ResponseBody> = problem.expect("refused").into_response();
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert_eq!(response.headers()[ALLOW], "GET, HEAD", "{path}");
        }
    }
    let problem = world.route(TRUSTED, Method::GET, "/push", "").err();
    let response: Response<ResponseBody> = problem.expect("refused").into_response();
    assert_eq!(response.headers()[ALLOW], "POST");
    for path in ["/", "/livez/", "/manifests", "/manifests/a/b", "/nope"] {
        let code = refused(world.route(PLAIN, Method::GET, path, ""));
        assert_eq!(code, Code::NotFound, "{path}");
    }
}

#[tokio::test]
async fn only_probes_need_no_certificate() {
    let world = World::new(&[]);
    for certificate in [ANONYMOUS, ClientCertificate::NameNotAllowed] {
        for path in ["/livez", "/readyz"] {
            world
                .route(certificate, Method::GET, path, "")
                .expect("kubelets have no certificate");
        }
        for path in ["/metrics", "/status", "/manifests/demo"] {
            let code = refused(world.route(certificate, Method::GET, path, ""));
            assert_eq!(code, Code::Forbidden, "{path}");
        }
    }
    // A push needs one even where the listener requests none.
    for certificate in [PLAIN, ANONYMOUS, ClientCertificate::NameNotAllowed] {
        let hint = r#"{"keyring": "demo", "generation": 2}"#;
        let code = refused(world.route(certificate, Method::POST, "/push", hint));
        assert_eq!(code, Code::Forbidden, "{certificate:?}");
    }
}

#[tokio::test]
async fn readiness_lists_what_is_pending() {
    let world = World::new(&[]);
    assert_eq!(world.get("/readyz").await, (200, "ok\n".into()));
    world.wait_for(&["keyring demo: why", "secret db: why"]);
    let lines = "keyring demo: why\nsecret db: why\n";
    assert_eq!(world.get("/readyz").await, (503, lines.into()));
    assert_eq!(world.get("/livez").await, (200, "ok\n".into()));
    let ready = async || {
        let metrics = world.get("/metrics").await.1;
        let line = metrics.lines().find(|line| line.starts_with(READY));
        line.expect("the gauge").to_owned()
    };
    assert_eq!(ready().await, "sidekey_ready 0");
    world.wait_for(&[]);
    assert_eq!(ready().await, "sidekey_ready 1");
}

#[tokio::test]
async fn the_manifest_in_force_is_served_byte_by_byte() {
    let (loaded, loading) = (
        keyring_with(table(manifest(2), "standard", &[])),
        empty_keyring("standard"),
    );
    let served = World::new(&[&loaded]).get("/manifests/demo").await;
    let snapshot = loaded.keyring.snapshot().clone().expect("loaded");
    let manifest = snapshot.table.document().bytes();
    assert_eq!((served.0, served.1.as_bytes()), (200, &manifest[..]));

    let world = World::new(&[&loading]);
    let (status, problem) = world.get("/manifests/demo").await;
    assert_eq!(status, 503);
    assert!(problem.contains("provider_unavailable"), "{problem}");
    let (status, problem) = world.get("/manifests/other").await;
    assert_eq!(status, 404);
    assert!(problem.contains("keyring_not_found"), "{problem}");
}

#[tokio::test]
async fn status_says_which_versions_are_not_unwrapped() {
    let keyring = keyring_with(table(manifest(2), "standard", &[2]));
    let world = World::new(&[&keyring]);
    world.wait_for(&["secret db: why"]);
    let (code, text) = world.get("/status").await;
    assert_eq!(code, 200);
    let status: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(status["ready"], false);
    assert_eq!(status["pending"], json!(["secret db: why"]));
    let active = &status["keyrings"][0]["active"];
    assert_eq!(
        [&active["primary"], &active["encrypting"]],
        [&json!(1), &json!(1)]
    );
    let versions = &active["versions"];
    assert_eq!(
        [&versions[0]["role"], &versions[1]["role"]],
        [&json!("primary"), &json!("pending")]
    );
    assert_eq!(
        [&versions[0]["unopened"], &versions[1]["unopened"]],
        [&Value::Null, &json!("no KEK")]
    );
    assert_eq!(versions[0]["last_used"], Value::Null);
}

#[tokio::test]
async fn a_keyring_without_a_manifest_has_no_active_one() {
    let keyring = empty_keyring("canary");
    let world = World::new(&[&keyring]);
    let status: Value = serde_json::from_str(&world.get("/status").await.1).expect("JSON");
    let keyring = &status["keyrings"][0];
    assert_eq!(keyring["wave"], "canary");
    assert_eq!(keyring["active"], Value::Null);
    assert_eq!(status["secrets"][0]["version"], Value::Null);
}

#[tokio::test]
async fn a_push_of_a_new_generation_refreshes_and_any_other_does_not() {
    let (mut keyring, mut loading) = (
        keyring_with(table(manifest(2), "standard", &[])),
        empty_keyring("standard"),
    );
    let generation = 2;
    let world = World::new(&[&keyring]);
    let hint = |generation: u64| json!({ "keyring": "demo", "generation": generation });
    for old in [0, 1, generation] {
        assert_eq!(world.push(&hint(old)).await, Ok(false.into()), "{old}");
        assert!(!keyring.has_requests(), "{old}");
    }
    for new in [generation + 1, u64::MAX] {
        assert_eq!(world.push(&hint(new)).await, Ok(true.into()), "{new}");
        assert!(keyring.has_requests(), "{new}");
    }
    let world = World::new(&[&loading]);
    assert_eq!(world.push(&hint(1)).await, Ok(true.into()));
    assert!(loading.has_requests());
    let other = json!({ "keyring": "other", "generation": 9 });
    assert_eq!(world.push(&other).await, Err(Code::KeyringNotFound));
}

#[tokio::test]
async fn a_push_of_another_version_of_a_secret_refreshes() {
    let world = World::new(&[]);
    let hint = |version: Value| json!({ "secret": "db", "version": version });
    assert_eq!(world.push(&hint("1".into())).await, Ok(true.into()));
    let version = world.load_secret().await;
    assert_eq!(world.push(&hint(version.into())).await, Ok(false.into()));
    assert_eq!(world.push(&hint("other".into())).await, Ok(true.into()));
    assert_eq!(world.push(&hint(Value::Null)).await, Ok(true.into()));
    assert_eq!(
        world.push(&json!({ "secret": "db" })).await,
        Ok(true.into())
    );
    let unknown = json!({ "secret": "other", "version": "1" });
    assert_eq!(world.push(&unknown).await, Err(Code::SecretNotFound));
}

#[tokio::test]
async fn a_malformed_hint_changes_nothing() {
    let mut keyring = keyring_with(table(manifest(1), "standard", &[]));
    let world = World::new(&[&keyring]);
    for hint in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"keyring": "demo"}"#,
        r#"{"keyring": "demo", "generation": -1}"#,
        r#"{"keyring": "demo", "generation": "9"}"#,
        r#"{"keyring": "demo", "generation": 9, "key": "AA=="}"#,
        r#"{"keyring": "demo", "generation": 9, "secret": "db"}"#,
        r#"{"keyring": "demo", "generation": 9} {}"#,
        r#"{"secret": "db", "version": 9}"#,
    ] {
        let code = refused(world.route(TRUSTED, Method::POST, "/push", hint));
        assert_eq!(code, Code::InvalidRequest, "{hint}");
    }
    assert!(!keyring.has_requests());
}

#[tokio::test(start_paused = true)]
async fn a_request_body_is_bounded_in_length_and_time() {
    let body = |length: usize| Full::new(Bytes::from(vec![b'x'; length]));
    assert_eq!(read(body(0)).await.expect("empty").len(), 0);
    let longest = read(body(MAX_BODY)).await.expect("within the limit");
    assert_eq!(longest.len(), MAX_BODY);
    let long = read(body(MAX_BODY + 1)).await.expect_err("too long");
    assert_eq!(long.code, Code::BodyTooLarge);

    let start = tokio::time::Instant::now();
    let never = futures_util::stream::pending::<io::Result<Frame<Bytes>>>();
    let late = read(StreamBody::new(never)).await.expect_err("too late");
    assert_eq!(late.code, Code::RequestTimeout);
    assert_eq!(start.elapsed(), REQUEST_TIMEOUT);
}
