//! What backups and restores change.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{BackupRecord, Manifest, Refusal, Rejection, State, Wrap, lifecycle::successor};
use crate::crypto::{KeyringId, to_hex};

impl BackupRecord {
    /// The file's SHA-256 as `sha256sum` prints it.
    pub fn sha256_hex(&self) -> String {
        to_hex(&self.sha256.0)
    }
}

/// Notes a backup that was shown to open.
///
/// # Errors
/// [`Refusal`] if it is of another keyring or of a generation that hasn't come yet.
pub fn record_backup(
    current: &Manifest,
    id: KeyringId,
    backup: &BackupRecord,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    if current.id != id {
        let expected = current.id.to_string();
        return Err(Refusal::Diverged(Rejection::OtherKeyring {
            expected,
            found: current.name.clone(),
            found_id: id,
        }));
    }
    if backup.generation > current.generation || current.version(backup.newest_version).is_none() {
        return Err(Refusal::NoBackup(format!(
            "the backup holds generation {}, which is newer than the keyring's {}",
            backup.generation, current.generation
        )));
    }
    let mut next = successor(current, now);
    next.last_backup = Some(BackupRecord {
        verified_at: next.updated_at,
        ..backup.clone()
    });
    Ok(next)
}

/// The generation after `base`, with other wraps where `wraps` has any, that notes the backup from which it was restored.
pub fn restore(
    base: &Manifest,
    wraps: BTreeMap<u32, Vec<Wrap>>,
    backup: &BackupRecord,
    now: Timestamp,
) -> Manifest {
    let mut next = successor(base, now);
    for version in next
        .versions
        .iter_mut()
        .filter(|version| version.state != State::Destroyed)
    {
        if let Some(wraps) = wraps.get(&version.version) {
            version.wraps.clone_from(wraps);
        }
    }
    next.last_backup = Some(BackupRecord {
        verified_at: next.updated_at,
        ..backup.clone()
    });
    next
}
