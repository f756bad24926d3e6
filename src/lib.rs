//! Sidekey: a per-pod sidecar that decrypts on behalf of applications.

pub mod backend;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod keyring;
pub mod policy;
pub mod refresh;
pub mod telemetry;
