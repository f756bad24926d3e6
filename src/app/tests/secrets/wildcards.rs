//! Secrets whose names a wildcard covers.

use super::{entry, get, text};
use crate::app::testing::World;

#[tokio::test(start_paused = true)]
async fn unknown_names_create_no_metrics_and_are_evicted() {
    let world = World::new();
    let mapping = entry("team-*", "file:teams/*", "allow = [\"team-*\"]");
    let config = format!("secrets.wild_names = 5\n{mapping}");
    let sidecar = world.start_with(&config, &[]).await;
    let mut client = sidecar.client().await;
    for number in 0..50 {
        assert_eq!(
            get(&mut client, &format!("team-{number}")).await.problem(),
            "secret_not_found"
        );
    }
    let metrics = sidecar.ops("/metrics").await.1;
    assert!(!metrics.contains("team-"), "{metrics}");
    let line = "sidekey_secret_requests_total{secret=\"\",code=\"secret_not_found\"} 50";
    assert!(metrics.contains(line), "{metrics}");
    for number in 0..5 {
        world
            .secret(&format!("file:teams/{number}"))
            .rotate("1", "value");
        assert_eq!(text(&mut client, &format!("team-{number}")).await, "value");
    }
    world.secret("file:teams/more").rotate("1", "value");
    assert_eq!(get(&mut client, "team-more").await.problem(), "overloaded");
    assert_eq!(text(&mut client, "team-0").await, "value");
}

#[tokio::test(start_paused = true)]
async fn wildcard_names_are_served_if_allowed() {
    let world = World::new();
    for name in ["a", "b-x", "c"] {
        world
            .secret(&format!("file:teams/{name}"))
            .rotate("1", name);
    }
    let mapping = entry(
        "team-*",
        "file:teams/*",
        "allow = [\"team-a\", \"team-b-*\", \"team-none\"]",
    );
    let sidecar = world.start_with(&mapping, &[]).await;
    let mut client = sidecar.client().await;
    assert_eq!(text(&mut client, "team-a").await, "a");
    assert_eq!(text(&mut client, "team-b-x").await, "b-x");
    for (missing, code) in [
        ("team-c", "secret_not_found"),
        ("team-none", "secret_not_found"),
        ("team-..", "secret_not_found"),
        ("team-%2E%2E", "secret_not_found"),
        ("team-b-..%2F..%2Fkek", "invalid_request"),
    ] {
        assert_eq!(get(&mut client, missing).await.problem(), code, "{missing}");
    }
    // It is as fresh as any other secret.
    world.secret("file:teams/a").rotate("2", "new");
    sidecar
        .wait_secret("team-a", |secret| secret["previous"].is_string())
        .await;
    assert_eq!(text(&mut client, "team-a").await, "new");
}
