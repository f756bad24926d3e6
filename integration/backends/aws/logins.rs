//! Sources of AWS credentials: a web identity (IRSA) at moto's STS, and fakes of the EKS Pod
//! Identity agent and the instance metadata service, which no emulator fully supports. Also the
//! endpoint to which the credentials are sent.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::support::{
    aws::{init, kms, launch, make_key, world_of},
    harness::{World, wait},
    servers::Moto,
    small_server::{Reply, header, serve},
};

/// Returns a keyring under a key of `moto`, and a world without credentials in its environment.
async fn without_credentials(moto: &Moto) -> World {
    let mut world = world_of(&moto.url());
    let kek = format!("aws-kms:{}", make_key(&kms(&moto.url()).await).await);
    init(&world, world.manifest("demo").to_str().unwrap(), &[&kek]);
    world
        .env
        .retain(|(name, _)| !name.starts_with("AWS_") || !name.contains("KEY"));
    world.env.push(("AWS_CONFIG_FILE", "/nowhere".into()));
    world
        .env
        .push(("AWS_SHARED_CREDENTIALS_FILE", "/nowhere".into()));
    world
}

/// Credentials in the format that both fakes return.
fn credentials(lifetime: SignedDuration) -> String {
    let end = Timestamp::now().checked_add(lifetime).unwrap();
    json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": "ASIAFAKE",
        "SecretAccessKey": "a-secret-of-the-fake",
        "Token": "a-session-of-the-fake",
        "Expiration": end.to_string(),
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_identity_logs_in_at_sts() {
    let moto = Moto::start();
    let mut world = without_credentials(&moto).await;
    let refused = world.run(&[
        "keyring",
        "verify",
        world.manifest("demo").to_str().unwrap(),
    ]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("no AWS credentials"),
        "{refused:?}"
    );
    world.env.push((
        "AWS_ROLE_ARN",
        "arn:aws:iam::123456789012:role/orders".into(),
    ));
    world.env.push((
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        world.path("projected").display().to_string(),
    ));
    // The token doesn't exist yet and appears later.
    let sidecar = launch(&world, "demo.json", &["aws-kms:*"]);
    wait("the reason", || {
        sidecar.ops("/readyz").1.contains("credentials")
    });
    fs::write(world.path("projected"), "a.projected.token").unwrap();
    sidecar.wait_ready();
    assert!(
        !sidecar.log().contains("a.projected.token"),
        "{}",
        sidecar.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fake_of_eks_pod_identity_gives_credentials_for_a_projected_token() {
    let moto = Moto::start();
    let mut world = without_credentials(&moto).await;
    let (valid, asked) = (Arc::new(Mutex::new("first")), Arc::new(AtomicUsize::new(0)));
    let url = serve({
        let (valid, asked) = (Arc::clone(&valid), Arc::clone(&asked));
        move |head| {
            if header(head, "authorization") != Some(*valid.lock().unwrap()) {
                return Reply::new("401 Unauthorized", "", "");
            }
            asked.fetch_add(1, Ordering::SeqCst);
            // The credentials are so short-lived that every use requests new ones.
            Reply::new(
                "200 OK",
                "Content-Type: application/json\r\n",
                credentials(SignedDuration::from_secs(5)),
            )
        }
    });
    fs::write(world.path("projected"), "first").unwrap();
    world.env.push((
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        format!("{url}/v1/credentials"),
    ));
    world.env.push((
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        world.path("projected").display().to_string(),
    ));
    let sidecar = launch(&world, "demo.json", &["aws-kms:*"]);
    sidecar.wait_ready();
    // The kubelet writes another token.
    *valid.lock().unwrap() = "second";
    fs::write(world.path("projected"), "second").unwrap();
    let before = asked.load(Ordering::SeqCst);
    let manifest = world.manifest("demo").display().to_string();
    // Rotated by an operator with separate credentials.
    let state = world.path("state").display().to_string();
    let rotate = ["keyring", "rotate", &manifest, "--activate", "now"];
    world_of(&moto.url()).succeed(&[&rotate[..], &["--state-dir", &state]].concat());
    wait("the next version", || {
        sidecar.keyring()["active"]["encrypting"] == 2
    });
    assert!(
        asked.load(Ordering::SeqCst) > before,
        "with the current token"
    );
    assert!(
        !sidecar.log().contains("a-secret-of-the-fake"),
        "{}",
        sidecar.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fake_of_an_instances_metadata_gives_credentials_and_the_region() {
    let moto = Moto::start();
    let mut world = without_credentials(&moto).await;
    let url = serve(|head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let session = "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n";
        if head.starts_with("PUT /latest/api/token ") {
            return Reply::new("200 OK", session, "a-session");
        }
        // IMDSv2: every request requires a session.
        if header(head, "x-aws-ec2-metadata-token") != Some("a-session") {
            return Reply::new("401 Unauthorized", "", "");
        }
        match path {
            "/latest/meta-data/iam/security-credentials/" => Reply::new("200 OK", "", "orders"),
            "/latest/meta-data/iam/security-credentials/orders" => {
                Reply::new("200 OK", "", credentials(SignedDuration::from_hours(6)))
            }
            "/latest/meta-data/placement/region" => {
                Reply::new("200 OK", "", crate::support::aws::REGION)
            }
            _ => Reply::new("404 Not Found", "", ""),
        }
    });
    world
        .env
        .retain(|(name, _)| *name != "AWS_EC2_METADATA_DISABLED" && *name != "AWS_REGION");
    world.env.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT", url));
    launch(&world, "demo.json", &["aws-kms:*"]).wait_ready();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fips_endpoints_are_used_if_configured() {
    let moto = Moto::start();
    let mut world = world_of(&moto.url());
    let kek = format!("aws-kms:{}", make_key(&kms(&moto.url()).await).await);
    init(&world, world.manifest("demo").to_str().unwrap(), &[&kek]);
    for (fips, host) in [
        ("true", "kms-fips.eu-west-1.amazonaws.com:443"),
        ("false", "kms.eu-west-1.amazonaws.com:443"),
    ] {
        assert_eq!(first_host(&mut world, fips), host);
    }
    // A web identity logs in first.
    let mut world = without_credentials(&moto).await;
    fs::write(world.path("projected"), "a.projected.token").unwrap();
    world.env.push((
        "AWS_ROLE_ARN",
        "arn:aws:iam::123456789012:role/orders".into(),
    ));
    world.env.push((
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        world.path("projected").display().to_string(),
    ));
    for (fips, host) in [
        ("true", "sts-fips.eu-west-1.amazonaws.com:443"),
        ("false", "sts.eu-west-1.amazonaws.com:443"),
    ] {
        assert_eq!(first_host(&mut world, fips), host);
    }
}

/// Returns the host that a sidecar connects to first. Its proxy forwards nothing, but sees that.
fn first_host(world: &mut World, fips: &str) -> String {
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    world
        .env
        .retain(|(name, _)| *name != "AWS_ENDPOINT_URL" && *name != "HTTPS_PROXY");
    world.env.push(("HTTPS_PROXY", url));
    let config = format!(
        "[listen]\nsocket = {:?}\n[aws]\nfips = {fips}\n[[keyring]]\nname = \"demo\"\n\
         location = \"demo.json\"\nkeks = [\"aws-kms:*\"]\n",
        world.path("one.sock")
    );
    let _sidecar = world.launch("one", &config, &[]);
    let mut first = String::new();
    BufReader::new(proxy.accept().unwrap().0)
        .read_line(&mut first)
        .unwrap();
    let host = first
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next());
    host.expect("a request to a proxy").to_owned()
}
