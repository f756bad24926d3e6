use crate::{
    app::testing::{HOUR, MINUTE, World},
    backend::ErrorKind,
};

const DB: &str = "[[secret]]\nname = \"db\"\nsource = \"file:db\"\nrequired = true\n";

#[tokio::test(start_paused = true)]
async fn a_secret_follows_its_source() {
    let world = World::new();
    let source = world.secret("file:db");
    source.rotate("1", "old");
    let app = world.start_with(DB, &[]).await;
    let mut client = app.client().await;
    assert_eq!(
        client.get("/v1/secrets/db").await.ok().json()["value"],
        "old"
    );

    source.rotate("2", "new");
    world.advance(MINUTE).await;
    let mut client = app.client().await;
    assert_eq!(
        client.get("/v1/secrets/db").await.ok().json()["value"],
        "new"
    );
    let previous = client.get("/v1/secrets/db?stage=previous").await.ok();
    assert_eq!(previous.json()["value"], "old");
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_served_while_its_source_is_down() {
    let world = World::new();
    let source = world.secret("file:db");
    source.rotate("1", "value");
    let app = world.start_with(DB, &[]).await;
    source.fail(ErrorKind::Unavailable);
    world.advance(HOUR).await;
    let mut client = app.client().await;
    assert_eq!(
        client.get("/v1/secrets/db").await.ok().json()["value"],
        "value"
    );
}
