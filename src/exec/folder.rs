//! The files of secrets: in memory, for one user, and removed when the program exits.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{FlockOperation, flock, fstatfs},
    process::geteuid,
};

use super::log::log;
use crate::files::{self, Attribute};

const PREFIX: &str = "sidekey-exec-";
/// Link to the active set of files, named as in Kubernetes volumes.
const CURRENT: &str = "..data";
/// The next `..data` link, prepared inside the set that it points to.
const NEXT: &str = "..next";
/// An unlocked directory younger than this may still be in creation.
const MIN_LEFTOVER_AGE: Duration = Duration::from_secs(60);
/// The types of tmpfs and ramfs (statfs(2)).
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// The files can't be created.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The given parent directory is unsuitable.
    #[error("{}: {reason}", parent.display())]
    Unsuitable {
        /// The parent directory.
        parent: PathBuf,
        /// The reason.
        reason: String,
    },
    /// None of the default parent directories is suitable.
    #[error("no tmpfs for files of secrets; give one with --dir\n{}", .0.join("\n"))]
    NoTmpfs(Vec<String>),
    /// A file can't be written.
    #[error("can't write files to {}: {error}", path.display())]
    Write {
        /// The directory.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
}

/// Who may read the files. Only the user of `exec` may write to their directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileAccess {
    /// The files' permission bits.
    pub mode: u32,
    /// The files' owner. Default: the user of `exec`.
    pub owner: Option<u32>,
    /// The group of the files and their directory. Default: that of `exec`.
    pub group: Option<u32>,
}

impl FileAccess {
    /// The mode of directories that lets those through who may read a file.
    fn folder_mode(self) -> u32 {
        if self.owner.is_some() || self.mode & 0o007 != 0 {
            0o711
        } else if self.mode & 0o070 != 0 {
            0o710
        } else {
            0o700
        }
    }

    fn apply_to_folder(self, folder: &File) -> io::Result<()> {
        self.give(folder, self.folder_mode(), None)
    }

    fn apply_to_file(self, file: &File) -> io::Result<()> {
        self.give(file, self.mode, self.owner)
    }

    fn give(self, file: &File, mode: u32, owner: Option<u32>) -> io::Result<()> {
        files::give(file, self.group, mode, owner).map_err(|(attribute, error)| {
            let what = match attribute {
                Attribute::Group | Attribute::Owner => {
                    "can't set the owner or group; giving files to another user requires root or \
                     CAP_CHOWN"
                }
                Attribute::Mode | Attribute::Extended => "can't set the mode",
            };
            io::Error::new(error.kind(), format!("{what}: {error}"))
        })
    }
}

/// The directory of the program's files, removed on drop.
pub(super) struct Folder {
    path: PathBuf,
    access: FileAccess,
    /// Locked while the directory is in use.
    _lock: File,
    /// The active set.
    current: Option<u64>,
    /// A set that is written but not active yet.
    staged: Option<u64>,
    /// The number of the newest set.
    newest: u64,
}

impl Folder {
    /// Creates an empty directory in `parent`, or in the first suitable default. Leftovers of
    /// killed processes are removed from it.
    pub(super) fn create(parent: Option<&Path>, access: FileAccess) -> Result<Self, FolderError> {
        if let Some(parent) = parent {
            return Self::create_in(parent, access).map_err(|reason| FolderError::Unsuitable {
                parent: parent.into(),
                reason,
            });
        }
        let runtime = env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        let mut reasons = Vec::new();
        for parent in runtime
            .into_iter()
            .chain(["/dev/shm", "/run"].map(PathBuf::from))
        {
            match Self::create_in(&parent, access) {
                Ok(folder) => return Ok(folder),
                Err(reason) => reasons.push(format!("{}: {reason}", parent.display())),
            }
        }
        Err(FolderError::NoTmpfs(reasons))
    }

