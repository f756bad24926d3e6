//! The audit log records what was done and what was refused, and reveals any tampering with it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::harness::{OCTETS, World, binary, wait};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn records(log: &Path) -> Vec<Value> {
    let lines = fs::read_to_string(log).unwrap_or_default();
    // The last line may still be incomplete.
    lines
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn named<'r>(records: &'r [Value], event: &str) -> Vec<&'r Value> {
    records
        .iter()
        .filter(|record| record["event"] == event)
        .collect()
}

fn verify(world: &World, arguments: &[&str]) -> Output {
    world.run(&[&["audit", "verify"], arguments].concat())
}

fn failed(output: &Output, exit: i32, says: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
}

fn key(world: &World) -> String {
    let path = world.path("audit.key");
    fs::write(&path, [7; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    text(&path)
}

#[test]
fn every_operation_is_recorded_before_and_after_with_caller_and_reason() {
    let world = World::new();
    let (log, key) = (world.path("audit.log"), key(&world));
    let audit = ["--audit", &text(&log), "--audit-key", &key];
    world.init("demo", &[&audit[..], &["--quiet-period", "1ms"]].concat());
    world.keyring(
        "rotate",
        "demo",
        &[&["--activate", "now"], &audit[..]].concat(),
    );
    world.keyring(
        "disable",
        "demo",
        &[
            &["--version", "1", "--override", "it leaked", "--trust-clock"],
            &audit[..],
        ]
        .concat(),
    );
    let refused = world.try_keyring(
        "destroy",
        "demo",
        &[&["--version", "1", "--trust-clock"], &audit[..]].concat(),
    );
    assert_eq!(refused.status.code(), Some(3));
    world.keyring("status", "demo", &[]);

    let records = records(&log);
    let told: Vec<_> = records
        .iter()
        .map(|record| {
            (
                record["event"].as_str().unwrap(),
                record["details"]["phase"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("keyring.init", "begun"),
        ("keyring.init", "done"),
        ("keyring.rotate", "begun"),
        ("keyring.rotate", "done"),
        ("keyring.disable", "begun"),
        ("keyring.disable", "done"),
        ("keyring.destroy", "begun"),
        ("keyring.destroy", "refused"),
    ];
    assert_eq!(told, expected);
    let disable = &records[4];
    assert_eq!(
        (
            &disable["details"]["override"],
            &disable["details"]["version"]
        ),
        (&"it leaked".into(), &1.into())
    );
    assert_eq!(disable["by"]["uid"], rustix::process::getuid().as_raw());
    assert!(disable["by"]["user"].is_string() && disable["by"]["host"].is_string());
    let done = &records[3]["details"];
    assert_eq!(
        (&done["generation"], &done["version"], &done["keyring"]),
        (&3.into(), &2.into(), &"demo".into())
    );
    assert!(
        records[7]["details"]["error"]
            .as_str()
            .unwrap()
            .contains("destroy_after")
    );
    assert!(
        verify(&world, &[&text(&log), "--key", &key])
            .status
            .success()
    );
    let output = verify(&world, &[&text(&log), "--output", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["records"], &report["keyed"]),
        (&8.into(), &false.into())
    );
}

#[test]
fn a_change_of_the_policy_is_recorded_with_what_was_asked_for() {
    let world = World::with_demo();
    let log = world.path("audit.log");
    let change = ["--class", "archive", "--decrypt-until", "never"];
    let output = world.try_keyring(
        "policy",
        "demo",
        &[&change[..], &["--despite-rollout", "--audit", &text(&log)]].concat(),
    );
    assert!(output.status.success(), "{output:?}");
    let records = records(&log);
    assert_eq!(records[0]["event"], "keyring.policy");
    let asked = serde_json::json!({"class": "archive", "decrypt_until": "never"});
    assert_eq!(records[0]["details"]["policy"], asked);
    assert_eq!(records[0]["details"]["despite_rollout"], true);
}

#[test]
fn nothing_is_changed_if_it_cannot_be_recorded() {
    let world = World::with_demo();
    let before = fs::read(world.manifest("demo")).unwrap();
    let full = world.path("full.log");
    symlink("/dev/full", &full).unwrap();
    let touch = |log: &Path| world.try_keyring("touch", "demo", &["--audit", &text(log)]);
    failed(
        &touch(&full),
        1,
        "nothing was changed, because it can't be recorded",
    );
    failed(
        &touch(&world.path("nowhere/audit.log")),
        1,
        "nothing was changed",
    );
    failed(
        &world.try_keyring(
            "touch",
            "demo",
            &["--audit", &text(&full), "--audit-key", "/nowhere"],
        ),
        1,
        "audit key",
    );
    assert_eq!(fs::read(world.manifest("demo")).unwrap(), before);
    // The log in the config is used too; a log on standard output is no log for a command.
    fs::write(
        world.path("stdout.toml"),
        config("[audit]\nstdout = true\n"),
    )
    .unwrap();
    let config_file = text(&world.path("stdout.toml"));
    failed(
        &world.try_keyring("touch", "demo", &["--config", &config_file]),
        1,
        "give --audit FILE",
    );
    fs::write(
        world.path("file.toml"),
        config("[audit]\nfile = \"by-config.log\"\n"),
    )
    .unwrap();
    world.keyring(
        "touch",
        "demo",
        &["--config", &text(&world.path("file.toml"))],
    );
    assert_eq!(
        named(&records(&world.path("by-config.log")), "keyring.touch").len(),
        2
    );
}

#[test]
fn failing_to_print_does_not_fail_the_operation() {
    let world = World::with_demo();
    let (log, full) = (
        world.path("audit.log"),
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap(),
    );
    let manifest = text(&world.manifest("demo"));
    let output = Command::new(binary())
        .args(["keyring", "touch", &manifest, "--audit", &text(&log)])
        .envs(world.env.iter().cloned())
        .stdout(full)
        .output()
        .unwrap();
    failed(
        &output,
        1,
        "can't write to standard output: No space left on device",
    );
    failed(&output, 1, "the change was made and recorded");
    assert_eq!(records(&log)[1]["details"]["phase"], "done");
    assert_eq!(world.read_manifest("demo")["generation"], 2);
}

#[test]
fn credentials_in_urls_are_never_recorded_or_printed() {
    let world = World::new();
    let log = world.path("audit.log");
    let touch = |url: &str| world.run(&["keyring", "touch", url, "--audit", &text(&log)]);
    failed(
        &touch("http://127.0.0.1:1/demo.json?X-Amz-Signature=hush"),
        1,
        "http://127.0.0.1:1/demo.json?…",
    );
    assert_eq!(
        records(&log)[0]["details"]["arguments"][2],
        "http://127.0.0.1:1/demo.json?…"
    );
    assert!(!fs::read_to_string(&log).unwrap().contains("hush"));
    failed(
        &touch("http://user:hush@127.0.0.1:1/demo.json"),
        2,
        "must not contain credentials",
    );
    let sidecar = [
        "keyring",
        "recover",
        "http://127.0.0.1:1/a",
        "--sidecar",
        "http://user:hush@127.0.0.1:1",
    ];
    failed(
        &world.run(&[&sidecar[..], &["--audit", &text(&log)]].concat()),
        2,
        "must not contain credentials",
    );
    assert_eq!(records(&log).len(), 2, "nothing was started");
    let sidecar = ["--sidecar=http://127.0.0.1:1/?hush", "--audit", &text(&log)];
    world.run(
        &[
            &["keyring", "recover", "http://127.0.0.1:1/a"],
            &sidecar[..],
        ]
        .concat(),
    );
    assert_eq!(
        records(&log)[2]["details"]["arguments"][3],
        "--sidecar=http://127.0.0.1:1/?…"
    );
}

fn config(audit: &str) -> String {
    format!(
        "{audit}[listen]\nsocket = \"s\"\n[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\n\
         keks = [\"local:*\"]\n"
    )
}

#[test]
fn verification_names_the_first_modified_line() {
    let world = World::with_demo();
    let (log, key) = (world.path("audit.log"), key(&world));
    for _ in 0..3 {
        world.keyring(
            "touch",
            "demo",
            &["--audit", &text(&log), "--audit-key", &key],
        );
    }
    let whole = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    assert_eq!(lines.len(), 6);
    let check = |lines: &[&str], says: &str| {
        fs::write(&log, lines.join("\n") + "\n").unwrap();
        failed(&verify(&world, &[&text(&log), "--key", &key]), 3, says);
    };
    let edited = lines[2].replace("keyring.touch", "keyring.taunt");
    check(
        &[lines[0], lines[1], &edited, lines[3], lines[4], lines[5]],
        "audit.log:3: the MAC of record 3 is wrong",
    );
    check(
        &[lines[0], lines[2], lines[3], lines[4], lines[5]],
        "audit.log:2: found record 3 instead of record 2",
    );
    check(
        &[lines[0], lines[2], lines[1], lines[3], lines[4], lines[5]],
        "audit.log:2: found record 3 instead",
    );
    check(
        &[lines[0], lines[1], "{", lines[3], lines[4], lines[5]],
        "audit.log:3: not an audit record",
    );
    check(&lines[..4], "the end was cut");
    // Without the head file, truncation is still found if the last hash was noted (`--anchor`).
    let report: Value = {
        fs::write(&log, &whole).unwrap();
        serde_json::from_slice(&verify(&world, &[&text(&log), "--output", "json"]).stdout).unwrap()
    };
    let anchor = format!("{}:{}", report["last"], report["hash"].as_str().unwrap());
    assert!(
        verify(&world, &[&text(&log), "--key", &key, "--anchor", &anchor])
            .status
            .success()
    );
    fs::write(&log, lines[..4].join("\n") + "\n").unwrap();
    let head = world.path("audit.log.head");
    let saved = fs::read(&head).unwrap();
    fs::remove_file(&head).unwrap();
    let output = verify(&world, &[&text(&log), "--key", &key]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success()
            && stdout.contains("truncation would go undetected")
            && !stdout.contains("complete"),
        "{stdout}"
    );
    failed(
        &verify(&world, &[&text(&log), "--key", &key, "--anchor", &anchor]),
        3,
        "record 6 is missing or differs from its anchor",
    );
    // An unreadable log is neither intact nor broken.
    failed(
        &verify(&world, &[&text(&world.path("nowhere"))]),
        1,
        "can't read ",
    );
    // A partial line left by a crash is not tampering.
    fs::write(&log, [&whole[..], &lines[0][..50]].concat()).unwrap();
    let output = verify(&world, &[&text(&log), "--key", &key]);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("incomplete lines, as left by a crash"),
        "{output:?}"
    );
    fs::write(&head, saved).unwrap();
    world.keyring(
        "touch",
        "demo",
        &["--audit", &text(&log), "--audit-key", &key],
    );
    assert!(
        verify(&world, &[&text(&log), "--key", &key])
            .status
            .success()
    );
}

#[test]
fn a_writer_that_finds_the_log_damaged_says_so_and_verification_fails_until_it_is_accepted() {
    let world = World::with_demo();
    let (log, key) = (world.path("audit.log"), key(&world));
    let audit = ["--audit", &text(&log), "--audit-key", &key];
    world.keyring("touch", "demo", &audit);
    fs::write(world.path("audit.log.head"), "").unwrap();
    let touched = world.try_keyring("touch", "demo", &audit);
    failed(
        &touched,
        0,
        "its head (FILE.head) was emptied or overwritten",
    );
    // The damage stays a finding, however many records follow.
    world.keyring("touch", "demo", &audit);
    let check = |more: &[&str]| verify(&world, &[&[&text(&log), "--key", &key], more].concat());
    failed(
        &check(&[]),
        3,
        "record 3 reports that its head (FILE.head) was emptied",
    );
    assert!(check(&["--accept", "3"]).status.success());
    let id = records(&log)[0]["log"].as_str().unwrap().to_owned();
    assert!(check(&["--accept", "3", "--log", &id]).status.success());
    let other = "0".repeat(32);
    failed(
        &check(&["--accept", "3", "--log", &other]),
        3,
        "audit.log:1: record 1 belongs to log",
    );
}

#[test]
fn a_forged_entry_is_detected_even_after_genuine_ones_follow() {
    let world = World::with_demo();
    let (log, key) = (world.path("audit.log"), key(&world));
    let touch = |audit: &[&str]| {
        world.keyring(
            "touch",
            "demo",
            &[&["--audit", &text(&log)], audit].concat(),
        )
    };
    // Forged without the key from the first line to the last, including the head.
    touch(&[]);
    touch(&["--audit-key", &key]);
    failed(
        &verify(&world, &[&text(&log), "--key", &key]),
        3,
        "audit.log:1: record 1 has no MAC",
    );
    let records = records(&log);
    assert_eq!(
        (&records[2]["event"], &records[2]["seq"]),
        (&"log.unvouched".into(), &3.into())
    );
    let output = verify(&world, &[&text(&log), "--key", &key, "--keyed-from", "3"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("authenticates records from 3 on"),
        "{output:?}"
    );
    // Several chains: the last chain's MACs say nothing about the others.
    let both = world.path("both.log");
    let (forged, whole) = (fs::read_to_string(&log).unwrap(), world.path("whole.log"));
    world.keyring(
        "touch",
        "demo",
        &["--audit", &text(&whole), "--audit-key", &key],
    );
    let forged: String = forged.split_inclusive('\n').take(2).collect();
    fs::write(&both, forged + &fs::read_to_string(&whole).unwrap()).unwrap();
    failed(
        &verify(&world, &[&text(&both), "--key", &key, "--several-chains"]),
        3,
        "both.log:1: record 1 has no MAC",
    );
    // An emptied log whose head is still there.
    fs::write(&whole, "").unwrap();
    failed(
        &verify(&world, &[&text(&whole), "--key", &key]),
        3,
        "has no records, but",
    );
}

#[tokio::test]
async fn denials_are_recorded_with_the_caller_and_floods_as_a_count() {
    let world = World::new();
    world.init("demo", &["--quiet-period", "1ms"]);
    let (log, uid) = (world.path("audit.log"), rustix::process::getuid().as_raw());
    let rules = format!(
        "[audit]\nfile = \"audit.log\"\n[[policy]]\nkeyrings = [\"demo\"]\n\
         operations = [\"decrypt\", \"encrypt\"]\nuids = [{uid}]\n"
    );
    let mut sidecar = world.start_with("one", &rules, &["demo"]);
    let mut client = sidecar.client().await;
    let message = client.encrypt(b"old").await.ok().body;
    for _ in 0..500 {
        assert_eq!(
            client
                .post("/v1/keyrings/demo/rewrap", &[OCTETS], message.clone())
                .await
                .problem(),
            "forbidden"
        );
    }
    wait("the first refusal", || {
        !named(&records(&log), "access.refused").is_empty()
    });
    let first = named(&records(&log), "access.refused")[0]["details"].clone();
    assert_eq!(
        (&first["code"], &first["operation"]),
        (&"forbidden".into(), &"rewrap".into())
    );
    assert_eq!(
        (&first["uid"], &first["keyring"]),
        (&uid.into(), &"demo".into())
    );
    assert_eq!(first["last_pid"], std::process::id());

    world.keyring("rotate", "demo", &["--activate", "now"]);
    world.keyring(
        "disable",
        "demo",
        &["--version", "1", "--override", "test", "--trust-clock"],
    );
    sidecar.wait_generation(4);
    assert_eq!(
        client.decrypt(&message).await.problem(),
        "key_version_disabled"
    );
    wait("the refused decrypt", || {
        named(&records(&log), "access.refused")
            .iter()
            .any(|record| record["details"]["code"] == "key_version_disabled")
    });
    sidecar.signal("TERM");
    assert!(sidecar.ended().success());
    let records = records(&log);
    let refused = named(&records, "access.refused");
    let count = |code: &str| -> u64 {
        let of_code = refused
            .iter()
            .filter(|record| record["details"]["code"] == code);
        of_code
            .map(|record| record["details"]["count"].as_u64().unwrap())
            .sum()
    };
    assert_eq!(count("forbidden"), 500, "every refusal was counted");
    // The first refusal of each kind is logged, then a count once a minute.
    assert!(refused.len() <= 10, "{} records", refused.len());
    let disabled = refused
        .iter()
        .find(|record| record["details"]["code"] == "key_version_disabled")
        .unwrap();
    assert_eq!(disabled["details"]["version"], 1);
    assert_eq!(records.last().unwrap()["event"], "sidecar.stopped");
    assert!(verify(&world, &[&text(&log)]).status.success());
}

#[tokio::test]
async fn activated_and_rejected_manifests_are_recorded() {
    let world = World::new();
    world.init("demo", &["--quiet-period", "1ms"]);
    let log = world.path("audit.log");
    let sidecar = world.start_with("one", "[audit]\nfile = \"audit.log\"\n", &["demo"]);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    world.keyring(
        "disable",
        "demo",
        &["--version", "1", "--override", "test", "--trust-clock"],
    );
    sidecar.wait_generation(4);
    let good = fs::read(world.manifest("demo")).unwrap();
    fs::write(world.manifest("demo"), "{").unwrap();
    wait("the refused manifest", || {
        !named(&records(&log), "manifest.refused").is_empty()
    });
    fs::write(world.manifest("demo"), good).unwrap();
    let records = records(&log);
    assert_eq!(records[0]["event"], "sidecar.started");
    let in_force = named(&records, "keyring.in_force");
    assert_eq!(in_force.first().unwrap()["details"]["generation"], 1);
    assert_eq!(in_force.last().unwrap()["details"]["generation"], 4);
    let primaries: Vec<_> = named(&records, "primary.changed")
        .iter()
        .map(|record| record["details"]["primary"].clone())
        .collect();
    assert_eq!(primaries, [1, 2]);
    let of = |event| {
        named(&records, event)
            .iter()
            .map(|record| record["details"]["version"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (of("version.opened"), of("version.disabled")),
        (vec![1.into(), 2.into()], vec![1.into()])
    );
    assert_eq!(
        named(&records, "manifest.refused")[0]["details"]["code"],
        "malformed"
    );

    let status = sidecar.status()["audit"].clone();
    assert_eq!(
        (&status["keyed"], &status["lost"], &status["last_error"]),
        (&false.into(), &0.into(), &Value::Null)
    );
    let anchor = status["last"].as_str().unwrap().to_owned();
    assert!(
        verify(&world, &[&text(&log), "--anchor", &anchor])
            .status
            .success()
    );
}

#[tokio::test]
async fn a_failing_audit_log_stops_no_request_and_is_reported() {
    let world = World::with_demo();
    let log = world.path("audit.log");
    symlink("/dev/full", &log).unwrap();
    let sidecar = world.start_with("one", "[audit]\nfile = \"audit.log\"\n", &["demo"]);
    let mut client = sidecar.client().await;
    let message = client.encrypt(b"served").await.ok().body;
    assert_eq!(client.decrypt(&message).await.ok().body, "served");
    wait("the failure", || {
        !sidecar.status()["audit"]["last_error"].is_null()
    });
    assert!(
        sidecar
            .ops("/metrics")
            .1
            .contains("sidekey_audit_failing 1")
    );
    wait("the log", || sidecar.log().contains("keeps serving"));
    fs::remove_file(&log).unwrap();
    sidecar.signal("HUP");
    wait("recovery", || {
        sidecar.status()["audit"]["last_error"].is_null() && !records(&log).is_empty()
    });
    let records = records(&log);
    assert_eq!(
        records[0]["event"], "sidecar.started",
        "no record was lost meanwhile"
    );
    assert!(
        sidecar
            .ops("/metrics")
            .1
            .contains("sidekey_audit_failing 0")
    );
}

#[test]
fn a_rotated_audit_log_continues_in_the_next_file() {
    let world = World::with_demo();
    let (log, old) = (world.path("audit.log"), world.path("audit.log.1"));
    let mut sidecar = world.start_with("one", "[audit]\nfile = \"audit.log\"\n", &["demo"]);
    wait("the first records", || {
        named(&records(&log), "primary.changed").len() == 1
    });
    fs::rename(&log, &old).unwrap();
    sidecar.signal("HUP");
    world.keyring("touch", "demo", &["--audit", &text(&log)]);
    sidecar.wait_generation(2);
    wait("its record", || {
        named(&records(&log), "keyring.in_force").len() == 1
    });
    // The same after a crash.
    sidecar.child.kill().unwrap();
    sidecar.child.wait().unwrap();
    let mut again = world.start_with("two", "[audit]\nfile = \"audit.log\"\n", &["demo"]);
    wait("its start", || {
        named(&records(&log), "sidecar.started").len() == 1
    });
    again.signal("TERM");
    assert!(again.ended().success());
    let output = verify(&world, &[&text(&old), &text(&log)]);
    assert!(output.status.success(), "{output:?}");
    failed(
        &verify(&world, &[&text(&log), &text(&old)]),
        3,
        "instead of record",
    );
    let current = verify(&world, &[&text(&log)]);
    assert!(
        String::from_utf8_lossy(&current.stdout).contains("are not in these files"),
        "{current:?}"
    );
}
