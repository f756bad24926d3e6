//! `file:PATH`: a manifest or a secret on a local disk, a mounted volume or a synced folder.

mod cache;
mod secret;
mod watcher;

use std::{
    fs::{self, File, Permissions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use self::cache::CacheFile;
pub(super) use self::secret::FileSecret;

use super::{
    BackendError, ChangeCallback, ErrorKind, ManifestStore, WatchGuard, WatchedRead,
    blocking::BlockingPool,
};
use crate::{
    files::{self, folder_of},
    model::Location,
};

/// A manifest in a file.
#[derive(Debug, Clone)]
pub struct FileStore {
    path: PathBuf,
    pool: BlockingPool,
}

impl FileStore {
    /// Contacts nothing; the file need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            pool: BlockingPool::new(1),
        }
    }

    /// Watches any file without reading it, in place of the `former` guard.
    ///
    /// # Errors
    /// Fails if the system can't watch the file's folder.
    pub fn watch(
        &self,
        former: Option<WatchGuard>,
        on_change: ChangeCallback,
    ) -> BoxFuture<'_, Result<WatchGuard, BackendError>> {
        let store = self.clone();
        Box::pin(self.pool.run(move || {
            let guard = store.watch_now(&on_change);
            // Only now, so that no change in between is missed.
            drop(former);
            guard
        }))
    }

    fn location(&self) -> Location {
        Location::File(self.path.clone())
    }

    fn error(&self, what: &str, error: &io::Error) -> BackendError {
        if error.kind() == io::ErrorKind::NotFound {
            return BackendError::no_manifest(&self.location());
        }
        io_error(&self.location(), what, error)
    }

    fn read_now(&self, limit: usize) -> Result<Vec<u8>, BackendError> {
        let failed = |error| self.error("can't read the manifest", &error);
        let file = File::open(&self.path).map_err(failed)?;
        read_manifest(file, limit)
            .map_err(failed)?
            .ok_or_else(|| BackendError::manifest_too_large(&self.location(), limit))
    }

    /// Compare-and-swap under a lock on the folder. A lock on the file would not work: a rename
    /// gives it a new inode.
    fn replace_now(&self, expected: Option<&[u8]>, new: &[u8]) -> Result<(), BackendError> {
        let location = self.location();
        let failed = |what: &'static str| {
            let location = &location;
            move |error: io::Error| io_error(location, what, &error)
        };
        // A symbolic link stays; the file that it points to is replaced.
        let target = files::resolve(&self.path).map_err(failed("can't resolve the path"))?;
        let lock =
            File::open(folder_of(&target)).map_err(failed("can't open the manifest's folder"))?;
        lock.lock()
            .map_err(failed("can't lock the manifest's folder"))?;

        let (current, metadata) = match fs::read(&target) {
            Ok(bytes) => {
                let metadata =
                    fs::metadata(&target).map_err(failed("can't inspect the manifest"))?;
                (Some(bytes), Some(metadata))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
            Err(error) => return Err(failed("can't read the manifest")(error)),
        };
        if current.as_deref() != expected {
            return Err(BackendError::conflict(&location));
        }
        let written = files::replace_durably(&target, new, |file| {
            // Owner, group and mode may give sidecars access, so all three are preserved.
            if let Some(metadata) = &metadata {
                fchown(file, Some(metadata.uid()), Some(metadata.gid()))?;
            }
            file.set_permissions(
                metadata
                    .as_ref()
                    .map_or(Permissions::from_mode(0o644), fs::Metadata::permissions),
            )
        });
        written.map_err(failed("can't write the manifest"))
    }

    fn watch_now(&self, on_change: &ChangeCallback) -> Result<WatchGuard, BackendError> {
        let failed = |error: notify::Error| {
            let message = format!("can't watch its folder: {error}");
            BackendError::new(ErrorKind::Unavailable, self.location(), message)
        };
        let subscribe = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            watcher::subscribe(folder_of(path), Some(name), Arc::clone(on_change)).map_err(failed)
        };
        watch_with_target(&self.path, subscribe)
    }
}

/// Watches a path and, if it is or lies behind a symbolic link, the file that it leads to.
fn watch_with_target(
    path: &Path,
    subscribe: impl Fn(&Path) -> Result<watcher::Subscription, BackendError>,
) -> Result<WatchGuard, BackendError> {
    let target = fs::canonicalize(path).ok().filter(|target| target != path);
    let subscriptions = (
        subscribe(path)?,
        target.as_deref().map(subscribe).transpose()?,
    );
    Ok(WatchGuard(Box::new(subscriptions)))
}

