//! A lock among the writers of a file.
//!
//! Every process that can open a file can lock it (flock(2)), and reading is enough: any reader of
//! a file or folder could stop all who lock that. So writers lock a file of their own beside it,
//! `FILE.lock`, which has no readers.

use std::{
    ffi::OsString,
    fs::{File, Metadata, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{fs::OFlags, process::geteuid};

use super::{
    NewFile,
    attributes::{Access, Step, steps},
};

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
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = open(&path, like).map_err(named)?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(error)) => return Err(named(error)),
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
    match open_existing(path, like) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        opened => return opened,
    }
    // It gets its name last: a process that is killed before that leaves no lock that the others
    // can't open.
    let new = NewFile::with_mode(path, 0o200)?;
    share(new.file(), like)?;
    let lock = new.file().try_clone()?;
    match new.persist_noclobber(path) {
        Ok(()) => Ok(lock),
        // Another writer was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => open_existing(path, like),
        Err(error) => Err(error),
    }
}

fn open_existing(path: &Path, like: &Metadata) -> io::Result<File> {
    // Others may be able to create files here: no link is followed, and no pipe waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let lock = OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let found = lock.metadata()?;
    // Its writers may have changed. Anything but a lock of this user's is left alone: another file
    // could have been linked or moved here, to open it to others.
    let is_lock = found.is_file() && found.len() == 0 && found.nlink() == 1;
    if is_lock && found.uid() == geteuid().as_raw() {
        share(&lock, like)?;
    }
    Ok(lock)
}

/// Gives a lock to those who may write what has the attributes `like`.
fn share(lock: &File, like: &Metadata) -> io::Result<()> {
    let present = Access::of(&lock.metadata()?);
    let others = if like.mode() & STICKY == 0 { 0o022 } else { 0 };
    let wanted = Access {
        mode: 0o200 | like.mode() & others,
        ..Access::of(like)
    };
    for step in steps(present, wanted, false) {
        match (step, step.apply(lock)) {
            // Only root can give it to any owner or group. One of them is often enough.
            (Step::Group(_) | Step::Owner(_), Err(_)) => {}
            (_, applied) => applied?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, chown},
    };

    use super::{super::with_only_cap_chown, *};

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
    fn a_lock_of_this_user_follows_the_folder_and_any_other_file_keeps_its_mode() {
        let shared = Shared::new(0o775);
        let lock = lock_path(&shared.path());
        let mode = || fs::metadata(&lock).expect("lock").mode() & 0o7777;
        let set = |mode| fs::set_permissions(&lock, Permissions::from_mode(mode)).expect("chmod");
        shared.acquire().expect("free");
        set(0o200);
        shared.acquire().expect("free");
        assert_eq!(mode(), 0o220);
        set(0o600);
        let link = shared.folder.path().join("private");
        fs::hard_link(&lock, &link).expect("link");
        shared.acquire().expect("free");
        assert_eq!(mode(), 0o600, "it has another name");
        fs::remove_file(link).expect("remove");
        fs::write(&lock, "content").expect("write");
        shared.acquire().expect("free");
        assert_eq!(mode(), 0o600, "it is no lock");
        assert_eq!(fs::read(&lock).expect("read"), b"content");
    }

    #[test]
    fn a_lock_gets_its_owner_last_and_leaves_no_other_file() {
        with_only_cap_chown(|| {
            let mut shared = Shared::new(0o755);
            // The attributes of another user's folder.
            let theirs = Shared::new(0o775);
            chown(theirs.folder.path(), Some(1234), Some(2345)).expect("chown");
            shared.like = fs::metadata(theirs.folder.path()).expect("metadata");
            shared.acquire().expect("free");
            let lock = fs::metadata(lock_path(&shared.path())).expect("lock");
            assert_eq!(
                (lock.uid(), lock.gid(), lock.mode() & 0o7777),
                (1234, 2345, 0o220)
            );
            let count = fs::read_dir(shared.folder.path()).expect("folder").count();
            assert_eq!(count, 1);
        });
    }

    #[test]
    fn a_link_or_a_pipe_in_its_place_is_an_error() {
        let shared = Shared::new(0o755);
        let lock = lock_path(&shared.path());
        std::os::unix::fs::symlink("elsewhere", &lock).expect("link");
        let error = shared.acquire().err().expect("not followed").to_string();
        assert!(
            error.starts_with(&format!("{}: ", lock.display())),
            "{error}"
        );
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
