use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::audit::{
    record::{LONGEST_LINE, position_of},
    verify::{Requirements, VerifyError, verify},
};
use crate::files::lock_path;

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
        verify(files, &Requirements::default())
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
            .expect("append")
            .last;
    }
    last
}

#[test]
fn writers_that_alternate_build_one_chain() {
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
fn the_chain_continues_in_the_next_file_after_a_rotation() {
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
    // Also after a copy, and a truncation in place.
    fs::write(log.path(), "").expect("truncate");
    assert_eq!(append(&mut long_lived, 1).seq, 5);
}

#[test]
fn a_line_left_unfinished_by_a_crash_is_described_and_the_chain_continues() {
    for lost in [1, 2, 30, 100] {
        let log = Log::new();
        append(&mut log.open(), 3);
        let bytes = fs::read(log.path()).expect("log");
        // The head wasn't written yet either.
        let before = position_of(bytes.split(|byte| *byte == b'\n').nth(1).expect("a line"))
            .expect("a record");
        let head = format!("{}:{}", before.link, before.log);
        fs::write(head_path(&log.path()), head).expect("head");
        fs::write(log.path(), &bytes[..bytes.len() - lost]).expect("tear");
        let report = verify(&[log.path()], &Requirements::default()).expect("torn");
        assert_eq!(
            (report.records, report.ends_torn),
            if lost == 1 { (3, false) } else { (2, true) }
        );
        append(&mut log.open(), 1);
        let report = verify(&[log.path()], &Requirements::default()).expect("continues");
        assert_eq!(
            (report.records, report.torn_lines),
            if lost == 1 { (4, 0) } else { (4, 1) },
            "{lost} bytes lost"
        );
    }
}

#[test]
fn a_cut_off_end_shows_by_the_head_and_at_the_next_record() {
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
        verify(&[log.path()], &Requirements::default()),
        Err(VerifyError::TailCut { .. })
    ));
    append(&mut log.open(), 1);
    let error = log.verify(&[log.path()]).expect_err("a gap");
    assert!(
        error.contains("audit.log:3: found record 4 instead of record 3"),
        "{error}"
    );
}

#[test]
fn a_key_configured_later_records_where_it_starts() {
    let log = Log::new();
    append(&mut log.open(), 2);
    let key = || MacKey::from_slice(&[7; 32]).expect("32 bytes");
    let last = position_of(
        fs::read(log.path())
            .expect("log")
            .split(|byte| *byte == b'\n')
            .nth(1)
            .expect("a line"),
    )
    .expect("a record")
    .link;
    let mut keyed = AuditFile::new(&log.path(), Some(key()));
    assert_eq!(
        append(&mut keyed, 2).seq,
        5,
        "one more record: the start of the key"
    );
    assert_eq!(
        append(&mut AuditFile::new(&log.path(), Some(key())), 1).seq,
        6,
        "only once"
    );
    let text = fs::read_to_string(log.path()).expect("log");
    let torn: serde_json::Value =
        serde_json::from_str(text.lines().nth(2).expect("a line")).expect("JSON");
    assert_eq!(
        (&torn["event"], &torn["details"]["seq"]),
        (&"log.unvouched".into(), &2.into())
    );
    assert_eq!(torn["details"]["sha256"], last.to_hex());
    let key = key();
    let requirements = |keyed_from| Requirements {
        key: Some(&key),
        keyed_from,
        ..Requirements::default()
    };
    let error = verify(&[log.path()], &requirements(0)).expect_err("two have no MAC");
    assert!(
        error
            .to_string()
            .contains("audit.log:1: record 1 has no MAC"),
        "{error}"
    );
    assert_eq!(
        verify(&[log.path()], &requirements(3))
            .expect("authenticated")
            .records,
        6
    );
}

#[test]
fn only_the_head_shows_that_a_log_was_emptied() {
    let log = Log::new();
    append(&mut log.open(), 3);
    assert!(
        verify(&[log.path()], &Requirements::default())
            .expect("whole")
            .has_head
    );
    fs::write(log.path(), "").expect("empty");
    let error = verify(&[log.path()], &Requirements::default()).expect_err("cut");
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
        !verify(&[log.path()], &Requirements::default())
            .expect("no head")
            .has_head
    );
}

#[test]
fn a_head_that_was_emptied_is_a_finding() {
    let log = Log::new();
    append(&mut log.open(), 3);
    for content in [&b""[..], b"\n", b"nonsense", b"\xff\0"] {
        fs::write(head_path(&log.path()), content).expect("overwrite");
        let error = verify(&[log.path()], &Requirements::default()).expect_err("emptied");
        assert!(
            matches!(error, VerifyError::HeadEmptied { last: 3, .. }),
            "{error}"
        );
    }
    // A writer repairs the head, and says so once.
    assert_eq!(append(&mut log.open(), 1).seq, 5);
    assert_eq!(append(&mut log.open(), 1).seq, 6);
    let damaged = |accepted: &[u64]| {
        let requirements = Requirements {
            accepted,
            ..Requirements::default()
        };
        verify(&[log.path()], &requirements).map(|report| report.records)
    };
    let error = damaged(&[]).expect_err("a finding, for as long as the record is there");
    assert!(
        matches!(
            error,
            VerifyError::Damaged {
                seq: 4,
                damage: Some(Damage::HeadEmptied)
            }
        ),
        "{error}"
    );
    assert_eq!(damaged(&[4]).expect("known"), 6);
    // Before the first record, there is nothing to name.
    fs::write(log.path(), "").expect("empty");
    fs::write(head_path(&log.path()), "").expect("empty");
    verify(&[log.path()], &Requirements::default()).expect("new");
}

