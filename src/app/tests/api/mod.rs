//! The applications' API.

mod bad_input;
mod batches;
mod data_keys;
mod events;
mod listeners;
mod operations;
mod plain_clients;
mod shares;
mod spellings;
mod strangers;
mod streams;
#[cfg(feature = "tls")]
mod tls;

use crate::{
    admin::Takeover,
    app::testing::World,
    keyring::{self, Evidence},
};

/// Adds a version to `demo` that becomes primary at once.
async fn rotate(world: &World) {
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.expect("rotated");
}

/// Disables a version of `demo`.
async fn disable(world: &World, version: u32) {
    let evidence = Evidence::Override("a test".into());
    world
        .admin("demo")
        .change(|current, now| keyring::disable(current, version, &evidence, now))
        .await
        .expect("disabled");
}
