//! The work of one request on one keyring: which key encrypts, which one decrypts, and what stands against it.
//!
//! Plaintexts pass through here in the buffers of their requests.

use std::sync::Arc;

use jiff::Timestamp;

use super::problem::{Code, Problem};
use crate::{
    crypto::{Header, OVERHEAD, Opener, PREFIX_LEN, Sealer, VersionKeys},
    keyring::Slot,
    refresh::{Keyring, Snapshot},
};

/// Seconds until a version that is missing now may be there.
const RETRY_SECONDS: u32 = 1;

/// One request's view of a keyring: one snapshot from beginning to end, but for the refresh that the request itself may cause.
pub(super) struct Session<'k> {
    keyring: &'k Keyring,
    snapshot: Arc<Snapshot>,
    now: Timestamp,
    opener: Opener,
    /// A batch may name many versions that nobody knows; one refresh answers for all of them.
    has_learned: bool,
}

/// Encrypts the items of one request.
pub(super) struct Encryptor {
    sealer: Sealer,
    snapshot: Arc<Snapshot>,
    /// The version that encrypts.
    pub(super) version: u32,
    now: Timestamp,
}

impl<'k> Session<'k> {
    pub(super) fn new(keyring: &'k Keyring, now: Timestamp) -> Result<Self, Problem> {
        let snapshot = keyring.snapshot();
        let Some(snapshot) = snapshot.as_ref() else {
            return Err(Problem::new(
                Code::ProviderUnavailable,
                "the keyring has not been loaded yet; /readyz on the ops listener says why",
            )
            .retry_after(RETRY_SECONDS));
        };
        Ok(Self { keyring, snapshot: Arc::clone(snapshot), now, opener: Opener::default(), has_learned: false })
    }

    /// The encryptor of the version that encrypts now, if this sidecar may encrypt at all.
    pub(super) fn encryptor(&self) -> Result<Encryptor, Problem> {
        let table = &self.snapshot.table;
        let primary = table
            .primary(self.now)
            .ok_or_else(|| Problem::new(Code::NoPrimary, format!("no version is activated for wave {} yet", table.wave())))?;
        let Some((version, keys)) = table.encrypting(self.now).filter(|_| self.now < self.keyring.lease_end(table)) else {
            return Err(keys(&self.snapshot, primary).err().unwrap_or_else(|| self.lease_expired()));
        };
        let sealer = Sealer::new(keys, table.id(), version)?;
        Ok(Encryptor { sealer, snapshot: Arc::clone(&self.snapshot), version, now: self.now })
    }

    fn lease_expired(&self) -> Problem {
        let end = self.keyring.lease_end(&self.snapshot.table);
        let detail = format!("the manifest could not be confirmed, so encrypting ended at {end}; decrypting goes on");
        Problem::new(Code::LeaseExpired, detail).retry_after(60)
    }

    /// Decrypts a message in place; gives the plaintext's part of it and the version.
    pub(super) async fn decrypt<'m>(&mut self, aad: &[u8], message: &'m mut [u8]) -> Result<(&'m mut [u8], u32), Problem> {
        let id = self.snapshot.table.id();
        let header = Header::parse(message, &id)?;
        let version = header.version;
        if self.snapshot.table.slot(version).is_none()
            && !self.has_learned
            && let Some(newest) = self.keyring.learn(version).await
        {
            self.has_learned = true;
            self.snapshot = newest;
        }
        let keys = keys(&self.snapshot, version)?;
        let plaintext = self.opener.open(keys, &id, &header, aad, message)?;
        if let Some(meter) = self.snapshot.meter(version) {
            meter.decrypted(1, self.now);
        }
        Ok((plaintext, version))
    }
}

impl Encryptor {
    /// Turns a buffer with [`PREFIX_LEN`] bytes of room before the plaintext into a message.
    pub(super) fn encrypt(&mut self, aad: &[u8], buffer: &mut Vec<u8>) {
        self.sealer.seal(aad, buffer);
        self.meter();
    }

    /// A message from a plaintext that stands elsewhere.
    pub(super) fn encrypt_copy(&mut self, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let message = self.sealer.seal_copy(aad, plaintext);
        self.meter();
        message
    }

    fn meter(&self) {
        if let Some(meter) = self.snapshot.meter(self.version) {
            meter.encrypted(1, self.now);
        }
    }
}

/// A buffer for a body of `len` bytes that becomes a message in place.
pub(super) fn message_buffer(len: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(len + OVERHEAD);
    buffer.resize(PREFIX_LEN, 0);
    buffer
}

fn keys(snapshot: &Snapshot, version: u32) -> Result<&VersionKeys, Problem> {
    let unavailable = |why: &str| {
        Problem::new(Code::KeyVersionUnavailable, format!("key version {version} {why}; try again")).retry_after(RETRY_SECONDS)
    };
    match snapshot.table.slot(version) {
        Some(Slot::Open(keys)) => Ok(keys),
        Some(Slot::Unopened(_)) => Err(unavailable("could not be opened by its KEKs yet")),
        Some(Slot::Disabled) => Err(Problem::new(
            Code::KeyVersionDisabled,
            format!("key version {version} is disabled; `sidekey keyring enable` lets it decrypt again"),
        )),
        Some(Slot::Destroyed) => {
            Err(Problem::new(Code::KeyVersionDestroyed, format!("key version {version} was destroyed for good")))
        }
        None => Err(unavailable("is not in the newest manifest that could be read")),
    }
}
