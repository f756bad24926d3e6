//! Atomic replacement: a file is written beside its target and renamed once it is complete.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use tempfile::{NamedTempFile, TempPath};

use super::folder_of;

/// A file under a temporary name. Unless it is persisted, dropping it removes it.
pub struct NewFile(NamedTempFile);

impl NewFile {
    /// Creates an empty file beside `target` that only its owner may read. Its name is unique.
    ///
    /// # Errors
    /// The file can't be created, or `target` doesn't name a file.
    pub fn beside(target: &Path) -> io::Result<Self> {
        Self::with_mode(target, 0o600)
    }

    /// Like [`NewFile::beside`], but with `mode` less the process's umask.
    ///
    /// # Errors
    /// The file can't be created, or `target` doesn't name a file.
    pub fn with_mode(target: &Path, mode: u32) -> io::Result<Self> {
        let name = target
            .file_name()
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the path has no file name"))?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{:016x}.new", fastrand::u64(..)));
        Self::create(target.with_file_name(temporary), mode)
    }

    fn create(path: PathBuf, mode: u32) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)?;
        Self::adopt(file, path)
    }

    /// Takes over a file that the caller created at `path`.
    ///
    /// # Errors
    /// `path` is relative and the current folder is unknown.
    pub fn adopt(file: File, path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = TempPath::try_from_path(path)?;
        Ok(Self(NamedTempFile::from_parts(file, path)))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        self.0.as_file()
    }

    /// The temporary path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Syncs the file and renames it to `target`, which it replaces. The folder isn't synced.
    ///
    /// # Errors
    /// The file can't be synced or renamed; it is removed.
    pub fn persist(self, target: &Path) -> io::Result<()> {
        self.file().sync_all()?;
        self.0.persist(target)?;
        Ok(())
    }

    /// Like [`NewFile::persist`], but fails with [`ErrorKind::AlreadyExists`] if `target` exists.
    ///
    /// # Errors
    /// `target` exists, or the file can't be synced or renamed; it is removed.
    pub fn persist_noclobber(self, target: &Path) -> io::Result<()> {
        self.file().sync_all()?;
        self.0.persist_noclobber(target)?;
        Ok(())
    }

    /// Removes the file and reports whether that worked, which dropping it doesn't.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn discard(self) -> io::Result<()> {
        self.0.close()
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Bypasses tempfile's own `Write`, which appends the temporary path to every error.
        self.0.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_file_mut().flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.0.as_file_mut().seek(position)
    }
}

/// Replaces the file at `target` with `bytes`, atomically. `finish` sets the new file's attributes;
/// until then only the owner may read it. A symbolic link at `target` is itself replaced.
///
/// The temporary file has a fixed name ([`temporary_beside`]), so a writer that was killed leaves
/// at most one file, which the next call removes. Callers must not write one target concurrently.
/// The folder isn't synced: a crash may undo the replacement.
///
/// # Errors
/// Any error of the system or of `finish`. The old file stays and no temporary file is left.
pub fn replace(
    target: &Path,
    bytes: &[u8],
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    remove_leftover(target)?;
    let mut new = NewFile::create(temporary_beside(target), 0o600)?;
    new.write_all(bytes)?;
    finish(new.file())?;
    new.persist(target)
}

/// Like [`replace`], but also syncs the folder.
///
/// # Errors
/// Those of [`replace`]. If the folder can't be synced, the new file is in place, but a crash may
/// undo the replacement.
pub fn replace_durably(
    target: &Path,
    bytes: &[u8],
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    // Opened first: if that fails, nothing has changed yet.
    let folder = File::open(folder_of(target))?;
    replace(target, bytes, finish)?;
    folder.sync_all()
}

