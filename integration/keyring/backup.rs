//! Backups that open, restores that never roll back silently, and recoveries from the fleet.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::Value;
use sidekey::{
    crypto::{KeyringId, SecretKey, WrapContext, unwrap_dek},
    keyring::Document,
};

use crate::support::{
    harness::{Sidecar, World},
    holder::Holder,
};

const PASSPHRASE: &str = "correct horse battery staple";

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn failed(output: &Output, exit: i32, says: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
}

/// Makes a backup of `demo` for a fresh identity, verified and recorded.
fn back_up(world: &World, name: &str) -> (PathBuf, Holder) {
    let (file, identity) = (
        world.path(name),
        Holder::new(&world.path(&format!("{name}.key"))),
    );
    let arguments = [
        "--to",
        &text(&file),
        "--recipient",
        identity.recipient(),
        "--identity",
        identity.file(),
    ];
    world.keyring("backup", "demo", &arguments);
    (file, identity)
}

fn second_kek(world: &World) -> String {
    let path = world.path("second");
    sidekey::backend::local::LocalKek::create(&path).unwrap();
    format!("local:{}", path.display())
}

fn sha256(file: &Path) -> String {
    sidekey::crypto::fingerprint(&fs::read(file).unwrap())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn url(sidecar: &Sidecar) -> String {
    format!("http://{}", sidecar.ops)
}

#[tokio::test]
async fn a_restored_keyring_decrypts_old_ciphertexts() {
    let world = World::with_demo();
    world.keyring("rotate", "demo", &["--activate", "now"]);
    let (first, second) = {
        let sidecar = world.start();
        let mut client = sidecar.client().await;
        let first = client.encrypt(b"before the loss").await.ok().body;
        world.keyring("rotate", "demo", &["--activate", "now"]);
        sidecar.wait_generation(5);
        (first, client.encrypt(b"the newest").await.ok().body)
    };
    let (file, identity) = back_up(&world, "backup.age");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );

    // The manifest and the KEK are gone; a different KEK is available.
    fs::remove_file(world.manifest("demo")).unwrap();
    fs::remove_file(world.path("kek")).unwrap();
    world.forget();
    let from = [
        "--from",
        &text(&file),
        "--identity",
        identity.file(),
        "--no-sidecar",
    ];
    failed(
        &world.try_keyring("restore", "demo", &from),
        1,
        "give others with --kek URI",
    );
    assert!(!world.manifest("demo").exists());
    world.keyring(
        "restore",
        "demo",
        &[&from[..], &["--kek", &second_kek(&world)]].concat(),
    );

    world.keyring("verify", "demo", &[]);
    let manifest = world.read_manifest("demo");
    assert_eq!(manifest["generation"], 6, "the backup holds generation 5");
    assert_eq!(manifest["last_backup"]["generation"], 5);
    let sidecar = world.start_with("after", "", &["demo"]);
    let mut client = sidecar.client().await;
    assert_eq!(client.decrypt(&first).await.ok().body, "before the loss");
    assert_eq!(client.decrypt(&second).await.ok().body, "the newest");
    assert_eq!(client.encrypt(b"new").await.ok().version(), 3);
}

#[test]
fn the_manifest_records_the_verified_backup() {
    let world = World::with_demo();
    world.keyring("rotate", "demo", &[]);
    let (file, _) = back_up(&world, "backup.age");
    let record = &world.read_manifest("demo")["last_backup"];
    let recorded = Document::parse(fs::read(world.manifest("demo")).unwrap()).unwrap();
    let backup = recorded.manifest().last_backup.clone().unwrap();
    assert_eq!(
        (&record["generation"], &record["newest_version"]),
        (&2.into(), &2.into())
    );
    assert_eq!(backup.sha256_hex(), sha256(&file));
    world.keyring("verify", "demo", &[]);
    assert!(
        world
            .keyring("status", "demo", &[])
            .contains(&format!("SHA-256 {}", sha256(&file)))
    );
    // A sidecar loads it like any other change.
    world.start().wait_generation(3);
}

