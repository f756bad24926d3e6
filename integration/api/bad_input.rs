//! Whatever callers send, the answer is a problem with a stable code, and nobody else notices.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use hyper::Method;
use serde_json::json;

use crate::support::harness::{Client, JSON, OCTETS, PATIENCE, World, wait};

#[tokio::test]
async fn damaged_and_foreign_ciphertexts_are_told_apart() {
    let world = World::with_demo();
    world.init("other", &[]);
    let sidecar = world.start_with("one", "", &["demo", "other"]);
    let mut client = sidecar.client().await;
    let good = client.encrypt(b"attack at dawn").await.ok().body.to_vec();

    for garbage in [&b""[..], b"x", &[1; 8], &[9; 200], &good[..48]] {
        assert_eq!(
            client.decrypt(garbage).await.problem(),
            "malformed_ciphertext",
            "{} bytes",
            garbage.len()
        );
    }
    assert_eq!(
        client.decrypt(&good[..good.len() - 1]).await.problem(),
        "decryption_failed"
    );
    assert_eq!(
        client.decrypt(&[&good[..], b"x"].concat()).await.problem(),
        "decryption_failed"
    );
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        let expected = match at {
            0 => "malformed_ciphertext",
            1..=4 => "wrong_keyring",
            // A version that nobody has heard of is never called corrupt.
            5..=8 => "key_version_unavailable",
            _ => "decryption_failed",
        };
        assert_eq!(
            client.decrypt(&flipped).await.problem(),
            expected,
            "byte {at}"
        );
    }
    let foreign = client
        .post("/v1/keyrings/other/decrypt", &[OCTETS], good.clone())
        .await;
    assert_eq!(foreign.problem(), "wrong_keyring");
    // The keyring's tag is right and its id is not: another keyring whose id begins alike would look so.
    assert_eq!(client.decrypt(&good).await.ok().body, "attack at dawn");
}

#[tokio::test]
async fn disabled_destroyed_and_unknown_versions_have_codes_of_their_own() {
    let world = World::new();
    world.init("demo", &["--encrypt-lease", "1s", "--destroy-after", "1s"]);
    // With so short a lease, only a sidecar that reads all the time may encrypt.
    let sidecar = world.start_with("one", "[refresh]\npoll = \"100ms\"\n", &["demo"]);
    let mut client = sidecar.client().await;
    let old = client.encrypt(b"x").await.ok().body;
    world.keyring("rotate", "demo", &["--activate", "now"]);
    world.keyring(
        "disable",
        "demo",
        &["--version", "1", "--override", "a test"],
    );
    sidecar.wait_generation(4);
    let disabled = client.decrypt(&old).await;
    assert_eq!(
        (disabled.status.as_u16(), disabled.problem().as_str()),
        (409, "key_version_disabled")
    );
    world.keyring("enable", "demo", &["--version", "1"]);
    sidecar.wait_generation(5);
    client.decrypt(&old).await.ok();
    world.keyring(
        "disable",
        "demo",
        &["--version", "1", "--override", "a test"],
    );
    let destroy = || {
        world.try_keyring(
            "destroy",
            "demo",
            &[
                "--version",
                "1",
                "--confirm",
                "there is no backup of version 1 of demo",
            ],
        )
    };
    wait("both waiting times", || destroy().status.success());
    sidecar.wait_generation(7);
    let destroyed = client.decrypt(&old).await;
    assert_eq!(
        (destroyed.status.as_u16(), destroyed.problem().as_str()),
        (410, "key_version_destroyed")
    );
    let mut unknown = old.to_vec();
    unknown[8] = 77;
    let unavailable = client.decrypt(&unknown).await;
    assert_eq!(
        (
            unavailable.status.as_u16(),
            unavailable.headers["retry-after"].to_str().unwrap()
        ),
        (503, "1")
    );
    assert_eq!(unavailable.problem(), "key_version_unavailable");
}

