//! Cached manifests on the local disk, for starts while their locations are unavailable.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use jiff::Timestamp;

use super::read_manifest;
use crate::{
    backend::{BackendError, ErrorKind},
    files::{self, BlockingPool, folder_of},
    model::{KeyringName, Location},
};

/// The cached manifest of one keyring. The file's modification time is the time of the last
/// confirmation.
#[derive(Debug, Clone)]
pub struct CacheFile {
    path: PathBuf,
    pool: BlockingPool,
}

impl CacheFile {
    /// The cache of a keyring in `folder`, which is created when needed.
    pub fn new(folder: &Path, keyring: &KeyringName) -> Self {
        Self {
            path: folder.join(format!("{keyring}.json")),
            pool: BlockingPool::new(1),
        }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the manifest and the time of its last confirmation, or `None` if there is no file.
    ///
    /// # Errors
    /// Fails if the file can't be read or is longer than `limit` bytes.
    pub async fn load(&self, limit: usize) -> Result<Option<(Bytes, Timestamp)>, BackendError> {
        let cache = self.clone();
        self.pool.run(move || cache.load_now(limit)).await
    }

    /// Stores a manifest that was confirmed at `confirmed`.
    ///
    /// # Errors
    /// Fails if the file can't be written.
    pub async fn save(&self, bytes: Bytes, confirmed: Timestamp) -> Result<(), BackendError> {
        let cache = self.clone();
        let save = move || {
            cache
                .save_now(&bytes, confirmed)
                .map_err(|error| cache.error("can't write the cached manifest", &error))
        };
        self.pool.run(save).await
    }

    /// Records that the manifest was confirmed again.
    ///
    /// # Errors
    /// Fails if the file can't be written.
    pub async fn confirm(&self, confirmed: Timestamp) -> Result<(), BackendError> {
        let cache = self.clone();
        let confirm = move || {
            File::options()
                .append(true)
                .open(&cache.path)
                .and_then(|file| file.set_modified(system_time(confirmed)))
                .map_err(|error| cache.error("can't set the time of the cached manifest", &error))
        };
        self.pool.run(confirm).await
    }

    fn load_now(&self, limit: usize) -> Result<Option<(Bytes, Timestamp)>, BackendError> {
        let failed = |error| self.error("can't read the cached manifest", &error);
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let modified = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .map_err(failed)?;
        let bytes = read_manifest(file, limit)
            .map_err(failed)?
            .ok_or_else(|| BackendError::manifest_too_large(&self.location(), limit))?;
        // A time out of range confirms nothing.
        let confirmed = Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(Some((bytes.into(), confirmed)))
    }

    fn save_now(&self, bytes: &[u8], confirmed: Timestamp) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder_of(&self.path))?;
        files::replace_durably(&self.path, bytes, |file| {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.set_modified(system_time(confirmed))
        })
    }

    fn error(&self, what: &str, error: &io::Error) -> BackendError {
        let message = format!("{what} (`refresh.cache_dir`): {error}");
        BackendError::new(ErrorKind::Unavailable, self.location(), message)
    }

    fn location(&self) -> Location {
        Location::File(self.path.clone())
    }
}

/// Converts a time; times before the epoch become the epoch.
fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(time.as_millisecond().try_into().unwrap_or(0))
}
