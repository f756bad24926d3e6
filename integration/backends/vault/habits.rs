//! How sidecars and commands use Vault: how often they log in and read, with what, and how they
//! handle rate limits.

use std::{fs, net::TcpListener};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use sidekey::{
    admin::{Admin, Signing},
    backend,
    clock::Clock,
    config::{self, VaultLogin},
    crypto::{KeyringId, WrapContext},
};

use crate::support::{
    harness::{Sidecar, World, wait},
    servers::Vault,
    vault::{KEK, MANIFEST, SIDECAR, init, launch, token_file, world_of},
};

/// Creates a role `app` whose tokens have a sidecar's rights, and returns its id.
fn approle(vault: &Vault) -> String {
    vault.policy("sidecar", SIDECAR);
    vault.run(&["write", "auth/approle/role/app", "token_policies=sidecar"]);
    vault.run(&["read", "-field=role_id", "auth/approle/role/app/role-id"])
}

fn secret_id(vault: &Vault) -> String {
    vault.run(&[
        "write",
        "-f",
        "-field=secret_id",
        "auth/approle/role/app/secret-id",
    ])
}

fn login(role: &str) -> String {
    format!("method = \"approle\"\nrole_id = {role:?}\nsecret_id_file = \"secret-id\"")
}

/// Returns the number of tokens.
fn tokens(vault: &Vault) -> usize {
    let listed: Value =
        serde_json::from_str(&vault.run(&["list", "-format=json", "auth/token/accessors"]))
            .unwrap();
    listed.as_array().unwrap().len()
}

/// Returns a world with a keyring of many versions in a file.
fn with_versions(vault: &Vault, versions: usize) -> World {
    let world = world_of(vault);
    init(&world, world.manifest("demo").to_str().unwrap());
    for _ in 1..versions {
        world.keyring("rotate", "demo", &[]);
    }
    world
}

