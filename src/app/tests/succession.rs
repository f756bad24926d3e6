//! Manifests that don't follow from what a sidecar or a command already trusts.

use crate::{
    admin::{AdminError, Bases, Memory, Signing, Takeover},
    app::testing::{DAY, HOUR, SECOND, TestApp, World},
    backend::ErrorKind,
    clock::Clock,
    keyring::{self, Loss, Policy, Rejection},
};

/// The config of a keyring `demo` with more settings.
fn demo_with(settings: &str) -> String {
    format!(
        "[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = [\"fake:*\"]\n{settings}\n"
    )
}

async fn last_error(app: &TestApp) -> Option<String> {
    let keyring = app.keyring().await;
    keyring["last_error"]["code"].as_str().map(str::to_owned)
}

/// Waits until the manifest that is in the location is in the cache, too.
async fn wait_cached(world: &World) {
    let newest = world.store("demo").get().expect("a manifest");
    let copy = world.path("cache/demo.json");
    let is_cached = || std::fs::read(&copy).is_ok_and(|copy| copy == newest);
    world.wait("the copy", is_cached).await;
}

/// Refreshes and waits until the outcome is known.
async fn refresh(world: &World, app: &TestApp) {
    app.refresh();
    world.advance(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_rolled_back_store_changes_nothing_and_no_command_signs_it() {
    let world = World::with_demo().await;
    let old = world.store("demo").get().expect("a manifest");
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let app = world.start().await;
    let mut client = app.client().await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), 2);

    world.store("demo").set(old);
    refresh(&world, &app).await;
    assert_eq!(last_error(&app).await.as_deref(), Some("behind"));
    assert_eq!(client.encrypt(b"x").await.ok().version(), 2);

    // Another process of the same operator, such as a cron job.
    let touch = world
        .admin("demo")
        .change(|current, now| Ok(keyring::touch(current, now)))
        .await;
    let Err(AdminError::Untrusted { error, .. }) = touch else {
        panic!("{touch:?}");
    };
    assert_eq!(*error, Rejection::Behind { found: 1, held: 3 });
    // An operator on a machine that has seen nothing yet must say what to trust.
    let stranger = world.admin("demo").with_bases(Bases::default());
    let touch = stranger
        .change(|current, now| Ok(keyring::touch(current, now)))
        .await;
    let Err(AdminError::NoBase { digest, .. }) = touch else {
        panic!("{touch:?}");
    };
    let trusting = world.admin("demo").with_bases(Bases {
        first_time: Some(digest),
        ..Bases::default()
    });
    let branch = trusting
        .change(|current, now| Ok(keyring::touch(current, now)))
        .await
        .expect("the digest is the one that is there");
    for _ in branch.manifest().generation..5 {
        trusting
            .change(|current, now| Ok(keyring::touch(current, now)))
            .await
            .expect("the command's own base");
    }
    // Even with the highest number, it is a branch.
    refresh(&world, &app).await;
    assert_eq!(last_error(&app).await.as_deref(), Some("diverged"));
    assert_eq!(client.encrypt(b"x").await.ok().version(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_lags_is_reported_once_half_the_lease_is_over() {
    let world = World::new();
    let policy = Policy {
        encrypt_lease: "10d".parse().expect("a duration"),
        ..Policy::default()
    };
    world.init_with("demo", policy).await;
    let old = world.store("demo").get().expect("a manifest");
    world
        .admin("demo")
        .change(|current, now| Ok(keyring::touch(current, now)))
        .await
        .expect("touched");
    let app = world
        .start_with(&demo_with("confirm = \"stamp\""), &[])
        .await;
    world.store("demo").set(old);
    refresh(&world, &app).await;
    assert_eq!(last_error(&app).await, None);
    world.clock().advance(5 * DAY + HOUR);
    refresh(&world, &app).await;
    assert_eq!(last_error(&app).await.as_deref(), Some("behind"));
}

#[tokio::test(start_paused = true)]
async fn a_lost_version_stops_encrypting_until_the_loss_is_accepted() {
    let world = World::with_demo().await;
    let admin = world.admin("demo");
    let second = "fake:second".parse().expect("a URI");
    admin
        .rotate(&[second], Takeover::Now)
        .await
        .expect("rotated");
    let config = format!("[refresh]\ncache_dir = {:?}\n", world.path("cache"));
    std::fs::create_dir(world.path("cache")).expect("a folder");
    let app = world.start_with(&config, &["demo"]).await;
    let mut client = app.client().await;
    let message = client.encrypt(b"x").await.ok();
    assert_eq!(message.version(), 2);
    wait_cached(&world).await;

    world.kek("fake:second").fail(ErrorKind::NotFound);
    let loss = Loss {
        versions: &[2],
        confirm: Some("every KEK of version 2 of demo is lost"),
        successor: Some(1),
    };
    admin.declare_lost(loss).await.expect("declared");
    refresh(&world, &app).await;
    assert_eq!(last_error(&app).await.as_deref(), Some("lost_version"));
    let refused = client.encrypt(b"x").await;
    assert_eq!(
        (refused.status.as_u16(), refused.problem().as_str()),
        (503, "key_lost")
    );
    assert_eq!(client.decrypt(&message.body).await.ok().body, "x");
    assert_eq!(app.keyring().await["active"]["lost"][0], 2);
    // That someone puts the manifest before it back doesn't undo the loss.
    let declared = world.store("demo").get().expect("a manifest");
    let before = std::fs::read(world.path("cache/demo.json")).expect("the copy");
    world.store("demo").set(before);
    refresh(&world, &app).await;
    assert_eq!(last_error(&app).await.as_deref(), Some("lost_version"));
    assert_eq!(client.encrypt(b"x").await.problem(), "key_lost");
    world.store("demo").set(declared);
    world.pass_time_until(app.stop()).await;

    // A restart alone accepts nothing; the config does.
    let app = world.launch(&config, &["demo"]).await;
    app.wait_keyring("the refusal", |keyring| {
        keyring["last_error"]["code"] == "lost_version"
    })
    .await;
    let config = format!("{config}{}", demo_with("accept_lost = [2]"));
    world.reload(&app, &config, &[]);
    app.refresh();
    app.wait_generation(4).await;
    let mut client = app.client().await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), 1);
    world.pass_time_until(app.stop()).await;
    let app = world.start_with(&config, &[]).await;
    app.wait_generation(4).await;
    assert_eq!(app.client().await.encrypt(b"x").await.ok().version(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_answers_late_does_not_undo_a_loss() {
    let world = World::with_demo().await;
    let (app, other) = (world.start().await, world.launch("", &["demo"]).await);
    let (admin, store) = (world.admin("demo"), world.store("demo"));
    let second = "fake:second".parse().expect("a URI");
    store.mute();
    admin
        .rotate(&[second], Takeover::Now)
        .await
        .expect("rotated");
    let rotated = store.get().expect("a manifest");
    let kek = world.kek("fake:second");
    kek.fail(ErrorKind::NotFound);
    let loss = Loss {
        versions: &[2],
        confirm: Some("every KEK of version 2 of demo is lost"),
        successor: Some(1),
    };
    admin.declare_lost(loss).await.expect("declared");
    let declared = store.get().expect("a manifest");

    store.set(rotated);
    kek.work();
    other.refresh();
    other.wait_generation(3).await;
    let message = other.client().await.encrypt(b"x").await.ok();
    assert_eq!(message.version(), 2);

    // This sidecar asks the KEK, and hears of the loss before it answers.
    kek.hang();
    app.refresh();
    app.wait_generation(3).await;
    store.set(declared);
    refresh(&world, &app).await;
    assert_eq!(last_error(&app).await.as_deref(), Some("lost_version"));
    assert_eq!(app.keyring().await["active"]["lost"][0], 2);
    kek.work();
    let mut client = app.client().await;
    world.advance(SECOND).await;
    assert_eq!(client.decrypt(&message.body).await.ok().body, "x");
    assert_eq!(client.encrypt(b"x").await.problem(), "key_lost");
    assert_eq!(app.keyring().await["active"]["lost"][0], 2);
    assert_eq!(last_error(&app).await.as_deref(), Some("lost_version"));
}

#[tokio::test(start_paused = true)]
async fn a_cached_manifest_is_the_base_although_its_keys_cannot_be_unwrapped() {
    let world = World::with_demo().await;
    let old = world.store("demo").get().expect("a manifest");
    world
        .admin("demo")
        .rotate(&[], Takeover::Now)
        .await
        .expect("rotated");
    std::fs::create_dir(world.path("cache")).expect("a folder");
    let config = format!("[refresh]\ncache_dir = {:?}\n", world.path("cache"));
    let app = world.start_with(&config, &["demo"]).await;
    wait_cached(&world).await;
    world.pass_time_until(app.stop()).await;

    world.main_kek().fail(ErrorKind::Unavailable);
    let newest = world.store("demo").get().expect("a manifest");
    world.store("demo").set(old);
    let app = world.launch(&config, &["demo"]).await;
    app.wait_keyring("the refusal", |keyring| {
        keyring["last_error"]["code"] == "behind"
    })
    .await;
    world.main_kek().work();
    world.store("demo").set(newest);
    app.refresh();
    app.wait_generation(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_manifest_from_the_future_is_repaired_only_on_request() {
    let world = World::with_demo().await;
    let (fast, hands) = Clock::manual(world.now());
    hands.advance(400 * DAY);
    let ahead = world.admin_at("demo", Signing::NoKey, fast);
    ahead.rotate(&[], Takeover::Now).await.expect("rotated");

    let touch = |current: &keyring::Document, now| Ok(keyring::touch(current, now));
    let refused = world.admin("demo").change(touch).await;
    assert!(
        matches!(refused, Err(AdminError::FromTheFuture { .. })),
        "{refused:?}"
    );
    let repairing = world.admin("demo").with_bases(Bases {
        memory: Some(Memory::in_folder(world.path("state"))),
        repair_time: true,
        ..Bases::default()
    });
    let repaired = repairing.change(touch).await.expect("repaired");
    let (manifest, now) = (repaired.manifest(), world.now());
    assert_eq!(manifest.updated_at, now);
    let wave = "any".parse().expect("a wave");
    assert_eq!(
        keyring::primary_at(&manifest.activations, now, &wave),
        Some(2)
    );
    let started = manifest
        .versions
        .iter()
        .map(|version| version.state_changed_at);
    assert!(started.max() <= Some(now), "waiting times start again");
}
