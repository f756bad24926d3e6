//! Who may connect, the connection limits, and silent clients.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
};

use hyper::{Method, StatusCode};
use serde_json::json;
use tokio::net::TcpStream;

use crate::app::testing::{MINUTE, OCTETS, RawConnection, SECOND, TestApp, World};

/// A request whose body is only half sent.
const HALF: &str = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
                    Content-Type: application/octet-stream\r\nContent-Length: 6\r\n\r\nabc";

async fn send_half(sidecar: &TestApp) -> RawConnection {
    let mut connection = sidecar.raw().await;
    connection.write(HALF).await;
    connection
}

#[tokio::test(start_paused = true)]
async fn the_policy_applies_to_the_peers_user() {
    let world = World::with_demo().await;
    world.init("other").await;
    let me = rustix::process::geteuid().as_raw();
    let policy = format!(
        "[[policy]]\nkeyrings = [\"demo\"]\noperations = [\"encrypt\", \"inspect\"]\n\
         uids = [{me}]\n\
         [[policy]]\nkeyrings = [\"other\"]\noperations = \"*\"\nuids = [{}]\n",
        me + 1
    );
    let sidecar = world.start_with(&policy, &["demo", "other"]).await;
    let mut client = sidecar.client().await;
    let encrypted = client.encrypt(b"Ada").await.ok();
    let denied = client.decrypt(&encrypted.body).await;
    assert_eq!(
        (denied.status, denied.problem().as_str()),
        (StatusCode::FORBIDDEN, "forbidden")
    );
    assert_eq!(
        client
            .post("/v1/keyrings/other/encrypt", &[OCTETS], "x")
            .await
            .problem(),
        "forbidden"
    );
    assert_eq!(
        client
            .send(Method::GET, "/v1/keyrings/other", &[], "")
            .await
            .problem(),
        "forbidden"
    );
    let visible = client
        .send(Method::GET, "/v1/keyrings", &[], "")
        .await
        .ok()
        .json();
    assert_eq!(visible["keyrings"].as_array().unwrap().len(), 1);
    assert!(
        sidecar
            .ops("/metrics")
            .await
            .1
            .contains("sidekey_policy_denials_total{keyring=\"demo\",operation=\"decrypt\"} 1")
    );
}

#[tokio::test(start_paused = true)]
async fn any_number_of_denials_is_one_log_line_per_caller_and_minute() {
    let world = World::with_demo().await;
    let policy = "[[policy]]\nkeyrings = [\"demo\"]\noperations = [\"encrypt\"]\ngids = [4242]\n";
    let sidecar = world.start_with(policy, &["demo"]).await;
    let mut client = sidecar.client().await;
    let lines = || -> Vec<String> {
        let is_denial = |line: &&str| line.contains("requests denied");
        world
            .log()
            .lines()
            .filter(is_denial)
            .map(str::to_owned)
            .collect()
    };
    for _ in 0..100 {
        assert_eq!(client.encrypt(b"x").await.problem(), "forbidden");
        let secret = client.send(Method::GET, "/v1/secrets/nope", &[], "").await;
        assert_eq!(secret.problem(), "forbidden");
    }
    world.wait("the first", || lines().len() == 1).await;
    let first = &lines()[0];
    assert!(first.contains("count=1 ") && first.contains("code=\"forbidden\""));
    world.advance(MINUTE).await;
    world.wait("the others", || lines().len() == 2).await;
    let others = &lines()[1];
    assert!(others.contains("count=199 "), "{others}");
    assert!(others.contains("last_operation=\"fetch\""), "{others}");
    let mut client = sidecar.client().await;
    assert_eq!(client.encrypt(b"x").await.problem(), "forbidden");
    sidecar.stop().await;
    world.wait("what remains", || lines().len() == 3).await;
}

