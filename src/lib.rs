//! Sidekey: a per-pod sidecar that encrypts and decrypts for the applications next to it.
//! ARCHITECTURE.md describes the modules and their layers.

// These macros panic if the stream is closed, and hold a lock while they wait for its reader.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod admin;
pub mod api;
pub mod app;
pub mod audit;
pub mod backend;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod encoding;
pub mod exec;
pub mod files;
pub mod fleet;
pub mod http;
#[cfg(feature = "hub")]
pub mod hub;
pub mod in_place;
#[cfg(feature = "tls")]
pub mod join;
#[cfg(not(feature = "tls"))]
#[path = "join/no_tls.rs"]
pub mod join;
pub mod keks;
pub mod keyring;
pub mod ledger;
pub mod lifecycle;
pub mod model;
pub mod ops;
pub mod orders;
pub mod policy;
pub mod refresh;
pub mod render;
pub mod rollout;
pub mod runner;
pub mod scan;
pub mod schedule;
pub mod secrets;
pub mod session;
pub mod signer;
pub mod telemetry;
pub mod template;
pub mod wire;
