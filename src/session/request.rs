//! One request's view of a keyring.

use std::{ops::Deref, sync::Arc};

use jiff::Timestamp;

use super::{
    error::SessionError,
    stream::{StreamDecryptor, StreamEncryptor},
    version::{PinnedVersion, keys_for_request},
};
use crate::{
    crypto::{
        Header, OVERHEAD, Opener, PREFIX_LEN, Sealer, StreamOpener, StreamSealer, VersionKeys,
    },
    keyring::Slot,
    refresh::{Keyring, Snapshot},
};

/// One request's view of a keyring: one snapshot from beginning to end (I4), except for the refresh
/// that the request itself may cause.
///
/// `K` is a reference for a request whose body is in memory, and an `Arc` for one that is processed
/// while its body arrives.
pub(crate) struct Session<K> {
    keyring: K,
    snapshot: Arc<Snapshot>,
    now: Timestamp,
    opener: Opener,
    /// A batch may name many unknown versions; one refresh serves them all.
    has_refreshed: bool,
}

impl<K: Deref<Target = Keyring>> Session<K> {
    /// # Errors
    /// [`SessionError::NotLoaded`]
    pub(crate) fn new(keyring: K, now: Timestamp) -> Result<Self, SessionError> {
        let snapshot = keyring.snapshot().clone().ok_or(SessionError::NotLoaded)?;
        Ok(Self {
            keyring,
            snapshot,
            now,
            opener: Opener::default(),
            has_refreshed: false,
        })
    }

    pub(super) fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Sets the time of further work, and allows another refresh for unknown versions.
    pub(super) fn advance(&mut self, now: Timestamp) {
        self.now = now;
        self.has_refreshed = false;
    }

    /// Returns an encryptor for the version that encrypts now.
    pub(crate) fn encryptor(&self) -> Result<Encryptor, SessionError> {
        let (version, keys) = self.encrypting()?;
        Ok(Encryptor {
            sealer: Sealer::new(keys, self.snapshot.table.id(), version)?,
            version: self.pin(version),
            now: self.now,
        })
    }

    fn encrypting(&self) -> Result<(u32, &VersionKeys), SessionError> {
        let table = &self.snapshot.table;
        let no_primary = || SessionError::NoPrimary {
            wave: table.wave().clone(),
        };
        let primary = table.primary(self.now).ok_or_else(no_primary)?;
        let Some(found) = table.encryption_key(self.now) else {
            keys_for_request(&self.keyring, &self.snapshot, primary, self.now)?;
            return Err(no_primary());
        };
        if self.snapshot.lost().contains(&found.0) {
            return Err(SessionError::KeyLost { version: found.0 });
        }
        let lease_end = self.keyring.lease_end(table);
        if self.now < lease_end {
            Ok(found)
        } else {
            Err(SessionError::LeaseExpired { at: lease_end })
        }
    }

    /// Decrypts a whole message or stream in place. Returns the plaintext, which starts after
    /// [`PREFIX_LEN`] bytes, and the version.
    pub(crate) async fn decrypt<'m>(
        &mut self,
        aad: &[u8],
        ciphertext: &'m mut [u8],
    ) -> Result<(&'m mut [u8], u32), SessionError> {
        let header = self.find_version(ciphertext).await?;
        let keys = keys_for_request(&self.keyring, &self.snapshot, header.version, self.now)?;
        let id = self.snapshot.table.id();
        let plaintext = self.opener.open(keys, &id, &header, aad, ciphertext)?;
        if let Some(usage) = self.snapshot.usage(header.version) {
            usage.record_decrypted(1, self.now);
        }
        Ok((plaintext, header.version))
    }

    /// Returns a decryptor for the stream that starts with `prefix`.
    pub(crate) async fn stream_decryptor(
        &mut self,
        aad: &[u8],
        prefix: &[u8; PREFIX_LEN],
    ) -> Result<StreamDecryptor, SessionError> {
        // A header is parsed from at least the shortest ciphertext. Chunks are checked later.
        let mut shortest = [0; OVERHEAD];
        shortest[..PREFIX_LEN].copy_from_slice(prefix);
        let header = self.find_version(&shortest).await?;
        let keys = keys_for_request(&self.keyring, &self.snapshot, header.version, self.now)?;
        let opener = StreamOpener::new(keys, &self.snapshot.table.id(), prefix, aad);
        let version = self.pin(header.version);
        version.count_decrypted(self.now);
        Ok(StreamDecryptor::new(opener, version))
    }

    /// Returns an encryptor for a stream, and the prefix of that stream.
    pub(crate) fn stream_encryptor(
        &self,
        aad: &[u8],
    ) -> Result<(StreamEncryptor<K>, [u8; PREFIX_LEN]), SessionError>
    where
        K: Clone,
    {
        let (version, keys) = self.encrypting()?;
        let (sealer, prefix) = StreamSealer::new(keys, &self.snapshot.table.id(), version, aad)?;
        let version = self.pin(version);
        version.count_encrypted(self.now);
        let encryptor = StreamEncryptor::new(self.keyring.clone(), sealer, version);
        Ok((encryptor, prefix))
    }

    fn pin(&self, version: u32) -> PinnedVersion {
        PinnedVersion::new(&self.keyring, &self.snapshot, version)
    }

    /// Parses the header of a ciphertext. Refreshes the keyring if it lacks the version (I2).
    async fn find_version(&mut self, ciphertext: &[u8]) -> Result<Header, SessionError> {
        let header = Header::parse(ciphertext, &self.snapshot.table.id())?;
        let version = header.version;
        let is_missing = |snapshot: &Snapshot| {
            matches!(
                snapshot.table.slot(version),
                None | Some(Slot::NotUnwrapped(_) | Slot::Waiting(_))
            )
        };
        if is_missing(&self.snapshot) {
            // A request may take long, and the active snapshot may have the version by now.
            if let Some(newest) = self.keyring.snapshot().as_ref()
                && !is_missing(newest)
            {
                self.snapshot = Arc::clone(newest);
            }
        }
        if !self.snapshot.has_met(version)
            && !self.has_refreshed
            && let Some(newest) = self.keyring.refresh_for_version(version).await
        {
            self.has_refreshed = true;
            self.snapshot = newest;
        }
        Ok(header)
    }
}

/// Encrypts the messages of one request under one version.
pub(crate) struct Encryptor {
    sealer: Sealer,
    version: PinnedVersion,
    now: Timestamp,
}

impl Encryptor {
    pub(crate) fn version(&self) -> u32 {
        self.version.number()
    }

    /// Turns `buffer[from..]`, which is [`PREFIX_LEN`] bytes of room and then the plaintext, into a
    /// message.
    pub(crate) fn encrypt(&mut self, aad: &[u8], buffer: &mut Vec<u8>, from: usize) {
        self.sealer.seal(aad, buffer, from);
        self.version.count_encrypted(self.now);
    }

    /// Sets the time of further messages.
    ///
    /// # Errors
    /// The version may not encrypt any longer.
    pub(super) fn advance(
        &mut self,
        keyring: &Keyring,
        now: Timestamp,
    ) -> Result<(), SessionError> {
        self.now = now;
        self.version.check_encrypts(keyring, now)
    }
}

/// Returns a buffer with room for a message of `len` bytes of plaintext, which is to be appended.
pub(crate) fn message_buffer(len: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(len + OVERHEAD);
    buffer.resize(PREFIX_LEN, 0);
    buffer
}
