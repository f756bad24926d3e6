//! What callers can ask for, and what they get.

use std::fs;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::{BYTES, entry, get, get_bytes, text};
use crate::app::testing::World;

const DB: &str = r#"{"user":"ann","password":"p\"w","port":5432}"#;

#[tokio::test(start_paused = true)]
async fn a_secret_is_served_as_json_or_one_of_its_fields() {
    let world = World::new();
    world.secret("file:db").rotate("1", DB);
    world.secret("file:blob").rotate("1", [0, 0xff, 0x80]);
    let both = entry("db", "file:db", "") + &entry("blob", "file:blob", "");
    let sidecar = world.start_with(&both, &[]).await;
    let mut client = sidecar.client().await;

    let answer = get(&mut client, "db").await.ok();
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["cache-control"], "no-store");
    let body = answer.json();
    assert_eq!(body["value"], DB);
    assert_eq!(
        (&body["name"], &body["stage"], &body["stale"]),
        (&"db".into(), &"current".into(), &false.into())
    );
    assert_eq!(
        answer.headers["sidekey-secret-version"],
        body["version"].as_str().unwrap()
    );
    for time in ["created_at", "fetched_at"] {
        let time: jiff::Timestamp = body[time].as_str().unwrap().parse().unwrap();
        assert_eq!(time, world.now());
    }
    assert!(!answer.headers.contains_key("sidekey-stale"));

    let password = get(&mut client, "db?field=password").await.ok().json();
    assert_eq!(password["value"], "p\"w");
    assert_eq!(text(&mut client, "db?field=port").await, "5432");
    for missing in ["db?field=none", "blob?field=a"] {
        assert_eq!(
            get(&mut client, missing).await.problem(),
            "secret_field_not_found"
        );
    }

    let list = client.get("/v1/secrets").await.ok().json();
    let names: Vec<_> = list["secrets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|secret| secret["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["blob", "db"]);
    assert!(!list.to_string().contains("ann"));
}