#[tokio::test(start_paused = true)]
async fn tcp_needs_the_token_and_a_rule_can_name_its_holder() {
    let world = World::with_demo().await;
    let token = "0123456789abcdef0123456789abcdef";
    fs::write(world.path("token"), token).unwrap();
    fs::set_permissions(world.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\ntcp = \"127.0.0.1:0\"\ntoken_file = \"token\"\n\
         [[policy]]\nkeyrings = \"*\"\noperations = [\"encrypt\"]\ntoken = true\n"
    );
    let sidecar = world.start_with(&config, &["demo"]).await;
    let mut client = sidecar.tcp_client().await;
    let path = "/v1/keyrings/demo/encrypt";
    let without = client.post(path, &[OCTETS], "Ada").await;
    assert_eq!(without.headers["www-authenticate"], "Bearer");
    assert_eq!(without.problem(), "unauthorized");
    let bearer = |token: &str| format!("Bearer {token}");
    assert_eq!(
        client
            .post(path, &[OCTETS, ("authorization", &bearer("0123"))], "Ada")
            .await
            .problem(),
        "unauthorized"
    );
    let right = bearer(token);
    let headers = [OCTETS, ("authorization", right.as_str())];
    client.post(path, &headers, "Ada").await.ok();
    assert_eq!(
        client
            .post("/v1/keyrings/demo/decrypt", &headers, "Ada")
            .await
            .problem(),
        "forbidden"
    );
    // The rule is for the token's holder; callers on the socket have no token.
    assert_eq!(
        sidecar.client().await.encrypt(b"Ada").await.problem(),
        "forbidden"
    );
}

#[tokio::test(start_paused = true)]
async fn silent_and_half_closed_clients_are_disconnected_and_affect_no_one_else() {
    let world = World::with_demo().await;
    let config = "[timeouts]\nheader = \"2s\"\nbody = \"2s\"\n";
    let sidecar = world.start_with(config, &["demo"]).await;
    let silent = sidecar.raw().await;
    let mut half_closed = send_half(&sidecar).await;
    half_closed.shut_down().await;

    sidecar.client().await.encrypt(b"x").await.ok();
    assert_eq!(world.pass_time_until(silent.rest()).await, "");
    let broken = world.pass_time_until(half_closed.rest()).await;
    assert!(
        broken.is_empty() || broken.contains("invalid_request"),
        "{broken}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_was_removed_or_replaced_is_bound_again() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let socket = sidecar.socket().to_owned();
    let mut before = sidecar.client().await;
    before.encrypt(b"x").await.ok();
    let reasons = || world.log().matches("no application can connect").count();

    fs::remove_file(&socket).unwrap();
    world.advance(3 * SECOND).await;
    world.wait("the socket", || socket.exists()).await;
    sidecar.client().await.encrypt(b"x").await.ok();
    before.encrypt(b"x").await.ok();
    assert_eq!(reasons(), 0);

    // Another process's socket is left alone, and taken over once that process is gone.
    fs::remove_file(&socket).unwrap();
    let other = UnixListener::bind(&socket).unwrap();
    world.advance(3 * SECOND).await;
    world.wait("the reason", || reasons() == 1).await;
    world.advance(MINUTE).await;
    assert_eq!(reasons(), 1, "said once");
    drop(other);
    world.advance(3 * SECOND).await;
    let lines = || world.log().matches("listening again").count();
    world.wait("the socket", || lines() == 2).await;
    sidecar.client().await.encrypt(b"x").await.ok();

    sidecar.stop().await;
    assert!(!socket.exists(), "removed at the end");
}

#[tokio::test(start_paused = true)]
async fn silent_connections_leave_room_for_the_tokens_holders() {
    let world = World::with_demo().await;
    let token = "0123456789abcdef0123456789abcdef";
    fs::write(world.path("token"), token).unwrap();
    fs::set_permissions(world.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    let socket = world.path("one.sock");
    let config = format!(
        "[limits]\nconnections = 50\n[listen]\nsocket = {socket:?}\ntcp = \"127.0.0.1:0\"\n\
         token_file = \"token\"\n"
    );
    let sidecar = world.start_with(&config, &["demo"]).await;
    let path = "/v1/keyrings/demo/encrypt";
    let bearer = format!("Bearer {token}");
    let headers = [OCTETS, ("authorization", bearer.as_str())];
    let mut speaking = sidecar.tcp_client().await;
    speaking.post(path, &headers, "x").await.ok();
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(sidecar.tcp().unwrap()).await.unwrap());
    }
    for _ in 0..20 {
        let mut holder = sidecar.tcp_client().await;
        holder.post(path, &headers, "x").await.ok();
        speaking.post(path, &headers, "x").await.ok();
    }
    let metrics = sidecar.ops("/metrics").await.1;
    let open: f64 = metrics
        .lines()
        .find_map(|line| line.strip_prefix("sidekey_connections{listener=\"tcp\"} "))
        .unwrap()
        .parse()
        .unwrap();
    assert!(open <= 50.0, "{open}");
}

