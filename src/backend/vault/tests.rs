//! Tests against a scripted server, for what a real Vault can't show: its community edition ignores
//! namespaces, and no server delays or fails on request.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use super::*;
use crate::{
    backend::{FetchOutcome, FetchedValue, HeldValue, VersionSelector},
    config::VaultLogin,
    crypto::{KeyringId, WrapContext},
};

/// Starts a server that always sends `body`. Returns its address and the heads of the requests.
fn serve(status: &'static str, body: &'static str) -> (String, mpsc::Receiver<String>) {
    serve_with(move |_| (status, body))
}

/// Like `serve`, but with the status and body that `respond` returns for a request's head, which is
/// in lower case.
fn serve_with(
    respond: impl Fn(&str) -> (&'static str, &'static str) + Send + Sync + 'static,
) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("address"));
    let (sender, heads) = mpsc::channel();
    let respond = Arc::new(respond);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sender, respond) = (
                stream.expect("a connection"),
                sender.clone(),
                Arc::clone(&respond),
            );
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a handle"));
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).expect("a line") > 0
                {
                }
                let head = head.to_ascii_lowercase();
                let length = head
                    .split_once("content-length: ")
                    .and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok());
                lines
                    .read_exact(&mut vec![0; length.unwrap_or(0)])
                    .expect("a body");
                let (status, body) = respond(&head);
                let response = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                // Before the response, because the test checks after it. Both may fail at the end.
                let _ = sender.send(head);
                let _ = stream.write_all(response.as_bytes());
            });
        }
    });
    (address, heads)
}

fn client(address: &str, folder: &tempfile::TempDir) -> Client {
    let token = folder.path().join("token");
    std::fs::write(&token, "hvs.test\n").expect("write");
    let vault = config::Vault {
        address: Some(format!("{address}/")),
        namespace: Some("team/a".into()),
        login: VaultLogin::TokenFile(token),
        ..config::Vault::default()
    };
    Client::new(&config::Backends {
        vault,
        ..config::Backends::default()
    })
}

async fn unwrap(client: &Client) -> Result<(), BackendError> {
    let kek = client
        .kek(&"vault-transit:transit/kek".parse().expect("URI"))
        .expect("client");
    let context = WrapContext {
        keyring: KeyringId([7; 16]),
        version: 3,
    };
    kek.unwrap(b"vault:v1:anything", context).await.map(drop)
}

