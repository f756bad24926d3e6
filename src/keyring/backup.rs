//! Changes by backups and restores.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    BackupRecord, Document, Manifest, Refusal, Rejection, State, Wrap, lifecycle::successor,
    rollout::end_active_rollout,
};
use crate::crypto::{KeyringId, to_hex};

impl BackupRecord {
    /// Returns the file's SHA-256 as `sha256sum` prints it.
    pub fn sha256_hex(&self) -> String {
        to_hex(&self.sha256.0)
    }
}

/// Records a verified backup.
///
/// # Errors
/// [`Refusal`] if the backup is of another keyring or of a future generation.
pub fn record_backup(
    current: &Document,
    id: KeyringId,
    backup: &BackupRecord,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let manifest = current.manifest();
    if manifest.id != id {
        let expected = manifest.id.to_string();
        return Err(Refusal::Diverged(Rejection::OtherKeyring {
            expected,
            found: manifest.name.clone(),
            found_id: id,
        }));
    }
    if backup.generation > manifest.generation || backup.newest_version > manifest.newest_version()
    {
        return Err(Refusal::NoBackup(format!(
            "the backup holds generation {}, which is newer than the keyring's {}",
            backup.generation, manifest.generation
        )));
    }
    let mut next = successor(current, now);
    next.last_backup = Some(BackupRecord {
        verified_at: next.updated_at,
        ..backup.clone()
    });
    Ok(next)
}

/// Returns a successor of `base` with the number `generation`, with the wraps in `wraps` instead of
/// its own, and with a record of the backup that it was restored from. What a rollout did since the
/// backup is unknown, so it ends.
pub fn restore(
    base: &Document,
    wraps: BTreeMap<u32, Vec<Wrap>>,
    backup: &BackupRecord,
    generation: u64,
    now: Timestamp,
) -> Manifest {
    let mut next = successor(base, now);
    next.generation = generation;
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
    end_active_rollout(&mut next);
    next
}
