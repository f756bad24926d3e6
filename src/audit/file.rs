//! The log in a file: appended under a lock, synced, continued wherever somebody left it.
//!
//! Beside the log lies its head, `FILE.head`: number and hash of the last record. It is the lock of all writers, because a log's own
//! inode changes when it is rotated; it carries the chain over to the next file; and it shows a log whose tail was cut.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    AuditError, Event, Origin,
    chain::{LONGEST_LINE, Link, Torn, Verifier, is_vouched, place, seal, unvouched},
};
use crate::{crypto::MacKey, files};

/// Enough for an unfinished line and the whole one before it.
const TAIL: u64 = 2 * (LONGEST_LINE as u64 + 1);

/// How long a command waits for other writers.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it asks whether they are done.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// How every record begins.
const RECORD_BEGIN: &[u8] = br#"{"seq":"#;

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
    /// Its device and inode.
    identity: (u64, u64),
    /// Where our last write ended and what it was; somebody else wrote if the file has another length.
    last: Option<(u64, Link)>,
}

/// What stands at a log's end.
struct Tail {
    last: Option<Link>,
    /// Whether our key, if there is one, vouches for the last record.
    is_vouched: bool,
    /// A whole record that lacks its newline alone.
    lacks_newline: bool,
    torn: Option<Torn>,
    /// Whether the unfinished line is longer than any record. Nobody would take it for one, so it is cut, and the record tells of it.
    is_overlong: bool,
}

/// The path of a log's head.
pub(super) fn head_path(log: &Path) -> PathBuf {
    let mut name = OsString::from(log);
    name.push(".head");
    name.into()
}

