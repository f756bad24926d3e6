//! A log in a file. Records are appended under a lock and synced, and continue the chain of any
//! writer.
//!
//! Beside the log is its head, `FILE.head`: the number and hash of the last record. It carries the
//! chain over to the next file, and shows that the end of a log was cut off.
//!
//! All writers hold `FILE.lock`: a rotation gives the log itself another inode.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    AuditError, Damage, Event, Link, LogId, Origin,
    link::Position,
    record::{seal, unvouched},
    tail::{Tail, read_tail},
};
use crate::{
    crypto::MacKey,
    files::{self, WriterLock},
};

/// The longest head that is read, in bytes.
const MAX_HEAD: u64 = 4096;
/// How long a command waits for other writers.
const PATIENCE: Duration = Duration::from_secs(5);

/// An audit log in a file.
pub struct AuditFile {
    path: PathBuf,
    head_path: PathBuf,
    key: Option<MacKey>,
    patience: Duration,
    open: Option<Open>,
}

struct Open {
    file: File,
    /// The device and inode.
    identity: (u64, u64),
    /// The end of our last write, and its last record. If the file has another length, another
    /// process has written.
    last: Option<(u64, Position)>,
}

/// Records were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The log that they are in.
    pub log: LogId,
    /// The last of them.
    pub last: Link,
    /// What was wrong with the log before. The first of the records reports it.
    pub damage: Option<Damage>,
    /// Their lines, as they were written.
    pub lines: Bytes,
}

impl Appended {
    pub(super) fn after(position: Position, lines: Bytes) -> Self {
        Self {
            lines,
            log: position.log,
            last: position.link,
            damage: None,
        }
    }
}

/// Returns the path of a log's head.
pub(super) fn head_path(log: &Path) -> PathBuf {
    let mut name = OsString::from(log);
    name.push(".head");
    name.into()
}

/// A log's head, as it is found.
pub(super) enum HeadFile {
    Missing,
    /// It names no record.
    Empty,
    Names(Position),
}

