//! The binary batch, byte by byte as docs/api.md describes it.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::{disable, rotate};
use crate::app::testing::{Client, OCTETS, SECOND, TestApp, World, channel, unannounced, whole};

const BATCH: (&str, &str) = ("content-type", "application/vnd.sidekey.batch");

fn frame(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

fn request(items: &[&[u8]]) -> Vec<u8> {
    let frames: Vec<u8> = items.iter().flat_map(|item| frame(&[item])).collect();
    [&[0][..], &frames].concat()
}

fn with_aad(items: &[(&[u8], &[u8])]) -> Vec<u8> {
    let frames: Vec<u8> = items
        .iter()
        .flat_map(|(aad, item)| frame(&[&(aad.len() as u32).to_be_bytes(), aad, item]))
        .collect();
    [&[1][..], &frames].concat()
}

/// Returns a response's items, or the codes of their problems.
fn results(mut answer: &[u8]) -> Vec<Result<Vec<u8>, String>> {
    let mut results = Vec::new();
    while let Some((length, rest)) = answer.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        answer = rest;
        results.push(match frame.split_first().unwrap() {
            (0, item) => Ok(item.to_vec()),
            (1, problem) => Err(serde_json::from_slice::<Value>(problem).unwrap()["code"]
                .as_str()
                .unwrap()
                .to_owned()),
            (status, _) => panic!("status {status}"),
        });
    }
    assert!(answer.is_empty());
    results
}

async fn batch(
    client: &mut Client,
    operation: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Vec<Result<Vec<u8>, String>> {
    let path = format!("/v1/keyrings/demo/{operation}");
    let answer = client
        .post(&path, &[&[BATCH], headers].concat(), body)
        .await
        .ok();
    assert_eq!(answer.headers["content-type"], BATCH.1);
    results(&answer.body)
}

fn items(results: Vec<Result<Vec<u8>, String>>) -> Vec<Vec<u8>> {
    results.into_iter().map(|result| result.unwrap()).collect()
}

fn borrowed(items: &[Vec<u8>]) -> Vec<&[u8]> {
    items.iter().map(Vec::as_slice).collect()
}

#[tokio::test(start_paused = true)]
async fn items_come_back_in_order_from_every_operation() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let plaintexts: Vec<Vec<u8>> = (0..2000usize)
        .map(|item| vec![item as u8; item % 300])
        .collect();
    for mut client in [sidecar.client().await, sidecar.http2().await] {
        let sealed =
            items(batch(&mut client, "encrypt", &[], request(&borrowed(&plaintexts))).await);
        let opened = items(batch(&mut client, "decrypt", &[], request(&borrowed(&sealed))).await);
        assert!(opened == plaintexts);
        let again = items(batch(&mut client, "rewrap", &[], request(&borrowed(&sealed))).await);
        assert!(again != sealed && again.iter().all(|message| message[0] == 1));
        // One item of a batch is a message like any other.
        assert_eq!(client.decrypt(&again[17]).await.ok().body, plaintexts[17]);
        // All items share one random nonce, whose second half counts the items.
        let nonce = |item: usize| {
            u128::from_be_bytes(
                [&[0; 4][..], &sealed[item][21..33]]
                    .concat()
                    .try_into()
                    .unwrap(),
            )
        };
        assert_eq!(sealed[0][9..21], sealed[1999][9..21]);
        assert_eq!(nonce(1999).wrapping_sub(nonce(0)) % (1 << 96), 1999);
    }
    assert!(
        batch(&mut sidecar.client().await, "encrypt", &[], request(&[]))
            .await
            .is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn items_share_an_aad_or_have_their_own() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let header = ("sidekey-aad", "cm93IDc=");
    let shared = items(batch(&mut client, "encrypt", &[header], request(&[b"a", b"b"])).await);
    let own = items(
        batch(
            &mut client,
            "encrypt",
            &[],
            with_aad(&[(b"row 7", b"a"), (b"", b"b")]),
        )
        .await,
    );
    let mixed = with_aad(&[
        (b"row 7", &shared[0]),
        (b"row 8", &shared[1]),
        (b"row 7", &own[0]),
        (b"", &own[1]),
    ]);
    let opened = batch(&mut client, "decrypt", &[], mixed).await;
    assert_eq!(
        opened,
        [
            Ok(b"a".to_vec()),
            Err("decryption_failed".into()),
            Ok(b"a".to_vec()),
            Ok(b"b".to_vec())
        ]
    );
    let both = client
        .post(
            "/v1/keyrings/demo/encrypt",
            &[BATCH, header],
            with_aad(&[(b"x", b"a")]),
        )
        .await;
    assert_eq!(
        (both.status, both.problem().as_str()),
        (StatusCode::BAD_REQUEST, "invalid_request")
    );
}

#[tokio::test(start_paused = true)]
async fn a_bad_item_fails_alone() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let good = items(batch(&mut client, "encrypt", &[], request(&[b"good"])).await).remove(0);
    let mut changed = good.clone();
    changed[40] ^= 1;
    let mut unknown = good.clone();
    unknown[8] = 9;
    let long = vec![1; (1 << 20) + 400];
    let results = batch(
        &mut client,
        "decrypt",
        &[],
        request(&[&good, &changed, b"", b"garbage", &unknown, &long, &good]),
    )
    .await;
    let codes: Vec<_> = results
        .iter()
        .map(|result| result.as_ref().map(Vec::as_slice).map_err(String::as_str))
        .collect();
    assert_eq!(
        codes,
        [
            Ok(&b"good"[..]),
            Err("decryption_failed"),
            Err("malformed_ciphertext"),
            Err("malformed_ciphertext"),
            Err("key_version_unavailable"),
            Err("body_too_large"),
            Ok(&b"good"[..])
        ]
    );
    let metrics = sidecar.ops("/metrics").await.1;
    for (code, count) in [
        ("decryption_failed", 1),
        ("malformed_ciphertext", 2),
        ("body_too_large", 1),
    ] {
        let line = format!(
            "sidekey_batch_item_errors_total\
             {{keyring=\"demo\",operation=\"decrypt\",code=\"{code}\"}} {count}"
        );
        assert!(metrics.contains(&line), "{line}");
    }
    // One with the maximum length.
    let most = vec![7; 1 << 20];
    let sealed = items(batch(&mut client, "encrypt", &[], request(&[&most])).await);
    assert!(items(batch(&mut client, "decrypt", &[], request(&borrowed(&sealed))).await) == [most]);
}

