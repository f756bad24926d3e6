//! Server-sent events.

use serde_json::{Value, json};

use crate::{
    admin::Takeover,
    app::testing::{MINUTE, World},
    keyring::WaveSelector,
};

/// Adds a version to a keyring that stays pending.
async fn add_version(world: &World, keyring: &str) {
    let admin = world.admin(keyring);
    admin.rotate(&[], Takeover::Later).await.expect("rotated");
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_gets_the_current_state_and_then_every_change() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut events = sidecar.events(None).await;
    let (_, first) = events.keyring().await;
    assert_eq!(first["primary"], 1);
    assert_eq!(
        first["versions"],
        json!([{ "version": 1, "role": "primary" }])
    );
    add_version(&world, "demo").await;
    let (_, added) = events.keyring().await;
    assert_eq!(
        (&added["generation"], &added["primary"]),
        (&2.into(), &1.into())
    );
    assert_eq!(added["versions"][1]["role"], "pending");
    let admin = world.admin("demo");
    admin.activate(2, WaveSelector::Every, None).await.unwrap();
    let (_, activated) = events.keyring().await;
    assert_eq!(
        (&activated["primary"], &activated["versions"][0]["role"]),
        (&2.into(), &"decrypt-only".into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_scheduled_activation_is_announced_when_due() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut events = sidecar.events(None).await;
    events.expect("demo", 1).await;
    add_version(&world, "demo").await;
    events.expect("demo", 2).await;
    let at = world.now() + MINUTE;
    let admin = world.admin("demo");
    admin
        .activate(2, WaveSelector::Every, Some(at))
        .await
        .unwrap();
    let (_, scheduled) = events.keyring().await;
    assert_eq!(
        (&scheduled["generation"], &scheduled["primary"]),
        (&3.into(), &1.into())
    );
    assert!(world.now() < at);
    world.advance(MINUTE).await;
    let (_, due) = events.keyring().await;
    assert_eq!(
        (&due["generation"], &due["primary"]),
        (&3.into(), &2.into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_reconnecting_subscriber_gets_missed_events_once() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut events = sidecar.events(None).await;
    let seen = events.expect("demo", 1).await;
    drop(events);
    for generation in [2, 3] {
        add_version(&world, "demo").await;
        sidecar.wait_generation(generation).await;
    }
    let mut events = sidecar.events(Some(&seen)).await;
    let second = events.expect("demo", 2).await;
    events.expect("demo", 3).await;
    let mut events = sidecar.events(Some(&second)).await;
    events.expect("demo", 3).await;
    // A stream that can't be resumed starts again.
    for strange in ["", "7", "1-1", "x-y"] {
        let mut events = sidecar.events(Some(strange)).await;
        events.expect("demo", 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn subscribers_see_only_keyrings_they_may_inspect() {
    let world = World::with_demo().await;
    world.init("hidden").await;
    let me = rustix::process::geteuid().as_raw();
    let config =
        format!("[[policy]]\nkeyrings = [\"demo\"]\noperations = [\"inspect\"]\nuids = [{me}]\n");
    let sidecar = world.start_with(&config, &["demo", "hidden"]).await;
    let mut events = sidecar.events(None).await;
    events.expect("demo", 1).await;
    add_version(&world, "hidden").await;
    sidecar
        .wait_status("the hidden keyring", |status| {
            status["keyrings"][1]["active"]["generation"] == 2
        })
        .await;
    add_version(&world, "demo").await;
    events.expect("demo", 2).await;
}

#[tokio::test(start_paused = true)]
async fn subscribers_get_events_of_the_secrets_they_may_fetch() {
    let world = World::new();
    let [db, hidden] = ["file:db", "file:hidden"].map(|source| world.secret(source));
    db.rotate("1", "old");
    hidden.rotate("1", "old");
    let me = rustix::process::geteuid().as_raw();
    let config = format!(
        "[[secret]]\nname = \"db\"\nsource = \"file:db\"\nrequired = true\n\
         [[secret]]\nname = \"hidden\"\nsource = \"file:hidden\"\nrequired = true\n\
         [[policy]]\nsecrets = [\"db\"]\nuids = [{me}]\n"
    );
    let sidecar = world.start_with(&config, &[]).await;
    let mut events = sidecar.events(None).await;
    let first = events.secret().await;
    assert_eq!(
        (&first["secret"], &first["previous"]),
        (&"db".into(), &Value::Null)
    );
    hidden.rotate("2", "new");
    sidecar
        .wait_secret("hidden", |secret| secret["previous"].is_string())
        .await;
    db.rotate("2", "new");
    let changed = events.secret().await;
    assert_eq!(
        (&changed["secret"], &changed["previous"]),
        (&"db".into(), &first["version"])
    );
    db.delete();
    assert_eq!(
        events.secret().await,
        json!({ "secret": "db", "version": null, "previous": null })
    );
}

#[tokio::test(start_paused = true)]
async fn unauthorized_callers_get_no_events() {
    let world = World::with_demo().await;
    let stranger = "[[policy]]\nkeyrings = \"*\"\noperations = \"*\"\nuids = [4294967294]\n";
    let sidecar = world.start_with(stranger, &["demo"]).await;
    for path in ["/v1/events", "/v1/keyrings", "/v1/openapi.json"] {
        let answer = sidecar.client().await.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().as_str()),
            (403, "forbidden"),
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn subscribers_leave_half_of_the_connections_to_requests() {
    let world = World::with_demo().await;
    let sidecar = world
        .start_with("[limits]\nconnections = 6\n", &["demo"])
        .await;
    let mut subscribers = Vec::new();
    for _ in 0..3 {
        subscribers.push(sidecar.events(None).await);
    }
    let refused = sidecar.client().await.get("/v1/events").await;
    assert_eq!(
        (refused.status.as_u16(), refused.problem().as_str()),
        (503, "too_many_connections")
    );
    sidecar.client().await.encrypt(b"work").await.ok();
    drop(subscribers);
}

#[tokio::test(start_paused = true)]
async fn subscribers_do_not_delay_shutdown() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut events = sidecar.events(None).await;
    events.expect("demo", 1).await;
    let stopping = sidecar.begin_stop();
    assert!(events.event().await.is_none(), "a clean end");
    stopping.over().await;
    assert!(world.log().contains("drained"), "{}", world.log());
}
