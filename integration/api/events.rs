//! Server-sent events and the command that follows them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use hyper::Method;
use serde_json::Value;

use crate::support::events::Listener;
use crate::support::harness::{Sidecar, World, binary, uid, wait};

#[tokio::test]
async fn a_subscriber_gets_the_current_state_and_then_every_change() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut listener = Listener::open(&sidecar, None).await;
    let (_, first) = listener.next().await.unwrap();
    assert_eq!(first["primary"], 1);
    assert_eq!(
        first["versions"],
        serde_json::json!([{ "version": 1, "role": "primary" }])
    );
    world.keyring("rotate", "demo", &[]);
    let (_, added) = listener.next().await.unwrap();
    assert_eq!(
        (&added["generation"], &added["primary"]),
        (&2.into(), &1.into())
    );
    assert_eq!(added["versions"][1]["role"], "pending");
    world.keyring("activate", "demo", &["--version", "2"]);
    let (_, activated) = listener.next().await.unwrap();
    assert_eq!(
        (&activated["primary"], &activated["versions"][0]["role"]),
        (&2.into(), &"decrypt-only".into())
    );
}

#[tokio::test]
async fn a_scheduled_activation_is_announced_when_due() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut listener = Listener::open(&sidecar, None).await;
    listener.expect("demo", 1).await;
    world.keyring("rotate", "demo", &[]);
    listener.expect("demo", 2).await;
    let soon = jiff::Timestamp::now() + Duration::from_secs(2);
    world.keyring(
        "activate",
        "demo",
        &["--version", "2", "--at", &soon.to_string()],
    );
    let (_, scheduled) = listener.next().await.unwrap();
    assert_eq!(
        (&scheduled["generation"], &scheduled["primary"]),
        (&3.into(), &1.into())
    );
    let (_, due) = listener.next().await.unwrap();
    assert_eq!(
        (&due["generation"], &due["primary"]),
        (&3.into(), &2.into())
    );
}

#[tokio::test]
async fn a_reconnecting_subscriber_gets_missed_events_once() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut listener = Listener::open(&sidecar, None).await;
    let seen = listener.expect("demo", 1).await;
    drop(listener);
    world.keyring("rotate", "demo", &[]);
    sidecar.wait_generation(2);
    world.keyring("rotate", "demo", &[]);
    sidecar.wait_generation(3);
    let mut listener = Listener::open(&sidecar, Some(&seen)).await;
    let second = listener.expect("demo", 2).await;
    listener.expect("demo", 3).await;
    let mut listener = Listener::open(&sidecar, Some(&second)).await;
    listener.expect("demo", 3).await;
    // A stream that can't be resumed starts again.
    for strange in ["", "7", "1-1", "x-y"] {
        Listener::open(&sidecar, Some(strange))
            .await
            .expect("demo", 3)
            .await;
    }
}

#[tokio::test]
async fn subscribers_see_only_keyrings_they_may_inspect() {
    let world = World::with_demo();
    world.init("hidden", &[]);
    let uid = uid();
    let config =
        format!("[[policy]]\nkeyrings = [\"demo\"]\noperations = [\"inspect\"]\nuids = [{uid}]\n");
    let sidecar = world.start_with("one", &config, &["demo", "hidden"]);
    let mut listener = Listener::open(&sidecar, None).await;
    listener.expect("demo", 1).await;
    world.keyring("rotate", "hidden", &[]);
    wait("the hidden keyring", || {
        sidecar.status()["keyrings"][1]["active"]["generation"] == 2
    });
    world.keyring("rotate", "demo", &[]);
    listener.expect("demo", 2).await;
}

