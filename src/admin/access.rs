//! Access to a stored keyring: its location, its KEKs and its signing key.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::timeout;

use super::{
    backup::{open_content, read_file},
    base::Bases,
    clocks::ClockEvidence,
    envelope::DecryptWith,
    error::AdminError,
    payload::Content,
};
use crate::{
    backend::{self, BackendError, Backends, ErrorKind, ManifestStore},
    clock::Clock,
    config,
    crypto::{Dek, KeyringId, SigningKey},
    keks::Keks,
    keyring::{self, Document, Manifest, NotUnwrapped, Version, is_signed_by},
    model::{KekScope, Location, SignerKey},
};

/// The time limit for a wrap or unwrap; covers the back-off of a throttled client.
const KEK_TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for reading or writing a manifest.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest manifest that is read, in bytes.
pub(super) const MANIFEST_LIMIT: usize = 256 << 20;

/// Access to a stored keyring.
pub struct Admin {
    pub(super) location: Location,
    pub(super) store: Arc<dyn ManifestStore>,
    pub(super) keks: Arc<Keks>,
    pub(super) scope: Arc<KekScope>,
    pub(super) signing: Signing,
    pub(super) bases: Bases,
    /// A backup whose keys replace those that no KEK unwraps.
    backup: Option<Content>,
    taken_from_backup: Mutex<BTreeMap<u32, String>>,
    pub(super) clock: Clock,
    pub(super) clock_evidence: ClockEvidence,
    /// The newest manifest that this command has read or written.
    seen: Mutex<Option<Document>>,
}

/// How changes are signed.
pub enum Signing {
    /// Unsigned; changes of a signed manifest are refused.
    NoKey,
    /// Signed with this key.
    With {
        /// The operator's key.
        key: SigningKey,
        /// Other signers whose manifests may be succeeded, besides the key itself.
        trusted: Vec<SignerKey>,
        /// The digest of a manifest that is signed although no trusted signer has signed it, in
        /// hexadecimal digits.
        adopt: Option<String>,
    },
    /// Unsigned, even if the manifest was signed.
    Drop,
}

impl Admin {
    /// Creates access to the keyring at `location`.
    ///
    /// # Errors
    /// This build lacks a backend for the location, or its settings are invalid.
    pub fn new(
        location: Location,
        signing: Signing,
        backends: &Arc<dyn Backends>,
        clock: Clock,
    ) -> Result<Self, AdminError> {
        let store = backends.store(&location)?;
        let times = config::Refresh {
            kek_timeout: KEK_TIMEOUT,
            ..config::Refresh::default()
        };
        let keks = Arc::new(Keks::new(
            Arc::clone(backends),
            &times,
            clock.clone(),
            Arc::default(),
        ));
        Ok(Self {
            location,
            store,
            keks,
            scope: Arc::new(KekScope::Any),
            signing,
            bases: Bases::default(),
            backup: None,
            taken_from_backup: Mutex::default(),
            clock,
            clock_evidence: ClockEvidence::default(),
            seen: Mutex::default(),
        })
    }

    /// Adds what is already trusted of the keyring.
    #[must_use]
    pub fn with_bases(self, bases: Bases) -> Self {
        Self { bases, ..self }
    }

    /// Takes data keys that no KEK unwraps from the backup in `file`.
    ///
    /// # Errors
    /// [`AdminError::Backup`]: the backup can't be decrypted or is damaged.
    pub fn with_backup(self, file: &Path, decrypt_with: &DecryptWith) -> Result<Self, AdminError> {
        let bytes = read_file(file)?;
        let content = open_content(&bytes, decrypt_with).map_err(|reason| AdminError::Backup {
            file: file.to_owned(),
            reason,
        })?;
        Ok(Self {
            backup: Some(content),
            ..self
        })
    }

