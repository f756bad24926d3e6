//! A lock among the writers of a file.
//!
//! Every process that can open a file can lock it (flock(2)), and reading is enough: any reader of
//! a file or folder could stop all who lock that. So writers lock a file of their own beside it,
//! `FILE.lock`, which has no readers.

use std::{
    ffi::OsString,
    fs::{File, Metadata, OpenOptions, Permissions, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::OFlags;

/// How often a lock that another process holds is tried.
const TRY_EVERY: Duration = Duration::from_millis(5);
/// In a folder with this bit, only the owner of a file may replace it.
const STICKY: u32 = 0o1000;

/// The lock of a file's writers, until it is dropped. The lock file stays: a new one could be
/// locked while another process still waits for the old one.
pub struct WriterLock {
    _file: File,
}

/// Returns the path of the lock of a file's writers.
pub fn lock_path(of: &Path) -> PathBuf {
    let mut name = OsString::from(of);
    name.push(".lock");
    name.into()
}

impl WriterLock {
    /// Waits for the lock of the writers of `path`. If it is missing, it is created for those who
    /// may write the file or folder with the attributes `like`.
    ///
    /// # Errors
    /// The lock can't be opened, or another process holds it for longer than `patience`.
    pub fn acquire(path: &Path, like: &Metadata, patience: Duration) -> io::Result<Self> {
        let path = lock_path(path);
        let file = open(&path, like)?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(TRY_EVERY);
                }
                Err(TryLockError::WouldBlock) => {
                    let path = path.display();
                    let reason = format!(
                        "another process has held the lock {path} for {patience:?}; find it with: \
                         fuser {path}"
                    );
                    return Err(io::Error::new(ErrorKind::TimedOut, reason));
                }
            }
        }
    }
}

fn open(path: &Path, like: &Metadata) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Others may be able to create files here: no link is followed, and no pipe waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.write(true).custom_flags(flags.bits().cast_signed());
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        opened => return opened,
    }
    match options.clone().create_new(true).mode(0o200).open(path) {
        // Another writer was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => options.open(path),
        created => {
            let created = created?;
            share(&created, like)?;
            Ok(created)
        }
    }
}

/// Gives a new lock to those who may write what has the attributes `like`.
fn share(lock: &File, like: &Metadata) -> io::Result<()> {
    let own = lock.metadata()?;
    if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
        // Only root can give it to another owner. A group is often enough.
        if fchown(lock, Some(like.uid()), Some(like.gid())).is_err() {
            let _ = fchown(lock, None, Some(like.gid()));
        }
    }
    let others = if like.mode() & STICKY == 0 { 0o022 } else { 0 };
    let writers = 0o200 | like.mode() & others;
    lock.set_permissions(Permissions::from_mode(writers))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Shared {
        folder: tempfile::TempDir,
        like: Metadata,
    }

    impl Shared {
        fn new(mode: u32) -> Self {
            let folder = tempfile::tempdir().expect("folder");
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).expect("chmod");
            let like = fs::metadata(folder.path()).expect("metadata");
            Self { folder, like }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("file")
        }

        fn acquire(&self) -> io::Result<WriterLock> {
            WriterLock::acquire(&self.path(), &self.like, Duration::ZERO)
        }
    }

    #[test]
    fn one_writer_at_a_time_and_the_next_is_told_which_file_to_look_at() {
        let shared = Shared::new(0o755);
        let held = shared.acquire().expect("free");
        let error = shared.acquire().err().expect("held");
        let lock = lock_path(&shared.path());
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(
            error
                .to_string()
                .ends_with(&format!("fuser {}", lock.display())),
            "{error}"
        );
        drop(held);
        shared.acquire().expect("free again");
    }

    #[test]
    fn those_who_may_write_can_lock_and_none_can_read() {
        for (folder, expected) in [
            (0o755, 0o200),
            (0o775, 0o220),
            (0o777, 0o222),
            (0o1777, 0o200),
        ] {
            let shared = Shared::new(folder);
            shared.acquire().expect("free");
            let lock = fs::metadata(lock_path(&shared.path())).expect("lock");
            assert_eq!(lock.mode() & 0o777, expected, "{folder:o}");
        }
    }

    #[test]
    fn a_link_or_a_pipe_in_its_place_is_an_error() {
        let shared = Shared::new(0o755);
        let lock = lock_path(&shared.path());
        std::os::unix::fs::symlink("elsewhere", &lock).expect("link");
        shared.acquire().err().expect("not followed");
        assert!(!shared.folder.path().join("elsewhere").exists());
        fs::remove_file(&lock).expect("remove");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &lock,
            rustix::fs::FileType::Fifo,
            0o622.into(),
            0,
        )
        .expect("pipe");
        shared.acquire().err().expect("not waited for");
    }
}