#[tokio::test]
async fn every_request_names_the_namespace_and_the_token() {
    // A valid response for lookups and for decrypts: the key is 32 zeros.
    let body = r#"{"data":{"ttl":0,"plaintext":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}"#;
    let (address, heads) = serve("200 OK", body);
    let folder = tempfile::tempdir().expect("folder");
    unwrap(&client(&address, &folder)).await.expect("unwrap");
    let heads: Vec<String> = heads.try_iter().collect();
    assert_eq!(heads.len(), 2, "{heads:?}");
    assert!(
        heads[0].starts_with("get /v1/auth/token/lookup-self http")
            && heads[1].starts_with("post /v1/transit/decrypt/kek http")
    );
    for head in heads {
        assert!(
            head.contains("\r\nx-vault-namespace: team/a\r\n")
                && head.contains("\r\nx-vault-token: hvs.test\r\n"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn a_status_determines_the_kind_of_error() {
    let kinds = [
        ("412 Precondition Failed", ErrorKind::Unavailable),
        ("429 Too Many Requests", ErrorKind::Throttled),
        ("500 Internal Server Error", ErrorKind::Unavailable),
        ("502 Bad Gateway", ErrorKind::Unavailable),
        ("503 Service Unavailable", ErrorKind::Unavailable),
    ];
    let folder = tempfile::tempdir().expect("folder");
    for (status, kind) in kinds {
        let (address, _heads) = serve(status, r#"{"errors":[]}"#);
        let error = unwrap(&client(&address, &folder)).await.expect_err(status);
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(status), "{error}");
    }
}

const ALIVE: (&str, &str) = ("200 OK", r#"{"data":{"ttl":0}}"#);

/// Fetches the current value of a secret.
async fn fetch(
    client: &Client,
    source: &str,
    held: Option<HeldValue<'_>>,
) -> Result<FetchedValue, BackendError> {
    let source: SecretSource = source.parse().expect("source");
    let provider = match &source {
        SecretSource::VaultKv { mount, path } => client.secret(&source, mount, path),
        SecretSource::VaultLease(path) => client.leased(&source, path),
        _ => panic!("not a Vault source"),
    };
    match provider
        .expect("provider")
        .fetch(&VersionSelector::Current, held, 100)
        .await?
    {
        FetchOutcome::Value(fetched) => Ok(fetched),
        FetchOutcome::Unchanged => panic!("no value is held"),
    }
}

#[tokio::test]
async fn without_a_lookup_the_engine_is_detected_by_reading() {
    let (address, heads) = serve_with(|head| match head.split(' ').nth(1) {
        Some("/v1/auth/token/lookup-self") => ALIVE,
        Some(path) if path.starts_with("/v1/sys/internal/ui/mounts/") => {
            ("403 Forbidden", r#"{"errors":["no"]}"#)
        }
        Some("/v1/kv/db" | "/v1/kv/other") => ("200 OK", r#"{"data":{"a": 1}}"#),
        _ => ("404 Not Found", r#"{"errors":[]}"#),
    });
    let folder = tempfile::tempdir().expect("folder");
    let client = client(&address, &folder);
    for secret in ["vault-kv:kv/db", "vault-kv:kv/other"] {
        assert_eq!(
            &*fetch(&client, secret, None).await.expect("value").bytes,
            br#"{"a": 1}"#,
            "byte for byte"
        );
    }
    // Cached: the second secret cost one request.
    let paths: Vec<String> = heads
        .try_iter()
        .filter_map(|head| head.split(' ').nth(1).map(str::to_owned))
        .collect();
    assert_eq!(
        paths
            .iter()
            .filter(|path| path.starts_with("/v1/kv/"))
            .count(),
        3,
        "{paths:?}"
    );
    assert_eq!(
        paths.last().map(String::as_str),
        Some("/v1/kv/other"),
        "{paths:?}"
    );
    let missing = fetch(&client, "vault-kv:kv/none", None)
        .await
        .err()
        .expect("missing");
    assert_eq!(missing.kind, ErrorKind::NotFound);
}

const LEASE: &str =
    r#"{"lease_id":"db/creds/app/1","renewable":false,"lease_duration":3600,"data":{"user":"a"}}"#;

/// Credentials of more than 100 bytes.
const LONG_LEASE: &str = concat!(
    r#"{"lease_id":"l","renewable":true,"lease_duration":1,"data":{"a":""#,
    "01234567890123456789012345678901234567890123456789",
    "01234567890123456789012345678901234567890123456789",
    r#""}}"#
);

#[tokio::test]
async fn a_lease_that_is_not_renewable_is_looked_up_if_permitted() {
    let ttl = Arc::new(AtomicUsize::new(0));
    let left = Arc::clone(&ttl);
    let (address, _heads) = serve_with(move |head| match head.split(' ').nth(1) {
        Some("/v1/auth/token/lookup-self") => ALIVE,
        Some("/v1/db/creds/app") => ("200 OK", LEASE),
        Some("/v1/sys/leases/lookup") => match left.load(Ordering::SeqCst) {
            0 => ("403 Forbidden", r#"{"errors":["permission denied"]}"#),
            1 => ("400 Bad Request", r#"{"errors":["invalid lease"]}"#),
            2 => ("200 OK", r#"{"data":{"ttl":-1}}"#),
            _ => ("200 OK", r#"{"data":{"ttl":77}}"#),
        },
        _ => ("404 Not Found", r#"{"errors":[]}"#),
    });
    let folder = tempfile::tempdir().expect("folder");
    let lease = fetch(&client(&address, &folder), "vault-lease:db/creds/app", None)
        .await
        .expect("value")
        .lease
        .expect("lease");
    assert!(!lease.is_renewable() && lease.duration() == Duration::from_secs(3600));
    let left = lease.renew().await.expect("valid as long as granted");
    assert!(
        left <= Duration::from_secs(3600) && left > Duration::from_secs(3000),
        "{left:?}"
    );
    for gone in [1, 2] {
        ttl.store(gone, Ordering::SeqCst);
        assert_eq!(
            lease.renew().await.expect_err("gone").kind,
            ErrorKind::NotFound,
            "{gone}"
        );
    }
    ttl.store(3, Ordering::SeqCst);
    assert_eq!(lease.renew().await, Ok(Duration::from_secs(77)));
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_revoked() {
    let (requested, started) = mpsc::channel();
    let (release, hold) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(hold);
    let (address, heads) = serve_with(move |head| match head.split(' ').nth(1) {
        Some("/v1/auth/token/lookup-self") => ALIVE,
        Some("/v1/db/creds/slow") => {
            requested.send(()).expect("test");
            gate.lock().expect("gate").recv().expect("test");
            ("200 OK", LEASE)
        }
        Some("/v1/db/creds/long") => ("200 OK", LONG_LEASE),
        Some("/v1/sys/leases/revoke") => ("204 No Content", ""),
        _ => ("404 Not Found", r#"{"errors":[]}"#),
    });
    let folder = tempfile::tempdir().expect("folder");
    let client = client(&address, &folder);
    let long = fetch(&client, "vault-lease:db/creds/long", None)
        .await
        .err()
        .expect("too long");
    assert_eq!(long.kind, ErrorKind::TooLarge);
    let is_revocation = |head: &String| head.starts_with("put /v1/sys/leases/revoke ");
    assert!(
        heads.try_iter().any(|head| is_revocation(&head)),
        "revoked at once"
    );

    // The caller leaves before the credentials arrive.
    tokio::select! {
        _ = fetch(&client, "vault-lease:db/creds/slow", None) => panic!("the response is held"),
        started = tokio::task::spawn_blocking(move || started.recv()) => {
            started.expect("joined").expect("requested");
        }
    }
    release.send(()).expect("server");
    let revoked =
        tokio::task::spawn_blocking(move || heads.iter().any(|head| is_revocation(&head)));
    assert!(revoked.await.expect("joined"));
}

const STATIC: [&str; 3] = [
    r#"{"data":{"last_vault_rotation":"2026-11-26T12:00:00Z","password":"one","ttl":9}}"#,
    r#"{"data":{"last_vault_rotation":"2026-11-26T12:00:00Z","password":"one","ttl":3}}"#,
    r#"{"data":{"last_vault_rotation":"2026-11-26T12:01:00Z","password":"two","ttl":9}}"#,
];

#[tokio::test]
async fn a_static_role_has_one_version_per_password_by_either_scheme() {
    for scheme in ["vault-lease:", "vault-kv:"] {
        let step = Arc::new(AtomicUsize::new(0));
        let current = Arc::clone(&step);
        let (address, _heads) = serve_with(move |head| match head.split(' ').nth(1) {
            Some("/v1/auth/token/lookup-self") => ALIVE,
            Some("/v1/db/static-creds/app") => ("200 OK", STATIC[current.load(Ordering::SeqCst)]),
            Some(path) if path.starts_with("/v1/sys/internal/ui/mounts/") => {
                ("200 OK", r#"{"data":{"path":"db/","options":null}}"#)
            }
            _ => ("404 Not Found", r#"{"errors":[]}"#),
        });
        let folder = tempfile::tempdir().expect("folder");
        let client = client(&address, &folder);
        let source: SecretSource = format!("{scheme}db/static-creds/app")
            .parse()
            .expect("source");
        let provider = match &source {
            SecretSource::VaultKv { mount, path } => client.secret(&source, mount, path),
            SecretSource::VaultLease(path) => client.leased(&source, path),
            _ => panic!("not a Vault source"),
        }
        .expect("provider");
        let fetch = async |held| {
            let fetched = provider.fetch(&VersionSelector::Current, held, 100).await;
            match fetched.expect("a response") {
                FetchOutcome::Value(fetched) => Some(fetched),
                FetchOutcome::Unchanged => None,
            }
        };
        let first = fetch(None).await.expect("a value");
        assert!(first.lease.is_none() && first.expires_at.is_some());
        let held = HeldValue {
            version: &first.version,
            bytes: &first.bytes,
        };
        step.store(1, Ordering::SeqCst);
        assert!(fetch(Some(held)).await.is_none(), "{scheme}");
        step.store(2, Ordering::SeqCst);
        let second = fetch(Some(held)).await.expect("another value");
        assert_ne!(first.version, second.version, "{scheme}");
        let text = String::from_utf8(second.bytes.to_vec()).expect("text");
        assert!(text.contains("two") && !text.contains("ttl"), "{text}");
    }
}

#[tokio::test]
async fn names_are_escaped_and_a_path_of_the_api_is_recognized() {
    let (address, heads) = serve_with(|head| match head.split(' ').nth(1) {
        Some("/v1/auth/token/lookup-self") => ALIVE,
        Some(path) if path.starts_with("/v1/sys/internal/ui/mounts/kv/") => (
            "200 OK",
            r#"{"data":{"path":"kv/","options":{"version":"2"}}}"#,
        ),
        Some("/v1/kv/data/my%20app/user%40example.com") => (
            "200 OK",
            r#"{"data":{"data":{"a":1},"metadata":{"version":1,"created_time":"2026-11-26"}}}"#,
        ),
        _ => ("404 Not Found", r#"{"errors":[]}"#),
    });
    let folder = tempfile::tempdir().expect("folder");
    let client = client(&address, &folder);
    let found = fetch(&client, "vault-kv:kv/my app/user@example.com", None).await;
    assert_eq!(&*found.expect("value").bytes, br#"{"a":1}"#);
    let lookup = "/v1/sys/internal/ui/mounts/kv/my%20app/user%40example.com ";
    assert!(heads.try_iter().any(|head| head.contains(lookup)));
    let copied = fetch(&client, "vault-kv:kv/data/orders/db", None).await;
    let error = copied.err().expect("nothing there");
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(
        error.to_string().ends_with("is it vault-kv:kv/orders/db?"),
        "{error}"
    );
}

#[tokio::test]
async fn credentials_that_need_a_write_are_told_apart_from_a_missing_right() {
    let (address, _heads) = serve_with(|head| match head.split(' ').nth(1) {
        Some("/v1/auth/token/lookup-self") => ALIVE,
        _ => (
            "405 Method Not Allowed",
            r#"{"errors":["1 error occurred:\n\t* unsupported operation\n\n"]}"#,
        ),
    });
    let folder = tempfile::tempdir().expect("folder");
    let written = fetch(
        &client(&address, &folder),
        "vault-lease:kubernetes/creds/app",
        None,
    )
    .await;
    let error = written.err().expect("refused");
    assert_eq!(error.kind, ErrorKind::Misconfigured);
    assert!(error.to_string().contains("on a write"), "{error}");
}

#[tokio::test]
async fn an_agent_is_reached_over_its_unix_socket() {
    let folder = tempfile::tempdir().expect("folder");
    let socket = folder.path().join("agent.sock");
    let missing = client(&format!("unix://{}", socket.display()), &folder);
    let error = unwrap(&missing).await.expect_err("no socket");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("agent.sock: No such file"),
        "{error}"
    );

    // Everything on the socket goes to a scripted server.
    let body = r#"{"data":{"ttl":0,"plaintext":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}"#;
    let (address, heads) = serve("200 OK", body);
    let address = address.strip_prefix("http://").expect("http").to_owned();
    let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
    let relay = tokio::spawn(async move {
        loop {
            let (mut agent, _) = listener.accept().await.expect("a connection");
            let mut server = tokio::net::TcpStream::connect(&address)
                .await
                .expect("connected");
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut agent, &mut server).await;
            });
        }
    });
    let client = client(&format!("unix://{}", socket.display()), &folder);
    unwrap(&client).await.expect("unwrap");
    relay.abort();
    assert_eq!(heads.try_iter().count(), 2);
    for malformed in ["unix://run/agent.sock", "unix://"] {
        let client = self::client(malformed, &folder);
        let kek = client.kek(&"vault-transit:transit/kek".parse().expect("URI"));
        let error = kek.err().expect("no absolute path");
        assert_eq!(error.kind, ErrorKind::Misconfigured, "{error}");
    }
}