#[test]
fn a_backup_is_recorded_only_once_it_is_verified() {
    let world = World::with_demo();
    let (file, holder, stranger) = (
        world.path("backup.age"),
        Holder::new(&world.path("holder")),
        Holder::new(&world.path("stranger")),
    );
    let printed = world.keyring(
        "backup",
        "demo",
        &[
            "--to",
            &text(&file),
            "--recipient",
            holder.recipient(),
            "--output",
            "json",
        ],
    );
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(
        (&report["verified"], &report["recorded_in"]),
        (&false.into(), &Value::Null)
    );
    assert_eq!(report["sha256"], sha256(&file));
    assert_eq!(world.read_manifest("demo")["generation"], 1);

    let verify = |identity: &Holder| {
        [
            "--verify".into(),
            text(&file),
            "--identity".into(),
            identity.file().to_owned(),
        ]
    };
    let run = |identity: &Holder| {
        world.try_keyring(
            "backup",
            "demo",
            &verify(identity).each_ref().map(String::as_str),
        )
    };
    failed(&run(&stranger), 1, "can't decrypt the backup");
    assert!(run(&holder).status.success());
    assert_eq!(world.read_manifest("demo")["last_backup"]["generation"], 1);

    // An identity that isn't among the recipients is rejected before the backup counts, and no file
    // is left.
    let other = world.path("other.age");
    let arguments = [
        "--to",
        &text(&other),
        "--recipient",
        holder.recipient(),
        "--identity",
        stranger.file(),
    ];
    failed(
        &world.try_keyring("backup", "demo", &arguments),
        1,
        "could not be verified",
    );
    assert!(!other.exists());
    let left = fs::read_dir(world.path("")).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("other.age")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn only_its_own_passphrase_opens_a_backup() {
    let world = World::with_demo();
    let (file, right, wrong) = (
        world.path("backup.age"),
        world.path("right"),
        world.path("wrong"),
    );
    for file in [&right, &wrong] {
        fs::write(file, "").unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::write(&wrong, "short\n").unwrap();
    let weak = ["--to", &text(&file), "--passphrase-file", &text(&wrong)];
    failed(
        &world.try_keyring("backup", "demo", &weak),
        1,
        "fewer than 12 characters",
    );
    // An overlong passphrase is refused: truncated, it would open the backup nowhere else.
    fs::write(&wrong, "x".repeat(5000)).unwrap();
    failed(
        &world.try_keyring("backup", "demo", &weak),
        1,
        "exceeds 4096 bytes",
    );
    fs::write(&wrong, format!("{PASSPHRASE}\n")).unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o644)).unwrap();
    failed(&world.try_keyring("backup", "demo", &weak), 1, "chmod o=");
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!file.exists());
    fs::write(&wrong, "another one altogether\n").unwrap();
    fs::write(&right, format!("{PASSPHRASE}\n")).unwrap();
    world.keyring(
        "backup",
        "demo",
        &["--to", &text(&file), "--passphrase-file", &text(&right)],
    );
    assert_eq!(
        world.read_manifest("demo")["last_backup"]["generation"],
        1,
        "the writer knows the passphrase"
    );
    failed(
        &world.try_keyring(
            "backup",
            "demo",
            &["--to", &text(&file), "--passphrase-file", &text(&right)],
        ),
        1,
        "the file exists",
    );

    fs::remove_file(world.manifest("demo")).unwrap();
    let from = |passphrase: &Path| {
        [
            "--from".into(),
            text(&file),
            "--passphrase-file".into(),
            text(passphrase),
            "--no-sidecar".into(),
        ]
    };
    let run = |passphrase: &Path| {
        world.try_keyring(
            "restore",
            "demo",
            &from(passphrase).each_ref().map(String::as_str),
        )
    };
    failed(&run(&wrong), 1, "can't decrypt the backup");
    assert!(!world.manifest("demo").exists());
    assert!(run(&right).status.success());
    // Without a sidecar to ask and without a file, the command reports an error.
    failed(
        &world.try_keyring("restore", "demo", &["--from", &text(&file)]),
        2,
        "no terminal",
    );
}

