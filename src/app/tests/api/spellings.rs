//! Requests as clients write them: everything with one meaning is accepted.

use hyper::Method;
use serde_json::json;

use crate::app::testing::{JSON, World};

const SECRET: &str = "[[secret]]\nname = \"team-a.b_c\"\nsource = \"file:a\"\n";

#[tokio::test(start_paused = true)]
async fn a_target_may_be_percent_encoded_or_absolute() {
    let world = World::with_demo().await;
    world.secret("file:a").rotate("1", "value");
    let app = world.start_with(SECRET, &["demo"]).await;
    for target in [
        "/v1/secrets/team%2Da%2Eb%5Fc",
        "http://sidekey/v1/secrets/team-a.b_c",
        "HTTP://any.host:1/v1/secrets/team-a.b%5fc?stage=current",
    ] {
        let mut connection = app.raw().await;
        let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        connection.write(head).await;
        let response = connection.rest().await;
        assert!(
            response.starts_with("HTTP/1.1 200 OK"),
            "{target}: {response}"
        );
    }
    let mut client = app.client().await;
    let sealed = client
        .post(
            "/v1/keyrings/d%65mo/encrypt",
            &[JSON],
            r#"{"plaintext": "QWRh"}"#,
        )
        .await;
    sealed.ok();
}

#[tokio::test(start_paused = true)]
async fn head_describes_what_get_returns_and_hands_out_nothing() {
    let world = World::with_demo().await;
    world.secret("file:a").rotate("1", "value");
    let app = world.start_with(SECRET, &["demo"]).await;
    let paths = [
        "/v1/secrets/team-a.b_c",
        "/v1/secrets",
        "/v1/keyrings",
        "/v1/keyrings/demo",
        "/v1/keyrings/none",
        "/v1/openapi.json",
    ];
    for mut client in [app.client().await, app.http2().await] {
        for path in paths {
            let head = client.send(Method::HEAD, path, &[], "").await;
            assert!(head.body.is_empty(), "{path}");
            let get = client.get(path).await;
            assert_eq!(head.status, get.status, "{path}");
            for name in ["content-type", "content-length", "etag", "cache-control"] {
                assert_eq!(
                    head.headers.get(name),
                    get.headers.get(name),
                    "{path}: {name}"
                );
            }
            assert_eq!(
                head.headers["content-length"],
                get.body.len().to_string().as_str()
            );
        }
        let events = client.send(Method::HEAD, "/v1/events", &[], "").await.ok();
        assert_eq!(events.headers["content-type"], "text/event-stream");
    }
    let status = app.secret("team-a.b_c").await;
    assert_eq!(status["versions"][0]["uses"], 2, "{status}");
}

#[tokio::test(start_paused = true)]
async fn base64_may_be_url_safe_unpadded_and_broken_into_lines() {
    let world = World::with_demo().await;
    let app = world.start_with("", &["demo"]).await;
    let mut client = app.client().await;
    for (plaintext, aad) in [
        ("+//+AQ==", "cm93ID4+"),
        ("-__-AQ", "cm93ID4-"),
        ("+//+\r\nAQ==\r\n", "cm93\nID4+\n"),
    ] {
        let sealed = client
            .json("encrypt", json!({"plaintext": plaintext, "aad": aad}))
            .await
            .ok()
            .json();
        let ciphertext = format!("{}\n", sealed["ciphertext"].as_str().unwrap());
        let item = json!({"ciphertext": ciphertext, "aad": "cm93ID4-"});
        let opened = client.json("decrypt", item).await.ok().json();
        assert_eq!(opened["plaintext"], "+//+AQ==");
    }
    let mixed = json!({"plaintext": "+//-", "aad": null});
    let refused = client.json("encrypt", mixed).await.json();
    assert_eq!(
        refused["detail"],
        "`plaintext` is not base64: expected RFC 4648 in the standard or the URL-safe alphabet, \
         not in both"
    );
    let octets = ("content-type", "application/octet-stream");
    let path = "/v1/keyrings/demo/encrypt";
    for (aad, status) in [("cm93ID4-", 200), ("cm93 ID4+", 200), ("cm93ID4.", 400)] {
        let answer = client
            .post(path, &[octets, ("sidekey-aad", aad)], "x")
            .await;
        assert_eq!(answer.status, status, "{aad}: {:?}", answer.body);
    }
}

#[tokio::test(start_paused = true)]
async fn null_and_a_byte_order_mark_mean_nothing() {
    let world = World::with_demo().await;
    let app = world.start_with("", &["demo"]).await;
    let mut client = app.client().await;
    let path = "/v1/keyrings/demo/encrypt";
    for body in [
        "{\"plaintext\": \"QWRh\", \"aad\": null, \"batch\": null}",
        "\u{feff}{\"plaintext\": \"QWRh\"}",
        "{\"batch\": [{\"plaintext\": \"QWRh\", \"aad\": null}], \"plaintext\": null}",
    ] {
        let answer = client.post(path, &[JSON], body).await.ok();
        let json = answer.json().to_string();
        assert!(json.contains("sk1."), "{body}: {json}");
    }
}
