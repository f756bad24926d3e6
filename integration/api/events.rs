//! The command that follows events.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::support::files::put;
use crate::support::harness::{Sidecar, World, binary, wait};

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
    let put = |value: &str| put(&world.path("token"), value);
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
