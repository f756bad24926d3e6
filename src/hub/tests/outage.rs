//! A database that fails while the hub runs.

use sqlx::{Connection, SqliteConnection};

use super::*;

#[tokio::test]
async fn nothing_is_acknowledged_or_judged_while_the_database_fails() {
    let world = World::with("[[workload]]\nname = \"orders\"\nkeyrings = [\"demo\"]").await;
    let sidecar = TestSidecar::orders(1);
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    rename(&world, "instances", "away").await;
    let body = sidecar.report(2).to_string();
    let signature = sidecar.key.sign(&[REPORT_DOMAIN, body.as_bytes()].concat());
    let headers = [(SIGNATURE_HEADER, &*STANDARD.encode(signature))];
    let response = world
        .send(ORDERS, Method::POST, "/v1/reports", &headers, body)
        .await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "5");
    assert_eq!(code(parts(response).await), "database_unavailable");
    let question = json!({
        "name": "demo", "id": KEYRING_ID, "version": 1, "class": "live", "quiet_period": "1d",
        "superseded_at": "2026-11-30T12:00:00Z", "generation": 1,
        "encrypt_lease": "1d",
    });
    let evidence = world.post(OPERATOR, "/v1/evidence", &question).await;
    assert_eq!(code(evidence), "database_unavailable");
    let barrier = world
        .post(OPERATOR, "/v1/barriers", &json!({"wait_seconds": 0}))
        .await;
    assert_eq!(code(barrier), "database_unavailable");
    let (status, _) = world.get("", "/healthz").await;
    assert_eq!(status, StatusCode::OK);
    let metric = async |name: &str| {
        let response = world.send(VIEWER, Method::GET, "/metrics", &[], "").await;
        let text = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let text = String::from_utf8(text.to_vec()).expect("text");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("a metric").to_owned()
    };
    assert_ne!(metric("sidekey_hub_store_failures_total").await, "0");

    rename(&world, "away", "instances").await;
    assert_eq!(world.report(&sidecar, 2).await, "ok");
    assert_eq!(metric("sidekey_hub_store_up").await, "1");
    let (status, verdict) = world.post(OPERATOR, "/v1/evidence", &question).await;
    assert_eq!(status, StatusCode::OK, "{verdict}");
}

async fn rename(world: &World, from: &str, to: &str) {
    let file = world.folder.path().join("state/hub.db");
    let url = format!("sqlite:{}", file.display());
    let mut connection = SqliteConnection::connect(&url).await.expect("connect");
    let sql = format!("ALTER TABLE {from} RENAME TO {to}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .expect("renamed");
}
