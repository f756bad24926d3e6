//! Malformed requests get a problem with a stable code, and no one else notices.

use hyper::Method;
use serde_json::json;

use super::{disable, rotate};
use crate::{
    app::testing::{HOUR, JSON, MINUTE, OCTETS, World},
    keyring::{self, Policy},
    model::Span,
};

/// Returns a request's head without its last header.
const HEAD: &str = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
                    Content-Type: application/octet-stream\r\n";

#[tokio::test(start_paused = true)]
async fn damaged_and_foreign_ciphertexts_have_different_codes() {
    let world = World::with_demo().await;
    world.init("other").await;
    let sidecar = world.start_with("", &["demo", "other"]).await;
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
            // An unknown version is never reported as corrupt.
            5..=8 => "key_version_unavailable",
            _ => "decryption_failed",
        };
        // Refreshes for unknown versions are spaced.
        let refused = world.pass_time_until(client.decrypt(&flipped)).await;
        assert_eq!(refused.problem(), expected, "byte {at}");
    }
    let foreign = client
        .post("/v1/keyrings/other/decrypt", &[OCTETS], good.clone())
        .await;
    assert_eq!(foreign.problem(), "wrong_keyring");
    // The keyring's tag matches and its id doesn't, as for another keyring whose id begins with the
    // same bytes.
    assert_eq!(client.decrypt(&good).await.ok().body, "attack at dawn");
}

#[tokio::test(start_paused = true)]
async fn disabled_destroyed_and_unknown_versions_have_different_codes() {
    let world = World::new();
    let policy = Policy {
        encrypt_lease: Span::from_secs(3600),
        destroy_after: Span::from_secs(3600),
        ..Policy::default()
    };
    world.init_with("demo", policy).await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let old = client.encrypt(b"x").await.ok().body;
    rotate(&world).await;
    disable(&world, 1).await;
    sidecar.wait_generation(4).await;
    let disabled = client.decrypt(&old).await;
    assert_eq!(
        (disabled.status.as_u16(), disabled.problem().as_str()),
        (409, "key_version_disabled")
    );
    let admin = world.admin("demo");
    admin
        .change(|current, now| keyring::enable(current, 1, now))
        .await
        .expect("enabled");
    sidecar.wait_generation(5).await;
    client.decrypt(&old).await.ok();
    disable(&world, 1).await;
    let confirm = Some("there is no backup of version 1 of demo");
    let destroy = async || admin.destroy(1, confirm).await;
    assert!(destroy().await.is_err(), "the retry delay has not passed");
    world.clock().advance(2 * HOUR);
    destroy().await.expect("destroyed");
    sidecar.wait_generation(7).await;
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

#[tokio::test(start_paused = true)]
async fn made_up_versions_cause_a_bounded_number_of_refreshes() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let good = client.encrypt(b"x").await.ok().body.to_vec();
    let messages: Vec<String> = (0..1000u32)
        .map(|version| {
            let mut message = good.clone();
            message[5..9].copy_from_slice(&(version + 2).to_be_bytes());
            crate::crypto::to_text(&message)
        })
        .collect();
    let batch: Vec<_> = messages
        .iter()
        .map(|text| json!({ "ciphertext": text }))
        .collect();
    let answer = world
        .pass_time_until(client.json("decrypt", json!({ "batch": batch })))
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
    while let Some(code) = world.pass_time_until(tasks.join_next()).await {
        assert_eq!(code.unwrap(), "key_version_unavailable");
    }
    let refreshes: f64 = sidecar
        .ops("/metrics")
        .await
        .1
        .lines()
        .filter(|line| {
            line.starts_with("sidekey_refreshes_total") && line.contains("unknown_version")
        })
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    // 33 requests with a thousand versions: the first refresh, and at most a few spaced ones for
    // the requests that joined.
    assert!((1.0..=8.0).contains(&refreshes), "{refreshes}");
}

