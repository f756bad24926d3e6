//! Settings: one TOML file, validated whole.

mod audit;
mod backends;
mod parse;
mod reader;
mod render;
mod secrets;
mod settings;
mod tls;

pub use audit::{Audit, AuditSink};
pub use backends::{Aws, Azure, AzureLogin, Backends, Local, Pkcs11, Vault, VaultLogin, Web};
pub use parse::{LoadError, Problem, Problems, load, parse};
pub use render::{Content, Notice, Render, Signal};
pub use secrets::{Keeping, Secret, SecretMapping, Secrets};
pub use settings::{
    Confirm, Keyring, Limits, Listen, Log, LogFormat, Ops, Refresh, Rule, Runtime, Settings, Tcp,
    Timeouts,
};
pub use tls::{Tls, TlsClients, TlsVersion};
