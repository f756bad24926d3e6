//! Files with secrets: keys, tokens and passphrases that other users must not read.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Who may have access to a private file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// The owner alone.
    Owner,
    /// The owner and the file's group.
    OwnerAndGroup,
}

impl Allowed {
    fn forbidden_bits(self) -> u32 {
        match self {
            Self::Owner => 0o077,
            Self::OwnerAndGroup => 0o007,
        }
    }
}

/// A private file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// The file can't be opened or read.
    #[error("can't read {what}: {error}")]
    Unreadable {
        /// What the file holds, for messages.
        what: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// The file's mode gives others access.
    #[error("{}", exposed(.what, *.allowed, *.mode, .path))]
    Exposed {
        /// What the file holds, for messages.
        what: &'static str,
        /// Who may have access.
        allowed: Allowed,
        /// The permission bits.
        mode: u32,
        /// The file.
        path: PathBuf,
    },
}

fn exposed(what: &str, allowed: Allowed, mode: u32, path: &Path) -> String {
    let (who, command) = match allowed {
        Allowed::Owner => ("other users", "chmod 600"),
        Allowed::OwnerAndGroup => ("every user", "chmod o="),
    };
    let path = path.display();
    format!("{what} is accessible to {who} (mode {mode:04o}); run: {command} {path}")
}

/// Opens a file and checks its mode. `what` names the content in errors, such as `the token`.
///
/// Only regular files are checked. A pipe, such as `/dev/fd/3`, holds nothing that stays on a disk.
///
/// # Errors
/// [`PrivateFileError`]: the file can't be opened, or others have access to it.
pub fn open_private(
    path: &Path,
    what: &'static str,
    allowed: Allowed,
) -> Result<(File, Metadata), PrivateFileError> {
    let unreadable = |error| PrivateFileError::Unreadable { what, error };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mode = metadata.mode() & 0o777;
    if metadata.is_file() && mode & allowed.forbidden_bits() != 0 {
        return Err(PrivateFileError::Exposed {
            what,
            allowed,
            mode,
            path: path.to_owned(),
        });
    }
    Ok((file, metadata))
}

/// Reads the first `limit` bytes of a file that [`open_private`] accepts.
///
/// A caller that rejects longer files passes one byte more than it accepts. The buffer has its full
/// size from the start, so no partial copy of the secret is left in freed memory.
///
/// # Errors
/// Those of [`open_private`], or the file can't be read.
pub fn read_private(
    path: &Path,
    what: &'static str,
    allowed: Allowed,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let (file, _) = open_private(path, what, allowed)?;
    read_at_most(file, limit).map_err(|error| PrivateFileError::Unreadable { what, error })
}

/// Reads at most `limit` bytes into a buffer that is zeroized and never reallocated.
///
/// # Errors
/// The reader's.
pub fn read_at_most(reader: impl Read, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit));
    reader.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Creates a file with `bytes` that only its owner may read, and syncs it.
///
/// # Errors
/// The file exists, or can't be written.
pub fn create_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

    use super::*;

    fn read(mode: u32, allowed: Allowed) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        create_private(&path, b"secret").expect("create");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
        read_private(&path, "the key", allowed, 9)
            .map(|bytes| bytes.to_vec())
            .map_err(|error| error.to_string().replace(&*path.to_string_lossy(), "PATH"))
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        for allowed in [Allowed::Owner, Allowed::OwnerAndGroup] {
            assert_eq!(read(0o600, allowed), Ok(b"secret".to_vec()));
        }
        assert_eq!(read(0o640, Allowed::OwnerAndGroup), Ok(b"secret".to_vec()));
        assert_eq!(
            read(0o640, Allowed::Owner).expect_err("the group may"),
            "the key is accessible to other users (mode 0640); run: chmod 600 PATH"
        );
        assert_eq!(
            read(0o644, Allowed::OwnerAndGroup).expect_err("everyone may"),
            "the key is accessible to every user (mode 0644); run: chmod o= PATH"
        );
    }

    #[test]
    fn a_pipe_is_not_checked() {
        let (reader, mut writer) = io::pipe().expect("pipe");
        writer.write_all(b"secret").expect("write");
        drop(writer);
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        let bytes = read_private(Path::new(&path), "the key", Allowed::Owner, 9).expect("read");
        assert_eq!(**bytes, *b"secret");
    }

    #[test]
    fn no_more_than_the_limit_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        create_private(&path, b"secret").expect("create");
        let bytes = read_private(&path, "the key", Allowed::Owner, 3).expect("read");
        assert_eq!(**bytes, *b"sec");
        assert_eq!(
            create_private(&path, b"other").expect_err("exists").kind(),
            io::ErrorKind::AlreadyExists
        );
    }

    #[test]
    fn a_missing_file_is_named_by_its_content() {
        let missing = read_private(Path::new("/missing"), "the key", Allowed::Owner, 9);
        let error = missing.expect_err("missing").to_string();
        assert!(error.starts_with("can't read the key: "), "{error}");
    }
}
