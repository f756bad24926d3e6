//! What only a server of our own can show: Vault's community edition takes no notice of namespaces, and none forgets what it is asked or
//! answers late when it is told to.

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
    backend::{self, Fetched, Held, SecretFault, Which},
    config::VaultLogin,
    crypto::{KeyringId, WrapContext},
};

/// A server that answers everything with `body`, and gives the head of every request.
fn serve(status: &'static str, body: &'static str) -> (String, mpsc::Receiver<String>) {
    serve_by(move |_| (status, body))
}

/// The same, with what `answer` says to a request's head, in lower case.
fn serve_by(
    answer: impl Fn(&str) -> (&'static str, &'static str) + Send + Sync + 'static,
) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("address"));
    let (sender, heads) = mpsc::channel();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sender, answer) = (
                stream.expect("a connection"),
                sender.clone(),
                Arc::clone(&answer),
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
                let (status, body) = answer(&head);
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                // Before the answer, after which the test looks. Whoever has seen enough, or went away, needs neither.
                let _ = sender.send(head);
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    });
    (address, heads)
}

fn room(address: &str, folder: &tempfile::TempDir) -> Room {
    let token = folder.path().join("token");
    std::fs::write(&token, "hvs.test\n").expect("write");
    let vault = config::Vault {
        address: Some(format!("{address}/")),
        namespace: Some("team/a".into()),
        login: VaultLogin::TokenFile(token),
        ..config::Vault::default()
    };
    Room::new(&config::Backends {
        vault,
        ..config::Backends::default()
    })
}

async fn unwrap(room: &Room) -> Result<(), KekError> {
    let kek = room
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
    // What answers look-ups and decrypts alike: the key is 32 zeros.
    let body = r#"{"data":{"ttl":0,"plaintext":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}"#;
    let (address, heads) = serve("200 OK", body);
    let folder = tempfile::tempdir().expect("folder");
    unwrap(&room(&address, &folder)).await.expect("unwrap");
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
async fn a_status_says_what_kind_of_failure_it_is() {
    let faults = [
        ("412 Precondition Failed", KekFault::Unavailable),
        ("429 Too Many Requests", KekFault::Throttled),
        ("500 Internal Server Error", KekFault::Unavailable),
        ("502 Bad Gateway", KekFault::Unavailable),
        ("503 Service Unavailable", KekFault::Unavailable),
    ];
    let folder = tempfile::tempdir().expect("folder");
    for (status, fault) in faults {
        let (address, _heads) = serve(status, r#"{"errors":[]}"#);
        let error = unwrap(&room(&address, &folder)).await.expect_err(status);
        assert_eq!(error.fault, fault, "{error}");
        assert!(error.to_string().contains(status), "{error}");
    }
}

const ALIVE: (&str, &str) = ("200 OK", r#"{"data":{"ttl":0}}"#);

/// Fetches the current value of what a source names.
async fn fetch(room: &Room, source: &str, held: Option<Held<'_>>) -> Result<Fetched, SecretError> {
    let source: SecretSource = source.parse().expect("source");
    let provider = match &source {
        SecretSource::VaultKv { mount, path } => room.secret(&source, mount, path),
        SecretSource::VaultLease(path) => room.leased(&source, path),
        _ => panic!("not ours"),
    };
    match provider
        .expect("provider")
        .fetch(&Which::Current, held, 100)
        .await?
    {
        backend::Answer::Value(fetched) => Ok(fetched),
        backend::Answer::Unchanged => panic!("nothing is held"),
    }
}

#[tokio::test]
async fn where_nobody_says_which_engine_it_is_reading_tells() {
    let (address, heads) = serve_by(|head| match head.split(' ').nth(1) {
        Some("/v1/auth/token/lookup-self") => ALIVE,
        Some(path) if path.starts_with("/v1/sys/internal/ui/mounts/") => {
            ("403 Forbidden", r#"{"errors":["no"]}"#)
        }
        Some("/v1/kv/db" | "/v1/kv/other") => ("200 OK", r#"{"data":{"a": 1}}"#),
        _ => ("404 Not Found", r#"{"errors":[]}"#),
    });
    let folder = tempfile::tempdir().expect("folder");
    let room = room(&address, &folder);
    for secret in ["vault-kv:kv/db", "vault-kv:kv/other"] {
        assert_eq!(
            &*fetch(&room, secret, None).await.expect("value").bytes,
            br#"{"a": 1}"#,
            "Vault's own bytes"
        );
    }
    // Remembered: the second secret cost one request.
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
    let none = fetch(&room, "vault-kv:kv/none", None)
        .await
        .err()
        .expect("none");
    assert_eq!(none.fault, SecretFault::NotFound);
}

const LEASE: &str =
    r#"{"lease_id":"db/creds/app/1","renewable":false,"lease_duration":3600,"data":{"user":"a"}}"#;

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_is_looked_up_where_that_is_allowed() {
    let ttl = Arc::new(AtomicUsize::new(0));
    let left = Arc::clone(&ttl);
    let (address, _heads) = serve_by(move |head| match head.split(' ').nth(1) {
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
    let lease = fetch(&room(&address, &folder), "vault-lease:db/creds/app", None)
        .await
        .expect("value")
        .lease
        .expect("lease");
    assert!(!lease.is_renewable() && lease.duration() == Duration::from_secs(3600));
    let left = lease
        .renew()
        .await
        .expect("it runs, for all that we may know");
    assert!(
        left <= Duration::from_secs(3600) && left > Duration::from_secs(3000),
        "{left:?}"
    );
    for gone in [1, 2] {
        ttl.store(gone, Ordering::SeqCst);
        assert_eq!(
            lease.renew().await.expect_err("gone").fault,
            SecretFault::NotFound,
            "{gone}"
        );
    }
    ttl.store(3, Ordering::SeqCst);
    assert_eq!(lease.renew().await, Ok(Duration::from_secs(77)));
}

#[tokio::test]
async fn credentials_that_nobody_can_use_are_given_back() {
    let (asked, begun) = mpsc::channel();
    let (release, hold) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(hold);
    let (address, heads) = serve_by(move |head| match head.split(' ').nth(1) {
        Some("/v1/auth/token/lookup-self") => ALIVE,
        Some("/v1/db/creds/slow") => {
            asked.send(()).expect("test");
            gate.lock().expect("gate").recv().expect("test");
            ("200 OK", LEASE)
        }
        Some("/v1/db/creds/long") => (
            "200 OK",
            r#"{"lease_id":"l","renewable":true,"lease_duration":1,"data":{"a":"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"}}"#,
        ),
        Some("/v1/sys/leases/revoke") => ("204 No Content", ""),
        _ => ("404 Not Found", r#"{"errors":[]}"#),
    });
    let folder = tempfile::tempdir().expect("folder");
    let room = room(&address, &folder);
    let long = fetch(&room, "vault-lease:db/creds/long", None)
        .await
        .err()
        .expect("too long");
    assert_eq!(long.fault, SecretFault::TooLong);
    let is_revocation = |head: &String| head.starts_with("put /v1/sys/leases/revoke ");
    assert!(heads.try_iter().any(|head| is_revocation(&head)), "at once");

    // Whoever asked goes away before they come.
    tokio::select! {
        _ = fetch(&room, "vault-lease:db/creds/slow", None) => panic!("it is held up"),
        begun = tokio::task::spawn_blocking(move || begun.recv()) => begun.expect("joined").expect("asked"),
    }
    release.send(()).expect("it waits");
    let revoked =
        tokio::task::spawn_blocking(move || heads.iter().any(|head| is_revocation(&head)));
    assert!(revoked.await.expect("joined"));
}
