//! A sidecar whose manifest is on a web server.

use super::harness::{Sidecar, World};

/// Starts a sidecar whose only keyring is read from `url`.
pub fn launch(world: &World, url: &str, config: &str) -> Sidecar {
    let socket = world.path("one.sock");
    let keyring =
        format!("[[keyring]]\nname = \"demo\"\nlocation = {url:?}\nkeks = [\"local:*\"]\n");
    world.launch(
        "one",
        &format!("[listen]\nsocket = {socket:?}\n{config}{keyring}"),
        &[],
    )
}
