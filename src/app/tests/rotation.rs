use crate::{
    admin::Takeover,
    app::testing::{DAY, HOUR, SECOND, World},
    keyring::WaveSelector,
};

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
async fn an_unknown_version_causes_one_refresh() {
    let world = World::with_demo().await;
    let app = world.start().await;
    // Only an explicit refresh sees the change.
    world.store("demo").mute();
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
    let newer = world.start().await;
    let ciphertext = newer.client().await.encrypt(b"x").await.ok();
    assert_eq!(ciphertext.version(), 2);

    let reads = world.store("demo").reads();
    let (mut one, mut other) = (app.client().await, app.http2().await);
    let (first, second) = tokio::join!(
        one.decrypt(&ciphertext.body),
        other.decrypt(&ciphertext.body)
    );
    assert_eq!(
        (first.ok().body, second.ok().body),
        ("x".into(), "x".into())
    );
    assert_eq!(world.store("demo").reads(), reads + 1);
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
