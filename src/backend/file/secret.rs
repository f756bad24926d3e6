//! `file:PATH`: a secret in a file, or a folder of files as one JSON object, as Kubernetes mounts
//! them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::sleep;
use zeroize::Zeroizing;

use crate::{
    backend::{
        BackendError, ErrorKind, FetchOutcome, FetchedValue, HeldValue, SecretProvider,
        VersionSelector,
    },
    clock::Clock,
    files::{self, BlockingPool, ChangeCallback, WatchGuard},
};

/// A file that was modified more recently may still be incomplete.
const SETTLE_TIME: Duration = Duration::from_millis(300);
/// How many times to wait for that. A file that is modified all the time is not a secret.
const MAX_WAITS: u32 = 10;

/// A secret on a local disk. It has one value, whose version is the modification time.
#[derive(Clone)]
pub(in crate::backend) struct FileSecret {
    path: PathBuf,
    pool: BlockingPool,
    clock: Clock,
}

/// The value on disk.
struct FileContent {
    bytes: Zeroizing<Vec<u8>>,
    modified: Timestamp,
    /// Whether it was put in place atomically, as Kubernetes does.
    is_atomic: bool,
}

impl FileSecret {
    pub(in crate::backend) fn new(path: &Path) -> Self {
        Self::with_clock(path, Clock::system())
    }

    /// `clock` must tell the time by which the file system stamps modifications.
    fn with_clock(path: &Path, clock: Clock) -> Self {
        Self {
            path: path.to_owned(),
            pool: BlockingPool::new(1),
            clock,
        }
    }

    /// Reads the value once it is no longer being written, judging by its modification time: a
    /// writer that writes in place exposes a part of it for a moment.
    async fn settled(
        &self,
        held: Option<HeldValue<'_>>,
        limit: usize,
    ) -> Result<FileContent, BackendError> {
        let mut waits = 0;
        loop {
            let secret = self.clone();
            let content = self.pool.run(move || secret.read(limit)).await?;
            let is_held = held.is_some_and(|held| *held.bytes == **content.bytes);
            // Both in whole milliseconds: the clock tells no finer time.
            let age = self.clock.now().as_millisecond() - content.modified.as_millisecond();
            // A modification in the future says nothing about the writer.
            let age = u64::try_from(age).ok().map(Duration::from_millis);
            let wait = age
                .and_then(|age| SETTLE_TIME.checked_sub(age))
                .filter(|wait| !wait.is_zero());
            match wait.filter(|_| !is_held && !content.is_atomic && waits < MAX_WAITS) {
                Some(wait) => sleep(wait).await,
                None => return Ok(content),
            }
            waits += 1;
        }
    }

    fn read(&self, limit: usize) -> Result<FileContent, BackendError> {
        let metadata = fs::metadata(&self.path).map_err(|error| self.unreadable(&error))?;
        let content = if metadata.is_dir() {
            self.read_folder(limit)?
        } else {
            self.read_file(&self.path, limit)
                .map_err(|error| self.unreadable(&error))?
                .ok_or_else(|| self.too_large(limit))?
        };
        if content.bytes.is_empty() {
            // A writer that writes in place leaves the file empty for a moment.
            let message = "the file is empty; write a new file beside it and rename that";
            return Err(self.error(ErrorKind::Unavailable, message));
        }
        Ok(content)
    }

