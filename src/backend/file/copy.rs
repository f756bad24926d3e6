//! Copies of manifests on this machine's disk, for starts while their locations are down.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, Read},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use jiff::Timestamp;

use crate::{
    backend::{StoreError, lane::Lane},
    files::{self, folder_of},
    model::{KeyringName, Location},
};

/// The copy of one manifest. Its time of modification tells when the original was last confirmed.
#[derive(Debug, Clone)]
pub struct LocalCopy {
    path: PathBuf,
    lane: Lane,
}

impl LocalCopy {
    /// The copy of a keyring's manifest in `folder`, which is made when it is needed.
    pub fn new(folder: &Path, keyring: &KeyringName) -> Self {
        Self {
            path: folder.join(format!("{keyring}.json")),
            lane: Lane::new(1),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The copy and when it was last confirmed; `None` if there is none.
    ///
    /// # Errors
    /// It can't be read, or is longer than `limit` bytes.
    pub async fn load(&self, limit: usize) -> Result<Option<(Bytes, Timestamp)>, StoreError> {
        let copy = self.clone();
        self.lane.run(move || copy.load_now(limit)).await
    }

    /// Puts a manifest in its place, as confirmed at `confirmed`.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn save(&self, bytes: Bytes, confirmed: Timestamp) -> Result<(), StoreError> {
        let copy = self.clone();
        self.lane
            .run(move || {
                copy.save_now(&bytes, confirmed)
                    .map_err(|error| copy.failed("can't keep a copy", &error))
            })
            .await
    }

    /// Notes that its original was confirmed again.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn confirm(&self, confirmed: Timestamp) -> Result<(), StoreError> {
        let copy = self.clone();
        let stamp = move || {
            let stamped = File::options()
                .append(true)
                .open(&copy.path)
                .and_then(|file| file.set_modified(system(confirmed)));
            stamped.map_err(|error| copy.failed("can't stamp the copy", &error))
        };
        self.lane.run(stamp).await
    }

    fn load_now(&self, limit: usize) -> Result<Option<(Bytes, Timestamp)>, StoreError> {
        let failed = |error| self.failed("can't read the copy", &error);
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let modified = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() > limit {
            return Err(StoreError::TooLarge {
                location: self.location(),
                limit,
            });
        }
        // A time that no timestamp holds confirms nothing.
        Ok(Some((
            bytes.into(),
            Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH),
        )))
    }

    fn save_now(&self, bytes: &[u8], confirmed: Timestamp) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder_of(&self.path))?;
        files::replace_durably(&self.path, bytes, |file| {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.set_modified(system(confirmed))
        })
    }

    fn failed(&self, what: &str, error: &io::Error) -> StoreError {
        StoreError::Failed {
            location: self.location(),
            reason: format!("{what} (`refresh.cache_dir`): {error}"),
        }
    }

    fn location(&self) -> Location {
        Location::File(self.path.clone())
    }
}

fn system(time: Timestamp) -> SystemTime {
    // Before the epoch is as good as never.
    SystemTime::UNIX_EPOCH + Duration::from_millis(time.as_millisecond().try_into().unwrap_or(0))
}
