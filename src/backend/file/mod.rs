//! `file:PATH`: a manifest in a file, on a disk, a mounted ConfigMap or a synced folder.

mod copy;
mod secret;
mod watcher;

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use copy::LocalCopy;
pub(super) use secret::FileSecret;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Changed, ManifestStore, StoreError, WatchGuard, Watched, lane::Lane};
use crate::{
    files::{self, folder_of},
    model::Location,
};

/// A manifest in a file.
#[derive(Debug, Clone)]
pub struct FileStore {
    path: PathBuf,
    lane: Lane,
}

impl FileStore {
    /// The manifest at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            lane: Lane::new(1),
        }
    }

    fn location(&self) -> Location {
        Location::File(self.path.clone())
    }

    fn failed(&self, what: &str, error: &io::Error) -> StoreError {
        match error.kind() {
            ErrorKind::NotFound => StoreError::Missing(self.location()),
            ErrorKind::PermissionDenied => {
                let reason = format!(
                    "{what}: {error}; let this user in, by owner, group or mode of the file and its folders"
                );
                StoreError::Denied {
                    location: self.location(),
                    reason,
                }
            }
            _ => StoreError::Failed {
                location: self.location(),
                reason: format!("{what}: {error}"),
            },
        }
    }

    fn read_now(&self, limit: usize) -> Result<Vec<u8>, StoreError> {
        let failed = |error| self.failed("can't read the manifest", &error);
        let file = File::open(&self.path).map_err(failed)?;
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
        Ok(bytes)
    }

    /// Compare-and-swap under a lock on the folder: a rename gives the file a new inode, so a lock on the file would guard nothing.
    fn replace_now(&self, expected: Option<&[u8]>, new: &[u8]) -> Result<(), StoreError> {
        let failed = |what: &'static str| {
            move |error| match self.failed(what, &error) {
                StoreError::Missing(location) => StoreError::Failed {
                    location,
                    reason: format!("{what}: {error}"),
                },
                other => other,
            }
        };
        // A symbolic link stays; the file that it points to is replaced.
        let target = files::resolve(&self.path).map_err(failed("can't resolve the path"))?;
        let folder = folder_of(&target);
        let lock = File::open(folder).map_err(failed("can't open the manifest's folder"))?;
        lock.lock()
            .map_err(failed("can't lock the manifest's folder"))?;

        let (present, former) = match fs::read(&target) {
            Ok(bytes) => (
                Some(bytes),
                Some(fs::metadata(&target).map_err(failed("can't inspect the manifest"))?),
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => (None, None),
            Err(error) => return Err(failed("can't read the manifest")(error)),
        };
        if present.as_deref() != expected {
            return Err(StoreError::Conflict(self.location()));
        }
        let written = files::replace_durably(&target, new, |file| {
            // Sidecars may be let in by owner, group or mode; all three stay.
            if let Some(former) = &former {
                fchown(file, Some(former.uid()), Some(former.gid()))?;
            }
            file.set_permissions(
                former
                    .as_ref()
                    .map_or(Permissions::from_mode(0o644), fs::Metadata::permissions),
            )
        });
        written.map_err(failed("can't write the manifest"))
    }
}

impl FileStore {
    /// Watches without reading, in place of the `former` guard, as [`ManifestStore::read_watched`] does; for any file.
    ///
    /// # Errors
    /// The system can't watch the file's folder.
    pub fn watch(
        &self,
        former: Option<WatchGuard>,
        changed: Changed,
    ) -> BoxFuture<'_, Result<WatchGuard, StoreError>> {
        let store = self.clone();
        Box::pin(self.lane.run(move || {
            let guard = store.watch_now(&changed);
            // Only now, so that no change falls between the two.
            drop(former);
            guard
        }))
    }

    fn watch_now(&self, changed: &Changed) -> Result<WatchGuard, StoreError> {
        let failed = |error: notify::Error| StoreError::Failed {
            location: self.location(),
            reason: format!("can't watch its folder: {error}"),
        };
        let subscribe = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            watcher::subscribe(folder_of(path), Some(name), Arc::clone(changed)).map_err(failed)
        };
        // A file that is a link, or lies behind one, changes at the link and at its end.
        let end = fs::canonicalize(&self.path)
            .ok()
            .filter(|end| *end != self.path);
        let both = (
            subscribe(&self.path)?,
            end.as_deref().map(subscribe).transpose()?,
        );
        Ok(WatchGuard(Box::new(both)))
    }
}

impl ManifestStore for FileStore {
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        let store = self.clone();
        Box::pin(
            self.lane
                .run(move || store.read_now(limit).map(Bytes::from)),
        )
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let store = self.clone();
        Box::pin(
            self.lane
                .run(move || store.replace_now(expected.as_deref(), &new)),
        )
    }

    fn read_watched(
        &self,
        limit: usize,
        former: Option<WatchGuard>,
        changed: Changed,
    ) -> BoxFuture<'_, Watched> {
        let store = self.clone();
        // One job for both: at a start with many keyrings, the jobs are what takes time.
        Box::pin(self.lane.run(move || {
            // Before reading, so that no change falls between the two.
            let guard = store.watch_now(&changed);
            // Only now, for the same reason.
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
    fn replaces_only_what_was_expected() {
        let (_folder, store) = store();
        assert!(matches!(store.read_now(9), Err(StoreError::Missing(_))));
        store.replace_now(None, b"one").expect("new");
        assert!(matches!(
            store.replace_now(None, b"two"),
            Err(StoreError::Conflict(_))
        ));
        assert!(matches!(
            store.replace_now(Some(b"on"), b"two"),
            Err(StoreError::Conflict(_))
        ));
        store.replace_now(Some(b"one"), b"two").expect("swap");
        assert_eq!(store.read_now(3).expect("read"), b"two");
        assert!(matches!(
            store.read_now(2),
            Err(StoreError::TooLarge { .. })
        ));
    }

    #[test]
    fn keeps_the_mode_follows_a_link_and_survives_a_killed_writers_leftover() {
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
    fn sees_a_write_a_rename_and_the_link_swap_of_kubernetes() {
        let (folder, store) = store();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("..1")).expect("folder");
        fs::write(at("..1/demo.json"), "one").expect("write");
        symlink("..1", at("..data")).expect("link");
        symlink("..data/demo.json", at("demo.json")).expect("link");
        let (sender, events) = mpsc::channel();
        let _guard = store
            .watch_now(&(Arc::new(move || sender.send(()).expect("receiver lives")) as Changed))
            .expect("watch");
        let seen = || {
            events
                .recv_timeout(Duration::from_secs(10))
                .expect("an event");
            while events.recv_timeout(Duration::from_millis(50)).is_ok() {}
        };
        symlink("..2", at("..data_tmp")).expect("link");
        fs::rename(at("..data_tmp"), at("..data")).expect("rename");
        seen();
        fs::write(at("other"), "three").expect("write");
        fs::rename(at("other"), at("demo.json")).expect("rename");
        seen();
        fs::write(at("demo.json"), "four").expect("write");
        seen();
    }
}
