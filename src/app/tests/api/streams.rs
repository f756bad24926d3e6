//! Bodies of any length: which ones become streams, and what ends a stream early.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, Response, StatusCode, body::Incoming};
use tokio::time::sleep;

use super::rotate;
use crate::app::testing::{
    Client, JSON, OCTETS, RequestBody, SECOND, TestApp, World, channel, unannounced, whole,
};

const MESSAGE: u8 = 1;

const STREAM: u8 = 2;

const MIB: usize = 1 << 20;

/// The size of a whole chunk of a stream, and of the header before the first.
const CHUNK: usize = (64 << 10) + 16;

const PREFIX: usize = 33;

fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

async fn post(client: &mut Client, operation: &str, body: RequestBody) -> Response<Incoming> {
    client
        .open(
            Method::POST,
            &format!("/v1/keyrings/demo/{operation}"),
            &[OCTETS],
            body,
        )
        .await
        .unwrap()
}

async fn bytes(response: Response<Incoming>) -> Vec<u8> {
    assert_eq!(response.status(), StatusCode::OK);
    let announced = response
        .headers()
        .get("content-length")
        .map(|length| length.to_str().unwrap().parse::<usize>().unwrap());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(announced.is_none_or(|length| length == bytes.len()));
    bytes.to_vec()
}

/// Returns the part of a response that arrived before it was aborted, and asserts that it was.
async fn broken(response: Response<Incoming>) -> Vec<u8> {
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let mut came = Vec::new();
    loop {
        match body
            .frame()
            .await
            .expect("the response ended as if it were complete")
        {
            Ok(frame) => came.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(_) => return came,
        }
    }
}

