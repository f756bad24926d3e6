//! Served secrets: behavior common to all providers.

mod changes;
mod memory;
mod requests;
mod wildcards;

use hyper::Method;

use crate::app::testing::{Answer, Client};

const BYTES: (&str, &str) = ("accept", "application/octet-stream");

/// Returns a secret's config, with more lines. The sidecar is ready without its value.
fn entry(name: &str, source: &str, more: &str) -> String {
    format!("[[secret]]\nname = {name:?}\nsource = {source:?}\n{more}\n")
}

/// Requests a secret as JSON. `path` is a name, or a name and a query.
async fn get(client: &mut Client, path: &str) -> Answer {
    client.get(&format!("/v1/secrets/{path}")).await
}

/// Requests a secret as bytes.
async fn get_bytes(client: &mut Client, path: &str) -> Answer {
    let path = format!("/v1/secrets/{path}");
    client.send(Method::GET, &path, &[BYTES], "").await
}

/// Returns a secret's text.
async fn text(client: &mut Client, path: &str) -> String {
    let answer = get_bytes(client, path).await.ok();
    String::from_utf8(answer.body.to_vec()).expect("text")
}
