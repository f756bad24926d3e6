//! Manifests that are invalid, cached, signed, or wrapped with KEKs that fail.

use std::fs;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    admin::{AdminError, Signing, Takeover},
    app::testing::{DAY, MINUTE, World},
    backend::ErrorKind,
    crypto::SigningKey,
    keyring::{self, Base64, Document, Policy},
};

fn edited(manifest: &Bytes, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap();
    change(&mut manifest);
    manifest.to_string().into_bytes()
}

/// The manifest as its own successor.
fn next(manifest: &Value) -> Value {
    let document = Document::parse(manifest.to_string()).unwrap();
    let mut next = manifest.clone();
    next["generation"] = json!(document.manifest().generation + 1);
    let ancestor = json!({
        "generation": document.manifest().generation,
        "sha256": Base64(document.digest().to_vec()),
    });
    next["lineage"].as_array_mut().unwrap().insert(0, ancestor);
    next
}

/// Invalid successors of a manifest with two versions, and the code with which each is reported.
fn faults(good: &Bytes) -> Vec<(&'static str, Vec<u8>)> {
    let edit = |change: fn(&mut Value)| edited(good, change);
    vec![
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
            edit(|manifest| *manifest = next(manifest)),
        ),
        (
            "forked",
            edit(|manifest| manifest["policy"]["quiet_period"] = json!("1d")),
        ),
        (
            "went_back",
            edit(|manifest| {
                manifest["generation"] = json!(2);
                manifest["activations"][1]["generation"] = json!(2);
                manifest["lineage"].as_array_mut().unwrap().remove(0);
            }),
        ),
        (
            "diverged",
            edit(|manifest| {
                *manifest = next(manifest);
                manifest["versions"][0]["check"] = manifest["versions"][1]["check"].clone();
            }),
        ),
        (
            "other_keyring",
            edit(|manifest| manifest["id"] = json!("00000000000000000000000000000000")),
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn an_invalid_manifest_only_changes_status_and_metrics() {
    let world = World::with_demo().await;
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.unwrap();
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let store = world.store("demo");
    let good = store.get().unwrap();
    for (code, bytes) in faults(&good) {
        let reads = store.reads();
        store.set(bytes);
        world.wait("a read", || store.reads() > reads).await;
        sidecar
            .wait_keyring(code, |keyring| keyring["last_error"]["code"] == code)
            .await;
        assert_eq!(sidecar.keyring().await["active"]["generation"], 3);
        assert_eq!(client.encrypt(b"x").await.ok().version(), 2);
        assert_eq!(sidecar.ops("/readyz").await.0, 200);
        let metrics = sidecar.ops("/metrics").await.1;
        assert!(metrics.contains("sidekey_keyring_refresh_failing{keyring=\"demo\"} 1"));
        // It is read again, with the same result.
        world.advance(2 * MINUTE).await;
        client = sidecar.client().await;
    }
    store.remove();
    sidecar
        .wait_keyring("a missing manifest", |keyring| {
            keyring["last_error"]["code"] == "source_missing"
        })
        .await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), 2);
    store.set(good);
    sidecar
        .wait_keyring("recovery", |keyring| keyring["last_error"].is_null())
        .await;
    let metrics = sidecar.ops("/metrics").await.1;
    assert!(metrics.contains("sidekey_keyring_refresh_failing{keyring=\"demo\"} 0"));
    assert!(metrics.contains("result=\"unauthenticated\"}"), "{metrics}");
    let log = world.log();
    assert_eq!(
        log.matches("the word or testament of version").count(),
        1,
        "a repeated fault is logged once: {log}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_kek_affects_only_the_versions_it_alone_wraps() {
    let world = World::with_demo().await;
    let sidecar = world.start().await;
    let mut client = sidecar.client().await;
    let other = "fake:other".parse().unwrap();
    let admin = world.admin("demo");
    admin.rotate(&[other], Takeover::Later).await.unwrap();
    world.kek("fake:other").fail(ErrorKind::NotFound);
    sidecar.wait_generation(2).await;
    let unopened = sidecar.keyring().await["active"]["versions"][1]["unopened"].clone();
    let reason = unopened.as_str().unwrap();
    assert!(reason.contains("fake:other: the test makes it"), "{reason}");
    assert_eq!(
        sidecar.keyring().await["last_error"]["code"],
        "kek_unavailable"
    );
    assert_eq!(client.encrypt(b"x").await.ok().version(), 1);
    assert_eq!(sidecar.ops("/readyz").await.0, 200);
    let mut named = client.encrypt(b"x").await.ok().body.to_vec();
    named[8] = 2;
    let refused = world.pass_time_until(client.decrypt(&named)).await;
    assert_eq!(refused.problem(), "key_version_unavailable");
    // Retries continue in the background until it unwraps.
    world.kek("fake:other").work();
    world.advance(2 * MINUTE).await;
    assert!(sidecar.keyring().await["last_error"].is_null());
    let mut client = sidecar.client().await;
    assert_eq!(client.decrypt(&named).await.problem(), "decryption_failed");
}

#[tokio::test(start_paused = true)]
async fn a_kek_outside_the_config_is_never_called() {
    let world = World::with_demo().await;
    world.main_kek().take_calls();
    // A well-formed manifest whose KEK belongs to the attacker.
    let config = "[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = [\"fake:ours/*\"]";
    let sidecar = world.launch(config, &[]).await;
    let is_refused = async || {
        let pending = sidecar.ops("/readyz").await.1;
        pending.contains("not one of the allowed KEKs")
    };
    sidecar.wait("the reason", is_refused).await;
    assert_eq!(
        sidecar.client().await.encrypt(b"x").await.problem(),
        "provider_unavailable"
    );
    assert_eq!(world.main_kek().take_calls(), []);
}

/// The example key of RFC 8410 §10.3, and the public key that is its counterpart.
const SIGNER: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
    -----END PRIVATE KEY-----\n";
const PUBLIC: &str = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

#[tokio::test(start_paused = true)]
async fn a_trusted_signature_is_required() {
    let world = World::new();
    let signing = Signing::With {
        key: SigningKey::from_pem(SIGNER.as_bytes()).unwrap(),
        trusted: Vec::new(),
        adopt: None,
    };
    let signer = world.admin_with("demo", signing);
    let kek = "fake:main".parse().unwrap();
    let name = "demo".parse().unwrap();
    signer.init(name, &[kek], Policy::default()).await.unwrap();
    let config = format!(
        "[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = [\"fake:*\"]\n\
         trusted_signers = [\"{PUBLIC}\"]\n"
    );
    let sidecar = world.start_with(&config, &[]).await;
    let touch = async |signing| {
        let admin = world.admin_with("demo", signing);
        admin
            .change(|current, now| Ok(keyring::touch(current, now)))
            .await
    };
    let refused = touch(Signing::NoKey).await.unwrap_err();
    assert!(
        matches!(refused, AdminError::WouldDropSignature(_)),
        "{refused}"
    );
    touch(Signing::Drop).await.unwrap();
    sidecar
        .wait_keyring("the refusal", |keyring| {
            keyring["last_error"]["code"] == "unsigned"
        })
        .await;
    assert_eq!(sidecar.keyring().await["active"]["generation"], 1);
    // To sign the successor of an unsigned manifest, the operator must say which one they mean.
    let touch = |current: &Document, now| Ok(keyring::touch(current, now));
    let refused = signer.change(touch).await.unwrap_err();
    let AdminError::NotSigned { digest, .. } = refused else {
        panic!("{refused}");
    };
    let signing = Signing::With {
        key: SigningKey::from_pem(SIGNER.as_bytes()).unwrap(),
        trusted: Vec::new(),
        adopt: Some(digest),
    };
    let signer = world.admin_with("demo", signing);
    signer.change(touch).await.unwrap();
    sidecar.wait_generation(3).await;
}

const CACHED: &str = "[refresh]\ncache_dir = \"copies\"\n";

/// A world whose only sidecar has cached generation 3, and this generation and the first.
async fn world_with_a_copy() -> (World, Bytes, Bytes) {
    let world = World::with_demo().await;
    let store = world.store("demo");
    let first = store.get().unwrap();
    let sidecar = world.start_with(CACHED, &["demo"]).await;
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.unwrap();
    sidecar.wait_generation(3).await;
    let third = store.get().unwrap();
    let copy = world.path("copies/demo.json");
    world
        .wait("the copy", || {
            fs::read(&copy).is_ok_and(|copy| copy == third)
        })
        .await;
    (world, first, third)
}

#[tokio::test(start_paused = true)]
async fn a_cached_manifest_starts_a_sidecar_until_its_lease_ends() {
    let (world, _, third) = world_with_a_copy().await;
    world.store("demo").remove();
    let sidecar = world.start_with(CACHED, &["demo"]).await;
    let mut client = sidecar.client().await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), 2);
    sidecar
        .wait_keyring("the reason", |keyring| {
            keyring["last_error"]["code"] == "source_missing"
        })
        .await;
    drop(sidecar);

    // An expired lease stays expired after a restart.
    world.clock().advance(31 * DAY);
    let sidecar = world.start_with(CACHED, &["demo"]).await;
    let mut client = sidecar.client().await;
    assert_eq!(client.encrypt(b"x").await.problem(), "lease_expired");
    drop(sidecar);

    // A copy that isn't a manifest causes a warning.
    fs::write(world.path("copies/demo.json"), "{").unwrap();
    world.store("demo").set(third);
    let _sidecar = world.start_with(CACHED, &["demo"]).await;
    let warning = "ignoring the cached manifest";
    world.wait(warning, || world.log().contains(warning)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cached_manifest_is_a_floor_for_the_generation() {
    let (world, first, _) = world_with_a_copy().await;
    // An older manifest in the location, once valid, even while no KEK opens the copy.
    world.store("demo").set(first);
    world.main_kek().fail(ErrorKind::NotFound);
    let sidecar = world.launch(CACHED, &["demo"]).await;
    sidecar
        .wait_keyring("the refusal", |keyring| {
            keyring["last_error"]["code"] == "behind"
        })
        .await;
    world.main_kek().work();
    drop(sidecar);

    let sidecar = world.start_with(CACHED, &["demo"]).await;
    sidecar
        .wait_keyring("the refusal", |keyring| {
            keyring["last_error"]["code"] == "behind"
        })
        .await;
    let mut client = sidecar.client().await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), 2);
}