#[tokio::test(start_paused = true)]
async fn a_field_may_be_nested_decoded_and_trimmed() {
    let world = World::new();
    let value = r#"{"db":{"pass.word":"pw\n"},"store":"AP+A","half":"\ud83d","id":1.10}"#;
    world.secret("file:a").rotate("1", value);
    world.secret("file:b").rotate("1", "cHcK\n");
    let both = entry("a", "file:a", "") + &entry("b", "file:b", "");
    let sidecar = world.start_with(&both, &[]).await;
    let mut client = sidecar.client().await;
    for (path, expected) in [
        (r"a?field=db.pass%5C.word", &b"pw\n"[..]),
        (r"a?field=db.pass%5C.word&trim=newline", b"pw"),
        ("a?field=store&decode=base64", &[0, 255, 128]),
        ("a?field=id", b"1.10"),
        ("b?trim=newline", b"cHcK"),
        ("b?decode=base64", b"pw\n"),
        ("b?decode=base64&trim=newline", b"pw"),
    ] {
        let bytes = get_bytes(&mut client, path).await.ok();
        assert_eq!(&bytes.body[..], expected, "{path}");
    }
    let json = get(&mut client, "b?decode=base64&trim=newline").await.ok();
    assert_eq!(json.json()["value"], "pw");
    let json = get(&mut client, "a?field=store&decode=base64").await.ok();
    assert_eq!(json.json()["value_base64"], "AP+A");
    for (path, code) in [
        ("a?field=db.password", "secret_field_not_found"),
        ("a?field=half", "secret_field_not_found"),
        ("a?field=id&decode=base64", "invalid_request"),
        ("a?decode=base64", "invalid_request"),
    ] {
        let refused = get(&mut client, path).await;
        assert_eq!(refused.problem(), code, "{path}");
        assert!(!String::from_utf8_lossy(&refused.body).contains("1.10"));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_are_served_as_they_are_and_each_form_has_its_entity_tag() {
    let world = World::new();
    world.secret("file:blob").rotate("1", [0, 0xff, 0x80]);
    let sidecar = world.start_with(&entry("blob", "file:blob", ""), &[]).await;
    let mut client = sidecar.client().await;
    assert_eq!(
        get(&mut client, "blob").await.ok().json()["value_base64"],
        "AP+A"
    );
    let bytes = get_bytes(&mut client, "blob").await.ok();
    assert_eq!(
        (
            &bytes.body[..],
            bytes.headers["sidekey-secret-stage"].as_bytes()
        ),
        (&[0, 0xff, 0x80][..], &b"current"[..])
    );
    assert_eq!(bytes.headers["content-type"], "application/octet-stream");

    let tag = bytes.headers["etag"].to_str().unwrap();
    let known = ("if-none-match", tag);
    let path = "/v1/secrets/blob";
    let unchanged = client.send(Method::GET, path, &[BYTES, known], "").await;
    assert_eq!(
        (unchanged.status, unchanged.body.len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
    let json = client.send(Method::GET, path, &[known], "").await;
    assert_eq!(
        json.status,
        StatusCode::OK,
        "another form is a different response"
    );
}

#[tokio::test(start_paused = true)]
async fn invalid_secret_requests_are_rejected() {
    let world = World::new();
    world.secret("file:db").rotate("1", "value");
    let sidecar = world.start_with(&entry("db", "file:db", ""), &[]).await;
    let mut client = sidecar.client().await;
    for (path, code) in [
        ("other", "secret_not_found"),
        ("..%2Fdb", "invalid_request"),
        ("DB", "secret_not_found"),
        ("db/x", "not_found"),
        ("db?stage=next", "invalid_request"),
        ("db?stage=current&version=1", "invalid_request"),
        ("db?verbose=1", "invalid_request"),
        ("db?stage=previous", "secret_not_found"),
        ("db?stage=pending", "secret_not_found"),
        ("db?version=7", "secret_not_found"),
        ("db?min_version=x", "secret_version_unavailable"),
    ] {
        let answer = world.pass_time_until(get(&mut client, path)).await;
        assert_eq!(answer.problem(), code, "{path}");
    }
    assert_eq!(
        client.post("/v1/secrets/db", &[], "").await.problem(),
        "method_not_allowed"
    );
    assert_eq!(text(&mut client, "db").await, "value");
}

#[tokio::test(start_paused = true)]
async fn long_values_are_served_and_oversized_ones_rejected() {
    let world = World::new();
    world.secret("file:huge").rotate("1", "x".repeat(64 << 10));
    world
        .secret("file:long")
        .rotate("1", "x".repeat((256 << 10) + 1));
    let both = entry("huge", "file:huge", "") + &entry("long", "file:long", "");
    let sidecar = world.start_with(&both, &[]).await;
    let mut client = sidecar.client().await;
    assert_eq!(text(&mut client, "huge").await.len(), 64 << 10);
    let huge = get(&mut client, "huge").await.ok().json();
    assert_eq!(huge["value"].as_str().unwrap().len(), 64 << 10);
    assert_eq!(
        get(&mut client, "long").await.problem(),
        "provider_unavailable"
    );
    let error = sidecar.secret("long").await["last_error"].clone();
    assert_eq!(error["code"], "too_long");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("secrets.value_bytes"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn policy_denials_of_secrets_are_counted_and_audited() {
    let world = World::new();
    world.secret("file:mine").rotate("1", "a");
    world.secret("file:yours").rotate("1", "b");
    let config = format!(
        "[audit]\nfile = \"audit.log\"\n{}{}[[policy]]\nsecrets = [\"mine\"]\nuids = [{}]\n",
        entry("mine", "file:mine", ""),
        entry("yours", "file:yours", ""),
        rustix::process::geteuid().as_raw()
    );
    let sidecar = world.start_with(&config, &[]).await;
    let mut client = sidecar.client().await;
    assert_eq!(text(&mut client, "mine").await, "a");
    assert_eq!(get(&mut client, "yours").await.problem(), "forbidden");
    assert_eq!(
        get(&mut client, "nobodys").await.problem(),
        "forbidden",
        "nor does it reveal which secrets exist"
    );
    let list = client.get("/v1/secrets").await.ok().json();
    assert_eq!(list["secrets"].as_array().unwrap().len(), 1);
    assert_eq!(
        client.get("/v1/keyrings").await.ok().json(),
        json!({ "keyrings": [] })
    );
    let metrics = sidecar.ops("/metrics").await.1;
    let line = "sidekey_secret_requests_total{secret=\"yours\",code=\"forbidden\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let has_records = || {
        let log = fs::read_to_string(world.path("audit.log")).unwrap_or_default();
        let records: Vec<Value> = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let has = |event: &str, secret: &str| {
            records.iter().any(|record| {
                record.to_string().contains(&format!("\"{event}\""))
                    && record.to_string().contains(&format!("\"{secret}\""))
            })
        };
        has("secret.in_force", "mine") && has("access.refused", "yours")
    };
    world.wait("the records", has_records).await;
}