    /// Returns `None` if the file is longer than `limit` bytes.
    fn read_file(&self, path: &Path, limit: usize) -> io::Result<Option<FileContent>> {
        let mut file = files::open_regular(path)?;
        // Allocated at once: a growing buffer leaves copies of the secret behind.
        let length = usize::try_from(file.metadata()?.len())
            .unwrap_or(usize::MAX)
            .min(limit);
        let mut bytes = Zeroizing::new(Vec::with_capacity(length + 1));
        (&mut file).take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit {
            return Ok(None);
        }
        // Taken after reading, so that no write in between goes unnoticed.
        let modified = file.metadata()?.modified()?;
        let modified = Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH);
        // The link that Kubernetes swaps leads to a folder whose name starts with `..`.
        let target = fs::canonicalize(path).unwrap_or_default();
        let is_atomic = target
            .parent()
            .and_then(Path::file_name)
            .is_some_and(|folder| folder.as_encoded_bytes().starts_with(b".."));
        Ok(Some(FileContent {
            bytes,
            modified,
            is_atomic,
        }))
    }

    /// Reads the files of a folder as a JSON object. In a volume mounted by Kubernetes, names that
    /// start with a dot are its own, and the link `..data` leads to a consistent set of files.
    fn read_folder(&self, limit: usize) -> Result<FileContent, BackendError> {
        let failed = |error| self.unreadable(&error);
        let folder =
            fs::canonicalize(self.path.join("..data")).unwrap_or_else(|_| self.path.clone());
        let (mut members, mut modified, mut length) = (BTreeMap::new(), Timestamp::UNIX_EPOCH, 0);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Some(name) = path
                .file_name()
                .and_then(|name| name.to_str())
                .filter(|name| !name.starts_with('.'))
            else {
                continue;
            };
            // One bad entry fails the whole: an incomplete object would look like a rotation.
            let in_entry = |error: &io::Error| self.unreadable_entry(name, error);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => continue,
                // Removed since the folder was listed, or a link to nothing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found.map_err(|error| in_entry(&error))?,
            };
            let content = self
                .read_file(&path, limit)
                .map_err(|error| in_entry(&error))?
                .ok_or_else(|| self.too_large(limit))?;
            length += name.len() + content.bytes.len();
            if length > limit {
                return Err(self.too_large(limit));
            }
            let text = std::str::from_utf8(&content.bytes).map_err(|_| {
                let message = "the file is not UTF-8 text; make it a separate secret";
                BackendError::new(ErrorKind::Misconfigured, path.display(), message)
            })?;
            modified = modified.max(content.modified);
            members.insert(name.to_owned(), Zeroizing::new(text.to_owned()));
        }
        if members.is_empty() {
            return Err(self.error(ErrorKind::NotFound, "the folder has no files"));
        }
        let members: BTreeMap<&str, &str> = members
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        // An escaped character takes at most six bytes.
        let mut bytes = Zeroizing::new(Vec::with_capacity(6 * (length + 8 * members.len())));
        serde_json::to_writer(&mut *bytes, &members).map_err(|error| failed(error.into()))?;
        Ok(FileContent {
            bytes,
            modified,
            is_atomic: folder != self.path,
        })
    }

    fn too_large(&self, limit: usize) -> BackendError {
        BackendError::secret_too_large(self.source(), limit)
    }

    fn unreadable_entry(&self, name: &str, error: &io::Error) -> BackendError {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        let message = format!("can't read {name:?} in this folder: {error}");
        self.error(kind, message)
    }

    fn unreadable(&self, error: &io::Error) -> BackendError {
        match error.kind() {
            io::ErrorKind::NotFound => self.error(ErrorKind::NotFound, "there is no such file"),
            io::ErrorKind::PermissionDenied => {
                let message = format!(
                    "can't read the secret: {error}; give this user access, by the owner, group or \
                     mode of the file and its folders"
                );
                self.error(ErrorKind::Denied, message)
            }
            _ => {
                let message = format!("can't read the secret: {error}");
                self.error(ErrorKind::Unavailable, message)
            }
        }
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> BackendError {
        BackendError::new(kind, self.source(), message)
    }

    fn source(&self) -> String {
        format!("file:{}", self.path.display())
    }
}

impl SecretProvider for FileSecret {
    fn fetch<'a>(
        &'a self,
        version: &'a VersionSelector,
        held: Option<HeldValue<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<FetchOutcome, BackendError>> {
        Box::pin(async move {
            if *version != VersionSelector::Current {
                let message = "a file has only its current value";
                return Err(self.error(ErrorKind::NotFound, message));
            }
            let FileContent {
                bytes, modified, ..
            } = self.settled(held, limit).await?;
            if held.is_some_and(|held| *held.bytes == **bytes) {
                // Another file in the volume changed, or the same value was written again.
                return Ok(FetchOutcome::Unchanged);
            }
            // Distinct even if the file system's clock is too coarse.
            let version = HeldValue::distinct_version(held, modified.to_string(), &bytes);
            Ok(FetchOutcome::Value(FetchedValue {
                bytes,
                version,
                created_at: Some(modified),
                expires_at: None,
                lease: None,
            }))
        })
    }

    fn watch(
        &self,
        former: Option<WatchGuard>,
        on_change: ChangeCallback,
    ) -> BoxFuture<'_, Option<WatchGuard>> {
        let secret = self.clone();
        Box::pin(
            self.pool
                .run(move || Some(files::watch(&secret.path, former, &on_change))),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::symlink, pin::pin, time::SystemTime};

    use tokio::time::{Instant, timeout};

    use super::*;

    /// Writes a file in place, stamped with the clock's time.
    fn write_in_place(path: &Path, text: &str, clock: &Clock) {
        fs::write(path, text).expect("write");
        let file = File::options().append(true).open(path).expect("open");
        let now = u64::try_from(clock.now().as_millisecond()).expect("after 1970");
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(now);
        file.set_modified(modified).expect("a time");
    }

