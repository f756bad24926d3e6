//! Settings: one TOML file, validated whole.

mod audit;
mod backends;
mod names;
mod parse;
mod reader;
mod render;
mod secrets;
mod settings;
mod tls;
mod uris;

pub use audit::{Audit, AuditSink};
pub use backends::{Aws, Azure, AzureLogin, Backends, Local, Pkcs11, Vault, VaultLogin, Web};
pub use names::{KeyringName, Malformed, SecretName, SignerKey, Span, Wave};
pub use parse::{LoadError, Problem, Problems, load, parse};
pub use render::{Content, Notice, Render, Signal, temporary_beside};
pub use secrets::{Keeping, NamePattern, Secret, SecretMapping, SecretSource, Secrets};
pub use settings::{
    Confirm, Keyring, Limits, Listen, Log, LogFormat, Operation, Ops, Refresh, Rule, Runtime,
    Settings, Tcp, Timeouts,
};
pub use tls::{CertificateName, Tls, TlsClients, TlsVersion};
#[cfg(feature = "vault")]
pub(crate) use uris::is_path_segment;
pub use uris::{KekPattern, KekScope, KekUri, Location};