#[tokio::test]
async fn garbage_versions_reach_the_store_at_a_bounded_rate() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut client = sidecar.client().await;
    let good = client.encrypt(b"x").await.ok().body.to_vec();
    let messages: Vec<String> = (0..1000u32)
        .map(|version| {
            let mut message = good.clone();
            message[5..9].copy_from_slice(&(version + 2).to_be_bytes());
            sidekey::crypto::to_text(&message)
        })
        .collect();
    let batch: Vec<_> = messages
        .iter()
        .map(|text| json!({ "ciphertext": text }))
        .collect();
    let answer = client
        .json("decrypt", json!({ "batch": batch }))
        .await
        .ok()
        .json();
    assert!(
        answer["batch"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["error"]["code"] == "key_version_unavailable")
    );
    let mut tasks = tokio::task::JoinSet::new();
    for text in messages.into_iter().take(32) {
        let mut client = sidecar.client().await;
        tasks.spawn(async move {
            client
                .json("decrypt", json!({ "ciphertext": text }))
                .await
                .problem()
        });
    }
    while let Some(code) = tasks.join_next().await {
        assert_eq!(code.unwrap(), "key_version_unavailable");
    }
    let refreshes: f64 = sidecar
        .ops("/metrics")
        .1
        .lines()
        .filter(|line| {
            line.starts_with("sidekey_refreshes_total") && line.contains("unknown_version")
        })
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    // 33 requests with a thousand versions: the first refresh, and at most a few spaced ones for those that joined.
    assert!((1.0..=8.0).contains(&refreshes), "{refreshes}");
}

#[tokio::test]
async fn every_wrong_request_gets_its_code() {
    let world = World::with_demo();
    let config = "[limits]\nbody = 1000\njson_body = \"2KiB\"\nbatch_items = 3\n";
    let sidecar = world.start_with("one", config, &["demo"]);
    let mut client = sidecar.client().await;
    let encrypt = "/v1/keyrings/demo/encrypt";

    assert_eq!(
        client.post("/v2", &[OCTETS], "").await.problem(),
        "not_found"
    );
    assert_eq!(
        client
            .post("/v1/keyrings/demo/encrypt/", &[OCTETS], "")
            .await
            .problem(),
        "not_found"
    );
    assert_eq!(
        client
            .post("/v1/keyrings/nope/encrypt", &[OCTETS], "")
            .await
            .problem(),
        "keyring_not_found"
    );
    let wrong_method = client.send(Method::GET, encrypt, &[], "").await;
    assert_eq!(wrong_method.headers["allow"], "POST");
    assert_eq!(wrong_method.problem(), "method_not_allowed");
    assert_eq!(
        client.post("/v1/keyrings", &[], "").await.problem(),
        "method_not_allowed"
    );
    assert_eq!(
        client.post(encrypt, &[], "x").await.problem(),
        "unsupported_media_type"
    );
    assert_eq!(
        client
            .post(encrypt, &[("content-type", "text/plain")], "x")
            .await
            .problem(),
        "unsupported_media_type"
    );
    // What is too long for a message becomes a stream; what says that it is a message must not be longer than one.
    let stream = client
        .post(encrypt, &[OCTETS], vec![0; 1001])
        .await
        .ok()
        .body;
    assert_eq!(client.decrypt(&stream).await.ok().body.len(), 1001);
    assert_eq!(
        client
            .decrypt(&[&[1][..], &stream[1..]].concat())
            .await
            .problem(),
        "body_too_large"
    );
    assert_eq!(
        client
            .post(encrypt, &[JSON], vec![b' '; 2049])
            .await
            .problem(),
        "body_too_large"
    );
    assert_eq!(
        client
            .post(encrypt, &[OCTETS, ("sidekey-aad", "!!!")], "x")
            .await
            .problem(),
        "invalid_request"
    );
    let twice = [OCTETS, ("sidekey-aad", "QQ=="), ("sidekey-aad", "QQ==")];
    assert_eq!(
        client.post(encrypt, &twice, "x").await.problem(),
        "invalid_request"
    );
    let unbound = [JSON, ("sidekey-aad", "QQ==")];
    assert_eq!(
        client
            .post(encrypt, &unbound, "{\"plaintext\": \"QQ==\"}")
            .await
            .problem(),
        "invalid_request"
    );
    let four = json!({ "batch": [{}, {}, {}, {}] });
    assert_eq!(
        client.json("encrypt", four).await.problem(),
        "batch_too_large"
    );
    // As long as the longest plaintext makes it, a ciphertext is accepted.
    let longest = client
        .post(encrypt, &[OCTETS], vec![0; 1000])
        .await
        .ok()
        .body;
    assert_eq!(client.decrypt(&longest).await.ok().body.len(), 1000);

    let secret = "c2VjcmV0LXZhbHVl";
    let invalid = [
        format!("{{\"plaintext\": \"{secret}"),
        format!("{{\"{secret}\": 1}}"),
        format!("{{\"plaintext\": \"{secret}!\"}}"),
        format!("{{\"plaintext\": {{\"{secret}\": 1}}}}"),
        format!("{{\"plaintext\": \"{secret}\", \"plaintext\": \"{secret}\"}}"),
        format!("{{\"plaintext\": \"{secret}\", \"batch\": []}}"),
        format!("{{\"batch\": \"{secret}\"}}"),
        format!("[\"{secret}\"]"),
        format!("\"{secret}\""),
        "null".into(),
        "{}".into(),
        String::new(),
        "[".repeat(2000),
    ];
    for body in invalid {
        let answer = client.post(encrypt, &[JSON], body.clone()).await;
        assert_eq!(answer.problem(), "invalid_request", "{body}");
        assert!(
            !String::from_utf8_lossy(&answer.body).contains(secret),
            "{body} is echoed: {:?}",
            answer.body
        );
    }
    assert_eq!(
        client
            .post(encrypt, &[JSON], &b"{\"plaintext\": \"\xff\"}"[..])
            .await
            .problem(),
        "invalid_request"
    );
    assert!(!sidecar.log().contains(secret));
    assert!(!sidecar.ops("/metrics").1.contains(secret));
    client.encrypt(b"still here").await.ok();
}

