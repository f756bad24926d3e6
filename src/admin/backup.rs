//! Backups: the manifest and every data key that isn't destroyed, in one encrypted file that is
//! read back before it counts.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::{Advice, fadvise};

use super::{
    access::Admin,
    envelope::{self, DecryptWith, EncryptFor, Sealed},
    error::AdminError,
    payload::{self, Content},
};
use crate::{
    crypto::{Dek, fingerprint},
    files::{NewFile, sync_folder_of},
    keyring::{self, BackupRecord, Base64, Document, Refusal, Rejection, verify_words},
    model::KeyringName,
};

/// The number of versions that are unwrapped or wrapped concurrently.
pub(super) const CONCURRENT: usize = 16;
/// The longest backup that is read, in bytes.
const MAX_BACKUP: u64 = 512 << 20;

/// A verified backup.
#[derive(Debug, Clone)]
pub struct Backup {
    /// The record for the manifest.
    pub record: BackupRecord,
    /// How the backup was verified.
    pub proof: Proof,
    /// The manifest in the backup.
    document: Document,
}

/// How a backup was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Decrypted with the passphrase or a recipient's identity.
    Holder,
    /// Decrypted with a one-time identity: the content is correct, but no recipient has been shown
    /// to be able to decrypt it.
    Content,
}

impl Backup {
    /// The keyring's name.
    pub fn keyring(&self) -> &KeyringName {
        &self.document.manifest().name
    }
}

impl Admin {
    /// Unwraps every version, writes them and the manifest to the new file `to`, encrypted for
    /// `encrypt_for`, and reads the file back; also with `decrypt_with`, if given, as its holder
    /// would.
    ///
    /// # Errors
    /// [`AdminError`]; then no file `to` is created.
    pub async fn back_up(
        &self,
        to: &Path,
        encrypt_for: &EncryptFor,
        decrypt_with: Option<&DecryptWith>,
    ) -> Result<Backup, AdminError> {
        let failed = |reason: String| AdminError::Backup {
            file: to.to_owned(),
            reason,
        };
        if to.exists() {
            return Err(failed(
                "the file exists; a backup never overwrites a file".into(),
            ));
        }
        let document = self.read_checked().await?;
        verify_words(&document).map_err(|error| self.unauthentic(error))?;
        let deks = self.unwrap_deks(&document).await?;
        let payload = payload::write(&document, &deks, self.now()).map_err(failed)?;
        let Sealed { bytes, proof: own } = envelope::seal(&payload, encrypt_for)?;
        let file = write_new(to, &bytes)
            .map_err(|error| failed(format!("can't write the backup: {error}")))?;
        let unproven = |reason: String| {
            failed(format!(
                "the backup could not be verified and was removed: {reason}"
            ))
        };
        let written = read_back(&file).map_err(|error| unproven(error.to_string()))?;
        for decrypt_with in [Some(&own), decrypt_with].into_iter().flatten() {
            let content = open_content(&written, decrypt_with).map_err(unproven)?;
            // Reading verified every key against its check value, which is part of the manifest.
            if content.document.canonical() != document.canonical() {
                return Err(unproven("it contains another manifest".into()));
            }
        }
        file.persist_noclobber(to)
            .and_then(|()| sync_folder_of(to))
            .map_err(|error| failed(format!("can't rename the backup: {error}")))?;
        let proof = match (encrypt_for, decrypt_with) {
            (EncryptFor::Passphrase(_), _) | (_, Some(_)) => Proof::Holder,
            (EncryptFor::Recipients(_), None) => Proof::Content,
        };
        Ok(Backup {
            record: self.record_of(&document, &written),
            proof,
            document,
        })
    }

    /// Decrypts an existing backup and compares it with the keyring.
    ///
    /// # Errors
    /// [`AdminError`]: the backup can't be decrypted, is damaged, or belongs to another keyring.
    pub async fn verify_backup(
        &self,
        file: &Path,
        decrypt_with: &DecryptWith,
    ) -> Result<Backup, AdminError> {
        let current = self.read_checked().await?;
        let bytes = read_file(file)?;
        let content = open_content(&bytes, decrypt_with).map_err(|reason| AdminError::Backup {
            file: file.to_owned(),
            reason,
        })?;
        let newer = content.document.manifest().generation > current.manifest().generation;
        let verdict = if newer {
            self.leads_to(&current, &content.document)
        } else {
            self.leads_to(&content.document, &current)
        };
        verdict.map(drop).map_err(Refusal::Diverged)?;
        Ok(Backup {
            record: self.record_of(&content.document, &bytes),
            proof: Proof::Holder,
            document: content.document,
        })
    }

