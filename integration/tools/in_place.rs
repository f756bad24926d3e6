//! `sidekey rewrap --in-place`: what it changes and what it leaves alone, without ever losing data.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use sidekey::crypto::{from_text, peek};

use crate::support::{
    files::{LONG_LINE, run_in_bounded_memory, texts, write_long_line},
    harness::{OCTETS, binary, wait},
    in_place::{Setting, temporary_files, tokens, versions},
};

#[tokio::test]
async fn every_ciphertext_of_a_tree_is_rewrapped_and_no_other_byte_changes() {
    let mut s = Setting::new().await;
    let old = s
        .texts(&["zero", "one", "two", "three", "four", "five"], "")
        .await;
    let whole = s.client.encrypt(b"a whole file").await.ok().body.to_vec();
    let whole = s.write("whole.bin", whole);
    let text = s.write("whole.txt", format!("{}\n", old[0]));
    let csv = s.write(
        "a/table.csv",
        format!("id,name\r\n1,{}\r\n2,\"{}\",x\r\n", old[1], old[2]),
    );
    let json = s.write(
        "a/rows.jsonl",
        format!("{{\"id\": 1, \"name\":\"{}\"}}\n{{}}", old[3]),
    );
    let sql = s.write(
        "a/b/dump.sql",
        format!("INSERT INTO t VALUES (1, '{}', '{}');\n", old[4], old[5]),
    );
    let plain = s.write("plain.txt", "nothing here: sk1.… sk1.\n");
    fs::set_permissions(&csv, fs::Permissions::from_mode(0o604)).unwrap();
    s.rotate();
    let new = s.texts(&["new"], "").await;
    let current = s.write("current.txt", &new[0]);
    let mixed = s.write("mixed.txt", format!("{} {}", old[0], new[0]));
    let inodes = |paths: &[&Path]| {
        paths
            .iter()
            .map(|path| fs::metadata(path).unwrap().ino())
            .collect::<Vec<_>>()
    };
    let untouched = inodes(&[&plain, &current]);

    // A dry run reports the same and changes nothing.
    let before: Vec<Vec<u8>> = [&whole, &text, &csv, &json, &sql, &mixed]
        .map(|path| fs::read(path).unwrap())
        .into();
    let (output, would) = s.rewrap(&["--dry-run"]);
    assert!(output.status.success());
    let after: Vec<Vec<u8>> = [&whole, &text, &csv, &json, &sql, &mixed]
        .map(|path| fs::read(path).unwrap())
        .into();
    assert_eq!(before, after);

    let report = s.rewrap_all();
    assert_eq!(
        (&would["changed"], &would["ciphertexts"]),
        (&report["changed"], &report["ciphertexts"])
    );
    assert_eq!(
        report["ciphertexts"],
        json!({ "rewrapped": 8, "current": 2, "other_keyrings": 0, "failed": 0 })
    );
    assert_eq!(
        report["files"],
        json!({ "examined": 8, "changed": 6, "leftovers_removed": 0 })
    );
    assert_eq!(
        (report["keyring"].as_str(), report["primary"].as_u64()),
        (Some("demo"), Some(2))
    );
    assert_eq!(s.opened(&text, "").await, "<2:zero>\n");
    assert_eq!(
        s.opened(&csv, "").await,
        "id,name\r\n1,<2:one>\r\n2,\"<2:two>\",x\r\n"
    );
    assert_eq!(
        s.opened(&json, "").await,
        "{\"id\": 1, \"name\":\"<2:three>\"}\n{}"
    );
    assert_eq!(
        s.opened(&sql, "").await,
        "INSERT INTO t VALUES (1, '<2:four>', '<2:five>');\n"
    );
    assert_eq!(s.opened(&mixed, "").await, "<2:zero> <2:new>");
    assert_eq!(
        tokens(&fs::read(&mixed).unwrap())[1].1,
        new[0],
        "current ciphertexts aren't rewritten"
    );
    let opened = s.client.decrypt(&fs::read(&whole).unwrap()).await.ok();
    assert_eq!(
        (&opened.body[..], opened.version()),
        (&b"a whole file"[..], 2)
    );
    assert_eq!(
        fs::metadata(&csv).unwrap().permissions().mode() & 0o777,
        0o604
    );

    // The second run finds nothing to do, and never wrote files that needed no change.
    let everything =
        [&whole, &text, &csv, &json, &sql, &mixed, &plain, &current].map(PathBuf::as_path);
    let once = inodes(&everything);
    assert_eq!(
        s.rewrap_all()["ciphertexts"],
        json!({ "rewrapped": 0, "current": 10, "other_keyrings": 0, "failed": 0 })
    );
    assert_eq!(inodes(&everything), once);
    assert_eq!(inodes(&[&plain, &current]), untouched);
    // The scan confirms that version 1 is gone.
    let manifest = s.world.manifest("demo");
    let scan = [
        "scan",
        s.tree.to_str().unwrap(),
        "--location",
        manifest.to_str().unwrap(),
        "--fail-if-version",
        "demo:1",
    ];
    assert!(s.world.run(&scan).status.success());
}

