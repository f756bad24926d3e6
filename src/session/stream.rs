//! Streams, which may take hours.

use std::ops::Deref;

use jiff::Timestamp;

use super::{error::SessionError, version::PinnedVersion};
use crate::{
    crypto::{StreamOpener, StreamSealer},
    refresh::Keyring,
};

/// Encrypts the chunks of a stream.
pub(crate) struct StreamEncryptor<K> {
    keyring: K,
    sealer: StreamSealer,
    version: PinnedVersion,
}

impl<K: Deref<Target = Keyring>> StreamEncryptor<K> {
    pub(super) fn new(keyring: K, sealer: StreamSealer, version: PinnedVersion) -> Self {
        Self {
            keyring,
            sealer,
            version,
        }
    }

    pub(crate) fn version(&self) -> u32 {
        self.version.number()
    }

    /// Encrypts the plaintext in `buffer[from..]` as the next chunk.
    ///
    /// # Errors
    /// The version may not encrypt any longer (I11).
    pub(crate) fn encrypt(
        &mut self,
        now: Timestamp,
        is_last: bool,
        buffer: &mut Vec<u8>,
        from: usize,
    ) -> Result<(), SessionError> {
        self.version.check_encrypts(&self.keyring, now)?;
        self.sealer.seal(is_last, buffer, from);
        self.version.touch(now);
        Ok(())
    }
}

/// Decrypts the chunks of a stream.
pub(crate) struct StreamDecryptor {
    opener: StreamOpener,
    version: PinnedVersion,
}

impl StreamDecryptor {
    pub(super) fn new(opener: StreamOpener, version: PinnedVersion) -> Self {
        Self { opener, version }
    }

    pub(crate) fn version(&self) -> u32 {
        self.version.number()
    }

    /// Decrypts the next chunk in place and returns the length of its plaintext.
    pub(crate) fn decrypt(
        &mut self,
        now: Timestamp,
        is_last: bool,
        chunk: &mut [u8],
    ) -> Result<usize, SessionError> {
        let length = self.opener.open(is_last, chunk)?.len();
        self.version.touch(now);
        Ok(length)
    }
}
