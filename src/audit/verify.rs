//! Verifies audit logs in files.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use super::{
    ChainError, Damage, Link, LogId, Verifier,
    file::{HeadFile, head_path, read_head},
    link::Position,
    record::LONGEST_LINE,
};
use crate::crypto::MacKey;

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many records there are.
    pub records: u64,
    /// The number of the first record. Earlier ones are not in these files.
    pub first: Option<u64>,
    /// The log, or the last of several.
    pub log: Option<LogId>,
    /// The last record.
    pub last: Option<Link>,
    /// How many lines a crash left unfinished.
    pub torn_lines: u64,
    /// Whether the last line is unfinished.
    pub ends_torn: bool,
    /// Whether there is a head beside the last file. Without it, only an anchor shows that the end
    /// was cut off.
    pub has_head: bool,
}

/// What verification requires of a log.
#[derive(Default)]
pub struct Requirements<'d> {
    /// Every record needs a valid MAC by this key.
    pub key: Option<&'d MacKey>,
    /// Earlier records need no MAC, because the key was configured later.
    pub keyed_from: u64,
    /// Positions noted elsewhere, which the log must contain.
    pub anchors: &'d [Link],
    /// A new chain may start anywhere, as on standard output.
    pub several_chains: bool,
    /// The only logs that the records may belong to; empty if any may.
    pub logs: &'d [LogId],
    /// Records whose report of damage is known.
    pub accepted: &'d [u64],
}

/// A log could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file can't be read.
    #[error("can't read {}: {error}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A line doesn't belong to the chain.
    #[error("{}:{line}: {error}", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// Why.
        error: ChainError,
    },
    /// The log ends before the record that its head names.
    #[error(
        "{}: the log {}, but {}.head names record {head}: the end was cut off",
        .path.display(), ends(*.last), .path.display()
    )]
    TailCut {
        /// The file.
        path: PathBuf,
        /// The last record in the files, if there is one.
        last: Option<u64>,
        /// The record that the head names.
        head: u64,
    },
    /// The head names no record.
    #[error(
        "{}.head names no record, but the log {}: it was emptied or overwritten, so nothing shows \
         whether the end was cut off (a crash during the first write leaves this as well)",
        .path.display(), ends(Some(*.last))
    )]
    HeadEmptied {
        /// The log.
        path: PathBuf,
        /// Its last record.
        last: u64,
    },
    /// The head belongs to another log.
    #[error(
        "{}: the records belong to log {log}, but {}.head to {head}: one of the two files was \
         exchanged",
        .path.display(), .path.display()
    )]
    OtherHead {
        /// The file.
        path: PathBuf,
        /// Its log.
        log: LogId,
        /// The log of the head.
        head: LogId,
    },
    /// A writer found the log damaged.
    #[error(
        "record {seq} reports that {}; find out why, then verify with --accept {seq}",
        .damage.map_or("the log was damaged", Damage::describe)
    )]
    Damaged {
        /// The record.
        seq: u64,
        /// What it reports; `None` if this version doesn't know it.
        damage: Option<Damage>,
    },
    /// The last record differs from the one that the head names.
    #[error(
        "{}: record {last} differs from the one in {}.head: it was modified",
        .path.display(), .path.display()
    )]
    EndChanged {
        /// The file.
        path: PathBuf,
        /// The record.
        last: u64,
    },
    /// The log doesn't contain an anchor.
    #[error("record {0} is missing or differs from its anchor")]
    Anchor(u64),
}

fn ends(last: Option<u64>) -> String {
    last.map_or_else(
        || "has no records".into(),
        |last| format!("ends with record {last}"),
    )
}

