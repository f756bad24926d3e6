//! The sidecar behaves as its OpenAPI document says, checked by schemathesis, which generates
//! requests from it.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::support::{
    harness::{World, uid},
    servers::installed,
};

const DOCUMENT: &str = include_str!("../../docs/openapi.json");

const HOOKS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/integration/backends/openapi_hooks.py"
);

#[test]
fn generated_requests_match_the_document() {
    let world = World::with_demo();
    let token = "0123456789abcdef0123456789abcdef";
    fs::write(world.path("token"), token).unwrap();
    fs::set_permissions(
        world.path("token"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let listen = format!(
        "[listen]\nsocket = {:?}\ntcp = \"127.0.0.1:0\"\ntoken_file = \"token\"\n",
        world.path("one.sock")
    );
    let operations = r#"["encrypt", "decrypt", "rewrap", "inspect", "data-key"]"#;
    let rule = format!(
        "[[policy]]\nkeyrings = \"*\"\noperations = {operations}\nsecrets = \"*\"\ntoken = true\n\
         uids = [{}]\n",
        uid()
    );
    fs::write(world.path("db"), r#"{"password":"one"}"#).unwrap();
    let rule = format!("{rule}[[secret]]\nname = \"db\"\nsource = \"file:db\"\nrequired = true\n");
    let sidecar = world.start_with("one", &format!("{listen}{rule}"), &["demo"]);
    // A name generated from the pattern would hardly ever match a keyring.
    let mut document: Value = serde_json::from_str(DOCUMENT).unwrap();
    document["components"]["parameters"]["Keyring"]["schema"] =
        json!({ "enum": ["demo", "other"] });
    document["components"]["parameters"]["Secret"]["schema"] = json!({ "enum": ["db", "other"] });
    // A generated version never becomes available, so waiting for it returns 503. The value is not
    // base64.
    let parameters = document["paths"]["/v1/secrets/{secret}"]["get"]["parameters"]
        .as_array_mut()
        .unwrap();
    parameters
        .retain(|parameter| !matches!(parameter["name"].as_str(), Some("min_version" | "decode")));
    fs::write(world.path("openapi.json"), document.to_string()).unwrap();
    let output = Command::new(installed("moto/bin/schemathesis"))
        .args([
            "run",
            "openapi.json",
            "--url",
            &format!("http://{}", sidecar.tcp.unwrap()),
        ])
        .args(["--header", &format!("Authorization: Bearer {token}")])
        // This stream never ends.
        .args(["--exclude-path", "/v1/events"])
        // No generated ciphertext decrypts.
        .args([
            "--checks",
            "all",
            "--exclude-checks",
            "positive_data_acceptance",
        ])
        .args([
            "--max-examples",
            "40",
            "--seed",
            "1",
            "--no-color",
            "--generation-database",
            "none",
        ])
        .env("SCHEMATHESIS_HOOKS", HOOKS)
        .env("SIDEKEY_SOCKET", &sidecar.socket)
        .current_dir(world.path(""))
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    // Every operation succeeded at least once.
    let metrics = sidecar.ops("/metrics").1;
    assert!(
        metrics.contains("sidekey_secret_requests_total{secret=\"db\",code=\"ok\"}"),
        "{said}"
    );
    for operation in ["encrypt", "decrypt", "rewrap", "data-key", "inspect"] {
        let line = format!(
            r#"sidekey_requests_total{{keyring="demo",operation="{operation}",code="ok"}}"#
        );
        let count = metrics
            .lines()
            .find_map(|found| found.strip_prefix(&line)?.trim().parse::<u64>().ok());
        assert!(count > Some(0), "{operation}: {count:?}\n{said}");
    }
}
