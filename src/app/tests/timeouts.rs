use crate::app::testing::{MINUTE, SECOND, World};

const HEAD: &str = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
                    Content-Type: application/octet-stream\r\nContent-Length: 6\r\n";

#[tokio::test(start_paused = true)]
async fn a_connection_that_sends_no_whole_head_is_closed() {
    let world = World::with_demo().await;
    let app = world
        .start_with("[timeouts]\nheader = \"10s\"\n", &["demo"])
        .await;
    let mut slow = app.raw().await;
    slow.write(HEAD).await;
    world.advance(5 * SECOND).await;
    assert!(!slow.is_closed());
    world.advance(10 * SECOND).await;
    assert!(slow.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_answered_with_408() {
    let world = World::with_demo().await;
    let config = "[timeouts]\nheader = \"10m\"\nbody = \"10s\"\n";
    let app = world.start_with(config, &["demo"]).await;
    let mut slow = app.raw().await;
    slow.write(format!("{HEAD}Connection: close\r\n\r\nabc"))
        .await;
    world.advance(9 * SECOND).await;
    assert!(!slow.is_closed());
    world.advance(2 * SECOND).await;
    let response = slow.received();
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    assert!(response.contains("request_timeout"), "{response}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let world = World::with_demo().await;
    let app = world
        .start_with("[timeouts]\nidle = \"5m\"\n", &["demo"])
        .await;
    let mut client = app.client().await;
    client.encrypt(b"x").await.ok();
    world.advance(4 * MINUTE).await;
    client.encrypt(b"x").await.ok();
    world.advance(6 * MINUTE).await;
    let late = client.try_send(hyper::Method::GET, "/v1/keyrings", &[], "");
    late.await.expect_err("the connection is closed");
}
