//! A whole sidecar against fakes, with time under control.

mod api;
mod lifecycle;
mod outages;
mod rotation;
mod secrets;
mod timeouts;