/// What a log's head says; `None` if there is no head, or nothing in it yet.
pub(super) fn read_head(path: &Path) -> io::Result<Option<Link>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(parse_head(&text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_head(text: &str) -> Option<Link> {
    text.trim().trim_start_matches('0').parse().ok()
}

impl AuditFile {
    /// The log at `path`, whose records `key` vouches for if there is one. It is made, for its owner alone, when it is first needed.
    pub fn new(path: &Path, key: Option<MacKey>) -> Self {
        Self {
            path: path.to_owned(),
            head_path: head_path(path),
            key,
            patience: PATIENCE,
            open: None,
        }
    }

    /// The same, waiting so long for other writers at most.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a key vouches for its records.
    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Closes the file, so that the next record opens what stands at the path then.
    pub fn reopen(&mut self) {
        self.open = None;
    }

    /// Writes a record for every event and returns once all of them are on disk.
    ///
    /// # Errors
    /// [`AuditError::Sink`], also if other writers take too long. Then none of them is in the log, unless the disk refuses to take
    /// them back, too.
    pub fn append(&mut self, origin: &Origin, events: &[Event]) -> Result<Link, AuditError> {
        let result = self.append_locked(origin, events);
        if result.is_err() {
            // Whatever is true of the file now, we don't know it.
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
    ) -> Result<Link, (&'static str, io::Error)> {
        let on = |what: &'static str| move |error| (what, error);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let mut head_file = options
            .open(&self.head_path)
            .map_err(on("can't open its head (FILE.head)"))?;
        lock(&head_file, self.patience).map_err(on("can't lock its head (FILE.head)"))?;
        let mut text = String::new();
        head_file
            .read_to_string(&mut text)
            .map_err(on("can't read its head (FILE.head)"))?;
        let head = parse_head(&text);

        let key = self.key.as_ref();
        let open = opened(&mut self.open, &self.path).map_err(on("can't open it"))?;
        let length = open.file.metadata().map_err(on("can't inspect it"))?.len();
        let tail = match open.last {
            Some((end, link)) if end == length => Tail::whole(Some(link), true),
            _ => read_tail(&mut open.file, length, key).map_err(on("can't continue it"))?,
        };
        // If the head is ahead, the file is new, or its end was cut: then the break shows to whoever verifies.
        let mut link = match (tail.last, head) {
            (Some(last), Some(head)) if head.seq >= last.seq => head,
            (Some(last), _) => last,
            (None, head) => head.unwrap_or(Link::START),
        };
        let mut bytes = Vec::new();
        let begin = match &tail.torn {
            Some(torn) if tail.is_overlong => length - torn.bytes as u64,
            _ => length,
        };
        if begin < length {
            open.file
                .set_len(begin)
                .map_err(on("can't cut its last line, which is longer than a record"))?;
        } else if tail.lacks_newline || tail.torn.is_some() {
            bytes.push(b'\n');
        }
        let now = Timestamp::now();
        // Whoever verifies demands a MAC of every record, so continuing hides nothing. Refusing would stop every command at a key's
        // first day, and at one line that anybody added.
        let unvouched = tail
            .last
            .filter(|_| !tail.is_vouched)
            .map(|last| unvouched(&last, now));
        let torn = tail.torn.map(|torn| torn.event(now));
        for event in torn.iter().chain(&unvouched).chain(events) {
            let (line, next) = seal(&link, origin, event, key);
            bytes.extend_from_slice(&line);
            bytes.push(b'\n');
            link = next;
        }
        let written = open
            .file
            .write_all(&bytes)
            .and_then(|()| open.file.sync_data())
            .map_err(on("can't write a record"));
        // In place, so that the lock stays what it is. After the log: a head that is ahead would say that the end was cut.
        let head_line = format!("{:020}:{}\n", link.seq, link.to_hex());
        let written = written.and_then(|()| {
            let written = head_file
                .write_all_at(head_line.as_bytes(), 0)
                .and_then(|()| head_file.sync_data());
            written.map_err(on("can't write its head (FILE.head)"))
        });
        if let Err(error) = written {
            // Nobody else writes meanwhile. If this fails, too, what is there is a record or an unfinished line, and the next one
            // follows it.
            let _ = open
                .file
                .set_len(begin)
                .and_then(|()| open.file.sync_data());
            let _ = head_file
                .write_all_at(text.as_bytes(), 0)
                .and_then(|()| head_file.set_len(text.len() as u64));
            return Err(error);
        }
        open.last = Some((begin + bytes.len() as u64, link));
        Ok(link)
    }
}

/// Takes the lock of all writers. A process that holds it and hangs must not silence the others.
fn lock(head: &File, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match head.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(ASK_EVERY),
            Err(TryLockError::WouldBlock) => {
                let reason = format!(
                    "another process has held it for {patience:?}; `fuser` on that file names it"
                );
                return Err(io::Error::new(ErrorKind::TimedOut, reason));
            }
        }
    }
}

/// The file at the path, opened anew if it is another one than before: then it was rotated.
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
        // So that a new file's name is on disk before its first record is.
        files::sync_folder_of(path)?;
    }
    Ok(open.insert(Open {
        file,
        identity: identity(&metadata),
        last: None,
    }))
}

fn read_tail(file: &mut File, length: u64, key: Option<&MacKey>) -> io::Result<Tail> {
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(length.min(TAIL)).read_to_end(&mut bytes)?;
    let end = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    if bytes.len() - end > LONGEST_LINE {
        return overlong_tail(file, length, key);
    }
    let (whole, rest) = bytes.split_at(end);
    let last_line = whole
        .strip_suffix(b"\n")
        .map(|whole| whole.rsplit(|byte| *byte == b'\n').next().unwrap_or(whole));
    let last = match last_line {
        None => None,
        Some(line) => Some(place(line).ok_or_else(|| {
            io::Error::new(
                ErrorKind::InvalidData,
                "its last line is not an audit record; name another file, or move this one away",
            )
        })?),
    };
    let vouches = |line: &[u8]| key.is_none_or(|key| is_vouched(key, line));
    let is_vouched = last_line.is_none_or(vouches);
    if rest.is_empty() {
        return Ok(Tail::whole(last, is_vouched));
    }
    // A crash may have cost the newline alone.
    let follows = Verifier::after(last.unwrap_or(Link::START))
        .line(rest)
        .is_ok();
    match place(rest).filter(|_| follows) {
        Some(link) => Ok(Tail {
            lacks_newline: true,
            ..Tail::whole(Some(link), vouches(rest))
        }),
        None => Ok(Tail {
            torn: Some(Torn::of(rest)),
            ..Tail::whole(last, is_vouched)
        }),
    }
}

