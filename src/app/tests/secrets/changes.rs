//! How secrets follow their sources.

use super::{entry, get, get_bytes, text};
use crate::{
    app::testing::{HOUR, MINUTE, SECOND, World},
    backend::ErrorKind,
};

#[tokio::test(start_paused = true)]
async fn a_rotation_is_noticed_at_once_and_the_previous_value_is_kept() {
    let world = World::new();
    let source = world.secret("file:db");
    source.rotate("1", "old");
    let config = entry("db", "file:db", "required = true\nprevious_ttl = \"1h\"");
    let sidecar = world.start_with(&config, &[]).await;
    let mut client = sidecar.client().await;
    assert_eq!(get(&mut client, "db").await.ok().json()["version"], "1");
    source.rotate("2", "new");
    sidecar
        .wait_secret("db", |secret| secret["version"] == "2")
        .await;
    assert_eq!(text(&mut client, "db").await, "new");
    assert_eq!(text(&mut client, "db?stage=previous").await, "old");
    let by_version = get(&mut client, "db?version=1").await.ok().json();
    assert_eq!(
        (&by_version["value"], &by_version["stage"]),
        (&"old".into(), &"previous".into())
    );
    let status = sidecar.secret("db").await;
    assert_eq!(status["previous"], "1");
    let uses: Vec<_> = status["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| version["uses"].clone())
        .collect();
    assert_eq!(uses, [3, 1], "the evidence");
    let metrics = sidecar.ops("/metrics").await.1;
    for line in [
        "sidekey_secret_version_uses_total{secret=\"db\",version=\"1\"} 3",
        "sidekey_secret_version_info{secret=\"db\",version=\"1\",stage=\"previous\"} 1",
        "sidekey_secret_requests_total{secret=\"db\",code=\"ok\"} 4",
        "sidekey_secret_refresh_failing{secret=\"db\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(!world.log().contains("new value") && !metrics.contains("\"old\""));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_secret_is_gone_and_can_return() {
    let world = World::new();
    let source = world.secret("file:db");
    source.rotate("1", "value");
    let config = entry("db", "file:db", "required = true");
    let sidecar = world.start_with(&config, &[]).await;
    let mut client = sidecar.client().await;
    assert_eq!(text(&mut client, "db").await, "value");
    source.delete();
    // It counts as deleted when it is missing twice.
    world.advance(MINUTE).await;
    assert!(sidecar.secret("db").await["version"].is_null());
    let mut client = sidecar.client().await;
    assert_eq!(get(&mut client, "db").await.problem(), "secret_not_found");
    source.rotate("2", "again");
    sidecar
        .wait_secret("db", |secret| secret["version"].is_string())
        .await;
    assert_eq!(text(&mut client, "db").await, "again");
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_served_as_stale_while_its_source_is_down() {
    let world = World::new();
    let source = world.secret("file:db");
    source.rotate("1", "value");
    let config = entry("db", "file:db", "required = true");
    let sidecar = world.start_with(&config, &[]).await;
    source.fail(ErrorKind::Unavailable);
    world.advance(HOUR).await;
    assert_eq!(
        sidecar.secret("db").await["last_error"]["code"],
        "unavailable"
    );
    let mut client = sidecar.client().await;
    let stale = get_bytes(&mut client, "db").await.ok();
    assert_eq!(
        (&stale.body[..], stale.headers.contains_key("sidekey-stale")),
        (&b"value"[..], true)
    );
    assert_eq!(get(&mut client, "db").await.ok().json()["stale"], true);
    let metrics = sidecar.ops("/metrics").await.1;
    let line = "sidekey_secret_served_stale_total{secret=\"db\"} 2";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn readiness_waits_only_for_required_secrets() {
    let world = World::new();
    let both = entry("must", "file:must", "required = true") + &entry("may", "file:may", "");
    let sidecar = world.launch(&both, &[]).await;
    world.advance(SECOND).await;
    let (status, pending) = sidecar.ops("/readyz").await;
    assert_eq!(status, 503);
    assert!(pending.contains("secret must: file:"), "{pending}");
    assert!(!pending.contains("may"), "{pending}");
    let source = world.secret("file:must");
    source.rotate("1", "value");
    sidecar.wait_ready().await;
    source.delete();
    world.advance(MINUTE).await;
    assert!(sidecar.secret("must").await["version"].is_null());
    assert_eq!(
        sidecar.ops("/readyz").await.0,
        200,
        "a ready sidecar stays ready"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refresh_reads_every_secret() {
    let world = World::new();
    world.secret("file:db").rotate("1", "value");
    let config = entry("db", "file:db", "required = true\nrefresh = \"1d\"");
    let sidecar = world.start_with(&config, &[]).await;
    sidecar.refresh();
    sidecar
        .wait_metric(concat!(
            "sidekey_secret_fetches_total",
            "{secret=\"db\",trigger=\"signal\",result=\"unchanged\"} 1"
        ))
        .await;
}
