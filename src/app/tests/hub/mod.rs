//! A sidecar that has joined a hub.

mod asked;
mod stages;

use std::{fs, time::Duration};

use crate::{
    admin::Takeover,
    app::testing::{DAY, FakeHub, HOUR, MINUTE, SECOND, TestApp, World},
    backend::Kek,
    crypto::{Dek, WrapContext, to_hex},
    keyring::{self, Document, Evidence, Policy},
    model::Span,
    wire::hub::{KeyringUsage, Report},
};

/// A sidecar that serves `demo` and has sent its first report.
async fn joined(world: &World, hub: &FakeHub) -> TestApp {
    let app = world.start_with(&hub.config(""), &["demo"]).await;
    world
        .wait("a report with the keyring", || {
            hub.reports()
                .last()
                .is_some_and(|last| !last.usage.is_empty())
        })
        .await;
    app
}

/// Waits until `is_there`, while minutes pass.
async fn eventually(world: &World, what: &str, is_there: impl Fn() -> bool) {
    for round in 0..3000 {
        if is_there() {
            return;
        }
        world.advance(SECOND).await;
        // The machine may be busy, and the network is a real one.
        let pause = if round < 300 { 1 } else { 10 };
        std::thread::sleep(Duration::from_millis(pause));
    }
    panic!("{what}: {}", world.log());
}

/// Waits until the sidecar serves at least `generation`.
async fn serves(world: &World, app: &TestApp, generation: u64) {
    let is_served = || app.generation() >= Some(generation);
    eventually(world, "a generation", is_served).await;
}

/// Waits until the last report has these uses.
async fn reported(world: &World, hub: &FakeHub, expected: &[(u32, u64, u64, u64)]) -> Report {
    let is_there = || uses(&hub.last_report()) == expected;
    eventually(world, "a report with all uses", is_there).await;
    hub.last_report()
}

fn demo(report: &Report) -> &KeyringUsage {
    &report.usage[0]
}

/// Encrypted, decrypted and refused, by version.
fn uses(report: &Report) -> Vec<(u32, u64, u64, u64)> {
    let versions = demo(report).versions.iter();
    versions
        .map(|uses| (uses.version, uses.encrypted, uses.decrypted, uses.refused))
        .collect()
}

/// Opens a version's key, as the signer does.
async fn dek(world: &World, number: u32) -> Dek {
    let bytes = world.store("demo").get().expect("a manifest");
    let document = Document::parse(bytes).expect("valid");
    let manifest = document.manifest();
    let mut versions = manifest.versions.iter();
    let version = versions.find(|version| version.version == number);
    let context = WrapContext {
        keyring: manifest.id,
        version: number,
    };
    let wrap = &version.expect("it is listed").wraps[0].ciphertext.0;
    world
        .main_kek()
        .unwrap(wrap, context)
        .await
        .expect("its key")
}

#[tokio::test(start_paused = true)]
async fn reports_say_what_the_process_used_since_its_start() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    let instance = app.status().await["instance"].as_str().unwrap().to_owned();
    assert_eq!(hub.last_stream(), format!("/v1/stream?instance={instance}"));
    let mut client = app.client().await;
    let ciphertext = client.encrypt(b"x").await.ok().body;
    for _ in 0..2 {
        client.decrypt(&ciphertext).await.ok();
    }
    reported(&world, &hub, &[(1, 1, 2, 0)]).await;
    client.decrypt(&ciphertext).await.ok();
    let report = reported(&world, &hub, &[(1, 1, 3, 0)]).await;

    assert_eq!(
        (report.name.as_str(), report.workload.as_str()),
        ("one", "shop")
    );
    assert_eq!(to_hex(&report.instance), instance);
    assert!(!report.is_final && report.answers.is_none());
    assert_eq!(report.status.keyrings[0].name, "demo".parse().unwrap());
    assert!(report.status.ready);
    let usage = demo(&report);
    assert_eq!(usage.mac_version, Some(1));
    let key = dek(&world, 1).await.report_key();
    assert!(key.verify(report.instance, report.sequence, false, usage));
    assert!(!key.verify(report.instance, report.sequence + 1, false, usage));

    let status = &app.status().await["hub"];
    assert!(status["connected_since"].is_string() && status["last_report"].is_string());
    assert!(status["last_error"].is_null(), "{status}");
    let (_, metrics) = app.ops("/metrics").await;
    assert!(metrics.contains("sidekey_hub_connected 1\n"), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_and_a_refused_use_are_reported_at_once() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    let mut client = app.client().await;
    let ciphertext = client.encrypt(b"x").await.ok().body;
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.unwrap();
    let report = reported(&world, &hub, &[(1, 1, 0, 0), (2, 0, 0, 0)]).await;
    serves(&world, &app, 3).await;
    assert!(demo(&report).generation >= 2);

    let evidence = Evidence::Override("test".into());
    admin
        .change(|current, now| keyring::disable(current, 1, &evidence, now))
        .await
        .unwrap();
    serves(&world, &app, 4).await;
    let is_there = || demo(&hub.last_report()).generation == 4;
    eventually(&world, "the generation", is_there).await;
    let before = hub.reports().len();
    for _ in 0..20 {
        let refused = client.decrypt(&ciphertext).await;
        assert_eq!(refused.problem(), "key_version_disabled");
    }
    world.advance(2 * SECOND).await;
    let report = reported(&world, &hub, &[(1, 1, 0, 20), (2, 0, 0, 0)]).await;
    assert_eq!(demo(&report).mac_version, Some(2));
    let sent = hub.reports().len() - before;
    assert!((1..=4).contains(&sent), "once a second at most: {sent}");
    let versions = &app.keyring().await["active"]["versions"];
    assert_eq!(versions[0]["uses"]["refused"], 20);
    assert!(report.status.keyrings[0].active.is_some());
}

