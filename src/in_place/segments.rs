//! Splits a file into segments: ciphertexts in text form, and the bytes between them.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use memchr::memmem;

use crate::{
    crypto::{PEEK_LEN, Peek, peek},
    scan::{TEXT_NEEDLE, text_run},
};

/// The most bytes of a file in memory at once. No message that fits in a batch has a longer text
/// form.
const WINDOW: usize = 2 << 20;
/// How many characters encode the bytes that [`peek`] reads, exactly.
const PEEK_TEXT: usize = PEEK_LEN / 3 * 4;

/// A part of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    /// Other bytes, which are copied.
    Other(Range<usize>),
    /// A ciphertext from `sk1.` to its last character, and its header.
    Ciphertext(Range<usize>, Peek),
}

/// The next part of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The segments of a window, and the line of its first byte.
    Window(Vec<Segment>, u64),
    /// A ciphertext that is longer than a window: its range in the file, header and line.
    Oversized(Range<u64>, Peek, u64),
}

/// Reads a file window by window.
pub(super) struct Segments<'f> {
    file: &'f File,
    window: Vec<u8>,
    filled: usize,
    /// How many bytes of the file the last step covered.
    consumed: usize,
    /// The offset of the window in the file.
    base: u64,
    line: u64,
    size: usize,
}

impl<'f> Segments<'f> {
    pub(super) fn new(file: &'f File) -> Self {
        Self::with_window(file, WINDOW)
    }

    fn with_window(file: &'f File, size: usize) -> Self {
        Self {
            file,
            window: Vec::new(),
            filled: 0,
            consumed: 0,
            base: 0,
            line: 1,
            size,
        }
    }

    /// Returns the offset of the window in the file.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Returns the window to which the ranges of the last step refer.
    pub(super) fn window(&self) -> &[u8] {
        &self.window[..self.filled]
    }

    /// Returns how many bytes of the file the last step covered.
    pub(super) fn step_len(&self) -> u64 {
        self.consumed as u64
    }

    /// Returns the next step, or `None` at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Step>> {
        self.line += memchr::memchr_iter(b'\n', &self.window[..self.consumed.min(self.filled)])
            .count() as u64;
        self.window.resize(self.size, 0);
        self.window
            .copy_within(self.consumed.min(self.filled)..self.filled, 0);
        self.base += self.consumed as u64;
        self.filled = self.filled.saturating_sub(self.consumed);
        let mut is_last = false;
        while self.filled < self.size && !is_last {
            let read = self.file.read_at(
                &mut self.window[self.filled..],
                self.base + self.filled as u64,
            );
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => {
                    let read = read?;
                    self.filled += read;
                    is_last = read == 0;
                }
            }
        }
        let window = &self.window[..self.filled];
        let mut segments = Vec::new();
        self.consumed = split(window, is_last, &mut segments);
        if window.is_empty() {
            return Ok(None);
        }
        if self.consumed > 0 {
            return Ok(Some(Step::Window(segments, self.line)));
        }
        // The window is full, and starts with a ciphertext that ends beyond it.
        let Some(header) = peek_text(&window[TEXT_NEEDLE.len()..]) else {
            self.consumed = TEXT_NEEDLE.len();
            return Ok(Some(Step::Window(
                vec![Segment::Other(0..self.consumed)],
                self.line,
            )));
        };
        let end = self.end_of_oversized()?;
        self.consumed = (end - self.base) as usize;
        Ok(Some(Step::Oversized(self.base..end, header, self.line)))
    }

    fn end_of_oversized(&self) -> io::Result<u64> {
        let mut at = self.base + TEXT_NEEDLE.len() as u64;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = match self.file.read_at(&mut buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            let run = text_run(&buffer[..read], read);
            at += run as u64;
            if run < read || read == 0 {
                return Ok(at);
            }
        }
    }
}

/// Splits a window, and returns how many bytes of it were split. The rest depends on what follows
/// the window, and is left for the next one.
fn split(window: &[u8], is_last: bool, segments: &mut Vec<Segment>) -> usize {
    let finder = memmem::Finder::new(TEXT_NEEDLE);
    let (mut copied, mut at) = (0, 0);
    let other = |range: Range<usize>, segments: &mut Vec<Segment>| {
        if !range.is_empty() {
            segments.push(Segment::Other(range));
        }
    };
    while let Some(found) = finder.find(&window[at..]) {
        let start = at + found;
        let text = start + TEXT_NEEDLE.len();
        let mut end = text + text_run(&window[text..], usize::MAX);
        // The `sk1` of a ciphertext that follows directly looks like the last characters of this
        // one.
        let next = window.get(end..).unwrap_or_default();
        let runs_into_another = window[text..end].ends_with(&TEXT_NEEDLE[..3]);
        let is_open =
            next.is_empty() || (runs_into_another && next[0] == b'.' && next.len() <= PEEK_TEXT);
        if is_open && !is_last {
            other(copied..start, segments);
            return start;
        }
        if runs_into_another && next.first() == Some(&b'.') && peek_text(&next[1..]).is_some() {
            end -= 3;
        }
        match peek_text(&window[text..end]) {
            Some(header) => {
                other(copied..start, segments);
                segments.push(Segment::Ciphertext(start..end, header));
                (copied, at) = (end, end);
            }
            None => at = text,
        }
    }
    // The window may end within `sk1.`.
    let end = if is_last {
        window.len()
    } else {
        window
            .len()
            .saturating_sub(TEXT_NEEDLE.len() - 1)
            .max(copied)
    };
    other(copied..end, segments);
    end
}

