//! Shared by the tests against the fake of Azure.

use std::fs;

use super::{
    azure_fake::{ASSERTION, AzureFake, CLIENT, SECRET, TENANT},
    certificates::issue,
    harness::World,
};

pub async fn fake() -> (World, AzureFake) {
    let mut world = World::new();
    issue(
        &world.path(""),
        &[("server", "subjectAltName=IP:127.0.0.1,DNS:localhost")],
    );
    let fake = AzureFake::start(&world.path("")).await;
    fs::write(world.path("secret"), format!("{SECRET}\n")).unwrap();
    fs::write(world.path("projected"), ASSERTION).unwrap();
    fs::write(
        world.path("azure.toml"),
        config(&world, &fake, "client-secret", &[]),
    )
    .unwrap();
    // Clears what the test machine's environment would provide.
    world.env.push(("AZURE_CLIENT_SECRET", String::new()));
    (world, fake)
}

/// Returns a config that reaches the fake, for a sidecar or a command.
pub fn config(world: &World, fake: &AzureFake, login: &str, keks: &[&str]) -> String {
    let keks = if keks.is_empty() {
        &["azure-kv:*"]
    } else {
        keks
    };
    format!(
        "[listen]\nsocket = {:?}\n[refresh]\npoll = \"100ms\"\nmax_backoff = \"100ms\"\n\
         [azure]\nlogin = {login:?}\ntenant_id = {TENANT:?}\nclient_id = {CLIENT:?}\n\
         client_secret_file = \"secret\"\n\
         token_file = \"projected\"\nauthority = {:?}\nca_file = \"ca.pem\"\n\
         verify_challenge = false\n\
         [[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\nkeks = {keks:?}\n",
        world.path("one.sock"),
        fake.url
    )
}
