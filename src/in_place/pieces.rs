//! A file as pieces: text-form ciphertexts, and what stands between them.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use memchr::memmem;

use crate::{
    crypto::{PEEK_LEN, Peek, peek},
    scan::{TEXT_NEEDLE, text_run},
};

/// The most bytes of a file in memory at once. No message that a sidecar takes in one piece has a longer text form.
const WINDOW: usize = 2 << 20;
/// The characters that hold the bytes of [`peek`], exactly.
const PEEK_TEXT: usize = PEEK_LEN / 3 * 4;

/// A piece of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// What is copied as it is.
    Other(Range<usize>),
    /// A ciphertext from `sk1.` to its last character, and what its header says.
    Token(Range<usize>, Peek),
}

/// What comes next in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The pieces of the window, whose first byte is in this line.
    Pieces(Vec<Piece>, u64),
    /// A ciphertext that is longer than any window: its place in the file, its header and its line.
    Giant(Range<u64>, Peek, u64),
}

/// Reads a file piece by piece.
pub(super) struct Pieces<'f> {
    file: &'f File,
    window: Vec<u8>,
    filled: usize,
    /// How much of the window the last step was about.
    consumed: usize,
    /// Where the window begins in the file.
    base: u64,
    line: u64,
    size: usize,
}

impl<'f> Pieces<'f> {
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

    /// Where the window begins in the file.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// The window that the ranges of the last step's pieces are of.
    pub(super) fn window(&self) -> &[u8] {
        &self.window[..self.filled]
    }

    /// How many bytes of the file the last step was about.
    pub(super) fn step_len(&self) -> u64 {
        self.consumed as u64
    }

    /// The next step; none at the end.
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
        let mut pieces = Vec::new();
        self.consumed = split(window, is_last, &mut pieces);
        if window.is_empty() {
            return Ok(None);
        }
        if self.consumed > 0 {
            return Ok(Some(Step::Pieces(pieces, self.line)));
        }
        // The window is full and begins with a ciphertext whose end it doesn't hold.
        let Some(header) = peek_text(&window[TEXT_NEEDLE.len()..]) else {
            self.consumed = TEXT_NEEDLE.len();
            return Ok(Some(Step::Pieces(
                vec![Piece::Other(0..self.consumed)],
                self.line,
            )));
        };
        let end = self.end_of_giant()?;
        self.consumed = (end - self.base) as usize;
        Ok(Some(Step::Giant(self.base..end, header, self.line)))
    }

    fn end_of_giant(&self) -> io::Result<u64> {
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

/// Splits a window, and returns how much of it that is: what the bytes behind the window decide is left for the next one.
fn split(window: &[u8], is_last: bool, pieces: &mut Vec<Piece>) -> usize {
    let finder = memmem::Finder::new(TEXT_NEEDLE);
    let (mut copied, mut at) = (0, 0);
    let other = |range: Range<usize>, pieces: &mut Vec<Piece>| {
        if !range.is_empty() {
            pieces.push(Piece::Other(range));
        }
    };
    while let Some(found) = finder.find(&window[at..]) {
        let start = at + found;
        let text = start + TEXT_NEEDLE.len();
        let mut end = text + text_run(&window[text..], usize::MAX);
        // Behind the ciphertext may stand the dot of another one's `sk1.`, whose first letters look like this one's last.
        let next = window.get(end..).unwrap_or_default();
        let runs_into_another = window[text..end].ends_with(&TEXT_NEEDLE[..3]);
        let is_open =
            next.is_empty() || (runs_into_another && next[0] == b'.' && next.len() <= PEEK_TEXT);
        if is_open && !is_last {
            other(copied..start, pieces);
            return start;
        }
        if runs_into_another && next.first() == Some(&b'.') && peek_text(&next[1..]).is_some() {
            end -= 3;
        }
        match peek_text(&window[text..end]) {
            Some(header) => {
                other(copied..start, pieces);
                pieces.push(Piece::Token(start..end, header));
                (copied, at) = (end, end);
            }
            None => at = text,
        }
    }
    // The first bytes of `sk1.` may be the window's last.
    let end = if is_last {
        window.len()
    } else {
        window
            .len()
            .saturating_sub(TEXT_NEEDLE.len() - 1)
            .max(copied)
    };
    other(copied..end, pieces);
    end
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

    fn token(version: u32, len: usize) -> String {
        let mut message = [&[1, 7, 7, 7, 7][..], &version.to_be_bytes()].concat();
        message.resize(len.max(49), 0xEE);
        to_text(&message)
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(bytes).expect("write");
        file
    }

    /// The whole file again, with each ciphertext in brackets, and the lines of all.
    fn bracketed(bytes: &[u8], window: usize) -> (String, Vec<u64>) {
        let file = file(bytes);
        let mut pieces = Pieces::with_window(&file, window);
        let (mut text, mut lines) = (String::new(), Vec::new());
        let mut end = 0;
        while let Some(step) = pieces.next().expect("read") {
            match step {
                Step::Pieces(items, line) => {
                    let mut line = line;
                    for item in items {
                        match item {
                            Piece::Other(range) => {
                                let part = &pieces.window()[range];
                                text.push_str(std::str::from_utf8(part).expect("text"));
                                line += part.iter().filter(|byte| **byte == b'\n').count() as u64;
                            }
                            Piece::Token(range, header) => {
                                let part =
                                    std::str::from_utf8(&pieces.window()[range]).expect("text");
                                text.push_str(&format!("[{}:{part}]", header.version));
                                lines.push(line);
                            }
                        }
                    }
                }
                Step::Giant(range, header, line) => {
                    let part =
                        std::str::from_utf8(&bytes[range.start as usize..range.end as usize])
                            .expect("text");
                    text.push_str(&format!("[{}:{part}]", header.version));
                    lines.push(line);
                }
            }
            assert!(pieces.step_len() > 0, "every step goes on");
            end += pieces.step_len();
        }
        assert_eq!(end, bytes.len() as u64);
        (text, lines)
    }

    #[test]
    fn splits_lines_csv_and_json() {
        let (one, two) = (token(1, 60), token(2, 49));
        let data = format!(
            "a,{one},b\n{{\"x\":\"{two}\"}}\nsk1.… sk1. {one}{two}.\n{one}=\nsk1.tooshort\nsk1"
        );
        let (text, lines) = bracketed(data.as_bytes(), 1 << 12);
        let expected = format!(
            "a,[1:{one}],b\n{{\"x\":\"[2:{two}]\"}}\nsk1.… sk1. [1:{one}][2:{two}].\n[1:{one}]=\nsk1.tooshort\nsk1"
        );
        assert_eq!(text, expected);
        assert_eq!(lines, [1, 2, 3, 3, 4]);
    }

    proptest! {
        #[test]
        fn windows_make_no_difference(
            parts in prop::collection::vec((prop::sample::select(vec!["", "\n", ",", "sk1", "sk1.", " sk1.AQ", "x."]), 40..200usize), 0..12),
            window in 24..600usize,
        ) {
            let mut data = String::new();
            for (at, (between, len)) in parts.iter().enumerate() {
                data.push_str(between);
                data.push_str(&token(at as u32 + 1, *len));
                if at % 3 == 1 {
                    data.push('.');
                }
            }
            // What runs into a ciphertext that is longer than the window is not looked for.
            let giants_are_plain = window > 300 || !parts.iter().any(|(between, _)| between.is_empty() || between.starts_with("sk1"));
            prop_assume!(giants_are_plain);
            prop_assert_eq!(bracketed(data.as_bytes(), window), bracketed(data.as_bytes(), 1 << 16));
        }
    }
}