#[tokio::test(start_paused = true)]
async fn a_malformed_batch_is_rejected() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    for body in [
        vec![],
        vec![2],
        vec![0, 0, 0],
        frame(&[b"no flags before it"]),
    ] {
        let answer = sidecar
            .client()
            .await
            .post("/v1/keyrings/demo/encrypt", &[BATCH], body)
            .await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (StatusCode::BAD_REQUEST, "invalid_request")
        );
    }
    let results = batch(
        &mut sidecar.client().await,
        "encrypt",
        &[],
        [vec![1], frame(&[&[0, 0, 0, 9], b"short"])].concat(),
    )
    .await;
    assert_eq!(results, [Err("invalid_request".into())]);
    // Once the response has begun, it can only be aborted.
    let mut client = sidecar.client().await;
    let cut = [request(&[b"whole"]), vec![0, 0, 0, 9, b'c']].concat();
    for body in [whole(cut.clone()), unannounced(cut)] {
        let answer = client
            .open(Method::POST, "/v1/keyrings/demo/encrypt", &[BATCH], body)
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.into_body().collect().await.is_err());
        client = sidecar.client().await;
    }
}

#[tokio::test(start_paused = true)]
async fn responses_start_before_the_request_ends() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    for mut client in [sidecar.client().await, sidecar.http2().await] {
        let (sender, body) = channel();
        sender
            .send(Ok(Bytes::from(request(&[b"first"]))))
            .await
            .unwrap();
        let answer = client
            .open(Method::POST, "/v1/keyrings/demo/encrypt", &[BATCH], body)
            .await
            .unwrap();
        let mut answer = answer.into_body();
        for round in 0..3 {
            let piece = answer.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(results(&piece).len(), 1, "round {round}");
            // In two parts.
            let next = frame(&[b"next"]);
            sender
                .send(Ok(Bytes::copy_from_slice(&next[..5])))
                .await
                .unwrap();
            sender
                .send(Ok(Bytes::copy_from_slice(&next[5..])))
                .await
                .unwrap();
        }
        drop(sender);
        assert_eq!(
            results(&answer.collect().await.unwrap().to_bytes()).len(),
            1
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_uses_one_primary_and_counts_as_its_use() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let (sender, body) = channel();
    sender
        .send(Ok(Bytes::from(request(&[b"before"]))))
        .await
        .unwrap();
    let mut client = sidecar.client().await;
    let answer = client
        .open(Method::POST, "/v1/keyrings/demo/encrypt", &[BATCH], body)
        .await
        .unwrap();
    let mut answer = answer.into_body();
    answer.frame().await.unwrap().unwrap();
    rotate(&world).await;
    sidecar.wait_generation(3).await;
    let last_use = async |sidecar: &TestApp| {
        sidecar.keyring().await["active"]["versions"][0]["last_used"]
            .as_str()
            .map(str::to_owned)
    };
    let before = last_use(&sidecar).await.expect("it was used");
    world.clock().advance(SECOND);
    sender
        .send(Ok(Bytes::from(frame(&[b"after"]))))
        .await
        .unwrap();
    let piece = answer.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(
        results(&piece)[0].as_ref().unwrap()[5..9],
        [0, 0, 0, 1],
        "the generation that it began with"
    );
    assert!(
        last_use(&sidecar).await.unwrap() > before,
        "evidence against disabling version 1"
    );
}

#[tokio::test(start_paused = true)]
async fn a_running_batch_fails_once_its_version_is_disabled() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    // One encrypts under a version that is then disabled, and one only decrypts.
    let (sender, body) = channel();
    sender
        .send(Ok(Bytes::from(request(&[b"before"]))))
        .await
        .unwrap();
    let mut client = sidecar.client().await;
    let mut answer = client
        .open(Method::POST, "/v1/keyrings/demo/encrypt", &[BATCH], body)
        .await
        .unwrap()
        .into_body();
    let sealed = results(&answer.frame().await.unwrap().unwrap().into_data().unwrap())
        .remove(0)
        .unwrap();
    rotate(&world).await;
    disable(&world, 1).await;
    sidecar.wait_generation(4).await;
    sender
        .send(Ok(Bytes::from(frame(&[b"after"]))))
        .await
        .unwrap();
    assert!(
        answer.frame().await.unwrap().is_err(),
        "nothing is encrypted under a disabled version"
    );
    // The generation with which the batch began would still have decrypted it; the active one
    // refuses.
    assert_eq!(
        sidecar.client().await.decrypt(&sealed).await.problem(),
        "key_version_disabled"
    );
    sidecar
        .wait_metric(concat!(
            "sidekey_requests_total{keyring=\"demo\",operation=\"encrypt\",",
            "code=\"key_version_disabled\"} 1"
        ))
        .await;
}