fn wait_all_open(sidecar: &Sidecar, versions: usize) {
    wait("every version", || {
        let all = sidecar.keyring()["active"]["versions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        all.len() == versions && all.iter().all(|version| version["unopened"].is_null())
    });
}

#[test]
fn many_unwraps_cause_one_login() {
    const VERSIONS: usize = 16;
    let vault = Vault::start();
    let world = with_versions(&vault, VERSIONS);
    let role = approle(&vault);
    fs::write(world.path("secret-id"), secret_id(&vault)).unwrap();
    let before = tokens(&vault);
    let sidecar = launch(&world, &vault, "demo.json", &login(&role));
    wait_all_open(&sidecar, VERSIONS);
    assert_eq!(tokens(&vault), before + 1);
    // The same when the token expires while many versions arrive at once.
    fs::copy(world.manifest("demo"), world.manifest("next")).unwrap();
    for _ in 0..VERSIONS {
        world.keyring("rotate", "next", &[]);
    }
    vault.run(&["lease", "revoke", "-force", "-prefix", "auth/approle/login"]);
    assert_eq!(tokens(&vault), before);
    fs::rename(world.manifest("next"), world.manifest("demo")).unwrap();
    wait_all_open(&sidecar, 2 * VERSIONS);
    assert_eq!(tokens(&vault), before + 1);
}

#[test]
fn a_refused_secret_id_does_not_lock_the_role() {
    let vault = Vault::start();
    let world = with_versions(&vault, 8);
    let role = approle(&vault);
    let destroyed = secret_id(&vault);
    vault.run(&[
        "write",
        "auth/approle/role/app/secret-id/destroy",
        &format!("secret_id={destroyed}"),
    ]);
    fs::write(world.path("secret-id"), &destroyed).unwrap();
    let sidecar = launch(&world, &vault, "demo.json", &login(&role));
    let denied = || {
        let metrics = sidecar.ops("/metrics").1;
        let line = metrics.lines().find(|line| {
            line.starts_with("sidekey_kek_requests_total") && line.contains("\"denied\"")
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0_u32)
    };
    // Far more failures than Vault allows before it locks the role for 15 minutes.
    wait("many failures", || denied() > 40);
    assert!(
        sidecar
            .ops("/readyz")
            .1
            .contains("can't log in at auth/approle")
    );
    fs::write(world.path("secret-id"), secret_id(&vault)).unwrap();
    sidecar.wait_ready();
    wait_all_open(&sidecar, 8);
    sidecar.wait_log("is rarely retried");
    let log = sidecar.log();
    assert_eq!(
        log.lines()
            .filter(|line| line.contains("is rarely retried"))
            .count(),
        1,
        "{log}"
    );
    assert!(!log.contains(&destroyed));
}

#[test]
fn a_token_without_the_default_policy_is_enough() {
    let vault = Vault::start();
    let world = world_of(&vault);
    init(&world, MANIFEST);
    vault.policy("sidecar", SIDECAR);
    let token = vault.run(&[
        "token",
        "create",
        "-policy=sidecar",
        "-no-default-policy",
        "-field=token",
    ]);
    launch(&world, &vault, MANIFEST, &token_file(&world, &token)).wait_ready();
}

#[test]
fn a_throttled_sidecar_eventually_becomes_ready() {
    let vault = Vault::start();
    let world = with_versions(&vault, 5);
    vault.policy("sidecar", SIDECAR);
    let login = token_file(&world, &vault.token_with("sidecar"));
    vault.run(&[
        "write",
        "sys/quotas/rate-limit/few",
        "path=transit",
        "rate=1",
        "interval=1h",
    ]);
    let sidecar = launch(&world, &vault, "demo.json", &login);
    wait("the reason", || {
        sidecar.status()["keks"][0]["last_error"]["code"] == "throttled"
    });
    vault.run(&["delete", "sys/quotas/rate-limit/few"]);
    sidecar.wait_ready();
    wait_all_open(&sidecar, 5);
}

#[test]
fn tokens_secret_ids_and_keys_appear_in_no_log_status_or_error() {
    let vault = Vault::start();
    let world = with_versions(&vault, 2);
    let role = approle(&vault);
    let secret_id = secret_id(&vault);
    fs::write(world.path("secret-id"), &secret_id).unwrap();
    // The `[log]` header ends the login's table. Libraries log as much as Sidekey.
    let sidecar = launch(
        &world,
        &vault,
        "demo.json",
        &format!("{}\n[log]\nlevel = \"trace,sidekey=trace\"", login(&role)),
    );
    sidecar.wait_ready();
    wait_all_open(&sidecar, 2);
    vault.run(&["lease", "revoke", "-force", "-prefix", "auth/approle/login"]);
    vault.run(&[
        "write",
        "auth/approle/role/app/secret-id/destroy",
        &format!("secret_id={secret_id}"),
    ]);
    world.keyring("rotate", "demo", &[]);
    wait("the failure", || !sidecar.keyring()["last_error"].is_null());
    let all = [
        sidecar.log(),
        sidecar.ops("/status").1,
        sidecar.ops("/metrics").1,
        sidecar.ops("/readyz").1,
    ]
    .concat();
    assert!(
        all.contains("TRACE") && all.contains("can't log in at auth/approle"),
        "the search had input"
    );

    let manifest = world.read_manifest("demo");
    let id = (0..16).map(|at| {
        u8::from_str_radix(&manifest["id"].as_str().unwrap()[2 * at..2 * at + 2], 16).unwrap()
    });
    let keyring = KeyringId(id.collect::<Vec<_>>().try_into().unwrap());
    for version in [1_u32, 2] {
        let wrap = manifest["versions"][version as usize - 1]["wraps"][0]["ciphertext"]
            .as_str()
            .unwrap();
        let ciphertext = format!(
            "ciphertext={}",
            String::from_utf8(STANDARD.decode(wrap).unwrap()).unwrap()
        );
        let associated = format!(
            "associated_data={}",
            STANDARD.encode(WrapContext { keyring, version }.to_bytes())
        );
        let key = vault.run(&[
            "write",
            "-field=plaintext",
            "transit/decrypt/kek",
            &ciphertext,
            &associated,
        ]);
        assert_eq!(key.len(), 44);
        assert!(!all.contains(&key[..20]), "version {version}");
    }
    // The prefix of every Vault token.
    assert!(!all.contains("hvs.") && !all.contains(&secret_id));
}

/// Returns how often an operation on a path was requested, according to Vault's audit log.
fn asked(log: &str, path: &str) -> usize {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["type"] == "request" && line["request"]["path"] == path)
        .count()
}

#[test]
fn a_poll_downloads_the_manifest_only_if_it_changed() {
    let vault = Vault::start();
    let world = world_of(&vault);
    init(&world, MANIFEST);
    let file = world.path("audit.log");
    let audit = || fs::read_to_string(&file).unwrap();
    let (data, metadata) = ("secret/data/sidekey/demo", "secret/metadata/sidekey/demo");
    vault.policy("sidecar", &[SIDECAR, &[(metadata, "read")]].concat());
    let login = token_file(&world, &vault.token_with("sidecar"));
    vault.run(&[
        "audit",
        "enable",
        "file",
        &format!("file_path={}", file.display()),
    ]);
    let sidecar = launch(&world, &vault, MANIFEST, &login);
    sidecar.wait_ready();
    wait("many polls", || asked(&audit(), metadata) > 10);
    assert_eq!(asked(&audit(), data), 1);
    world.succeed(&["keyring", "rotate", MANIFEST, "--activate", "now"]);
    sidecar.wait_generation(3);
    vault.run(&["kv", "delete", "secret/sidekey/demo"]);
    wait("its end to be seen", || {
        sidecar.keyring()["last_error"]["code"] == "source_missing"
    });
    vault.run(&["kv", "undelete", "-versions=3", "secret/sidekey/demo"]);
    wait("its return", || sidecar.keyring()["last_error"].is_null());
    drop(sidecar);

    // A policy without that right costs one request.
    vault.policy("sidecar", SIDECAR);
    let before = asked(&audit(), metadata);
    let sidecar = launch(&world, &vault, MANIFEST, &login);
    let first = asked(&audit(), data);
    wait("many polls", || asked(&audit(), data) > first + 10);
    assert_eq!(asked(&audit(), metadata), before + 1);
    assert!(sidecar.keyring()["last_error"].is_null());
}

#[test]
fn commands_log_in_by_home_directory_or_config_file() {
    let vault = Vault::start();
    let mut world = world_of(&vault);
    fs::write(world.path(".vault-token"), &vault.token).unwrap();
    let home = world.path("").display().to_string();
    // An empty variable counts as unset.
    world.env = vec![
        ("VAULT_ADDR", vault.address.clone()),
        ("VAULT_TOKEN", String::new()),
        ("HOME", home),
    ];
    init(&world, MANIFEST);
    drop(launch(
        &world,
        &vault,
        MANIFEST,
        &token_file(&world, &vault.token),
    ));
    let config = world.path("one.toml").display().to_string();
    fs::remove_file(world.path(".vault-token")).unwrap();
    world.env.remove(0);
    let lost = world.run(&["keyring", "status", MANIFEST]);
    assert!(
        String::from_utf8_lossy(&lost.stderr).contains("VAULT_ADDR"),
        "{lost:?}"
    );
    let version = ["--version", "2"];
    let commands: [(&str, &[&str]); 6] = [
        ("status", &[]),
        ("verify", &[]),
        ("rotate", &[]),
        ("activate", &version),
        ("touch", &[]),
        ("rewrap-kek", &["--refresh"]),
    ];
    for (command, extra) in commands {
        world.succeed(&[&["keyring", command, MANIFEST, "--config", &config], extra].concat());
    }
    let other = "vault-kv:secret/sidekey/other";
    world.succeed(&[
        "keyring", "init", other, "--name", "other", "--kek", KEK, "--config", &config,
    ]);
}

#[tokio::test(start_paused = true)]
async fn a_command_times_out_on_a_hanging_vault() {
    // The kernel accepts connections, but no response ever arrives.
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World::new();
    fs::write(world.path("token"), "hvs.any").unwrap();
    let mut settings = config::Backends::default();
    settings.vault.address = Some(format!("http://{}", hung.local_addr().unwrap()));
    settings.vault.login = VaultLogin::TokenFile(world.path("token"));
    let backends = backend::configured(&settings);
    let admin = Admin::new(
        MANIFEST.parse().unwrap(),
        Signing::NoKey,
        &backends,
        Clock::system(),
    )
    .unwrap();
    let Err(error) = admin.read().await.map(drop) else {
        panic!("no one answers")
    };
    let error = error.to_string();
    assert!(error.contains("no response within 60s"), "{error}");
}
