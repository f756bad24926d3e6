//! Another config for a running sidecar.

use std::{fs, io::Write, os::unix::net::UnixStream, process::Command};

use serde_json::Value;

use crate::support::harness::{Sidecar, World, uid, wait};

fn rule(operation: &str) -> String {
    format!(
        "[[policy]]\nkeyrings = \"*\"\noperations = [{operation:?}]\nuids = [{}]\n",
        uid()
    )
}

fn config(sidecar: &Sidecar) -> Value {
    sidecar.status()["config"].clone()
}

fn count(sidecar: &Sidecar, result: &str) -> u64 {
    let metrics = sidecar.ops("/metrics").1;
    let start = format!("sidekey_config_reloads_total{{result={result:?}}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_change_of_the_file_and_sighup_reload_the_config() {
    let world = World::with_demo();
    let sidecar = world.start_with("one", &rule("encrypt"), &["demo"]);
    let mut client = sidecar.client().await;
    let message = client.encrypt(b"x").await.ok().body;
    let before = config(&sidecar);

    let file = world.configure("one", &rule("decrypt"), &["demo"]);
    wait("another config", || {
        config(&sidecar)["sha256"] != before["sha256"]
    });
    assert_eq!(client.encrypt(b"x").await.problem(), "forbidden");
    client.decrypt(&message).await.ok();
    let sum = Command::new("sha256sum").arg(&file).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let sha256 = config(&sidecar)["sha256"].as_str().unwrap().to_owned();
    assert!(sum.starts_with(&sha256), "{sum} {sha256}");

    let unchanged = count(&sidecar, "unchanged");
    sidecar.signal("HUP");
    wait("SIGHUP", || count(&sidecar, "unchanged") > unchanged);

    // What isn't HTTP is logged at this level.
    let debug = format!("[log]\nlevel = \"debug\"\n{}", rule("decrypt"));
    world.configure("one", &debug, &["demo"]);
    wait("the level", || {
        config(&sidecar)["sha256"] != sha256.as_str()
    });
    let mut stranger = UnixStream::connect(&sidecar.socket).unwrap();
    stranger.write_all(b"\x00\x01 nonsense\r\n\r\n").unwrap();
    sidecar.wait_log("connection failed");
    client.decrypt(&message).await.ok();
}

#[tokio::test]
async fn a_config_that_cannot_be_read_changes_nothing_and_holds_up_no_signal() {
    let world = World::with_demo();
    let mut sidecar = world.start_with("one", &rule("encrypt"), &["demo"]);
    let mut client = sidecar.client().await;
    let file = world.path("one.toml");
    fs::write(&file, "nonsense").unwrap();
    wait("the problem", || {
        config(&sidecar)["last_error"]["code"] == "config_invalid"
    });
    client.encrypt(b"x").await.ok();
    // Opening it would wait for a writer.
    fs::remove_file(&file).unwrap();
    let made = Command::new("mkfifo").arg(&file).status().unwrap();
    assert!(made.success());
    sidecar.signal("HUP");
    wait("the reason", || {
        let error = &config(&sidecar)["last_error"];
        let message = error["message"].as_str().unwrap_or_default();
        error["code"] == "config_unreadable" && message.contains("a pipe")
    });
    client.encrypt(b"x").await.ok();
    sidecar.signal("TERM");
    assert!(sidecar.ended().success(), "{}", sidecar.log());
}
