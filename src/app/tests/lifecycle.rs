use crate::{
    app::testing::{MINUTE, OCTETS, SECOND, World},
    backend::ErrorKind,
};

/// The head of a request whose body is incomplete.
const HALF: &str = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                    Content-Type: application/octet-stream\r\nContent-Length: 6\r\n\r\nabc";

#[tokio::test(start_paused = true)]
async fn a_ready_sidecar_encrypts_and_decrypts_over_both_protocols() {
    let world = World::with_demo().await;
    let app = world.start().await;
    assert_eq!(app.ops("/readyz").await, (200, "ok\n".into()));
    let (mut http1, mut http2) = (app.client().await, app.http2().await);
    let ciphertext = http1.encrypt(b"hello").await.ok().body;
    assert_eq!(http2.decrypt(&ciphertext).await.ok().body, "hello");
    let ciphertext = http2.encrypt(b"hello").await.ok().body;
    assert_eq!(http1.decrypt(&ciphertext).await.ok().body, "hello");
    app.stop().await;
    assert!(world.log().contains("drained"), "{}", world.log());
}

#[tokio::test(start_paused = true)]
async fn readiness_names_what_is_pending() {
    let world = World::new();
    let app = world
        .launch(
            "[[secret]]\nname = \"db\"\nsource = \"file:db\"\nrequired = true\n",
            &["demo"],
        )
        .await;
    world.advance(SECOND).await;
    let (status, pending) = app.ops("/readyz").await;
    assert_eq!(status, 503);
    assert!(pending.contains("keyring demo: "), "{pending}");
    assert!(pending.contains("secret db: "), "{pending}");
    let mut client = app.client().await;
    assert_eq!(client.encrypt(b"x").await.problem(), "provider_unavailable");

    world.init("demo").await;
    world.secret("file:db").rotate("1", "s3cret");
    app.wait_ready().await;
    client.encrypt(b"x").await.ok();
}

#[tokio::test(start_paused = true)]
async fn readiness_waits_for_a_kek_that_unwraps_the_primary() {
    let world = World::with_demo().await;
    world.main_kek().fail(ErrorKind::Unavailable);
    let app = world.launch("", &["demo"]).await;
    world.advance(SECOND).await;
    let (status, pending) = app.ops("/readyz").await;
    assert_eq!(status, 503);
    assert!(
        pending.starts_with("keyring demo: ") && pending.contains("fake:main: the test"),
        "{pending}"
    );
    assert_eq!(app.ops("/livez").await.0, 200);
    let mut client = app.client().await;
    assert_eq!(client.encrypt(b"x").await.problem(), "provider_unavailable");
    world.main_kek().work();
    world.advance(SECOND).await;
    app.wait_ready().await;
    client.encrypt(b"x").await.ok();

    // Cached keys and values keep serving, so later failures don't matter.
    world.main_kek().fail(ErrorKind::Unavailable);
    world.store("demo").remove();
    world.advance(MINUTE).await;
    assert_eq!(app.ops("/readyz").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn stopping_answers_requests_in_flight_and_accepts_no_others() {
    let world = World::with_demo().await;
    let app = world
        .start_with("[timeouts]\nbody = \"60s\"\n", &["demo"])
        .await;
    let mut idle = app.client().await;
    idle.encrypt(b"x").await.ok();
    let mut half = app.raw().await;
    half.write(HALF).await;
    world.advance(SECOND).await;
    let socket = app.socket().to_owned();

    let stopping = app.begin_stop();
    world.advance(SECOND).await;
    assert_eq!(stopping.ops("/readyz").await.0, 503);
    assert!(!socket.exists(), "new connections fail at once");
    assert!(!stopping.is_over());
    half.write("def").await;
    let response = half.rest().await;
    assert!(response.starts_with("HTTP/1.1 200 OK"), "{response}");
    stopping.over().await;
    assert!(world.log().contains("drained"), "{}", world.log());
    let late = idle.try_send(hyper::Method::POST, "/v1/keyrings", &[OCTETS], "");
    late.await.expect_err("the connection is closed");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_at_its_timeout() {
    let world = World::with_demo().await;
    let config = "[timeouts]\nbody = \"10m\"\ndrain_timeout = \"20s\"\n";
    let app = world.start_with(config, &["demo"]).await;
    let mut half = app.raw().await;
    half.write(HALF).await;
    world.advance(SECOND).await;

    let stopping = app.begin_stop();
    world.advance(19 * SECOND).await;
    assert!(!stopping.is_over());
    world.advance(2 * SECOND).await;
    stopping.over().await;
    assert!(world.log().contains("still in flight"), "{}", world.log());
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_a_drain_at_once() {
    let world = World::with_demo().await;
    let config = "[timeouts]\nbody = \"10m\"\ndrain_timeout = \"1d\"\n";
    let app = world.start_with(config, &["demo"]).await;
    let mut half = app.raw().await;
    half.write(HALF).await;
    world.advance(SECOND).await;

    let stopping = app.begin_stop();
    world.advance(SECOND).await;
    assert!(!stopping.is_over());
    stopping.hurry();
    stopping.over().await;
    assert!(
        world.log().contains("stopping immediately"),
        "{}",
        world.log()
    );
}
