//! Settings: one TOML file, validated whole.

mod names;
mod parse;
mod reader;
mod settings;

pub use names::{KekPattern, KekScope, KekUri, KeyringName, Location, Malformed, SignerKey, Span, Wave};
pub use parse::{LoadError, Problem, Problems, load, parse};
pub use settings::{
    Confirm, Keyring, Limits, Listen, Log, LogFormat, Operation, Ops, Refresh, Rule, Runtime, Settings, Tcp, Timeouts,
};