#[test]
fn a_damaged_backup_restores_nothing() {
    let world = World::with_demo();
    let (file, identity) = back_up(&world, "backup.age");
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(world.manifest("demo")).unwrap();
    let restore = || {
        world.try_keyring(
            "restore",
            "demo",
            &[
                "--from",
                &text(&file),
                "--identity",
                identity.file(),
                "--no-sidecar",
            ],
        )
    };
    for at in [
        0,
        30,
        60,
        bytes.len() / 2,
        bytes.len() - 20,
        bytes.len() - 1,
    ] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(&file, damaged).unwrap();
        failed(&restore(), 1, "backup.age");
    }
    for length in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&file, &bytes[..length]).unwrap();
        failed(&restore(), 1, "backup.age");
    }
    assert!(!world.manifest("demo").exists());
    fs::write(&file, &bytes).unwrap();
    assert!(restore().status.success());
}

#[test]
fn a_restore_never_lowers_the_generation_or_replaces_another_keyring() {
    let world = World::with_demo();
    let (file, identity) = back_up(&world, "backup.age");
    let from = ["--from", &text(&file), "--identity", identity.file()];
    let newer = fs::read(world.manifest("demo")).unwrap();
    failed(
        &world.try_keyring("restore", "demo", &from),
        3,
        "restoring would go back",
    );
    assert_eq!(fs::read(world.manifest("demo")).unwrap(), newer);

    // The restore runs elsewhere, while a sidecar still has the newer manifest active.
    let sidecar = world.start();
    sidecar.wait_generation(2);
    fs::remove_file(world.manifest("demo")).unwrap();
    failed(
        &world.try_keyring(
            "restore",
            "demo",
            &[&from[..], &["--sidecar", &url(&sidecar)]].concat(),
        ),
        3,
        "restoring would go back",
    );
    failed(
        &world.try_keyring(
            "restore",
            "demo",
            &[&from[..], &["--sidecar", "http://127.0.0.1:1"]].concat(),
        ),
        3,
        "these sidecars returned no manifest",
    );
    world.keyring(
        "restore",
        "demo",
        &[&from[..], &["--sidecar", &url(&sidecar), "--onto-newer"]].concat(),
    );
    assert_eq!(world.read_manifest("demo")["generation"], 3);
    sidecar.wait_generation(3);

    world.init("other", &[]);
    failed(
        &world.try_keyring("restore", "other", &from),
        3,
        "the manifest belongs to keyring",
    );
    // Without a manifest to compare with, the command asks the fleet, or the operator states that
    // there is none.
    fs::remove_file(world.manifest("demo")).unwrap();
    failed(
        &world.try_keyring("restore", "demo", &from),
        3,
        "--no-sidecar",
    );
    assert!(!world.manifest("demo").exists());
    let alone = [&from[..], &["--no-sidecar"]].concat();
    world.keyring("restore", "demo", &alone);
    assert_eq!(
        world.read_manifest("demo")["generation"],
        4,
        "this machine remembers generation 3"
    );
    fs::remove_file(world.manifest("demo")).unwrap();
    // The same generation with different content.
    world.forget();
    world.keyring("restore", "demo", &alone);
    let (later, key) = back_up(&world, "later.age");
    assert_eq!(world.read_manifest("demo")["generation"], 3);
    fs::remove_file(world.manifest("demo")).unwrap();
    world.forget();
    world.keyring("restore", "demo", &alone);
    let fork = ["--from", &text(&later), "--identity", key.file()];
    failed(
        &world.try_keyring("restore", "demo", &fork),
        3,
        "exists with different content",
    );
}

#[tokio::test]
async fn a_lost_kek_is_replaced_from_a_backup_older_than_the_manifest() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut client = sidecar.client().await;
    let message = client.encrypt(b"kept").await.ok().body;
    let (file, identity) = back_up(&world, "backup.age");
    world.keyring("touch", "demo", &[]);
    fs::remove_file(world.path("kek")).unwrap();
    let lost = ["--version", "1", "--lost"];
    failed(
        &world.try_keyring("destroy", "demo", &lost),
        3,
        "wave's primary",
    );
    let second = second_kek(&world);
    let restore = [
        "--from",
        &text(&file),
        "--identity",
        identity.file(),
        "--onto-newer",
        "--kek",
        &second,
    ];
    world.keyring("restore", "demo", &restore);
    assert_eq!(world.read_manifest("demo")["generation"], 4);
    assert_eq!(
        world.read_manifest("demo")["versions"][0]["wraps"][0]["kek"],
        second.as_str()
    );
    sidecar.wait_generation(4);
    let fresh = world.start_with("fresh", "", &["demo"]);
    assert_eq!(
        fresh.client().await.decrypt(&message).await.ok().body,
        "kept"
    );
}

