//! KEKs in Vault's Transit engine and manifests in its key-value engine, against a real Vault.

use std::{fs, path::Path};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::{
    certificates::{issue, openssl},
    harness::{World, wait},
    servers::{Brand, Vault},
    vault::{KEK, MANIFEST, SIDECAR, init, launch, rotate_and_wait, token_file, world_of},
};

async fn a_keyring_lives_in_vault(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    init(&world, MANIFEST);
    vault.policy("sidecar", SIDECAR);
    let login = token_file(&world, &vault.token_with("sidecar"));
    let sidecar = launch(&world, &vault, MANIFEST, &login);
    sidecar.wait_ready();
    let mut client = sidecar.client().await;
    let first = client.encrypt(b"Ada").await.ok();
    world.succeed(&["keyring", "rotate", MANIFEST, "--activate", "now"]);
    sidecar.wait_generation(3);
    // Rotating the KEK itself doesn't affect existing wraps.
    vault.run(&["write", "-f", "transit/keys/kek/rotate"]);
    world.succeed(&["keyring", "rotate", MANIFEST, "--activate", "now"]);
    sidecar.wait_generation(5);
    assert_eq!(client.encrypt(b"Ada").await.ok().version(), 3);
    drop(sidecar);
    let sidecar = launch(&world, &vault, MANIFEST, &login);
    sidecar.wait_ready();
    assert_eq!(
        sidecar.client().await.decrypt(&first.body).await.ok().body,
        "Ada"
    );

    // Vault states the time, so its clock is one to compare with.
    world.succeed(&[
        "keyring",
        "disable",
        MANIFEST,
        "--version",
        "1",
        "--override",
        "test",
    ]);

    // Old wraps stop opening when the key's policy says so, unless they were refreshed.
    world.succeed(&["keyring", "rewrap-kek", MANIFEST, "--refresh"]);
    vault.run(&[
        "write",
        "transit/keys/kek/config",
        "min_decryption_version=2",
    ]);
    world.succeed(&["keyring", "verify", MANIFEST]);
    vault.run(&["write", "-f", "transit/keys/kek/rotate"]);
    vault.run(&[
        "write",
        "transit/keys/kek/config",
        "min_decryption_version=3",
    ]);
    let old = world.run(&["keyring", "verify", MANIFEST]);
    assert!(
        String::from_utf8_lossy(&old.stderr).contains("min_decryption_version"),
        "{old:?}"
    );
}

async fn a_transit_key_tells_the_time(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    init(&world, world.manifest("demo").to_str().unwrap());
    world.keyring("rotate", "demo", &["--activate", "now"]);
    world.keyring("disable", "demo", &["--version", "1", "--override", "test"]);
}

async fn concurrent_changes_are_all_applied(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    init(&world, MANIFEST);
    let again = world.run(&["keyring", "init", MANIFEST, "--name", "demo", "--kek", KEK]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("a keyring already exists"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| world.succeed(&["keyring", "rotate", MANIFEST]));
        }
    });
    let status: Value =
        serde_json::from_str(&world.succeed(&["keyring", "status", MANIFEST, "--output", "json"]))
            .unwrap();
    assert_eq!(
        (
            &status["generation"],
            status["versions"].as_array().unwrap().len()
        ),
        (&json!(5), 5)
    );
    // A deleted manifest doesn't exist, and can be created again.
    vault.run(&["kv", "delete", "secret/sidekey/demo"]);
    let gone = world.run(&["keyring", "status", MANIFEST]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("there is no manifest"));
    init(&world, MANIFEST);
}

async fn an_approle_logs_in_again(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    init(&world, world.manifest("demo").to_str().unwrap());
    vault.policy("sidecar", SIDECAR);
    vault.run(&[
        "write",
        "auth/approle/role/app",
        "token_policies=sidecar",
        "token_ttl=60s",
    ]);
    let role = vault.run(&["read", "-field=role_id", "auth/approle/role/app/role-id"]);
    let secret = || {
        vault.run(&[
            "write",
            "-f",
            "-field=secret_id",
            "auth/approle/role/app/secret-id",
        ])
    };
    let first = secret();
    fs::write(world.path("secret-id"), &first).unwrap();
    let login = format!("method = \"approle\"\nrole_id = {role:?}\nsecret_id_file = \"secret-id\"");
    let sidecar = launch(&world, &vault, "demo.json", &login);
    sidecar.wait_ready();
    // The secret id is rotated, and every token issued for it is revoked.
    fs::write(world.path("secret-id"), secret()).unwrap();
    vault.run(&[
        "write",
        "auth/approle/role/app/secret-id/destroy",
        &format!("secret_id={first}"),
    ]);
    vault.run(&["lease", "revoke", "-force", "-prefix", "auth/approle/login"]);
    rotate_and_wait(&world, &sidecar, 2);
    wait("the second login's line", || {
        sidecar.log().matches("logged in to Vault").count() >= 2
    });
    let shown = format!("{}{}", sidecar.log(), sidecar.ops("/status").1);
    // The prefixes of all Vault tokens and all OpenBao tokens.
    assert!(
        !shown.contains(&first) && !shown.contains("hvs.") && !shown.contains("\"s."),
        "{shown}"
    );
}

