//! What a system that holds KEKs can do.

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::BackendError;
use crate::crypto::{Dek, WrapContext};

/// A key-encryption key. Callers set the time limit.
pub trait Kek: Send + Sync {
    /// Encrypts a data key, bound to its keyring and version.
    fn wrap<'a>(
        &'a self,
        dek: &'a Dek,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Vec<u8>, BackendError>>;

    /// Decrypts a wrap made by this KEK for the same `context`.
    fn unwrap<'a>(
        &'a self,
        wrap: &'a [u8],
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Dek, BackendError>>;

    /// Returns the time on the KEK's own clock, as its last response stated, if it has one that is
    /// independent of this machine's.
    fn server_time(&self) -> Option<Timestamp> {
        None
    }
}
