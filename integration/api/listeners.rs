//! Listeners: permissions of the socket, the policy, the token, limits of connections and time, and the end.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    time::Instant,
};

use hyper::{Method, StatusCode};
use serde_json::json;

use crate::support::harness::{Client, OCTETS, PATIENCE, Sidecar, World, wait};

#[tokio::test]
async fn the_policy_decides_by_the_kernels_word() {
    let world = World::with_demo();
    world.init("other", &[]);
    let me = rustix::process::geteuid().as_raw();
    let policy = format!(
        "[[policy]]\nkeyrings = [\"demo\"]\noperations = [\"encrypt\", \"inspect\"]\nuids = [{me}]\n\
         [[policy]]\nkeyrings = [\"other\"]\noperations = \"*\"\nuids = [{}]\n",
        me + 1
    );
    let sidecar = world.start_with("one", &policy, &["demo", "other"]);
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
            .1
            .contains("sidekey_policy_denials_total{keyring=\"demo\",operation=\"decrypt\"} 1")
    );
    assert!(sidecar.log().contains("denied by the policy"));
}

#[tokio::test]
async fn tcp_needs_the_token_and_a_rule_can_name_its_holder() {
    let world = World::with_demo();
    let token = "0123456789abcdef0123456789abcdef";
    fs::write(world.path("token"), token).unwrap();
    fs::set_permissions(world.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\ntcp = \"127.0.0.1:0\"\ntoken_file = \"token\"\n\
         [[policy]]\nkeyrings = \"*\"\noperations = [\"encrypt\"]\ntoken = true\n"
    );
    let sidecar = world.start_with("one", &config, &["demo"]);
    let mut client = Client::tcp(sidecar.tcp.unwrap()).await;
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
    // The rule is for the token's holder; whoever comes by the socket has none.
    assert_eq!(
        sidecar.client().await.encrypt(b"Ada").await.problem(),
        "forbidden"
    );
}

#[test]
fn the_socket_has_its_mode_and_a_second_sidecar_does_not_take_it() {
    let world = World::with_demo();
    let socket = world.path("one.sock");
    let config = format!("[listen]\nsocket = {socket:?}\nmode = \"0600\"\n");
    let mut sidecar = world.start_with("one", &config, &["demo"]);
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let second = crate::support::harness::run(&[
        "serve",
        "--config",
        world.path("one.toml").to_str().unwrap(),
    ]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("another process listens on this socket")
    );
    // A sidecar that is killed leaves a stale socket, which the next one replaces.
    sidecar.child.kill().unwrap();
    sidecar.ended();
    assert!(socket.exists());
    let mut next = world.start_with("one", &config, &["demo"]);
    next.signal("TERM");
    assert!(next.ended().success());
    assert!(!socket.exists());
}

fn half_a_request(sidecar: &Sidecar) -> UnixStream {
    let mut stream = UnixStream::connect(&sidecar.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: 6\r\n\r\nabc"
    )
    .unwrap();
    stream
}

