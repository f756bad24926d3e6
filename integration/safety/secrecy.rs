//! Key bytes don't leak.

use std::fs;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use sidekey::{
    crypto::{KeyringId, SecretKey, WrapContext, unwrap_dek},
    keyring::Document,
};

use crate::support::{
    events::Listener,
    files::put,
    harness::{World, run, wait},
};

#[tokio::test]
async fn keys_appear_in_no_log_metric_error_status_or_argument() {
    let world = World::with_demo();
    let sidecar = world.start_with(
        "one",
        "[log]\nlevel = \"trace,sidekey=trace\"\nformat = \"text\"\n",
        &["demo"],
    );
    let mut client = sidecar.client().await;
    let mut seen = Vec::new();
    let good = client
        .encrypt(b"plaintext-that-is-secret")
        .await
        .ok()
        .body
        .to_vec();
    seen.push(good.clone());
    for damage in [3, 7, 20, 60] {
        let mut bad = good.clone();
        bad[damage] ^= 1;
        seen.push(client.decrypt(&bad).await.body.to_vec());
    }
    seen.push(
        world
            .keyring("rotate", "demo", &["--activate", "now", "--output", "json"])
            .into_bytes(),
    );
    sidecar.wait_generation(3);
    seen.push(
        world
            .keyring("status", "demo", &["--output", "json"])
            .into_bytes(),
    );
    let secrets = secrets(&world);
    fs::rename(world.path("kek"), world.path("hidden")).unwrap();
    let refused = world.try_keyring("rotate", "demo", &[]);
    seen.extend([refused.stdout, refused.stderr]);
    fs::write(world.manifest("demo"), "{").unwrap();
    wait("the failure", || !sidecar.keyring()["last_error"].is_null());
    for path in ["/status", "/metrics", "/readyz", "/manifests/demo"] {
        seen.push(sidecar.ops(path).1.into_bytes());
    }
    let usage = run(&["status", "--socket", sidecar.socket.to_str().unwrap()]);
    seen.extend([usage.stdout, usage.stderr, sidecar.log().into_bytes()]);
    let process = format!("/proc/{}", sidecar.child.id());
    for file in ["cmdline", "environ"] {
        // The kernel denies access to a non-dumpable process's files, except to root.
        seen.extend(fs::read(format!("{process}/{file}")).ok());
    }
    let everything = seen.concat();
    assert!(everything.len() > 5000, "the search had input");
    for secret in secrets {
        assert!(!contains(&everything, &secret), "a key leaked");
    }
    assert!(!contains(&everything, b"plaintext-that-is-secret"));

    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(),
        ["0", "0"]
    );
}

#[tokio::test]
async fn a_secret_value_appears_only_in_its_responses() {
    let world = World::new();
    let value = |number: u32| format!("{{\"password\":\"value-that-is-secret-{number}\"}}");
    fs::write(world.path("db"), value(1)).unwrap();
    fs::write(world.path("raw"), "value-that-is-secret-raw").unwrap();
    let config = "[log]\nlevel = \"trace,sidekey=trace\"\n[audit]\nfile = \"audit.log\"\n\
        [[secret]]\nname = \"db\"\nsource = \"file:db\"\n[[secret]]\nname = \"raw\"\n\
        source = \"file:raw\"\nrequired = true\n";
    let sidecar = world.start_with("one", config, &[]);
    let mut client = sidecar.client().await;
    let mut seen = Vec::new();
    let octets = ("accept", "application/octet-stream");
    for path in ["db", "db?field=password", "raw"] {
        let answer = client
            .send(
                hyper::Method::GET,
                &format!("/v1/secrets/{path}"),
                &[octets],
                "",
            )
            .await
            .ok();
        assert!(contains(&answer.body, b"value-that-is-secret"));
        seen.push(format!("{:?}", answer.headers).into_bytes());
    }
    put(&world.path("db"), value(2));
    wait("the new value", || {
        sidecar.status()["secrets"][0]["previous"].is_string()
    });
    for path in [
        "db?field=none",
        "raw?field=password",
        "raw?version=x",
        "db?stage=pending",
        "db?min_version=9",
    ] {
        let answer = client
            .send(hyper::Method::GET, &format!("/v1/secrets/{path}"), &[], "")
            .await;
        assert!(!answer.status.is_success());
        seen.push(answer.body.to_vec());
    }
    seen.push(
        client
            .send(hyper::Method::GET, "/v1/secrets", &[], "")
            .await
            .ok()
            .body
            .to_vec(),
    );
    let mut listener = Listener::open(&sidecar).await;
    for _ in 0..2 {
        let event = listener.next().await.unwrap();
        seen.push(event.to_string().into_bytes());
    }
    for path in ["/status", "/metrics", "/readyz"] {
        seen.push(sidecar.ops(path).1.into_bytes());
    }
    wait("the records", || {
        fs::read_to_string(world.path("audit.log"))
            .is_ok_and(|log| log.matches("secret.in_force").count() == 3)
    });
    seen.extend([
        fs::read(world.path("audit.log")).unwrap(),
        sidecar.log().into_bytes(),
    ]);
    let everything = seen.concat();
    assert!(everything.len() > 5000, "the search had input");
    assert!(!contains(&everything, b"value-that-is-secret"));
    assert!(!contains(
        &everything,
        &URL_SAFE_NO_PAD.encode("value-that-is-secret").as_bytes()[..20]
    ));
}

/// The KEK and every data key, raw and in the encodings that careless code could print.
fn secrets(world: &World) -> Vec<Vec<u8>> {
    let kek = fs::read(world.path("kek")).unwrap();
    let document = Document::parse(fs::read(world.manifest("demo")).unwrap()).unwrap();
    let keyring: KeyringId = document.manifest().id;
    let unwrap = |version: u32, wrap: &[u8]| {
        unwrap_dek(
            &SecretKey::from_slice(&kek).unwrap(),
            wrap,
            WrapContext { keyring, version },
        )
        .unwrap()
    };
    let deks = document.manifest().versions.iter().map(|version| {
        unwrap(version.version, &version.wraps[0].ciphertext.0)
            .expose()
            .to_vec()
    });
    let mut keys: Vec<Vec<u8>> = deks.collect();
    assert_eq!(keys.len(), 2);
    keys.push(kek.clone());
    keys.iter().flat_map(|key| forms(key)).collect()
}

fn forms(key: &[u8]) -> Vec<Vec<u8>> {
    // Half a key is as bad as a whole one.
    let key = &key[..16];
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{key:?}");
    let bare = |encoded: String| encoded.as_bytes()[..20].to_vec();
    vec![
        key.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        list.trim_matches(['[', ']']).as_bytes().to_vec(),
        bare(STANDARD_NO_PAD.encode(key)),
        bare(URL_SAFE_NO_PAD.encode(key)),
    ]
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_search_for_keys_works() {
    let key = [0xA5; 32];
    for form in forms(&key) {
        assert!(contains(
            &[b"before ", &form[..], b" after"].concat(),
            &form
        ));
    }
    assert!(
        forms(&key)
            .iter()
            .any(|form| contains(b"key=a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5", form))
    );
}
