//! Tests against real backends and tools: Vault, OpenBao, moto, kube-apiserver, Redis, PostgreSQL,
//! SoftHSM, helm, rsyslog, promtool, schemathesis, openssl, curl, Python, Node.js and bash; some
//! require root.
//! `integration/run` installs all of them and runs this target; plain `cargo test` leaves it out.
//! Any missing tool fails a test.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "the other test target uses the rest")]
#[path = "../support/mod.rs"]
mod support;

mod aws {
    mod keys;
    mod logins;
    mod secrets;
}
mod azure {
    mod keys;
    mod secrets;
}
mod completions;
mod exec;
mod failover;
mod https;
mod hub;
mod kubernetes {
    mod chart;
}
mod openapi;
mod ownership;
mod pkcs11;
mod prometheus;
mod readme;
mod recipes;
mod syslog;
mod tls;
mod vault {
    mod habits;
    mod keys;
    mod kubernetes;
    mod load;
    mod secrets;
    mod static_roles;
}
