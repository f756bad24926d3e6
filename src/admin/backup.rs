//! Backups: every data key that isn't destroyed and the manifest, in one encrypted file that was
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
    Admin, AdminError,
    envelope::{self, Lock, Opener, Sealed},
    payload::{self, Content},
};
use crate::{
    crypto::{Dek, fingerprint},
    files::{NewFile, sync_folder_of},
    keyring::{self, BackupRecord, Base64, Document, Refusal, Rejection, succeeds},
    model::KeyringName,
};

/// How many versions are opened or wrapped at once.
pub(super) const CONCURRENT: usize = 16;
/// The longest backup that is read, in bytes.
const LONGEST: u64 = 512 << 20;

/// A backup in its file.
#[derive(Debug, Clone)]
pub struct Backup {
    /// What the manifest is to say of it.
    pub record: BackupRecord,
    /// How it was shown to open.
    pub proof: Proof,
    /// The manifest in it.
    document: Document,
}

/// What showed that a backup opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The passphrase, or an identity of those who are to open it.
    Holder,
    /// A one-time identity: the content is right, and nobody has shown that he can open it.
    Content,
}

impl Backup {
    /// Of which keyring it is.
    pub fn keyring(&self) -> &KeyringName {
        &self.document.manifest().name
    }
}

impl Admin {
    /// Opens every version that is left and writes all of them and the manifest to the new file
    /// `to`, encrypted for whom `lock` says; reads that back, and with `opener`, if there is one,
    /// as its holder would.
    ///
    /// # Errors
    /// [`AdminError`]. Then there is no file `to`, unless it was there before.
    pub async fn back_up(
        &self,
        to: &Path,
        lock: &Lock,
        opener: Option<&Opener>,
    ) -> Result<Backup, AdminError> {
        let failed = |reason: String| AdminError::Backup {
            file: to.to_owned(),
            reason,
        };
        if to.exists() {
            return Err(failed(
                "there is a file already; a backup never takes another one's place".into(),
            ));
        }
        let document = self.read().await?;
        let deks = self.open_deks(&document).await?;
        let keys = payload::derive(&deks).map_err(AdminError::System)?;
        keyring::verify(&document, &keys, &[]).map_err(|error| AdminError::Unauthentic {
            location: self.location().clone(),
            error,
        })?;
        let payload = payload::write(&document, &deks, self.now()).map_err(failed)?;
        let Sealed { bytes, proof: own } = envelope::seal(&payload, lock)?;
        let file =
            write_new(to, &bytes).map_err(|error| failed(format!("can't write it: {error}")))?;
        let unproven = |reason: String| {
            failed(format!(
                "what was written could not be read back, so it is no backup: {reason}"
            ))
        };
        let written = read_back(&file).map_err(|error| unproven(error.to_string()))?;
        for opener in [Some(&own), opener].into_iter().flatten() {
            let content = open_content(&written, opener).map_err(unproven)?;
            // Reading compared every key with its check value, and the check values are in here.
            if content.document.canonical() != document.canonical() {
                return Err(unproven("it holds another manifest".into()));
            }
        }
        file.persist_noclobber(to)
            .and_then(|()| sync_folder_of(to))
            .map_err(|error| failed(format!("can't put it in place: {error}")))?;
        let proof = match (lock, opener) {
            (Lock::Passphrase(_), _) | (_, Some(_)) => Proof::Holder,
            (Lock::Recipients(_), None) => Proof::Content,
        };
        Ok(Backup {
            record: self.record_of(&document, &written),
            proof,
            document,
        })
    }

    /// Opens a backup that was made before and compares it with the keyring.
    ///
    /// # Errors
    /// [`AdminError`]: it doesn't open, is damaged, or is no backup of this keyring.
    pub async fn verify_backup(&self, file: &Path, opener: &Opener) -> Result<Backup, AdminError> {
        let current = self.read().await?;
        let bytes = read_file(file)?;
        let content = open_content(&bytes, opener).map_err(|reason| AdminError::Backup {
            file: file.to_owned(),
            reason,
        })?;
        let newer = content.document.manifest().generation > current.manifest().generation;
        let verdict = if newer {
            succeeds(&current, &content.document)
        } else {
            succeeds(&content.document, &current)
        };
        verdict.map_err(Refusal::Diverged)?;
        Ok(Backup {
            record: self.record_of(&content.document, &bytes),
            proof: Proof::Holder,
            document: content.document,
        })
    }

