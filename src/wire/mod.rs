//! What both ends of Sidekey's APIs agree on: media types, problem codes, the binary batch,
//! `/status`, proofs, events, what a sidecar and a hub exchange, and names in certificates.
//! docs/api.md specifies the formats.

#[cfg(feature = "tls")]
mod certificate;
mod code;
mod frames;
pub mod hub;
mod in_base64;
mod in_hex;
pub mod orders;
pub mod proof;
mod server_events;
pub mod status;

#[cfg(feature = "tls")]
pub use certificate::CertificateNames;
pub use code::Code;
pub use frames::{Frame, Frames};
pub use server_events::{EventParser, EventTooLong, ServerEvent};

/// Media type of raw bytes.
pub const OCTETS: &str = "application/octet-stream";
/// Media type of JSON.
pub const JSON: &str = "application/json";
/// Media type of a binary batch, in requests and responses.
pub const BATCH: &str = "application/vnd.sidekey.batch";
/// Media type of server-sent events.
pub const EVENTS: &str = "text/event-stream";
/// Media type of problem details (RFC 9457).
pub const PROBLEM: &str = "application/problem+json";

/// Header with the AAD in base64.
pub const AAD_HEADER: &str = "sidekey-aad";

/// First byte of a batch request whose items share the AAD in the `Sidekey-Aad` header.
pub const SHARED_AAD: u8 = 0;
/// First byte of a batch request in which each frame starts with the item's own AAD.
pub const ITEMS_HAVE_AAD: u8 = 1;
/// First byte of a batch response's frame that contains a result.
pub const DONE: u8 = 0;
/// First byte of a batch response's frame that contains problem details.
pub const FAILED: u8 = 1;
