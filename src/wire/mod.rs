//! What both ends of the application API agree on (docs/api.md has every byte): content types and the binary batch.

mod frames;

pub use frames::{Frame, Frames};

/// Bytes as they are.
pub const OCTETS: &str = "application/octet-stream";
/// JSON.
pub const JSON: &str = "application/json";
/// A binary batch, both ways.
pub const BATCH: &str = "application/vnd.sidekey.batch";
/// Server-sent events.
pub const EVENTS: &str = "text/event-stream";

/// The first byte of a batch whose items share one AAD, which stands in a header.
pub const SHARED_AAD: u8 = 0;
/// The first byte of a batch in which every item's frame begins with the item's own AAD.
pub const ITEMS_HAVE_AAD: u8 = 1;
/// An answer's frame begins with how its item went: here is the result,
pub const DONE: u8 = 0;
/// or here is the problem.
pub const FAILED: u8 = 1;
