//! KEKs in a token: SoftHSM, which integration/install-backends installs.

use std::{fs, path::Path, process::Command};

use crate::support::harness::{Sidecar, World, wait};

const LIBRARY: &str = "/usr/lib/softhsm/libsofthsm2.so";

fn tool(program: &str, env: &[(&'static str, String)], arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .envs(env.iter().cloned())
        .output();
    let output = output.unwrap_or_else(|error| {
        panic!("{program} is installed (integration/install-backends does it): {error}")
    });
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A world with a token that holds an AES key and an RSA key.
fn world_with_token() -> World {
    let mut world = World::new();
    let config = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\n",
        world.path("tokens").display()
    );
    fs::write(world.path("softhsm2.conf"), config).unwrap();
    let module = [
        (
            "SOFTHSM2_CONF",
            world.path("softhsm2.conf").display().to_string(),
        ),
        ("PKCS11_MODULE_PATH", LIBRARY.into()),
    ];
    world.env.extend(module);
    make_token(&world);
    in_token(
        &world,
        &[
            "--keypairgen",
            "--key-type",
            "RSA:2048",
            "--label",
            "rsa",
            "--id",
            "02",
        ],
    );
    fs::write(world.path("pin"), "1234\n").unwrap();
    world
}

/// Makes a token with a new AES key.
fn make_token(world: &World) {
    fs::create_dir(world.path("tokens")).unwrap();
    let arguments = [
        "--init-token",
        "--free",
        "--label",
        "keys",
        "--pin",
        "1234",
        "--so-pin",
        "4321",
    ];
    tool("softhsm2-util", &world.env, &arguments);
    in_token(
        world,
        &[
            "--keygen",
            "--key-type",
            "AES:32",
            "--label",
            "aes",
            "--id",
            "01",
            "--private",
        ],
    );
}

fn in_token(world: &World, arguments: &[&str]) {
    let login = [
        "--module",
        LIBRARY,
        "--token-label",
        "keys",
        "--login",
        "--pin",
        "1234",
    ];
    tool("pkcs11-tool", &world.env, &[&login, arguments].concat());
}

fn kek(world: &World, object: &str) -> String {
    format!(
        "pkcs11:token=keys;object={object}?pin-source=file:{}",
        world.path("pin").display()
    )
}

fn init(world: &World, kek: &str) {
    let manifest = world.manifest("demo").display().to_string();
    world.succeed(&["keyring", "init", &manifest, "--name", "demo", "--kek", kek]);
}

fn start(world: &World, keks: &str) -> Sidecar {
    let sidecar = launch(world, keks);
    sidecar.wait_ready();
    sidecar
}

fn launch(world: &World, keks: &str) -> Sidecar {
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\n[refresh]\nmax_backoff = \"100ms\"\n[pkcs11]\n\
         module = \"{LIBRARY}\"\n\
         [[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = [\"{keks}\"]\n"
    );
    world.launch("one", &config, &[])
}

#[tokio::test]
async fn a_keyring_lives_under_an_aes_key_and_moves_to_an_rsa_key() {
    let world = world_with_token();
    init(&world, &kek(&world, "aes"));
    world.keyring("rotate", "demo", &["--activate", "now"]);
    let sidecar = start(&world, "pkcs11:*");
    let old = sidecar.client().await.encrypt(b"kept").await.ok();
    world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(5);
    drop(sidecar);
    world.keyring(
        "rewrap-kek",
        "demo",
        &[
            "--add",
            &kek(&world, "rsa"),
            "--remove",
            &kek(&world, "aes"),
        ],
    );
    world.keyring("verify", "demo", &[]);
    // The old KEK is destroyed, as an operator retires a key.
    in_token(
        &world,
        &["--delete-object", "--type", "secrkey", "--label", "aes"],
    );
    let sidecar = start(&world, &kek(&world, "rsa"));
    assert_eq!(
        sidecar.client().await.decrypt(&old.body).await.ok().body,
        "kept"
    );
}

#[tokio::test]
async fn a_token_that_disappears_is_found_again() {
    let world = world_with_token();
    init(&world, &kek(&world, "aes"));
    fs::rename(world.path("tokens"), world.path("away")).unwrap();
    fs::create_dir(world.path("tokens")).unwrap();
    let sidecar = launch(&world, "pkcs11:*");
    wait("the reason", || {
        sidecar.ops("/readyz").1.contains("0 tokens match the URI")
    });
    drop(sidecar);
    fs::remove_dir(world.path("tokens")).unwrap();
    fs::rename(world.path("away"), world.path("tokens")).unwrap();
    let sidecar = start(&world, "pkcs11:*");
    sidecar.client().await.encrypt(b"x").await.ok();
}

#[test]
fn a_wrong_pin_is_tried_once_and_a_corrected_one_is_used() {
    let world = world_with_token();
    init(&world, &kek(&world, "aes"));
    fs::write(world.path("pin"), "wrong-pin\n").unwrap();
    let sidecar = launch(&world, "pkcs11:*");
    wait("the refusal", || {
        sidecar
            .ops("/readyz")
            .1
            .contains("it is not tried again until the file changes")
    });
    let shown = format!(
        "{}{}{}",
        sidecar.log(),
        sidecar.ops("/status").1,
        sidecar.ops("/readyz").1
    );
    assert!(
        shown.contains("the PIN is wrong") && !shown.contains("wrong-pin"),
        "{shown}"
    );
    fs::write(world.path("pin"), "1234\n").unwrap();
    sidecar.wait_ready();
}

#[test]
fn problems_with_keys_and_wraps_are_reported() {
    let world = world_with_token();
    init(&world, &kek(&world, "aes"));
    let fails = |arguments: &[&str], why: &str| {
        let output = world.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(why), "{said}");
    };
    let manifest = world.manifest("demo").display().to_string();
    let other = world.path("other.json").display().to_string();
    let make = |kek: &str, why: &str| {
        fails(
            &["keyring", "init", &other, "--name", "other", "--kek", kek],
            why,
        )
    };
    make(&kek(&world, "nope"), "the token has no such");
    make("pkcs11:token=nobody;object=aes", "0 tokens match");
    make("pkcs11:object=aes", "add token=NAME");
    make("pkcs11:token=keys;object=aes?pin-value=1234", "pin-source");
    make(
        "pkcs11:token=keys;object=aes?module-path=/tmp/evil.so",
        "differs from the configured library",
    );
    make(
        "pkcs11:token=keys;object=aes",
        "without pin-source, private objects are hidden",
    );
    // Another key under the same name can't open the wraps of the former one.
    fs::rename(world.path("tokens"), world.path("away")).unwrap();
    make_token(&world);
    fails(
        &["keyring", "verify", &manifest],
        "not a wrap of this token's key",
    );
    assert!(Path::new(&manifest).exists() && !Path::new(&other).exists());
}