#[test]
fn a_version_is_not_lost_while_a_kek_may_still_unwrap_it() {
    let world = World::with_demo();
    let second = second_kek(&world);
    world.keyring("rotate", "demo", &["--kek", &second]);
    let before = fs::read(world.manifest("demo")).unwrap();
    let destroy = |words: &str, more: &[&str]| {
        world.try_keyring(
            "destroy",
            "demo",
            &[&["--version", "2", "--lost", "--confirm", words], more].concat(),
        )
    };
    let lost = "every KEK of version 2 of demo is lost";
    failed(
        &destroy(lost, &[]),
        3,
        "version 2 can be unwrapped, so it isn't lost",
    );
    // A KEK that must not be asked is not gone.
    let first = format!("local:{}", text(&world.path("kek")));
    let unasked = destroy(lost, &["--allow-kek", &first]);
    failed(&unasked, 3, "the loss can't be confirmed");
    failed(&unasked, 3, &second);
    // An unreachable KEK: nothing shows that it is gone.
    let path = Path::new(second.strip_prefix("local:").unwrap());
    fs::rename(path, world.path("aside")).unwrap();
    fs::create_dir(path).unwrap();
    let refused = destroy(lost, &[]);
    failed(&refused, 3, "the loss can't be confirmed");
    failed(
        &refused,
        3,
        "--confirm 'no KEK of version 2 of demo will ever come back'",
    );
    assert_eq!(fs::read(world.manifest("demo")).unwrap(), before);
    assert!(
        destroy("no KEK of version 2 of demo will ever come back", &[])
            .status
            .success()
    );
    assert_eq!(
        world.read_manifest("demo")["versions"][1]["state"],
        "destroyed"
    );
}

#[test]
fn any_change_takes_keys_that_no_kek_unwraps_from_a_backup() {
    let world = World::with_demo();
    let second = second_kek(&world);
    world.keyring("rotate", "demo", &["--kek", &second]);
    let (file, identity) = back_up(&world, "backup.age");
    fs::remove_file(second.strip_prefix("local:").unwrap()).unwrap();
    failed(
        &world.try_keyring("touch", "demo", &[]),
        1,
        "with a backup that has the version: --from-backup FILE",
    );
    let from_backup = [
        "--from-backup",
        &text(&file),
        "--from-backup-identity",
        identity.file(),
    ];
    let touched = world.try_keyring("touch", "demo", &from_backup);
    failed(&touched, 0, "took the key of version 2 from the backup");
    // A version that is newer than the backup must be unwrapped.
    let third = world.path("third");
    sidekey::backend::local::LocalKek::create(&third).unwrap();
    let third = format!("local:{}", third.display());
    let rewrap = ["--add", &third, "--remove", &second];
    world.keyring("rewrap-kek", "demo", &[&rewrap[..], &from_backup].concat());
    world.keyring("touch", "demo", &[]);
    world.keyring("verify", "demo", &[]);

    let other = World::with_demo();
    let (file, identity) = back_up(&other, "backup.age");
    fs::remove_file(third.strip_prefix("local:").unwrap()).unwrap();
    let of_another = [
        "--from-backup",
        &text(&file),
        "--from-backup-identity",
        identity.file(),
    ];
    failed(
        &world.try_keyring("touch", "demo", &of_another),
        1,
        "version 2 failed",
    );
}