    async fn fetch(secret: &FileSecret, held: &str) -> Option<String> {
        let held = HeldValue {
            version: "held",
            bytes: held.as_bytes(),
        };
        let fetched = secret.fetch(&VersionSelector::Current, Some(held), 100);
        match fetched.await.expect("a value") {
            FetchOutcome::Unchanged => None,
            FetchOutcome::Value(value) => {
                Some(String::from_utf8(value.bytes.to_vec()).expect("text"))
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_written_in_place_is_never_served_incomplete() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("db");
        let (clock, hands) = Clock::manual(Timestamp::UNIX_EPOCH);
        let secret = FileSecret::with_clock(&path, clock.clone());
        let mut fetched = pin!(fetch(&secret, "old"));
        for written in ["NEW", "NEW-", "NEW-COMPLETE"] {
            write_in_place(&path, written, &clock);
            let pause = SETTLE_TIME * 2 / 3;
            timeout(pause, &mut fetched)
                .await
                .expect_err("it is still being written");
            hands.advance(pause);
        }
        hands.advance(SETTLE_TIME);
        assert_eq!(fetched.await.as_deref(), Some("NEW-COMPLETE"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_need_not_settle_is_read_at_once() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("db");
        let (clock, hands) = Clock::manual(Timestamp::UNIX_EPOCH);
        let secret = FileSecret::with_clock(&path, clock.clone());
        let start = Instant::now();
        write_in_place(&path, "value", &clock);
        assert_eq!(fetch(&secret, "value").await, None, "it is held");
        hands.advance(SETTLE_TIME);
        assert_eq!(fetch(&secret, "old").await.as_deref(), Some("value"));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_modified_all_the_time_is_read_in_the_end() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("db");
        let (clock, _) = Clock::manual(Timestamp::UNIX_EPOCH);
        let secret = FileSecret::with_clock(&path, clock.clone());
        let start = Instant::now();
        write_in_place(&path, "value", &clock);
        assert_eq!(fetch(&secret, "old").await.as_deref(), Some("value"));
        assert_eq!(start.elapsed(), MAX_WAITS * SETTLE_TIME);
    }

    fn read(secret: &FileSecret) -> String {
        String::from_utf8(secret.read(100).expect("value").bytes.to_vec()).expect("text")
    }

    #[test]
    fn a_folder_is_read_as_one_consistent_object() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("..1")).expect("folder");
        fs::write(at("..1/user"), "ann").expect("write");
        fs::write(at("..1/password"), "a\"b").expect("write");
        symlink("..1", at("..data")).expect("link");
        // Links beside it may be stale.
        for name in ["user", "password", "gone"] {
            symlink(format!("..data/{name}"), at(name)).expect("link");
        }
        let secret = FileSecret::new(folder.path());
        assert_eq!(read(&secret), r#"{"password":"a\"b","user":"ann"}"#);
        assert_eq!(read(&FileSecret::new(&at("user"))), "ann");
        assert_eq!(
            secret.read(10).err().expect("long").kind,
            ErrorKind::TooLarge
        );
        fs::write(at("..1/blob"), [0xff]).expect("write");
        assert_eq!(
            secret.read(100).err().expect("bytes").kind,
            ErrorKind::Misconfigured
        );
    }

    #[test]
    fn a_pipe_is_refused_and_hangs_no_later_read() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let pipe = |name: &str| {
            let made = std::process::Command::new("mkfifo").arg(at(name)).status();
            assert!(made.expect("mkfifo").success());
        };
        pipe("pipe");
        let error = |secret: &FileSecret| secret.read(100).err().expect("no value").to_string();
        let secret = FileSecret::new(&at("pipe"));
        let said = error(&secret);
        assert!(said.contains("it is a pipe, not a regular file"), "{said}");
        let whole = FileSecret::new(folder.path());
        let said = error(&whole);
        assert!(
            said.contains("\"pipe\" in this folder: it is a pipe"),
            "{said}"
        );
        fs::remove_file(at("pipe")).expect("remove");
        fs::write(at("pipe"), "value").expect("write");
        assert_eq!(read(&secret), "value");
        // An entry that is gone counts as such, and not as a secret that was deleted.
        symlink("/nowhere/gone", at("gone")).expect("link");
        assert_eq!(read(&whole), r#"{"pipe":"value"}"#);
    }

    #[test]
    fn a_missing_or_empty_file_has_no_value() {
        let folder = tempfile::tempdir().expect("folder");
        let secret = FileSecret::new(&folder.path().join("a"));
        let kind = || secret.read(100).err().expect("no value").kind;
        assert_eq!(kind(), ErrorKind::NotFound);
        fs::write(&secret.path, "").expect("write");
        assert_eq!(kind(), ErrorKind::Unavailable);
        fs::remove_file(&secret.path).expect("remove");
        fs::create_dir(&secret.path).expect("folder");
        assert_eq!(kind(), ErrorKind::NotFound);
    }
}
