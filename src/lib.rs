//! Sidekey: a per-pod sidecar that decrypts on behalf of applications. ARCHITECTURE.md shows how the modules stand to each other.

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
pub mod exec;
pub mod http;
pub mod in_place;
pub mod keyring;
pub mod lifecycle;
pub mod model;
pub mod ops;
pub mod policy;
pub mod refresh;
pub mod render;
pub mod scan;
pub mod secrets;
pub mod session;
pub mod telemetry;
pub mod template;
pub mod wire;
