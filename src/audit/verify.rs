//! Verifying logs in files.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use super::{
    chain::{Fault, LONGEST_LINE, Link, Verifier},
    file::{head_path, read_head},
};
use crate::crypto::MacKey;

/// What a whole log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many records.
    pub records: u64,
    /// The first one's number; what came before is not in these files.
    pub first: Option<u64>,
    /// The last record.
    pub last: Option<Link>,
    /// Unfinished lines, which crashes left.
    pub torn_lines: u64,
    /// Whether the last line is one of them, and nothing was written since.
    pub ends_torn: bool,
    /// Whether a head beside the last file says where the log ends. Without it, a cut end shows by an anchor alone.
    pub has_head: bool,
}

/// What a log must meet.
#[derive(Default)]
pub struct Demands<'d> {
    /// Every record needs a right MAC by this key.
    pub key: Option<&'d MacKey>,
    /// Records before this one need none, because the key came into use with it.
    pub keyed_from: u64,
    /// Records that were noted elsewhere and must be there.
    pub anchors: &'d [Link],
    /// A chain may begin anywhere, as on a standard output.
    pub several_chains: bool,
}

/// Why a log was not found whole.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It can't be read, so nothing is known.
    #[error("{}: can't read it: {error}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A line is wrong.
    #[error("{}:{line}: {fault}", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// The log ends before what its head says.
    #[error("{}: the log {}, but {}.head knows record {head}: the end was cut", .path.display(), ends(*.last), .path.display())]
    TailCut {
        /// The file.
        path: PathBuf,
        /// The last record in the files, if there is any.
        last: Option<u64>,
        /// The last one that was written.
        head: u64,
    },
    /// The last record isn't the one that the head names.
    #[error("{}: record {last} is not the one that {}.head knows: it was changed", .path.display(), .path.display())]
    EndChanged {
        /// The file.
        path: PathBuf,
        /// The record.
        last: u64,
    },
    /// An anchor isn't met.
    #[error("record {0} is not the one that was noted: it was changed, or isn't there any more")]
    Anchor(u64),
}

fn ends(last: Option<u64>) -> String {
    last.map_or_else(
        || "holds no record".into(),
        |last| format!("ends with record {last}"),
    )
}

/// Verifies the log in `files`, oldest first, by their chain, by the head beside the last file, and by `demands`.
///
/// # Errors
/// [`VerifyError`], with the first line that is wrong.
pub fn verify(files: &[PathBuf], demands: &Demands<'_>) -> Result<Report, VerifyError> {
    let mut verifier =
        Verifier::new(demands.key, demands.several_chains).keyed_from(demands.keyed_from);
    let mut missing: Vec<Link> = demands.anchors.to_vec();
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
    Ok(Report {
        records: verifier.records,
        first: verifier.first,
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
        // One byte more than allowed and its newline, so that the limit shows.
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
        let place = (path.to_owned(), number);
        let was_torn = verifier.is_torn();
        verifier.line(&line).map_err(|fault| {
            // The line before was no record, and this one doesn't explain it.
            let (path, line) = match before
                .take()
                .filter(|_| was_torn && fault == Fault::NotARecord)
            {
                Some(before) => before,
                None => place.clone(),
            };
            VerifyError::Broken { path, line, fault }
        })?;
        if let Some(head) = verifier.head() {
            missing.retain(|anchor| *anchor != head);
        }
        *before = Some(place);
    }
    // Only a line without its end can be one that a crash left, and only if nothing was added since.
    if verifier.is_torn() && line_is_whole(path).map_err(unreadable)? {
        let (path, line) = before.clone().unwrap_or_else(|| (path.to_owned(), 1));
        return Err(VerifyError::Broken {
            path,
            line,
            fault: Fault::NotARecord,
        });
    }
    Ok(())
}

fn line_is_whole(path: &Path) -> io::Result<bool> {
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

/// Gives whether there is a head.
fn verify_head(path: &Path, verifier: &Verifier<'_>) -> Result<bool, VerifyError> {
    let unreadable = |error| VerifyError::Unreadable {
        path: head_path(path),
        error,
    };
    let Some(head) = read_head(&head_path(path)).map_err(unreadable)? else {
        return Ok(false);
    };
    let last = verifier.head().unwrap_or(Link::START);
    // A head behind its log is one that a crash left.
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