/// Removes the temporary file that a killed [`replace`] left beside `target`, if there is one.
///
/// # Errors
/// The file can't be removed.
pub fn remove_leftover(target: &Path) -> io::Result<()> {
    match fs::remove_file(temporary_beside(target)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The path of the temporary file that [`replace`] writes.
pub fn temporary_beside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".new");
    target.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::{super::sync_folder_of, *};

    fn target() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("target");
        (folder, path)
    }

    fn count(folder: &tempfile::TempDir) -> usize {
        fs::read_dir(folder.path()).expect("folder").count()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o777
    }

    #[test]
    fn a_replacement_has_the_bytes_and_the_mode_that_the_caller_sets() {
        let (folder, path) = target();
        replace(&path, b"one", |_| Ok(())).expect("new");
        assert_eq!(
            (fs::read(&path).expect("read"), mode(&path)),
            (b"one".to_vec(), 0o600)
        );
        replace_durably(&path, b"two", |file| {
            file.set_permissions(Permissions::from_mode(0o644))
        })
        .expect("replace");
        assert_eq!(
            (fs::read(&path).expect("read"), mode(&path)),
            (b"two".to_vec(), 0o644)
        );
        assert_eq!(count(&folder), 1);
    }

    #[test]
    fn the_leftover_of_a_killed_writer_is_replaced_or_removed() {
        let (folder, path) = target();
        fs::write(temporary_beside(&path), "half").expect("write");
        replace(&path, b"whole", |_| Ok(())).expect("replace");
        assert_eq!(
            (fs::read(&path).expect("read"), count(&folder)),
            (b"whole".to_vec(), 1)
        );
        fs::write(temporary_beside(&path), "half").expect("write");
        remove_leftover(&path).expect("remove");
        remove_leftover(&path).expect("nothing to remove");
        assert_eq!(count(&folder), 1);
    }

    #[test]
    fn a_failed_replacement_keeps_the_old_file_and_leaves_nothing_behind() {
        let (folder, path) = target();
        fs::write(&path, "old").expect("write");
        let refused = replace(&path, b"new", |_| Err(ErrorKind::PermissionDenied.into()));
        assert_eq!(
            refused.expect_err("refused").kind(),
            ErrorKind::PermissionDenied
        );
        assert_eq!(
            (fs::read(&path).expect("read"), count(&folder)),
            (b"old".to_vec(), 1)
        );
        fs::remove_file(&path).expect("remove");
        fs::create_dir_all(path.join("not empty")).expect("folder");
        replace(&path, b"new", |_| Ok(())).expect_err("the target is a folder");
        assert_eq!(count(&folder), 1);
    }

    #[test]
    fn a_new_file_is_private_until_persisted_and_gone_if_dropped() {
        let (folder, path) = target();
        let mut new = NewFile::beside(&path).expect("new");
        new.write_all(b"new").expect("write");
        assert_eq!((mode(new.path()), path.exists()), (0o600, false));
        drop(new);
        assert_eq!(count(&folder), 0);
        NewFile::beside(&path)
            .expect("new")
            .discard()
            .expect("discard");
        assert_eq!(count(&folder), 0);
        let (mut first, second) = (
            NewFile::beside(&path).expect("new"),
            NewFile::beside(&path).expect("another"),
        );
        first.write_all(b"first").expect("write");
        first.persist(&path).expect("persist");
        second.persist(&path).expect("persist");
        assert_eq!(
            (fs::read(&path).expect("read"), count(&folder)),
            (Vec::new(), 1)
        );
    }

    #[test]
    fn persisting_without_clobbering_keeps_an_existing_file() {
        let (folder, path) = target();
        NewFile::beside(&path)
            .expect("new")
            .persist_noclobber(&path)
            .expect("persist");
        fs::write(&path, "old").expect("write");
        let refused = NewFile::beside(&path)
            .expect("new")
            .persist_noclobber(&path);
        assert_eq!(
            refused.expect_err("exists").kind(),
            ErrorKind::AlreadyExists
        );
        assert_eq!(
            (fs::read(&path).expect("read"), count(&folder)),
            (b"old".to_vec(), 1)
        );
    }

    #[test]
    fn a_bare_file_name_lies_in_the_current_folder() {
        assert_eq!(folder_of(Path::new("name")), Path::new("."));
        assert_eq!(temporary_beside(Path::new("name")), Path::new(".name.new"));
        sync_folder_of(Path::new("name")).expect("sync");
    }
}
