//! Secrets in Azure Key Vault, against a fake that is verified with Microsoft's own client.

use serde_json::Value;

use crate::support::{
    azure::fake,
    azure_fake::{AzureFake, CLIENT, TENANT},
    harness::{World, wait},
    served_secrets::{App, entry, got, launch, launch_as, reads},
};

/// Returns a config that reaches the fake, with a secret `db`.
fn config(fake: &AzureFake, more: &str) -> String {
    let login = format!(
        "[azure]\nlogin = \"client-secret\"\ntenant_id = {TENANT:?}\nclient_id = {CLIENT:?}\n\
         client_secret_file = \"secret\"\n\
         authority = {:?}\nca_file = \"ca.pem\"\nverify_challenge = false\n",
        fake.url
    );
    login + &entry("db", &format!("azure-kv:{}/secrets/db", fake.url), more)
}

fn shown(world: &World, sidecar: &crate::support::harness::Sidecar) -> String {
    let secret = std::fs::read_to_string(world.path("secret")).unwrap();
    let shown = format!(
        "{}{}{}",
        sidecar.log(),
        sidecar.ops("/status").1,
        sidecar.ops("/metrics").1
    );
    assert!(
        !shown.contains(secret.trim()) && !shown.contains("token-"),
        "{shown}"
    );
    shown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_azure_secret_is_followed_through_its_versions() {
    let (world, fake) = fake().await;
    let first = fake.put_secret("db", "value-a");
    let sidecar = launch(&world, &config(&fake, ""));
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    assert_eq!(got(app.ask("db").await), (first.clone(), "value-a".into()));
    assert_eq!(
        app.ask("db").await.json()["created_at"],
        "2023-11-14T22:13:20Z"
    );
    let second = fake.put_secret("db", "value-b");
    assert_eq!(app.newest("db").await, (second.clone(), "value-b".into()));
    assert_eq!(app.newest("db").await.0, second);
    assert_eq!(
        (
            reads(&sidecar, "db", "changed"),
            reads(&sidecar, "db", "unchanged")
        ),
        (2, 1)
    );
    assert_eq!(
        got(app.ask("db?stage=previous").await),
        (first.clone(), "value-a".into())
    );
    let third = fake.put_secret("db", "value-c");
    let fourth = fake.put_secret("db", "value-d");
    // A sidecar that starts later gets the newest enabled previous version, from a list of several
    // pages.
    fake.enable_secret("db", &third, false);
    let later = launch_as(&world, "later", &config(&fake, "previous_ttl = \"36500d\""));
    later.wait_ready();
    let mut other = App::of(&later).await;
    assert_eq!(
        got(other.ask("db").await),
        (fourth.clone(), "value-d".into())
    );
    assert_eq!(
        got(other.ask("db?stage=previous").await),
        (second.clone(), "value-b".into())
    );
    assert_eq!(
        got(other.ask(&format!("db?version={first}")).await),
        (first, "value-a".into())
    );
    for none in [
        "db?version=versions",
        "db?version=..%2Fdb",
        "db?version=0123",
        &format!("db?version={third}"),
        "db?stage=pending",
    ] {
        assert_eq!(
            other.ask(none).await.problem(),
            "secret_not_found",
            "{none}"
        );
    }

    // Deleted and recovered, then disabled and enabled.
    fake.delete_secret("db");
    app.until_problem("db", "secret_not_found").await;
    fake.recover_secret("db");
    assert_eq!(app.restored("db").await, (fourth.clone(), "value-d".into()));
    fake.enable_secret("db", &fourth, false);
    app.until_problem("db", "secret_not_found").await;
    wait("the reason", || {
        sidecar.log().contains("enable the secret or its version")
    });
    fake.enable_secret("db", &fourth, true);
    assert_eq!(app.restored("db").await.1, "value-d");
    // Expired tokens are replaced.
    fake.end_tokens();
    assert_eq!(app.newest("db").await.1, "value-d");
    let shown = shown(&world, &sidecar);
    assert!(!shown.contains("value-"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_azure_secret_is_read_again() {
    let (world, fake) = fake().await;
    let first = fake.put_secret("db", "value-a");
    // It expires in a few seconds.
    fake.expire_secret("db", jiff::Timestamp::now().as_second() + 3);
    let sidecar = launch(&world, &config(&fake, ""));
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    assert_eq!(got(app.ask("db").await).0, first);
    let second = fake.put_secret("db", "value-b");
    // No client requests it, and the interval is an hour.
    assert_eq!(
        app.until_replaced("db", &first, |_| ()).await,
        (second, "value-b".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_errors_are_reported_with_a_remedy() {
    let (world, fake) = fake().await;
    // The maximum length that Key Vault accepts.
    let long = "0123456789abcdef".repeat(1600);
    fake.put_secret("db", &long);
    fake.deny(true);
    let sidecar = launch(&world, &config(&fake, ""));
    let mut app = App::of(&sidecar).await;
    assert_eq!(app.demand("db").await.problem(), "provider_denied");
    wait("the role", || {
        sidecar.log().contains(
            "needs the secret permission get, which the role `Key Vault Secrets User` includes",
        )
    });
    fake.deny(false);
    fake.throttle(true);
    app.until_problem("db", "provider_throttled").await;
    fake.throttle(false);
    let answer = app.until("db", |answer| answer.status == 200).await;
    assert_eq!(answer.json()["value"], Value::from(long));
    fake.throttle(true);
    let stale = app
        .until("db", |answer| answer.json()["stale"] == true)
        .await;
    assert!(stale.headers.contains_key("sidekey-stale"));
    drop(sidecar);
    let elsewhere = entry("db", "azure-kv:http://vault.example/secrets/db", "");
    let sidecar = launch(
        &world,
        &(config(&fake, "")
            .split("[[secret]]")
            .next()
            .unwrap()
            .to_owned()
            + &elsewhere),
    );
    wait("the refusal", || {
        sidecar.log().contains("backends.plain_http")
    });
}
