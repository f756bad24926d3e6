//! The cached copy of a manifest on disk (`refresh.cache_dir`). A sidecar starts from it while the
//! location is down, and never accepts an older generation than the cached one.

use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use crate::{
    backend::{BackendError, CacheFile},
    config,
};

/// How far the file's timestamp may lag behind the last confirmation.
const MAX_STAMP_LAG: SignedDuration = SignedDuration::from_secs(60);

/// A manifest's file in the cache.
pub(super) struct CachedManifest {
    file: CacheFile,
    /// The largest manifest, in bytes.
    limit: usize,
    timeout: Duration,
    /// What the file contains, and the confirmation time it is stamped with.
    stored: Option<(Bytes, Timestamp)>,
    has_reported: bool,
}

impl CachedManifest {
    /// Returns None if the cache is not configured.
    pub(super) fn new(keyring: &config::Keyring, settings: &config::Refresh) -> Option<Self> {
        let folder = settings.cache_dir.as_ref()?;
        Some(Self {
            file: CacheFile::new(folder, &keyring.name),
            limit: settings.manifest_bytes,
            timeout: settings.read_timeout,
            stored: None,
            has_reported: false,
        })
    }

    pub(super) fn path(&self) -> std::path::Display<'_> {
        self.file.path().display()
    }

    /// Reads the file. Returns the manifest's bytes and when they were last confirmed, or None if
    /// nothing is cached.
    ///
    /// # Errors
    /// The file can't be read in time, or is too large.
    pub(super) async fn load(&self) -> Result<Option<(Bytes, Timestamp)>, String> {
        match timeout(self.timeout, self.file.load(self.limit)).await {
            Ok(loaded) => loaded.map_err(|error| error.to_string()),
            Err(_) => Err(format!(
                "{}: reading timed out after {:?} (`refresh.read_timeout`)",
                self.path(),
                self.timeout
            )),
        }
    }

    /// Records that the file contains `bytes`, confirmed at `confirmed`.
    pub(super) fn loaded(&mut self, bytes: Bytes, confirmed: Timestamp) {
        self.stored = Some((bytes, confirmed));
    }

    /// Writes `bytes` if the file has other content, or else updates its timestamp if that lags.
    ///
    /// Returns why that failed, unless a failure has been reported since it last worked.
    pub(super) async fn store(&mut self, bytes: &Bytes, confirmed: Timestamp) -> Option<String> {
        let write = async {
            match &self.stored {
                Some((stored, stamp)) if stored == bytes => {
                    if confirmed.duration_since(*stamp) < MAX_STAMP_LAG {
                        return Ok::<_, BackendError>(false);
                    }
                    self.file.confirm(confirmed).await?;
                }
                _ => self.file.save(bytes.clone(), confirmed).await?,
            }
            Ok(true)
        };
        let reason = match timeout(self.timeout, write).await {
            Ok(Ok(false)) => return None,
            Ok(Ok(true)) => {
                self.stored = Some((bytes.clone(), confirmed));
                self.has_reported = false;
                return None;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!(
                "{}: writing timed out after {:?} (`refresh.read_timeout`)",
                self.path(),
                self.timeout
            ),
        };
        let is_known = std::mem::replace(&mut self.has_reported, true);
        (!is_known).then_some(reason)
    }
}
