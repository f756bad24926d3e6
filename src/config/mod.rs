//! Settings: one TOML file, validated whole.

mod names;
mod settings;

pub use names::{KekUri, KeyringName, Location, Malformed, SignerKey, Span, Wave};
pub use settings::{
    Confirm, Keyring, Limits, Listen, Log, LogFormat, Operation, Ops, Refresh, Rule, Runtime, Settings, Tcp, Timeouts,
};
