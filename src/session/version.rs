//! A key version as one request uses it.

use std::sync::Arc;

use jiff::Timestamp;

use super::error::{SessionError, UnavailableReason};
use crate::{
    crypto::VersionKeys,
    keyring::Slot,
    refresh::{Keyring, Snapshot},
};

/// A version of the generation that a request sees, for as long as the request takes. Meanwhile the
/// version is in use, whether or not bytes arrive.
pub(super) struct PinnedVersion {
    snapshot: Arc<Snapshot>,
    version: u32,
    encrypt_until: Timestamp,
}

impl PinnedVersion {
    pub(super) fn new(keyring: &Keyring, snapshot: &Arc<Snapshot>, version: u32) -> Self {
        if let Some(usage) = snapshot.usage(version) {
            usage.open();
        }
        Self {
            snapshot: Arc::clone(snapshot),
            version,
            encrypt_until: keyring.lease_end(&snapshot.table),
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.version
    }

    /// Checks that a request may still encrypt under the version it started with (I11).
    ///
    /// It may do so for no longer than a sidecar that never received a newer version: once another
    /// version encrypts, the lease is not renewed. Once the version is disabled or destroyed, the
    /// request fails at once.
    pub(super) fn check_encrypts(
        &mut self,
        keyring: &Keyring,
        now: Timestamp,
    ) -> Result<(), SessionError> {
        if let Some(newest) = keyring.snapshot().as_ref() {
            keys_for_request(keyring, newest, self.version, now)?;
            if newest.lost().contains(&self.version) {
                return Err(SessionError::KeyLost {
                    version: self.version,
                });
            }
            if newest
                .table
                .encryption_key(now)
                .is_some_and(|(version, _)| version == self.version)
            {
                self.encrypt_until = keyring.lease_end(&newest.table);
            }
        }
        if now < self.encrypt_until {
            Ok(())
        } else {
            Err(SessionError::LeaseExpired {
                at: self.encrypt_until,
            })
        }
    }

    pub(super) fn count_encrypted(&self, now: Timestamp) {
        if let Some(usage) = self.snapshot.usage(self.version) {
            usage.record_encrypted(1, now);
        }
    }

    pub(super) fn count_decrypted(&self, now: Timestamp) {
        if let Some(usage) = self.snapshot.usage(self.version) {
            usage.record_decrypted(1, now);
        }
    }

    /// Records that a stream still uses the version.
    pub(super) fn touch(&self, now: Timestamp) {
        if let Some(usage) = self.snapshot.usage(self.version) {
            usage.touch(now);
        }
    }
}

impl Drop for PinnedVersion {
    fn drop(&mut self) {
        if let Some(usage) = self.snapshot.usage(self.version) {
            usage.close();
        }
    }
}

/// Like [`version_keys`], for a request: a refusal is counted.
pub(super) fn keys_for_request<'s>(
    keyring: &Keyring,
    snapshot: &'s Snapshot,
    version: u32,
    now: Timestamp,
) -> Result<&'s VersionKeys, SessionError> {
    let keys = version_keys(snapshot, version);
    if let Err(SessionError::VersionDisabled { .. } | SessionError::VersionDestroyed { .. }) = keys
    {
        keyring.count_refusal(snapshot, version, now);
    }
    keys
}

/// Returns the keys of a version.
///
/// # Errors
/// The version is unavailable, disabled or destroyed.
pub(super) fn version_keys(
    snapshot: &Snapshot,
    version: u32,
) -> Result<&VersionKeys, SessionError> {
    let unavailable = |reason| SessionError::VersionUnavailable { version, reason };
    match snapshot.table.slot(version) {
        Some(Slot::Unwrapped(keys)) => Ok(keys),
        Some(Slot::NotUnwrapped(_) | Slot::Waiting(_)) => {
            Err(unavailable(UnavailableReason::NotUnwrapped))
        }
        Some(Slot::Disabled) => Err(SessionError::VersionDisabled { version }),
        Some(Slot::Destroyed) => Err(SessionError::VersionDestroyed { version }),
        None => Err(unavailable(UnavailableReason::Unknown)),
    }
}
