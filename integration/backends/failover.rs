//! KEKs of different vendors for one keyring: AWS KMS (moto) and Vault's Transit, each behind a
//! fault proxy. When either fails, sidecars start and refresh with the other, and the metrics show
//! which one failed.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{
    aws::{self, another_key, kms, make_key, problem},
    fault_proxy::{Fault, FaultProxy},
    harness::{Sidecar, World, wait},
    servers::{Moto, Vault},
    vault::KEK as VAULT_KEK,
};

/// Two working backends, the proxies in front of them, and a keyring that both open.
struct Pair {
    _moto: Moto,
    _vault: Vault,
    aws: FaultProxy,
    vault: FaultProxy,
    world: World,
    aws_kek: String,
    config: String,
}

impl Pair {
    async fn start() -> Self {
        let (moto, vault) = (Moto::start(), Vault::start());
        let aws = FaultProxy::before(&moto.address).await;
        let vault_proxy = FaultProxy::before(vault.address.strip_prefix("http://").unwrap()).await;
        // Commands reach both directly: a keyring can be changed only while all of its KEKs
        // respond.
        let mut world = aws::world_of(&moto.url());
        world.env.extend([
            ("VAULT_ADDR", vault.address.clone()),
            ("VAULT_TOKEN", vault.token.clone()),
        ]);
        let aws_kek = format!("aws-kms:{}", make_key(&kms(&moto.url()).await).await);
        let config = format!(
            "[listen]\nsocket = {:?}\n[aws]\nendpoint = {:?}\n[vault]\naddress = {:?}\n\
             [refresh]\npoll = \"100ms\"\nmax_backoff = \"100ms\"\nkek_timeout = \"1d\"\n\
             [[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\n\
             keks = [\"aws-kms:*\", \"vault-transit:*\"]\n",
            world.path("one.sock"),
            aws.url(),
            vault_proxy.url()
        );
        Self {
            _moto: moto,
            _vault: vault,
            aws,
            vault: vault_proxy,
            world,
            aws_kek,
            config,
        }
    }

    fn init(&self, keks: [&str; 2]) {
        let location = self.world.manifest("demo").display().to_string();
        let _ = std::fs::remove_file(&location);
        aws::init(&self.world, &location, &keks);
    }

    fn launch(&self) -> Sidecar {
        self.world.launch("one", &self.config, &[])
    }
}

/// Returns how many unwraps of a KEK had a result.
fn unwraps(sidecar: &Sidecar, kek: &str, result: &str) -> u64 {
    let line = format!(
        "sidekey_kek_requests_total{{kek=\"{kek}\",operation=\"unwrap\",result=\"{result}\"}} "
    );
    sidecar
        .ops("/metrics")
        .1
        .lines()
        .find_map(|found| found.strip_prefix(&line)?.parse().ok())
        .unwrap_or(0)
}

/// Replaces the plaintext in Vault's response with another key of the same length.
fn another_key_of_vault(answer: &str) -> String {
    let mut answer: Value = serde_json::from_str(answer).unwrap();
    if answer["data"]["plaintext"].is_string() {
        answer["data"]["plaintext"] = json!(STANDARD.encode([7; 32]));
    }
    answer.to_string()
}

