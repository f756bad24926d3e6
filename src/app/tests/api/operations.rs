//! Encryption, decryption, rewrapping and keyrings, as applications use them.

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use serde_json::json;

use super::rotate;
use crate::{
    admin::Takeover,
    app::testing::{JSON, OCTETS, World},
};

#[tokio::test(start_paused = true)]
async fn decryption_requires_the_same_aad() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let aad = STANDARD.encode("row 7");
    let bound = [OCTETS, ("sidekey-aad", aad.as_str())];
    for plaintext in [vec![], b"Ada".to_vec(), vec![7; 1 << 20]] {
        let encrypted = client
            .post("/v1/keyrings/demo/encrypt", &bound, plaintext.clone())
            .await
            .ok();
        assert_eq!(encrypted.version(), 1);
        assert_eq!(encrypted.headers["cache-control"], "no-store");
        assert_eq!(encrypted.body.len(), plaintext.len() + 49);
        let decrypted = client
            .post("/v1/keyrings/demo/decrypt", &bound, encrypted.body.clone())
            .await
            .ok();
        assert_eq!(
            (&decrypted.body[..], decrypted.version()),
            (&plaintext[..], 1)
        );
        assert_eq!(
            client.decrypt(&encrypted.body).await.problem(),
            "decryption_failed"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn json_and_octets_carry_the_same_message() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let encrypted = client
        .json(
            "encrypt",
            json!({ "plaintext": STANDARD.encode("Ada"), "aad": STANDARD.encode("row") }),
        )
        .await
        .ok()
        .json();
    assert_eq!(encrypted["key_version"], 1);
    let text = encrypted["ciphertext"].as_str().unwrap();
    let decrypted = client
        .json("decrypt", json!({ "ciphertext": text, "aad": "cm93" }))
        .await
        .ok()
        .json();
    assert_eq!(
        decrypted,
        json!({ "plaintext": STANDARD.encode("Ada"), "key_version": 1 })
    );
    let message = crate::crypto::from_text(text).unwrap();
    let octets = client
        .post(
            "/v1/keyrings/demo/decrypt",
            &[OCTETS, ("sidekey-aad", "cm93")],
            message,
        )
        .await
        .ok();
    assert_eq!(&octets.body[..], b"Ada");
    // Languages differ in whether they pad.
    let unpadded = client
        .json("encrypt", json!({ "plaintext": "QQ" }))
        .await
        .ok()
        .json();
    let back = client
        .json("decrypt", json!({ "ciphertext": unpadded["ciphertext"] }))
        .await
        .ok()
        .json();
    assert_eq!(back["plaintext"], "QQ==");
}

#[tokio::test(start_paused = true)]
async fn a_bad_item_of_a_batch_fails_alone() {
    let world = World::with_demo().await;
    world.init("other").await;
    let sidecar = world.start_with("", &["demo", "other"]).await;
    let mut client = sidecar.client().await;
    let batch =
        json!({ "batch": [{ "plaintext": "QWRh", "aad": "MQ==" }, { "plaintext": "R3JhY2U=" }] });
    let encrypted = client.json("encrypt", batch).await.ok();
    assert_eq!(encrypted.version(), 1);
    let encrypted = encrypted.json();
    let good = &encrypted["batch"][0]["ciphertext"];
    let foreign = client
        .post(
            "/v1/keyrings/other/encrypt",
            &[JSON],
            json!({ "plaintext": "" }).to_string(),
        )
        .await
        .ok()
        .json();
    let mixed = json!({ "batch": [
        { "ciphertext": good, "aad": "MQ==" },
        { "ciphertext": good },
        { "ciphertext": "garbage" },
        { "ciphertext": foreign["ciphertext"] },
        { "cipher": good },
        7,
        { "ciphertext": encrypted["batch"][1]["ciphertext"], "aad": "" },
    ] });
    let answer = client.json("decrypt", mixed).await.ok().json();
    let items = answer["batch"].as_array().unwrap();
    assert_eq!(items[0], json!({ "plaintext": "QWRh", "key_version": 1 }));
    assert_eq!(
        items[6],
        json!({ "plaintext": "R3JhY2U=", "key_version": 1 })
    );
    let codes: Vec<_> = items[1..6]
        .iter()
        .map(|item| item["error"]["code"].as_str().unwrap())
        .collect();
    assert_eq!(
        codes,
        [
            "decryption_failed",
            "malformed_ciphertext",
            "wrong_keyring",
            "invalid_request",
            "invalid_request"
        ]
    );
    let metrics = sidecar.ops("/metrics").await.1;
    let counted = "sidekey_batch_item_errors_total{keyring=\"demo\",\
                   operation=\"decrypt\",code=\"wrong_keyring\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn rewrap_moves_a_ciphertext_to_the_primary() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let old = client
        .post(
            "/v1/keyrings/demo/encrypt",
            &[OCTETS, ("sidekey-aad", "cm93")],
            "Ada",
        )
        .await
        .ok();
    rotate(&world).await;
    sidecar.wait_generation(3).await;
    let new = client
        .post(
            "/v1/keyrings/demo/rewrap",
            &[OCTETS, ("sidekey-aad", "cm93")],
            old.body.clone(),
        )
        .await
        .ok();
    assert_eq!((new.version(), new.body.len()), (2, old.body.len()));
    let text = crate::crypto::to_text(&old.body);
    let from_json = client
        .json(
            "rewrap",
            json!({ "batch": [{ "ciphertext": text, "aad": "cm93" }] }),
        )
        .await
        .ok();
    assert_eq!(from_json.version(), 2);
    assert_eq!(from_json.json()["batch"][0]["key_version"], 2);
    for message in [old.body, new.body] {
        assert_eq!(
            client
                .post(
                    "/v1/keyrings/demo/decrypt",
                    &[OCTETS, ("sidekey-aad", "cm93")],
                    message
                )
                .await
                .ok()
                .body,
            "Ada"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn keyrings_show_roles_but_no_keys() {
    let world = World::with_demo().await;
    world
        .admin("demo")
        .rotate(&[], Takeover::Later)
        .await
        .expect("rotated");
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let one = client
        .send(Method::GET, "/v1/keyrings/demo", &[], "")
        .await
        .ok()
        .json();
    assert_eq!(
        (&one["primary"], &one["wave"], &one["generation"]),
        (&json!(1), &json!("standard"), &json!(2))
    );
    let roles: Vec<_> = one["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| version["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["primary", "pending"]);
    let all = client
        .send(Method::GET, "/v1/keyrings", &[], "")
        .await
        .ok()
        .json();
    assert_eq!(all["keyrings"], json!([one]));
}

#[tokio::test(start_paused = true)]
async fn http2_carries_many_requests_on_one_connection() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let client = sidecar.http2().await;
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..50u8 {
        let mut client = client.again();
        tasks.spawn(async move {
            let encrypted = client.encrypt(&vec![index; 2000]).await.ok();
            assert_eq!(
                client.decrypt(&encrypted.body).await.ok().body,
                vec![index; 2000]
            );
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn pipelined_responses_are_in_order() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut connection = sidecar.raw().await;
    let request = |body: &str, last: bool| {
        let connection = if last { "Connection: close\r\n" } else { "" };
        format!(
            "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
             {connection}Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n\
             {body}",
            body.len()
        )
    };
    let all = [
        request("a", false),
        request("bb", false),
        request("ccc", true),
    ]
    .concat();
    connection.write(all).await;
    let text = connection.rest().await;
    let lengths: Vec<_> = text
        .match_indices("content-length: ")
        .map(|(at, prefix)| text[at + prefix.len()..].split("\r\n").next().unwrap())
        .collect();
    assert_eq!(lengths, ["50", "51", "52"]);
}
