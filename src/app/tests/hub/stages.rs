//! How a membership begins and ends.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_sidecar_starts_without_its_hub() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    hub.go_down();
    let app = world.start_with(&hub.config(""), &["demo"]).await;
    let mut client = app.client().await;
    client.encrypt(b"x").await.ok();
    world.pass_time_until(app.stop()).await;
    assert!(hub.reports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_last_report_comes_after_the_last_use() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    let mut client = app.client().await;
    let ciphertext = client.encrypt(b"x").await.ok().body;
    client.decrypt(&ciphertext).await.ok();
    drop(client);
    world.pass_time_until(app.stop()).await;
    let report = hub.last_report();
    assert!(report.is_final);
    assert_eq!(uses(&report), [(1, 1, 1, 0)]);
    let usage = demo(&report);
    let key = dek(&world, 1).await.report_key();
    assert!(key.verify(report.instance, report.sequence, true, usage));
    world.advance(HOUR).await;
    assert_eq!(
        hub.last_report().sequence,
        report.sequence,
        "nothing follows"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_outlasts_the_drain_is_cut_off_before_the_last_report() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let config = format!(
        "{}[timeouts]\nbody = \"10m\"\ndrain_timeout = \"2s\"\n",
        hub.config("")
    );
    let app = world.start_with(&config, &["demo"]).await;
    world.wait("a report", || !hub.reports().is_empty()).await;
    let mut half = app.raw().await;
    half.write(
        "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: 6\r\n\r\nabc",
    )
    .await;
    world.advance(SECOND).await;
    let stopping = app.begin_stop();
    world.advance(SECOND).await;
    assert!(!hub.last_report().is_final, "a request is in flight");
    world.advance(3 * SECOND).await;
    world.pass_time_until(stopping.over()).await;
    assert!(hub.last_report().is_final);
    assert_eq!(uses(&hub.last_report()), [(1, 0, 0, 0)]);
    assert_eq!(half.rest().await, "", "no answer");
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_costs_the_last_report_nothing() {
    let world = World::with_demo().await;
    let mut hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    hub.break_connections().await;
    world.pass_time_until(app.stop()).await;
    assert!(hub.last_report().is_final);
}

#[tokio::test(start_paused = true)]
async fn a_start_needs_the_files_of_the_hub_and_a_check_finds_them() {
    let world = World::new();
    let hub = |more: &str| format!("[hub]\nworkload = \"w\"\n{more}\n");
    fs::write(world.path("junk"), "x y").unwrap();
    for (config, words) in [
        (
            "url = \"https://hub:1\"\ntoken_file = \"nowhere\"",
            "nowhere: ",
        ),
        (
            "url = \"https://hub:1\"\ntoken_file = \"junk\"",
            "a token must be",
        ),
        (
            "url = \"https://hub:1\"\ntoken_file = \"junk\"\nca_file = \"junk\"",
            "no certificate",
        ),
        (
            "url = \"https://hub:1\"\ncertificate_file = \"junk\"\nkey_file = \"junk\"",
            "no certificate",
        ),
    ] {
        let (fault, found) = world.faults(&hub(config)).await;
        let fault = fault.expect(words);
        assert!(
            fault.starts_with("hub: ") && fault.contains(words),
            "{words}: {fault}"
        );
        assert_eq!(found, [fault]);
    }
    let plain = hub("url = \"http://127.0.0.1:1\"");
    assert_eq!(world.faults(&plain).await, (None, vec![]));
}