#[tokio::test(start_paused = true)]
async fn batch_ciphertexts_decrypt_through_every_api() {
    let world = World::with_demo().await;
    let sidecar = world.start_with("[limits]\nbody = 1000\n", &["demo"]).await;
    let mut client = sidecar.client().await;
    let aad = vec![7; 40];
    let results = batch(
        &mut client,
        "encrypt",
        &[],
        with_aad(&[(&aad, &[1; 1000]), (&aad, &[1; 1001]), (&[0; 65_537], b"")]),
    )
    .await;
    assert_eq!(
        (&results[1], &results[2]),
        (&Err("body_too_large".into()), &Err("body_too_large".into()))
    );
    let longest = results[0].as_ref().unwrap();
    assert_eq!(
        batch(&mut client, "decrypt", &[], with_aad(&[(&aad, longest)])).await,
        [Ok(vec![1; 1000])]
    );
    assert_eq!(
        batch(&mut client, "rewrap", &[], with_aad(&[(&aad, longest)])).await[0]
            .as_ref()
            .unwrap()
            .len(),
        longest.len()
    );
    // A plaintext of the same length in a stream, which is longer than a message.
    let response = client
        .open(
            Method::POST,
            "/v1/keyrings/demo/encrypt",
            &[OCTETS],
            unannounced(vec![1; 1000]),
        )
        .await
        .unwrap();
    let stream = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        batch(&mut client, "decrypt", &[], request(&[&stream])).await,
        [Ok(vec![1; 1000])]
    );
    // JSON accepts no plaintext that is too long for a message.
    let plaintext = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [1; 1001]);
    assert_eq!(
        client
            .json("encrypt", serde_json::json!({ "plaintext": plaintext }))
            .await
            .problem(),
        "body_too_large"
    );
}