async fn problem(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice::<serde_json::Value>(&body).unwrap()["code"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn both(sidecar: &TestApp) -> [Client; 2] {
    [sidecar.client().await, sidecar.http2().await]
}

#[tokio::test(start_paused = true)]
async fn bodies_over_a_mebibyte_or_of_unknown_length_are_streams() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    for mut client in both(&sidecar).await {
        for (length, suite) in [
            (0, MESSAGE),
            (MIB, MESSAGE),
            (MIB + 1, STREAM),
            (2 * MIB, STREAM),
            (3 * MIB + 77, STREAM),
        ] {
            let plaintext = text(length);
            let sealed = post(&mut client, "encrypt", whole(plaintext.clone())).await;
            assert_eq!(sealed.headers()["sidekey-key-version"], "1");
            assert!(
                sealed.headers().contains_key("content-length"),
                "a known length is passed on"
            );
            let sealed = bytes(sealed).await;
            assert_eq!(sealed[0], suite, "{length}");
            let opened = post(&mut client, "decrypt", whole(sealed.clone())).await;
            // HTTP/2 ends an empty response with its head.
            assert!(length == 0 || opened.headers().contains_key("content-length"));
            assert!(bytes(opened).await == plaintext, "{length}");
            // Regardless of how the body arrives.
            assert!(
                bytes(post(&mut client, "decrypt", unannounced(sealed)).await).await == plaintext,
                "{length}"
            );
        }
        for length in [0, 1, 64 << 10, (64 << 10) + 1, 2 * MIB] {
            let plaintext = text(length);
            let sealed =
                bytes(post(&mut client, "encrypt", unannounced(plaintext.clone())).await).await;
            assert_eq!(
                (sealed[0], sealed.len()),
                (
                    STREAM,
                    PREFIX + length + 16 * length.div_ceil(64 << 10).max(1)
                )
            );
            assert!(
                bytes(post(&mut client, "decrypt", whole(sealed)).await).await == plaintext,
                "{length}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_stream_is_accepted_as_a_message() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let sealed = bytes(post(&mut client, "encrypt", unannounced("short")).await).await;
    let ciphertext = crate::crypto::to_text(&sealed);
    let opened = client
        .post(
            "/v1/keyrings/demo/decrypt",
            &[JSON],
            format!(r#"{{"ciphertext": "{ciphertext}"}}"#),
        )
        .await
        .ok();
    assert_eq!(opened.json()["plaintext"], STANDARD.encode("short"));
}

#[tokio::test(start_paused = true)]
async fn a_response_starts_before_its_request_ends() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    for mut client in both(&sidecar).await {
        let (sender, body) = channel();
        let feed = async {
            for _ in 0..3 {
                sender.send(Ok(Bytes::from(text(64 << 10)))).await.unwrap();
            }
        };
        let (response, ()) = tokio::join!(post(&mut client, "encrypt", body), feed);
        let mut answer = response.into_body();
        let first = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first[0], STREAM);
        drop(sender);
        answer.collect().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_rewrapped_under_the_primary() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let plaintext = text(3 * MIB);
    let mut client = sidecar.client().await;
    let old = bytes(post(&mut client, "encrypt", whole(plaintext.clone())).await).await;
    rotate(&world).await;
    sidecar.wait_generation(3).await;
    let new = post(&mut client, "rewrap", whole(old.clone())).await;
    assert_eq!(new.headers()["sidekey-key-version"], "2");
    let new = bytes(new).await;
    assert_eq!(
        (new.len(), &new[..9]),
        (old.len(), &[&old[..5], &[0, 0, 0, 2]].concat()[..])
    );
    assert!(bytes(post(&mut client, "decrypt", whole(new)).await).await == plaintext);
    assert!(bytes(post(&mut client, "decrypt", unannounced(old)).await).await == plaintext);
}

#[tokio::test(start_paused = true)]
async fn a_bad_chunk_aborts_the_response_after_the_good_ones() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let plaintext = text(40 * (64 << 10));
    let sealed = bytes(
        post(
            &mut sidecar.client().await,
            "encrypt",
            whole(plaintext.clone()),
        )
        .await,
    )
    .await;
    let chunk = |number: usize| PREFIX + number * CHUNK..PREFIX + (number + 1) * CHUNK;
    let mut flipped = sealed.clone();
    flipped[PREFIX + 20 * CHUNK + 5] ^= 1;
    let without = [&sealed[..chunk(20).start], &sealed[chunk(20).end..]].concat();
    let doubled = [
        &sealed[..chunk(20).start],
        &sealed[chunk(19)],
        &sealed[chunk(20).start..],
    ]
    .concat();
    let swapped = [
        &sealed[..chunk(20).start],
        &sealed[chunk(21)],
        &sealed[chunk(20)],
        &sealed[chunk(21).end..],
    ]
    .concat();
    for operation in ["decrypt", "rewrap"] {
        for bad in [&flipped, &without, &doubled, &swapped] {
            for mut client in both(&sidecar).await {
                let came =
                    broken(post(&mut client, operation, unannounced(bad.clone())).await).await;
                if operation == "decrypt" {
                    // The connection may close before all bytes are accepted.
                    assert!(
                        came.len() <= 20 * (64 << 10) && plaintext.starts_with(&came),
                        "only what was verified"
                    );
                }
                let mut client = sidecar.client().await;
                let came =
                    broken(post(&mut client, operation, unannounced(bad.clone())).await).await;
                assert!(operation == "rewrap" || plaintext.starts_with(&came));
            }
        }
    }
    // The end is missing.
    for end in [chunk(39).start, chunk(39).start + 100] {
        let mut client = sidecar.client().await;
        let came =
            broken(post(&mut client, "decrypt", unannounced(sealed[..end].to_vec())).await).await;
        assert!(came.len() < plaintext.len() && plaintext.starts_with(&came));
    }
    let mut client = sidecar.client().await;
    let came = broken(
        post(
            &mut client,
            "decrypt",
            unannounced([&sealed[..], b"x"].concat()),
        )
        .await,
    )
    .await;
    assert!(came.len() < plaintext.len());
    assert!(sidecar.ops("/metrics").await.1.contains(
        r#"sidekey_requests_total{keyring="demo",operation="decrypt",code="decryption_failed"}"#
    ));
}

#[tokio::test(start_paused = true)]
async fn an_error_in_the_first_chunk_is_a_problem_response() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let sealed = bytes(post(&mut client, "encrypt", whole(text(2 * MIB))).await).await;
    let change = |at: usize| {
        let mut changed = sealed.clone();
        changed[at] ^= 0x40;
        changed
    };
    for (body, code) in [
        (change(PREFIX + 9), "decryption_failed"),
        (change(1), "wrong_keyring"),
        (change(7), "key_version_unavailable"),
        (
            sealed[..PREFIX + 20 * CHUNK + 5].to_vec(),
            "malformed_ciphertext",
        ),
        ([&[MESSAGE][..], &sealed[1..]].concat(), "body_too_large"),
    ] {
        assert_eq!(
            problem(post(&mut sidecar.client().await, "decrypt", whole(body)).await).await,
            code
        );
    }
    let headers = [OCTETS, ("sidekey-aad", "b3RoZXI=")];
    let response = client
        .open(
            Method::POST,
            "/v1/keyrings/demo/decrypt",
            &headers,
            whole(sealed),
        )
        .await
        .unwrap();
    assert_eq!(problem(response).await, "decryption_failed");
}

#[tokio::test(start_paused = true)]
async fn http_1_0_gets_no_response_of_unknown_length() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let ask = async |head: &str| {
        let mut connection = sidecar.raw().await;
        let request = format!(
            "POST /v1/keyrings/demo/encrypt HTTP/1.0\r\nContent-Length: 6\r\n\
             Content-Type: {head}\r\n\r\n\0\0\0\0\u{1}x"
        );
        connection.write(request).await;
        connection.rest().await
    };
    assert!(
        ask("application/octet-stream")
            .await
            .starts_with("HTTP/1.0 200")
    );
    let batch = ask("application/vnd.sidekey.batch").await;
    assert!(
        batch.starts_with("HTTP/1.0 400") && batch.contains("HTTP/1.1"),
        "{batch}"
    );
    let metrics = sidecar.ops("/metrics").await.1;
    assert!(
        !metrics.contains("abandoned"),
        "a response with a problem is counted once"
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_arrives_times_out() {
    let world = World::with_demo().await;
    let sidecar = world
        .start_with("[timeouts]\nidle = \"1s\"\n", &["demo"])
        .await;
    let mut clients = Vec::new();
    for content_type in [OCTETS, ("content-type", "application/vnd.sidekey.batch")] {
        let (sender, body) = channel();
        let mut client = sidecar.client().await;
        let headers = [content_type];
        let request = client.open(Method::POST, "/v1/keyrings/demo/encrypt", &headers, body);
        let answer = world.pass_time_until(request).await.unwrap();
        assert_eq!(problem(answer).await, "request_timeout");
        clients.push((client, sender));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_stream_is_closed_and_gives_up_its_memory() {
    let world = World::with_demo().await;
    // Between two checks of a body's growth, so that the connection's limit comes first.
    let config = "[timeouts]\nheader = \"1s\"\nbody = \"1s\"\nidle = \"3500ms\"";
    let sidecar = world.start_with(config, &["demo"]).await;
    // It takes longer than the timeout of a message's body, but makes progress.
    let (sender, body) = channel();
    let slow = tokio::spawn(async move {
        for _ in 0..10 {
            sender.send(Ok(Bytes::from(text(64 << 10)))).await.unwrap();
            sleep(Duration::from_millis(150)).await;
        }
    });
    let mut client = sidecar.client().await;
    let whole = async { bytes(post(&mut client, "encrypt", body).await).await };
    let sealed = world.pass_time_until(whole).await;
    assert_eq!(sealed.len(), PREFIX + 10 * CHUNK);
    slow.await.unwrap();
    // A sender that stops sending.
    let (sender, body) = channel();
    let mut client = sidecar.client().await;
    let feed = async { sender.send(Ok(Bytes::from(text(128 << 10)))).await.unwrap() };
    let both = async { tokio::join!(post(&mut client, "encrypt", body), feed) };
    let (answer, ()) = world.pass_time_until(both).await;
    world.pass_time_until(broken(answer)).await;
    // A response that the client doesn't read: the body continues until the buffers in between are
    // full.
    let (sender, body) = channel();
    let mut client = sidecar.client().await;
    let feed =
        tokio::spawn(
            async move { while sender.send(Ok(Bytes::from(text(64 << 10)))).await.is_ok() {} },
        );
    let answer = world
        .pass_time_until(post(&mut client, "encrypt", body))
        .await;
    world.pass_time_until(feed).await.unwrap();
    world.pass_time_until(broken(answer)).await;
    world
        .wait("a hint at the cause", || {
            let hint = "read the response while it sends the request?";
            world.log().matches(hint).count() == 2
        })
        .await;
    for (code, count) in [("abandoned", 2), ("ok", 1)] {
        let line = format!(
            r#"sidekey_requests_total{{keyring="demo",operation="encrypt",code="{code}"}} {count}"#
        );
        sidecar.wait_metric(&line).await;
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_streams_make_room_for_others() {
    let world = World::with_demo().await;
    let limits = "body = \"64KiB\"\njson_body = \"64KiB\"\nbody_memory = \"400KiB\"";
    let sidecar = world
        .start_with(
            &format!("[limits]\n{limits}\n[timeouts]\nbody = \"4s\""),
            &["demo"],
        )
        .await;
    // Two requests hold all of the memory: one sends no more input, the other's response isn't
    // read.
    let (quiet_sender, body) = channel();
    let mut quiet_client = sidecar.client().await;
    let feed = async {
        quiet_sender
            .send(Ok(Bytes::from(text(128 << 10))))
            .await
            .unwrap()
    };
    let (quiet, ()) = tokio::join!(post(&mut quiet_client, "encrypt", body), feed);
    let (sender, body) = channel();
    let mut full_client = sidecar.client().await;
    let feed =
        tokio::spawn(
            async move { while sender.send(Ok(Bytes::from(text(64 << 10)))).await.is_ok() {} },
        );
    let full = post(&mut full_client, "encrypt", body).await;

    let third = async {
        loop {
            let answer = post(&mut sidecar.client().await, "encrypt", whole(text(MIB))).await;
            if answer.status() == StatusCode::OK {
                break bytes(answer).await.len();
            }
            assert_eq!(problem(answer).await, "overloaded");
        }
    };
    assert_eq!(world.pass_time_until(third).await, PREFIX + 16 * CHUNK);
    // The evicted client is told so.
    feed.abort();
    drop(quiet_sender);
    let (quiet, full) = (
        quiet.into_body().collect().await,
        full.into_body().collect().await,
    );
    assert!(quiet.is_err() || full.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_stream_in_flight_is_finished_before_the_sidecar_stops() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let (sender, body) = channel();
    let mut client = sidecar.client().await;
    let first = async { sender.send(Ok(Bytes::from(text(128 << 10)))).await.unwrap() };
    let (answer, ()) = tokio::join!(post(&mut client, "encrypt", body), first);
    let stopping = sidecar.begin_stop();
    world.advance(SECOND).await;
    assert_eq!(stopping.ops("/readyz").await.0, 503);
    sender.send(Ok(Bytes::from(text(64 << 10)))).await.unwrap();
    drop(sender);
    assert_eq!(bytes(answer).await.len(), PREFIX + 3 * CHUNK);
    stopping.over().await;
}