    /// Notes in the manifest that there is this backup, so that what it holds may be destroyed
    /// (I5).
    ///
    /// # Errors
    /// [`AdminError`]; a backup whose holder hasn't shown that he can open it is refused.
    pub async fn record(&self, backup: &Backup) -> Result<Document, AdminError> {
        if backup.proof != Proof::Holder {
            let reason = "nobody has shown that he can open the backup; give --identity".into();
            return Err(Refusal::NoBackup(reason).into());
        }
        self.change(None, |current, now| {
            let id = backup.document.manifest().id;
            let next = keyring::record_backup(current, id, &backup.record, now)?;
            // A version that was put in another's place meanwhile is in no backup.
            let held = backup.document.manifest().versions.iter();
            let exchanged = held.clone().find(|held| {
                current
                    .version(held.version)
                    .is_none_or(|now| now.check != held.check)
            });
            match exchanged {
                Some(version) => Err(Refusal::Diverged(Rejection::Exchanged(version.version))),
                None => Ok(next),
            }
        })
        .await
    }

    /// Refuses before anything is written what [`Admin::record`] would refuse after.
    ///
    /// # Errors
    /// [`AdminError::WouldDropSignature`], and whatever reading says.
    pub async fn can_record(&self) -> Result<(), AdminError> {
        let current = self.read().await?;
        self.demand_signing(&current)
    }

    pub(super) fn record_of(&self, document: &Document, bytes: &[u8]) -> BackupRecord {
        let manifest = document.manifest();
        BackupRecord {
            verified_at: self.now(),
            sha256: Base64(fingerprint(bytes).to_vec()),
            generation: manifest.generation,
            newest_version: manifest
                .versions
                .last()
                .map_or(0, |version| version.version),
        }
    }

    /// The data key of every version that is left.
    async fn open_deks(&self, document: &Document) -> Result<BTreeMap<u32, Dek>, AdminError> {
        let manifest = document.manifest();
        let opened = stream::iter(manifest.live())
            .map(async |version| {
                let dek = self.keks.unwrap(manifest.id, version, &self.scope).await;
                (version.version, dek)
            })
            .buffer_unordered(CONCURRENT)
            .collect::<Vec<_>>()
            .await;
        let mut deks = BTreeMap::new();
        let mut unopened = Vec::new();
        for (version, result) in opened {
            match result {
                Ok(dek) => drop(deks.insert(version, dek)),
                Err(reason) => unopened.push((version, reason)),
            }
        }
        if unopened.is_empty() {
            Ok(deks)
        } else {
            Err(AdminError::UnopenedForBackup(unopened))
        }
    }
}

/// A backup's bytes.
pub(super) fn read_file(file: &Path) -> Result<Vec<u8>, AdminError> {
    let failed = |reason: String| AdminError::Backup {
        file: file.to_owned(),
        reason,
    };
    let opened =
        File::open(file).map_err(|error| failed(format!("can't read the backup: {error}")))?;
    let mut bytes = Vec::new();
    opened
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(format!("can't read the backup: {error}")))?;
    if bytes.len() as u64 > LONGEST {
        return Err(failed(format!(
            "it is longer than {LONGEST} bytes, which no backup is"
        )));
    }
    Ok(bytes)
}

/// What is in it.
pub(super) fn open_content(bytes: &[u8], opener: &Opener) -> Result<Content, String> {
    let payload = envelope::open(bytes, opener).map_err(|error| error.to_string())?;
    payload::read(&payload)
}

/// Writes a file that has no name of its own until it is proven.
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

/// Does `work` for each item, some at once, and stops at the first that fails.
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
