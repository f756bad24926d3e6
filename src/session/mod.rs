//! Which key version encrypts or decrypts for a request: the primary of the wave while the lease
//! lasts, the version that a ciphertext names, and a refresh for a version that is missing. Errors
//! are the domain's own; `api` maps them to problems.
//!
//! Plaintexts pass through here in the buffers of their requests.

mod error;
mod item;
mod proof;
mod request;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod version;

pub use self::proof::Prover;
pub(crate) use self::{
    error::SessionError,
    item::ItemProcessor,
    proof::ProofError,
    request::{Session, message_buffer},
    stream::StreamDecryptor,
};
