//! `file:PATH`: a manifest or a secret on a local disk, a mounted volume or a synced folder.

mod cache;
mod secret;

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use self::cache::CacheFile;
pub(super) use self::secret::FileSecret;

use super::{BackendError, ErrorKind, ManifestStore, WatchedRead};
use crate::{
    files::{self, BlockingPool, ChangeCallback, WatchGuard, WriterLock, folder_of},
    model::Location,
};

/// How long a command waits for another one that writes the same manifest.
const PATIENCE: Duration = Duration::from_secs(5);

/// A manifest in a file.
#[derive(Debug, Clone)]
pub struct FileStore {
    path: PathBuf,
    patience: Duration,
    pool: BlockingPool,
}

impl FileStore {
    /// Contacts nothing; the file need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            patience: PATIENCE,
            pool: BlockingPool::new(1),
        }
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
        let file = files::open_regular(&self.path).map_err(failed)?;
        read_manifest(file, limit)
            .map_err(failed)?
            .ok_or_else(|| BackendError::manifest_too_large(&self.location(), limit))
    }

    /// Compare-and-swap under the lock of the manifest's writers: those who may write its folder.
    fn replace_now(&self, expected: Option<&[u8]>, new: &[u8]) -> Result<(), BackendError> {
        let location = self.location();
        let failed = |what: &'static str| {
            let location = &location;
            move |error: io::Error| io_error(location, what, &error)
        };
        // A symbolic link stays; the file that it points to is replaced.
        let target = files::resolve(&self.path).map_err(failed("can't resolve the path"))?;
        let folder = fs::metadata(folder_of(&target))
            .map_err(failed("can't inspect the manifest's folder"))?;
        let _lock = WriterLock::acquire(&target, &folder, self.patience)
            .map_err(failed("can't lock the manifest"))?;

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
            let metadata = metadata.as_ref();
            let mode = metadata.map_or(0o644, |metadata| metadata.mode() & 0o7777);
            let group = metadata.map(MetadataExt::gid);
            files::give(file, group, mode, metadata.map(MetadataExt::uid))
                .map_err(|(_, error)| error)
        });
        written.map_err(failed("can't write the manifest"))
    }
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
            // Before reading, so that no change in between is missed.
            let guard = files::watch(&store.path, former, &on_change);
            (store.read_now(limit).map(Bytes::from), Some(guard))
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt, chown, symlink},
    };

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
    fn a_reader_delays_no_writer_and_another_writer_only_for_a_time() {
        let (folder, mut store) = store();
        store.replace_now(None, b"one").expect("new");
        // All that a reader can open and lock.
        let readable = [folder.path().to_owned(), store.path.clone()];
        let locks = readable.map(|path| File::open(path).expect("open"));
        for lock in &locks {
            lock.lock().expect("lock");
        }
        store.replace_now(Some(b"one"), b"two").expect("free");
        let lock = files::lock_path(&store.path);
        let mode = fs::metadata(&lock).expect("lock").permissions().mode();
        assert_eq!(mode & 0o777, 0o200, "no one but its owner");
        let writer = File::options().write(true).open(&lock).expect("lock");
        writer.lock().expect("lock");
        store.patience = Duration::from_millis(20);
        let error = store.replace_now(Some(b"two"), b"three").expect_err("held");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(
            error.to_string().contains("find it with: fuser "),
            "{error}"
        );
        drop(writer);
        store
            .replace_now(Some(b"two"), b"three")
            .expect("free again");
    }

    #[test]
    fn a_manifest_of_another_owner_requires_only_cap_chown() {
        files::with_only_cap_chown(|| {
            let (_folder, store) = store();
            store.replace_now(None, b"one").expect("new");
            chown(&store.path, Some(1234), Some(2345)).expect("chown");
            store.replace_now(Some(b"one"), b"two").expect("swap");
            let kept = fs::metadata(&store.path).expect("metadata");
            assert_eq!(
                (kept.uid(), kept.gid(), kept.mode() & 0o7777),
                (1234, 2345, 0o644)
            );
        });
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
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["demo.json", "real.json", "real.json.lock"]);
    }
}