/// Reads a log's head.
pub(super) fn read_head(path: &Path) -> io::Result<HeadFile> {
    match fs::read(path) {
        Ok(bytes) => Ok(parse_head(&bytes).map_or(HeadFile::Empty, HeadFile::Names)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(HeadFile::Missing),
        Err(error) => Err(error),
    }
}

fn parse_head(content: &[u8]) -> Option<Position> {
    let text = std::str::from_utf8(content).ok()?;
    let (link, log) = text.trim().rsplit_once(':')?;
    Some(Position {
        log: log.parse().ok()?,
        link: link.parse().ok()?,
    })
}

impl AuditFile {
    /// Uses the log at `path`, whose records get MACs by `key` if there is one. The file is created
    /// when the first record is written, and only its owner may read it.
    pub fn new(path: &Path, key: Option<MacKey>) -> Self {
        Self {
            path: path.to_owned(),
            head_path: head_path(path),
            key,
            patience: PATIENCE,
            open: None,
        }
    }

    /// Waits for other writers for at most `patience`.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Returns the path of the log.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether records get MACs.
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Closes the file, so that the next record opens the path again.
    pub fn reopen(&mut self) {
        self.open = None;
    }

    /// Writes one record per event, and returns once all are on the disk.
    ///
    /// # Errors
    /// [`AuditError::Sink`], also if other writers hold the lock for too long. Then the log
    /// contains none of the records, unless the disk also refuses to remove them.
    pub fn append(&mut self, origin: &Origin, events: &[Event]) -> Result<Appended, AuditError> {
        let result = self.append_locked(origin, events);
        if result.is_err() {
            // The state of the file is unknown.
            self.open = None;
        }
        result.map_err(|(what, error)| AuditError::Sink {
            path: self.path.clone(),
            reason: format!("{what}: {error}"),
        })
    }

    fn append_locked(
        &mut self,
        origin: &Origin,
        events: &[Event],
    ) -> Result<Appended, (&'static str, io::Error)> {
        let head = Head::lock(&self.path, &self.head_path, self.patience)?;
        let key = self.key.as_ref();
        let open = opened(&mut self.open, &self.path).map_err(on("can't open it"))?;
        let length = open.file.metadata().map_err(on("can't inspect it"))?.len();
        let tail = match open.last {
            Some((end, last)) if end == length => Tail::complete(Some(last), true),
            _ => read_tail(&mut open.file, length, key).map_err(on("can't continue it"))?,
        };
        let begin = match &tail.torn {
            Some(torn) if tail.is_overlong => length - torn.bytes as u64,
            _ => length,
        };
        if begin < length {
            open.file
                .set_len(begin)
                .map_err(on("can't cut off a last line that is longer than a record"))?;
        }
        let damage = Damage::find(tail.last.as_ref(), &head.found);
        let after = follow(&tail, &head.found)
            .or_else(|| Some(Position::start(LogId::generate().ok()?)))
            .ok_or_else(|| io::Error::other("the random generator failed"))
            .map_err(on("can't start it"))?;
        if after.link == Link::START {
            // Without it, a crash before the first head is written would look like an emptied one.
            head.write(&after)?;
        }
        let (bytes, last) = compose(&tail, damage, after, origin, events, key);
        let written = open
            .file
            .write_all(&bytes)
            .and_then(|()| open.file.sync_data())
            .map_err(on("can't write a record"))
            // After the log: a head that is ahead of its log means that the end was cut off.
            .and_then(|()| head.write(&last));
        if let Err(error) = written {
            // No one else writes meanwhile. If this fails too, what is left is a record or an
            // unfinished line, and the next record follows it.
            let _ = open
                .file
                .set_len(begin)
                .and_then(|()| open.file.sync_data());
            head.restore();
            return Err(error);
        }
        open.last = Some((begin + bytes.len() as u64, last));
        Ok(Appended {
            damage,
            ..Appended::after(last, bytes.into())
        })
    }
}

fn on(what: &'static str) -> impl Fn(io::Error) -> (&'static str, io::Error) {
    move |error| (what, error)
}

/// Returns what the next record follows. `None` for a new log.
fn follow(tail: &Tail, head: &HeadFile) -> Option<Position> {
    let head = match head {
        HeadFile::Names(head) => Some(*head),
        HeadFile::Missing | HeadFile::Empty => None,
    };
    // If the head is ahead, the file is new or its end was cut off. If it is of another log, one of
    // the two was exchanged. Verification then finds that the chain is broken.
    match (tail.last, head) {
        (Some(last), Some(head)) if head.log == last.log && head.link.seq < last.link.seq => {
            Some(last)
        }
        (last, head) => head.or(last),
    }
}

/// Returns the bytes to append after `tail`, and the position of their last record.
fn compose(
    tail: &Tail,
    damage: Option<Damage>,
    after: Position,
    origin: &Origin,
    events: &[Event],
    key: Option<&MacKey>,
) -> (Vec<u8>, Position) {
    let mut last = after;
    let mut bytes = Vec::new();
    if !tail.is_overlong && (tail.lacks_newline || tail.torn.is_some()) {
        bytes.push(b'\n');
    }
    let now = Timestamp::now();
    // Verification requires a MAC of every record, so continuing here hides nothing. Refusing would
    // stop every command when a key is first configured, or once anyone has appended a line.
    let unvouched = tail
        .last
        .filter(|_| !tail.is_vouched)
        .map(|last| unvouched(&last.link, now));
    let torn = tail.torn.as_ref().map(|torn| torn.event(now));
    let damage = damage.map(|damage| damage.event(now));
    let findings = torn.iter().chain(&damage).chain(&unvouched);
    for event in findings.chain(events) {
        let (line, next) = seal(&last, origin, event, key);
        bytes.extend_from_slice(&line);
        bytes.push(b'\n');
        last = next;
    }
    (bytes, last)
}

/// The head of a log, and the lock of its writers.
struct Head {
    file: File,
    /// What it contained, up to a limit that no head of ours reaches.
    content: Vec<u8>,
    found: HeadFile,
    _lock: WriterLock,
}

impl Head {
    fn lock(
        log: &Path,
        path: &Path,
        patience: Duration,
    ) -> Result<Self, (&'static str, io::Error)> {
        let (mut file, is_new) =
            open_or_create(path).map_err(on("can't open its head (FILE.head)"))?;
        let lock = file
            .metadata()
            .and_then(|like| WriterLock::acquire(log, &like, patience))
            .map_err(on("can't lock it"))?;
        let mut content = Vec::new();
        (&mut file)
            .take(MAX_HEAD)
            .read_to_end(&mut content)
            .map_err(on("can't read its head (FILE.head)"))?;
        let found = match parse_head(&content) {
            Some(head) => HeadFile::Names(head),
            None if is_new => HeadFile::Missing,
            None => HeadFile::Empty,
        };
        Ok(Self {
            file,
            content,
            found,
            _lock: lock,
        })
    }

    /// Writes in place: a file that replaced it could belong to another user.
    fn write(&self, last: &Position) -> Result<(), (&'static str, io::Error)> {
        let Position { log, link } = last;
        let line = format!("{:020}:{}:{log}\n", link.seq, link.to_hex());
        self.file
            .write_all_at(line.as_bytes(), 0)
            .and_then(|()| self.file.set_len(line.len() as u64))
            .and_then(|()| self.file.sync_data())
            .map_err(on("can't write its head (FILE.head)"))
    }

    /// Undoes a write that failed, as far as possible: the caller reports the first error.
    fn restore(&self) {
        let _ = self
            .file
            .write_all_at(&self.content, 0)
            .and_then(|()| self.file.set_len(self.content.len() as u64));
    }
}

/// Opens a file for reading and writing, and returns whether it is new.
fn open_or_create(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        opened => return Ok((opened?, false)),
    }
    match options.clone().create_new(true).mode(0o600).open(path) {
        // Another writer was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok((options.open(path)?, false)),
        created => Ok((created?, true)),
    }
}

/// Returns the open file, after opening the path again if the log was rotated.
fn opened<'o>(open: &'o mut Option<Open>, path: &Path) -> io::Result<&'o mut Open> {
    let identity = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    let is_same = match (open.as_ref(), fs::metadata(path)) {
        (Some(open), Ok(metadata)) => open.identity == identity(&metadata),
        _ => false,
    };
    if is_same && let Some(same) = open.take() {
        return Ok(open.insert(same));
    }
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() == 0 {
        // A new file's name must be on the disk before its first record.
        files::sync_folder_of(path)?;
    }
    Ok(open.insert(Open {
        file,
        identity: identity(&metadata),
        last: None,
    }))
}

#[cfg(test)]
mod tests;
