use crate::{
    admin::Takeover,
    app::testing::{HOUR, MINUTE, World},
    backend::ErrorKind,
};

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_store_changes_nothing() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut client = app.client().await;
    let ciphertext = client.encrypt(b"x").await.ok().body;
    let store = world.store("demo");
    let reads = store.reads();
    store.fail();
    world.advance(HOUR).await;
    assert!(store.reads() > reads, "it is retried");
    assert_eq!(app.ops("/readyz").await.0, 200);
    assert_eq!(
        app.keyring().await["last_error"]["code"],
        "source_unavailable"
    );

    let mut client = app.client().await;
    client.encrypt(b"x").await.ok();
    assert_eq!(client.decrypt(&ciphertext).await.ok().body, "x");

    store.work();
    world.advance(2 * MINUTE).await;
    assert!(app.keyring().await["last_error"].is_null());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_delays_no_request() {
    let world = World::with_demo().await;
    let app = world.start().await;
    world.store("demo").hang();
    app.refresh();
    let mut client = app.client().await;
    let ciphertext = client.encrypt(b"x").await.ok().body;
    assert_eq!(client.decrypt(&ciphertext).await.ok().body, "x");
    app.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_version_waits_for_its_kek_while_the_old_ones_serve() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Later).await.expect("rotated");
    world.main_kek().fail(ErrorKind::Unavailable);
    app.wait_generation(2).await;
    let mut client = app.client().await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), 1);
    assert_eq!(app.keyring().await["last_error"]["code"], "kek_unavailable");

    world.main_kek().work();
    world.main_kek().take_calls();
    world.advance(2 * MINUTE).await;
    assert_eq!(world.main_kek().take_calls().len(), 1, "only the new one");
    assert!(app.keyring().await["last_error"].is_null());
}
