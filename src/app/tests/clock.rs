//! Machines that sleep, and clocks that are set.

use crate::{
    app::testing::{DAY, HOUR, MINUTE, SECOND, World},
    keyring::Policy,
    model::Span,
};

#[tokio::test(start_paused = true)]
async fn after_sleep_no_dead_lease_counts_and_everything_is_read_again() {
    let world = World::with_demo().await;
    let source = world.secret("file:db");
    let lease = source.lease(10 * MINUTE);
    source.rotate("1", "old");
    let config = "[secrets]\nrefresh = \"1d\"\n[refresh]\npoll = \"1d\"\n\
                  [[secret]]\nname = \"db\"\nsource = \"file:db\"\n";
    let sidecar = world.start_with(config, &["demo"]).await;
    let mut client = sidecar.client().await;
    let db = "/v1/secrets/db";
    assert_eq!(client.get(db).await.ok().json()["version"], "1");

    world.clock().sleep(40 * DAY);
    lease.end();
    // No timer has fired yet.
    assert_eq!(client.get(db).await.problem(), "provider_unavailable");
    assert_eq!(client.encrypt(b"x").await.problem(), "lease_expired");
    source.lease(10 * MINUTE);
    source.rotate("2", "new");
    world.advance(2 * SECOND).await;
    assert_eq!(client.get(db).await.ok().json()["version"], "2");
    client.encrypt(b"x").await.ok();
    sidecar
        .wait_metric("sidekey_clock_jumps_total{kind=\"slept\"} 1")
        .await;
    assert!(world.log().contains("the machine was suspended"));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_is_reported_and_everything_is_read_again() {
    let world = World::with_demo().await;
    let source = world.secret("file:db");
    source.rotate("1", "value");
    let config = "[secrets]\nrefresh = \"1d\"\n[refresh]\npoll = \"1d\"\n\
                  [[secret]]\nname = \"db\"\nsource = \"file:db\"\n";
    let sidecar = world.start_with(config, &["demo"]).await;
    world.advance(MINUTE).await;
    for (kind, words) in [("forward", "jumped forward"), ("back", "was set back")] {
        let (reads, fetches) = (world.store("demo").reads(), source.fetches());
        match kind {
            "forward" => world.clock().advance(HOUR),
            _ => world.clock().go_back(2 * HOUR),
        }
        world.advance(2 * SECOND).await;
        assert_eq!(world.store("demo").reads(), reads + 1, "{kind}");
        assert_eq!(source.fetches(), fetches + 1, "{kind}");
        let metric = format!("sidekey_clock_jumps_total{{kind=\"{kind}\"}} 1");
        sidecar.wait_metric(&metric).await;
        assert!(world.log().contains(words), "{}", world.log());
        // Also before the time at which the primary was activated.
        sidecar.client().await.encrypt(b"x").await.ok();
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_extends_no_encrypt_lease() {
    let world = World::new();
    let policy = Policy {
        encrypt_lease: Span(30 * HOUR),
        ..Policy::default()
    };
    world.init_with("demo", policy).await;
    let sidecar = world.start().await;
    world.store("demo").fail();
    world.clock().go_back(365 * DAY);
    world.advance(29 * HOUR).await;
    sidecar.client().await.encrypt(b"x").await.ok();
    world.advance(2 * HOUR).await;
    let refused = sidecar.client().await.encrypt(b"x").await;
    assert_eq!(refused.problem(), "lease_expired");
}
