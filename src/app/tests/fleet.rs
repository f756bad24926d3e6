//! What a command asks a fleet over the ops listeners: statuses, manifests, pushes and proofs.

use hyper::Method;
use serde_json::{Value, json};

use crate::{
    admin::{AdminError, Takeover},
    app::testing::{JSON, TestApp, World},
    backend::ErrorKind,
    fleet::{Fleet, FleetClient, OpsTls},
    keyring::Refusal,
    wire::proof::{ProofRequest, ProvenRole},
};

fn fleet(apps: &[&TestApp]) -> Fleet {
    let urls = apps
        .iter()
        .map(|app| format!("http://{}", app.ops_address()));
    // A port that nothing listens on.
    let urls = urls.chain(["http://127.0.0.1:1".into()]);
    let urls = urls.map(|url| url.parse().expect("a URL"));
    Fleet::of(urls, OpsTls::default())
}

fn client(apps: &[&TestApp]) -> FleetClient {
    FleetClient::new(&fleet(apps)).expect("no TLS files are needed")
}

fn request(version: u32, nonce: u8) -> ProofRequest {
    ProofRequest {
        keyring: "demo".parse().expect("a name"),
        rollout: [9; 16],
        version,
        nonce: [nonce; 32],
    }
}

#[tokio::test(start_paused = true)]
async fn every_sidecar_answers_under_its_name_and_a_dead_one_with_a_reason() {
    let world = World::with_demo().await;
    let (one, other) = (world.start().await, world.start().await);
    let client = client(&[&one, &other]);
    let demo = "demo".parse().expect("a name");

    let statuses = client.statuses().await;
    assert_eq!(statuses[0].0, format!("http://{}", one.ops_address()));
    assert_eq!(statuses[1].0, format!("http://{}", other.ops_address()));
    let instances = [0, 1].map(|at: usize| {
        let status = statuses[at].1.as_ref().expect("it answers");
        assert_eq!(status.keyrings[0].name, demo);
        status.instance.clone().expect("this build has one")
    });
    assert_ne!(instances[0], instances[1]);
    assert_eq!(instances[0].len(), 32);
    let reason = statuses[2].1.as_ref().expect_err("nothing listens");
    assert!(reason.contains("refused"), "{reason}");

    let manifests = client.manifests(&demo).await;
    let stored = world.store("demo").get().expect("a manifest");
    for (name, manifest) in &manifests[..2] {
        let manifest = manifest.as_ref().expect(name);
        assert_eq!(manifest.bytes(), &stored[..]);
    }
    assert!(manifests[2].1.is_err());
    let other = client.manifests(&"other".parse().expect("a name")).await;
    let reason = other[0]
        .1
        .as_ref()
        .expect_err("it isn't served")
        .to_string();
    assert!(reason.starts_with("keyring_not_found: "), "{reason}");

    // The listener requests no certificate.
    let pushed = client.push(&demo, 2).await;
    let reason = pushed[0].1.as_ref().expect_err("forbidden");
    assert!(reason.contains("set `client_ca` in `ops.tls`"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn the_signer_verifies_who_holds_a_version() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Later).await.expect("rotated");
    app.refresh();
    app.wait_generation(2).await;
    let document = admin.read().await.expect("a manifest");
    let client = client(&[&app]);
    let names = [
        format!("http://{}", app.ops_address()),
        "http://127.0.0.1:1".to_owned(),
        "unknown".to_owned(),
    ];
    for (version, role) in [(1, ProvenRole::Primary), (2, ProvenRole::Pending)] {
        let request = request(version, version as u8);
        let proofs = client.prove(&names, &request).await;
        let named: Vec<&String> = proofs.iter().map(|(name, _)| name).collect();
        assert_eq!(named, names.iter().collect::<Vec<_>>());
        let proof = proofs[0].1.as_ref().expect("it holds the version");
        assert_eq!(proof.role, role);
        assert_eq!(proof.manifest, document.digest());
        let id = document.manifest().id;
        for checked in [1, 2] {
            let key = admin.proof_key(&document, checked).await;
            let key = key.expect("the KEK unwraps it");
            assert_eq!(key.verify(id, &request, proof), checked == version);
        }
        assert!(proofs[1].1.is_err() && proofs[2].1.is_err());
    }
    let again = client.prove(&names, &request(2, 1)).await;
    let reason = again[0].1.as_ref().expect_err("the nonce was used");
    assert!(reason.starts_with("invalid_request: the nonce"), "{reason}");
    let unknown = client.prove(&names, &request(3, 3)).await;
    let reason = unknown[0].1.as_ref().expect_err("no such version");
    assert!(reason.starts_with("key_version_unavailable: "), "{reason}");

    let versions = app.keyring().await["active"]["versions"].clone();
    let unused = json!({ "encrypted": 0, "decrypted": 0, "refused": 0, "open": 0 });
    assert_eq!([&versions[0]["uses"], &versions[1]["uses"]], [&unused; 2]);
    assert_eq!(versions[1]["last_used"], Value::Null, "a proof is no use");
    let metrics = app.ops("/metrics").await.1;
    for (result, count) in [
        ("ok", 2),
        ("invalid_request", 1),
        ("key_version_unavailable", 1),
    ] {
        let line = format!("sidekey_proofs_total{{keyring=\"demo\",result=\"{result}\"}} {count}");
        assert!(metrics.contains(&line), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_proof_key_needs_the_version() {
    let world = World::with_demo().await;
    let admin = world.admin("demo");
    let document = admin.read().await.expect("a manifest");
    let refused = admin.proof_key(&document, 2).await.err();
    assert!(matches!(
        refused,
        Some(AdminError::Refused(Refusal::NoSuchVersion {
            version: 2,
            ..
        }))
    ));
    world.main_kek().fail(ErrorKind::Unavailable);
    let failed = admin.proof_key(&document, 1).await.err().expect("no KEK");
    let text = failed.to_string();
    assert!(text.contains("version 1 can't be checked"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_proof_is_json_for_a_keyring_that_is_served() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut ops = app.ops_client().await;
    let body = |keyring: &str| {
        let request = serde_json::to_value(request(1, 1)).expect("JSON");
        let mut request: Value = request;
        request["keyring"] = keyring.into();
        request.to_string()
    };
    let answer = ops.post("/prove", &[JSON], body("demo")).await.ok();
    assert_eq!(answer.json()["role"], "primary");
    let answer = ops.post("/prove", &[], body("demo")).await;
    assert_eq!(answer.problem(), "unsupported_media_type");
    let answer = ops.post("/prove", &[JSON], body("other")).await;
    assert_eq!(answer.problem(), "keyring_not_found");
    let answer = ops.post("/prove", &[JSON], "{}").await;
    assert_eq!(answer.problem(), "invalid_request");
    let answer = ops.send(Method::GET, "/prove", &[], "").await;
    assert_eq!(answer.problem(), "method_not_allowed");
    ops.name_host("evil.example");
    let answer = ops.post("/prove", &[JSON], body("demo")).await;
    assert_eq!(answer.problem(), "forbidden", "as /status");
}

#[tokio::test(start_paused = true)]
async fn status_counts_what_a_process_did_with_a_keyring() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut client = app.client().await;
    let message = client.encrypt(b"one").await.ok().body;
    client.encrypt(b"two").await.ok();
    client.decrypt(&message).await.ok();
    let mut damaged = message.to_vec();
    *damaged.last_mut().expect("a tag") ^= 1;
    for _ in 0..2 {
        let refused = client.decrypt(&damaged).await;
        assert_eq!(refused.problem(), "decryption_failed");
    }
    let keyring = app.keyring().await;
    assert_eq!(
        keyring["uses"],
        json!({
            "encrypted": 2,
            "decrypted": 1,
            "failed": [{"operation": "decrypt", "code": "decryption_failed", "count": 2}],
        })
    );
    let version = &keyring["active"]["versions"][0];
    let uses = json!({ "encrypted": 2, "decrypted": 1, "refused": 0, "open": 0 });
    assert_eq!(version["uses"], uses);
}