#[tokio::test(start_paused = true)]
async fn versions_that_were_destroyed_and_trimmed_stay_in_reports() {
    let world = World::new();
    let policy = Policy {
        encrypt_lease: Span::from_secs(3600),
        destroy_after: Span::from_secs(3600),
        ..Policy::default()
    };
    world.init_with("demo", policy).await;
    let hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    let mut client = app.client().await;
    let ciphertext = client.encrypt(b"x").await.ok().body;
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.unwrap();
    let evidence = Evidence::Override("test".into());
    admin
        .change(|current, now| keyring::disable(current, 1, &evidence, now))
        .await
        .unwrap();
    world.clock().advance(HOUR);
    let no_backup = Some("there is no backup of version 1 of demo");
    admin.destroy(1, no_backup).await.unwrap();
    serves(&world, &app, 5).await;
    let before = world.now() + HOUR;
    world.clock().advance(500 * DAY);
    admin.trim(before).await.unwrap();
    app.refresh();
    serves(&world, &app, 6).await;
    let gone = client.decrypt(&ciphertext).await;
    assert_eq!(gone.problem(), "key_version_destroyed");
    reported(&world, &hub, &[(1, 1, 0, 1), (2, 0, 0, 0)]).await;
    let active = &app.keyring().await["active"];
    assert_eq!(active["versions"].as_array().unwrap().len(), 1, "{active}");
}

#[tokio::test(start_paused = true)]
async fn without_its_hub_a_sidecar_serves_as_before_and_joins_again() {
    let world = World::with_demo().await;
    let mut hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    let mut client = app.client().await;
    let ciphertext = client.encrypt(b"x").await.ok().body;
    hub.go_down();
    world.advance(10 * MINUTE).await;
    assert_eq!(app.ops("/readyz").await.0, 200);
    // Its former connection was idle for too long.
    let mut client = app.client().await;
    client.decrypt(&ciphertext).await.ok();
    client.encrypt(b"x").await.ok();
    let status = &app.status().await["hub"];
    assert!(status["connected_since"].is_null() && status["last_report"].is_string());
    assert_eq!(status["last_error"]["code"], "hub_unreachable");
    let (_, metrics) = app.ops("/metrics").await;
    assert!(metrics.contains("sidekey_hub_connected 0\n"), "{metrics}");

    hub.come_back().await;
    reported(&world, &hub, &[(1, 2, 1, 0)]).await;
    let log = world.log();
    assert_eq!(log.matches("not connected to the hub").count(), 1, "{log}");
    assert_eq!(log.matches("connected to the hub").count(), 3, "{log}");
    let status = &app.status().await["hub"];
    assert!(status["last_error"].is_null(), "{status}");
}

#[tokio::test(start_paused = true)]
async fn a_token_is_read_again_for_every_request() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    fs::write(world.path("token"), "first\n").unwrap();
    let config = hub.config("token_file = \"token\"");
    let app = world.start_with(&config, &["demo"]).await;
    world.wait("a report", || !hub.reports().is_empty()).await;
    assert_eq!(hub.last_token(), "Bearer first");
    fs::write(world.path("token"), "second\n").unwrap();
    let is_there = || hub.last_token() == "Bearer second";
    eventually(&world, "the next token", is_there).await;

    // Without one, nothing is sent, and the sidecar goes on.
    fs::write(world.path("token"), "").unwrap();
    world.advance(13 * SECOND).await;
    app.wait_status("the file's fault", |status| {
        status["hub"]["last_error"]["code"] == "hub_files"
    })
    .await;
    fs::write(world.path("token"), "third").unwrap();
    let is_there = || hub.last_token() == "Bearer third";
    eventually(&world, "the last token", is_there).await;
    assert!(!world.log().contains("third"));
}
