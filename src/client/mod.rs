//! A client of the applications' API (docs/api.md): requests over the Unix socket, problems and
//! events.
//!
//! Plaintexts and secrets pass through here in requests and responses.

mod error;
mod events;
mod response;
mod secrets;
mod socket;

pub use self::{
    error::SidecarError,
    events::{EventStream, StreamItem},
    response::{MAX_RESPONSE, Problem, error_of, incomplete, read_body},
    secrets::{Fetched, fetch_secret},
    socket::{RequestBody, Socket, full_body, request},
};
