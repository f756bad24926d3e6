//! KEKs in AWS KMS and manifests in Secrets Manager and S3, against moto. A fault proxy injects the
//! faults that moto can't produce.

use std::{path::Path, time::Duration};

use aws_sdk_kms::Client as Kms;
use serde_json::Value;
use sidekey::{
    admin::{Admin, Bases, Memory, Signing, Takeover},
    backend,
    clock::Clock,
};

use crate::support::{
    aws::{REGION, another_key, init, kms, launch, make_key, problem, sdk, world_of},
    fault_proxy::{Fault, FaultProxy},
    harness::{World, wait},
    servers::Moto,
};

/// The bucket `keys`.
async fn make_bucket(url: &str) {
    let s3 = aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::config::Builder::from(&sdk(url, REGION).await)
            .force_path_style(true)
            .build(),
    );
    let region = aws_sdk_s3::types::BucketLocationConstraint::EuWest1;
    let place = aws_sdk_s3::types::CreateBucketConfiguration::builder()
        .location_constraint(region)
        .build();
    s3.create_bucket()
        .bucket("keys")
        .create_bucket_configuration(place)
        .send()
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyring_lives_in_aws() {
    let moto = Moto::start();
    let (world, kms) = (world_of(&moto.url()), kms(&moto.url()).await);
    make_bucket(&moto.url()).await;
    let file = world.manifest("demo").display().to_string();
    for location in [
        file.as_str(),
        "aws-sm:sidekey/demo",
        "s3://keys/sidekey/demo.json",
    ] {
        let arn = make_key(&kms).await;
        let kek = format!("aws-kms:{arn}");
        init(&world, location, &[&kek]);
        let again = world.run(&["keyring", "init", location, "--name", "demo", "--kek", &kek]);
        assert!(
            String::from_utf8_lossy(&again.stderr).contains("a keyring already exists"),
            "{again:?}"
        );
        let sidecar = launch(
            &world,
            location,
            &["aws-kms:arn:aws:kms:eu-west-1:123456789012:key/*"],
        );
        sidecar.wait_ready();
        let mut client = sidecar.client().await;
        let first = client.encrypt(b"Ada").await.ok();
        world.succeed(&["keyring", "rotate", location, "--activate", "now"]);
        sidecar.wait_generation(3);
        // Rotating the KMS key itself, automatically or on demand, doesn't affect existing wraps.
        kms.enable_key_rotation()
            .key_id(&arn)
            .rotation_period_in_days(90)
            .send()
            .await
            .unwrap();
        kms.rotate_key_on_demand()
            .key_id(&arn)
            .send()
            .await
            .unwrap();
        // Concurrent changes all end up in the history.
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| world.succeed(&["keyring", "rotate", location]));
            }
        });
        sidecar.wait_generation(6);
        drop(sidecar);
        let sidecar = launch(&world, location, &[&kek]);
        sidecar.wait_ready();
        assert_eq!(
            sidecar.client().await.decrypt(&first.body).await.ok().body,
            "Ada"
        );
        world.succeed(&["keyring", "rewrap-kek", location, "--refresh"]);
        // AWS states the time, be it of the location or of the KEK: a clock to compare with.
        let retire = [
            "keyring",
            "disable",
            location,
            "--version",
            "1",
            "--override",
            "test",
        ];
        world.succeed(&retire);
        world.succeed(&["keyring", "enable", location, "--version", "1"]);
        world.succeed(&["keyring", "verify", location]);
        let status = world.succeed(&["keyring", "status", location, "--output", "json"]);
        assert_eq!(
            serde_json::from_str::<Value>(&status).unwrap()["versions"]
                .as_array()
                .unwrap()
                .len(),
            5
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_named_by_alias_id_or_arn() {
    let moto = Moto::start();
    let (world, kms) = (world_of(&moto.url()), kms(&moto.url()).await);
    let arn = make_key(&kms).await;
    kms.create_alias()
        .alias_name("alias/orders")
        .target_key_id(&arn)
        .send()
        .await
        .unwrap();
    let id = arn.rsplit_once('/').unwrap().1;
    for (index, name) in [
        id,
        "alias/orders",
        "arn:aws:kms:eu-west-1:123456789012:alias/orders",
    ]
    .iter()
    .enumerate()
    {
        let location = world
            .manifest(&format!("ring-{index}"))
            .display()
            .to_string();
        init(&world, &location, &[&format!("aws-kms:{name}")]);
        world.succeed(&["keyring", "verify", &location]);
    }
    // An alias that is moved to another key still opens the wraps of the previous key.
    let next = make_key(&kms).await;
    kms.update_alias()
        .alias_name("alias/orders")
        .target_key_id(&next)
        .send()
        .await
        .unwrap();
    let location = world.manifest("ring-1").display().to_string();
    world.succeed(&["keyring", "rotate", &location]);
    world.succeed(&["keyring", "verify", &location]);

    // Keys in two regions: either is enough. (moto can't decrypt under a multi-region key, whose
    // ids are longer than it expects.)
    let there = make_key(&Kms::new(&sdk(&moto.url(), "us-east-1").await)).await;
    let location = world.manifest("regions").display().to_string();
    init(
        &world,
        &location,
        &[&format!("aws-kms:{arn}"), &format!("aws-kms:{there}")],
    );
    world.succeed(&["keyring", "verify", &location]);
    let far = "aws-kms:arn:aws:kms:us-east-1:123456789012:key/*";
    world.succeed(&["keyring", "rotate", &location, "--allow-kek", far]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_reported_with_a_remedy() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(&moto.address).await;
    let (mut world, kms) = (world_of(&proxy.url()), kms(&moto.url()).await);
    let arn = make_key(&kms).await;
    let location = world.manifest("demo").display().to_string();
    init(&world, &location, &[&format!("aws-kms:{arn}")]);
    let fails = |world: &World, arguments: &[&str], why: &[&str]| {
        let output = world.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?} {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(why.iter().all(|why| said.contains(why)), "{why:?}: {said}");
    };
    let verify = ["keyring", "verify", &location];
    let allow = format!("\"Action\": \"kms:Decrypt\", \"Resource\": \"{arn}\"");
    for (code, message, why) in [
        ("DisabledException", "", ["disabled", arn.as_str()]),
        (
            "KMSInvalidStateException",
            "is pending deletion",
            ["pending deletion", "cancel-key-deletion"],
        ),
        (
            "AccessDeniedException",
            "not authorized",
            [allow.as_str(), "not authorized"],
        ),
        (
            "ThrottlingException",
            "Rate exceeded",
            ["ThrottlingException", arn.as_str()],
        ),
        (
            "ExpiredTokenException",
            "The security token is expired",
            ["ExpiredToken", "expired"],
        ),
    ] {
        proxy.set(problem(code, message));
        fails(&world, &verify, &why);
    }
    proxy.set(Fault::None);
    let other = world.path("other.json").display().to_string();
    let make = |world: &World, kek: &str, why: &str| {
        fails(
            world,
            &["keyring", "init", &other, "--name", "other", "--kek", kek],
            &[why],
        );
    };
    make(
        &world,
        "aws-kms:arn:aws:s3:::bucket",
        "expected aws-kms: and a key id",
    );
    make(&world, "aws-kms:alias/nope", "NotFoundException");
    make(
        &world,
        &format!("aws-kms:{}", arn.replace(REGION, "us-west-2")),
        "check the key's region",
    );
    proxy.set(problem(
        "InvalidKeyUsageException",
        "key usage is SIGN_VERIFY",
    ));
    make(&world, &format!("aws-kms:{arn}"), "symmetric key");
    proxy.set(Fault::None);

    // A wrap of another key never gets this far, unless an operator wrote it: the words cover it.
    proxy.set(problem("InvalidCiphertextException", ""));
    fails(
        &world,
        &verify,
        &["another key made the wrap, or it was modified"],
    );
    proxy.set(Fault::None);

    world
        .env
        .retain(|(name, _)| !name.starts_with("AWS_") || !name.contains("KEY"));
    world.env.push(("AWS_CONFIG_FILE", "/nowhere".into()));
    fails(&world, &verify, &["no AWS credentials"]);
    let plain = [("AWS_ENDPOINT_URL", "http://192.0.2.1".to_owned())];
    world.env.retain(|(name, _)| *name != "AWS_ENDPOINT_URL");
    world.env.extend(plain);
    fails(&world, &verify, &["list it in `backends.plain_http`"]);
    // A service's own variable or a profile can also redirect requests.
    world
        .env
        .retain(|(name, _)| *name != "AWS_ENDPOINT_URL" && *name != "AWS_CONFIG_FILE");
    let (profile, credentials) = (
        world.path("profile"),
        [
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ],
    );
    world
        .env
        .extend(credentials.map(|(name, value)| (name, value.to_owned())));
    std::fs::write(
        &profile,
        "[default]\nservices = far\n[services far]\nkms =\n  endpoint_url = http://192.0.2.2\n",
    )
    .unwrap();
    world
        .env
        .push(("AWS_CONFIG_FILE", profile.display().to_string()));
    fails(
        &world,
        &verify,
        &[
            "http://192.0.2.2",
            "`backends.plain_http`",
            "AWS_ENDPOINT_URL_KMS",
        ],
    );
    world
        .env
        .push(("AWS_ENDPOINT_URL_KMS", "http://192.0.2.3".into()));
    fails(
        &world,
        &verify,
        &[
            "http://192.0.2.3",
            "`backends.plain_http`",
            "AWS_ENDPOINT_URL_KMS",
        ],
    );
    world.env.push(("AWS_ENDPOINT_URL_KMS", moto.url()));
    world.succeed(&verify);
    // The web identity's token would be sent there.
    world
        .env
        .push(("AWS_ENDPOINT_URL_STS", "http://192.0.2.4".into()));
    fails(
        &world,
        &verify,
        &["http://192.0.2.4", "AWS_ENDPOINT_URL_STS"],
    );
    // So it would beside an endpoint for the other services.
    let config = format!(
        "[listen]\nsocket = {:?}\n[aws]\nendpoint = {:?}\n[[keyring]]\nname = \"demo\"\n\
         location = \"demo.json\"\nkeks = [\"aws-kms:*\"]\n",
        world.path("one.sock"),
        moto.url(),
    );
    let sidecar = world.launch("one", &config, &[]);
    wait("a refused endpoint", || {
        sidecar.log().contains("AWS_ENDPOINT_URL_STS") && sidecar.log().contains("is not https")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_is_reported_although_the_sdk_retries_longer_than_the_timeout() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(&moto.address).await;
    let (world, kms) = (world_of(&proxy.url()), kms(&moto.url()).await);
    let kek = format!("aws-kms:{}", make_key(&kms).await);
    init(&world, world.manifest("demo").to_str().unwrap(), &[&kek]);
    proxy.set(problem("ThrottlingException", "Rate exceeded"));
    let config = format!(
        "[listen]\nsocket = {:?}\n[refresh]\nmax_backoff = \"100ms\"\nkek_timeout = \"1s\"\n\
         [[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = [\"aws-kms:*\"]\n",
        world.path("one.sock")
    );
    let sidecar = world.launch("one", &config, &[]);
    wait("a try that takes too long", || {
        let keks = sidecar.status()["keks"].clone();
        keks[0]["last_error"]["message"]
            .as_str()
            .is_some_and(|said| said.contains("gave up after 1s"))
    });
    let keks = sidecar.status()["keks"].clone();
    assert_eq!(keks[0]["last_error"]["code"], "throttled", "{keks}");
    assert!(sidecar.ops("/readyz").1.contains("Rate exceeded"));
    proxy.set(Fault::None);
    sidecar.wait_ready();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_creates_a_secret_or_fills_an_empty_one() {
    let moto = Moto::start();
    let (world, sdk) = (world_of(&moto.url()), sdk(&moto.url(), REGION).await);
    let secrets = aws_sdk_secretsmanager::Client::new(&sdk);
    let kek = format!("aws-kms:{}", make_key(&Kms::new(&sdk)).await);
    // An empty secret with a policy, as Terraform creates it.
    let empty = secrets
        .create_secret()
        .name("sidekey/empty")
        .send()
        .await
        .unwrap()
        .arn
        .unwrap();
    let location = format!("aws-sm:{empty}");
    let missing = world.run(&["keyring", "status", &location]);
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("there is no manifest"),
        "{missing:?}"
    );
    // Of two concurrent writers, one gets a conflict.
    let firsts: Vec<_> = std::thread::scope(|scope| {
        let init = || {
            world
                .run(&[
                    "keyring", "init", &location, "--name", "demo", "--kek", &kek,
                ])
                .status
                .success()
        };
        [scope.spawn(init), scope.spawn(init)]
            .into_iter()
            .map(|first| first.join().unwrap())
            .collect()
    });
    assert_eq!(firsts.iter().filter(|made| **made).count(), 1, "{firsts:?}");
    // The ARN names its region. In that region, the name refers to the same secret.
    let mut elsewhere = world_of(&moto.url());
    elsewhere.env.push(("AWS_REGION", "us-east-1".into()));
    let state = world.path("state").display().to_string();
    elsewhere.succeed(&[
        "keyring",
        "rotate",
        &location,
        "--activate",
        "now",
        "--state-dir",
        &state,
    ]);
    let by_name = world.succeed(&[
        "keyring",
        "status",
        "aws-sm:sidekey/empty",
        "--output",
        "json",
    ]);
    assert_eq!(
        serde_json::from_str::<Value>(&by_name).unwrap()["generation"],
        3
    );
    let sidecar = launch(&world, &location, &["aws-kms:*"]);
    sidecar.wait_ready();

    // More than a secret can hold. Filled through KMS, that would take some 4,000 calls.
    let full = almost_full(&world).await;
    secrets
        .create_secret()
        .name("sidekey/full")
        .secret_string(full)
        .send()
        .await
        .unwrap();
    let added = world.run(&["keyring", "rotate", "aws-sm:sidekey/full"]);
    let said = String::from_utf8_lossy(&added.stderr).into_owned();
    assert!(
        !added.status.success() && said.contains("longer than the 65536 bytes of a secret; use S3"),
        "{said}"
    );
}

/// Returns a manifest that fits into a secret of 65,536 bytes, and no longer does with one more
/// version. The world's commands know it.
async fn almost_full(world: &World) -> String {
    let file = world.manifest("full");
    let admin = admin(world, "full");
    let local = format!("local:{}", world.path("kek").display());
    let local = [local.parse().unwrap()];
    admin
        .init("full".parse().unwrap(), &local, Default::default())
        .await
        .unwrap();
    let mut length = 0;
    loop {
        let text = std::fs::read_to_string(&file).unwrap();
        let growth = text.len() - length;
        length = text.len();
        // Numbers may have another digit.
        if length + growth - 16 > 65_536 {
            assert!(length <= 65_536, "{length}");
            return text;
        }
        admin.rotate(&[], Takeover::Later).await.unwrap();
    }
}

/// An operator of a keyring in a file, who remembers what the world's commands remember.
fn admin(world: &World, name: &str) -> Admin {
    let location = sidekey::model::Location::File(world.manifest(name));
    let backends = backend::configured(&Default::default());
    Admin::new(location, Signing::NoKey, &backends, Clock::system())
        .unwrap()
        .with_bases(Bases {
            memory: Some(Memory::in_folder(world.path("state"))),
            ..Bases::default()
        })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_denied_and_missing_manifests_are_told_apart() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(&moto.address).await;
    let world = world_of(&proxy.url());
    let kek = format!("aws-kms:{}", make_key(&kms(&moto.url()).await).await);
    make_bucket(&moto.url()).await;
    for (location, right) in [
        (
            "s3://keys/demo.json",
            "s3:GetObject on arn:aws:s3:::keys/demo.json",
        ),
        ("aws-sm:demo", "secretsmanager:GetSecretValue"),
    ] {
        init(&world, location, &[&kek]);
        let config = format!(
            "[listen]\nsocket = {:?}\n[refresh]\npoll = \"100ms\"\nmax_backoff = \"100ms\"\n\
             manifest_bytes = \"LIMIT\"\n\
             [[keyring]]\nname = \"demo\"\nlocation = {location:?}\nkeks = [\"aws-kms:*\"]\n",
            world.path("one.sock")
        );
        let sidecar = world.launch("one", &config.replace("LIMIT", "1KiB"), &[]);
        wait("the limit", || {
            sidecar.ops("/readyz").1.contains("longer than 1024 bytes")
        });
        assert_eq!(sidecar.keyring()["last_error"]["code"], "malformed");
        drop(sidecar);
        let sidecar = world.launch("one", &config.replace("LIMIT", "1MiB"), &[]);
        sidecar.wait_ready();
        // S3 uses XML, and so would moto's response to a denied request.
        let denied = if location.starts_with("s3:") {
            Fault::Answer(
                403,
                "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>".into(),
            )
        } else {
            problem("AccessDeniedException", "not authorized")
        };
        proxy.set(denied);
        wait("the code", || {
            sidecar.keyring()["last_error"]["code"] == "source_denied"
        });
        let error = sidecar.keyring()["last_error"].clone();
        assert!(
            error["message"].as_str().unwrap().contains(right),
            "{error}"
        );
        assert!(
            sidecar
                .ops("/metrics")
                .1
                .contains("result=\"source_denied\"")
        );
        proxy.set(Fault::None);
        wait("recovery", || sidecar.keyring()["last_error"].is_null());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_failure_of_one_kms_is_covered_by_another_kek() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(&moto.address).await;
    let (world, kms) = (world_of(&proxy.url()), kms(&moto.url()).await);
    let kek = format!("aws-kms:{}", make_key(&kms).await);
    let local = format!("local:{}", world.path("kek").display());
    let location = world.manifest("demo").display().to_string();
    init(&world, &location, &[&kek, &local]);
    let faults = [
        ("denied", problem("AccessDeniedException", "no")),
        ("exchanged", Fault::Forged(another_key)),
        // These faults aren't waited for: while the SDK retries, the other KEK is asked and answers
        // first.
        ("", Fault::Answer(500, "{}".into())),
        ("", Fault::Slow(Duration::from_secs(3600))),
        ("", Fault::Hang),
    ];
    let mut generation = 1;
    for (result, fault) in faults {
        proxy.set(fault);
        // At startup, with a timeout that is longer than any test.
        let sidecar = launch(&world, &location, &[&kek, &local]);
        sidecar.wait_ready();
        sidecar.client().await.encrypt(b"x").await.ok();
        if !result.is_empty() {
            let line = format!(
                "sidekey_kek_requests_total{{kek=\"{kek}\",operation=\"unwrap\",\
                 result=\"{result}\"}}"
            );
            assert!(
                sidecar.ops("/metrics").1.contains(&line),
                "{result}: {}",
                sidecar.ops("/metrics").1
            );
            let keks = sidecar.status()["keks"].clone();
            let failed = keks
                .as_array()
                .unwrap()
                .iter()
                .find(|found| found["uri"] == kek.as_str())
                .unwrap();
            assert_eq!(failed["last_error"]["code"], result, "{keks}");
        }
        // And on a refresh.
        proxy.set(Fault::None);
        world.succeed(&["keyring", "rotate", &location, "--activate", "now"]);
        generation += 2;
        sidecar.wait_generation(generation);
    }
    proxy.kill();
    let sidecar = launch(&world, &location, &[&kek, &local]);
    sidecar.wait_ready();
    wait("every version", || {
        sidecar.keyring()["last_error"].is_null()
    });
    assert!(sidecar.ops("/metrics").1.contains(&format!(
        "operation=\"unwrap\",result=\"ok\"}} {}",
        generation.div_ceil(2)
    )));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_start_calls_kms_once_per_version() {
    const KEYRINGS: usize = 40;
    const VERSIONS: usize = 5;
    let moto = Moto::start();
    let proxy = FaultProxy::before(&moto.address).await;
    let (world, kms) = (world_of(&proxy.url()), kms(&moto.url()).await);
    let arn = make_key(&kms).await;
    let kek: sidekey::model::KekUri = format!("aws-kms:{arn}").parse().unwrap();
    // Created under a local KEK, which is fast, then moved to KMS.
    let local: sidekey::model::KekUri = format!("local:{}", world.path("kek").display())
        .parse()
        .unwrap();
    let names: Vec<String> = (0..KEYRINGS).map(|index| format!("ring-{index}")).collect();
    for name in &names {
        let admin = admin(&world, name);
        admin
            .init(
                name.parse().unwrap(),
                std::slice::from_ref(&local),
                Default::default(),
            )
            .await
            .unwrap();
        for _ in 1..VERSIONS {
            admin.rotate(&[], Takeover::Later).await.unwrap();
        }
    }
    let moves = names.iter().map(|name| {
        let (world, kek, local) = (&world, kek.as_str(), local.as_str());
        let location = world.manifest(name).display().to_string();
        move || {
            drop(world.succeed(&[
                "keyring",
                "rewrap-kek",
                &location,
                "--add",
                kek,
                "--remove",
                local,
            ]))
        }
    });
    let moves: Vec<_> = moves.collect();
    std::thread::scope(|scope| {
        for chunk in moves.chunks(KEYRINGS.div_ceil(4)) {
            scope.spawn(move || chunk.iter().for_each(|step| step()));
        }
    });
    let before = proxy.count("Decrypt");
    let keyrings: String = names
        .iter()
        .map(|name| {
            format!(
                "[[keyring]]\nname = {name:?}\nlocation = \"{name}.json\"\n\
                 keks = [\"aws-kms:{arn}\"]\n"
            )
        })
        .collect();
    let socket = world.path("one.sock");
    // Without hedging or polling, only the startup is counted.
    let config = format!(
        "[listen]\nsocket = {socket:?}\n[refresh]\npoll = \"1d\"\nkek_timeout = \"1m\"\n{keyrings}"
    );
    let sidecar = world.start_with("one", &config, &[]);
    wait("every version", || {
        let status = sidecar.status();
        status["keyrings"]
            .as_array()
            .unwrap()
            .iter()
            .all(|keyring| {
                let versions = keyring["active"]["versions"].as_array();
                versions.is_some_and(|versions| {
                    versions.len() == VERSIONS
                        && versions.iter().all(|version| version["unopened"].is_null())
                })
            })
    });
    let asked = proxy.count("Decrypt") - before;
    println!(
        "a cold start with {KEYRINGS} keyrings of {VERSIONS} versions asked KMS {asked} times"
    );
    assert!(asked <= KEYRINGS * VERSIONS, "{asked}");
    assert!(Path::new(&socket).exists());
}
