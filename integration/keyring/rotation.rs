//! Rotations without disruption: under load, wave by wave, with lagging sidecars, and with stores
//! and KEKs that fail.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde_json::json;
use sidekey::{
    admin::{Admin, Signing, Takeover},
    backend,
    clock::Clock,
    model::Location,
};

use crate::support::harness::{Client, OCTETS, Sidecar, World, wait};

/// Ten keyrings with a hundred rotations each, at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_rotations_under_load_fail_no_request() {
    const KEYRINGS: usize = 10;
    const ROTATIONS: u32 = 100;
    let world = World::new();
    let names: Vec<String> = (0..KEYRINGS).map(|index| format!("ring-{index}")).collect();
    for name in &names {
        world.init(name, &[]);
    }
    let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
    let sidecar = world.start_with("one", "", &borrowed);
    let done = Arc::new(AtomicBool::new(false));
    let decrypted = Arc::new(AtomicU64::new(0));

    let mut clients = tokio::task::JoinSet::new();
    for index in 0..16 {
        let (names, done, decrypted) = (names.clone(), Arc::clone(&done), Arc::clone(&decrypted));
        let mut client = sidecar.client().await;
        clients.spawn(async move {
            let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
            while !done.load(Ordering::Relaxed) {
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
    let rotate = |name: &String| {
        let admin = Admin::new(
            Location::File(world.manifest(name)),
            Signing::NoKey,
            &backend::configured(&Default::default()),
            Clock::system(),
        )
        .unwrap();
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            for _ in 0..ROTATIONS {
                runtime.block_on(admin.rotate(&[], Takeover::Now)).unwrap();
            }
        })
    };
    let operators: Vec<_> = names.iter().map(rotate).collect();
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
    done.store(true, Ordering::Relaxed);
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
async fn new_ciphertext_names_the_new_version_without_a_restart() {
    let world = World::with_demo();
    let sidecar = world.start();
    let mut client = sidecar.client().await;
    let old = client.encrypt(b"x").await.ok();
    assert_eq!(old.version(), 1);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    let mut version = 1;
    while version != 2 {
        version = client.encrypt(b"x").await.ok().version();
        client.decrypt(&old.body).await.ok();
    }
}

#[tokio::test]
async fn waves_are_activated_one_by_one_and_rolled_back() {
    let world = World::with_demo();
    let canary = world.start_with("canary", "wave = \"canary\"\n", &["demo"]);
    let critical = world.start_with("critical", "wave = \"critical\"\n", &["demo"]);
    let (mut first, mut last) = (canary.client().await, critical.client().await);
    let both = |generation| {
        canary.wait_generation(generation);
        critical.wait_generation(generation);
    };
    world.keyring("rotate", "demo", &[]);
    both(2);
    assert_eq!(
        (
            first.encrypt(b"x").await.ok().version(),
            last.encrypt(b"x").await.ok().version()
        ),
        (1, 1)
    );
    world.keyring("activate", "demo", &["--version", "2", "--wave", "canary"]);
    both(3);
    let (new, old) = (
        first.encrypt(b"x").await.ok(),
        last.encrypt(b"x").await.ok(),
    );
    assert_eq!((new.version(), old.version()), (2, 1));
    // Each decrypts what the other encrypted.
    last.decrypt(&new.body).await.ok();
    first.decrypt(&old.body).await.ok();
    let refused = world.try_keyring(
        "disable",
        "demo",
        &["--version", "2", "--override", "a test"],
    );
    assert_eq!(refused.status.code(), Some(3));
    world.keyring("activate", "demo", &["--version", "1", "--wave", "canary"]);
    both(4);
    assert_eq!(first.encrypt(b"x").await.ok().version(), 1);
    for client in [&mut first, &mut last] {
        client.decrypt(&new.body).await.ok();
    }
}

/// A sidecar that polls once a minute and reads its manifest from a directory behind a symlink:
/// swapping the link doesn't notify it.
fn lagging(world: &World) -> Sidecar {
    fs::create_dir(world.path("before")).unwrap();
    fs::copy(world.manifest("demo"), world.path("before/demo.json")).unwrap();
    symlink("before", world.path("current")).unwrap();
    let keyring =
        "[[keyring]]\nname = \"demo\"\nlocation = \"current/demo.json\"\nkeks = [\"local:*\"]\n";
    let listen = format!("[listen]\nsocket = {:?}\n", world.path("lagging.sock"));
    world.start_with("lagging", &format!("{listen}{keyring}"), &[])
}

/// Copies the current manifest to the location that a lagging sidecar reads.
fn publish(world: &World) {
    symlink(".", world.path("swapped")).unwrap();
    fs::rename(world.path("swapped"), world.path("current")).unwrap();
}

#[tokio::test]
async fn a_lagging_sidecar_and_a_fresh_one_decrypt_each_others_messages() {
    let world = World::with_demo();
    let behind = lagging(&world);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    publish(&world);
    let ahead = world.start_with("fresh", "", &["demo"]);
    let (mut old, mut new) = (behind.client().await, ahead.client().await);
    let by_old = old.encrypt(b"x").await.ok();
    let by_new = new.encrypt(b"x").await.ok();
    assert_eq!((by_old.version(), by_new.version()), (1, 2));
    new.decrypt(&by_old.body).await.ok();
    // Many requests at once: one refresh serves them all, and none fails.
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (mut client, message) = (Client::http1(&behind.socket).await, by_new.body.clone());
        tasks.spawn(async move { client.decrypt(&message).await.ok().version() });
    }
    while let Some(version) = tasks.join_next().await {
        assert_eq!(version.unwrap(), 2);
    }
    let metrics = behind.ops("/metrics").1;
    assert!(
        metrics.contains(
            "sidekey_refreshes_total{keyring=\"demo\",trigger=\"unknown_version\",\
             result=\"changed\"} 1"
        ),
        "{metrics}"
    );
}

#[tokio::test]
async fn sighup_refreshes() {
    let world = World::with_demo();
    let sidecar = lagging(&world);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    publish(&world);
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

#[tokio::test]
async fn a_cached_manifest_starts_a_sidecar_and_is_a_floor_for_the_generation() {
    let world = World::with_demo();
    let config = "[refresh]\ncache_dir = \"copies\"\nmax_backoff = \"100ms\"\n";
    let first = fs::read(world.manifest("demo")).unwrap();
    let sidecar = world.start_with("one", config, &["demo"]);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    let third = fs::read(world.manifest("demo")).unwrap();
    wait("the copy", || {
        fs::read(world.path("copies/demo.json")).is_ok_and(|copy| copy == third)
    });
    drop(sidecar);

    fs::remove_file(world.manifest("demo")).unwrap();
    let sidecar = world.start_with("one", config, &["demo"]);
    assert_eq!(sidecar.client().await.encrypt(b"x").await.ok().version(), 2);
    wait("the reason", || {
        sidecar.keyring()["last_error"]["code"] == "source_missing"
    });
    drop(sidecar);

    // An older manifest in the location, once valid, even while no KEK opens the copy.
    fs::write(world.manifest("demo"), first).unwrap();
    fs::rename(world.path("kek"), world.path("kek-away")).unwrap();
    let sidecar = world.launch("one", config, &["demo"]);
    wait("the refusal", || {
        sidecar.keyring()["last_error"]["code"] == "went_back"
    });
    fs::rename(world.path("kek-away"), world.path("kek")).unwrap();
    drop(sidecar);
    let sidecar = world.start_with("one", config, &["demo"]);
    wait("the refusal", || {
        sidecar.keyring()["last_error"]["code"] == "went_back"
    });
    assert_eq!(sidecar.client().await.encrypt(b"x").await.ok().version(), 2);
    drop(sidecar);

    // An expired lease stays expired after a restart.
    fs::remove_file(world.manifest("demo")).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(31 * 24 * 60 * 60);
    fs::File::options()
        .append(true)
        .open(world.path("copies/demo.json"))
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    let sidecar = world.start_with("one", config, &["demo"]);
    assert_eq!(
        sidecar.client().await.encrypt(b"x").await.problem(),
        "lease_expired"
    );
    drop(sidecar);

    // A copy that isn't a manifest causes a warning.
    fs::write(world.path("copies/demo.json"), "{").unwrap();
    fs::write(world.manifest("demo"), third).unwrap();
    let sidecar = world.start_with("one", config, &["demo"]);
    wait("the warning", || {
        sidecar.log().contains("ignoring the cached manifest")
    });
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

#[tokio::test]
async fn a_kek_outside_the_config_is_never_called() {
    let world = World::with_demo();
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\n[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\n\
         keks = [\"local:ours/*\"]\n"
    );
    // A well-formed manifest whose KEK belongs to the attacker.
    let sidecar = world.launch("one", &config, &[]);
    wait("the reason", || {
        sidecar
            .ops("/readyz")
            .1
            .contains("not one of this keyring's allowed KEKs")
    });
    assert_eq!(
        sidecar.client().await.encrypt(b"x").await.problem(),
        "provider_unavailable"
    );
    let refused = world.try_keyring("verify", "demo", &["--allow-kek", "local:/etc/*"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not one of this keyring"));
    world.keyring(
        "verify",
        "demo",
        &[
            "--allow-kek",
            &format!("local:{}", world.path("kek").display()),
        ],
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
        &["--version", "1", "--override", "a test"],
    );
    wait("its memory's end", || memory() == one);
    world.keyring("enable", "demo", &["--version", "1"]);
    wait("its return", || memory() == 2 * one);
}

#[tokio::test]
async fn an_invalid_manifest_only_changes_status_and_metrics() {
    let world = World::with_demo();
    world.keyring("rotate", "demo", &["--activate", "now"]);
    let sidecar = world.start_with("one", "[refresh]\nmax_backoff = \"100ms\"\n", &["demo"]);
    let mut client = sidecar.client().await;
    let file = world.manifest("demo");
    let good = fs::read(&file).unwrap();
    let edit = |change: fn(&mut serde_json::Value)| {
        let mut manifest = world.read_manifest("demo");
        change(&mut manifest);
        manifest.to_string().into_bytes()
    };
    let faults = [
        ("malformed", good[..good.len() / 2].to_vec()),
        ("malformed", b"{}".to_vec()),
        (
            "malformed",
            edit(|manifest| manifest["surprise"] = json!(1)),
        ),
        (
            "malformed",
            edit(|manifest| manifest["activations"][0]["version"] = json!(9)),
        ),
        (
            "unauthenticated",
            edit(|manifest| manifest["generation"] = json!(9)),
        ),
        (
            "forked",
            edit(|manifest| manifest["policy"]["quiet_period"] = json!("1d")),
        ),
        (
            "went_back",
            edit(|manifest| manifest["generation"] = json!(2)),
        ),
        (
            "inconsistent",
            edit(|manifest| {
                manifest["generation"] = json!(9);
                manifest["versions"][0]["check"] = manifest["versions"][1]["check"].clone();
            }),
        ),
        (
            "other_keyring",
            edit(|manifest| manifest["id"] = json!("00000000000000000000000000000000")),
        ),
    ];
    for (code, bytes) in faults {
        fs::write(&file, bytes).unwrap();
        wait(code, || sidecar.keyring()["last_error"]["code"] == code);
        assert_eq!(sidecar.keyring()["active"]["generation"], 3);
        assert_eq!(client.encrypt(b"x").await.ok().version(), 2);
        assert_eq!(sidecar.ops("/readyz").0, 200);
        assert!(
            sidecar
                .ops("/metrics")
                .1
                .contains("sidekey_keyring_refresh_failing{keyring=\"demo\"} 1")
        );
    }
    fs::remove_file(&file).unwrap();
    wait("a missing file", || {
        sidecar.keyring()["last_error"]["code"] == "source_missing"
    });
    assert_eq!(client.encrypt(b"x").await.ok().version(), 2);
    fs::write(&file, &good).unwrap();
    wait("recovery", || sidecar.keyring()["last_error"].is_null());
    let metrics = sidecar.ops("/metrics").1;
    assert!(metrics.contains("sidekey_keyring_refresh_failing{keyring=\"demo\"} 0"));
    assert!(metrics.contains("result=\"unauthenticated\"}"), "{metrics}");
    // A repeated fault is logged once.
    assert_eq!(
        sidecar.log().matches("the MAC of version").count(),
        1,
        "{}",
        sidecar.log()
    );
}

#[tokio::test]
async fn a_lost_kek_affects_only_the_versions_it_alone_wraps() {
    let world = World::with_demo();
    let sidecar = world.start_with("one", "[refresh]\nmax_backoff = \"100ms\"\n", &["demo"]);
    let mut client = sidecar.client().await;
    let other = world.path("other-kek");
    sidekey::backend::local::LocalKek::create(&other).unwrap();
    // The sidecar can't unwrap a version that is wrapped only under the unreachable KEK.
    let hidden = world.path("hidden");
    let uri = format!("local:{}", other.display());
    fs::copy(world.manifest("demo"), world.path("work.json")).unwrap();
    world.keyring("rotate", "work", &["--kek", &uri]);
    fs::rename(&other, &hidden).unwrap();
    let publish = || fs::rename(world.path("work.json"), world.manifest("demo")).unwrap();
    publish();
    sidecar.wait_generation(2);
    let unopened = sidecar.keyring()["active"]["versions"][1]["unopened"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(unopened.contains("can't read the KEK"), "{unopened}");
    assert_eq!(sidecar.keyring()["last_error"]["code"], "kek_unavailable");
    assert_eq!(client.encrypt(b"x").await.ok().version(), 1);
    assert_eq!(sidecar.ops("/readyz").0, 200);
    let mut named = client.encrypt(b"x").await.ok().body.to_vec();
    named[8] = 2;
    assert_eq!(
        client.decrypt(&named).await.problem(),
        "key_version_unavailable"
    );
    // Retries continue in the background until it unwraps.
    fs::rename(&hidden, &other).unwrap();
    wait("version 2 to open", || {
        sidecar.keyring()["last_error"].is_null()
    });
    assert_eq!(client.decrypt(&named).await.problem(), "decryption_failed");
}

#[tokio::test]
async fn a_new_sidecar_waits_for_its_primary_and_reports_why() {
    let world = World::with_demo();
    fs::rename(world.path("kek"), world.path("hidden")).unwrap();
    let sidecar = world.launch("one", "[refresh]\nmax_backoff = \"100ms\"\n", &["demo"]);
    wait("the reason", || {
        sidecar.ops("/readyz").1.contains("can't read the KEK")
    });
    assert_eq!(sidecar.ops("/readyz").0, 503);
    assert_eq!(sidecar.ops("/livez").0, 200);
    assert_eq!(
        sidecar.client().await.encrypt(b"x").await.problem(),
        "provider_unavailable"
    );
    fs::rename(world.path("hidden"), world.path("kek")).unwrap();
    sidecar.wait_ready();
    sidecar.client().await.encrypt(b"x").await.ok();
}

#[tokio::test]
async fn a_trusted_signature_is_required() {
    let world = World::new();
    // The example key of RFC 8410 §10.3.
    let key = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    fs::write(world.path("signer.pem"), key).unwrap();
    let sign = ["--sign-key", world.path("signer.pem").to_str().unwrap()].map(String::from);
    let sign: Vec<&str> = sign.iter().map(String::as_str).collect();
    world.init("demo", &sign);
    let signer = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
    let socket = world.path("one.sock");
    let keyring = format!(
        "[listen]\nsocket = {socket:?}\n[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\n\
         trusted_signers = [\"{signer}\"]\n"
    );
    let sidecar = world.start_with("one", &keyring, &[]);
    let refused = world.try_keyring("touch", "demo", &[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--sign-key"));
    world.keyring("touch", "demo", &["--unsigned"]);
    wait("the refusal", || {
        sidecar.keyring()["last_error"]["code"] == "unsigned"
    });
    assert_eq!(sidecar.keyring()["active"]["generation"], 1);
    world.keyring("touch", "demo", &sign);
    sidecar.wait_generation(3);
    world.keyring("verify", "demo", &["--trusted-signer", signer]);
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
    assert!(String::from_utf8_lossy(&silent.stderr).contains("http://127.0.0.1:9/ did not answer"));
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
