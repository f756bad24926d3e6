//! Secrets in Vault's key-value engines and leased credentials, against real servers. The leases
//! are for users of a real Redis.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    harness::{Sidecar, World, wait},
    served_secrets::{App, entry, got, launch, launch_as, reads},
    servers::{Brand, Vault, free_port},
    vault::world_of,
};

fn put(vault: &Vault, path: &str, value: &str) {
    vault.run(&["kv", "put", path, &format!("password={value}")]);
}

fn password(value: &str) -> String {
    json!({ "password": value }).to_string()
}

/// Starts a sidecar whose rights are exactly `policy`.
fn launch_with(world: &mut World, vault: &Vault, policy: &str, config: &str) -> Sidecar {
    world.env.retain(|(name, _)| *name != "VAULT_TOKEN");
    world.env.push(("VAULT_TOKEN", vault.token_with(policy)));
    launch(world, config)
}

async fn a_versioned_secret_is_followed(brand: Brand) {
    let vault = Vault::start_of(brand);
    let world = world_of(&vault);
    put(&vault, "secret/orders/db", "a");
    let config = entry("db", "vault-kv:secret/orders/db", "");
    let sidecar = launch(&world, &config);
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    assert_eq!(got(app.ask("db").await), ("1".into(), password("a")));
    let made: Value =
        serde_json::from_str(&vault.run(&["kv", "get", "-format=json", "secret/orders/db"]))
            .unwrap();
    let instant = |time: &Value| time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let shown = app.ask("db").await.json();
    assert_eq!(
        instant(&shown["created_at"]),
        instant(&made["data"]["metadata"]["created_time"])
    );
    assert_eq!(app.ask("db?field=password").await.ok().json()["value"], "a");

    put(&vault, "secret/orders/db", "b");
    assert_eq!(app.newest("db").await, ("2".into(), password("b")));
    assert_eq!(
        app.newest("db").await,
        ("2".into(), password("b")),
        "and again, when nothing changed"
    );
    assert_eq!(
        (
            reads(&sidecar, "db", "changed"),
            reads(&sidecar, "db", "unchanged")
        ),
        (2, 1)
    );
    assert_eq!(
        got(app.ask("db?stage=previous").await),
        ("1".into(), password("a"))
    );
    assert_eq!(
        got(app.ask("db?version=1").await),
        ("1".into(), password("a"))
    );
    for none in [
        "db?version=3",
        "db?version=0",
        "db?version=1%3Fa",
        "db?version=..%2Fx",
        "db?stage=pending",
    ] {
        assert_eq!(app.ask(none).await.problem(), "secret_not_found", "{none}");
    }

    // Deleted, then restored.
    vault.run(&["kv", "delete", "secret/orders/db"]);
    app.until_problem("db", "secret_not_found").await;
    vault.run(&["kv", "undelete", "-versions=2", "secret/orders/db"]);
    assert_eq!(app.restored("db").await, ("2".into(), password("b")));

    // A sidecar that starts later gets the newest previous version that still exists.
    put(&vault, "secret/orders/db", "c");
    vault.run(&["kv", "destroy", "-versions=2", "secret/orders/db"]);
    let later = launch_as(&world, "later", &config);
    later.wait_ready();
    let mut app = App::of(&later).await;
    assert_eq!(
        got(app.ask("db?stage=previous").await),
        ("1".into(), password("a"))
    );
    assert_eq!(app.ask("db?version=2").await.problem(), "secret_not_found");
    assert_eq!(got(app.ask("db").await).0, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vaults_versioned_secrets_are_followed() {
    a_versioned_secret_is_followed(Brand::Vault).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openbaos_versioned_secrets_are_followed() {
    a_versioned_secret_is_followed(Brand::OpenBao).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_secret_differs_although_vault_restarts_its_versions() {
    let vault = Vault::start();
    let world = world_of(&vault);
    put(&vault, "secret/db", "a");
    let sidecar = launch(&world, &entry("db", "vault-kv:secret/db", ""));
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    assert_eq!(got(app.ask("db").await).0, "1");
    vault.run(&["kv", "metadata", "delete", "secret/db"]);
    put(&vault, "secret/db", "b");
    assert_eq!(app.newest("db").await, ("1~".into(), password("b")));
    assert_eq!(app.newest("db").await.0, "1~");
    assert_eq!(got(app.ask("db?version=1~").await).1, password("b"));
    put(&vault, "secret/db", "c");
    assert_eq!(app.newest("db").await, ("2".into(), password("c")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_of_an_unversioned_secret_get_opaque_names() {
    let vault = Vault::start();
    let world = world_of(&vault);
    // Including a mount path of more than one segment.
    for mount in ["kv1", "team/kv1"] {
        vault.run(&[
            "secrets",
            "enable",
            "-version=1",
            &format!("-path={mount}"),
            "kv",
        ]);
        put(&vault, &format!("{mount}/db"), "a");
    }
    let config = entry("db", "vault-kv:kv1/db", "") + &entry("deep", "vault-kv:team/kv1/db", "");
    let sidecar = launch(&world, &config);
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    let (first, value) = got(app.ask("db").await);
    assert_eq!(value, password("a"));
    assert_eq!(
        got(app.ask("deep").await),
        (first.clone(), value),
        "the same value has one name"
    );
    put(&vault, "kv1/db", "b");
    let (second, value) = app.newest("db").await;
    assert!(second != first && value == password("b"));
    assert_eq!(app.newest("db").await.0, second);
    assert_eq!(
        got(app.ask("db?stage=previous").await),
        (first.clone(), password("a"))
    );
    assert_eq!(
        app.ask(&format!("deep?version={second}")).await.problem(),
        "secret_not_found"
    );
    // Versions differ between processes, so a guessed value can't be checked against its version.
    let other = launch_as(&world, "other", &config);
    other.wait_ready();
    let name = got(App::of(&other).await.ask("deep").await).0;
    assert!(name != first && name != second);

    // The engine is upgraded to version 2.
    vault.run(&["kv", "enable-versioning", "kv1"]);
    // The upgrade takes Vault a moment.
    wait("the upgrade", || {
        vault.succeeds(&["kv", "put", "kv1/db", "password=c"])
    });
    let answer = app
        .until("db", |answer| {
            answer.status == 200 && answer.json()["value"] == password("c")
        })
        .await;
    assert_eq!(got(answer).0, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_secrets_are_served_and_oversized_ones_rejected() {
    let vault = Vault::start();
    let world = world_of(&vault);
    let long = "0123456789abcdef".repeat(4096);
    fs::write(world.path("long"), &long).unwrap();
    vault.run(&[
        "kv",
        "put",
        "secret/long",
        &format!("data=@{}", world.path("long").display()),
    ]);
    let sidecar = launch(&world, &entry("long", "vault-kv:secret/long", ""));
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    assert_eq!(app.bytes("long?field=data").await.ok().body, long);
    assert_eq!(
        app.bytes("long").await.ok().body,
        json!({ "data": long }).to_string()
    );
    drop(sidecar);
    let config = format!(
        "secrets.value_bytes = \"64KiB\"\n{}",
        entry("long", "vault-kv:secret/long", "")
    );
    let sidecar = world.launch("one", &config, &[]);
    wait("the reason", || {
        sidecar.log().contains(
            "vault-kv:secret/long: the value is longer than 65536 bytes (`secrets.value_bytes`)",
        )
    });
    assert!(
        !sidecar.log().contains("0123456789abcdef"),
        "{}",
        sidecar.log()
    );
}

async fn what_the_log_names_is_all_that_a_policy_needs(brand: Brand) {
    let vault = Vault::start_of(brand);
    let mut world = world_of(&vault);
    vault.run(&["secrets", "enable", "-version=1", "-path=kv1", "kv"]);
    for path in ["secret/db", "kv1/db"] {
        put(&vault, path, "a");
    }
    put(&vault, "secret/db", "b");
    // Any right in the mount makes Vault reveal the engine's version.
    vault.policy(
        "app",
        &[("kv1/other", "read"), ("secret/data/other", "read")],
    );
    let config = entry("new", "vault-kv:secret/db", "") + &entry("old", "vault-kv:kv1/db", "");
    let sidecar = launch_with(&mut world, &vault, "app", &config);
    let stanzas = [
        "path \"secret/data/db\" { capabilities = [\"read\"] }", //
        "path \"kv1/db\" { capabilities = [\"read\"] }",
    ];
    wait("the stanzas", || {
        stanzas.iter().all(|stanza| sidecar.log().contains(stanza))
    });
    let mut app = App::of(&sidecar).await;
    assert_eq!(app.demand("new").await.problem(), "provider_denied");
    vault.policy_text("app", &stanzas.join("\n"));
    app.until("new", |answer| answer.status == 200).await;
    app.until("old", |answer| answer.status == 200).await;
    // Also without metadata: the previous version is found by counting back, and unchanged values
    // are read.
    assert_eq!(
        got(app.ask("new?stage=previous").await),
        ("1".into(), password("a"))
    );
    assert_eq!(app.newest("new").await, ("2".into(), password("b")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_logged_policy_is_sufficient_for_vault() {
    what_the_log_names_is_all_that_a_policy_needs(Brand::Vault).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_logged_policy_is_sufficient_for_openbao() {
    what_the_log_names_is_all_that_a_policy_needs(Brand::OpenBao).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_is_told_apart_from_an_outage() {
    let vault = Vault::start();
    let world = world_of(&vault);
    put(&vault, "secret/db", "a");
    // One request per hour, which is already used.
    vault.run(&[
        "write",
        "sys/quotas/rate-limit/all",
        "path=secret/",
        "rate=1",
        "interval=1h",
    ]);
    wait("the quota", || !vault.succeeds(&["kv", "get", "secret/db"]));
    let sidecar = launch(&world, &entry("db", "vault-kv:secret/db", ""));
    let mut app = App::of(&sidecar).await;
    app.until_problem("db", "provider_throttled").await;
    vault.run(&["delete", "sys/quotas/rate-limit/all"]);
    app.until("db", |answer| answer.status == 200).await;
    vault.seal();
    let sealed = app
        .until("db", |answer| answer.json()["stale"] == true)
        .await;
    assert_eq!(got(sealed).1, password("a"));
    wait("the reason", || {
        sidecar.log().contains("Vault is sealed; unseal it")
    });
    vault.unseal();
    let fresh = app
        .until("db", |answer| answer.json()["stale"] == false)
        .await;
    assert_eq!(got(fresh).1, password("a"));
}

/// A Redis whose users OpenBao creates and removes; killed when dropped.
pub(super) struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    pub(super) fn start() -> Self {
        let port = free_port();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--requirepass",
                "of-the-admin",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let redis = Self { child, port };
        wait("Redis", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        redis
    }

    /// Returns whether the credentials in a secret's value are accepted.
    pub(super) fn lets_in(&self, credentials: &str) -> bool {
        let credentials: Value = serde_json::from_str(credentials).unwrap();
        let of = |name: &str| credentials[name].as_str().unwrap().to_owned();
        self.log_in(&of("username"), &of("password")).is_some()
    }

    fn log_in(&self, user: &str, password: &str) -> Option<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "AUTH {user} {password}\r\n").unwrap();
        accepts(&stream).then_some(stream)
    }

    /// Creates a user that can read.
    pub(super) fn add_user(&self, user: &str) {
        let mut stream = self.log_in("default", "of-the-admin").unwrap();
        write!(stream, "ACL SETUSER {user} on >first ~* +@read +ping\r\n").unwrap();
        assert!(accepts(&stream));
    }
}

fn accepts(stream: &TcpStream) -> bool {
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.starts_with("+OK")
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts OpenBao with a role `orders` of a Redis and the given lease durations.
pub(super) fn leases(ttl: &str, max_ttl: &str) -> (Vault, Redis) {
    let (bao, redis) = (Vault::start_of(Brand::OpenBao), Redis::start());
    bao.run(&["secrets", "enable", "database"]);
    let port = format!("port={}", redis.port);
    let plugin = [
        "plugin_name=redis-database-plugin",
        "host=127.0.0.1",
        "username=default",
        "password=of-the-admin",
    ];
    bao.run(
        &[
            &["write", "database/config/redis", "allowed_roles=*", &port],
            &plugin[..],
        ]
        .concat(),
    );
    let statements = r#"creation_statements=["~*", "+@read"]"#;
    let times = [format!("default_ttl={ttl}"), format!("max_ttl={max_ttl}")];
    bao.run(&[
        "write",
        "database/roles/orders",
        "db_name=redis",
        statements,
        &times[0],
        &times[1],
    ]);
    bao.policy_text(
        "app",
        "path \"database/creds/orders\" { capabilities = [\"read\"] }",
    );
    (bao, redis)
}

const LEASED: &str = "vault-lease:database/creds/orders";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_and_then_replaced_before_its_max_ttl() {
    let (bao, redis) = leases("9s", "14s");
    let mut world = world_of(&bao);
    let sidecar = launch_with(&mut world, &bao, "app", &entry("db", LEASED, ""));
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    let (first, credentials) = got(app.ask("db").await);
    assert!(redis.lets_in(&credentials));
    // The lease is renewed, not replaced, however often the newest value is requested.
    assert_eq!(app.newest("db").await, (first.clone(), credentials.clone()));
    assert_eq!(reads(&sidecar, "db", "unchanged"), 1);
    // The served credentials are valid at any time.
    app.until_replaced("db", &first, |credentials| {
        assert!(redis.lets_in(credentials))
    })
    .await;
    assert!(
        reads(&sidecar, "db", "unchanged") > 1,
        "the lease was renewed meanwhile"
    );
    let lease: Value = serde_json::from_str(&bao.run(&[
        "list",
        "-format=json",
        "sys/leases/lookup/database/creds/orders",
    ]))
    .unwrap();
    assert!(
        lease.as_array().unwrap().len() <= 2,
        "no unused credentials were created: {lease}"
    );
    let shown = format!("{}{}", sidecar.log(), sidecar.ops("/status").1);
    assert!(
        !shown.contains("V_") && !shown.contains("database/creds/orders/"),
        "no user and no lease: {shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_credentials_are_replaced_before_they_expire() {
    let (bao, redis) = leases("1h", "24h");
    let mut world = world_of(&bao);
    let sidecar = launch_with(
        &mut world,
        &bao,
        "app",
        &entry("db", LEASED, "rotate_after = \"3s\""),
    );
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    let (first, credentials) = got(app.ask("db").await);
    let next = app
        .until("db", |answer| {
            answer.headers["sidekey-secret-version"] != *first
        })
        .await;
    assert!(redis.lets_in(&got(next).1));
    // Both are valid meanwhile, and only the lease's expiry removes the old ones.
    assert_eq!(
        got(app.ask(&format!("db?version={first}")).await),
        (first, credentials.clone())
    );
    assert!(redis.lets_in(&credentials));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_lease_is_replaced() {
    let (bao, redis) = leases("1h", "24h");
    let mut world = world_of(&bao);
    let sidecar = launch_with(&mut world, &bao, "app", &entry("db", LEASED, ""));
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    let (first, credentials) = got(app.ask("db").await);
    bao.run(&[
        "lease",
        "revoke",
        "-sync",
        "-prefix",
        "database/creds/orders",
    ]);
    assert!(!redis.lets_in(&credentials));
    // An application whose login just failed requests the newest value.
    let (second, credentials) = app.newest("db").await;
    assert!(second != first && redis.lets_in(&credentials));
    wait("its line", || {
        sidecar.log().contains("the lease no longer exists")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_revoked_at_shutdown_if_configured_and_permitted() {
    let (bao, redis) = leases("1h", "24h");
    let mut world = world_of(&bao);
    let stanza = "path \"sys/leases/revoke\" { capabilities = [\"update\"] }";
    let mut run = async |policy: &str, more: &str| {
        bao.policy_text(
            "app",
            &format!("path \"database/creds/orders\" {{ capabilities = [\"read\"] }}\n{policy}"),
        );
        let mut sidecar = launch_with(&mut world, &bao, "app", &entry("db", LEASED, more));
        sidecar.wait_ready();
        let credentials = got(App::of(&sidecar).await.ask("db").await).1;
        sidecar.signal("TERM");
        assert!(sidecar.ended().success(), "{}", sidecar.log());
        (credentials, sidecar)
    };
    let (given_back, sidecar) = run(stanza, "revoke = true").await;
    wait("its line", || sidecar.log().contains("lease revoked"));
    // Revoking takes OpenBao a moment.
    wait("the end of the credentials", || !redis.lets_in(&given_back));
    let (kept, _) = run(stanza, "").await;
    assert!(redis.lets_in(&kept));
    let (kept, sidecar) = run("", "revoke = true").await;
    wait("the stanza", || sidecar.log().contains(stanza));
    assert!(redis.lets_in(&kept));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_errors_are_reported_with_a_remedy() {
    let (bao, _redis) = leases("1h", "24h");
    let mut world = world_of(&bao);
    bao.run(&["secrets", "enable", "-version=1", "-path=kv1", "kv"]);
    put(&bao, "kv1/db", "a");
    let config = entry("none", "vault-lease:database/creds/nobody", "")
        + &entry("plain", "vault-lease:kv1/db", "");
    let all = "path \"database/creds/nobody\" { capabilities = [\"read\"] }\n\
        path \"kv1/db\" { capabilities = [\"read\"] }";
    bao.policy_text("all", all);
    let sidecar = launch_with(&mut world, &bao, "all", &config);
    let mut app = App::of(&sidecar).await;
    assert_eq!(app.demand("none").await.problem(), "secret_not_found");
    wait("the hint", || {
        sidecar
            .log()
            .contains("nor a time of rotation; is this a key-value secret (vault-kv:)?")
    });
    drop(sidecar);
    bao.policy_text(
        "nothing",
        "path \"kv1/other\" { capabilities = [\"read\"] }",
    );
    let sidecar = launch_with(&mut world, &bao, "nothing", &entry("db", LEASED, ""));
    assert_eq!(
        App::of(&sidecar).await.demand("db").await.problem(),
        "provider_denied"
    );
    wait("the stanza", || {
        sidecar
            .log()
            .contains("path \"database/creds/orders\" { capabilities = [\"read\"] }")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_policy_for_secrets_is_sufficient_and_minimal() {
    let (bao, redis) = leases("1h", "24h");
    let mut world = world_of(&bao);
    bao.run(&["secrets", "enable", "-version=1", "-path=kv1", "kv"]);
    for value in ["a", "b"] {
        put(&bao, "secret/orders/db", value);
        put(&bao, "kv1/orders/db", value);
    }
    let page = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/backends/vault.md"
    ))
    .unwrap();
    let blocks: Vec<&str> = page
        .split("```hcl\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    let policy = blocks
        .into_iter()
        .find(|block| block.contains("database/creds/orders"))
        .unwrap();
    let config = entry("new", "vault-kv:secret/orders/db", "")
        + &entry("old", "vault-kv:kv1/orders/db", "")
        + &entry("leased", LEASED, "revoke = true");
    bao.policy_text("documented", policy);
    let mut sidecar = launch_with(&mut world, &bao, "documented", &config);
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    assert_eq!(
        got(app.ask("new?stage=previous").await),
        ("1".into(), password("a"))
    );
    assert_eq!(app.newest("new").await.1, password("b"));
    assert_eq!(app.newest("old").await.1, password("b"));
    let (version, credentials) = app.newest("leased").await;
    assert_eq!(app.newest("leased").await.0, version, "renewed");
    sidecar.signal("TERM");
    assert!(sidecar.ended().success(), "{}", sidecar.log());
    wait("the end of the credentials", || {
        !redis.lets_in(&credentials)
    });
    // Without any line that isn't marked as optional, something is denied.
    let lines: Vec<&str> = policy.lines().collect();
    for line in lines.iter().filter(|line| !line.contains("not needed")) {
        let rest: Vec<&str> = lines
            .iter()
            .filter(|other| *other != line)
            .copied()
            .collect();
        bao.policy_text("documented", &rest.join("\n"));
        let sidecar = launch_with(&mut world, &bao, "documented", &config);
        wait(line, || {
            ["new", "old", "leased"]
                .iter()
                .any(|name| reads(&sidecar, name, "denied") > 0)
        });
    }
}
