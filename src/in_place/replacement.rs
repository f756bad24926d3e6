//! A file, and the file that replaces it atomically.

use std::{
    ffi::CStr,
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{OFlags, XattrFlags, fgetxattr, fgetxattr_query, flistxattr, flistxattr_query, fsetxattr},
    io::Errno,
};

use crate::{
    crypto::{fingerprint, to_hex},
    files::{self, NewFile, sync_folder_of},
};

/// The prefix of temporary files, followed by 16 hexadecimal digits.
const PREFIX: &str = ".sidekey-rewrap-";

/// Why a file was left as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error(
        "has {0} hard links, and the others would keep the old ciphertexts; copy it to a separate \
         file first"
    )]
    HardLinks(u64),
    #[error(
        "contains {0} ciphertexts but isn't text, such as a database file; rewrap them with the \
         program that owns the file"
    )]
    Binary(u64),
    #[error("another rewrap is working on it")]
    Busy,
    #[error("was changed by another process meanwhile")]
    Changed,
    #[error("can't preserve its owner, group or attributes: {0}")]
    Attributes(io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl FileError {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::HardLinks(_) => "hard_links",
            Self::Binary(_) => "binary_file",
            Self::Busy => "busy",
            Self::Changed => "changed",
            Self::Attributes(_) => "attributes",
            Self::Io(_) => "io",
        }
    }
}

/// A file before the rewrap.
pub(super) struct Original {
    pub(super) file: Arc<File>,
    path: PathBuf,
    metadata: Metadata,
}

