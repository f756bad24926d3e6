//! A whole sidecar against fakes, with time under control.

#![allow(clippy::unwrap_used, reason = "tests")]

mod api;
#[cfg(feature = "https-client")]
mod audit;
mod clock;
mod fleet;
mod hub;
mod lifecycle;
mod manifests;
mod operators;
mod outages;
mod reload;
mod renders;
mod rollouts;
mod rotation;
mod secrets;
mod spread;
mod starting;
mod succession;
mod timeouts;