    /// Records the backup in the manifest, so that the versions in it may be destroyed (I5).
    ///
    /// # Errors
    /// [`AdminError`]; [`Refusal::NoBackup`] unless the proof is [`Proof::Holder`].
    pub async fn record(&self, backup: &Backup) -> Result<Document, AdminError> {
        if backup.proof != Proof::Holder {
            let reason =
                "no recipient has been shown to be able to decrypt the backup; give --identity"
                    .into();
            return Err(Refusal::NoBackup(reason).into());
        }
        self.change(|current, now| {
            let id = backup.document.manifest().id;
            let next = keyring::record_backup(current, id, &backup.record, now)?;
            // A version whose key was replaced meanwhile isn't in the backup.
            let mut versions = backup.document.manifest().versions.iter();
            let now_listed = current.manifest();
            let replaced = versions.find(|backed_up| {
                backed_up.version >= now_listed.first_version()
                    && now_listed
                        .version(backed_up.version)
                        .is_none_or(|now| now.check != backed_up.check)
            });
            match replaced {
                Some(version) => Err(Refusal::Diverged(Rejection::KeyReplaced(version.version))),
                None => Ok(next),
            }
        })
        .await
    }

    /// Checks in advance that [`Admin::record`] won't be refused.
    ///
    /// # Errors
    /// [`AdminError::WouldDropSignature`], and errors of reading the manifest.
    pub async fn can_record(&self) -> Result<(), AdminError> {
        let current = self.read().await?;
        self.require_signing(&current)
    }

    pub(super) fn record_of(&self, document: &Document, bytes: &[u8]) -> BackupRecord {
        let manifest = document.manifest();
        BackupRecord {
            verified_at: self.now(),
            sha256: Base64(fingerprint(bytes).to_vec()),
            generation: manifest.generation,
            newest_version: manifest.newest_version(),
        }
    }

    /// Unwraps the data key of every version that is not destroyed.
    async fn unwrap_deks(&self, document: &Document) -> Result<BTreeMap<u32, Dek>, AdminError> {
        let manifest = document.manifest();
        let unwrapped = self
            .keks
            .unwrap_each(manifest.id, manifest.live(), &self.scope, CONCURRENT)
            .await;
        let mut deks = BTreeMap::new();
        let mut failed = Vec::new();
        for (version, result) in unwrapped {
            match result {
                Ok(dek) => drop(deks.insert(version, dek)),
                Err(reason) => failed.push((version, reason.message)),
            }
        }
        if failed.is_empty() {
            Ok(deks)
        } else {
            Err(AdminError::BackupIncomplete(failed))
        }
    }
}

/// Reads a backup's file.
pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, AdminError> {
    let failed = |reason: String| AdminError::Backup {
        file: file.to_owned(),
        reason,
    };
    let opened =
        File::open(file).map_err(|error| failed(format!("can't read the backup: {error}")))?;
    let mut bytes = Vec::new();
    opened
        .take(MAX_BACKUP + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(format!("can't read the backup: {error}")))?;
    if bytes.len() as u64 > MAX_BACKUP {
        return Err(failed(format!(
            "the file exceeds {MAX_BACKUP} bytes, the limit for backups"
        )));
    }
    Ok(bytes)
}

/// Decrypts and verifies a backup.
pub(super) fn open_content(bytes: &[u8], decrypt_with: &DecryptWith) -> Result<Content, String> {
    let payload = envelope::open(bytes, decrypt_with).map_err(|error| error.to_string())?;
    payload::read(&payload)
}

/// Writes a file that gets its name only after verification.
fn write_new(target: &Path, bytes: &[u8]) -> io::Result<NewFile> {
    let mut new = NewFile::beside(target)?;
    new.write_all(bytes)?;
    new.file().sync_all()?;
    Ok(new)
}

/// Reads back what is on the disk, bypassing the page cache where the file system allows it.
fn read_back(new: &NewFile) -> io::Result<Vec<u8>> {
    let mut file = File::open(new.path())?;
    // Only advice: some file systems live in the page cache.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Calls `work` for each item, [`CONCURRENT`] at a time, and stops at the first error.
pub(super) async fn for_each<T, U>(
    items: impl IntoIterator<Item = T>,
    work: impl AsyncFn(T) -> Result<U, AdminError>,
) -> Result<Vec<U>, AdminError> {
    let work = &work;
    stream::iter(items)
        .map(|item| work(item))
        .buffer_unordered(CONCURRENT)
        .try_collect()
        .await
}