#[tokio::test(start_paused = true)]
async fn every_invalid_request_gets_its_code() {
    let world = World::with_demo().await;
    let config = "[limits]\nbody = 1000\njson_body = \"2KiB\"\nbatch_items = 3\n";
    let sidecar = world.start_with(config, &["demo"]).await;
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
    // A body that is too long for a message becomes a stream; one that is declared as a message
    // must not exceed the limit.
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
    // A ciphertext of the longest plaintext is accepted.
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
    assert!(!world.log().contains(secret));
    assert!(!sidecar.ops("/metrics").await.1.contains(secret));
    client.encrypt(b"still here").await.ok();
}

#[tokio::test(start_paused = true)]
async fn an_oversized_head_is_rejected() {
    let world = World::with_demo().await;
    let sidecar = world
        .start_with("[limits]\nheader_bytes = \"8KiB\"\n", &["demo"])
        .await;
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
    let mut http2 = sidecar.http2().await;
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
    // A request that isn't read at all gets only the status.
    let mut connection = sidecar.raw().await;
    let request = format!(
        "GET /v1/keyrings HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "A".repeat(100 << 10)
    );
    // The rest of the request may hit a closed connection.
    let _ = connection.try_write(&request).await;
    let response = connection.rest().await;
    assert!(response.starts_with("HTTP/1.1 431"), "{response}");
    client.encrypt(b"still here").await.ok();
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_not_http_are_rejected() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        &[0; 4096],
    ] {
        let mut connection = sidecar.raw().await;
        connection.write(garbage).await;
        connection.shut_down().await;
        assert!(!connection.rest().await.starts_with("HTTP/1.1 2"));
    }
    assert_eq!(sidecar.ops("/livez").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn idle_bodies_give_up_their_memory() {
    let world = World::with_demo().await;
    let config = "[limits]\nbody = \"1MiB\"\njson_body = \"1MiB\"\nbody_memory = \"3MiB\"\n";
    let sidecar = world.start_with(config, &["demo"]).await;
    // Three clients announce bodies that take all the memory, and never send them.
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let mut connection = sidecar.raw().await;
        connection
            .write(format!("{HEAD}Content-Length: 1048576\r\n\r\nx"))
            .await;
        stuck.push(connection);
    }
    let mut client = sidecar.client().await;
    // Small bodies aren't counted, so they pass.
    client.encrypt(b"small").await.ok();
    // A large body gets the memory of idle clients before their timeout ends.
    world
        .pass_time_until(client.encrypt(&vec![0; 1 << 20]))
        .await
        .ok();
    drop(stuck);
}

#[tokio::test(start_paused = true)]
async fn unread_responses_give_up_their_memory() {
    let world = World::with_demo().await;
    let config = "[limits]\nbody = \"1MiB\"\njson_body = \"1MiB\"\nbody_memory = \"3MiB\"\n\
        [timeouts]\nbody = \"2s\"\n";
    let sidecar = world.start_with(config, &["demo"]).await;
    let body = vec![0; 1 << 20];
    let mut deaf = Vec::new();
    for _ in 0..3 {
        let mut connection = sidecar.raw().await;
        connection
            .write(format!("{HEAD}Content-Length: {}\r\n\r\n", body.len()))
            .await;
        connection.write(&body).await;
        deaf.push(connection);
    }
    let sent = "sidekey_requests_total{keyring=\"demo\",operation=\"encrypt\",code=\"ok\"} 3";
    sidecar.wait_metric(sent).await;
    let mut client = sidecar.client().await;
    let refused = world.pass_time_until(client.encrypt(&body)).await;
    assert_eq!(refused.problem(), "overloaded", "the responses count");
    drop(client);
    world.advance(MINUTE).await;
    sidecar
        .wait_metric("sidekey_connections{listener=\"unix\"} 0")
        .await;
    sidecar.client().await.encrypt(&body).await.ok();
    drop(deaf);
}
