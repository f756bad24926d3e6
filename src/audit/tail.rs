//! The end of a log in a file, where the next record goes.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use super::{
    Verifier,
    link::Position,
    record::{LONGEST_LINE, Torn, is_vouched, position_of},
};
use crate::crypto::MacKey;

/// Enough for an unfinished line and the complete one before it.
const TAIL: u64 = 2 * (LONGEST_LINE as u64 + 1);
/// The first bytes of every record.
const RECORD_BEGIN: &[u8] = br#"{"seq":"#;

/// The end of a log.
pub(super) struct Tail {
    pub(super) last: Option<Position>,
    /// Whether the last record has a MAC by our key, or we have no key.
    pub(super) is_vouched: bool,
    /// Whether the last record is complete except for its newline.
    pub(super) lacks_newline: bool,
    pub(super) torn: Option<Torn>,
    /// Whether the unfinished line is longer than any record. It can't be kept, so it is cut off,
    /// and the next record describes it.
    pub(super) is_overlong: bool,
}

/// Reads the end of a log of `length` bytes.
///
/// # Errors
/// It can't be read, or isn't an audit log.
pub(super) fn read_tail(file: &mut File, length: u64, key: Option<&MacKey>) -> io::Result<Tail> {
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
    let (complete, rest) = bytes.split_at(end);
    let last_line = complete
        .strip_suffix(b"\n")
        .map(|lines| lines.rsplit(|byte| *byte == b'\n').next().unwrap_or(lines));
    let last = match last_line {
        None => None,
        Some(line) => Some(position_of(line).ok_or_else(|| {
            io::Error::new(
                ErrorKind::InvalidData,
                "the last line is not an audit record; use another file, or move this one away",
            )
        })?),
    };
    let vouches = |line: &[u8]| key.is_none_or(|key| is_vouched(key, line));
    let is_vouched = last_line.is_none_or(vouches);
    if rest.is_empty() {
        return Ok(Tail::complete(last, is_vouched));
    }
    // A crash may have cut off only the newline.
    let follows = Verifier::after(last).line(rest).is_ok();
    match position_of(rest).filter(|_| follows) {
        Some(position) => Ok(Tail {
            lacks_newline: true,
            ..Tail::complete(Some(position), vouches(rest))
        }),
        None => Ok(Tail {
            torn: Some(Torn::of(rest)),
            ..Tail::complete(last, is_vouched)
        }),
    }
}

/// Reads the end of a log whose last line is unfinished and longer than any record. A file system
/// that lost blocks can leave such a line.
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
                "not an audit log; use another file, or move this one away",
            ));
        }
    }
    // The end without the line that will be cut off, which is complete.
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
    pub(super) fn complete(last: Option<Position>, is_vouched: bool) -> Self {
        Self {
            last,
            is_vouched,
            lacks_newline: false,
            torn: None,
            is_overlong: false,
        }
    }
}