async fn a_revoked_token_is_replaced_from_its_file(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    init(&world, world.manifest("demo").to_str().unwrap());
    vault.policy("sidecar", SIDECAR);
    let first = vault.token_with("sidecar");
    let sidecar = launch(&world, &vault, "demo.json", &token_file(&world, &first));
    sidecar.wait_ready();
    vault.run(&["token", "revoke", &first]);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    wait("the reason", || {
        let error = &sidecar.keyring()["last_error"]["message"];
        error
            .as_str()
            .is_some_and(|error| error.contains("Vault does not know the token"))
    });
    token_file(&world, &vault.token_with("sidecar"));
    wait("the new version", || {
        sidecar.keyring()["active"]["encrypting"] == 2
    });
}

async fn a_short_lived_token_is_renewed(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    init(&world, world.manifest("demo").to_str().unwrap());
    vault.policy("sidecar", SIDECAR);
    let token = vault.run(&[
        "token",
        "create",
        "-policy=sidecar",
        "-ttl=3s",
        "-field=token",
    ]);
    let sidecar = launch(&world, &vault, "demo.json", &token_file(&world, &token));
    sidecar.wait_ready();
    let issued = |token: &str| -> Value {
        serde_json::from_str(&vault.run(&["token", "lookup", "-format=json", token])).unwrap()
    };
    wait("a renewal", || {
        issued(&token)["data"]["last_renewal_time"].is_number()
    });
    rotate_and_wait(&world, &sidecar, 2);
}

/// Returns a token signed by the key in `folder` (RFC 7519, EdDSA), in the format of Kubernetes and
/// other issuers.
fn jwt(folder: &Path, subject: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let far_future = 4_000_000_000_u64;
    let claims = json!({
        "sub": subject,
        "aud": "vault",
        "iat": 1_700_000_000,
        "nbf": 1_700_000_000,
        "exp": far_future,
    });
    let signed = format!(
        "{}.{}",
        part(json!({ "alg": "EdDSA", "typ": "JWT" })),
        part(claims)
    );
    fs::write(folder.join("signed"), &signed).unwrap();
    openssl(
        folder,
        &[
            "pkeyutl",
            "-sign",
            "-inkey",
            "jwt.key",
            "-rawin",
            "-in",
            "signed",
            "-out",
            "signature",
        ],
    );
    format!(
        "{signed}.{}",
        URL_SAFE_NO_PAD.encode(fs::read(folder.join("signature")).unwrap())
    )
}

async fn a_rewritten_projected_token_logs_in_again(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    init(&world, world.manifest("demo").to_str().unwrap());
    let folder = world.path("");
    openssl(
        &folder,
        &["genpkey", "-algorithm", "ed25519", "-out", "jwt.key"],
    );
    openssl(
        &folder,
        &["pkey", "-in", "jwt.key", "-pubout", "-out", "jwt.pub"],
    );
    let public = fs::read_to_string(world.path("jwt.pub")).unwrap();
    vault.run(&[
        "write",
        "auth/jwt/config",
        &format!("jwt_validation_pubkeys={public}"),
        "jwt_supported_algs=EdDSA",
    ]);
    vault.policy("sidecar", SIDECAR);
    let bind = |subject: &str| {
        let role = [
            "role_type=jwt",
            "user_claim=sub",
            "bound_audiences=vault",
            "token_policies=sidecar",
        ];
        let subject = format!("bound_subject={subject}");
        vault.run(&[&["write", "auth/jwt/role/app", &subject], &role[..]].concat());
    };
    bind("pod");
    fs::write(world.path("projected"), jwt(&folder, "nobody")).unwrap();
    let login = "method = \"jwt\"\nrole = \"app\"\ntoken_file = \"projected\"";
    let sidecar = launch(&world, &vault, "demo.json", login);
    wait("the refusal", || {
        sidecar
            .ops("/readyz")
            .1
            .contains("can't log in at auth/jwt")
    });
    fs::write(world.path("projected"), jwt(&folder, "pod")).unwrap();
    sidecar.wait_ready();
    // The kubelet writes a new token. The first is no longer accepted, and the login it was used
    // for is revoked.
    fs::write(world.path("projected"), jwt(&folder, "moved")).unwrap();
    bind("moved");
    vault.run(&["lease", "revoke", "-force", "-prefix", "auth/jwt/login"]);
    rotate_and_wait(&world, &sidecar, 2);
}

