//! A log that is written to a pipe or a device, where nothing can be read back.

use std::io::{self, ErrorKind, Write};

use bytes::Bytes;

use super::{Appended, Event, LogId, Origin, link::Position, record::seal};
use crate::crypto::MacKey;

/// A chain of records, and the part of it that is not written yet.
#[derive(Default)]
pub struct Chain {
    /// The end of what was written, once anything was.
    last: Option<Position>,
    /// Records that were sealed and not written whole.
    unwritten: Option<Unwritten>,
}

struct Unwritten {
    /// All of them.
    lines: Bytes,
    /// How much of that is written, in bytes.
    written: usize,
    /// The position after them.
    next: Position,
}

impl Chain {
    /// Appends records of `events`. After a failure, the next call must have the same events, and
    /// continues where the reader stopped: a record that was sent twice or in part would break the
    /// chain.
    pub(super) fn append(
        &mut self,
        out: &mut impl Write,
        origin: &Origin,
        events: &[Event],
        key: Option<&MacKey>,
    ) -> io::Result<Appended> {
        let unwritten = match &mut self.unwritten {
            Some(unwritten) => unwritten,
            None => {
                let last = match self.last {
                    Some(last) => last,
                    None => Position::start(LogId::generate().map_err(io::Error::other)?),
                };
                let (lines, next) = sealed(last, origin, events, key);
                self.unwritten.insert(Unwritten {
                    lines: lines.into(),
                    written: 0,
                    next,
                })
            }
        };
        while unwritten.written < unwritten.lines.len() {
            match out.write(&unwritten.lines[unwritten.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => unwritten.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let (last, lines) = (unwritten.next, unwritten.lines.clone());
        self.last = Some(last);
        self.unwritten = None;
        Ok(Appended::after(last, lines))
    }
}

fn sealed(
    mut last: Position,
    origin: &Origin,
    events: &[Event],
    key: Option<&MacKey>,
) -> (Vec<u8>, Position) {
    let mut lines = Vec::new();
    for event in events {
        let (line, next) = seal(&last, origin, event, key);
        lines.extend_from_slice(&line);
        lines.push(b'\n');
        last = next;
    }
    (lines, last)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::audit::Verifier;

    /// Takes a few bytes at a time, and fails before every third write.
    struct Faltering {
        bytes: Vec<u8>,
        writes: usize,
    }

    impl Write for Faltering {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes += 1;
            if self.writes.is_multiple_of(3) {
                return Err(ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(50);
            self.bytes.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failed_write_neither_repeats_nor_cuts_off_a_record() {
        let (mut chain, origin) = (Chain::default(), Origin::here());
        let mut out = Faltering {
            bytes: Vec::new(),
            writes: 0,
        };
        for batch in 0..3 {
            let events =
                ["a", "b"].map(|name| Event::new(name, Timestamp::UNIX_EPOCH).with("batch", batch));
            let mut failures = 0;
            while chain.append(&mut out, &origin, &events, None).is_err() {
                failures += 1;
            }
            assert!(failures > 0);
        }
        let mut verifier = Verifier::after(None);
        let text = String::from_utf8(out.bytes).expect("text");
        for line in text.lines() {
            verifier.line(line.as_bytes()).expect("the next record");
        }
        let last = chain.last.expect("records");
        assert_eq!((text.lines().count(), last.link.seq), (6, 6));
    }
}