/// Reads a manifest of at most `limit` bytes. Returns None if it is longer.
fn read_manifest(file: File, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= limit).then_some(bytes))
}

/// Explains an I/O error other than a missing file.
fn io_error(location: &Location, what: &str, error: &io::Error) -> BackendError {
    let mut message = format!("{what}: {error}");
    let kind = if error.kind() == io::ErrorKind::PermissionDenied {
        message += "; give this user access, by the owner, group or mode of the file and its \
                    folders";
        ErrorKind::Denied
    } else {
        ErrorKind::Unavailable
    };
    BackendError::new(kind, location, message)
}

impl ManifestStore for FileStore {
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, BackendError>> {
        let store = self.clone();
        Box::pin(
            self.pool
                .run(move || store.read_now(limit).map(Bytes::from)),
        )
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        let store = self.clone();
        Box::pin(
            self.pool
                .run(move || store.replace_now(expected.as_deref(), &new)),
        )
    }

    fn read_watched(
        &self,
        limit: usize,
        former: Option<WatchGuard>,
        on_change: ChangeCallback,
    ) -> BoxFuture<'_, WatchedRead> {
        let store = self.clone();
        // One job for both: with many keyrings, the number of jobs dominates the start-up time.
        Box::pin(self.pool.run(move || {
            // Before reading, and before the former guard is dropped, so that no change in between
            // is missed.
            let guard = store.watch_now(&on_change);
            drop(former);
            (store.read_now(limit).map(Bytes::from), guard)
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, sync::mpsc, time::Duration};

    use super::*;

    fn store() -> (tempfile::TempDir, FileStore) {
        let folder = tempfile::tempdir().expect("folder");
        let store = FileStore::new(folder.path().join("demo.json"));
        (folder, store)
    }

    #[test]
    fn replaces_only_the_expected_manifest() {
        let (_folder, store) = store();
        let replace = |expected, new| store.replace_now(expected, new).map_err(|error| error.kind);
        let read = |limit| store.read_now(limit).map_err(|error| error.kind);
        assert_eq!(read(9), Err(ErrorKind::NotFound));
        assert_eq!(replace(None, b"one"), Ok(()));
        assert_eq!(replace(None, b"two"), Err(ErrorKind::Conflict));
        assert_eq!(replace(Some(b"on"), b"two"), Err(ErrorKind::Conflict));
        assert_eq!(replace(Some(b"one"), b"two"), Ok(()));
        assert_eq!(read(3), Ok(b"two".to_vec()));
        assert_eq!(read(2), Err(ErrorKind::TooLarge));
    }

    #[test]
    fn a_replacement_keeps_mode_and_link_and_removes_the_leftover_of_a_killed_writer() {
        let (folder, store) = store();
        let real = folder.path().join("real.json");
        fs::write(&real, "one").expect("write");
        fs::set_permissions(&real, Permissions::from_mode(0o640)).expect("chmod");
        symlink("real.json", &store.path).expect("link");
        fs::write(files::temporary_beside(&real), "half").expect("write");
        store.replace_now(Some(b"one"), b"two").expect("swap");
        assert!(
            fs::symlink_metadata(&store.path)
                .expect("link")
                .is_symlink()
        );
        assert_eq!(fs::read(&real).expect("read"), b"two");
        assert_eq!(
            fs::metadata(&real).expect("metadata").permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 2);
    }

    #[test]
    fn a_write_a_rename_and_the_link_swap_of_kubernetes_are_noticed() {
        let (folder, store) = store();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("..1")).expect("folder");
        fs::write(at("..1/demo.json"), "one").expect("write");
        symlink("..1", at("..data")).expect("link");
        symlink("..data/demo.json", at("demo.json")).expect("link");
        let (sender, events) = mpsc::channel();
        let on_change: ChangeCallback = Arc::new(move || sender.send(()).expect("receiver"));
        let _guard = store.watch_now(&on_change).expect("watch");
        let wait_for_event = || {
            events
                .recv_timeout(Duration::from_secs(10))
                .expect("an event");
            while events.recv_timeout(Duration::from_millis(50)).is_ok() {}
        };
        symlink("..2", at("..data_tmp")).expect("link");
        fs::rename(at("..data_tmp"), at("..data")).expect("rename");
        wait_for_event();
        fs::write(at("other"), "three").expect("write");
        fs::rename(at("other"), at("demo.json")).expect("rename");
        wait_for_event();
        fs::write(at("demo.json"), "four").expect("write");
        wait_for_event();
    }
}
