//! Shared by the tests against Vault: a world that reaches it, its policies, and a sidecar that
//! logs in.

use std::fs;

use super::{
    harness::{Sidecar, World, wait},
    servers::Vault,
};

pub const KEK: &str = "vault-transit:transit/kek";

pub const MANIFEST: &str = "vault-kv:secret/sidekey/demo";

/// The rights that a sidecar needs.
pub const SIDECAR: &[(&str, &str)] = &[
    ("transit/decrypt/kek", "update"),
    ("secret/data/sidekey/*", "read"),
];

/// Returns a world whose commands use `vault` as root.
pub fn world_of(vault: &Vault) -> World {
    let mut world = World::new();
    world.env.extend([
        ("VAULT_ADDR", vault.address.clone()),
        ("VAULT_TOKEN", vault.token.clone()),
    ]);
    world
}

pub fn init(world: &World, location: &str) {
    world.succeed(&["keyring", "init", location, "--name", "demo", "--kek", KEK]);
}

pub fn launch(world: &World, vault: &Vault, location: &str, login: &str) -> Sidecar {
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\n[refresh]\npoll = \"100ms\"\nmax_backoff = \"100ms\"\n\
         [vault]\naddress = {:?}\n[vault.login]\n{login}\n\
         [[keyring]]\nname = \"demo\"\nlocation = {location:?}\n\
         keks = [\"vault-transit:transit/*\"]\n",
        vault.address
    );
    world.launch("one", &config, &[])
}

pub fn token_file(world: &World, token: &str) -> String {
    fs::write(world.path("token"), token).unwrap();
    "method = \"token-file\"\ntoken_file = \"token\"".into()
}

/// Adds a version, which the sidecar can unwrap only if it is logged in.
pub fn rotate_and_wait(world: &World, sidecar: &Sidecar, version: u64) {
    world.keyring("rotate", "demo", &["--activate", "now"]);
    wait("the new version", || {
        sidecar.keyring()["active"]["encrypting"] == version
    });
}
