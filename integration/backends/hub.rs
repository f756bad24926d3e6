//! Replicas of a hub on a real PostgreSQL.

use hyper::Method;
use serde_json::{Value, json};

use crate::support::{
    hub::{HubProcess, HubWorld, Reporter},
    postgres::Postgres,
};

const KEYRING_ID: &str = "6aa04d462abfa7a377ccded916eb6fd8";

fn world(postgres: &Postgres) -> HubWorld {
    HubWorld::with(&format!(
        "[[workload]]\nname = \"orders\"\nkeyrings = [\"demo\"]\n[database]\nurl = {:?}\n\
         password_file = {:?}\n",
        postgres.url(),
        postgres.password_file(),
    ))
}

fn usage(decrypted: u64) -> Value {
    json!([{
        "name": "demo", "id": KEYRING_ID, "generation": 2,
        "versions": [
            {"version": 1, "encrypted": 0, "decrypted": decrypted, "refused": 0},
            {"version": 2, "encrypted": 1, "decrypted": 0, "refused": 0},
        ],
    }])
}

/// The reasons against version 1, by code, with their messages.
async fn reasons(hub: &HubProcess) -> Vec<(String, String)> {
    let question = json!({
        "name": "demo", "id": KEYRING_ID, "version": 1, "class": "live", "quiet_period": "1d",
        "superseded_at": "2026-01-01T00:00:00Z", "generation": 2, "encrypt_lease": "1d",
    });
    let verdict = hub.ask(Method::POST, "/v1/evidence", &question).await;
    let verdict = verdict.ok().json();
    let reasons = verdict["workloads"][0]["reasons"].as_array().unwrap();
    let text = |reason: &Value, member: &str| reason[member].as_str().unwrap().to_owned();
    reasons
        .iter()
        .map(|reason| (text(reason, "code"), text(reason, "message")))
        .collect()
}

fn codes(reasons: &[(String, String)]) -> Vec<&str> {
    reasons.iter().map(|(code, _)| code.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_what_they_are_told_and_outlive_each_other_and_the_database() {
    let mut postgres = Postgres::start();
    let world = world(&postgres);
    let (mut first, second) = (world.start(), world.start());
    let (one, two) = (Reporter::new(1), Reporter::new(2));
    one.report_usage(&first, 1, usage(0)).await.ok();
    two.report_usage(&second, 1, usage(0)).await.ok();
    for hub in [&first, &second] {
        assert_eq!(hub.sidecars().await.len(), 2);
        assert_eq!(codes(&reasons(hub).await), ["unwatched", "silent"]);
    }
    // The highest sequence counts, whichever replica took it.
    one.report_usage(&second, 3, usage(5)).await.ok();
    one.report_usage(&first, 2, usage(4)).await.ok();
    let refused = one.report_usage(&first, 3, usage(6)).await;
    assert_eq!(refused.json()["code"], "report_conflict");
    let barrier = json!({ "wait_seconds": 0 });
    let numbers = [
        first.ask(Method::POST, "/v1/barriers", &barrier).await.ok(),
        second
            .ask(Method::POST, "/v1/barriers", &barrier)
            .await
            .ok(),
    ]
    .map(|answer| answer.json()["barrier"].as_u64().unwrap());
    assert!(numbers[0] < numbers[1]);

    first.kill();
    two.report_usage(&second, 2, usage(0)).await.ok();
    let found = reasons(&second).await;
    assert_eq!(codes(&found), ["used", "unwatched", "silent"]);
    // Another replica watched, but one sequence had two contents.
    assert!(!found[1].1.contains("no hub ran"), "{found:?}");
    assert!(
        found[1].1.contains("used a sequence number twice"),
        "{found:?}"
    );

    postgres.stop();
    let refused = two.report_usage(&second, 3, usage(0)).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.problem(), "database_unavailable");
    second.ask(Method::GET, "/healthz", &Value::Null).await.ok();
    postgres.resume();
    two.report_usage(&second, 3, usage(0)).await.ok();
    assert_eq!(second.sidecars().await.len(), 2);
}
