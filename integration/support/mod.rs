//! Shared by all tests: sidecars, servers, fakes and certificates. No test uses another test's
//! module.

pub mod aws;
pub mod azure;
pub mod azure_fake;
pub mod certificates;
pub mod docs;
pub mod events;
pub mod exec;
pub mod fault_proxy;
pub mod files;
pub mod golden;
pub mod harness;
pub mod holder;
pub mod hub;
pub mod in_place;
pub mod kubernetes;
pub mod lying_hub;
pub mod namespace;
pub mod postgres;
pub mod served_secrets;
pub mod servers;
pub mod small_server;
pub mod vault;
pub mod web;
