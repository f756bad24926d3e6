//! Files on a local disk: blocking work, watches, atomic replacement, locks among writers, and
//! files that other users must not read; how many may be open; and the standard streams.

mod attributes;
mod blocking;
mod descriptors;
mod lock;
mod poll;
mod private;
mod replacement;
mod standard;
mod watch;

use std::{
    fs::File,
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

pub use attributes::{Attribute, give, give_like};
pub use descriptors::{allow_connections, restore_limit};
pub use lock::{WriterLock, lock_path};
pub use private::{
    Allowed, PrivateFileError, create_private, open_private, read_at_most, read_private,
};
pub use replacement::{NewFile, remove_leftover, replace, replace_durably, temporary_beside};
pub use standard::Patient;
pub use watch::{ChangeCallback, WatchGuard, watch};

#[cfg(test)]
pub(crate) use attributes::with_only_cap_chown;
pub(crate) use blocking::{BlockingPool, run_blocking};

/// Opens a regular file. Opening a named pipe would wait for a writer, forever without one.
///
/// # Errors
/// It can't be opened, or is something else: [`io::ErrorKind::InvalidInput`].
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    let kind = file.metadata()?.file_type();
    let what = if kind.is_file() {
        return Ok(file);
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_dir() {
        "a directory"
    } else {
        "a device"
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("it is {what}, not a regular file"),
    ))
}

/// Returns the folder that contains `path`: `.` for a bare file name.
pub fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Syncs the folder that contains `path`, so that a crash doesn't undo a create or a rename.
///
/// # Errors
/// The folder can't be opened or synced.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Follows symbolic links to the file that a write to `path` replaces. The file may be missing.
///
/// # Errors
/// A link can't be resolved.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        resolved => resolved,
    }
}