/// What stands at the end of a log whose last line is unfinished and longer than any record: several that a file system lost the
/// ends of, or blocks of zeros.
fn overlong_tail(file: &mut File, length: u64, key: Option<&MacKey>) -> io::Result<Tail> {
    let mut block = vec![0; LONGEST_LINE];
    let mut end = length;
    let begin = loop {
        if end == 0 {
            break 0;
        }
        let size = end.min(LONGEST_LINE as u64);
        end -= size;
        let block = &mut block[..usize::try_from(size).unwrap_or(LONGEST_LINE)];
        file.read_exact_at(block, end)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            break end + at as u64 + 1;
        }
    };
    if begin == 0 {
        let mut beginning = [0; RECORD_BEGIN.len()];
        file.read_exact_at(&mut beginning, 0)?;
        if beginning != *RECORD_BEGIN {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "it is no audit log; name another file, or move this one away",
            ));
        }
    }
    // Without what is going to be cut. Nothing is unfinished then.
    let before = read_tail(file, begin, key)?;
    file.seek(SeekFrom::Start(begin))?;
    let torn = Torn::read(&mut (&*file).take(length - begin))?;
    Ok(Tail {
        torn: Some(torn),
        is_overlong: true,
        ..before
    })
}

impl Tail {
    fn whole(last: Option<Link>, is_vouched: bool) -> Self {
        Self {
            last,
            is_vouched,
            lacks_newline: false,
            torn: None,
            is_overlong: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::audit::verify::{Demands, VerifyError, verify};

    struct Log {
        folder: tempfile::TempDir,
    }

    impl Log {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().expect("folder"),
            }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("audit.log")
        }

        fn open(&self) -> AuditFile {
            AuditFile::new(&self.path(), None)
        }

        fn verify(&self, files: &[PathBuf]) -> Result<u64, String> {
            verify(files, &Demands::default())
                .map(|report| report.records)
                .map_err(|error| error.to_string())
        }
    }

    fn append(file: &mut AuditFile, count: usize) -> Link {
        let event = Event::new("test", Timestamp::UNIX_EPOCH);
        let mut last = Link::START;
        for _ in 0..count {
            last = file
                .append(&Origin::here(), std::slice::from_ref(&event))
                .expect("append");
        }
        last
    }

