//! The files of secrets: in memory alone, for one user, for as long as the program runs.

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

use super::say;

const PREFIX: &str = "sidekey-exec-";
/// What the set in force is called, as in the volumes of Kubernetes.
const CURRENT: &str = "..data";
/// What will be called so, inside the set that it leads to.
const NEXT: &str = "..next";
/// A folder that nobody holds and that is no older may just be in the making.
const IN_THE_MAKING: Duration = Duration::from_secs(60);
/// File systems that write nothing to a disk (statfs(2)).
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// Why the files have no place.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The one that was named won't do.
    #[error("{}: {reason}", place.display())]
    Place {
        /// Where.
        place: PathBuf,
        /// Why not.
        reason: String,
    },
    /// None of the usual ones will do.
    #[error("there is no place in memory for files of secrets; name one by --dir\n{}", .0.join("\n"))]
    NoPlace(Vec<String>),
    /// A file can't be written.
    #[error("can't write files to {}: {error}", path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// The program's folder. It is removed when this is dropped.
pub(super) struct Folder {
    path: PathBuf,
    /// Held locked for as long as the folder is in use.
    _held: File,
    /// The set in force; none before the first.
    current: Option<u64>,
    /// The one that is written and not in force yet.
    prepared: Option<u64>,
    /// How many were begun.
    begun: u64,
}

impl Folder {
    /// Makes an empty folder at `place`, or where there usually is memory. What killed processes left there is removed.
    pub(super) fn create(place: Option<&Path>) -> Result<Self, FolderError> {
        if let Some(place) = place {
            return Self::at(place).map_err(|reason| FolderError::Place {
                place: place.into(),
                reason,
            });
        }
        let runtime = env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        let mut reasons = Vec::new();
        for place in runtime
            .into_iter()
            .chain(["/dev/shm", "/run"].map(PathBuf::from))
        {
            match Self::at(&place) {
                Ok(folder) => return Ok(folder),
                Err(reason) => reasons.push(format!("{}: {reason}", place.display())),
            }
        }
        Err(FolderError::NoPlace(reasons))
    }

    fn at(place: &Path) -> Result<Self, String> {
        // The program may change its working directory.
        let place = place.canonicalize().map_err(|error| error.to_string())?;
        let path = place.join(format!("{PREFIX}{:016x}", fastrand::u64(..)));
        let made = DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .and_then(|()| File::open(&path));
        let held = made.map_err(|error| format!("can't make a folder: {error}"))?;
        let folder = Self {
            path,
            _held: held,
            current: None,
            prepared: None,
            begun: 0,
        };
        let file_system = fstatfs(&folder._held).map_err(|error| error.to_string())?;
        if !IN_MEMORY.contains(&(file_system.f_type as u32)) {
            return Err("this is no tmpfs, and secrets are not written to a disk".into());
        }
        flock(&folder._held, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| error.to_string())?;
        sweep(&place);
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a set of files beside the one in force. What is short, memory above all, is short here and not when they are exchanged. If it
    /// fails, nothing has changed.
    pub(super) fn prepare<'f>(
        &mut self,
        files: impl Iterator<Item = (&'f str, &'f [u8])>,
    ) -> Result<(), FolderError> {
        self.begun += 1;
        let set = self.set(self.begun);
        if let Err(error) = self.write(&set, self.begun, files) {
            discard(&set);
            return Err(self.failed(error));
        }
        if let Some(before) = self.prepared.replace(self.begun) {
            discard(&self.set(before));
        }
        Ok(())
    }

    /// Exchanges all files at once for those that were prepared, if any were. A reader sees the old ones or the new ones, never some of
    /// each, if it opens `..data` first.
    pub(super) fn exchange(&mut self) -> Result<(), FolderError> {
        let Some(next) = self.prepared else {
            return Ok(());
        };
        fs::rename(self.set(next).join(NEXT), self.path.join(CURRENT))
            .map_err(|error| self.failed(error))?;
        self.prepared = None;
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
        for (name, value) in files {
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(set.join(name));
            file?.write_all(value)?;
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

/// Removes what nobody shall read any more.
fn discard(path: &Path) {
    if let Err(error) = remove(path) {
        say(format_args!("can't remove {}: {error}", path.display()));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        discard(&self.path);
    }
}

/// Removes a folder or a file, if it is there.
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

/// Removes folders of ours that nobody holds any more, since whoever did was killed.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !is_left_over(&path) {
            continue;
        }
        if let Err(error) = remove(&path) {
            say(format_args!(
                "can't remove {}, which is left over: {error}",
                path.display()
            ));
        }
    }
}

