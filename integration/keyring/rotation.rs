//! Rotations of real files, seen by processes: under load, behind symbolic links, by signal and by
//! command.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::Value;
use sidekey::{
    admin::{Admin, Bases, Memory, Signing, Takeover},
    backend,
    clock::Clock,
    keyring::Policy,
    model::{KekUri, Location},
};
use tokio::sync::watch;

use crate::support::harness::{OCTETS, World, wait};

/// An operator's access to a keyring, without a process.
fn operator(world: &World, name: &str, clock: Clock) -> Admin {
    let location = Location::File(world.manifest(name));
    let backends = backend::configured(&Default::default());
    Admin::new(location, Signing::NoKey, &backends, clock)
        .unwrap()
        .with_bases(Bases {
            memory: Some(Memory::in_folder(world.path("state"))),
            ..Bases::default()
        })
}

/// A hundred keyrings with ten rotations each, ten at the same time. Each change unwraps every
/// version and verifies all words, so that more rotations of one keyring would only be slower.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_rotations_under_load_fail_no_request() {
    const KEYRINGS: usize = 100;
    const ROTATIONS: u32 = 10;
    const OPERATORS: usize = 10;
    let world = World::new();
    let names: Vec<String> = (0..KEYRINGS).map(|index| format!("ring-{index}")).collect();
    let kek: KekUri = format!("local:{}", world.path("kek").display())
        .parse()
        .unwrap();
    for name in &names {
        let admin = operator(&world, name, Clock::system());
        let name = name.parse().unwrap();
        let created = admin.init(name, std::slice::from_ref(&kek), Policy::default());
        created.await.unwrap();
    }
    let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
    let sidecar = world.start_with("one", "", &borrowed);
    // Every change sets off requests, which race with the sidecar's refresh.
    let changes = watch::Sender::new(());
    let decrypted = Arc::new(AtomicU64::new(0));

    let mut clients = tokio::task::JoinSet::new();
    for index in 0..8 {
        let (names, decrypted) = (names.clone(), Arc::clone(&decrypted));
        let mut changed = changes.subscribe();
        let mut client = sidecar.client().await;
        clients.spawn(async move {
            let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
            while changed.changed().await.is_ok() {
                let name = &names[fastrand::usize(..names.len())];
                let plaintext = format!("client {index}");
                let encrypted = client
                    .post(
                        &format!("/v1/keyrings/{name}/encrypt"),
                        &[OCTETS],
                        plaintext.clone(),
                    )
                    .await
                    .ok();
                kept.push((name.clone(), encrypted.body.to_vec()));
                // A recent message and one that may be as old as the test.
                for (name, message) in [&kept[kept.len() - 1], &kept[fastrand::usize(..kept.len())]]
                {
                    let answer = client
                        .post(
                            &format!("/v1/keyrings/{name}/decrypt"),
                            &[OCTETS],
                            message.clone(),
                        )
                        .await
                        .ok();
                    assert_eq!(answer.body, plaintext);
                    decrypted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let admin = |name: &String| operator(&world, name, Clock::system());
    let operate = |names: &[String]| {
        let admins: Vec<Admin> = names.iter().map(admin).collect();
        let changes = changes.clone();
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            for _ in 0..ROTATIONS {
                for admin in &admins {
                    runtime.block_on(admin.rotate(&[], Takeover::Now)).unwrap();
                    changes.send_replace(());
                }
            }
        })
    };
    let operators: Vec<_> = names.chunks(KEYRINGS / OPERATORS).map(operate).collect();
    for operator in operators {
        operator.await.unwrap();
    }
    wait("the last generations", || {
        let status = sidecar.status();
        let keyrings = status["keyrings"].as_array().unwrap();
        keyrings
            .iter()
            .all(|keyring| keyring["active"]["primary"] == ROTATIONS + 1)
    });
    drop(changes);
    while let Some(result) = clients.join_next().await {
        result.unwrap();
    }
    assert!(decrypted.load(Ordering::Relaxed) > 1000, "there was load");
    let metrics = sidecar.ops("/metrics").1;
    let failed = metrics
        .lines()
        .filter(|line| line.starts_with("sidekey_requests_total") && !line.contains("code=\"ok\""));
    assert_eq!(failed.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test]
async fn sighup_refreshes() {
    let world = World::with_demo();
    // Swapping a link to the manifest's directory doesn't notify the sidecar.
    fs::create_dir(world.path("before")).unwrap();
    fs::copy(world.manifest("demo"), world.path("before/demo.json")).unwrap();
    symlink("before", world.path("current")).unwrap();
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\n[refresh]\npoll = \"1d\"\n[[keyring]]\n\
         name = \"demo\"\nlocation = \"current/demo.json\"\nkeks = [\"local:*\"]\n"
    );
    let sidecar = world.start_with("one", &config, &[]);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    symlink(".", world.path("swapped")).unwrap();
    fs::rename(world.path("swapped"), world.path("current")).unwrap();
    assert_eq!(sidecar.client().await.encrypt(b"x").await.ok().version(), 1);
    sidecar.signal("HUP");
    sidecar.wait_generation(3);
    assert_eq!(sidecar.client().await.encrypt(b"x").await.ok().version(), 2);
}

#[tokio::test]
async fn a_kubernetes_symlink_swap_is_noticed() {
    let world = World::with_demo();
    let at = |name: &str| world.path(name);
    fs::create_dir(at("..1")).unwrap();
    fs::copy(world.manifest("demo"), at("..1/demo.json")).unwrap();
    fs::rename(world.manifest("demo"), at("edited.json")).unwrap();
    symlink("..1", at("..data")).unwrap();
    symlink("..data/demo.json", world.manifest("demo")).unwrap();
    let sidecar = world.start();
    world.keyring("rotate", "edited", &["--activate", "now"]);
    fs::create_dir(at("..2")).unwrap();
    fs::copy(at("edited.json"), at("..2/demo.json")).unwrap();
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    sidecar.wait_generation(3);
    let metrics = sidecar.ops("/metrics").1;
    assert!(
        metrics.contains("trigger=\"file\",result=\"changed\"} 1"),
        "{metrics}"
    );
}

#[test]
fn a_change_behind_a_symlink_is_noticed() {
    let world = World::with_demo();
    fs::create_dir(world.path("real")).unwrap();
    fs::rename(world.manifest("demo"), world.path("real/demo.json")).unwrap();
    symlink("real/demo.json", world.manifest("demo")).unwrap();
    let sidecar = world.start();
    world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    assert!(
        fs::symlink_metadata(world.manifest("demo"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn the_key_of_a_disabled_version_leaves_memory() {
    let world = World::with_demo();
    let sidecar = world.start();
    let memory = || {
        let memory = &sidecar.status()["key_memory"];
        memory["locked_bytes"].as_u64().unwrap() + memory["unlocked_bytes"].as_u64().unwrap()
    };
    let one = memory();
    world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    assert_eq!(memory(), 2 * one);
    world.keyring(
        "disable",
        "demo",
        &["--version", "1", "--override", "a test", "--trust-clock"],
    );
    wait("its memory's end", || memory() == one);
    world.keyring("enable", "demo", &["--version", "1"]);
    wait("its return", || memory() == 2 * one);
}

#[test]
fn disabling_relies_on_reports_from_every_sidecar() {
    let world = World::new();
    world.init("demo", &["--quiet-period", "1s"]);
    let sidecar = world.start();
    world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    let url = format!("http://{}", sidecar.ops);
    let disable = |extra: &[&str]| {
        world.try_keyring("disable", "demo", &[&["--version", "1"], extra].concat())
    };
    let silent = disable(&["--sidecar", &url, "--sidecar", "http://127.0.0.1:9"]);
    assert_eq!(silent.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&silent.stderr).contains("http://127.0.0.1:9 did not answer"));
    let unasked = disable(&[]);
    assert_eq!(unasked.status.code(), Some(3));
    wait("the quiet period", || {
        disable(&["--sidecar", &url]).status.success()
    });
    assert_eq!(
        world.read_manifest("demo")["versions"][0]["state"],
        "disabled"
    );
}

#[test]
fn verify_uses_only_allowed_keks() {
    let world = World::with_demo();
    let refused = world.try_keyring("verify", "demo", &["--allow-kek", "local:/etc/*"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not one of the allowed KEKs"));
    let ours = format!("local:{}", world.path("kek").display());
    world.keyring("verify", "demo", &["--allow-kek", &ours]);
}

#[test]
fn a_change_of_a_signed_keyring_is_signed_or_expressly_unsigned() {
    let world = World::new();
    // The example key of RFC 8410 §10.3.
    let key = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    let file = world.path("signer.pem");
    fs::write(&file, key).unwrap();
    let sign = ["--sign-key", file.to_str().unwrap()];
    let trust = [
        "--trusted-signer",
        "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
    ];
    world.init("demo", &sign);
    let refused = world.try_keyring("touch", "demo", &[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--sign-key"));
    world.keyring("touch", "demo", &["--unsigned"]);
    assert!(!world.try_keyring("verify", "demo", &trust).status.success());
    let refused = world.try_keyring("touch", "demo", &sign);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--adopt-unsigned"));
    let status = world.keyring("status", "demo", &["--output", "json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    let digest = status["digest"].as_str().unwrap();
    world.keyring(
        "touch",
        "demo",
        &[&sign[..], &["--adopt-unsigned", digest]].concat(),
    );
    world.keyring("verify", "demo", &trust);
}

#[tokio::test]
async fn a_change_long_after_the_last_one_is_a_warning() {
    let world = World::new();
    let kek = format!("local:{}", world.path("kek").display());
    for name in ["demo", "trusted"] {
        let (clock, _) = Clock::manual("2020-01-01T00:00:00Z".parse().unwrap());
        operator(&world, name, clock)
            .init(
                name.parse().unwrap(),
                &[kek.parse().unwrap()],
                Policy::default(),
            )
            .await
            .unwrap();
    }
    let touch = |name, extra: &[&str]| {
        let json = ["--output", "json"];
        let output = world.try_keyring("touch", name, &[&json, extra].concat());
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        (report["warnings"][0].as_str().map(str::to_owned), log)
    };
    let (warning, log) = touch("demo", &[]);
    let warning = warning.unwrap();
    assert!(warning.contains("days after the last one"), "{warning}");
    assert_eq!(log, format!("sidekey: demo: {warning}\n"));
    assert_eq!(touch("demo", &[]), (None, String::new()));
    let trusted = touch("trusted", &["--trust-clock"]);
    assert_eq!(trusted, (None, String::new()));
}