#[tokio::test]
async fn unauthorized_callers_get_no_events_and_subscribers_do_not_block_requests() {
    let world = World::with_demo();
    let stranger = "[[policy]]\nkeyrings = \"*\"\noperations = \"*\"\nuids = [4294967294]\n";
    let sidecar = world.start_with("closed", stranger, &["demo"]);
    for path in ["/v1/events", "/v1/keyrings", "/v1/openapi.json"] {
        let answer = sidecar
            .client()
            .await
            .send(Method::GET, path, &[], "")
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().as_str()),
            (403, "forbidden"),
            "{path}"
        );
    }
    let sidecar = world.start_with("open", "[limits]\nconnections = 6\n", &["demo"]);
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(Listener::open(&sidecar, None).await);
    }
    let answer = sidecar
        .client()
        .await
        .send(Method::GET, "/v1/events", &[], "")
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().as_str()),
        (503, "too_many_connections")
    );
    sidecar.client().await.encrypt(b"work").await.ok();
    drop(listeners);
}

#[tokio::test]
async fn subscribers_do_not_delay_shutdown() {
    let world = World::with_demo();
    let mut sidecar = world.start();
    let mut listener = Listener::open(&sidecar, None).await;
    listener.expect("demo", 1).await;
    sidecar.signal("TERM");
    assert!(listener.next().await.is_none(), "a clean end");
    assert!(sidecar.ended().success());
    assert!(sidecar.log().contains("drained"));
}

struct Watch(Child, BufReader<std::process::ChildStdout>);

impl Watch {
    fn start(sidecar: &Sidecar, more: &[&str]) -> Self {
        let socket = sidecar.socket.to_str().unwrap();
        let arguments = [&["watch", "--socket", socket], more].concat();
        let mut child = Command::new(binary())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        // Its error output isn't needed.
        drop(child.stderr.take());
        Self(child, lines)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.1.read_line(&mut line).unwrap() > 0,
            "the command exited"
        );
        line
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_watch_command_prints_secret_events() {
    let world = World::with_demo();
    let put = |value: &str| {
        std::fs::write(world.path("next"), value).unwrap();
        std::fs::rename(world.path("next"), world.path("token")).unwrap();
    };
    put("t1");
    let secrets = "[[secret]]\nname = \"token\"\nsource = \"file:token\"\n[[secret]]\n\
        name = \"other\"\nsource = \"file:token\"\n";
    let sidecar = world.start_with("one", secrets, &["demo"]);
    wait("the secrets", || {
        sidecar.status()["secrets"]
            .as_array()
            .unwrap()
            .iter()
            .all(|secret| secret["version"].is_string())
    });
    let mut text = Watch::start(&sidecar, &["--secret", "token"]);
    let mut json = Watch::start(&sidecar, &["--output", "json", "--secret", "token"]);
    let mut both = Watch::start(&sidecar, &["--secret", "token", "--keyring", "demo"]);
    let first: Value = serde_json::from_str(&json.line()).unwrap();
    let version = first["version"].as_str().unwrap().to_owned();
    assert!(
        text.line()
            .contains(&format!("secret token  version {version}"))
    );
    assert!(both.line().contains("demo  generation 1") && both.line().contains("secret token"));
    put("t2");
    let second: Value = serde_json::from_str(&json.line()).unwrap();
    assert_eq!(
        (&second["secret"], &second["previous"]),
        (&first["secret"], &first["version"])
    );
    assert_ne!(second["version"], first["version"]);
    assert!(text.line().contains(&format!("(previous: {version})")));
    std::fs::remove_file(world.path("token")).unwrap();
    assert!(serde_json::from_str::<Value>(&json.line()).unwrap()["version"].is_null());
    assert!(text.line().contains("deleted at the provider"));
}

#[test]
fn the_watch_command_survives_a_sidecar_restart() {
    let world = World::with_demo();
    let mut sidecar = world.start();
    let mut text = Watch::start(&sidecar, &[]);
    let mut json = Watch::start(&sidecar, &["--output", "json", "--keyring", "demo"]);
    let first = text.line();
    assert!(
        first.contains("demo  generation 1  primary 1  (1 primary)"),
        "{first}"
    );
    assert_eq!(
        serde_json::from_str::<Value>(&json.line()).unwrap()["primary"],
        1
    );
    sidecar.signal("TERM");
    sidecar.ended();
    drop(sidecar);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    let _sidecar = world.start();
    assert!(text.line().contains("primary 2"));
    assert_eq!(
        serde_json::from_str::<Value>(&json.line()).unwrap()["generation"],
        3
    );
}