#[tokio::test]
async fn an_item_with_other_aad_fails_alone_with_path_and_line() {
    let mut s = Setting::new().await;
    let ours = s.texts(&["a", "b", "c"], "row").await;
    let others = s.texts(&["x"], "").await;
    let damaged = ours[2].replace(&ours[2][40..44], "AAAA");
    let path = s.write(
        "t.csv",
        format!("{}\n\n{};{}\n{damaged}\n", ours[0], others[0], ours[1]),
    );
    let whole = s
        .client
        .encrypt(b"bound to nothing")
        .await
        .ok()
        .body
        .to_vec();
    let whole = s.write("whole.bin", whole);
    let whole_before = fs::read(&whole).unwrap();
    s.rotate();
    let (output, report) = s.rewrap(&["--aad", "row"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(
        report["ciphertexts"],
        json!({ "rewrapped": 2, "current": 0, "other_keyrings": 0, "failed": 3 })
    );
    let failures = report["failures"].as_array().unwrap();
    let mut places: Vec<_> = failures
        .iter()
        .map(|f| {
            (
                f["path"].as_str().unwrap(),
                f["line"].as_u64(),
                f["code"].as_str().unwrap(),
            )
        })
        .collect();
    places.sort();
    let (path_text, whole_text) = (path.to_str().unwrap(), whole.to_str().unwrap());
    assert_eq!(
        places,
        [
            (path_text, Some(3), "decryption_failed"),
            (path_text, Some(4), "decryption_failed"),
            (whole_text, None, "decryption_failed"),
        ]
    );
    let contents = fs::read_to_string(&path).unwrap();
    assert!(
        contents.contains(&others[0]) && contents.contains(&damaged),
        "a file that failed is unchanged"
    );
    assert_eq!(
        versions(contents.as_bytes()),
        BTreeMap::from([(1, 2), (2, 2)])
    );
    assert_eq!(fs::read(&whole).unwrap(), whole_before);
    // A run with the other AAD completes them.
    let (output, report) = s.rewrap(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        report["ciphertexts"],
        json!({ "rewrapped": 2, "current": 2, "other_keyrings": 0, "failed": 1 })
    );
    assert_eq!(
        s.client
            .decrypt(&fs::read(&whole).unwrap())
            .await
            .ok()
            .version(),
        2
    );
}

#[tokio::test]
async fn unsuitable_files_are_skipped_and_reported() {
    let mut s = Setting::new().await;
    let old = s.texts(&["a"], "").await.remove(0);
    let linked = s.write("linked.txt", &old);
    fs::hard_link(&linked, s.tree.join("twin.txt")).unwrap();
    s.write("database.db", format!("SQLite format 3\0{old}"));
    s.write("short.txt", &old[..30]);
    let both = s.write("both.txt", format!("{} {old} {old}", &old[..30]));
    fs::hard_link(&both, s.tree.join("both too.txt")).unwrap();
    let outside = s.world.path("outside.txt");
    fs::write(&outside, &old).unwrap();
    symlink(&outside, s.tree.join("link.txt")).unwrap();
    s.rotate();
    let (output, report) = s.rewrap(&[]);
    assert_eq!(output.status.code(), Some(1));
    let failures = report["failures"].as_array().unwrap();
    let mut codes: Vec<_> = failures
        .iter()
        .map(|failure| failure["code"].as_str().unwrap())
        .collect();
    codes.sort_unstable();
    assert_eq!(
        codes,
        [
            "binary_file",
            "cut_off",
            "cut_off",
            "cut_off",
            "hard_links",
            "hard_links",
            "hard_links",
            "hard_links"
        ]
    );
    assert_eq!(
        report["ciphertexts"],
        json!({ "rewrapped": 0, "current": 0, "other_keyrings": 0, "failed": 10 })
    );
    assert_eq!(
        report["skipped"],
        json!([{ "path": s.tree.join("link.txt"), "what": "symbolic link" }])
    );
    assert_eq!(fs::read_to_string(&outside).unwrap(), old);
    assert_eq!(temporary_files(&s.tree), 0);
    // A symlink named on the command line stays a link, and its target changes.
    let link = s.tree.join("link.txt");
    assert!(s.world.run(&s.arguments(&[&link], &[])).status.success());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(s.opened(&outside, "").await, "<2:a>");
}

#[tokio::test]
async fn oversized_ciphertexts_are_streamed_with_aad_of_any_length() {
    let config = "[limits]\nbody = \"64KiB\"\njson_body = \"256KiB\"\n";
    let mut s = Setting::with_config(config).await;
    let plaintexts: Vec<Vec<u8>> = [10, 64 << 10, 100_000, 1 << 20, 3 << 19]
        .map(|length| vec![b'x'; length])
        .into();
    let mut contents = String::from("id\n");
    for plaintext in &plaintexts {
        let message = s.client.encrypt(plaintext).await.ok().body;
        contents.push_str(&format!("a,{},z\n", sidekey::crypto::to_text(&message)));
    }
    let path = s.write("rows.csv", &contents);
    // Longer than any HTTP header.
    let aad = "tenant ".repeat(5000);
    let long = s.world.path("long_aad.txt");
    fs::write(&long, &s.texts(&["x"], &aad).await[0]).unwrap();
    s.rotate();
    let (output, report) = s.rewrap(&[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        report["ciphertexts"],
        json!({ "rewrapped": 5, "current": 0, "other_keyrings": 0, "failed": 0 })
    );
    let contents = fs::read_to_string(&path).unwrap();
    for (line, plaintext) in contents.lines().skip(1).zip(&plaintexts) {
        let text = line
            .strip_prefix("a,")
            .and_then(|line| line.strip_suffix(",z"))
            .unwrap();
        let opened = s.client.decrypt(&from_text(text).unwrap()).await.ok();
        assert!(
            opened.version() == 2 && opened.body[..] == plaintext[..],
            "{}",
            plaintext.len()
        );
    }

    let arguments = s.arguments(&[&long], &["--aad", &aad]);
    let output = s.world.run(&arguments);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        versions(&fs::read(&long).unwrap()),
        BTreeMap::from([(2, 1)])
    );
}

#[tokio::test]
async fn long_ciphertexts_are_streamed_within_small_limits() {
    let config = "[limits]\nbatch_items = 100\n";
    let mut s = Setting::with_config(config).await;
    // Longer than what the sidecar processes as a whole before it answers.
    let long: Vec<u8> = (0..9_000_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let long_message = s.client.encrypt(&long).await.ok().body;
    assert!(peek(&long_message).unwrap().is_stream);
    let long_text = sidekey::crypto::to_text(&long_message);
    let plaintexts: Vec<String> = (0..350).map(|n| format!("{n}")).collect();
    let short = texts(&mut s.client, "demo", &plaintexts, "").await;
    let whole = s.write("whole.bin", &long_message);
    let path = s.write(
        "rows.txt",
        format!(
            "before\n{} {long_text};\n{}",
            short[..10].join(","),
            short[10..].join("\n")
        ),
    );
    // The same length, with a damaged end: found only after the response has begun. The file must
    // stay unchanged.
    let mut damaged = long_message.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let damaged = s.write(
        "damaged.txt",
        format!("{} {}", sidekey::crypto::to_text(&damaged), short[0]),
    );
    let damaged_text = fs::read_to_string(&damaged).unwrap();
    s.rotate();
    let (output, report) = s.rewrap(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(
        report["ciphertexts"],
        json!({ "rewrapped": 353, "current": 0, "other_keyrings": 0, "failed": 1 })
    );
    let failure = &report["failures"][0];
    assert_eq!(
        (&failure["path"], &failure["line"]),
        (&json!(damaged), &json!(1))
    );
    assert_eq!(
        failure["code"], "answer_broke_off",
        "only its last chunk is damaged"
    );
    let left = fs::read_to_string(&damaged).unwrap();
    let split = damaged_text.find(' ').unwrap();
    assert_eq!(&left[..=split], &damaged_text[..=split]);
    assert_eq!(
        versions(&left.as_bytes()[split..]),
        BTreeMap::from([(2, 1)])
    );
    let opened = s.client.decrypt(&fs::read(&whole).unwrap()).await.ok();
    assert!(opened.version() == 2 && opened.body[..] == long[..]);
    let contents = fs::read_to_string(&path).unwrap();
    assert_eq!(versions(contents.as_bytes()), BTreeMap::from([(2, 351)]));
    let (start, rest) = contents.split_once(' ').unwrap();
    let (text, end) = rest.split_once(";\n").unwrap();
    let opened = s
        .client
        .post(
            "/v1/keyrings/demo/decrypt",
            &[OCTETS],
            from_text(text).unwrap(),
        )
        .await
        .ok();
    assert!(opened.body[..] == long[..]);
    fs::write(&path, format!("{start}\n{end}")).unwrap();
    let expected: Vec<String> = (0..350).map(|n| format!("<2:{n}>")).collect();
    assert_eq!(
        s.opened(&path, "").await,
        format!(
            "before\n{}\n{}",
            expected[..10].join(","),
            expected[10..].join("\n")
        )
    );
}

#[tokio::test]
async fn a_killed_run_loses_nothing_and_the_next_one_finishes() {
    let mut s = Setting::new().await;
    let plaintexts: Vec<String> = (0..7_000).map(|n| format!("value {n}")).collect();
    let old = texts(&mut s.client, "demo", &plaintexts, "").await;
    // Small files, and one that spans several windows.
    let filler = ".".repeat(800);
    let mut files = Vec::new();
    for (at, part) in old[..2000].chunks(100).enumerate() {
        files.push(s.write(&format!("{at:02}.csv"), part.join("\n")));
    }
    files.push(
        s.write(
            "big.txt",
            old[2000..]
                .iter()
                .map(|text| format!("{text}{filler}\n"))
                .collect::<String>(),
        ),
    );
    let mut expected = Vec::new();
    for path in &files {
        expected.push(s.opened(path, "").await.replace("<1:", "<2:"));
    }
    s.rotate();
    let lengths: Vec<u64> = files
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .collect();
    let changed = |files: &[PathBuf]| {
        let is_new = |path: &&PathBuf| {
            let first = tokens(&fs::read(path).unwrap()[..200]).remove(0).1;
            peek(&from_text(&first).unwrap()).unwrap().version == 2
        };
        files.iter().filter(is_new).count()
    };
    let mut kills = 0;
    for round in 0..8 {
        let before = changed(&files);
        let mut child = Command::new(binary())
            .args(s.arguments(&[&s.tree], &[]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Killed when a temporary file exists, when it has content, or when another file has
        // changed.
        wait("a run to kill", || {
            let temporary = |entry: &fs::DirEntry| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".sidekey-rewrap-")
            };
            let entries = fs::read_dir(&s.tree)
                .unwrap()
                .filter_map(Result::ok)
                .filter(temporary);
            let sizes: Vec<u64> = entries
                .filter_map(|entry| Some(entry.metadata().ok()?.len()))
                .collect();
            let is_there = match round % 3 {
                0 => !sizes.is_empty(),
                1 => sizes.iter().any(|size| *size > 0),
                _ => changed(&files) > before + 2,
            };
            is_there || child.try_wait().unwrap().is_some()
        });
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        // Complete files with the same number of ciphertexts, all old or all new.
        for (path, len) in files.iter().zip(&lengths) {
            let contents = fs::read(path).unwrap();
            assert_eq!(contents.len() as u64, *len, "{}", path.display());
            assert_eq!(
                versions(&contents).len(),
                1,
                "{}: half-written",
                path.display()
            );
        }
    }
    assert!(kills > 0, "the runs were killed and did not just end");
    s.rewrap_all();
    for (path, expected) in files.iter().zip(&expected) {
        assert!(s.opened(path, "").await == *expected, "{}", path.display());
    }
    assert_eq!(temporary_files(&s.tree), 0);
    assert_eq!(fs::read_dir(&s.tree).unwrap().count(), files.len());
}

#[tokio::test]
async fn leftovers_are_removed_and_counted() {
    let mut s = Setting::new().await;
    let old = s.texts(&["a"], "").await.remove(0);
    let path = s.write("a.txt", &old);
    // A leftover of a killed run, from a file that no longer exists.
    let leftover = s.write(".sidekey-rewrap-0123456789abcdef", &old[..20]);
    s.rotate();
    let (_, would) = s.rewrap(&["--dry-run"]);
    assert!(leftover.exists());
    assert_eq!(would["skipped"][0]["what"], "temporary file of a rewrap");
    let report = s.rewrap_all();
    assert_eq!(
        report["files"],
        json!({ "examined": 1, "changed": 1, "leftovers_removed": 1 })
    );
    assert_eq!(temporary_files(&s.tree), 0);
    assert_eq!(s.opened(&path, "").await, "<2:a>");
}

#[tokio::test]
async fn losing_the_sidecar_stops_the_run_and_leaves_complete_files() {
    let mut s = Setting::new().await;
    let old = s.texts(&["a"], "").await.remove(0);
    let path = s.write("a.txt", &old);
    s.rotate();
    s.sidecar.signal("KILL");
    s.sidecar.ended();
    let (output, _) = s.rewrap(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("is the sidecar running"),
        "{output:?}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), old);
    assert_eq!(temporary_files(&s.tree), 0);
}

#[tokio::test]
async fn an_unauthorized_caller_changes_nothing() {
    let uid = rustix::process::getuid().as_raw();
    let policy = format!(
        "[[policy]]\nuids = [{uid}]\nkeyrings = [\"demo\"]\n\
         operations = [\"encrypt\", \"decrypt\", \"inspect\"]\n"
    );
    let mut s = Setting::with_config("").await;
    let old = s.texts(&["a"], "").await.remove(0);
    let path = s.write("a.txt", &old);
    s.rotate();
    let strict = s.world.start_with("strict", &policy, &["demo"]);
    let arguments = [
        "rewrap",
        "--keyring",
        "demo",
        "--socket",
        strict.socket.to_str().unwrap(),
        "--in-place",
    ];
    let output = s
        .world
        .run(&[&arguments[..], &[s.tree.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("forbidden"),
        "{output:?}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), old);
    assert_eq!(temporary_files(&s.tree), 0);
}

#[tokio::test]
async fn a_line_longer_than_memory_is_rewrapped() {
    let mut s = Setting::new().await;
    let tokens = s.texts(&["x", "yy"], "").await;
    let path = s.tree.join("line");
    write_long_line(&path, &tokens);
    s.rotate();
    let output = run_in_bounded_memory(&s.arguments(&[&path], &[]));
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ciphertexts"]["rewrapped"], LONG_LINE);
    let output = run_in_bounded_memory(&["scan", path.to_str().unwrap(), "--output", "json"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            &value["found"][0]["version"],
            &value["found"][0]["ciphertexts"]
        ),
        (&json!(2), &json!(LONG_LINE))
    );
    assert_eq!(value["found"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_stream_longer_than_memory_is_rewrapped() {
    let s = Setting::new().await;
    let (plain, path) = (s.world.path("plain"), s.tree.join("stream.sk"));
    write_long_line(&plain, &["a line".into()]);
    let socket = s.sidecar.socket.to_str().unwrap();
    let encrypt = ["encrypt", "--keyring", "demo", "--socket", socket, "--out"];
    s.world.succeed(
        &[
            &encrypt[..],
            &[path.to_str().unwrap(), plain.to_str().unwrap()],
        ]
        .concat(),
    );
    s.rotate();
    let before = fs::metadata(&path).unwrap().len();
    let output = run_in_bounded_memory(&s.arguments(&[&path], &[]));
    assert!(output.status.success(), "{output:?}");
    let mut start = [0; 9];
    std::io::Read::read_exact(&mut fs::File::open(&path).unwrap(), &mut start).unwrap();
    let header = peek(&start).unwrap();
    assert_eq!(
        (
            header.version,
            header.is_stream,
            fs::metadata(&path).unwrap().len()
        ),
        (2, true, before)
    );
    let opened = s.world.path("opened");
    let decrypt = ["decrypt", "--keyring", "demo", "--socket", socket, "--out"];
    s.world.succeed(
        &[
            &decrypt[..],
            &[opened.to_str().unwrap(), path.to_str().unwrap()],
        ]
        .concat(),
    );
    assert!(
        Command::new("cmp")
            .args([&plain, &opened])
            .status()
            .unwrap()
            .success(),
        "the same plaintext"
    );
}
