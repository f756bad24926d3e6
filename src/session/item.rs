//! The items of a batch: one operation, applied to each in place.

use std::ops::Deref;

use jiff::Timestamp;

use super::{
    error::SessionError,
    request::{Encryptor, Session},
};
use crate::{crypto::PREFIX_LEN, model::Operation, refresh::Keyring};

/// Applies one operation to the items of a request.
pub(crate) struct ItemProcessor<K> {
    operation: Operation,
    session: Session<K>,
    /// Present if the operation encrypts.
    encryptor: Option<Encryptor>,
}

impl<K: Deref<Target = Keyring>> ItemProcessor<K> {
    /// # Errors
    /// The operation encrypts, and no version can.
    pub(crate) fn new(operation: Operation, session: Session<K>) -> Result<Self, SessionError> {
        let encryptor = match operation {
            Operation::Encrypt | Operation::Rewrap => Some(session.encryptor()?),
            Operation::Decrypt | Operation::DataKey | Operation::Inspect => None,
        };
        Ok(Self {
            operation,
            session,
            encryptor,
        })
    }

    pub(crate) fn operation(&self) -> Operation {
        self.operation
    }

    /// The version that encrypts every item, if the operation encrypts.
    pub(crate) fn encrypting_version(&self) -> Option<u32> {
        self.encryptor.as_ref().map(Encryptor::version)
    }

    /// Sets the time of further items.
    ///
    /// # Errors
    /// The version that encrypts may not do so any longer.
    pub(crate) fn advance(&mut self, now: Timestamp) -> Result<(), SessionError> {
        self.session.advance(now);
        match &mut self.encryptor {
            Some(encryptor) => encryptor.advance(self.session.keyring(), now),
            None => Ok(()),
        }
    }

    /// Processes the item in `buffer[from..]` in place and returns the version that was used.
    ///
    /// A plaintext, before encrypting and after decrypting, is preceded by [`PREFIX_LEN`] bytes of
    /// room. After an error, the item's bytes are unspecified.
    pub(crate) async fn process(
        &mut self,
        aad: &[u8],
        buffer: &mut Vec<u8>,
        from: usize,
    ) -> Result<u32, SessionError> {
        let mut version = 0;
        if self.operation != Operation::Encrypt {
            let (plaintext, decrypted_by) = self.session.decrypt(aad, &mut buffer[from..]).await?;
            let end = from + PREFIX_LEN + plaintext.len();
            buffer.truncate(end);
            version = decrypted_by;
        }
        if let Some(encryptor) = &mut self.encryptor {
            encryptor.encrypt(aad, buffer, from);
            version = encryptor.version();
        }
        Ok(version)
    }
}
