//! Secrets in AWS Secrets Manager and Systems Manager, against moto. A fault proxy injects the
//! faults that moto can't produce.

use aws_sdk_secretsmanager::{Client as SecretsManager, primitives::Blob};
use aws_sdk_ssm::{Client as SystemsManager, types::ParameterType};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::support::{
    aws::{REGION, problem, sdk, world_of},
    fault_proxy::{Fault, FaultProxy},
    harness::wait,
    served_secrets::{App, entry, got, launch, launch_as, reads},
    servers::Moto,
};

async fn secrets_manager(moto: &Moto, region: &'static str) -> SecretsManager {
    SecretsManager::new(&sdk(&moto.url(), region).await)
}

async fn systems_manager(moto: &Moto, region: &'static str) -> SystemsManager {
    SystemsManager::new(&sdk(&moto.url(), region).await)
}

/// Creates a secret and returns its ARN.
async fn make(aws: &SecretsManager, name: &str, value: &str) -> String {
    aws.create_secret()
        .name(name)
        .secret_string(value)
        .send()
        .await
        .unwrap()
        .arn
        .unwrap()
}

/// Sets a secret's value and returns its version.
async fn put(aws: &SecretsManager, name: &str, value: &str, stages: &[&str]) -> String {
    let request = aws.put_secret_value().secret_id(name).secret_string(value);
    let stages = stages.iter().map(|stage| (*stage).to_owned()).collect();
    request
        .set_version_stages(Some(stages))
        .send()
        .await
        .unwrap()
        .version_id
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secrets_manager_rotation_is_followed_through_its_stages() {
    let moto = Moto::start();
    let (world, aws) = (world_of(&moto.url()), secrets_manager(&moto, REGION).await);
    make(&aws, "orders/db", "a").await;
    let config = entry("db", "aws-sm:orders/db", "");
    let sidecar = launch(&world, &config);
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    let (first, value) = got(app.ask("db").await);
    assert_eq!(value, "a");
    let shown = app.ask("db").await.json();
    let made = aws
        .get_secret_value()
        .secret_id("orders/db")
        .send()
        .await
        .unwrap();
    let created_at: jiff::Timestamp = shown["created_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        (first.clone(), created_at.as_second()),
        (made.version_id.unwrap(), made.created_date.unwrap().secs())
    );

    // Like a rotation function: create, test, finish.
    let second = put(&aws, "orders/db", "b", &["AWSPENDING"]).await;
    assert_eq!(app.newest("db").await, (first.clone(), "a".into()));
    assert_eq!(
        got(app.ask("db?stage=pending").await),
        (second.clone(), "b".into())
    );
    let stage = aws
        .update_secret_version_stage()
        .secret_id("orders/db")
        .version_stage("AWSCURRENT");
    stage
        .move_to_version_id(&second)
        .remove_from_version_id(&first)
        .send()
        .await
        .unwrap();
    assert_eq!(app.newest("db").await, (second.clone(), "b".into()));
    assert_eq!(app.newest("db").await.0, second);
    assert_eq!(
        (
            reads(&sidecar, "db", "changed"),
            reads(&sidecar, "db", "unchanged")
        ),
        (2, 2)
    );
    assert_eq!(
        got(app.ask("db?stage=previous").await),
        (first.clone(), "a".into())
    );
    assert_eq!(got(app.ask(&format!("db?version={first}")).await).1, "a");
    // A sidecar that starts later also knows the previous version.
    let later = launch_as(&world, "later", &config);
    later.wait_ready();
    let mut other = App::of(&later).await;
    assert_eq!(
        got(other.ask("db?stage=previous").await),
        (first.clone(), "a".into())
    );
    assert_eq!(got(other.ask(&format!("db?version={first}")).await).1, "a");
    for none in ["db?version=7", &format!("db?version={}", "0".repeat(32))] {
        assert_eq!(
            other.ask(none).await.problem(),
            "secret_not_found",
            "{none}"
        );
    }

    // Deleted, then restored.
    aws.delete_secret()
        .secret_id("orders/db")
        .send()
        .await
        .unwrap();
    app.until_problem("db", "secret_not_found").await;
    aws.restore_secret()
        .secret_id("orders/db")
        .send()
        .await
        .unwrap();
    assert_eq!(app.restored("db").await, (second, "b".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_binary_and_cross_region_secrets_are_served_unchanged() {
    let moto = Moto::start();
    let (world, here) = (world_of(&moto.url()), secrets_manager(&moto, REGION).await);
    let there = secrets_manager(&moto, "us-east-1").await;
    let long = "0123456789abcdef".repeat(4096);
    let long_arn = make(&here, "long", &long).await;
    let bytes: Vec<u8> = (0..=255).collect();
    here.create_secret()
        .name("bytes")
        .secret_binary(Blob::new(bytes.clone()))
        .send()
        .await
        .unwrap();
    let far_arn = make(&there, "far", "away").await;
    let config = [
        entry("long", "aws-sm:long", ""),
        entry("by-arn", &format!("aws-sm:{long_arn}"), ""),
        // Without the random suffix that AWS appends.
        entry(
            "by-partial-arn",
            &format!("aws-sm:{}", &long_arn[..long_arn.len() - 7]),
            "",
        ),
        entry("bytes", "aws-sm:bytes", ""),
        entry("far", &format!("aws-sm:{far_arn}"), ""),
    ];
    let sidecar = launch(&world, &config.concat());
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    for name in ["long", "by-arn", "by-partial-arn"] {
        assert_eq!(app.bytes(name).await.ok().body, long, "{name}");
    }
    assert_eq!(app.bytes("bytes").await.ok().body, bytes);
    assert_eq!(
        app.ask("bytes").await.ok().json()["value_base64"],
        STANDARD.encode(&bytes)
    );
    assert_eq!(got(app.ask("far").await).1, "away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_secrets_are_read_per_request() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(&moto.address).await;
    let (world, aws) = (world_of(&proxy.url()), secrets_manager(&moto, REGION).await);
    let names: Vec<String> = (0..45).map(|index| format!("s-{index:02}")).collect();
    for name in &names {
        make(&aws, name, &format!("value of {name}")).await;
    }
    let config: String = names
        .iter()
        .map(|name| entry(name, &format!("aws-sm:{name}"), ""))
        .collect();
    let sidecar = launch(&world, &config);
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    for name in &names {
        assert_eq!(got(app.ask(name).await).1, format!("value of {name}"));
    }
    let counts = |proxy: &FaultProxy| {
        (
            proxy.count("BatchGetSecretValue"),
            proxy.count("GetSecretValue"),
        )
    };
    assert_eq!(counts(&proxy), (3, 0));
    // Reads all of them again.
    sidecar.signal("HUP");
    wait("all reads", || {
        names
            .iter()
            .all(|name| reads(&sidecar, name, "unchanged") == 1)
    });
    assert_eq!(counts(&proxy), (6, 0));
    // A single secret is read with a single request.
    app.newest("s-07").await;
    assert_eq!(counts(&proxy), (6, 1));
    // One secret's error doesn't affect the others in its batch.
    aws.delete_secret().secret_id("s-01").send().await.unwrap();
    sidecar.signal("HUP");
    wait("all reads", || {
        names
            .iter()
            .all(|name| name == "s-01" || reads(&sidecar, name, "unchanged") >= 2)
    });
    wait("the refusal", || reads(&sidecar, "s-01", "not_found") >= 1);
    assert_eq!(proxy.count("BatchGetSecretValue"), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_batch_permission_secrets_are_read_individually() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(&moto.address).await;
    let (world, aws) = (world_of(&proxy.url()), secrets_manager(&moto, REGION).await);
    let names = ["one", "two", "three"];
    for name in names {
        make(&aws, name, name).await;
    }
    let denied = json!({
        "__type": "AccessDeniedException",
        "message": "User is not authorized to perform: BatchGetSecretValue",
    });
    proxy.set(Fault::AnswerTo(
        "BatchGetSecretValue",
        400,
        denied.to_string(),
    ));
    let config: String = names
        .iter()
        .map(|name| entry(name, &format!("aws-sm:{name}"), ""))
        .collect();
    let sidecar = launch(&world, &config);
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    for name in names {
        assert_eq!(got(app.ask(name).await).1, name);
    }
    sidecar.signal("HUP");
    wait("all reads", || {
        names
            .iter()
            .all(|name| reads(&sidecar, name, "unchanged") == 1)
    });
    // The request is made only once per process.
    assert_eq!(
        (
            proxy.count("BatchGetSecretValue"),
            proxy.count("GetSecretValue")
        ),
        (1, 6)
    );
    wait("its line", || {
        sidecar.log().contains("secretsmanager:BatchGetSecretValue")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parameter_is_followed_by_version_number() {
    let moto = Moto::start();
    let (world, aws) = (world_of(&moto.url()), systems_manager(&moto, REGION).await);
    let put = async |value: &str| {
        let request = aws
            .put_parameter()
            .name("/orders/db")
            .value(value)
            .r#type(ParameterType::SecureString);
        request.overwrite(true).send().await.unwrap();
    };
    put("a").await;
    let far = systems_manager(&moto, "us-east-1").await;
    far.put_parameter()
        .name("far")
        .value("away")
        .r#type(ParameterType::String)
        .send()
        .await
        .unwrap();
    let arn = far
        .get_parameter()
        .name("far")
        .send()
        .await
        .unwrap()
        .parameter
        .unwrap()
        .arn
        .unwrap();
    let config =
        entry("db", "aws-ssm:/orders/db", "") + &entry("far", &format!("aws-ssm:{arn}"), "");
    let sidecar = launch(&world, &config);
    sidecar.wait_ready();
    let mut app = App::of(&sidecar).await;
    assert_eq!(got(app.ask("db").await), ("1".into(), "a".into()));
    assert_eq!(got(app.ask("far").await).1, "away");
    put("b").await;
    assert_eq!(app.newest("db").await, ("2".into(), "b".into()));
    assert_eq!(app.newest("db").await.0, "2");
    assert_eq!(reads(&sidecar, "db", "unchanged"), 1);
    assert_eq!(
        got(app.ask("db?stage=previous").await),
        ("1".into(), "a".into())
    );
    put("c").await;
    let later = launch_as(&world, "later", &config);
    later.wait_ready();
    let mut other = App::of(&later).await;
    assert_eq!(
        got(other.ask("db?stage=previous").await),
        ("2".into(), "b".into())
    );
    assert_eq!(
        got(other.ask("db?version=1").await),
        ("1".into(), "a".into())
    );
    for none in [
        "db?version=9",
        "db?version=0",
        "db?version=label",
        "db?stage=pending",
    ] {
        assert_eq!(
            other.ask(none).await.problem(),
            "secret_not_found",
            "{none}"
        );
    }
    let made = aws
        .get_parameter()
        .name("/orders/db")
        .send()
        .await
        .unwrap()
        .parameter
        .unwrap()
        .last_modified_date
        .unwrap();
    let created_at: jiff::Timestamp = app.demand("db").await.ok().json()["created_at"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(created_at.as_second(), made.secs());

    aws.delete_parameter()
        .name("/orders/db")
        .send()
        .await
        .unwrap();
    app.until_problem("db", "secret_not_found").await;
    put("d").await;
    assert_eq!(app.restored("db").await, ("1".into(), "d".into()));
    // Recreated externally, it starts at version 1 again, but counts as a new version.
    aws.delete_parameter()
        .name("/orders/db")
        .send()
        .await
        .unwrap();
    put("e").await;
    assert_eq!(app.newest("db").await, ("1~".into(), "e".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aws_errors_are_reported_with_a_remedy() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(&moto.address).await;
    let (world, aws) = (world_of(&proxy.url()), secrets_manager(&moto, REGION).await);
    make(&aws, "db", "a").await;
    let ssm = systems_manager(&moto, REGION).await;
    ssm.put_parameter()
        .name("db")
        .value("a")
        .r#type(ParameterType::String)
        .send()
        .await
        .unwrap();
    let config = entry("secret", "aws-sm:db", "") + &entry("parameter", "aws-ssm:db", "");
    let cases = [
        ("AccessDeniedException", "provider_denied", "denied"),
        ("ThrottlingException", "provider_throttled", "throttled"),
        ("ResourceNotFoundException", "secret_not_found", "not_found"),
    ];
    for (error, code, result) in cases {
        proxy.set(problem(error, "no"));
        // Shorter than the SDK's retries when it is throttled.
        let sidecar = world.launch(
            "one",
            &format!("refresh.read_timeout = \"1s\"\nsecrets.miss_ttl = \"1ms\"\n{config}"),
            &[],
        );
        for name in ["secret", "parameter"] {
            wait("the failure", || reads(&sidecar, name, result) > 0);
            assert_eq!(
                App::of(&sidecar).await.ask(name).await.problem(),
                code,
                "{name}: {}",
                sidecar.log()
            );
        }
        if code == "provider_denied" {
            for right in ["secretsmanager:GetSecretValue", "ssm:GetParameter"] {
                let statement =
                    format!("{{\"Effect\": \"Allow\", \"Action\": \"{right}\", \"Resource\": ");
                wait(right, || sidecar.log().contains(&statement));
            }
        }
        proxy.set(Fault::None);
        for name in ["secret", "parameter"] {
            App::of(&sidecar)
                .await
                .until(name, |answer| answer.status == 200)
                .await;
        }
    }
    // The cached value is served while it can't be read again.
    let sidecar = launch_as(&world, "two", &config);
    let mut app = App::of(&sidecar).await;
    assert_eq!(got(app.ask("secret").await).1, "a");
    proxy.kill();
    let stale = app
        .until("secret", |answer| answer.json()["stale"] == true)
        .await;
    assert!(stale.headers.contains_key("sidekey-stale") && stale.json()["value"] == "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_caused_by_sdk_backoff_is_reported_as_throttling() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(&moto.address).await;
    let world = world_of(&proxy.url());
    proxy.set(problem("ThrottlingException", "no"));
    let config = entry("secret", "aws-sm:db", "") + &entry("parameter", "aws-ssm:db", "");
    // Much shorter than the SDK's retries, which soon pause for longer than this.
    let config = format!(
        "refresh.read_timeout = \"1s\"\nsecrets.miss_ttl = \"1ms\"\n\
         secrets.force_interval = \"1ms\"\n{config}"
    );
    let sidecar = world.launch("one", &config, &[]);
    let mut app = App::of(&sidecar).await;
    for _ in 0..4 {
        for name in ["secret", "parameter"] {
            // A request that times out before AWS answers can't know the reason.
            app.until_problem(name, "provider_throttled").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plaintext_endpoint_is_rejected_for_parameters() {
    let mut world = world_of("http://127.0.0.1:1");
    world
        .env
        .push(("AWS_ENDPOINT_URL_SSM", "http://ssm.internal".into()));
    let sidecar = launch(&world, &entry("db", "aws-ssm:db", ""));
    wait("the refusal", || {
        sidecar.log().contains("AWS_ENDPOINT_URL_SSM") && sidecar.log().contains("is not https")
    });
}