    /// Returns the key of a version in the backup, if that was given and the manifest commits to
    /// this key. A KEK that returned another key is no reason to go on: someone replaced a wrap.
    pub(super) fn dek_in_backup(
        &self,
        keyring: KeyringId,
        version: &Version,
        reason: &NotUnwrapped,
    ) -> Option<Dek> {
        let dek = self.backup.as_ref()?.deks.get(&version.version)?;
        if reason.is_exchanged || !version.commits_to(&keyring, dek) {
            return None;
        }
        self.taken_from_backup
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(version.version, reason.message.clone());
        Dek::from_slice(dek.expose())
    }

    /// Returns the versions whose keys were taken from the backup, each with the reason.
    pub fn taken_from_backup(&self) -> BTreeMap<u32, String> {
        let taken = self.taken_from_backup.lock();
        taken.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Restricts unwrapping to KEKs in `scope`, whichever the manifest lists.
    #[must_use]
    pub fn with_scope(self, scope: KekScope) -> Self {
        Self {
            scope: Arc::new(scope),
            ..self
        }
    }

    /// The manifest's location.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The current time, as recorded in changes.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Reads the manifest without unwrapping any key.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn read(&self) -> Result<Document, AdminError> {
        let bytes = self.read_bytes().await?;
        Document::parse(bytes).map_err(|error| AdminError::Manifest {
            location: self.location.clone(),
            error,
        })
    }

    pub(super) async fn read_bytes(&self) -> Result<Bytes, BackendError> {
        backend::within(STORE_TIMEOUT, self.store.read(MANIFEST_LIMIT))
            .await
            .unwrap_or_else(|late| Err(late.on(&self.location, None)))
    }

    pub(super) async fn replace(
        &self,
        current: Option<&Document>,
        document: &Document,
    ) -> Result<(), BackendError> {
        self.replace_bytes(current.map(|current| current.bytes().clone()), document)
            .await
    }

    pub(super) async fn replace_bytes(
        &self,
        expected: Option<Bytes>,
        document: &Document,
    ) -> Result<(), BackendError> {
        let expected = expected.map(Vec::from);
        let new = document.bytes().to_vec();
        timeout(STORE_TIMEOUT, self.store.replace(expected, new))
            .await
            .unwrap_or_else(|_| {
                let message = format!(
                    "no response within {STORE_TIMEOUT:?}; check with `keyring status` whether the \
                     change was made"
                );
                Err(BackendError::new(
                    ErrorKind::Unavailable,
                    &self.location,
                    message,
                ))
            })
    }

    pub(super) fn see(&self, document: &Document) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(document.clone());
    }

    pub(super) fn last_seen(&self, id: KeyringId) -> Option<Document> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone().filter(|seen| seen.manifest().id == id)
    }

    /// Refuses to sign the successor of a manifest that no trusted signer has signed.
    pub(super) fn require_signers(&self, document: &Document) -> Result<(), AdminError> {
        let Signing::With {
            key,
            trusted,
            adopt,
        } = &self.signing
        else {
            return Ok(());
        };
        let mut signers = trusted.clone();
        signers.push(SignerKey(key.public_key()));
        let digest = document.digest_hex();
        if is_signed_by(document, &signers) || adopt.as_deref() == Some(digest.as_str()) {
            return Ok(());
        }
        Err(AdminError::NotSigned {
            location: self.location.clone(),
            generation: document.manifest().generation,
            digest,
        })
    }

    pub(super) fn authenticate(
        &self,
        manifest: Manifest,
        keys: &BTreeMap<u32, SigningKey>,
    ) -> Result<Document, AdminError> {
        let signer = match &self.signing {
            Signing::With { key, .. } => Some(key),
            Signing::NoKey | Signing::Drop => None,
        };
        keyring::authenticate(manifest, keys, signer).map_err(|missing| {
            AdminError::NotUnwrapped(
                missing
                    .into_iter()
                    .map(|version| (version, "it was not unwrapped".into()))
                    .collect(),
            )
        })
    }
}
