//! Secrets in real files: under load, in a volume, and checked by command.

use std::{fs, os::unix::fs::symlink};

use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::support::files::put;
use crate::support::harness::{Client, Sidecar, World, wait};

const BYTES: (&str, &str) = ("accept", "application/octet-stream");

async fn text(client: &mut Client, path: &str) -> String {
    let answer = client
        .send(Method::GET, &format!("/v1/secrets/{path}"), &[BYTES], "")
        .await
        .ok();
    String::from_utf8(answer.body.to_vec()).unwrap()
}

fn config(name: &str, source: &str, more: &str) -> String {
    format!("[[secret]]\nname = {name:?}\nsource = {source:?}\n{more}\n")
}

fn status(sidecar: &Sidecar, name: &str) -> Value {
    let status = sidecar.status();
    status["secrets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|secret| secret["name"] == name)
        .unwrap()
        .clone()
}

#[tokio::test]
async fn under_load_values_never_go_back() {
    let world = World::new();
    put(&world.path("db"), "0");
    let sidecar = world.start_with("one", &config("db", "file:db", ""), &[]);
    let socket = sidecar.socket.clone();
    let stop = tokio_util::sync::CancellationToken::new();
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (socket, stop) = (socket.clone(), stop.clone());
            tokio::spawn(async move {
                let mut client = Client::http1(&socket).await;
                let (mut newest, mut answers) = (0, 0);
                while !stop.is_cancelled() {
                    let number: u32 = text(&mut client, "db").await.parse().unwrap();
                    assert!(number >= newest, "{number} after {newest}");
                    let previous = client
                        .send(Method::GET, "/v1/secrets/db?stage=previous", &[BYTES], "")
                        .await;
                    if previous.status == StatusCode::OK {
                        let previous: u32 = std::str::from_utf8(&previous.body)
                            .unwrap()
                            .parse()
                            .unwrap();
                        assert!(previous + 1 >= number, "{previous} beside {number}");
                    }
                    (newest, answers) = (number, answers + 1);
                }
                answers
            })
        })
        .collect();
    for number in 1..=20 {
        put(&world.path("db"), number.to_string());
        let mut client = sidecar.client().await;
        // The version that the rotation leads to, never a third one.
        while text(&mut client, "db").await != number.to_string() {}
    }
    stop.cancel();
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_kubernetes_volume_changes_atomically() {
    let world = World::new();
    let at = |name: &str| world.path("volume").join(name);
    let write = |instant: &str, user: &str| {
        fs::create_dir_all(at(instant)).unwrap();
        fs::write(at(instant).join("user"), user).unwrap();
        fs::write(at(instant).join("password"), format!("of {user}")).unwrap();
    };
    write("..1", "ann");
    symlink("..1", at("..data")).unwrap();
    for name in ["user", "password"] {
        symlink(format!("..data/{name}"), at(name)).unwrap();
    }
    let both = config("db", "file:volume", "") + &config("user", "file:volume/user", "");
    let sidecar = world.start_with("one", &both, &[]);
    let mut client = sidecar.client().await;
    assert_eq!(
        text(&mut client, "db").await,
        r#"{"password":"of ann","user":"ann"}"#
    );
    assert_eq!(text(&mut client, "user").await, "ann");
    write("..2", "bob");
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    for name in ["db", "user"] {
        wait("the swap", || {
            status(&sidecar, name)["previous"].is_string()
        });
    }
    assert_eq!(
        text(&mut client, "db").await,
        r#"{"password":"of bob","user":"bob"}"#
    );
    assert_eq!(text(&mut client, "user").await, "bob");
    assert_eq!(
        text(&mut client, "db?field=password&stage=previous").await,
        "of ann"
    );
}

#[test]
fn all_config_problems_are_reported_together() {
    let world = World::new();
    let text = r#"
[listen]
socket = "s"
[secrets]
refresh = "0s"
[[secret]]
name = "a"
source = "ftp:x"
[[secret]]
name = "a"
source = "file:*"
[[secret]]
name = "b-*"
source = "file:b"
[[secret]]
name = "c"
source = "vault-kv:secret/../sys"
requird = true
[[policy]]
secrets = ["d"]
uids = [0]
"#;
    fs::write(world.path("c.toml"), text).unwrap();
    let output = world.run(&["check", "--config", world.path("c.toml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said =
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    for (line, words) in [
        (5, "secrets.refresh: must be between 100ms"),
        (8, "unknown scheme `ftp:` of a secret source"),
        (10, "duplicate secret \"a\", already defined on line 7"),
        (11, "contains `*`, but name doesn't"),
        (12, "secret[2].allow: is required"),
        (14, "must contain exactly one `*`"),
        (17, "expected vault-kv:MOUNT/PATH"),
        (18, "did you mean `required`"),
        (20, "unknown secret \"d\""),
    ] {
        assert!(
            said.lines()
                .any(|found| found.contains(&format!("c.toml:{line}:")) && found.contains(words)),
            "{line} {words}\n{said}"
        );
    }
}

#[test]
fn an_online_check_reads_every_secret() {
    let world = World::new();
    put(&world.path("there"), "value");
    let text = config("there", "file:there", "") + &config("missing", "file:missing", "");
    fs::write(
        world.path("c.toml"),
        format!("[listen]\nsocket = \"s\"\n{text}"),
    )
    .unwrap();
    let output = world.run(&[
        "check",
        "--online",
        "--output",
        "json",
        "--config",
        world.path("c.toml").to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&said["tried"][0]["secret"], &said["tried"][0]["error"]),
        (&"there".into(), &Value::Null)
    );
    let error = said["tried"][1]["error"].as_str().unwrap();
    assert!(error.contains("missing: there is no such file"), "{error}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("value"));
}
