//! Several KEKs for one keyring: any one of them is enough, and adding or removing one changes no
//! ciphertext.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::support::harness::{World, binary, wait};

/// Returns a world with a second KEK, and the URIs of both.
fn two_keks() -> (World, String, String) {
    let world = World::new();
    let second = world.path("second");
    sidekey::backend::local::LocalKek::create(&second).unwrap();
    let uri = |path: PathBuf| format!("local:{}", path.display());
    let first = uri(world.path("kek"));
    (world, first, uri(second))
}

fn wraps(world: &World) -> Vec<Vec<String>> {
    let manifest = world.read_manifest("demo");
    let keks = |version: &Value| {
        version["wraps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|wrap| wrap["kek"].as_str().unwrap().to_owned())
            .collect()
    };
    manifest["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(keks)
        .collect()
}

#[tokio::test]
async fn keks_come_and_go_and_no_ciphertext_changes() {
    let (world, first, second) = two_keks();
    world.init("demo", &[]);
    for _ in 0..20 {
        world.keyring("rotate", "demo", &["--activate", "now"]);
    }
    let sidecar = world.start();
    let old = sidecar.client().await.encrypt(b"kept").await.ok();
    drop(sidecar);

    let before = world.read_manifest("demo")["generation"].as_u64().unwrap();
    let said = world.keyring("rewrap-kek", "demo", &["--add", &second]);
    assert!(said.contains("rewrapped 21 versions"), "{said}");
    assert_eq!(wraps(&world), vec![vec![first.clone(), second.clone()]; 21]);
    // The rewrap runs in steps, so that an interruption loses little work.
    assert_eq!(world.read_manifest("demo")["generation"], before + 2);
    assert!(
        world
            .keyring("rewrap-kek", "demo", &["--add", &second])
            .contains("0 versions"),
        "completed steps are kept"
    );

    let matrix: Value =
        serde_json::from_str(&world.keyring("verify", "demo", &["--output", "json"])).unwrap();
    let tried = matrix["wraps"].as_array().unwrap();
    assert_eq!(tried.len(), 42);
    assert!(
        tried
            .iter()
            .all(|tried| tried["error"].is_null() && tried["took_ms"].is_number())
    );

    world.keyring("rewrap-kek", "demo", &["--remove", &first]);
    assert_eq!(wraps(&world), vec![vec![second.clone()]; 21]);
    fs::remove_file(world.path("kek")).unwrap();
    let sidecar = world.start();
    assert_eq!(
        sidecar.client().await.decrypt(&old.body).await.ok().body,
        "kept"
    );
}

#[test]
fn dek_wraps_are_renewed_after_a_kek_rotation() {
    let (world, first, _) = two_keks();
    world.init("demo", &[]);
    let ciphertext =
        || world.read_manifest("demo")["versions"][0]["wraps"][0]["ciphertext"].clone();
    let before = ciphertext();
    world.keyring("rewrap-kek", "demo", &["--refresh"]);
    assert_ne!(ciphertext(), before);
    assert_eq!(wraps(&world), [[first]]);
    let after = ciphertext();
    world.keyring(
        "rewrap-kek",
        "demo",
        &["--refresh-before", "2020-01-01T00:00:00Z"],
    );
    assert_eq!(ciphertext(), after, "no wrap is that old");
}

#[test]
fn a_kek_that_is_the_only_one_for_a_version_cannot_be_removed() {
    let (world, first, second) = two_keks();
    world.init("demo", &[]);
    let last = world.try_keyring("rewrap-kek", "demo", &["--remove", &first]);
    assert_eq!(last.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&last.stderr).contains("without a KEK"),
        "{last:?}"
    );
    // A new KEK that is unreachable, or a remaining one that fails to unwrap.
    let unreachable = world.try_keyring("rewrap-kek", "demo", &["--add", "local:/nowhere/kek"]);
    assert_eq!(unreachable.status.code(), Some(1));
    world.keyring("rewrap-kek", "demo", &["--add", &second]);
    fs::remove_file(world.path("second")).unwrap();
    let unproven = world.try_keyring("rewrap-kek", "demo", &["--remove", &first]);
    assert_eq!(unproven.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&unproven.stderr).contains("is unchanged"),
        "{unproven:?}"
    );
    assert_eq!(wraps(&world), [[first, second.clone()]]);

    let matrix = world.try_keyring("verify", "demo", &[]);
    assert_eq!(matrix.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&matrix.stderr).contains("1 of 2 wraps could not be unwrapped"),
        "{matrix:?}"
    );
    let shown = String::from_utf8_lossy(&matrix.stdout).into_owned();
    assert!(
        shown
            .lines()
            .any(|line| line.contains(&second) && line.contains("can't read the KEK")),
        "{shown}"
    );
}

