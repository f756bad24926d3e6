//! Callers that no rule allows anything, or that prove nothing, cost no one else anything.

use std::fs;

use hyper::{Method, Response, StatusCode, body::Incoming};

use crate::app::testing::{Client, OCTETS, SECOND, TestApp, World, whole};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Sends a request whose response's body is never taken.
async fn ask(client: &mut Client, path: &str) -> Response<Incoming> {
    let response = client.open(Method::GET, path, &[], whole("")).await;
    response.expect("a head")
}

/// A sidecar with a TCP listener and a limit of two connections.
async fn start_with_tcp(world: &World) -> TestApp {
    fs::write(world.path("token"), TOKEN).expect("works");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(world.path("token"), private).expect("works");
    let socket = world.path("one.sock");
    let config = format!(
        "[limits]\nconnections = 2\n[listen]\nsocket = {socket:?}\ntcp = \"127.0.0.1:0\"\n\
         token_file = \"token\"\n"
    );
    world.start_with(&config, &["demo"]).await
}

#[tokio::test(start_paused = true)]
async fn responses_that_are_not_taken_shut_no_one_out_of_tcp() {
    let world = World::with_demo().await;
    let app = start_with_tcp(&world).await;
    let mut strangers = Vec::new();
    for _ in 0..4 {
        let mut stranger = app.tcp_client_taking_no_body().await;
        let refusal = ask(&mut stranger, "/v1/keyrings").await;
        assert_eq!(refusal.status(), StatusCode::UNAUTHORIZED);
        strangers.push((stranger, refusal));
    }
    let mut holder = app.tcp_client().await;
    let bearer = format!("Bearer {TOKEN}");
    let headers = [OCTETS, ("authorization", &*bearer)];
    let path = "/v1/keyrings/demo/encrypt";
    holder.post(path, &headers, "x").await.ok();
    world.advance(25 * SECOND).await;
    app.wait_metric("sidekey_connections{listener=\"tcp\"} 1")
        .await;
    holder.post(path, &headers, "x").await.ok();
}

#[tokio::test(start_paused = true)]
async fn responses_that_are_not_taken_shut_no_one_out_of_the_ops_listener() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut strangers = Vec::new();
    for _ in 0..100 {
        let mut stranger = app.ops_client_taking_no_body().await;
        let response = ask(&mut stranger, "/livez").await;
        strangers.push((stranger, response));
    }
    assert_eq!(app.ops("/livez").await, (200, "ok\n".into()));
    world.advance(6 * SECOND).await;
    app.wait_metric("sidekey_connections{listener=\"ops\"} 1")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_web_page_cannot_read_from_the_ops_listener() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut browser = app.ops_client().await;
    browser.name_host("rebound.example");
    for path in ["/status", "/metrics", "/manifests/demo"] {
        assert_eq!(browser.get(path).await.problem(), "forbidden", "{path}");
    }
    // Probes may name any host.
    assert_eq!(browser.get("/livez").await.ok().body, "ok\n");
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_responses_that_are_not_taken() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut client = app.client_taking_no_body().await;
    let _response = ask(&mut client, "/v1/keyrings").await;
    let stopping = app.begin_stop();
    world.advance(3 * SECOND).await;
    assert!(stopping.is_over());
}