async fn a_sidecar_keeps_serving_while_vault_is_sealed(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    init(&world, MANIFEST);
    vault.policy("sidecar", SIDECAR);
    let sidecar = launch(
        &world,
        &vault,
        MANIFEST,
        &token_file(&world, &vault.token_with("sidecar")),
    );
    sidecar.wait_ready();
    vault.seal();
    wait("the reason", || {
        let error = &sidecar.keyring()["last_error"]["message"];
        error
            .as_str()
            .is_some_and(|error| error.contains("Vault is sealed"))
    });
    assert_eq!(sidecar.ops("/readyz").0, 200);
    let message = sidecar.client().await.encrypt(b"x").await.ok().body;
    vault.unseal();
    wait("recovery", || sidecar.keyring()["last_error"].is_null());
    world.succeed(&["keyring", "rotate", MANIFEST, "--activate", "now"]);
    sidecar.wait_generation(3);
    sidecar.client().await.decrypt(&message).await.ok();

    vault.seal();
    drop(sidecar);
    let fresh = launch(&world, &vault, MANIFEST, &token_file(&world, &vault.token));
    wait("the reason", || {
        fresh.ops("/readyz").1.contains("Vault is sealed")
    });
    vault.unseal();
    fresh.wait_ready();
}

async fn errors_are_reported_with_a_remedy(brand: Brand) {
    let vault = Vault::start_of(brand);
    let mut world = world_of(&vault);
    let manifest = world.manifest("demo").display().to_string();
    init(&world, &manifest);
    let fails = |world: &World, arguments: &[&str], why: &str| {
        let output = world.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?} {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(why), "{why}: {said}");
    };
    let other = world.path("other.json").display().to_string();
    let make = |world: &World, kek: &str, why: &str| {
        fails(
            world,
            &["keyring", "init", &other, "--name", "other", "--kek", kek],
            why,
        );
    };
    make(
        &world,
        "vault-transit:transit/nope",
        "vault write -f transit/keys/nope",
    );
    make(
        &world,
        "vault-transit:kek",
        "expected vault-transit:MOUNT/KEY",
    );
    make(
        &world,
        "vault-transit:nowhere/kek",
        "no engine is mounted at nowhere",
    );
    make(
        &world,
        "vault-transit:../sys/seal",
        "expected vault-transit:MOUNT/KEY",
    );
    vault.run(&["write", "transit/keys/signer", "type=ed25519"]);
    make(
        &world,
        "vault-transit:transit/signer",
        "a ed25519 key does not support associated data",
    );
    // Another key under the same name.
    vault.run(&["write", "transit/keys/kek/config", "deletion_allowed=true"]);
    vault.run(&["delete", "transit/keys/kek"]);
    vault.run(&["write", "-f", "transit/keys/kek"]);
    fails(
        &world,
        &["keyring", "verify", &manifest],
        "the key cannot decrypt the wrap",
    );

    // Version 1 accepts writes that look right, but ignores check-and-set.
    vault.run(&["secrets", "enable", "-path=old", "-version=1", "kv"]);
    let old = [
        "keyring",
        "init",
        "vault-kv:old/demo",
        "--name",
        "demo",
        "--kek",
        KEK,
    ];
    fails(&world, &old, "old/ is not a key-value engine of version 2");
    fails(
        &world,
        &["keyring", "status", "vault-kv:old/demo"],
        "there is no manifest",
    );

    // Rights that a sidecar will lack are reported before it starts.
    vault.policy("reader", &[("secret/data/sidekey/*", "read")]);
    init(&world, MANIFEST);
    let login = token_file(&world, &vault.token_with("reader"));
    drop(launch(&world, &vault, MANIFEST, &login));
    let config = world.path("one.toml").display().to_string();
    let checked = world.run(&["check", "--config", &config, "--online"]);
    let shown = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    assert!(
        shown
            .lines()
            .any(|line| line.contains(MANIFEST) && line.ends_with("ok")),
        "{shown}"
    );
    assert!(
        shown.contains("path \"transit/decrypt/kek\" { capabilities = [\"update\"] }"),
        "{shown}"
    );
    token_file(&world, &vault.token);
    world.succeed(&["check", "--config", &config, "--online"]);

    vault.policy("nothing", &[("secret/data/elsewhere", "read")]);
    world.env[2].1 = vault.token_with("nothing");
    fails(
        &world,
        &["keyring", "verify", &manifest],
        "path \"transit/decrypt/kek\" { capabilities = [\"update\"] }",
    );
    fails(
        &world,
        &["keyring", "status", MANIFEST],
        "path \"secret/data/sidekey/demo\" { capabilities = [\"read\"] }",
    );
    world.env[2].1 = match brand {
        Brand::Vault => "hvs.nonsense".into(),
        Brand::OpenBao => "s.nonsense".into(),
    };
    fails(
        &world,
        &["keyring", "verify", &manifest],
        "Vault does not know the token",
    );
    world.env[1].1 = "http://192.0.2.1:8200".into();
    fails(
        &world,
        &["keyring", "verify", &manifest],
        "list it in `backends.plain_http`",
    );
    world.env[1].1 = "http://127.0.0.1:9".into();
    fails(
        &world,
        &["keyring", "verify", &manifest],
        "onnection refused",
    );
}

