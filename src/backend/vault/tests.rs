//! What only a server of our own can show: Vault's community edition takes no notice of namespaces.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use super::*;
use crate::{
    config::VaultLogin,
    crypto::{KeyringId, WrapContext},
};

/// A server that answers everything with `body`, and gives the head of every request.
fn serve(status: &'static str, body: &'static str) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("address"));
    let (sender, heads) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut lines = BufReader::new(stream.try_clone().expect("a handle"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).expect("a line") > 0 {}
            let head = head.to_ascii_lowercase();
            let length = head.split_once("content-length: ").and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok());
            lines.read_exact(&mut vec![0; length.unwrap_or(0)]).expect("a body");
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            // Before the answer, after which the test looks.
            if sender.send(head).is_err() {
                return;
            }
            stream.write_all(answer.as_bytes()).expect("an answer");
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
    Room::new(&config::Backends { vault, ..config::Backends::default() })
}

async fn unwrap(room: &Room) -> Result<(), KekError> {
    let kek = room.kek(&"vault-transit:transit/kek".parse().expect("URI")).expect("client");
    let context = WrapContext { keyring: KeyringId([7; 16]), version: 3 };
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
        heads[0].starts_with("get /v1/auth/token/lookup-self http") && heads[1].starts_with("post /v1/transit/decrypt/kek http")
    );
    for head in heads {
        assert!(head.contains("\r\nx-vault-namespace: team/a\r\n") && head.contains("\r\nx-vault-token: hvs.test\r\n"), "{head}");
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
