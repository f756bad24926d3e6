//! Secrets under load and through outages: a real Vault, and a fault proxy for faults that Vault
//! can't produce.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{
    fault_proxy::{Fault, FaultProxy},
    harness::{Client, World, wait},
    served_secrets::{App, ON_DEMAND, entry, got, launch, reads},
    servers::Vault,
    vault::world_of,
};

fn put(vault: &Vault, number: u32) {
    vault.run(&["kv", "put", "secret/db", &format!("password={number}")]);
}

/// Returns a world that reaches Vault through a proxy.
async fn behind(vault: &Vault) -> (World, FaultProxy) {
    let mut world = world_of(vault);
    let address = world
        .env
        .iter()
        .find(|(name, _)| *name == "VAULT_ADDR")
        .unwrap()
        .1
        .clone();
    let proxy = FaultProxy::before(address.strip_prefix("http://").unwrap()).await;
    world.env.retain(|(name, _)| *name != "VAULT_ADDR");
    world.env.push(("VAULT_ADDR", proxy.url()));
    (world, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_first_requests_for_one_secret_cause_one_read() {
    const CONNECTIONS: usize = 160;
    const STREAMS: usize = 64;

    let vault = Vault::start();
    put(&vault, 1);
    let (world, proxy) = behind(&vault).await;
    // Under a `*`, nothing is read before the first request.
    let family =
        "[[secret]]\nname = \"team-*\"\nsource = \"vault-kv:secret/*\"\nallow = [\"team-db\"]\n";
    let sidecar = launch(&world, family);
    sidecar.wait_ready();
    proxy.set(Fault::Slow(Duration::from_millis(500)));
    let mut callers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let socket = sidecar.socket.clone();
        callers.spawn(async move {
            let Client::Http2(sender) = Client::http2(&socket).await else {
                unreachable!()
            };
            let mut streams = JoinSet::new();
            for _ in 0..STREAMS {
                let mut client = Client::Http2(sender.clone());
                streams.spawn(async move {
                    got(client
                        .send(Method::GET, "/v1/secrets/team-db", &[], "")
                        .await)
                    .1
                });
            }
            streams.join_all().await
        });
    }
    let answers: Vec<String> = callers.join_all().await.into_iter().flatten().collect();
    assert_eq!(answers.len(), CONNECTIONS * STREAMS);
    let expected = json!({ "password": "1" }).to_string();
    assert!(answers.iter().all(|answer| *answer == expected));
    assert_eq!(reads(&sidecar, "team-db", "changed"), 1);
    assert_eq!(reads(&sidecar, "team-db", "unchanged"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_a_vault_rotation_never_serves_an_outdated_value() {
    let vault = Vault::start();
    put(&vault, 1);
    let world = world_of(&vault);
    let sidecar = world.start_with(
        "one",
        &entry("db", "vault-kv:secret/db", "refresh = \"100ms\""),
        &[],
    );
    let stop = tokio_util::sync::CancellationToken::new();
    let mut callers = JoinSet::new();
    for caller in 0..4 {
        let (socket, stop) = (sidecar.socket.clone(), stop.clone());
        callers.spawn(async move {
            let mut client = Client::http1(&socket).await;
            let (mut newest, mut answers) = (0, 0);
            while !stop.is_cancelled() {
                // Some request the newest value, as after a failed login.
                let headers: &[(&str, &str)] = if caller == 0 {
                    &[("cache-control", "no-cache")]
                } else {
                    &[]
                };
                let answer = client
                    .send(Method::GET, "/v1/secrets/db?field=password", headers, "")
                    .await
                    .ok();
                let number: u32 = answer.json()["value"].as_str().unwrap().parse().unwrap();
                assert!(number >= newest, "{number} after {newest}");
                let previous = client
                    .send(
                        Method::GET,
                        "/v1/secrets/db?field=password&stage=previous",
                        &[],
                        "",
                    )
                    .await;
                if previous.status == StatusCode::OK {
                    let previous: u32 = previous.json()["value"].as_str().unwrap().parse().unwrap();
                    // The value may have changed once between the two requests.
                    assert!(
                        previous + 1 >= number,
                        "{previous} is older than the one before {number}"
                    );
                }
                (newest, answers) = (number, answers + 1);
            }
            answers
        });
    }
    let mut app = App::of(&sidecar).await;
    for number in 2..=8 {
        put(&vault, number);
        let text = number.to_string();
        // Never a third value: once the new one is seen, the previous one is its predecessor.
        app.until("db?field=password", |answer| {
            answer.json()["value"] == text.as_str()
        })
        .await;
        let previous = app.ask("db?field=password&stage=previous").await.ok();
        assert_eq!(previous.json()["value"], (number - 1).to_string());
    }
    stop.cancel();
    for answers in callers.join_all().await {
        assert!(answers > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_values_are_served_within_the_configured_bound_only() {
    let vault = Vault::start();
    put(&vault, 1);
    let (world, proxy) = behind(&vault).await;
    let long = entry(
        "long",
        "vault-kv:secret/db",
        "refresh = \"100ms\"\nstale_if_error = \"1h\"",
    );
    let short = entry(
        "short",
        "vault-kv:secret/db",
        "refresh = \"100ms\"\nstale_if_error = \"1s\"",
    );
    let never = entry(
        "never",
        "vault-kv:secret/db",
        "refresh = \"100ms\"\nstale_if_error = \"0s\"",
    );
    let settings = ON_DEMAND.replace("read_timeout = \"20s\"", "read_timeout = \"2s\"");
    let sidecar = world.start_with("one", &format!("{settings}{long}{short}{never}"), &[]);
    let mut client = sidecar.client().await;
    let status = |answer: &crate::support::harness::Answer| {
        (
            answer.status.as_u16(),
            answer.headers.contains_key("sidekey-stale"),
        )
    };
    for fault in [Fault::Answer(500, "{}".into()), Fault::Hang] {
        proxy.set(fault);
        wait("the failure", || {
            sidecar
                .ops("/metrics")
                .1
                .contains("sidekey_secret_refresh_failing{secret=\"never\"} 1")
        });
        wait("the bound", || reads(&sidecar, "long", "unavailable") > 0);
        let mut get = async |name: &str| {
            client
                .send(Method::GET, &format!("/v1/secrets/{name}"), &[], "")
                .await
        };
        assert_eq!(get("never").await.problem(), "provider_unavailable");
        while get("short").await.status == StatusCode::OK {
            // Until the bound is passed, a stale value is marked as stale.
        }
        assert_eq!(get("short").await.problem(), "provider_unavailable");
        assert_eq!(
            status(&get("long").await),
            (200, true),
            "longer than the shorter bound, and within the longer one"
        );
        assert_eq!(sidecar.ops("/readyz").0, 200);
        proxy.set(Fault::None);
        for name in ["long", "short", "never"] {
            let line = format!("sidekey_secret_refresh_failing{{secret=\"{name}\"}} 0");
            wait("the recovery", || sidecar.ops("/metrics").1.contains(&line));
            assert_eq!(status(&get(name).await), (200, false));
        }
    }
}
