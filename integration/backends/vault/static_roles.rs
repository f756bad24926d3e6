//! Static roles of a database, whose password the server rotates, against a real Redis; and names
//! that must be escaped.

use serde_json::{Value, json};

use super::secrets::leases;
use crate::support::{
    harness::wait,
    served_secrets::{App, entry, got, launch},
    servers::{Brand, Vault},
    vault::world_of,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_role_has_one_version_per_password_and_keeps_the_one_before() {
    let (bao, redis) = leases("1h", "24h");
    redis.add_user("app");
    let role = ["db_name=redis", "username=app", "rotation_period=24h"];
    bao.run(&[&["write", "database/static-roles/app"], &role[..]].concat());
    let world = world_of(&bao);
    let config = entry("leased", "vault-lease:database/static-creds/app", "")
        + &entry("read", "vault-kv:database/static-creds/app", "");
    let sidecar = launch(&world, &config);
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    for name in ["leased", "read"] {
        let first = app.newest(name).await;
        assert!(redis.lets_in(&first.1));
        // The time left counts down; the value and its version stay.
        assert_eq!(app.newest(name).await, first);
        bao.run(&["write", "-f", "database/rotate-role/app"]);
        let second = app.newest(name).await;
        assert!(second.0 != first.0 && redis.lets_in(&second.1));
        assert!(!redis.lets_in(&first.1));
        assert_eq!(got(app.ask(&format!("{name}?stage=previous")).await), first);
        let value: Value = serde_json::from_str(&second.1).unwrap();
        assert_eq!(
            (&value["username"], &value["ttl"]),
            (&json!("app"), &Value::Null)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_with_spaces_and_signs_are_read() {
    let vault = Vault::start_of(Brand::Vault);
    let path = "secret/my app/user@example.com";
    vault.run(&["kv", "put", path, "password=a"]);
    let world = world_of(&vault);
    let config = entry("odd", &format!("vault-kv:{path}"), "")
        + &entry("copied", "vault-kv:secret/data/orders/db", "");
    let sidecar = launch(&world, &config);
    wait("the hint", || {
        sidecar.log().contains("is it vault-kv:secret/orders/db?")
    });
    let mut app = App::of(&sidecar).await;
    let value = json!({ "password": "a" }).to_string();
    assert_eq!(app.newest("odd").await, ("1".into(), value));
}
