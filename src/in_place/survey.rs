//! Examines a file: which ciphertexts it contains, and whether they can be replaced in it.

use std::{io, os::unix::fs::FileExt};

use super::{
    file::Failures,
    replacement::Original,
    segments::{Segment, Segments, Step, text_len},
    sidecar::ActiveKeyring,
};
use crate::{
    crypto::{OVERHEAD, PEEK_LEN, Peek, peek},
    scan::{Progress, SHORTEST_TEXT},
};

/// What a file contains.
#[derive(Default)]
pub(super) struct Survey {
    /// The file as a whole is a ciphertext.
    pub(super) is_whole: bool,
    /// It contains bytes that text doesn't contain.
    pub(super) is_binary: bool,
    /// How many ciphertexts must be rewrapped.
    pub(super) stale: u64,
    /// How many ciphertexts are under the primary.
    pub(super) current: u64,
    /// How many ciphertexts other keyrings made.
    pub(super) foreign: u64,
    /// How many ciphertexts are cut off.
    pub(super) cut_off: u64,
}

/// What has to happen to a ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Stale,
    Current,
    OtherKeyring,
    CutOff,
}

impl Kind {
    /// Judges a ciphertext by its header and by the length of its text form without the prefix.
    pub(super) fn of(active: ActiveKeyring, header: Peek, text_len: usize) -> Self {
        if header.tag != active.tag {
            Self::OtherKeyring
        } else if text_len < SHORTEST_TEXT {
            Self::CutOff
        } else if header.version == active.primary {
            Self::Current
        } else {
            Self::Stale
        }
    }
}

impl Survey {
    /// Examines the file, and adds the ciphertexts that are cut off to the failures.
    ///
    /// # Errors
    /// The file can't be read. What was read before has been counted.
    pub(super) fn examine(
        &mut self,
        original: &Original,
        active: ActiveKeyring,
        progress: &impl Fn(Progress),
        failures: &mut Failures<'_>,
    ) -> io::Result<()> {
        if let Some(header) = whole(original)?.filter(|header| header.tag == active.tag) {
            self.is_whole = true;
            match Kind::of(active, header, SHORTEST_TEXT) {
                Kind::Stale => self.stale = 1,
                _ => self.current = 1,
            }
            progress(Progress::Searched(original.len()));
            return Ok(());
        }
        let mut segments = Segments::new(&original.file);
        while let Some(step) = segments.next()? {
            match step {
                Step::Window(list, mut line) => {
                    let window = segments.window();
                    self.is_binary |= memchr::memchr(0, window).is_some();
                    for segment in list {
                        match segment {
                            Segment::Other(range) => line += lines(&window[range]),
                            Segment::Ciphertext(range, header) => {
                                let kind = Kind::of(active, header, text_len(&range));
                                self.count(kind, header, line, failures);
                            }
                        }
                    }
                }
                Step::Oversized(_, header, line) => {
                    self.count(
                        Kind::of(active, header, SHORTEST_TEXT),
                        header,
                        line,
                        failures,
                    );
                }
            }
            progress(Progress::Searched(segments.step_len()));
        }
        Ok(())
    }

    fn count(&mut self, kind: Kind, header: Peek, line: u64, failures: &mut Failures<'_>) {
        match kind {
            Kind::Stale => self.stale += 1,
            Kind::Current => self.current += 1,
            Kind::OtherKeyring => self.foreign += 1,
            Kind::CutOff => {
                self.cut_off += 1;
                let message = format!("shorter than any ciphertext of version {}", header.version);
                failures.add(Some(line), "cut_off", message);
            }
        }
    }
}

/// Returns the header of a file that may be a ciphertext as a whole.
fn whole(original: &Original) -> io::Result<Option<Peek>> {
    if original.len() < OVERHEAD as u64 {
        return Ok(None);
    }
    let mut first = [0; PEEK_LEN];
    original.file.read_exact_at(&mut first, 0)?;
    Ok(peek(&first))
}

/// Returns the number of line ends.
pub(super) fn lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}
