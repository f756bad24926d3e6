//! Listeners: socket permissions, idle connections, signals, log format.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    time::Instant,
};

use hyper::Method;

use crate::support::harness::{PATIENCE, Sidecar, World, wait};

fn half_a_request(sidecar: &Sidecar) -> UnixStream {
    let mut stream = UnixStream::connect(&sidecar.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: 6\r\n\r\nabc"
    )
    .unwrap();
    stream
}

fn rest_of(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    // A reset counts as an end.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_socket_has_its_mode_and_cannot_be_taken_over() {
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
    // A killed sidecar leaves a stale socket, which the next one replaces.
    sidecar.child.kill().unwrap();
    sidecar.ended();
    assert!(socket.exists());
    let mut next = world.start_with("one", &config, &["demo"]);
    next.signal("TERM");
    assert!(next.ended().success());
    assert!(!socket.exists());
}

#[tokio::test]
async fn sigterm_completes_requests_in_flight_and_accepts_no_more() {
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
    wait("the socket's removal", || {
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
fn a_drain_ends_at_its_timeout_or_at_a_second_signal() {
    let world = World::with_demo();
    let config = |drain: &str| format!("[timeouts]\nbody = \"60s\"\ndrain_timeout = \"{drain}\"\n");
    let mut bounded = world.start_with("one", &config("1s"), &["demo"]);
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
async fn a_thousand_silent_connections_leave_room_for_active_clients() {
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

#[test]
fn json_logs_have_one_object_per_line() {
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
