//! What users see, tested across processes: the built binary, real files, real sockets.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "tests")]

mod alerts;
mod audit;
mod aws;
mod aws_logins;
mod azure;
mod azure_fake;
mod backup;
mod bad_input;
mod batches;
mod certificates;
mod commands;
mod durability;
mod events;
mod exec;
mod failover;
mod fault_proxy;
mod formats;
mod fuzz;
mod harness;
mod https;
mod in_place;
mod keks;
mod layers;
mod listeners;
mod openapi;
mod operations;
mod packages;
mod pkcs11;
mod recipes;
mod rotation;
mod scan;
mod secrecy;
mod secrets;
mod secrets_aws;
mod secrets_azure;
mod secrets_vault;
mod served_secrets;
mod servers;
mod small_server;
mod streams;
mod tls;
mod vault;
mod vault_habits;
mod vault_kubernetes;