/// Returns the length of a ciphertext's text form without the prefix.
pub(super) fn text_len(range: &Range<usize>) -> usize {
    range.len() - TEXT_NEEDLE.len()
}

pub(super) fn peek_text(text: &[u8]) -> Option<Peek> {
    let mut bytes = [0; PEEK_LEN];
    URL_SAFE_NO_PAD
        .decode_slice(text.get(..PEEK_TEXT)?, &mut bytes)
        .ok()?;
    peek(&bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::crypto::to_text;
    use proptest::prelude::*;

    fn ciphertext(version: u32, len: usize) -> String {
        let mut message = [&[1, 7, 7, 7, 7][..], &version.to_be_bytes()].concat();
        message.resize(len.max(49), 0xEE);
        to_text(&message)
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(bytes).expect("write");
        file
    }

    /// Returns the file with each ciphertext in brackets, and the lines of all ciphertexts.
    fn bracketed(bytes: &[u8], window: usize) -> (String, Vec<u64>) {
        let file = file(bytes);
        let mut segments = Segments::with_window(&file, window);
        let (mut text, mut lines) = (String::new(), Vec::new());
        let mut end = 0;
        while let Some(step) = segments.next().expect("read") {
            match step {
                Step::Window(items, line) => {
                    let mut line = line;
                    for item in items {
                        match item {
                            Segment::Other(range) => {
                                let part = &segments.window()[range];
                                text.push_str(std::str::from_utf8(part).expect("text"));
                                line += part.iter().filter(|byte| **byte == b'\n').count() as u64;
                            }
                            Segment::Ciphertext(range, header) => {
                                let part =
                                    std::str::from_utf8(&segments.window()[range]).expect("text");
                                text.push_str(&format!("[{}:{part}]", header.version));
                                lines.push(line);
                            }
                        }
                    }
                }
                Step::Oversized(range, header, line) => {
                    let part =
                        std::str::from_utf8(&bytes[range.start as usize..range.end as usize])
                            .expect("text");
                    text.push_str(&format!("[{}:{part}]", header.version));
                    lines.push(line);
                }
            }
            assert!(segments.step_len() > 0, "every step advances");
            end += segments.step_len();
        }
        assert_eq!(end, bytes.len() as u64);
        (text, lines)
    }

    #[test]
    fn lines_csv_and_json_are_split() {
        let (one, two) = (ciphertext(1, 60), ciphertext(2, 49));
        let data = format!(
            "a,{one},b\n{{\"x\":\"{two}\"}}\nsk1.… sk1. {one}{two}.\n{one}=\n\
             sk1.tooshort\nsk1"
        );
        let (text, lines) = bracketed(data.as_bytes(), 1 << 12);
        let expected = format!(
            "a,[1:{one}],b\n{{\"x\":\"[2:{two}]\"}}\nsk1.… sk1. [1:{one}][2:{two}].\n[1:{one}]=\n\
             sk1.tooshort\nsk1"
        );
        assert_eq!(text, expected);
        assert_eq!(lines, [1, 2, 3, 3, 4]);
    }

    fn separator() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "\n", ",", "sk1", "sk1.", " sk1.AQ", "x."])
    }

    proptest! {
        #[test]
        fn the_window_size_makes_no_difference(
            parts in prop::collection::vec((separator(), 40..200usize), 0..12),
            window in 24..600usize,
        ) {
            let mut data = String::new();
            for (at, (between, len)) in parts.iter().enumerate() {
                data.push_str(between);
                data.push_str(&ciphertext(at as u32 + 1, *len));
                if at % 3 == 1 {
                    data.push('.');
                }
            }
            // A ciphertext that follows an oversized one directly is not found.
            let is_ambiguous =
                |between: &str| between.is_empty() || between.starts_with("sk1");
            prop_assume!(window > 300 || !parts.iter().any(|(between, _)| is_ambiguous(between)));
            let whole = bracketed(data.as_bytes(), 1 << 16);
            prop_assert_eq!(bracketed(data.as_bytes(), window), whole);
        }
    }
}
