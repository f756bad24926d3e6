//! Whatever a caller can make a sidecar hold is counted and bounded.

use std::fmt::Write;

use hyper::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::app::testing::{Client, OCTETS, SECOND, World, channel};

/// The preface of an HTTP/2 client with empty settings (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const INITIAL_WINDOW_SIZE: u16 = 4;

#[tokio::test(start_paused = true)]
async fn an_http2_peer_may_send_little_that_nobody_has_read() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut stream = UnixStream::connect(app.socket()).await.expect("works");
    stream.write_all(PREFACE).await.expect("works");
    let mut settings = Vec::new();
    // Until the acknowledgement of the settings above, which is empty.
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("works");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut frame = vec![0; length as usize];
        stream.read_exact(&mut frame).await.expect("works");
        assert_ne!(
            head[3], WINDOW_UPDATE,
            "the connection's window is not enlarged"
        );
        match (head[3], length) {
            (SETTINGS, 0) => break,
            (SETTINGS, _) => settings = frame,
            _ => {}
        }
    }
    let setting = settings.chunks(6).find_map(|setting| {
        let (id, value) = setting.split_first_chunk::<2>()?;
        let value = u32::from_be_bytes(value.try_into().ok()?);
        (u16::from_be_bytes(*id) == INITIAL_WINDOW_SIZE).then_some(value)
    });
    assert!(setting.is_none_or(|bytes| bytes <= 65_535), "{setting:?}");
}

#[tokio::test(start_paused = true)]
async fn results_that_are_longer_than_their_items_count() {
    let world = World::with_demo().await;
    let config = "[limits]\nbody = \"1KiB\"\njson_body = \"64KiB\"\nbody_memory = \"256KiB\"\n";
    let app = world.start_with(config, &["demo"]).await;
    let mut client = app.client().await;
    let batch = |items: usize| json!({"batch": vec![1; items]});
    let few = client.json("encrypt", batch(200)).await.ok().json();
    assert!(few["batch"][199]["error"]["code"] == "invalid_request");
    let many = world.pass_time_until(client.json("encrypt", batch(300)));
    assert_eq!(many.await.problem(), "overloaded");
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_the_json_of_its_results() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut client = app.client().await;
    let empty = client.json("encrypt", json!({"batch": []})).await.ok();
    assert_eq!(empty.body, r#"{"batch":[]}"#);
    let two = json!({"batch": [{"plaintext": ""}, {"plaintext": "YQ=="}]});
    let sealed = client.json("encrypt", two).await.ok().json();
    let items: Vec<Value> = (0..2)
        .map(|at| json!({"ciphertext": sealed["batch"][at]["ciphertext"]}))
        .collect();
    let opened = client.json("decrypt", json!({"batch": items})).await.ok();
    assert_eq!(
        opened.body,
        r#"{"batch":[{"plaintext":"","key_version":1},{"plaintext":"YQ==","key_version":1}]}"#
    );
}

#[tokio::test(start_paused = true)]
async fn long_heads_of_requests_that_wait_count() {
    let world = World::with_demo().await;
    let config = "[limits]\nbody = \"1KiB\"\njson_body = \"64KiB\"\nbody_memory = \"256KiB\"\n\
                  [timeouts]\nbody = \"60s\"\n";
    let app = world.start_with(config, &["demo"]).await;
    let aad = "QUFB".repeat(2 << 10);
    let mut half = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
                    Content-Type: application/octet-stream\r\nContent-Length: 6\r\n"
        .to_owned();
    write!(half, "Sidekey-Aad: {aad}\r\n\r\nabc").expect("works");
    let mut waiting = Vec::new();
    for _ in 0..40 {
        let mut connection = app.raw().await;
        connection.write(&half).await;
        waiting.push(connection);
    }
    let mut client = app.client().await;
    client.encrypt(b"a short head").await.ok();
    let headers = [OCTETS, ("sidekey-aad", &*aad)];
    let path = "/v1/keyrings/demo/encrypt";
    // Sooner than the bodies of those that wait time out.
    let (refused, ()) = tokio::join!(client.post(path, &headers, "x"), world.advance(30 * SECOND));
    assert_eq!(refused.problem(), "overloaded");
    drop(waiting);
}

#[tokio::test(start_paused = true)]
async fn a_caller_has_a_share_of_concurrent_requests() {
    let world = World::with_demo().await;
    let app = world
        .start_with("[limits]\nconnections = 1\n", &["demo"])
        .await;
    let client = app.http2().await;
    let mut waiting = Vec::new();
    let half_sent = |mut client: Client| async move {
        let (sender, body) = channel();
        let path = "/v1/keyrings/demo/encrypt";
        let headers = [OCTETS, ("content-length", "6")];
        let answer = client.open(Method::POST, path, &headers, body).await;
        drop(sender);
        answer.map(|answer| answer.status())
    };
    // The first is free; of 16 places, one caller gets 12.
    for _ in 0..13 {
        waiting.push(tokio::spawn(half_sent(client.again())));
        tokio::task::yield_now().await;
    }
    world.advance(std::time::Duration::from_millis(10)).await;
    assert!(waiting.iter().all(|request| !request.is_finished()));
    let mut late = client.again();
    let refused = late.try_send(Method::GET, "/v1/keyrings", &[], "").await;
    let error = std::error::Error::source(&refused.expect_err("refused"))
        .expect("works")
        .to_string();
    assert!(error.contains("refused"), "{error}");
    for request in waiting {
        request.abort();
    }
    world.advance(std::time::Duration::from_millis(10)).await;
    late.get("/v1/keyrings").await.ok();
}

#[tokio::test(start_paused = true)]
async fn a_caller_has_a_share_of_event_streams() {
    let world = World::with_demo().await;
    let app = world
        .start_with("[limits]\nconnections = 32\n", &["demo"])
        .await;
    let client = app.http2().await;
    let mut streams = Vec::new();
    let refused = loop {
        let (_, body) = channel();
        let answer = client
            .again()
            .open(Method::GET, "/v1/events", &[], body)
            .await;
        let answer = answer.expect("an answer");
        if answer.status() != 200 {
            break answer.status();
        }
        streams.push(answer);
    };
    assert_eq!((refused.as_u16(), streams.len()), (503, 12));
}