/// Starts and refreshes while `victim`, which is asked first, has a fault. Its unwraps must then
/// have one of `results`.
async fn survive(pair: &Pair, victim: &str, survivor: &str, results: &[&str], ail: impl FnOnce()) {
    pair.init([victim, survivor]);
    ail();
    // Only the hedge or a failure can involve the survivor: the timeout is a day.
    let sidecar = pair.launch();
    sidecar.wait_ready();
    let message = sidecar.client().await.encrypt(b"Ada").await.ok().body;
    pair.world.keyring("rotate", "demo", &["--activate", "now"]);
    sidecar.wait_generation(3);
    wait("the new version", || {
        sidecar.keyring()["active"]["encrypting"] == 2
    });
    assert_eq!(
        sidecar.client().await.decrypt(&message).await.ok().body,
        "Ada"
    );
    assert_eq!(
        unwraps(&sidecar, survivor, "ok"),
        2,
        "{victim} {results:?}: {}",
        sidecar.ops("/metrics").1
    );
    assert_eq!(unwraps(&sidecar, victim, "ok"), 0);
    let told = results
        .iter()
        .find(|result| unwraps(&sidecar, victim, result) > 0);
    let told =
        told.unwrap_or_else(|| panic!("{victim} {results:?}: {}", sidecar.ops("/metrics").1));
    let keks = sidecar.status()["keks"].clone();
    let of = |uri: &str| {
        keks.as_array()
            .unwrap()
            .iter()
            .find(|kek| kek["uri"] == uri)
            .unwrap()
            .clone()
    };
    assert!(
        of(survivor)["last_success"].is_string() && of(victim)["last_success"].is_null(),
        "{keks}"
    );
    if *told != "overtaken" {
        assert_eq!(of(victim)["last_error"]["code"], *told, "{keks}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vault_covers_any_failure_of_aws() {
    let pair = Pair::start().await;
    let (victim, survivor) = (pair.aws_kek.clone(), VAULT_KEK);
    // The SDK retries transient errors; Vault is asked meanwhile.
    let passing = &["overtaken", "unavailable"][..];
    for (results, fault) in [
        (&["overtaken"][..], Fault::Hang),
        (&["overtaken"], Fault::Slow(Duration::from_secs(3600))),
        (passing, Fault::Answer(500, "{}".into())),
        (&["denied"], problem("AccessDeniedException", "no")),
        (&["exchanged"], Fault::Forged(another_key)),
    ] {
        survive(&pair, &victim, survivor, results, || pair.aws.set(fault)).await;
    }
    survive(&pair, &victim, survivor, passing, || pair.aws.kill()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aws_covers_any_failure_of_vault() {
    let pair = Pair::start().await;
    let (victim, survivor) = (VAULT_KEK, pair.aws_kek.clone());
    let answer =
        |status, error: &str| Fault::Answer(status, json!({ "errors": [error] }).to_string());
    for (result, fault) in [
        ("overtaken", Fault::Hang),
        ("overtaken", Fault::Slow(Duration::from_secs(3600))),
        ("unavailable", answer(500, "internal error")),
        ("throttled", answer(429, "rate limit quota exceeded")),
        ("denied", answer(403, "permission denied")),
        ("exchanged", Fault::Forged(another_key_of_vault)),
    ] {
        survive(&pair, victim, &survivor, &[result], || {
            pair.vault.set(fault)
        })
        .await;
    }
    survive(&pair, victim, &survivor, &["unavailable"], || {
        pair.vault.kill()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_sidecar_waits_while_both_are_down_and_reports_why() {
    let pair = Pair::start().await;
    pair.init([&pair.aws_kek, VAULT_KEK]);
    let running = pair.launch();
    running.wait_ready();
    let message = running.client().await.encrypt(b"Ada").await.ok().body;
    pair.aws.set(problem("AccessDeniedException", "no"));
    pair.vault.set(Fault::Answer(
        503,
        json!({ "errors": ["Vault is sealed"] }).to_string(),
    ));
    let fresh_config = pair.config.replace("one.sock", "two.sock");
    let fresh = pair.world.launch("two", &fresh_config, &[]);
    wait("both reasons", || {
        let why = fresh.ops("/readyz").1;
        why.contains("kms:Decrypt") && why.contains("Vault is sealed")
    });
    assert_eq!(
        running.client().await.decrypt(&message).await.ok().body,
        "Ada"
    );
    running.client().await.encrypt(b"x").await.ok();
    pair.vault.set(Fault::None);
    fresh.wait_ready();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kek_with_an_open_circuit_is_called_last() {
    const VERSIONS: u64 = 10;
    let pair = Pair::start().await;
    pair.init([&pair.aws_kek, VAULT_KEK]);
    for _ in 1..VERSIONS {
        pair.world.keyring("rotate", "demo", &[]);
    }
    pair.aws.set(problem("AccessDeniedException", "no"));
    let sidecar = pair.launch();
    let all_open = |count: usize| {
        let versions = sidecar.keyring()["active"]["versions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        versions.len() == count && versions.iter().all(|version| version["unopened"].is_null())
    };
    wait("every version", || all_open(10));
    // This many consecutive failures open the circuit for a minute.
    assert_eq!(unwraps(&sidecar, &pair.aws_kek, "denied"), VERSIONS);
    let gauge = format!("sidekey_kek_circuit_open{{kek=\"{}\"}} 1", pair.aws_kek);
    assert!(sidecar.ops("/metrics").1.contains(&gauge));
    pair.aws.set(Fault::None);
    let before = pair.aws.count("Decrypt");
    pair.world.keyring("rotate", "demo", &[]);
    wait("the next version", || all_open(11));
    assert_eq!(
        pair.aws.count("Decrypt"),
        before,
        "Vault answered, so AWS was left alone"
    );
    pair.vault.set(Fault::Answer(
        503,
        json!({ "errors": ["Vault is sealed"] }).to_string(),
    ));
    pair.world.keyring("rotate", "demo", &[]);
    wait("the version after", || all_open(12));
    assert_eq!(
        unwraps(&sidecar, &pair.aws_kek, "ok"),
        1,
        "no other KEK was left"
    );
    assert!(
        !sidecar.ops("/metrics").1.contains(&gauge),
        "and that closed the circuit"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_kek_change_resumes() {
    let pair = Pair::start().await;
    let location = pair.world.manifest("demo").display().to_string();
    aws::init(&pair.world, &location, &[VAULT_KEK]);
    for _ in 1..20 {
        pair.world.keyring("rotate", "demo", &[]);
    }
    let wraps = || {
        let manifest = pair.world.read_manifest("demo");
        let count = |version: &Value| version["wraps"].as_array().unwrap().len();
        manifest["versions"]
            .as_array()
            .unwrap()
            .iter()
            .map(count)
            .collect::<Vec<_>>()
    };
    // A generation wraps 16 versions and unwraps each to verify it.
    pair.aws.set(Fault::HangAfter(2 * 16));
    let mut command = std::process::Command::new(crate::support::harness::binary());
    command
        .args(["keyring", "rewrap-kek", &location, "--add", &pair.aws_kek])
        .envs(pair.world.env.iter().cloned());
    let mut killed = command
        .env("AWS_ENDPOINT_URL", pair.aws.url())
        .spawn()
        .unwrap();
    wait("the first step", || {
        wraps().iter().filter(|count| **count == 2).count() == 16
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    // A complete manifest that every sidecar accepts.
    pair.world.keyring("verify", "demo", &[]);
    let said = pair
        .world
        .keyring("rewrap-kek", "demo", &["--add", &pair.aws_kek]);
    assert!(said.contains("rewrapped 4 versions"), "{said}");
    assert_eq!(wraps(), [2; 20]);
}
