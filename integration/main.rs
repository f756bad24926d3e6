//! What users see, tested across processes: the built binary, real files, real sockets. These tests
//! need neither a server nor root; those that do are in integration/backends.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "the other test target uses the rest")]
mod support;

mod api {
    mod events;
    mod listeners;
    mod openapi;
    mod reload;
}
mod docs {
    mod alerts;
    mod pages;
    mod runbooks;
}
mod hub {
    mod process;
}
mod keyring {
    mod audit;
    mod backup;
    mod formats;
    mod https;
    mod keks;
    mod rotation;
}
mod safety {
    mod durability;
    mod fuzz;
    mod output;
    mod processes;
    mod secrecy;
}
mod secrets {
    mod files;
    mod networks;
    mod render;
}
mod source {
    mod layers;
}
mod tools {
    mod commands;
    mod exec;
    mod fleet;
    mod in_place;
    mod packages;
    mod rollout;
    mod scan;
    mod signer;
    mod streams;
}
