//! Settings: one TOML file, validated whole.

mod names;

pub use names::{KekUri, KeyringName, Location, Malformed, SignerKey, Span, Wave};
