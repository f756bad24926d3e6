//! Secrets read from files over the socket: behavior common to all providers.

use std::{fs, os::unix::fs::symlink, path::Path};

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::events::Listener;
use crate::support::harness::{Answer, Client, PATIENCE, Sidecar, World, uid, wait};

const BYTES: (&str, &str) = ("accept", "application/octet-stream");

async fn get(client: &mut Client, path: &str) -> Answer {
    client
        .send(Method::GET, &format!("/v1/secrets/{path}"), &[], "")
        .await
}

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

/// Replaces a file atomically.
fn put(path: &Path, text: impl AsRef<[u8]>) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
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
async fn a_secret_is_served_as_json_bytes_or_field() {
    let world = World::new();
    put(
        &world.path("db"),
        r#"{"user":"ann","password":"p\"w","port":5432}"#,
    );
    put(&world.path("blob"), [0, 0xff, 0x80]);
    let text_and_blob = config("db", "file:db", "") + &config("blob", "file:blob", "");
    let sidecar = world.start_with("one", &text_and_blob, &[]);
    let mut client = sidecar.client().await;

    let answer = get(&mut client, "db").await.ok();
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["cache-control"], "no-store");
    let body = answer.json();
    assert_eq!(
        body["value"],
        r#"{"user":"ann","password":"p\"w","port":5432}"#
    );
    assert_eq!(
        (&body["name"], &body["stage"], &body["stale"]),
        (&"db".into(), &"current".into(), &false.into())
    );
    assert_eq!(
        answer.headers["sidekey-secret-version"],
        body["version"].as_str().unwrap()
    );
    for time in ["created_at", "fetched_at"] {
        body[time]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .unwrap();
    }
    assert!(!answer.headers.contains_key("sidekey-stale"));

    assert_eq!(
        get(&mut client, "db?field=password").await.ok().json()["value"],
        "p\"w"
    );
    assert_eq!(text(&mut client, "db?field=port").await, "5432");
    assert_eq!(
        get(&mut client, "db?field=none").await.problem(),
        "secret_field_not_found"
    );
    assert_eq!(
        get(&mut client, "blob?field=a").await.problem(),
        "secret_field_not_found"
    );
    assert_eq!(
        get(&mut client, "blob").await.ok().json()["value_base64"],
        "AP+A"
    );
    let bytes = client
        .send(Method::GET, "/v1/secrets/blob", &[BYTES], "")
        .await
        .ok();
    assert_eq!(
        (
            &bytes.body[..],
            bytes.headers["sidekey-secret-stage"].as_bytes()
        ),
        (&[0, 0xff, 0x80][..], &b"current"[..])
    );
    assert_eq!(bytes.headers["content-type"], "application/octet-stream");

    let tag = bytes.headers["etag"].to_str().unwrap().to_owned();
    let unchanged = client
        .send(
            Method::GET,
            "/v1/secrets/blob",
            &[BYTES, ("if-none-match", &tag)],
            "",
        )
        .await;
    assert_eq!(
        (unchanged.status, unchanged.body.len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
    let json = client
        .send(
            Method::GET,
            "/v1/secrets/blob",
            &[("if-none-match", &tag)],
            "",
        )
        .await;
    assert_eq!(
        json.status,
        StatusCode::OK,
        "another form is a different response"
    );

    let list = client
        .send(Method::GET, "/v1/secrets", &[], "")
        .await
        .ok()
        .json();
    let names: Vec<_> = list["secrets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|secret| secret["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["blob", "db"]);
    assert!(!list.to_string().contains("ann"));
}

#[tokio::test]
async fn invalid_secret_requests_are_rejected() {
    let world = World::new();
    put(&world.path("db"), "value");
    let sidecar = world.start_with("one", &config("db", "file:db", ""), &[]);
    let mut client = sidecar.client().await;
    for (path, code) in [
        ("other", "secret_not_found"),
        ("..%2Fdb", "secret_not_found"),
        ("DB", "secret_not_found"),
        ("db/x", "not_found"),
        ("db?stage=next", "invalid_request"),
        ("db?stage=current&version=1", "invalid_request"),
        ("db?verbose=1", "invalid_request"),
        ("db?stage=previous", "secret_not_found"),
        ("db?stage=pending", "secret_not_found"),
        ("db?version=7", "secret_not_found"),
        ("db?min_version=x", "secret_version_unavailable"),
    ] {
        assert_eq!(get(&mut client, path).await.problem(), code, "{path}");
    }
    assert_eq!(
        client.post("/v1/secrets/db", &[], "").await.problem(),
        "method_not_allowed"
    );
    assert_eq!(text(&mut client, "db").await, "value");
}

#[tokio::test]
async fn a_rotation_is_noticed_at_once_and_the_previous_value_is_kept() {
    let world = World::new();
    put(&world.path("db"), "old");
    let sidecar = world.start_with(
        "one",
        &config("db", "file:db", "previous_ttl = \"1h\""),
        &[],
    );
    let mut client = sidecar.client().await;
    let first = get(&mut client, "db").await.ok().json()["version"]
        .as_str()
        .unwrap()
        .to_owned();
    put(&world.path("db"), "new");
    wait("the new value", || {
        status(&sidecar, "db")["version"] != first.as_str()
    });
    assert_eq!(text(&mut client, "db").await, "new");
    assert_eq!(text(&mut client, "db?stage=previous").await, "old");
    let by_version = get(&mut client, &format!("db?version={first}"))
        .await
        .ok()
        .json();
    assert_eq!(
        (&by_version["value"], &by_version["stage"]),
        (&"old".into(), &"previous".into())
    );
    let status = status(&sidecar, "db");
    assert_eq!(status["previous"], first.as_str());
    let uses: Vec<_> = status["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| version["uses"].clone())
        .collect();
    assert_eq!(uses, [3, 1], "the evidence");
    let metrics = sidecar.ops("/metrics").1;
    for line in [
        format!("sidekey_secret_version_uses_total{{secret=\"db\",version=\"{first}\"}} 3"),
        format!(
            "sidekey_secret_version_info{{secret=\"db\",version=\"{first}\",stage=\"previous\"}} 1"
        ),
        "sidekey_secret_requests_total{secret=\"db\",code=\"ok\"} 4".into(),
        "sidekey_secret_refresh_failing{secret=\"db\"} 0".into(),
    ] {
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    assert!(!sidecar.log().contains("new value") && !metrics.contains("\"old\""));
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

#[tokio::test]
async fn a_deleted_secret_is_gone_and_can_return() {
    let world = World::new();
    put(&world.path("db"), "value");
    let sidecar = world.start_with("one", &config("db", "file:db", ""), &[]);
    let mut client = sidecar.client().await;
    assert_eq!(text(&mut client, "db").await, "value");
    fs::remove_file(world.path("db")).unwrap();
    wait("its end", || status(&sidecar, "db")["version"].is_null());
    assert_eq!(get(&mut client, "db").await.problem(), "secret_not_found");
    put(&world.path("db"), "again");
    wait("its return", || {
        status(&sidecar, "db")["version"].is_string()
    });
    assert_eq!(text(&mut client, "db").await, "again");
    // An unreadable file is different: the cached value keeps being served, marked as stale.
    fs::remove_file(world.path("db")).unwrap();
    fs::write(world.path("db"), "").unwrap();
    wait("the failure", || {
        status(&sidecar, "db")["last_error"]["code"] == "unavailable"
    });
    let stale = client
        .send(Method::GET, "/v1/secrets/db", &[BYTES], "")
        .await
        .ok();
    assert_eq!(
        (&stale.body[..], stale.headers.contains_key("sidekey-stale")),
        (&b"again"[..], true)
    );
    assert_eq!(get(&mut client, "db").await.ok().json()["stale"], true);
    assert!(
        sidecar
            .ops("/metrics")
            .1
            .contains("sidekey_secret_served_stale_total{secret=\"db\"} 2")
    );
}

#[tokio::test]
async fn a_file_written_in_place_is_never_served_incomplete() {
    use std::{
        io::Write,
        time::{Duration, Instant},
    };
    use tokio::time::timeout;

    /// A file that hasn't changed for this long is complete (docs/secrets.md).
    const SETTLED: Duration = Duration::from_millis(300);

    let world = World::new();
    put(&world.path("db"), "old");
    let sidecar = world.start_with("one", &config("db", "file:db", ""), &[]);
    let mut client = sidecar.client().await;
    assert_eq!(text(&mut client, "db").await, "old");
    let mut file = fs::File::create(world.path("db")).unwrap();
    let mut last = "old".to_owned();
    for part in ["NEW", "-", "COMPLETE"] {
        let start = Instant::now();
        file.write_all(part.as_bytes()).unwrap();
        while start.elapsed() < SETTLED / 3 {
            let served = text(&mut client, "db").await;
            if served != last {
                // Only if this machine stalled for as long as a writer may pause.
                assert!(start.elapsed() >= SETTLED, "{served} is incomplete");
                last = served;
            }
        }
    }
    drop(file);
    let complete = async { while text(&mut client, "db").await != "NEW-COMPLETE" {} };
    timeout(PATIENCE, complete).await.expect("the new value");
    assert_eq!(text(&mut client, "db?stage=previous").await, last);
}

#[tokio::test]
async fn unknown_names_create_no_metrics_and_are_evicted() {
    let world = World::new();
    fs::create_dir(world.path("teams")).unwrap();
    let mapping = config("team-*", "file:teams/*", "allow = [\"team-*\"]");
    let sidecar = world.start_with("one", &format!("secrets.wild_names = 5\n{mapping}"), &[]);
    let mut client = sidecar.client().await;
    for number in 0..50 {
        assert_eq!(
            get(&mut client, &format!("team-{number}")).await.problem(),
            "secret_not_found"
        );
    }
    let metrics = sidecar.ops("/metrics").1;
    assert!(!metrics.contains("team-"), "{metrics}");
    assert!(
        metrics.contains("sidekey_secret_requests_total{secret=\"\",code=\"secret_not_found\"} 50")
    );
    for number in 0..5 {
        put(&world.path("teams").join(number.to_string()), "value");
        assert_eq!(text(&mut client, &format!("team-{number}")).await, "value");
    }
    put(&world.path("teams/more"), "value");
    assert_eq!(get(&mut client, "team-more").await.problem(), "overloaded");
    assert_eq!(text(&mut client, "team-0").await, "value");
}

#[tokio::test]
async fn long_files_are_served_and_oversized_ones_rejected() {
    let world = World::new();
    put(&world.path("huge"), "x".repeat(64 << 10));
    put(&world.path("long"), "x".repeat((256 << 10) + 1));
    let both = config("huge", "file:huge", "") + &config("long", "file:long", "");
    let sidecar = world.start_with("one", &both, &[]);
    let mut client = sidecar.client().await;
    assert_eq!(text(&mut client, "huge").await.len(), 64 << 10);
    assert_eq!(
        get(&mut client, "huge").await.ok().json()["value"]
            .as_str()
            .unwrap()
            .len(),
        64 << 10
    );
    assert_eq!(
        get(&mut client, "long").await.problem(),
        "provider_unavailable"
    );
    let error = status(&sidecar, "long")["last_error"].clone();
    assert_eq!(error["code"], "too_long");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("secrets.value_bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn readiness_waits_only_for_required_secrets() {
    let world = World::new();
    let both = config("must", "file:must", "required = true") + &config("may", "file:may", "");
    let sidecar = world.launch("one", &both, &[]);
    wait("the reason", || {
        sidecar.ops("/readyz").1.contains("secret must: file:")
    });
    assert_eq!(sidecar.ops("/readyz").0, 503);
    assert!(!sidecar.ops("/readyz").1.contains("may"));
    put(&world.path("must"), "value");
    sidecar.wait_ready();
    fs::remove_file(world.path("must")).unwrap();
    wait("its end", || status(&sidecar, "must")["version"].is_null());
    assert_eq!(sidecar.ops("/readyz").0, 200, "a ready sidecar stays ready");
}

#[tokio::test]
async fn wildcard_names_are_served_if_allowed() {
    let world = World::new();
    fs::create_dir(world.path("teams")).unwrap();
    for name in ["a", "b-x", "c"] {
        put(&world.path("teams").join(name), name);
    }
    let mapping = config(
        "team-*",
        "file:teams/*",
        "allow = [\"team-a\", \"team-b-*\", \"team-none\"]",
    );
    let sidecar = world.start_with("one", &mapping, &[]);
    let mut client = sidecar.client().await;
    assert_eq!(text(&mut client, "team-a").await, "a");
    assert_eq!(text(&mut client, "team-b-x").await, "b-x");
    for missing in ["team-c", "team-none", "team-..", "team-b-..%2F..%2Fkek"] {
        assert_eq!(
            get(&mut client, missing).await.problem(),
            "secret_not_found",
            "{missing}"
        );
    }
    // It is as fresh as any other secret.
    put(&world.path("teams/a"), "new");
    wait("the new value", || {
        status(&sidecar, "team-a")["previous"].is_string()
    });
    assert_eq!(text(&mut client, "team-a").await, "new");
}

#[tokio::test]
async fn policy_denials_of_secrets_are_counted_and_audited() {
    let world = World::new();
    put(&world.path("mine"), "a");
    put(&world.path("yours"), "b");
    let config = format!(
        "[audit]\nfile = \"audit.log\"\n{}{}[[policy]]\nsecrets = [\"mine\"]\nuids = [{}]\n",
        config("mine", "file:mine", ""),
        config("yours", "file:yours", ""),
        uid()
    );
    let sidecar = world.start_with("one", &config, &[]);
    let mut client = sidecar.client().await;
    assert_eq!(text(&mut client, "mine").await, "a");
    assert_eq!(get(&mut client, "yours").await.problem(), "forbidden");
    assert_eq!(
        get(&mut client, "nobodys").await.problem(),
        "forbidden",
        "nor does it reveal which secrets exist"
    );
    let list = client
        .send(Method::GET, "/v1/secrets", &[], "")
        .await
        .ok()
        .json();
    assert_eq!(list["secrets"].as_array().unwrap().len(), 1);
    assert_eq!(
        client
            .send(Method::GET, "/v1/keyrings", &[], "")
            .await
            .ok()
            .json(),
        json!({ "keyrings": [] })
    );
    assert!(
        sidecar
            .ops("/metrics")
            .1
            .contains("sidekey_secret_requests_total{secret=\"yours\",code=\"forbidden\"} 1")
    );
    wait("the records", || {
        let log = fs::read_to_string(world.path("audit.log")).unwrap_or_default();
        let records: Vec<Value> = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let has = |event: &str, secret: &str| {
            records.iter().any(|record| {
                record.to_string().contains(&format!("\"{event}\""))
                    && record.to_string().contains(&format!("\"{secret}\""))
            })
        };
        has("secret.in_force", "mine") && has("access.refused", "yours")
    });
}

#[tokio::test]
async fn subscribers_get_events_of_the_secrets_they_may_fetch() {
    let world = World::new();
    for name in ["db", "hidden"] {
        put(&world.path(name), "old");
    }
    let both = config("db", "file:db", "required = true")
        + &config("hidden", "file:hidden", "required = true");
    let rule = format!("[[policy]]\nsecrets = [\"db\"]\nuids = [{}]\n", uid());
    let sidecar = world.start_with("one", &(both + &rule), &[]);
    let mut listener = Listener::open(&sidecar, None).await;
    let mut next = async || {
        let event = listener.event().await.unwrap();
        assert_eq!(event.kind, "secret");
        event.data
    };
    let first = next().await;
    assert_eq!(
        (&first["secret"], &first["previous"]),
        (&"db".into(), &Value::Null)
    );
    put(&world.path("hidden"), "new");
    wait("the hidden one", || {
        status(&sidecar, "hidden")["previous"].is_string()
    });
    put(&world.path("db"), "new");
    let changed = next().await;
    assert_eq!(
        (&changed["secret"], &changed["previous"]),
        (&"db".into(), &first["version"])
    );
    fs::remove_file(world.path("db")).unwrap();
    assert_eq!(
        next().await,
        json!({ "secret": "db", "version": null, "previous": null })
    );
}

#[tokio::test]
async fn sighup_reloads_every_secret() {
    let world = World::new();
    put(&world.path("db"), "value");
    let sidecar = world.start_with("one", &config("db", "file:db", "refresh = \"1d\""), &[]);
    sidecar.signal("HUP");
    wait("the read", || {
        sidecar.ops("/metrics").1.contains(
            "sidekey_secret_fetches_total{secret=\"db\",trigger=\"signal\",result=\"unchanged\"} 1",
        )
    });
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