/// Verifies the log in `files`, oldest first: the chain, the head beside the last file, and
/// `requirements`.
///
/// # Errors
/// [`VerifyError`] for the first problem.
pub fn verify(files: &[PathBuf], requirements: &Requirements<'_>) -> Result<Report, VerifyError> {
    let mut verifier = Verifier::new(requirements.key, requirements.several_chains)
        .keyed_from(requirements.keyed_from)
        .of_logs(requirements.logs);
    let mut missing: Vec<Link> = requirements.anchors.to_vec();
    let mut before: Option<(PathBuf, u64)> = None;
    let mut ends_torn = false;
    for path in files {
        verify_file(path, &mut verifier, &mut before, &mut missing)?;
        ends_torn = verifier.end_of_file();
    }
    if let Some(anchor) = missing.first() {
        return Err(VerifyError::Anchor(anchor.seq));
    }
    let has_head = files
        .last()
        .map(|path| verify_head(path, &verifier))
        .transpose()?
        .unwrap_or(false);
    let mut damage = verifier.damage.iter();
    if let Some(&(seq, damage)) = damage.find(|(seq, _)| !requirements.accepted.contains(seq)) {
        return Err(VerifyError::Damaged { seq, damage });
    }
    Ok(Report {
        records: verifier.records,
        first: verifier.first,
        log: verifier.log(),
        last: verifier.head(),
        torn_lines: verifier.torn_lines,
        ends_torn,
        has_head,
    })
}

fn verify_file(
    path: &Path,
    verifier: &mut Verifier<'_>,
    before: &mut Option<(PathBuf, u64)>,
    missing: &mut Vec<Link>,
) -> Result<(), VerifyError> {
    let unreadable = |error| VerifyError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let mut reader = BufReader::new(File::open(path).map_err(unreadable)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        // One byte more than allowed and the newline, to detect a longer line.
        let limit = LONGEST_LINE as u64 + 2;
        if reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)
            .map_err(unreadable)?
            == 0
        {
            break;
        }
        let has_newline = line.last() == Some(&b'\n');
        if has_newline {
            line.pop();
        }
        let position = (path.to_owned(), number);
        let was_torn = verifier.is_torn();
        verifier.line(&line).map_err(|error| {
            // The line before isn't a record, and this one doesn't describe it.
            let (path, line) = match before
                .take()
                .filter(|_| was_torn && error == ChainError::NotARecord)
            {
                Some(before) => before,
                None => position.clone(),
            };
            VerifyError::Broken { path, line, error }
        })?;
        if let Some(head) = verifier.head() {
            missing.retain(|anchor| *anchor != head);
        }
        *before = Some(position);
    }
    // Only a last line without a newline can be unfinished by a crash.
    if verifier.is_torn() && ends_with_newline(path).map_err(unreadable)? {
        let (path, line) = before.clone().unwrap_or_else(|| (path.to_owned(), 1));
        return Err(VerifyError::Broken {
            path,
            line,
            error: ChainError::NotARecord,
        });
    }
    Ok(())
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Verifies the head beside a log. Returns whether there is one.
fn verify_head(path: &Path, verifier: &Verifier<'_>) -> Result<bool, VerifyError> {
    let unreadable = |error| VerifyError::Unreadable {
        path: head_path(path),
        error,
    };
    let head = match (
        read_head(&head_path(path)).map_err(unreadable)?,
        verifier.head(),
    ) {
        (HeadFile::Missing, _) | (HeadFile::Empty, None) => return Ok(false),
        (HeadFile::Empty, Some(last)) => {
            return Err(VerifyError::HeadEmptied {
                path: path.to_owned(),
                last: last.seq,
            });
        }
        (HeadFile::Names(Position { log, .. }), Some(_)) if verifier.log() != Some(log) => {
            return Err(VerifyError::OtherHead {
                path: path.to_owned(),
                log: verifier.log().unwrap_or(log),
                head: log,
            });
        }
        (HeadFile::Names(Position { link, .. }), _) => link,
    };
    let last = verifier.head().unwrap_or(Link::START);
    // A head that is behind its log was left by a crash.
    match head.seq.cmp(&last.seq) {
        std::cmp::Ordering::Greater => Err(VerifyError::TailCut {
            path: path.to_owned(),
            last: verifier.head().map(|last| last.seq),
            head: head.seq,
        }),
        std::cmp::Ordering::Equal if head.hash != last.hash => Err(VerifyError::EndChanged {
            path: path.to_owned(),
            last: last.seq,
        }),
        _ => Ok(true),
    }
}