#[tokio::test]
async fn an_oversized_head_is_refused() {
    let world = World::with_demo();
    let sidecar = world.start_with("one", "[limits]\nheader_bytes = \"8KiB\"\n", &["demo"]);
    let long = "A".repeat(9 << 10);
    let mut client = sidecar.client().await;
    assert_eq!(
        client
            .post(
                "/v1/keyrings/demo/encrypt",
                &[OCTETS, ("sidekey-aad", &long)],
                "x"
            )
            .await
            .problem(),
        "headers_too_large"
    );
    let mut http2 = Client::http2(&sidecar.socket).await;
    assert_eq!(
        http2
            .post(
                "/v1/keyrings/demo/encrypt",
                &[OCTETS, ("sidekey-aad", &long)],
                "x"
            )
            .await
            .problem(),
        "headers_too_large"
    );
    // Beyond what is read at all, the status alone tells.
    let mut stream = UnixStream::connect(&sidecar.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = write!(
        stream,
        "GET /v1/keyrings HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "A".repeat(100 << 10)
    );
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(
        answer.starts_with(b"HTTP/1.1 431"),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
    client.encrypt(b"still here").await.ok();
}

#[test]
fn what_is_not_http_is_answered_with_a_status_or_an_end() {
    let world = World::with_demo();
    let sidecar = world.start();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        &[0; 4096],
    ] {
        let mut stream = UnixStream::connect(&sidecar.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"));
    }
    assert_eq!(sidecar.ops("/livez").0, 200);
}

#[tokio::test]
async fn bodies_hold_no_more_memory_than_they_may() {
    let world = World::with_demo();
    let config = "[limits]\nbody = \"1MiB\"\njson_body = \"1MiB\"\nbody_memory = \"3MiB\"\n";
    let sidecar = world.start_with("one", config, &["demo"]);
    // Three clients announce bodies that take all the memory and never send them.
    let stuck: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = UnixStream::connect(&sidecar.socket).unwrap();
            let head = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n";
            write!(stream, "{head}Content-Length: 1048576\r\n\r\nx").unwrap();
            stream
        })
        .collect();
    let mut client = sidecar.client().await;
    // Small bodies are not counted, so they pass.
    client.encrypt(b"small").await.ok();
    // A large one gets the room of those who don't use theirs, while they wait for their whole time-out.
    client.encrypt(&vec![0; 1 << 20]).await.ok();
    drop(stuck);
}

#[tokio::test]
async fn answers_that_nobody_takes_give_their_memory_back() {
    let world = World::with_demo();
    let config = "[limits]\nbody = \"1MiB\"\njson_body = \"1MiB\"\nbody_memory = \"3MiB\"\n[timeouts]\nbody = \"2s\"\n";
    let sidecar = world.start_with("one", config, &["demo"]);
    let body = vec![0; 1 << 20];
    let head = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n";
    let deaf: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = UnixStream::connect(&sidecar.socket).unwrap();
            write!(stream, "{head}Content-Length: {}\r\n\r\n", body.len()).unwrap();
            stream.write_all(&body).unwrap();
            stream
        })
        .collect();
    let sent = "sidekey_requests_total{keyring=\"demo\",operation=\"encrypt\",code=\"ok\"} 3";
    wait("three answers", || sidecar.ops("/metrics").1.contains(sent));
    let refused = sidecar.client().await.encrypt(&body).await;
    assert_eq!(refused.problem(), "overloaded", "the answers count");
    wait("the end of those who don't read", || {
        sidecar
            .ops("/metrics")
            .1
            .contains("sidekey_connections{listener=\"unix\"} 0")
    });
    sidecar.client().await.encrypt(&body).await.ok();
    drop(deaf);
}
