//! Shared by the tests against moto: a world that uses moto as AWS, and the SDK's own clients.

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kms::{Client as Kms, config::Credentials};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    fault_proxy::Fault,
    harness::{Sidecar, World},
};

pub const REGION: &str = "eu-west-1";

pub async fn sdk(url: &str, region: &'static str) -> SdkConfig {
    let credentials = Credentials::new("test", "test", None, None, "test");
    let loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(region))
        .endpoint_url(url);
    loader.credentials_provider(credentials).load().await
}

pub async fn kms(url: &str) -> Kms {
    Kms::new(&sdk(url, REGION).await)
}

/// Creates a key and returns its ARN.
pub async fn make_key(kms: &Kms) -> String {
    kms.create_key()
        .send()
        .await
        .unwrap()
        .key_metadata
        .unwrap()
        .arn
        .unwrap()
}

/// Returns a world whose processes use `url` as AWS.
pub fn world_of(url: &str) -> World {
    let mut world = World::new();
    let variables = [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", REGION),
        ("AWS_ENDPOINT_URL", url),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    world.env.extend(variables);
    world
}

pub fn launch(world: &World, location: &str, keks: &[&str]) -> Sidecar {
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\n[refresh]\npoll = \"100ms\"\nmax_backoff = \"100ms\"\n\
         kek_timeout = \"1d\"\n\
         [[keyring]]\nname = \"demo\"\nlocation = {location:?}\nkeks = {keks:?}\n"
    );
    world.launch("one", &config, &[])
}

pub fn init(world: &World, location: &str, keks: &[&str]) {
    let keks = keks.iter().flat_map(|kek| ["--kek", kek]);
    world.succeed(
        &["keyring", "init", location, "--name", "demo"]
            .into_iter()
            .chain(keks)
            .collect::<Vec<_>>(),
    );
}

pub fn problem(code: &str, message: &str) -> Fault {
    Fault::Answer(
        400,
        json!({ "__type": code, "message": message }).to_string(),
    )
}

/// Replaces the plaintext in the response with another key of the same length.
pub fn another_key(answer: &str) -> String {
    let mut answer: Value = serde_json::from_str(answer).unwrap();
    answer["Plaintext"] = json!(STANDARD.encode([7; 32]));
    answer.to_string()
}