fn rest_of(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn sigterm_answers_what_is_in_flight_and_takes_nothing_new() {
    let world = World::with_demo();
    let mut sidecar = world.start_with("one", "[timeouts]\nbody = \"60s\"\n", &["demo"]);
    let mut stream = half_a_request(&sidecar);
    let mut idle = sidecar.client().await;
    idle.encrypt(b"x").await.ok();
    wait("the request in flight", || {
        sidecar
            .ops("/metrics")
            .1
            .contains("sidekey_connections{listener=\"unix\"} 2")
    });
    sidecar.signal("TERM");
    wait("draining", || sidecar.ops("/readyz").0 == 503);
    wait("the socket's end", || {
        UnixStream::connect(&sidecar.socket).is_err()
    });
    stream.write_all(b"def").unwrap();
    assert!(rest_of(stream).starts_with("HTTP/1.1 200 OK"));
    assert!(sidecar.ended().success());
    assert!(sidecar.log().contains("drained"), "{}", sidecar.log());
    assert!(
        idle.try_send(Method::GET, "/v1/keyrings", &[], "")
            .await
            .is_err()
    );
}

#[test]
fn a_drain_ends_with_its_time_and_a_second_signal_ends_it_at_once() {
    let world = World::with_demo();
    let config = |drain: &str| format!("[timeouts]\nbody = \"60s\"\ndrain_timeout = \"{drain}\"\n");
    let mut bounded = world.start_with("one", &config("200ms"), &["demo"]);
    let _stuck = half_a_request(&bounded);
    wait("the request in flight", || {
        bounded
            .ops("/metrics")
            .1
            .contains("sidekey_connections{listener=\"unix\"} 1")
    });
    bounded.signal("TERM");
    assert!(bounded.ended().success());
    assert!(
        bounded.log().contains("still in flight"),
        "{}",
        bounded.log()
    );

    let mut endless = world.start_with("two", &config("1d"), &["demo"]);
    let _stuck = half_a_request(&endless);
    wait("the request in flight", || {
        endless
            .ops("/metrics")
            .1
            .contains("sidekey_connections{listener=\"unix\"} 1")
    });
    endless.signal("TERM");
    wait("draining", || endless.ops("/readyz").0 == 503);
    endless.signal("INT");
    assert!(endless.ended().success());
    assert!(
        endless.log().contains("stopping immediately"),
        "{}",
        endless.log()
    );
}

#[tokio::test]
async fn slow_clients_are_ended_and_cost_nobody_else_anything() {
    let world = World::with_demo();
    let config = "[timeouts]\nheader = \"300ms\"\nbody = \"300ms\"\nidle = \"600ms\"\n";
    let sidecar = world.start_with("one", config, &["demo"]);
    let connect = || {
        let stream = UnixStream::connect(&sidecar.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let silent = connect();
    let mut slow_head = connect();
    slow_head.write_all(b"POST /v1/key").unwrap();
    let slow_body = half_a_request(&sidecar);
    let mut half_closed = half_a_request(&sidecar);
    half_closed.flush().unwrap();
    half_closed.shutdown(std::net::Shutdown::Write).unwrap();
    let mut idle = connect();
    write!(idle, "GET /v1/keyrings HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();

    sidecar.client().await.encrypt(b"x").await.ok();
    assert_eq!(rest_of(silent), "");
    assert_eq!(rest_of(slow_head), "");
    let timed_out = rest_of(slow_body);
    assert!(
        timed_out.starts_with("HTTP/1.1 408") && timed_out.contains("request_timeout"),
        "{timed_out}"
    );
    let broken = rest_of(half_closed);
    assert!(
        broken.is_empty() || broken.contains("invalid_request"),
        "{broken}"
    );
    assert!(rest_of(idle).starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_client_that_half_closes_after_its_request_gets_its_answer() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut stream = half_a_request(&sidecar);
    stream.write_all(b"def").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(rest_of(stream).starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_thousand_silent_connections_leave_room_for_those_who_speak() {
    let world = World::with_demo();
    let sidecar = world.start_with("one", "[limits]\nconnections = 100\n", &["demo"]);
    let mut speaking = sidecar.client().await;
    speaking.encrypt(b"x").await.ok();
    let silent: Vec<_> = (0..1000)
        .map(|_| UnixStream::connect(&sidecar.socket).unwrap())
        .collect();
    let begun = Instant::now();
    for _ in 0..20 {
        sidecar.client().await.encrypt(b"x").await.ok();
        speaking.encrypt(b"x").await.ok();
    }
    assert!(begun.elapsed() < PATIENCE);
    let metrics = sidecar.ops("/metrics").1;
    let open: f64 = metrics
        .lines()
        .find_map(|line| line.strip_prefix("sidekey_connections{listener=\"unix\"} "))
        .unwrap()
        .parse()
        .unwrap();
    assert!(open <= 100.0, "{open}");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_over_the_limit_is_told_so() {
    let world = World::with_demo();
    let sidecar = world.start_with("one", "[limits]\nconnections = 2\n", &["demo"]);
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
    wait("room", || {
        sidecar
            .ops("/metrics")
            .1
            .contains("sidekey_connections{listener=\"unix\"} 0")
    });
    sidecar.client().await.encrypt(b"x").await.ok();
}

#[tokio::test]
async fn who_is_not_let_in_keeps_no_place_from_those_who_are() {
    let world = World::with_demo();
    let token = "0123456789abcdef0123456789abcdef";
    fs::write(world.path("token"), token).unwrap();
    fs::set_permissions(world.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    let socket = world.path("one.sock");
    let config = format!(
        "[limits]\nconnections = 2\n[listen]\nsocket = {socket:?}\ntcp = \"127.0.0.1:0\"\ntoken_file = \"token\"\n"
    );
    let sidecar = world.start_with("one", &config, &["demo"]);
    let path = "/v1/keyrings/demo/encrypt";
    let mut strangers = Vec::new();
    for _ in 0..10 {
        let mut stranger = Client::tcp(sidecar.tcp.unwrap()).await;
        assert_eq!(
            stranger.post(path, &[OCTETS], "x").await.problem(),
            "unauthorized"
        );
        strangers.push(stranger);
    }
    let bearer = format!("Bearer {token}");
    let mut holder = Client::tcp(sidecar.tcp.unwrap()).await;
    holder
        .post(path, &[OCTETS, ("authorization", &bearer)], "x")
        .await
        .ok();
    // And the one listener's connections take nothing from the other's.
    sidecar.client().await.encrypt(b"x").await.ok();
}

#[test]
fn silent_connections_leave_room_for_operators() {
    let world = World::with_demo();
    let sidecar = world.start();
    let silent: Vec<_> = (0..200)
        .map(|_| std::net::TcpStream::connect(sidecar.ops).unwrap())
        .collect();
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(sidecar.ops("/livez").0, 200);
    }
    assert!(begun.elapsed() < PATIENCE);
    drop(silent);
}

#[tokio::test]
async fn operators_see_health_status_metrics_and_the_manifest() {
    let world = World::with_demo();
    let sidecar = world.start();
    sidecar.client().await.encrypt(b"x").await.ok();
    assert_eq!(sidecar.ops("/livez"), (200, "ok\n".into()));
    assert_eq!(sidecar.ops("/readyz"), (200, "ok\n".into()));
    assert_eq!(
        sidecar.ops("/manifests/demo").1,
        fs::read_to_string(world.manifest("demo")).unwrap()
    );
    assert_eq!(sidecar.ops("/manifests/nope").0, 404);
    assert_eq!(sidecar.ops("/nope").0, 404);
    let in_force = &sidecar.keyring()["active"];
    assert_eq!(
        (&in_force["generation"], &in_force["primary"]),
        (&json!(1), &json!(1))
    );
    assert!(in_force["versions"][0]["last_used"].is_string());
    let metrics = sidecar.ops("/metrics").1;
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

#[test]
fn logs_are_one_json_object_a_line_if_the_config_says_so() {
    let world = World::with_demo();
    let mut sidecar = world.start_with("one", "[log]\nformat = \"json\"\n", &["demo"]);
    sidecar.signal("TERM");
    assert!(sidecar.ended().success());
    wait("the last line", || sidecar.log().contains("drained"));
    let log = sidecar.log();
    let messages: Vec<String> = log
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["timestamp"].is_string() && line["level"].is_string());
            line["message"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(
        messages,
        [
            "listening",
            "keyring active",
            "ready",
            "stopping",
            "drained"
        ]
    );
}