impl Original {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // A link stays; the file that it points to is replaced.
        let path = if fs::symlink_metadata(path)?.is_symlink() {
            fs::canonicalize(path)?
        } else {
            path.to_owned()
        };
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(&path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("is no longer a regular file"));
        }
        Ok(Self {
            file: Arc::new(file),
            path,
            metadata,
        })
    }

    pub(super) fn len(&self) -> u64 {
        self.metadata.len()
    }

    /// Returns whether the path still names this file, with the same contents and attributes.
    fn is_unchanged(&self) -> io::Result<bool> {
        let identity = |of: &Metadata| {
            (
                of.dev(),
                of.ino(),
                of.size(),
                of.mtime(),
                of.mtime_nsec(),
                of.ctime(),
                of.ctime_nsec(),
            )
        };
        match fs::symlink_metadata(&self.path) {
            Ok(now) => Ok(identity(&now) == identity(&self.metadata)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The file that replaces an original. Unless it is committed, dropping it removes it.
pub(super) struct Replacement {
    out: BufWriter<NewFile>,
}

impl Replacement {
    /// Creates an empty file beside the original, with its owner, mode and attributes.
    ///
    /// Its name is derived from the original's, and it is locked. So two runs never work on one
    /// file, and the file of a killed run is recognized and can be removed.
    pub(super) fn of(original: &Original) -> Result<Self, FileError> {
        if original.metadata.nlink() > 1 {
            return Err(FileError::HardLinks(original.metadata.nlink()));
        }
        let path = temporary_beside(&original.path);
        let file = loop {
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
            {
                Ok(file) if lock(&file, &path)? => break file,
                // Another run took it for a leftover.
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
            match remove_leftover(&path)? {
                Leftover::Removed => {}
                Leftover::InUse => return Err(FileError::Busy),
            }
        };
        let new = NewFile::adopt(file, path)?;
        let extend = || copy_extended(original, new.file());
        files::give_like(new.file(), &original.metadata, extend)
            .map_err(|(_, error)| FileError::Attributes(error))?;
        let out = BufWriter::with_capacity(256 << 10, new);
        Ok(Self { out })
    }

    /// Returns the offset of the next byte.
    pub(super) fn position(&mut self) -> io::Result<u64> {
        self.out.stream_position()
    }

    /// Discards everything after an offset.
    pub(super) fn rewind(&mut self, position: u64) -> io::Result<()> {
        self.out.seek(SeekFrom::Start(position))?;
        self.out.get_ref().file().set_len(position)
    }

    /// Replaces the original, durably, unless that was changed meanwhile.
    pub(super) fn commit(mut self, original: &Original) -> Result<(), FileError> {
        self.out.flush()?;
        self.out.get_ref().file().sync_all()?;
        if !original.is_unchanged()? {
            return Err(FileError::Changed);
        }
        let new = self.out.into_inner().map_err(|error| error.into_error())?;
        new.persist(&original.path)?;
        sync_folder_of(&original.path)?;
        Ok(())
    }
}

impl Write for Replacement {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The state of a temporary file.
pub(super) enum Leftover {
    Removed,
    InUse,
}

/// Returns whether a path names a temporary file.
pub(super) fn is_temporary(path: &Path) -> bool {
    let digits = path
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix(PREFIX));
    digits.is_some_and(|digits| {
        digits.len() == 16
            && digits
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Removes a temporary file, unless the run that created it is still running.
pub(super) fn remove_leftover(path: &Path) -> io::Result<Leftover> {
    // The name is predictable, so anyone may have created a pipe there, and opening it would block.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Leftover::Removed),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!(
            "{} is not a regular file, and in the way",
            path.display()
        )));
    }
    // Only the process that holds the lock on a file renames or removes its path. So while we hold
    // it, the path can't become another file.
    if !lock(&file, path)? {
        return Ok(Leftover::InUse);
    }
    fs::remove_file(path)?;
    Ok(Leftover::Removed)
}

/// Locks a file. Returns whether that worked and the path still names the file.
fn lock(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies the extended attributes, access lists among them.
fn copy_extended(original: &Original, new: &File) -> io::Result<()> {
    let names = match read_sized(
        || flistxattr_query(&original.file),
        |buffer| flistxattr(&original.file, buffer),
    ) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        names => names?,
    };
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let value = read_sized(
            || fgetxattr_query(&original.file, name),
            |buffer| fgetxattr(&original.file, name, buffer),
        );
        let kept = value.and_then(|value| fsetxattr(new, name, &value, XattrFlags::empty()));
        // The system's security modules set their labels by policy, usually to the same values.
        // Access lists and user attributes must be preserved.
        let is_optional =
            name.to_bytes().starts_with(b"security.") || name.to_bytes().starts_with(b"trusted.");
        match kept {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS) if is_optional => {}
            kept => kept?,
        }
    }
    Ok(())
}

fn read_sized(
    size: impl Fn() -> Result<usize, Errno>,
    read: impl Fn(&mut [u8]) -> Result<usize, Errno>,
) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; size()?];
    if buffer.is_empty() {
        return Ok(buffer);
    }
    let len = read(&mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let hash = fingerprint(name.as_encoded_bytes());
    path.with_file_name(format!("{PREFIX}{}", to_hex(&hash[..8])))
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("data.csv");
        fs::write(&path, "old").expect("write");
        (folder, path)
    }

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        let names = fs::read_dir(folder.path())
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name());
        let mut names: Vec<_> = names
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn replace(path: &Path, meanwhile: impl FnOnce()) -> Result<(), FileError> {
        let original = Original::open(path)?;
        let mut replacement = Replacement::of(&original)?;
        replacement.write_all(b"new")?;
        meanwhile();
        replacement.commit(&original)
    }

    #[test]
    fn mode_attributes_and_links_are_preserved() {
        let (folder, path) = folder();
        fs::set_permissions(&path, Permissions::from_mode(0o4640)).expect("chmod");
        // Not every file system supports attributes.
        let attribute = rustix::fs::setxattr(&path, "user.note", b"kept", XattrFlags::empty());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("data.csv", &link).expect("link");
        replace(&link, || ()).expect("replace");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert!(fs::symlink_metadata(&link).expect("link").is_symlink());
        assert_eq!(
            fs::metadata(&path).expect("metadata").permissions().mode() & 0o7777,
            0o4640
        );
        if attribute.is_ok() {
            let mut value = [0; 9];
            let len = rustix::fs::getxattr(&path, "user.note", &mut value[..]).expect("attribute");
            assert_eq!(&value[..len], b"kept");
        }
        assert_eq!(names(&folder), ["data.csv", "link"]);
    }

    #[test]
    fn a_file_of_another_owner_requires_only_cap_chown() {
        files::with_only_cap_chown(|| {
            let (_folder, path) = folder();
            fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("chmod");
            std::os::unix::fs::chown(&path, Some(1234), None).expect("chown");
            replace(&path, || ()).expect("replaced");
            let new = fs::metadata(&path).expect("metadata");
            assert_eq!((new.uid(), new.mode() & 0o7777), (1234, 0o640));
        });
    }

    #[test]
    fn a_file_changed_replaced_or_removed_meanwhile_is_left_alone() {
        type Edit = fn(&Path);
        let edits: [(Edit, Option<&str>); 4] = [
            (
                |path| fs::write(path, "other").expect("write"),
                Some("other"),
            ),
            (
                |path| fs::set_permissions(path, Permissions::from_mode(0o600)).expect("chmod"),
                Some("old"),
            ),
            (
                |path| {
                    fs::write(path.with_extension("tmp"), "old").expect("write");
                    fs::rename(path.with_extension("tmp"), path).expect("rename");
                },
                Some("old"),
            ),
            (|path| fs::remove_file(path).expect("remove"), None),
        ];
        for (edit, left) in edits {
            let (folder, path) = folder();
            assert!(matches!(
                replace(&path, || edit(&path)),
                Err(FileError::Changed)
            ));
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), left);
            assert!(!names(&folder).iter().any(|name| name.starts_with(PREFIX)));
        }
    }

    #[test]
    fn hard_links_are_refused() {
        let (folder, path) = folder();
        fs::hard_link(&path, folder.path().join("twin")).expect("link");
        assert!(matches!(
            replace(&path, || ()),
            Err(FileError::HardLinks(2))
        ));
        assert_eq!(names(&folder), ["data.csv", "twin"]);
    }

    #[test]
    fn one_run_works_on_a_file_and_leftovers_are_replaced() {
        let (folder, path) = folder();
        let original = Original::open(&path).expect("open");
        let first = Replacement::of(&original).expect("first");
        assert!(matches!(Replacement::of(&original), Err(FileError::Busy)));
        assert!(is_temporary(first.out.get_ref().path()));
        assert!(matches!(
            remove_leftover(first.out.get_ref().path()),
            Ok(Leftover::InUse)
        ));
        drop(first);
        assert_eq!(names(&folder), ["data.csv"]);
        // As after a kill: the file exists and isn't locked.
        fs::write(temporary_beside(&path), "half").expect("write");
        replace(&path, || ()).expect("replace");
        assert_eq!(
            (fs::read(&path).expect("read"), names(&folder)),
            (b"new".to_vec(), vec!["data.csv".to_owned()])
        );
        fs::write(temporary_beside(&path), "half").expect("write");
        assert!(matches!(
            remove_leftover(&temporary_beside(&path)),
            Ok(Leftover::Removed)
        ));
        assert_eq!(names(&folder), ["data.csv"]);
    }

    #[test]
    fn a_pipe_in_the_way_is_refused_without_waiting() {
        let (folder, path) = folder();
        let pipe = temporary_beside(&path);
        let status = std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .expect("mkfifo");
        assert!(status.success());
        let refused = || {
            let Err(FileError::Io(error)) = replace(&path, || ()) else {
                panic!("not refused")
            };
            assert!(
                error
                    .to_string()
                    .ends_with("is not a regular file, and in the way"),
                "{error}"
            );
            assert!(remove_leftover(&pipe).is_err());
        };
        // With a process at the other end, so that opening doesn't block, and without.
        let other_end = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&pipe)
            .expect("open");
        refused();
        drop(other_end);
        refused();
        assert_eq!(
            (fs::read(&path).expect("read"), names(&folder).len()),
            (b"old".to_vec(), 2)
        );
    }

    #[test]
    fn a_rewind_discards_what_was_written() {
        let (_folder, path) = folder();
        let original = Original::open(&path).expect("open");
        let mut replacement = Replacement::of(&original).expect("new");
        replacement.write_all(b"kept ").expect("write");
        let position = replacement.position().expect("position");
        replacement.write_all(&[b'x'; 600_000]).expect("write");
        replacement.rewind(position).expect("rewind");
        replacement.write_all(b"end").expect("write");
        replacement.commit(&original).expect("commit");
        assert_eq!(fs::read(&path).expect("read"), b"kept end");
    }

    #[test]
    fn only_temporary_files_of_a_rewrap_are_recognized() {
        assert!(is_temporary(&temporary_beside(Path::new("/x/y"))));
        assert!(is_temporary(&temporary_beside(Path::new("y"))));
        for other in [
            ".sidekey-rewrap-",
            ".sidekey-rewrap-0123",
            "sidekey-rewrap-0123456789abcdef",
            ".sidekey-rewrap-0123456789ABCDEF",
        ] {
            assert!(!is_temporary(Path::new(other)), "{other}");
        }
    }
}