#[tokio::test]
async fn a_kek_that_hangs_or_returns_a_wrong_key_delays_startup_only_by_the_hedge() {
    let (world, first, second) = two_keks();
    world.init("demo", &["--kek", &second]);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    // The first KEK hangs: opening a pipe blocks until there is a writer.
    fs::remove_file(world.path("kek")).unwrap();
    mknodat(
        CWD,
        world.path("kek"),
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    // The timeout is longer than any test, so only the hedge can help.
    let sidecar = world.start_with("one", "[refresh]\nkek_timeout = \"1d\"\n", &["demo"]);
    sidecar.client().await.encrypt(b"x").await.ok();
    let metrics = sidecar.ops("/metrics").1;
    let asked = |kek: &str, result: &str| {
        let line = format!(
            "sidekey_kek_requests_total{{kek=\"{kek}\",operation=\"unwrap\",result=\"{result}\"}} "
        );
        metrics
            .lines()
            .find_map(|found| found.strip_prefix(&line))
            .map(|count| count.parse::<u32>().unwrap())
    };
    assert_eq!(
        (asked(&first, "ok"), asked(&second, "ok")),
        (Some(0), Some(2)),
        "{metrics}"
    );
    // Later commands ask the KEK that answers first.
    let later = world.run(&[
        "keyring",
        "rotate",
        world.manifest("demo").to_str().unwrap(),
        "--kek",
        &second,
        "--allow-kek",
        &second,
    ]);
    assert!(later.status.success(), "{later:?}");
    sidecar.wait_generation(4);
    let keks = sidecar.status()["keks"].clone();
    let of = |uri: &str| {
        keks.as_array()
            .unwrap()
            .iter()
            .find(|kek| kek["uri"] == uri)
            .unwrap()
            .clone()
    };
    assert!(
        of(&second)["last_success"].is_string() && of(&first)["last_success"].is_null(),
        "{keks}"
    );
    drop(sidecar);

    // The first KEK is now a different key: its wraps fail to open, the others still open.
    fs::remove_file(world.path("kek")).unwrap();
    sidekey::backend::local::LocalKek::create(&world.path("kek")).unwrap();
    let sidecar = world.start();
    sidecar.client().await.encrypt(b"x").await.ok();
    let refused = format!(
        "sidekey_kek_requests_total{{kek=\"{first}\",operation=\"unwrap\",result=\"refused\"}}"
    );
    assert!(sidecar.ops("/metrics").1.contains(&refused));
}

#[test]
fn local_keks_are_warned_about_unless_enabled() {
    let world = World::with_demo();
    let sidecar = world.start();
    assert!(
        !sidecar.log().contains("for development"),
        "{}",
        sidecar.log()
    );
    drop(sidecar);
    let config = std::fs::read_to_string(world.path("one.toml"))
        .unwrap()
        .replace("backends.local_keks = true", "");
    std::fs::write(world.path("two.toml"), config).unwrap();
    let sidecar = world.launch_config("two", "one");
    wait("the warning", || {
        sidecar
            .log()
            .contains("a KEK in a local file is for development")
    });
}

#[test]
fn a_new_sidecar_becomes_ready_once_any_kek_works() {
    let (world, _, second) = two_keks();
    world.init("demo", &["--kek", &second]);
    fs::rename(world.path("kek"), world.path("kek-away")).unwrap();
    fs::rename(world.path("second"), world.path("second-away")).unwrap();
    let sidecar = world.launch("one", "[refresh]\nmax_backoff = \"100ms\"\n", &["demo"]);
    wait("both reasons", || {
        let why = sidecar.ops("/readyz").1;
        why.contains("/kek: ") && why.contains("/second: ")
    });
    wait("an open circuit", || {
        sidecar.status()["keks"][0]["circuit_open"] == true
    });
    fs::rename(world.path("second-away"), world.path("second")).unwrap();
    sidecar.wait_ready();
}

#[tokio::test]
async fn a_kek_with_a_passphrase_serves_sidecars_and_commands_that_have_it() {
    let world = World::new();
    // The same format as `age -p`, but with a low work factor.
    let mut recipient = age::scrypt::Recipient::new("correct horse".to_owned().into());
    recipient.set_work_factor(4);
    let raw = fs::read(world.path("kek")).unwrap();
    fs::write(world.path("kek"), age::encrypt(&recipient, &raw).unwrap()).unwrap();
    let (manifest, kek) = (
        world.manifest("demo").display().to_string(),
        format!("local:{}", world.path("kek").display()),
    );
    let init = [
        "keyring", "init", &manifest, "--name", "demo", "--kek", &kek,
    ];
    let without = world.run(&init);
    assert_eq!(without.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&without.stderr).contains("--kek-passphrase-file"),
        "{without:?}"
    );
    fs::write(world.path("wrong"), "battery staple\n").unwrap();
    fs::set_permissions(world.path("wrong"), fs::Permissions::from_mode(0o600)).unwrap();
    let wrong = world.run(
        &[
            &init[..],
            &[
                "--kek-passphrase-file",
                world.path("wrong").to_str().unwrap(),
            ],
        ]
        .concat(),
    );
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("does not decrypt this KEK"),
        "{wrong:?}"
    );
    // The passphrase comes from a pipe, which can be read only once.
    let piped = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .args(["--kek-passphrase-file", "/dev/stdin"])
            .envs(world.env.iter().cloned())
            .stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(b"correct horse\n")
            .unwrap();
        assert!(child.wait().unwrap().success(), "{arguments:?}");
    };
    piped(&init);
    piped(&["keyring", "rotate", &manifest, "--activate", "now"]);
    // Two KEKs may need the passphrase at the same time.
    fs::write(
        world.path("kek2"),
        age::encrypt(&recipient, &[9; 32]).unwrap(),
    )
    .unwrap();
    fs::set_permissions(world.path("kek2"), fs::Permissions::from_mode(0o600)).unwrap();
    let kek2 = format!("local:{}", world.path("kek2").display());
    piped(&["keyring", "rewrap-kek", &manifest, "--add", &kek2]);
    piped(&["keyring", "verify", &manifest]);

    let config = "[local]\npassphrase_file = \"passphrase\"\n[refresh]\nmax_backoff = \"100ms\"\n";
    let sidecar = world.launch("one", config, &["demo"]);
    wait("the missing passphrase", || {
        sidecar.ops("/readyz").1.contains("passphrase_file")
    });
    fs::write(world.path("next"), "correct horse\n").unwrap();
    fs::set_permissions(world.path("next"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(world.path("next"), world.path("passphrase")).unwrap();
    sidecar.wait_ready();
    assert_eq!(sidecar.client().await.encrypt(b"x").await.ok().version(), 2);
    let shown = format!(
        "{}{}{}",
        sidecar.log(),
        sidecar.ops("/status").1,
        sidecar.ops("/metrics").1
    );
    assert!(!shown.contains("correct horse"), "{shown}");
}