    fn create_in(parent: &Path, access: FileAccess) -> Result<Self, String> {
        // The program may change its working directory.
        let parent = parent.canonicalize().map_err(|error| error.to_string())?;
        let path = parent.join(format!("{PREFIX}{:016x}", fastrand::u64(..)));
        let created = DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .and_then(|()| File::open(&path));
        let lock = created.map_err(|error| format!("can't create a directory: {error}"))?;
        let folder = Self {
            path,
            access,
            _lock: lock,
            current: None,
            staged: None,
            newest: 0,
        };
        let file_system = fstatfs(&folder._lock).map_err(|error| error.to_string())?;
        if !IN_MEMORY.contains(&(file_system.f_type as u32)) {
            return Err("not a tmpfs; secrets are never written to disk".into());
        }
        flock(&folder._lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| error.to_string())?;
        access
            .apply_to_folder(&folder._lock)
            .map_err(|error| error.to_string())?;
        remove_leftovers(&parent);
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a set of files next to the active one. A lack of memory fails here and not in
    /// [`commit`](Self::commit). On failure, nothing changes.
    pub(super) fn stage<'f>(
        &mut self,
        files: impl Iterator<Item = (&'f str, &'f [u8])>,
    ) -> Result<(), FolderError> {
        self.newest += 1;
        let set = self.set(self.newest);
        if let Err(error) = self.write(&set, self.newest, files) {
            discard(&set);
            return Err(self.failed(error));
        }
        if let Some(before) = self.staged.replace(self.newest) {
            discard(&self.set(before));
        }
        Ok(())
    }

    /// Activates the staged files, if any, atomically: a reader that resolves `..data` once sees
    /// either all old or all new files.
    pub(super) fn commit(&mut self) -> Result<(), FolderError> {
        let Some(next) = self.staged else {
            return Ok(());
        };
        fs::rename(self.set(next).join(NEXT), self.path.join(CURRENT))
            .map_err(|error| self.failed(error))?;
        self.staged = None;
        if let Some(before) = self.current.replace(next) {
            discard(&self.set(before));
        }
        Ok(())
    }

    fn write<'f>(
        &self,
        set: &Path,
        number: u64,
        files: impl Iterator<Item = (&'f str, &'f [u8])>,
    ) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(set)?;
        self.access.apply_to_folder(&File::open(set)?)?;
        for (name, value) in files {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(set.join(name))?;
            file.write_all(value)?;
            self.access.apply_to_file(&file)?;
            if number == 1 {
                symlink(Path::new(CURRENT).join(name), self.path.join(name))?;
            }
        }
        symlink(name(number), set.join(NEXT))
    }

    fn set(&self, number: u64) -> PathBuf {
        self.path.join(name(number))
    }

    fn failed(&self, error: io::Error) -> FolderError {
        FolderError::Write {
            path: self.path.clone(),
            error,
        }
    }
}

fn name(set: u64) -> String {
    format!("..{set}")
}

/// Removes outdated files.
fn discard(path: &Path) {
    if let Err(error) = remove(path) {
        log(format_args!("can't remove {}: {error}", path.display()));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        discard(&self.path);
    }
}

/// Removes a directory or a file, if it exists.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            Ok(())
        } else {
            Err(error)
        }
    })
}

/// Removes directories of killed processes.
fn remove_leftovers(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !is_leftover(&path) {
            continue;
        }
        if let Err(error) = remove(&path) {
            log(format_args!(
                "can't remove the leftover directory {}: {error}",
                path.display()
            ));
        }
    }
}