    #[test]
    fn writers_that_take_turns_make_one_chain() {
        let log = Log::new();
        let (mut one, mut two) = (log.open(), log.open());
        append(&mut one, 2);
        append(&mut two, 2);
        assert_eq!(append(&mut one, 1).seq, 5);
        assert_eq!(log.verify(&[log.path()]), Ok(5));
        assert_eq!(
            fs::metadata(log.path()).expect("log").permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn the_chain_goes_on_in_the_file_after_a_rotation_whoever_writes_first() {
        let log = Log::new();
        let mut long_lived = log.open();
        append(&mut long_lived, 2);
        let old = log.folder.path().join("audit.log.1");
        fs::rename(log.path(), &old).expect("rename");
        append(&mut log.open(), 1);
        append(&mut long_lived, 1);
        assert_eq!(log.verify(&[old.clone(), log.path()]), Ok(4));
        assert!(
            log.verify(&[log.path(), old]).is_err(),
            "in the wrong order"
        );
        // Also after a copy and a truncation in place.
        fs::write(log.path(), "").expect("truncate");
        assert_eq!(append(&mut long_lived, 1).seq, 5);
    }

    #[test]
    fn a_line_that_a_crash_left_unfinished_is_told_of_and_the_chain_goes_on() {
        for lost in [1, 2, 30, 100] {
            let log = Log::new();
            append(&mut log.open(), 3);
            let bytes = fs::read(log.path()).expect("log");
            // The head was not written yet either.
            let before = place(bytes.split(|byte| *byte == b'\n').nth(1).expect("a line"))
                .expect("a record");
            fs::write(head_path(&log.path()), before.to_string()).expect("head");
            fs::write(log.path(), &bytes[..bytes.len() - lost]).expect("tear");
            let torn = verify(&[log.path()], &Demands::default()).expect("a crash is no crime");
            assert_eq!(
                (torn.records, torn.ends_torn),
                if lost == 1 { (3, false) } else { (2, true) }
            );
            append(&mut log.open(), 1);
            let report = verify(&[log.path()], &Demands::default()).expect("goes on");
            assert_eq!(
                (report.records, report.torn_lines),
                if lost == 1 { (4, 0) } else { (4, 1) },
                "{lost} bytes lost"
            );
        }
    }

    #[test]
    fn a_cut_tail_shows_by_the_head_and_at_the_next_record() {
        let log = Log::new();
        append(&mut log.open(), 3);
        let bytes = fs::read(log.path()).expect("log");
        let two_lines = bytes
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .nth(1)
            .expect("two")
            .0
            + 1;
        fs::write(log.path(), &bytes[..two_lines]).expect("cut");
        assert!(matches!(
            verify(&[log.path()], &Demands::default()),
            Err(VerifyError::TailCut { .. })
        ));
        append(&mut log.open(), 1);
        let error = log.verify(&[log.path()]).expect_err("a gap");
        assert!(
            error.contains("audit.log:3: record 4 stands where record 3 belongs"),
            "{error}"
        );
    }

    #[test]
    fn a_key_that_comes_later_says_where_it_begins() {
        let log = Log::new();
        append(&mut log.open(), 2);
        let key = || MacKey::from_slice(&[7; 32]).expect("32 bytes");
        let last = place(
            fs::read(log.path())
                .expect("log")
                .split(|byte| *byte == b'\n')
                .nth(1)
                .expect("a line"),
        )
        .expect("a record");
        let mut keyed = AuditFile::new(&log.path(), Some(key()));
        assert_eq!(append(&mut keyed, 2).seq, 5, "one record more: the break");
        assert_eq!(
            append(&mut AuditFile::new(&log.path(), Some(key())), 1).seq,
            6,
            "no second one"
        );
        let text = fs::read_to_string(log.path()).expect("log");
        let told: serde_json::Value =
            serde_json::from_str(text.lines().nth(2).expect("a line")).expect("JSON");
        assert_eq!(
            (&told["event"], &told["details"]["seq"]),
            (&"log.unvouched".into(), &2.into())
        );
        assert_eq!(told["details"]["sha256"], last.to_hex());
        let key = key();
        let demands = |keyed_from| Demands {
            key: Some(&key),
            keyed_from,
            ..Demands::default()
        };
        let error = verify(&[log.path()], &demands(0)).expect_err("two have no MAC");
        assert!(
            error
                .to_string()
                .contains("audit.log:1: record 1 carries no MAC"),
            "{error}"
        );
        assert_eq!(
            verify(&[log.path()], &demands(3))
                .expect("vouched for")
                .records,
            6
        );
    }

    #[test]
    fn an_emptied_log_is_cut_and_one_without_its_head_shows_no_cut() {
        let log = Log::new();
        append(&mut log.open(), 3);
        assert!(
            verify(&[log.path()], &Demands::default())
                .expect("whole")
                .has_head
        );
        fs::write(log.path(), "").expect("empty");
        let error = verify(&[log.path()], &Demands::default()).expect_err("cut");
        assert!(
            matches!(
                error,
                VerifyError::TailCut {
                    last: None,
                    head: 3,
                    ..
                }
            ),
            "{error}"
        );
        fs::remove_file(head_path(&log.path())).expect("remove");
        assert!(
            !verify(&[log.path()], &Demands::default())
                .expect("nobody knows")
                .has_head
        );
    }

    #[test]
    fn an_unfinished_line_that_is_longer_than_any_record_is_cut_and_told_of() {
        for length in [LONGEST_LINE + 1, 2 * LONGEST_LINE + 1, 5 * LONGEST_LINE] {
            let log = Log::new();
            append(&mut log.open(), 2);
            let junk = vec![0; length];
            let whole = fs::read(log.path()).expect("log");
            fs::write(log.path(), [&whole[..], &junk].concat()).expect("tear");
            append(&mut log.open(), 1);
            assert_eq!(log.verify(&[log.path()]), Ok(4), "{length}");
            let text = fs::read_to_string(log.path()).expect("log");
            assert!(text.as_bytes().starts_with(&whole));
            let told: serde_json::Value =
                serde_json::from_str(text.lines().nth(2).expect("a line")).expect("JSON");
            assert_eq!(
                (&told["event"], &told["details"]["bytes"]),
                (&"log.torn".into(), &length.into())
            );
            assert_eq!(
                told["details"]["sha256"],
                Link {
                    seq: 0,
                    hash: crate::crypto::fingerprint(&junk)
                }
                .to_hex()
            );
            // But never what is no log of ours.
            fs::write(log.path(), &junk).expect("foreign");
            log.open()
                .append(
                    &Origin::here(),
                    &[Event::new("test", Timestamp::UNIX_EPOCH)],
                )
                .expect_err("foreign");
            assert_eq!(fs::read(log.path()).expect("log"), junk);
        }
    }

    #[test]
    fn a_lock_that_somebody_holds_is_an_error_and_not_a_silence() {
        let log = Log::new();
        append(&mut log.open(), 1);
        let holder = File::open(head_path(&log.path())).expect("head");
        holder.lock().expect("lock");
        let mut file = log.open().with_patience(Duration::from_millis(20));
        let event = Event::new("test", Timestamp::UNIX_EPOCH);
        let error = file
            .append(&Origin::here(), std::slice::from_ref(&event))
            .expect_err("held");
        assert!(
            error.to_string().contains("another process has held it"),
            "{error}"
        );
        holder.unlock().expect("unlock");
        assert_eq!(append(&mut file, 1).seq, 2);
    }

    #[test]
    fn a_record_whose_head_cant_be_written_is_not_in_the_log() {
        use std::os::fd::AsRawFd;

        let log = Log::new();
        append(&mut log.open(), 1);
        let before = fs::read(log.path()).expect("log");
        // A head that opens, locks and reads, and takes no writes.
        let sealed =
            rustix::fs::memfd_create("head", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("memfd");
        rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::WRITE).expect("seal");
        fs::remove_file(head_path(&log.path())).expect("remove");
        symlink(
            format!("/proc/self/fd/{}", sealed.as_raw_fd()),
            head_path(&log.path()),
        )
        .expect("link");
        let error = log
            .open()
            .append(
                &Origin::here(),
                &[Event::new("test", Timestamp::UNIX_EPOCH)],
            )
            .expect_err("sealed");
        assert!(
            error.to_string().contains("can't write its head"),
            "{error}"
        );
        assert_eq!(fs::read(log.path()).expect("log"), before);
    }

    #[test]
    fn a_full_disk_or_a_foreign_file_is_an_error_and_harms_nothing() {
        let log = Log::new();
        symlink("/dev/full", log.path()).expect("link");
        let error = log
            .open()
            .append(
                &Origin::here(),
                &[Event::new("test", Timestamp::UNIX_EPOCH)],
            )
            .expect_err("full");
        assert!(
            error.to_string().contains("No space left on device"),
            "{error}"
        );
        fs::remove_file(log.path()).expect("remove");
        fs::write(log.path(), "somebody else's\n").expect("write");
        let error = log
            .open()
            .append(
                &Origin::here(),
                &[Event::new("test", Timestamp::UNIX_EPOCH)],
            )
            .expect_err("foreign");
        assert!(error.to_string().contains("not an audit record"), "{error}");
        assert_eq!(fs::read(log.path()).expect("log"), b"somebody else's\n");
    }
}
