//! `sidekey scan`: what it finds in real files, what it reports as unseen, and its exit codes.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::files::{LONG_LINE, run_in_bounded_memory, texts, without, write_long_line};
use crate::support::harness::{World, binary};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn utf16(text: &str) -> Vec<u8> {
    [0xFEFF]
        .into_iter()
        .chain(text.encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// A directory of files like a service's, with ciphertexts of `demo` under version 1 in eight
/// places and under version 2 in one, and one of `other`.
async fn mixed_tree(world: &World) -> PathBuf {
    world.init("other", &[]);
    let sidecar = world.start_with("one", "", &["demo", "other"]);
    let mut client = sidecar.client().await;
    let tree = world.path("tree");
    fs::create_dir_all(tree.join("deep/er")).unwrap();
    let plaintexts: Vec<String> = (0..6).map(|n| format!("value {n}")).collect();
    let old = texts(&mut client, "demo", &plaintexts, "").await;
    let bytes = sidekey::crypto::from_text(&old[5]).unwrap();
    fs::write(tree.join("whole.bin"), &bytes).unwrap();
    fs::write(tree.join("whole.txt"), format!("{}\n", old[0])).unwrap();
    fs::write(
        tree.join("deep/table.csv"),
        format!("id,name\n1,{}\n2,\"{}\"\n", old[1], old[2]),
    )
    .unwrap();
    fs::write(
        tree.join("deep/rows.jsonl"),
        format!("{{\"id\":1,\"name\":\"{}\"}}\n{{}}\n", old[3]),
    )
    .unwrap();
    let dump = format!(
        "INSERT INTO t VALUES (1, '\\x{}', '{}');\n",
        hex(&bytes),
        old[4]
    );
    fs::write(tree.join("deep/er/dump.sql"), dump).unwrap();
    fs::write(
        tree.join("deep/er/blob.json"),
        json!({ "blob": STANDARD.encode(&bytes) }).to_string(),
    )
    .unwrap();
    fs::write(
        tree.join("nothing.txt"),
        "sk1.… is how a text form begins; sk1.AAAA is none\n",
    )
    .unwrap();
    let other = texts(&mut client, "other", &["theirs".into()], "").await;
    fs::write(tree.join("other.txt"), &other[0]).unwrap();
    world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    let new = texts(&mut client, "demo", &["new".into()], "").await;
    fs::write(tree.join("wide.txt"), utf16(&format!("name: {}", new[0]))).unwrap();
    tree
}

fn scan(world: &World, arguments: &[&str]) -> (Output, Value) {
    let output = world.run(&[&["scan", "--output", "json"], arguments].concat());
    let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, value)
}

fn row(value: &Value, keyring: &Value, version: u32) -> Value {
    let rows = value["found"].as_array().unwrap();
    rows.iter()
        .find(|row| row["keyring"] == *keyring && row["version"] == version)
        .unwrap_or(&Value::Null)
        .clone()
}

#[tokio::test]
async fn a_scan_counts_every_form_by_keyring_and_version() {
    let world = World::with_demo();
    let tree = mixed_tree(&world).await;
    let tree = tree.to_str().unwrap();
    let (demo, other) = (world.manifest("demo"), world.manifest("other"));
    let known = [
        "--location",
        demo.to_str().unwrap(),
        "--location",
        other.to_str().unwrap(),
    ];
    let (output, value) = scan(&world, &[&[tree, "--files"], &known[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let old = row(&value, &json!("demo"), 1);
    let forms = json!({ "text": 5, "binary": 1, "hex": 1, "base64": 1, "utf16": 0 });
    assert_eq!(
        (
            &old["forms"],
            &old["ciphertexts"],
            &old["files"],
            &old["cut_off"]
        ),
        (&forms, &json!(8), &json!(6), &json!(0))
    );
    assert_eq!(row(&value, &json!("demo"), 2)["forms"]["utf16"], 1);
    assert_eq!(row(&value, &json!("other"), 1)["ciphertexts"], 1);
    assert_eq!(value["found"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&value["searched"]["files"], &value["searched"]["embedded"]),
        (&json!(9), &json!(true))
    );
    let files: Vec<&str> = value["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    let expected = [
        "deep/er/blob.json",
        "deep/er/dump.sql",
        "deep/rows.jsonl",
        "deep/table.csv",
        "other.txt",
    ];
    let expected = expected
        .into_iter()
        .chain(["whole.bin", "whole.txt", "wide.txt"]);
    assert_eq!(
        files,
        expected
            .map(|name| format!("{tree}/{name}"))
            .collect::<Vec<_>>()
    );

    // Without known keyrings, it finds only text forms and whole files, by the tag.
    let (_, value) = scan(&world, &[tree]);
    assert_eq!(value["searched"]["embedded"], false);
    let id = world.read_manifest("demo")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let unnamed = value["found"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["tag"] == id[..8] && row["version"] == 1);
    let unnamed = unnamed.unwrap_or_else(|| panic!("{value}"));
    assert_eq!(
        (
            &unnamed["keyring"],
            &unnamed["forms"]["text"],
            &unnamed["forms"]["binary"]
        ),
        (&Value::Null, &json!(5), &json!(1))
    );

    // A config or a sidecar can also name the keyrings.
    let config = world.path("one.toml");
    let (_, value) = scan(&world, &[tree, "--config", config.to_str().unwrap()]);
    assert_eq!(row(&value, &json!("demo"), 1)["ciphertexts"], 8);
    let sidecar = world.start_with("two", "", &["demo", "other"]);
    let (_, value) = scan(
        &world,
        &[tree, "--socket", sidecar.socket.to_str().unwrap()],
    );
    assert_eq!(row(&value, &json!("demo"), 1)["ciphertexts"], 8);
    assert_eq!(value["keyrings"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_exit_code_tells_findings_from_unreadable_files() {
    let world = World::with_demo();
    let tree = mixed_tree(&world).await;
    let tree = tree.to_str().unwrap();
    let (demo, other) = (world.manifest("demo"), world.manifest("other"));
    let known = [
        "--location",
        demo.to_str().unwrap(),
        "--location",
        other.to_str().unwrap(),
    ];
    let code = |more: &[&str]| {
        let (output, value) = scan(&world, &[&[tree], &known[..], more].concat());
        assert!(
            output.status.code() == Some(2) || value.is_object(),
            "the report is printed regardless of the exit code: {output:?}"
        );
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(code(&["--fail-if-version", "3"]).0, 0);
    world.keyring("rotate", "other", &[]);
    let (exit, error) = code(&[
        "--fail-if-version",
        "demo:1",
        "--fail-if-version",
        "other:2",
    ]);
    assert_eq!(exit, 3);
    assert!(
        error.contains("version 1 of demo: 8 ciphertexts in 6 files") && !error.contains("other"),
        "{error}"
    );
    assert_eq!(
        code(&["--fail-if-version", "other:2"]).0,
        0,
        "version 2 belongs to another keyring"
    );
    assert_eq!(code(&["--fail-if-version", "2"]).0, 3);
    // A version that can't exist is an error, not "nothing found".
    assert_eq!(code(&["--fail-if-version", "ordres:1"]).0, 2);
    let (exit, error) = code(&["--fail-if-version", "demo:99"]);
    assert_eq!(exit, 2);
    assert!(
        error.contains("the newest known version of demo is 2"),
        "{error}"
    );
    let (output, _) = scan(&world, &[tree, "--fail-if-version", "9"]);
    assert_eq!(output.status.code(), Some(2), "no keyring is known");
    // A path that can't be read. A version that was found takes precedence.
    let missing = format!("{tree}/missing");
    let (exit, error) = code(&[&missing]);
    assert_eq!(exit, 1);
    assert!(error.contains("1 paths could not be read"), "{error}");
    assert_eq!(code(&[&missing, "--fail-if-version", "1"]).0, 3);
    assert_eq!(code(&[&missing, "--fail-if-version", "9"]).0, 1);
    // Files that can't be searched are reported, and fail the scan on request.
    fs::write(format!("{tree}/old.gz"), b"\x1f\x8b\x08 compressed").unwrap();
    std::os::unix::fs::symlink("whole.txt", format!("{tree}/link")).unwrap();
    assert_eq!(code(&["--fail-if-version", "9"]).0, 0);
    assert_eq!(code(&["--fail-if-version", "9", "--fail-if-unseen"]).0, 1);
    let (_, value) = scan(&world, &[tree, "--files"]);
    let unseen = json!([{ "path": format!("{tree}/link"), "what": "symbolic \
        link" }, { "path": format!("{tree}/old.gz"), "what": "gzip" }]);
    assert_eq!(
        value["unseen"],
        json!({ "opaque": 1, "skipped": 1, "paths": unseen })
    );
}

#[tokio::test]
async fn a_named_path_that_cannot_be_scanned_is_an_error() {
    let world = World::with_demo();
    let sidecar = world.start();
    let token = texts(&mut sidecar.client().await, "demo", &["x".into()], "")
        .await
        .remove(0);
    let demo = world.manifest("demo");
    let code = |path: &str, more: &[&str]| {
        let (output, value) = scan(
            &world,
            &[&[path, "--location", demo.to_str().unwrap()], more].concat(),
        );
        (
            output.status.code().unwrap(),
            value,
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    // A pipe is read, like that of `<(pg_dump shop)`.
    let pipe = world.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(&pipe, token).unwrap()
    });
    let name = pipe.to_str().unwrap();
    let (exit, value, error) = code(
        name,
        &["--files", "--fail-if-version", "demo:1", "--fail-if-unseen"],
    );
    assert_eq!(exit, 3, "{error}");
    writer.join().unwrap();
    assert_eq!(
        (&value["files"][0]["path"], &value["searched"]["files"]),
        (&json!(name), &json!(1))
    );
    assert_eq!(value["unseen"]["skipped"], 0);
    // Other special files can't be read.
    let socket = sidecar.socket.to_str().unwrap();
    for (special, what) in [("/dev/null", "device"), (socket, "socket")] {
        let (exit, value, _) = code(special, &[]);
        let reason = value["failures"][0]["reason"].as_str().unwrap().to_owned();
        assert!(
            exit == 1 && reason.contains(what),
            "{special}: {exit}, {reason}"
        );
    }
    // A directory with nothing mounted on it, and a failed dump.
    let empty = world.path("empty");
    fs::create_dir_all(empty.join("only/folders")).unwrap();
    let empty = empty.to_str().unwrap();
    assert_eq!(
        (code(empty, &[]).0, &code(empty, &[]).1["empty"]),
        (0, &json!([empty]))
    );
    let full = world.path("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("file"), "").unwrap();
    for more in [
        &["--fail-if-unseen"][..],
        &["--fail-if-version", "demo:1"],
        &["--fail-if-version", "1"],
    ] {
        for paths in [vec![], vec![full.to_str().unwrap()]] {
            let (exit, _, error) = code(empty, &[more, &paths].concat());
            assert!(
                exit == 1 && error.contains(&format!("nothing to search in {empty}")),
                "{exit}: {error}"
            );
        }
        assert_eq!(code(full.to_str().unwrap(), more).0, 0);
        assert_eq!(code("-", more).0, 1, "standard input is /dev/null");
    }
}

#[tokio::test]
async fn file_names_cannot_forge_report_lines() {
    let world = World::with_demo();
    let sidecar = world.start();
    let token = texts(&mut sidecar.client().await, "demo", &["x".into()], "")
        .await
        .remove(0);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    let evil = "a\u{1b}]0;x\u{7}\u{1b}[2K\nnot searched: 0\r\u{202e}";
    let shown = r"a\u{1b}]0;x\u{7}\u{1b}[2K\nnot searched: 0\r\u{202e}";
    let tree = world.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join(evil), &token).unwrap();
    fs::write(tree.join(format!("{evil}.gz")), b"\x1f\x8b").unwrap();
    // A symlink to its own directory, whose name appears in the reason.
    fs::create_dir(tree.join(format!("{evil}.d"))).unwrap();
    std::os::unix::fs::symlink(".", tree.join(format!("{evil}.d/loop"))).unwrap();
    let tree = tree.to_str().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let is_clean = |output: &Output| {
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(
            !all.contains(['\u{1b}', '\u{7}', '\r', '\u{202e}']),
            "{all:?}"
        );
        assert!(
            !all.lines()
                .any(|line| line.starts_with("not searched: 0\\r")),
            "{all}"
        );
        all
    };
    let all = is_clean(&world.run(&["scan", tree, "--files", "--follow"]));
    assert_eq!(all.matches(shown).count(), 4, "{all}");
    let (_, value) = scan(&world, &[tree, "--files"]);
    assert_eq!(
        value["files"][0]["path"],
        format!("{tree}/{evil}"),
        "programs get the unescaped name"
    );

    let socket = sidecar.socket.to_str().unwrap();
    let of_files = [
        "rewrap",
        "--keyring",
        "demo",
        "--socket",
        socket,
        "--dry-run",
        "--in-place",
        tree,
    ];
    let all = is_clean(&world.run(&of_files));
    assert!(all.contains(&format!("{tree}/{shown}")), "{all}");
    let missing = format!("{tree}/missing {evil}");
    let all = is_clean(&world.run(&["decrypt", "--keyring", "demo", "--socket", socket, &missing]));
    assert!(all.contains(&format!("missing {shown}")), "{all}");
    let all = is_clean(&world.run(&[
        "rewrap",
        "--keyring",
        "demo",
        "--socket",
        socket,
        "--in-place",
        &missing,
    ]));
    assert!(all.contains(&format!("missing {shown}")), "{all}");
}

#[test]
fn unreadable_files_are_failures_and_the_rest_is_scanned() {
    let world = World::with_demo();
    let tree = world.path("tree");
    let at = |name: &str| tree.join(name);
    fs::create_dir_all(at("closed")).unwrap();
    fs::write(at("closed/hidden.txt"), "unseen").unwrap();
    for name in ["secret.txt", "open.txt"] {
        let text = include_str!("../golden/message-1.txt");
        fs::write(at(name), text).unwrap();
    }
    for name in ["closed", "secret.txt"] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let mut command = without("-dac_override,-dac_read_search");
    let output = command
        .args(["scan", tree.to_str().unwrap(), "--output", "json"])
        .output()
        .unwrap();
    fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let paths: Vec<_> = value["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| &failure["path"])
        .collect();
    assert_eq!(paths, [&json!(at("closed")), &json!(at("secret.txt"))]);
    assert_eq!(
        (
            &value["searched"]["files"],
            &value["found"][0]["ciphertexts"]
        ),
        (&json!(1), &json!(1))
    );
}

#[tokio::test]
async fn a_scan_reads_standard_input() {
    let world = World::with_demo();
    let sidecar = world.start();
    let token = texts(&mut sidecar.client().await, "demo", &["x".into()], "")
        .await
        .remove(0);
    let mut child = Command::new(binary())
        .args([
            "scan",
            "-",
            "--output",
            "json",
            "--fail-if-version",
            "1",
            "--location",
            world.manifest("demo").to_str().unwrap(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The ciphertext arrives in two writes.
    for part in [
        "COPY t FROM stdin;\n1\t",
        &token[..30],
        &token[30..],
        "\n\\.\n",
    ] {
        stdin.write_all(part.as_bytes()).unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            &value["found"][0]["forms"]["text"],
            &value["found"][0]["cut_off"]
        ),
        (&json!(1), &json!(0))
    );
}

#[tokio::test]
async fn a_line_longer_than_memory_is_scanned() {
    let world = World::with_demo();
    let sidecar = world.start();
    let tokens = texts(
        &mut sidecar.client().await,
        "demo",
        &["x".into(), "yy".into()],
        "",
    )
    .await;
    let path = world.path("line");
    write_long_line(&path, &tokens);
    let output = run_in_bounded_memory(&["scan", path.to_str().unwrap(), "--output", "json"]);
    assert!(output.status.success(), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["found"][0]["forms"]["text"], LONG_LINE);
}