fn is_leftover(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return false;
    };
    let age = metadata
        .modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    metadata.is_dir()
        && metadata.uid() == geteuid().as_raw()
        && age.is_some_and(|age| age > MIN_LEFTOVER_AGE)
        && File::open(path)
            .is_ok_and(|folder| flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: FileAccess = FileAccess {
        mode: 0o400,
        owner: None,
        group: None,
    };

    fn folder() -> Folder {
        Folder::create(None, PRIVATE).expect("a tmpfs")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").mode() & 0o7777
    }

    #[test]
    fn who_may_read_a_file_may_reach_it_and_no_one_else_may_write() {
        let (user, group) = (geteuid().as_raw(), rustix::process::getegid().as_raw());
        let own = |mode| FileAccess { mode, ..PRIVATE };
        let to_owner = FileAccess {
            owner: Some(user),
            ..PRIVATE
        };
        let to_group = FileAccess {
            group: Some(group),
            ..own(0o440)
        };
        for (access, expected) in [
            (PRIVATE, (0o700, 0o400)),
            (own(0o440), (0o710, 0o440)),
            (to_group, (0o710, 0o440)),
            (to_owner, (0o711, 0o400)),
            (own(0o444), (0o711, 0o444)),
        ] {
            let mut folder = Folder::create(None, access).expect("a tmpfs");
            for value in [b"1", b"2"] {
                write(&mut folder, &[("a", value)]);
                let path = folder.path();
                let set = path.join(CURRENT);
                assert_eq!(mode(path), expected.0, "{access:?}");
                assert_eq!((mode(&set), mode(&set.join("a"))), expected, "{access:?}");
            }
        }
    }

    #[test]
    fn files_of_another_owner_require_only_cap_chown() {
        files::with_only_cap_chown(|| {
            let access = FileAccess {
                mode: 0o440,
                owner: Some(1234),
                group: Some(2345),
            };
            let mut folder = Folder::create(None, access).expect("a tmpfs");
            write(&mut folder, &[("a", b"1")]);
            let given = fs::metadata(folder.path().join("a")).expect("metadata");
            assert_eq!(
                (given.uid(), given.gid(), given.mode() & 0o7777),
                (1234, 2345, 0o440)
            );
        });
    }

    fn write(folder: &mut Folder, files: &[(&str, &[u8])]) {
        folder.stage(files.iter().copied()).expect("staged");
        folder.commit().expect("committed");
    }

    fn entries(path: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("text")
        };
        let mut names: Vec<String> = fs::read_dir(path).expect("folder").map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_private_and_replaced_as_a_set() {
        let mut folder = folder();
        write(&mut folder, &[("a", b"1"), ("b", b"2\0\xff")]);
        let path = folder.path().to_owned();
        assert_eq!(
            (
                mode(&path),
                mode(&path.join("..data")),
                mode(&path.join("a"))
            ),
            (0o700, 0o700, 0o400)
        );
        // A reader with an open file keeps seeing the old set.
        let old = fs::canonicalize(path.join("..data")).expect("set");
        let open = File::open(path.join("a")).expect("file");
        write(&mut folder, &[("a", b"3"), ("b", b"4")]);
        assert_eq!(fs::read(path.join("a")).expect("file"), b"3");
        assert_eq!(fs::read(path.join("b")).expect("file"), b"4");
        assert_eq!(io::read_to_string(open).expect("file"), "1");
        assert!(!old.exists(), "the old values are removed");
        assert_eq!(entries(&path), ["..2", "..data", "a", "b"]);
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_failed_write_keeps_the_active_and_the_staged_files() {
        let mut folder = folder();
        write(&mut folder, &[("a", b"1")]);
        let path = folder.path().to_owned();
        let read = || fs::read(path.join("a")).expect("file");
        folder
            .stage([("a", &b"2"[..])].into_iter())
            .expect("staged");
        assert_eq!(read(), b"1", "not active yet");
        folder
            .stage([("a", &b"3"[..]), ("a", b"3")].into_iter())
            .expect_err("the same name twice");
        assert_eq!(
            (read(), entries(&path)),
            (
                b"1".into(),
                ["..1", "..2", "..data", "a"].map(str::to_owned).into()
            )
        );
        folder.commit().expect("committed");
        folder.commit().expect("nothing to do");
        assert_eq!(
            (read(), entries(&path)),
            (
                b"2".into(),
                ["..2", "..data", "a"].map(str::to_owned).into()
            )
        );
    }

    #[test]
    fn a_disk_is_refused_and_unchanged() {
        let disk = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
        fs::create_dir_all(&disk).expect("folder");
        let parent = tempfile::tempdir_in(disk).expect("folder");
        let refused = Folder::create(Some(parent.path()), PRIVATE)
            .err()
            .expect("no tmpfs")
            .to_string();
        assert!(refused.contains("not a tmpfs"), "{refused}");
        assert_eq!(entries(parent.path()), Vec::<String>::new());
    }

    #[test]
    fn only_leftovers_of_killed_processes_are_removed() {
        let parent = tempfile::tempdir_in("/dev/shm").expect("folder");
        let create = |name: &str, age: u64| {
            let path = parent.path().join(name);
            fs::create_dir(&path).expect("folder");
            let at = SystemTime::now() - Duration::from_secs(age);
            File::open(&path)
                .and_then(|folder| folder.set_modified(at))
                .expect("time");
            path
        };
        let (old, young, other) = (
            create("sidekey-exec-1", 3600),
            create("sidekey-exec-2", 0),
            create("other", 3600),
        );
        let held = create("sidekey-exec-3", 3600);
        let holder = File::open(&held).expect("folder");
        flock(&holder, FlockOperation::NonBlockingLockExclusive).expect("lock");
        let folder = Folder::create(Some(parent.path()), PRIVATE).expect("tmpfs");
        assert_eq!(
            [&old, &young, &other, &held].map(|path| path.exists()),
            [false, true, true, true]
        );
        drop(folder);
    }
}
