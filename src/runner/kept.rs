//! What a process that runs rollouts for others keeps of them on its own disk, because it doesn't
//! trust the place of the journal: the state of a keyring's last rollout.

use std::{
    fs::{self, DirBuilder},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::{
    crypto::KeyringId,
    files::{Allowed, NewFile, PrivateFileError, read_private},
    rollout::State,
};

/// The longest state, in bytes.
const LIMIT: usize = 64 << 20;
const WHAT: &str = "the state of a rollout";

/// The state of a keyring's last rollout, in a file.
#[derive(Debug, Clone)]
pub struct KeptState {
    file: PathBuf,
}

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .file.display())]
pub struct KeptError {
    file: PathBuf,
    reason: String,
}

impl KeptState {
    /// Keeps the state in `folder`, which is created at the first write.
    pub fn in_folder(folder: &Path, keyring: KeyringId) -> Self {
        Self {
            file: folder.join(format!("{keyring}.rollout.json")),
        }
    }

    /// Returns the state; `None` if no rollout was run here.
    ///
    /// # Errors
    /// The file can't be read, is damaged, or others may write it.
    pub fn read(&self) -> Result<Option<State>, KeptError> {
        match fs::symlink_metadata(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let bytes = read_private(&self.file, WHAT, Allowed::Owner, LIMIT)
            .map_err(|error: PrivateFileError| self.failed(error))?;
        let state = serde_json::from_slice(&bytes)
            .map_err(|error| self.failed(format!("it is damaged: {error}")))?;
        Ok(Some(state))
    }

    /// Replaces the state, durably.
    pub(super) fn write(&self, state: &State) -> Result<(), KeptError> {
        let json = match serde_json::to_vec(state) {
            Ok(json) => json,
            Err(error) => unreachable!("a state has only string keys: {error}"),
        };
        let write = || {
            if let Some(folder) = self.file.parent() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(folder)?;
            }
            let mut new = NewFile::beside(&self.file)?;
            new.write_all(&json)?;
            new.file().sync_all()?;
            new.persist(&self.file)
        };
        write().map_err(|error: io::Error| self.failed(format!("can't be written: {error}")))
    }

    fn failed(&self, reason: impl ToString) -> KeptError {
        KeptError {
            file: self.file.clone(),
            reason: reason.to_string(),
        }
    }
}