#[test]
fn a_writer_reports_what_it_finds_and_a_crash_is_no_finding() {
    let found = |log: &Log| {
        let event = Event::new("test", Timestamp::UNIX_EPOCH);
        let appended = log.open().append(&Origin::here(), &[event]);
        appended.expect("append").damage
    };
    let whole = |length| {
        let log = Log::new();
        append(&mut log.open(), length);
        log
    };
    let log = whole(2);
    fs::remove_file(head_path(&log.path())).expect("remove");
    assert_eq!(found(&log), Some(Damage::HeadMissing));
    assert_eq!(found(&log), None);

    let log = whole(2);
    let text = fs::read_to_string(log.path()).expect("log");
    let first = text.find('\n').expect("a line") + 1;
    fs::write(log.path(), &text[..first]).expect("cut");
    assert_eq!(found(&log), Some(Damage::EndCut));

    let log = whole(2);
    let text = fs::read_to_string(log.path()).expect("log");
    let (first, last) = text.split_at(first);
    let modified = last.replace("\"test\"", "\"best\"");
    fs::write(log.path(), format!("{first}{modified}")).expect("modify");
    assert_eq!(found(&log), Some(Damage::EndChanged));

    let (log, other) = (whole(2), whole(4));
    fs::copy(other.path(), log.path()).expect("exchange");
    let error = log.verify(&[log.path()]).expect_err("exchanged");
    assert!(
        error.contains("one of the two files was exchanged"),
        "{error}"
    );
    assert_eq!(found(&log), Some(Damage::OtherLog));
    let error = log.verify(&[log.path()]).expect_err("exchanged");
    assert!(error.contains("record 3 belongs to log"), "{error}");

    // A crash between the first record and its head, and between any other two.
    let log = whole(1);
    let id = position_of(text.lines().next().expect("a line").as_bytes())
        .expect("a record")
        .log;
    let head = fs::read_to_string(head_path(&log.path())).expect("head");
    let own = head.trim().rsplit_once(':').expect("an id").1;
    assert_ne!(own, id.to_string(), "each log has an id of its own");
    let before = format!("{:020}:{}:{own}\n", 0, Link::START.to_hex());
    assert_eq!(before.len(), head.len());
    fs::write(head_path(&log.path()), before).expect("head");
    assert_eq!(found(&log), None);
    fs::write(head_path(&log.path()), head).expect("head");
    assert_eq!(found(&log), None);
    // A rotation.
    fs::rename(log.path(), log.folder.path().join("audit.log.1")).expect("rename");
    assert_eq!(found(&log), None);
}

#[test]
fn an_unfinished_line_longer_than_any_record_is_cut_off_and_described() {
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
        let torn: serde_json::Value =
            serde_json::from_str(text.lines().nth(2).expect("a line")).expect("JSON");
        assert_eq!(
            (&torn["event"], &torn["details"]["bytes"]),
            (&"log.torn".into(), &length.into())
        );
        assert_eq!(
            torn["details"]["sha256"],
            Link {
                seq: 0,
                hash: crate::crypto::fingerprint(&junk)
            }
            .to_hex()
        );
        // A file that isn't a log is never cut.
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
fn a_lock_held_by_another_process_is_an_error() {
    let log = Log::new();
    append(&mut log.open(), 1);
    // A reader of the files can lock those, which stops no writer.
    for path in [log.path(), head_path(&log.path())] {
        let reader = File::open(path).expect("open");
        reader.lock().expect("lock");
        append(&mut log.open().with_patience(Duration::ZERO), 1);
    }
    let lock = lock_path(&log.path());
    let mode = fs::metadata(&lock).expect("lock").permissions().mode();
    assert_eq!(mode & 0o777, 0o200, "it has no readers");
    let holder = OpenOptions::new().write(true).open(lock).expect("lock");
    holder.lock().expect("lock");
    let mut file = log.open().with_patience(Duration::from_millis(20));
    let event = Event::new("test", Timestamp::UNIX_EPOCH);
    let error = file
        .append(&Origin::here(), std::slice::from_ref(&event))
        .expect_err("held");
    assert!(
        error
            .to_string()
            .contains("another process has held the lock"),
        "{error}"
    );
    holder.unlock().expect("unlock");
    assert_eq!(append(&mut file, 1).seq, 4);
}

#[test]
fn a_record_whose_head_cannot_be_written_is_not_in_the_log() {
    use std::os::fd::AsRawFd;

    let log = Log::new();
    append(&mut log.open(), 1);
    let before = fs::read(log.path()).expect("log");
    // A head that can be opened, locked and read, but not written.
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
fn a_full_disk_or_a_foreign_file_is_an_error_and_changes_nothing() {
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
    fs::write(log.path(), "not a log\n").expect("write");
    let error = log
        .open()
        .append(
            &Origin::here(),
            &[Event::new("test", Timestamp::UNIX_EPOCH)],
        )
        .expect_err("foreign");
    assert!(error.to_string().contains("not an audit record"), "{error}");
    assert_eq!(fs::read(log.path()).expect("log"), b"not a log\n");
}