#[tokio::test(start_paused = true)]
async fn silent_connections_of_a_known_user_give_way_to_its_others() {
    let world = World::with_demo().await;
    let config = "[limits]\nconnections = 50\n[timeouts]\nheader = \"2s\"\n";
    let sidecar = world.start_with(config, &["demo"]).await;
    let mut speaking = sidecar.client().await;
    speaking.encrypt(b"x").await.ok();
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(sidecar.raw().await);
    }
    for _ in 0..20 {
        sidecar.client().await.encrypt(b"x").await.ok();
        speaking.encrypt(b"x").await.ok();
    }
    world.advance(5 * SECOND).await;
    assert!(silent.iter().all(RawConnection::is_closed));
    speaking.encrypt(b"x").await.ok();
}

#[tokio::test(start_paused = true)]
async fn silent_connections_leave_room_for_operators() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(sidecar.ops_address()).await.unwrap());
    }
    for _ in 0..20 {
        assert_eq!(sidecar.ops("/livez").await.0, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_half_closes_after_its_request_gets_a_response() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut connection = send_half(&sidecar).await;
    connection.write("def").await;
    connection.shut_down().await;
    assert!(connection.rest().await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_over_the_limit_gets_503() {
    let world = World::with_demo().await;
    let sidecar = world
        .start_with("[limits]\nconnections = 2\n", &["demo"])
        .await;
    let mut busy = [sidecar.client().await, sidecar.client().await];
    for client in &mut busy {
        client.encrypt(b"x").await.ok();
    }
    let refused = sidecar.client().await.encrypt(b"x").await;
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.problem(), "too_many_connections");
    for client in &mut busy {
        client.encrypt(b"x").await.ok();
    }
    drop(busy);
    sidecar
        .wait_metric("sidekey_connections{listener=\"unix\"} 0")
        .await;
    sidecar.client().await.encrypt(b"x").await.ok();
}

#[tokio::test(start_paused = true)]
async fn unauthorized_connections_do_not_crowd_out_authorized_ones() {
    let world = World::with_demo().await;
    let token = "0123456789abcdef0123456789abcdef";
    fs::write(world.path("token"), token).unwrap();
    fs::set_permissions(world.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    let socket = world.path("one.sock");
    let config = format!(
        "[limits]\nconnections = 2\n[listen]\nsocket = {socket:?}\ntcp = \"127.0.0.1:0\"\n\
         token_file = \"token\"\n"
    );
    let sidecar = world.start_with(&config, &["demo"]).await;
    let path = "/v1/keyrings/demo/encrypt";
    let mut unauthorized = Vec::new();
    for _ in 0..10 {
        let mut client = sidecar.tcp_client().await;
        assert_eq!(
            client.post(path, &[OCTETS], "x").await.problem(),
            "unauthorized"
        );
        unauthorized.push(client);
    }
    let bearer = format!("Bearer {token}");
    let mut holder = sidecar.tcp_client().await;
    holder
        .post(path, &[OCTETS, ("authorization", &bearer)], "x")
        .await
        .ok();
    // One listener's connections don't count against the other's limit.
    sidecar.client().await.encrypt(b"x").await.ok();
}

#[tokio::test(start_paused = true)]
async fn operators_see_health_status_metrics_and_the_manifest() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    sidecar.client().await.encrypt(b"x").await.ok();
    assert_eq!(sidecar.ops("/livez").await, (200, "ok\n".into()));
    assert_eq!(sidecar.ops("/readyz").await, (200, "ok\n".into()));
    assert_eq!(
        sidecar.ops("/manifests/demo").await.1,
        world.store("demo").get().unwrap()
    );
    assert_eq!(sidecar.ops("/manifests/nope").await.0, 404);
    assert_eq!(sidecar.ops("/nope").await.0, 404);
    let in_force = &sidecar.keyring().await["active"];
    assert_eq!(
        (&in_force["generation"], &in_force["primary"]),
        (&json!(1), &json!(1))
    );
    assert!(in_force["versions"][0]["last_used"].is_string());
    let metrics = sidecar.ops("/metrics").await.1;
    for line in [
        "sidekey_keyring_generation{keyring=\"demo\"} 1",
        "sidekey_keyring_primary_version{keyring=\"demo\"} 1",
        "sidekey_version_operations_total{keyring=\"demo\",version=\"1\",operation=\"encrypt\"} 1",
        "sidekey_request_duration_seconds_count{keyring=\"demo\",operation=\"encrypt\"} 1",
        "sidekey_received_bytes_total{keyring=\"demo\",operation=\"encrypt\"} 1",
        "sidekey_sent_bytes_total{keyring=\"demo\",operation=\"encrypt\"} 50",
        "sidekey_ready 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is not in\n{metrics}"
        );
    }
}