/// Generates tests from functions that accept either server.
macro_rules! with_each_server {
    ($($test:ident),* $(,)?) => {
        mod with_vault {
            $(#[tokio::test] async fn $test() { super::$test(super::Brand::Vault).await })*
        }
        mod with_openbao {
            $(#[tokio::test] async fn $test() { super::$test(super::Brand::OpenBao).await })*
        }
    };
}

with_each_server!(
    a_keyring_lives_in_vault,
    a_transit_key_tells_the_time,
    concurrent_changes_are_all_applied,
    an_approle_logs_in_again,
    a_revoked_token_is_replaced_from_its_file,
    a_short_lived_token_is_renewed,
    a_rewritten_projected_token_logs_in_again,
    a_sidecar_keeps_serving_while_vault_is_sealed,
    errors_are_reported_with_a_remedy,
);

#[test]
fn tls_is_verified_on_both_sides() {
    let mut world = World::new();
    let folder = world.path("");
    issue(
        &folder,
        &[
            ("server", "subjectAltName=IP:127.0.0.1"),
            ("client", "extendedKeyUsage=clientAuth"),
        ],
    );
    let vault = Vault::start_with_tls(&folder);
    let at = |name: &str| world.path(name).display().to_string();
    let all = [
        ("VAULT_ADDR", vault.address.clone()),
        ("VAULT_TOKEN", vault.token.clone()),
        ("VAULT_CACERT", at("ca.pem")),
        ("VAULT_CLIENT_CERT", at("client.pem")),
        ("VAULT_CLIENT_KEY", at("client.key")),
    ];
    let manifest = world.manifest("demo").display().to_string();
    let arguments = ["keyring", "init", &manifest, "--name", "demo", "--kek", KEK];
    for (trusted, why) in [
        (2, "not trusted here"),
        (3, "ertificate"),
        (4, "must be set together"),
    ] {
        world.env = all[..trusted].to_vec();
        let refused = world.run(&arguments);
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&refused.stderr).contains(why),
            "{refused:?}"
        );
    }
    world.env = all.to_vec();
    world.succeed(&arguments);
    let tls =
        "ca_file = \"ca.pem\"\nclient_certificate = \"client.pem\"\nclient_key = \"client.key\"\n";
    let address = format!("address = {:?}\n", vault.address);
    let config = format!(
        "[listen]\nsocket = {:?}\n[vault]\n{address}{tls}[vault.login]\n{}\n\
         [[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = [{KEK:?}]\n",
        world.path("one.sock"),
        token_file(&world, &vault.token)
    );
    world.env.clear();
    // A certificate from an authority that Vault doesn't know, later replaced by the right one.
    let config = config
        .replace("client.pem", "mine.pem")
        .replace("client.key", "mine.key");
    fs::create_dir(world.path("other")).unwrap();
    issue(
        &world.path("other"),
        &[("client", "extendedKeyUsage=clientAuth")],
    );
    let put = |from: &str| {
        for suffix in ["key", "pem"] {
            fs::copy(
                world.path(&format!("{from}.{suffix}")),
                world.path(&format!("mine.{suffix}")),
            )
            .unwrap();
        }
    };
    put("other/client");
    let sidecar = world.launch("one", &config, &[]);
    wait("the refusal", || sidecar.ops("/readyz").1.contains("alert"));
    put("client");
    sidecar.wait_ready();
}