fn is_left_over(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return false;
    };
    let age = metadata
        .modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    metadata.is_dir()
        && metadata.uid() == geteuid().as_raw()
        && age.is_some_and(|age| age > IN_THE_MAKING)
        && File::open(path)
            .is_ok_and(|folder| flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> Folder {
        Folder::create(None).expect("a place in memory")
    }

    fn write(folder: &mut Folder, files: &[(&str, &[u8])]) {
        folder.prepare(files.iter().copied()).expect("written");
        folder.exchange().expect("exchanged");
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
    fn files_are_for_one_user_and_are_exchanged_as_a_set() {
        let mut folder = folder();
        write(&mut folder, &[("a", b"1"), ("b", b"2\0\xff")]);
        let path = folder.path().to_owned();
        let mode =
            |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o7777;
        assert_eq!(
            (
                mode(&path),
                mode(&path.join("..data")),
                mode(&path.join("a"))
            ),
            (0o700, 0o700, 0o400)
        );
        // Whoever holds the set sees the old one whole.
        let old = fs::canonicalize(path.join("..data")).expect("set");
        let open = File::open(path.join("a")).expect("file");
        write(&mut folder, &[("a", b"3"), ("b", b"4")]);
        assert_eq!(fs::read(path.join("a")).expect("file"), b"3");
        assert_eq!(fs::read(path.join("b")).expect("file"), b"4");
        assert_eq!(io::read_to_string(open).expect("file"), "1");
        assert!(!old.exists(), "the old values are gone");
        assert_eq!(entries(&path), ["..2", "..data", "a", "b"]);
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn files_that_can_not_be_written_leave_those_that_can() {
        let mut folder = folder();
        write(&mut folder, &[("a", b"1")]);
        let path = folder.path().to_owned();
        let read = || fs::read(path.join("a")).expect("file");
        folder
            .prepare([("a", &b"2"[..])].into_iter())
            .expect("written");
        assert_eq!(read(), b"1", "not in force yet");
        folder
            .prepare([("a", &b"3"[..]), ("a", b"3")].into_iter())
            .expect_err("the same name twice");
        assert_eq!(
            (read(), entries(&path)),
            (
                b"1".into(),
                ["..1", "..2", "..data", "a"].map(str::to_owned).into()
            )
        );
        folder.exchange().expect("exchanged");
        folder.exchange().expect("nothing to do");
        assert_eq!(
            (read(), entries(&path)),
            (
                b"2".into(),
                ["..2", "..data", "a"].map(str::to_owned).into()
            )
        );
    }

    #[test]
    fn a_disk_is_refused_and_left_as_it_was() {
        let disk = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
        fs::create_dir_all(&disk).expect("folder");
        let place = tempfile::tempdir_in(disk).expect("folder");
        let refused = Folder::create(Some(place.path()))
            .err()
            .expect("no memory")
            .to_string();
        assert!(refused.contains("no tmpfs"), "{refused}");
        assert_eq!(entries(place.path()), Vec::<String>::new());
    }

    #[test]
    fn what_killed_processes_left_is_removed_and_nothing_else() {
        let place = tempfile::tempdir_in("/dev/shm").expect("folder");
        let made = |name: &str, age: u64| {
            let path = place.path().join(name);
            fs::create_dir(&path).expect("folder");
            let at = SystemTime::now() - Duration::from_secs(age);
            File::open(&path)
                .and_then(|folder| folder.set_modified(at))
                .expect("time");
            path
        };
        let (old, young, other) = (
            made("sidekey-exec-1", 3600),
            made("sidekey-exec-2", 0),
            made("somebody", 3600),
        );
        let held = made("sidekey-exec-3", 3600);
        let holder = File::open(&held).expect("folder");
        flock(&holder, FlockOperation::NonBlockingLockExclusive).expect("lock");
        let folder = Folder::create(Some(place.path())).expect("memory");
        assert_eq!(
            [&old, &young, &other, &held].map(|path| path.exists()),
            [false, true, true, true]
        );
        drop(folder);
    }
}
