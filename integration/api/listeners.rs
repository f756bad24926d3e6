//! Listeners: socket permissions, signals, log format.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

use crate::support::harness::{World, wait};

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

#[test]
fn sigterm_drains_and_a_second_signal_stops_at_once() {
    let world = World::with_demo();
    let config = "[timeouts]\nbody = \"1d\"\ndrain_timeout = \"1d\"\n";
    let mut sidecar = world.start_with("one", config, &["demo"]);
    let mut half = UnixStream::connect(&sidecar.socket).unwrap();
    half.write_all(
        b"POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
          Content-Type: application/octet-stream\r\nContent-Length: 6\r\n\r\nabc",
    )
    .unwrap();
    wait("the request in flight", || {
        sidecar
            .ops("/metrics")
            .1
            .contains("sidekey_connections{listener=\"unix\"} 1")
    });
    sidecar.signal("TERM");
    wait("draining", || sidecar.ops("/readyz").0 == 503);
    sidecar.signal("INT");
    assert!(sidecar.ended().success());
    assert!(
        sidecar.log().contains("stopping immediately"),
        "{}",
        sidecar.log()
    );
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
