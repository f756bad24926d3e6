//! The vocabulary: names, URIs, waves, durations, operations and conversions, each parsed once and
//! valid from then on.

mod anchor;
mod certificate;
mod collector;
mod conversion;
mod http_url;
mod hub_url;
mod names;
mod operation;
mod ops_url;
mod secrets;
mod signer;
mod span;
mod uris;

pub use anchor::Anchor;
pub use certificate::CertificateName;
pub use collector::Collector;
pub use conversion::Conversion;
pub use http_url::HttpUrl;
pub use hub_url::HubUrl;
pub use names::{KeyringName, Malformed, SecretName, Wave};
pub use operation::Operation;
pub use ops_url::OpsUrl;
pub use secrets::{NamePattern, SecretSource};
pub use signer::SignerKey;
pub use span::Span;
pub use uris::{KekPattern, KekScope, KekUri, Location};
