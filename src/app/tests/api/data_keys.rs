//! Data keys: who may request them, and what they are bound to.

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{Method, StatusCode};
use serde_json::json;

use crate::app::testing::{JSON, World};

const PATH: &str = "/v1/keyrings/demo/data-key";

/// Returns a policy that allows the tests' own user these operations.
fn rule(operations: &str) -> String {
    let me = rustix::process::geteuid().as_raw();
    format!("[[policy]]\nkeyrings = \"*\"\noperations = {operations}\nuids = [{me}]\n")
}

#[tokio::test(start_paused = true)]
async fn data_keys_require_an_explicit_rule() {
    let world = World::with_demo().await;
    for config in [String::new(), rule("\"*\"")] {
        let sidecar = world.start_with(&config, &["demo"]).await;
        let answer = sidecar.client().await.post(PATH, &[], "").await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (StatusCode::FORBIDDEN, "forbidden")
        );
        assert!(
            answer.json()["detail"]
                .as_str()
                .unwrap()
                .contains("must name")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_data_key_is_fresh_and_bound_to_its_aad() {
    let world = World::with_demo().await;
    let config = rule("[\"data-key\", \"decrypt\"]");
    let sidecar = world.start_with(&config, &["demo"]).await;
    let mut client = sidecar.client().await;
    let answer = client
        .post(PATH, &[JSON], r#"{"aad": "ZmlsZQ=="}"#)
        .await
        .ok();
    assert_eq!(answer.version(), 1);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let key = answer.json();
    let plain = STANDARD.decode(key["plaintext"].as_str().unwrap()).unwrap();
    assert_eq!((plain.len(), &key["key_version"]), (32, &json!(1)));
    let unseal = |aad: &str| json!({ "ciphertext": key["ciphertext"], "aad": aad });
    assert_eq!(
        client.json("decrypt", unseal("ZmlsZQ==")).await.ok().json()["plaintext"],
        key["plaintext"]
    );
    assert_eq!(
        client.json("decrypt", unseal("")).await.problem(),
        "decryption_failed"
    );
    // Fresh every time; without a body it isn't bound to any AAD.
    let second = client.post(PATH, &[], "").await.ok().json();
    assert_ne!(second["plaintext"], key["plaintext"]);
    let sealed = json!({ "ciphertext": second["ciphertext"] });
    let unsealed = client.json("decrypt", sealed).await.ok().json();
    assert_eq!(unsealed["plaintext"], second["plaintext"]);
}

#[tokio::test(start_paused = true)]
async fn invalid_requests_for_data_keys_are_rejected() {
    let world = World::with_demo().await;
    let config = rule("[\"data-key\"]");
    let sidecar = world.start_with(&config, &["demo"]).await;
    let mut client = sidecar.client().await;
    for body in ["{\"aad\": 7}", "{\"add\": \"\"}", "[]"] {
        assert_eq!(
            client.post(PATH, &[JSON], body).await.problem(),
            "invalid_request"
        );
    }
    assert_eq!(
        client.post(PATH, &[], "x").await.problem(),
        "unsupported_media_type"
    );
    assert_eq!(
        client
            .post(PATH, &[("sidekey-aad", "cm93IDc=")], "")
            .await
            .problem(),
        "invalid_request"
    );
    let get = client.send(Method::GET, PATH, &[], "").await;
    assert_eq!(
        (get.status, get.problem().as_str()),
        (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
    );
}
