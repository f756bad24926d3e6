mod any_text;
mod problems;
mod settings;
mod tables;

use super::*;

const FILE: &str = "/etc/sidekey/sidekey.toml";

const MINIMAL: &str = r#"
        listen.socket = "sidekey.sock"
        keyring = [{ name = "orders", location = "orders.json", keks = ["local:kek"] }]
    "#;

const FULL: &str = r#"
wave = "canary"

[listen]
socket = "/run/sidekey/sidekey.sock"
mode = "0600"
owner = "app"
group = 1000
tcp = "[::1]:8200"
token_file = "token"

[ops]
listen = "0.0.0.0:9000"
hosts = ["sidekey.prod.svc"]

[limits]
body = "2MiB"
json_body = 8388608
body_memory = "128MiB"
batch_items = 10
connections = 20
header_bytes = "8KiB"
streams = 30

[timeouts]
header = "1s"
body = "2s"
idle = "1m 30s"
drain_timeout = "1d"

[log]
format = "json"
level = "info,sidekey=debug"

[refresh]
poll = "100ms"
read_timeout = "3s"
kek_timeout = "4s"
unknown_interval = "5s"
miss_ttl = "6s"
max_backoff = "7s"
hedge = "8s"
cache_dir = "copies"
manifest_bytes = "32MiB"

[runtime]
workers = 2

[[keyring]]
name = "orders"
location = "orders.json"
confirm = "stamp"
min_generation = 18446744073709551615
trusted_signers = ["ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
wave = "critical"

[[keyring]]
name = "users"
location = "file:/var/lib/users.json"
keks = ["local:keks/*", "aws-kms:alias/users"]

[[policy]]
keyrings = ["orders"]
operations = ["encrypt", "inspect"]
uids = [1000, "root"]
gids = ["root", 7]

[[policy]]
keyrings = ["users", "*"]
operations = "*"
token = true
"#;

fn parsed(text: &str) -> Settings {
    parse(Path::new(FILE), text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn problems(text: &str) -> String {
    parse(Path::new("c.toml"), text)
        .expect_err("no problem")
        .to_string()
}

/// Returns the problems of the minimal file followed by `more`.
fn problems_with(more: &str) -> String {
    problems(&format!("{}\n{more}", MINIMAL.trim()))
}
