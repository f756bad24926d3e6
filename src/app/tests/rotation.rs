use crate::{
    admin::{AdminError, Takeover},
    app::testing::{DAY, HOUR, SECOND, World},
    keyring::{self, Evidence, Policy, Refusal, WaveSelector},
    model::Span,
};

#[tokio::test(start_paused = true)]
async fn new_ciphertext_names_the_new_version_without_a_restart() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut client = app.client().await;
    let old = client.encrypt(b"x").await.ok();
    assert_eq!(old.version(), 1);
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let mut version = 1;
    let takes_over = async || {
        version = client.encrypt(b"x").await.ok().version();
        client.decrypt(&old.body).await.ok();
        version == 2
    };
    app.wait("version 2", takes_over).await;
}

#[tokio::test(start_paused = true)]
async fn a_version_takes_over_wave_by_wave() {
    let world = World::with_demo().await;
    let canary = world.start_with("wave = \"canary\"\n", &["demo"]).await;
    let standard = world.start().await;
    let (mut early, mut late) = (canary.client().await, standard.client().await);
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Later).await.expect("rotated");
    canary.wait_generation(2).await;
    standard.wait_generation(2).await;
    assert_eq!(early.encrypt(b"x").await.ok().version(), 1);

    let wave = WaveSelector::One("canary".parse().expect("a wave"));
    admin.activate(2, wave, None).await.expect("activated");
    canary.wait_generation(3).await;
    standard.wait_generation(3).await;
    let new = early.encrypt(b"new").await.ok();
    let old = late.encrypt(b"old").await.ok();
    assert_eq!((new.version(), old.version()), (2, 1));
    assert_eq!(late.decrypt(&new.body).await.ok().body, "new");
    assert_eq!(early.decrypt(&old.body).await.ok().body, "old");

    // The other waves switch at a set time, which needs no refresh.
    let at = world.now() + HOUR;
    admin
        .activate(2, WaveSelector::Every, Some(at))
        .await
        .expect("scheduled");
    standard.wait_generation(4).await;
    assert_eq!(late.encrypt(b"x").await.ok().version(), 1);
    let reads = world.store("demo").reads();
    world.clock().advance(HOUR);
    assert_eq!(late.encrypt(b"x").await.ok().version(), 2);
    assert_eq!(world.store("demo").reads(), reads);
}

#[tokio::test(start_paused = true)]
async fn a_wave_can_roll_back() {
    let world = World::with_demo().await;
    let canary = world.start_with("wave = \"canary\"\n", &["demo"]).await;
    let critical = world.start_with("wave = \"critical\"\n", &["demo"]).await;
    let (mut first, mut last) = (canary.client().await, critical.client().await);
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Later).await.expect("rotated");
    let wave = || WaveSelector::One("canary".parse().expect("a wave"));
    admin.activate(2, wave(), None).await.expect("activated");
    canary.wait_generation(3).await;
    let new = first.encrypt(b"x").await.ok();
    assert_eq!(new.version(), 2);

    let evidence = Evidence::Override("a test".into());
    let disable = |current: &_, now| keyring::disable(current, 2, &evidence, now);
    let refused = admin.change(disable).await.expect_err("it encrypts");
    assert!(
        matches!(refused, AdminError::Refused(Refusal::IsPrimary(2))),
        "{refused}"
    );
    admin.activate(1, wave(), None).await.expect("activated");
    canary.wait_generation(4).await;
    critical.wait_generation(4).await;
    assert_eq!(first.encrypt(b"x").await.ok().version(), 1);
    for client in [&mut first, &mut last] {
        client.decrypt(&new.body).await.ok();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lagging_sidecar_and_a_fresh_one_decrypt_each_others_messages() {
    let world = World::with_demo().await;
    let behind = world.start().await;
    // Only an explicit refresh sees the change.
    let store = world.store("demo");
    store.mute();
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let ahead = world.start().await;
    let (mut old, mut new) = (behind.client().await, ahead.client().await);
    let by_old = old.encrypt(b"old").await.ok();
    let by_new = new.encrypt(b"new").await.ok();
    assert_eq!((by_old.version(), by_new.version()), (1, 2));
    assert_eq!(new.decrypt(&by_old.body).await.ok().body, "old");
    // Many requests at once: one refresh serves them all, and none fails.
    let reads = store.reads();
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..8 {
        let mut client = match index % 2 {
            0 => behind.client().await,
            _ => behind.http2().await,
        };
        let message = by_new.body.clone();
        tasks.spawn(async move { client.decrypt(&message).await.ok() });
    }
    for answer in world.pass_time_until(tasks.join_all()).await {
        assert_eq!((answer.version(), &answer.body[..]), (2, &b"new"[..]));
    }
    assert_eq!(store.reads(), reads + 1);
    let metrics = behind.ops("/metrics").await.1;
    let line = "sidekey_refreshes_total{keyring=\"demo\",trigger=\"unknown_version\",\
                result=\"changed\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_a_running_refresh_finds_is_not_read_again() {
    let world = World::with_demo().await;
    let behind = world.start().await;
    let store = world.store("demo");
    store.mute();
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let ahead = world.start().await;
    let message = ahead.client().await.encrypt(b"new").await.ok().body;
    let mut client = behind.client().await;
    store.hang();
    let reads = store.reads();
    behind.refresh();
    world.wait("the read", || store.reads() > reads).await;
    // The location is being read when the ciphertext comes.
    let decrypted = tokio::spawn(async move { client.decrypt(&message).await.ok().body });
    let asked = "sidekey_unknown_versions_total{keyring=\"demo\"} 1";
    behind.wait_metric(asked).await;
    store.work();
    let decrypted = world.pass_time_until(decrypted).await.expect("no panic");
    assert_eq!(decrypted, "new");
    world.advance(10 * SECOND).await;
    assert_eq!(store.reads(), reads + 1);
}

#[tokio::test(start_paused = true)]
async fn a_signal_refreshes_every_keyring() {
    let world = World::with_demo().await;
    let app = world.start().await;
    world.store("demo").mute();
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let mut client = app.client().await;
    world.advance(SECOND).await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), 1);
    app.refresh();
    app.wait_generation(3).await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_expired_lease_stops_encryption_and_not_decryption() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut client = app.client().await;
    let ciphertext = client.encrypt(b"x").await.ok().body;
    world.clock().advance(30 * DAY);
    let refused = client.encrypt(b"x").await;
    assert_eq!(refused.status.as_u16(), 503);
    assert_eq!(refused.problem(), "lease_expired");
    assert_eq!(client.decrypt(&ciphertext).await.ok().body, "x");

    // A successful read starts a new lease.
    app.refresh();
    world.advance(SECOND).await;
    client.encrypt(b"x").await.ok();
}

#[tokio::test(start_paused = true)]
async fn a_superseded_version_that_decrypts_for_too_long_is_counted() {
    let world = World::new();
    let policy = Policy {
        decrypt_until: Some(Span(HOUR)),
        ..Policy::default()
    };
    world.init_with("demo", policy).await;
    let app = world.start().await;
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    app.wait_generation(3).await;
    let overdue = "sidekey_keyring_overdue_versions{keyring=\"demo\"}";
    app.wait_metric(&format!("{overdue} 0")).await;
    world.clock().advance(HOUR);
    app.wait_metric(&format!("{overdue} 1")).await;
    let evidence = Evidence::Override("test".into());
    admin
        .change(|current, now| keyring::disable(current, 1, &evidence, now))
        .await
        .expect("disabled");
    app.wait_metric(&format!("{overdue} 0")).await;
}