#[test]
fn half_of_a_limit_is_a_warning() {
    let world = World::new();
    let mut keks = Vec::new();
    for number in 1..8 {
        let path = world.path(&format!("kek{number}"));
        sidekey::backend::local::LocalKek::create(&path).unwrap();
        keks.extend(["--kek".to_owned(), format!("local:{}", path.display())]);
    }
    let keks: Vec<&str> = keks.iter().map(String::as_str).collect();
    world.init("demo", &keks);
    let warning = "demo: KEKs of one version: 8 of at most 16; remove KEKs";
    for output in [
        world.try_keyring("touch", "demo", &[]),
        world.try_keyring("status", "demo", &[]),
    ] {
        failed(&output, 0, warning);
    }
    let json = world.keyring("touch", "demo", &["--output", "json"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["warnings"].as_array().unwrap().len(), 1, "{report}");
}

#[test]
fn destroying_requires_a_verified_backup_or_confirmation() {
    let world = World::new();
    world.init(
        "demo",
        &["--destroy-after", "1ms", "--encrypt-lease", "1ms"],
    );
    let retire = |version: &str| {
        world.keyring("rotate", "demo", &["--activate", "now"]);
        world.keyring(
            "disable",
            "demo",
            &[
                "--version",
                version,
                "--override",
                "a rehearsal",
                "--trust-clock",
            ],
        );
    };
    retire("1");
    let destroy = |version: &str| {
        world.try_keyring("destroy", "demo", &["--version", version, "--trust-clock"])
    };
    failed(
        &destroy("1"),
        3,
        "no verified backup of version 1 is recorded",
    );
    let (file, _) = back_up(&world, "backup.age");
    assert!(destroy("1").status.success());
    // Version 3 is newer than the backup.
    retire("2");
    assert!(
        destroy("2").status.success(),
        "the backup contains version 2"
    );
    retire("3");
    failed(
        &destroy("3"),
        3,
        "no verified backup of version 3 is recorded",
    );
    let words = "there is no backup of version 3 of demo";
    let confirmed = ["--version", "3", "--confirm", words, "--trust-clock"];
    world.keyring("destroy", "demo", &confirmed);
    assert!(file.exists());
}

#[tokio::test]
async fn a_lost_store_is_rebuilt_from_the_newest_manifest_of_any_sidecar() {
    let world = World::with_demo();
    let old = fs::read(world.manifest("demo")).unwrap();
    let behind = world.start_with("behind", "[refresh]\npoll = \"1h\"\n", &["demo"]);
    let ahead = world.start_with("ahead", "", &["demo"]);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    ahead.wait_generation(3);
    let message = ahead.client().await.encrypt(b"kept").await.ok().body;
    let newest = fs::read(world.manifest("demo")).unwrap();
    let both = ["--sidecar", &url(&behind), "--sidecar", &url(&ahead)];

    world.keyring("recover", "demo", &both);
    assert_eq!(
        fs::read(world.manifest("demo")).unwrap(),
        newest,
        "nothing to do"
    );
    fs::write(world.manifest("demo"), &old).unwrap();
    let said = world.keyring("recover", "demo", &both);
    assert!(
        said.contains("manifest restored from") && said.contains("(generation 3)"),
        "{said}"
    );
    assert_eq!(fs::read(world.manifest("demo")).unwrap(), newest);
    fs::remove_file(world.manifest("demo")).unwrap();
    failed(
        &world.try_keyring("recover", "demo", &both),
        3,
        "give --name NAME",
    );
    failed(
        &world.try_keyring(
            "recover",
            "demo",
            &[
                "--name",
                "demo",
                "--sidecar",
                &url(&ahead),
                "--sidecar",
                "http://127.0.0.1:1",
            ],
        ),
        3,
        "these sidecars returned no manifest",
    );
    world.keyring(
        "recover",
        "demo",
        &[&both[..], &["--name", "demo"]].concat(),
    );
    world.keyring("verify", "demo", &[]);
    let fresh = world.start_with("fresh", "", &["demo"]);
    assert_eq!(
        fresh.client().await.decrypt(&message).await.ok().body,
        "kept"
    );
}

#[test]
fn recovery_replaces_a_damaged_manifest_but_not_an_unknown_format() {
    let world = World::with_demo();
    let sidecar = world.start();
    let (file, identity) = back_up(&world, "backup.age");
    sidecar.wait_generation(2);
    let whole = fs::read(world.manifest("demo")).unwrap();
    let base = world.path("base.json");
    fs::write(&base, &whole).unwrap();
    let recover = [
        "--name",
        "demo",
        "--sidecar",
        &url(&sidecar),
        "--base",
        &text(&base),
    ];
    let restore = ["--from", &text(&file), "--identity", identity.file()];
    for damaged in [&b""[..], &whole[..whole.len() / 2], &[0; 100]] {
        fs::write(world.manifest("demo"), damaged).unwrap();
        failed(
            &world.try_keyring("recover", "demo", &["--name", "demo"]),
            2,
            "--sidecar <URL>",
        );
        // Otherwise the restored manifest of the last round would be the newest that is known.
        world.forget();
        let said = world.keyring("recover", "demo", &recover);
        assert!(
            said.contains("manifest restored from")
                && said.contains("replaced an invalid manifest"),
            "{said}"
        );
        assert_eq!(fs::read(world.manifest("demo")).unwrap(), whole);

        fs::write(world.manifest("demo"), damaged).unwrap();
        failed(
            &world.try_keyring("restore", "demo", &restore),
            3,
            "--no-sidecar",
        );
        let said = world.keyring(
            "restore",
            "demo",
            &[&restore[..], &["--no-sidecar"]].concat(),
        );
        assert!(said.contains("replaced an invalid manifest"), "{said}");
        world.keyring("verify", "demo", &[]);
        fs::write(world.manifest("demo"), &whole).unwrap();
    }
    let later =
        String::from_utf8(whole)
            .unwrap()
            .replacen("sidekey-keyring/2", "sidekey-keyring/3", 1);
    fs::write(world.manifest("demo"), &later).unwrap();
    failed(
        &world.try_keyring("recover", "demo", &recover),
        1,
        "this build supports only",
    );
    assert_eq!(fs::read_to_string(world.manifest("demo")).unwrap(), later);
}

#[test]
fn recovery_skips_forged_manifests_and_never_goes_back() {
    let world = World::with_demo();
    let sidecar = world.start();
    let genuine = fs::read_to_string(world.manifest("demo")).unwrap();
    // An attacker without a key wrote a higher generation to the store.
    let forged = genuine.replace("\"generation\": 1", "\"generation\": 9");
    assert_ne!(forged, genuine);
    fs::write(world.manifest("demo"), &forged).unwrap();
    world.keyring(
        "recover",
        "demo",
        &["--name", "demo", "--sidecar", &url(&sidecar)],
    );
    assert_eq!(fs::read_to_string(world.manifest("demo")).unwrap(), genuine);

    // A store that is ahead of the sidecar is kept.
    fs::rename(world.manifest("demo"), world.path("aside")).unwrap();
    fs::copy(world.path("aside"), world.manifest("demo")).unwrap();
    let sidecar = world.start_with("frozen", "[refresh]\npoll = \"1h\"\n", &["demo"]);
    sidecar.signal("STOP");
    world.keyring("touch", "demo", &[]);
    let newer = fs::read(world.manifest("demo")).unwrap();
    sidecar.signal("CONT");
    world.keyring("recover", "demo", &["--sidecar", &url(&sidecar)]);
    assert_eq!(fs::read(world.manifest("demo")).unwrap(), newer);
}

#[test]
fn backups_messages_and_logs_contain_no_plaintext_key() {
    let world = World::with_demo();
    let (file, _) = back_up(&world, "backup.age");
    let kek = SecretKey::from_slice(&fs::read(world.path("kek")).unwrap()).unwrap();
    let document = Document::parse(fs::read(world.manifest("demo")).unwrap()).unwrap();
    let keyring: KeyringId = document.manifest().id;
    let dek = unwrap_dek(
        &kek,
        &document.manifest().versions[0].wraps[0].ciphertext.0,
        WrapContext {
            keyring,
            version: 1,
        },
    )
    .unwrap();
    let bytes = fs::read(&file).unwrap();
    assert!(
        !bytes
            .windows(16)
            .any(|window| window == &dek.expose()[..16])
    );
}
