//! `sidekey fleet`: the inventory of a fleet that a file lists.

use std::{fs, process::Output};

use serde_json::Value;

use crate::support::harness::{Sidecar, World};

/// A fleet file with `sidecars`, and a port that nothing listens on if `has_dead_one`.
fn fleet_file(world: &World, sidecars: &[(&str, &Sidecar)], has_dead_one: bool) -> String {
    let mut text = String::from("[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\n");
    for (name, sidecar) in sidecars {
        text.push_str(&format!(
            "[[sidecar]]\nurl = \"http://{}\"\nname = \"{name}\"\nworkload = \"shop\"\n",
            sidecar.ops
        ));
    }
    if has_dead_one {
        text.push_str("[[sidecar]]\nurl = \"http://127.0.0.1:1\"\nname = \"dead, or gone\"\n");
    }
    let file = world.path("fleet.toml");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_fleet_is_listed_as_a_table_json_and_csv() {
    let world = World::with_demo();
    let canary = world.start_with("canary", "wave = \"canary\"", &["demo"]);
    let standard = world.start_with("standard", "", &["demo"]);
    let both = [("orders-0", &canary), ("orders-1", &standard)];
    let file = fleet_file(&world, &both, false);

    let table = world.succeed(&["fleet", "status", "--fleet", &file]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[1].starts_with("orders-0  shop "), "{table}");
    assert!(
        lines[1].contains(" canary ") && lines[2].contains(" standard "),
        "{table}"
    );
    let keys = world.succeed(&["fleet", "keys", "--fleet", &file]);
    assert!(keys.contains("canary=primary standard=primary"), "{keys}");
    assert!(keys.contains(" 2@1 "), "{keys}");

    // One that doesn't answer: everything is printed, and the exit code says so.
    let file = fleet_file(&world, &both, true);
    let json = world.run(&["--output", "json", "fleet", "status", "--fleet", &file]);
    assert_eq!(json.status.code(), Some(3), "{json:?}");
    let status: Value = serde_json::from_slice(&json.stdout).unwrap();
    let sidecars = status["sidecars"].as_array().unwrap();
    let instance = sidecars[0]["instance"].as_str().unwrap();
    assert_eq!(instance, canary.status()["instance"].as_str().unwrap());
    assert_eq!(sidecars[1]["keyrings"][0]["lag"], 0);
    assert!(
        sidecars[2]["unreachable"]
            .as_str()
            .unwrap()
            .contains("refused")
    );

    let csv = world.run(&["fleet", "status", "--csv", "--fleet", &file]);
    assert_eq!(csv.status.code(), Some(3), "{csv:?}");
    let csv = out(&csv);
    let lines: Vec<&str> = csv.split("\r\n").collect();
    assert!(
        lines[0].starts_with("sidecar,workload,build,instance,"),
        "{csv}"
    );
    assert!(lines[1].contains(instance), "{csv}");
    assert!(lines[3].starts_with("\"dead, or gone\",,,"), "{csv}");

    let keys = world.run(&["fleet", "keys", "--csv", "--fleet", &file]);
    assert_eq!(keys.status.code(), Some(3), "{keys:?}");
    assert!(out(&keys).starts_with("keyring,id,version,"), "{keys:?}");
    let error = String::from_utf8_lossy(&keys.stderr).into_owned();
    assert!(error.contains("1 of 3 sidecars are unreachable"), "{error}");
}

#[test]
fn the_fleet_file_may_come_from_the_environment_and_must_be_valid() {
    let mut world = World::with_demo();
    let file = world.path("fleet.toml");
    fs::write(
        &file,
        "[[sidecar]]\nurl = \"10.1.2.3\"\nwave = \"canary\"\n",
    )
    .unwrap();
    world
        .env
        .push(("SIDEKEY_FLEET", file.to_str().unwrap().to_owned()));
    let output = world.run(&["fleet", "status"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("fleet.toml:2: sidecar[0].url: "), "{error}");
    assert!(
        error.contains("fleet.toml:3: sidecar[0].wave: unknown key"),
        "{error}"
    );
}
