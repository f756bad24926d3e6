//! New versions that wait for their turn, so that a fleet asks its KEKs at a bounded rate.

use serde_json::Value;

use crate::{
    admin::Takeover,
    app::testing::{HOUR, KekCall, MINUTE, SECOND, TestApp, World},
    backend::ErrorKind,
    keyring::{Policy, WaveSelector},
    model::Span,
};

async fn with_a_window() -> World {
    let world = World::new();
    let policy = Policy {
        spread: Some(Span(HOUR)),
        ..Policy::default()
    };
    world.init_with("demo", policy).await;
    world
}

/// Why a version isn't unwrapped, as `/status` says.
async fn unopened(app: &TestApp, version: u32) -> Option<String> {
    let status = app.keyring().await;
    let versions = status["active"]["versions"].as_array().expect("versions");
    let found = versions.iter().find(|found| found["version"] == version);
    found?["unopened"].as_str().map(String::from)
}

/// Rotates until a version comes whose turn isn't now, and returns its number.
async fn waiting_version(world: &World, app: &TestApp) -> u32 {
    for version in 2.. {
        world
            .admin("demo")
            .rotate(&[], Takeover::Later)
            .await
            .expect("rotated");
        app.wait_generation(version.into()).await;
        if let Some(reason) = unopened(app, version).await {
            assert!(reason.contains("its turn is at"), "{reason}");
            return version;
        }
    }
    unreachable!("turns are spread over an hour")
}

fn unwraps(world: &World, number: u32) -> usize {
    let calls = world.main_kek().take_calls();
    let is_unwrap =
        |call: &&KekCall| matches!(call, KekCall::Unwrap { version, .. } if *version == number);
    calls.iter().filter(is_unwrap).count()
}

#[tokio::test(start_paused = true)]
async fn a_new_version_is_unwrapped_at_its_turn_even_if_the_location_is_down() {
    let world = with_a_window().await;
    let app = world.start().await;
    let version = waiting_version(&world, &app).await;
    // To wait is no failure.
    app.wait_ready().await;
    let metrics = app.ops("/metrics").await.1;
    assert!(metrics.contains("sidekey_keyring_unopened_versions{keyring=\"demo\"} 0\n"));
    assert_eq!(app.keyring().await["last_error"], Value::Null);
    assert_eq!(unwraps(&world, version), 0);

    world.store("demo").fail();
    world.advance(HOUR).await;
    world.advance(2 * SECOND).await;
    assert_eq!(unopened(&app, version).await, None);
    assert_eq!(unwraps(&world, version), 1);
    let refreshes = app.ops("/metrics").await.1;
    let turn = "sidekey_refreshes_total{keyring=\"demo\",trigger=\"turn\",result=\"changed\"}";
    assert!(refreshes.contains(turn), "{refreshes}");
    // That the location is down is still said.
    let failure = app.keyring().await["last_error"]["code"].clone();
    assert_eq!(failure, "source_unavailable");
}

#[tokio::test(start_paused = true)]
async fn a_ciphertext_under_a_version_that_waits_is_decrypted_at_once() {
    let world = with_a_window().await;
    let app = world.start().await;
    let version = waiting_version(&world, &app).await;
    // The sidecar hears of no activation and can't read the location.
    let store = world.store("demo");
    store.mute();
    let admin = world.admin("demo");
    let every = WaveSelector::Every;
    admin
        .activate(version, every, None)
        .await
        .expect("activated");
    let ahead = world.start().await;
    assert_eq!(
        unopened(&ahead, version).await,
        None,
        "a start waits for nothing"
    );
    let message = ahead.client().await.encrypt(b"new").await.ok();
    assert_eq!(message.version(), version);
    store.fail();
    let mut client = app.client().await;
    let decrypt = client.decrypt(&message.body);
    let answer = world.pass_time_until(decrypt).await.ok();
    assert_eq!(answer.body, "new");
}

#[tokio::test(start_paused = true)]
async fn what_a_request_needs_is_tried_until_it_opens() {
    let world = with_a_window().await;
    let app = world.start().await;
    let version = waiting_version(&world, &app).await;
    let store = world.store("demo");
    store.mute();
    let lagging = store.get().expect("a manifest");
    let message = message_under(&world, version).await;
    store.set(lagging);
    let kek = world.main_kek();
    kek.fail(ErrorKind::Throttled);
    let mut client = app.client().await;
    let refused = world.pass_time_until(client.decrypt(&message)).await;
    assert_eq!(refused.status.as_u16(), 503);
    kek.work();
    world.advance(2 * MINUTE).await;
    let answer = world.pass_time_until(client.decrypt(&message)).await;
    assert_eq!(answer.ok().body, "new");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_met_first_in_a_ciphertext_waits_for_nothing() {
    let world = with_a_window().await;
    let app = world.start().await;
    let store = world.store("demo");
    store.mute();
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Later).await.expect("rotated");
    let lagging = store.get().expect("a manifest");
    let message = message_under(&world, 2).await;
    store.set(lagging);
    let mut client = app.client().await;
    let answer = world.pass_time_until(client.decrypt(&message)).await;
    assert_eq!(answer.ok().body, "new");
}

/// A message that a sidecar encrypts under a version which is its primary.
async fn message_under(world: &World, version: u32) -> Vec<u8> {
    let admin = world.admin("demo");
    let every = WaveSelector::Every;
    admin
        .activate(version, every, None)
        .await
        .expect("activated");
    let ahead = world.start().await;
    let message = ahead.client().await.encrypt(b"new").await.ok();
    assert_eq!(message.version(), version);
    message.body.to_vec()
}

#[tokio::test(start_paused = true)]
async fn an_activation_ends_the_wait() {
    let world = with_a_window().await;
    let app = world.start().await;
    let version = waiting_version(&world, &app).await;
    let admin = world.admin("demo");
    let every = WaveSelector::Every;
    admin
        .activate(version, every, None)
        .await
        .expect("activated");
    app.wait_generation(u64::from(version) + 1).await;
    let mut client = app.client().await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), version);
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_fails_at_the_turn_is_asked_again() {
    let world = with_a_window().await;
    let app = world.start().await;
    let version = waiting_version(&world, &app).await;
    let kek = world.main_kek();
    kek.fail(ErrorKind::Unavailable);
    world.advance(HOUR).await;
    world.advance(2 * SECOND).await;
    let reason = unopened(&app, version).await.expect("the KEK is down");
    assert!(reason.contains("the test makes it fail"), "{reason}");
    kek.work();
    // Longer than any pause between retries.
    world.advance(2 * MINUTE).await;
    assert_eq!(unopened(&app, version).await, None);
}
