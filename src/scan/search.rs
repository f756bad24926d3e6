//! Finds ciphertexts in windows of bytes. Does no I/O.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

use super::{SHORTEST_TEXT, TEXT_NEEDLE, text_run};
use crate::crypto::{OVERHEAD, PEEK_LEN, Peek, TEXT_PREFIX, from_hex, peek, to_hex};

/// How many base64 characters encode the bytes that [`peek`] reads, exactly.
const PEEK_TEXT: usize = PEEK_LEN / 3 * 4;
/// How many base64 characters suite and tag determine: they have 40 bits, and these encode 36.
const NEEDLE_TEXT: usize = 6;
/// A manifest has at most this many versions, so a binary header with a higher one isn't a header.
const MOST_VERSIONS: u32 = 10_000;

/// The most characters that a finding depends on: the shortest ciphertext in hexadecimal digits.
const MOST_CHARACTERS: usize = 2 * OVERHEAD;

/// How many bytes after a position decide whether a ciphertext starts there.
pub const LOOK_AHEAD: usize = 200;
/// How many bytes before it do: the prefix of the text form, in UTF-16.
pub const LOOK_BEHIND: usize = 2 * TEXT_NEEDLE.len();

const _: () = assert!(MOST_CHARACTERS > TEXT_NEEDLE.len() + SHORTEST_TEXT);
const _: () = assert!(LOOK_AHEAD > 2 * MOST_CHARACTERS);

/// The encoding of a ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `sk1.…` in ASCII or a superset of it.
    Text,
    /// `sk1.…`, hexadecimal digits or base64 in UTF-16.
    Utf16,
    /// Raw bytes.
    Binary,
    /// Two hexadecimal digits per byte.
    Hex,
    /// Base64 that starts with the ciphertext, in either alphabet.
    Base64,
}

/// A ciphertext that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// Its header.
    pub header: Peek,
    /// Its encoding.
    pub form: Form,
    /// Whether it is shorter than any ciphertext: cut off, or interrupted.
    pub is_cut_off: bool,
}

/// Finds text forms of every keyring, and other forms of known keyrings.
pub struct Search {
    tags: BTreeSet<[u8; 4]>,
    needles: AhoCorasick,
    patterns: Vec<Pattern>,
}

/// The encoding that a needle belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pattern {
    form: Form,
    /// Whether each character has two bytes.
    is_wide: bool,
}

impl Search {
    /// Creates a search that knows the tags of these keyrings.
    ///
    /// # Errors
    /// There are too many tags.
    pub fn new(tags: impl IntoIterator<Item = [u8; 4]>) -> Result<Self, aho_corasick::BuildError> {
        let tags: BTreeSet<_> = tags.into_iter().collect();
        let mut needles = BTreeSet::new();
        let mut add_characters = |text: &str, form| {
            needles.insert((
                text.as_bytes().to_vec(),
                Pattern {
                    form,
                    is_wide: false,
                },
            ));
            needles.insert((
                widened(text.as_bytes()),
                Pattern {
                    form,
                    is_wide: true,
                },
            ));
        };
        add_characters(TEXT_PREFIX, Form::Text);
        let starts = tags
            .iter()
            .flat_map(|[a, b, c, d]| [0x01, 0x02].map(|suite| [suite, *a, *b, *c, *d]));
        for start in starts.clone() {
            let hex = to_hex(&start);
            add_characters(&hex.to_ascii_uppercase(), Form::Hex);
            add_characters(&hex, Form::Hex);
            for text in [STANDARD_NO_PAD.encode(start), URL_SAFE_NO_PAD.encode(start)] {
                add_characters(&text[..NEEDLE_TEXT], Form::Base64);
            }
        }
        needles.extend(starts.map(|start| {
            (
                start.to_vec(),
                Pattern {
                    form: Form::Binary,
                    is_wide: false,
                },
            )
        }));
        let (needles, patterns): (Vec<_>, Vec<_>) = needles.into_iter().unzip();
        let needles = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostFirst)
            .build(needles)?;
        Ok(Self {
            tags,
            needles,
            patterns,
        })
    }

    /// Returns whether the keyring of a tag is known.
    pub fn knows(&self, tag: [u8; 4]) -> bool {
        self.tags.contains(&tag)
    }

    /// Reports every ciphertext that starts in `window[from..]`, up to the position that the window
    /// decides, which is returned: its end if nothing follows (`is_last`), otherwise [`LOOK_AHEAD`]
    /// bytes less. The next window must start [`LOOK_BEHIND`] bytes before that position, and
    /// `from` must be that position.
    pub fn look(
        &self,
        window: &[u8],
        from: usize,
        is_last: bool,
        mut found: impl FnMut(usize, Finding),
    ) -> usize {
        let decided = if is_last {
            window.len()
        } else {
            window.len().saturating_sub(LOOK_AHEAD)
        }
        .max(from);
        let mut at = from;
        while let Some(candidate) = self.needles.find(Input::new(window).range(at..)) {
            let start = candidate.start();
            if start >= decided {
                break;
            }
            if let Some(finding) =
                self.examine(window, start, self.patterns[candidate.pattern().as_usize()])
            {
                found(start, finding);
            }
            // Each position is examined independently, so that the window size makes no difference.
            at = start + 1;
        }
        decided
    }

    /// Returns the ciphertext of an unknown keyring that a file starts with, if it looks like one.
    /// [`Search::look`] finds those of known keyrings.
    pub fn unknown_at_start(&self, first: &[u8]) -> Option<Finding> {
        let header = peek(first)
            .filter(|header| header.version <= MOST_VERSIONS && !self.knows(header.tag))?;
        (first.len() >= OVERHEAD).then_some(Finding {
            header,
            form: Form::Binary,
            is_cut_off: false,
        })
    }

    fn examine(
        &self,
        window: &[u8],
        start: usize,
        Pattern { form, is_wide }: Pattern,
    ) -> Option<Finding> {
        let (before, here) = window.split_at(start);
        if !is_wide {
            return self.judge(form, here, before.ends_with(TEXT_NEEDLE));
        }
        // In either byte order, a zero precedes the next character's other byte.
        let is_text_form = before
            .strip_suffix(&[0])
            .is_some_and(|before| before.ends_with(&widened(TEXT_NEEDLE)));
        let finding = self.judge(form, &narrowed(here), is_text_form)?;
        Some(Finding {
            form: Form::Utf16,
            ..finding
        })
    }

    /// Returns the ciphertext that starts `here`, with a needle of `form`. After the prefix of the
    /// text form, base64 belongs to that form.
    fn judge(&self, form: Form, here: &[u8], is_behind_prefix: bool) -> Option<Finding> {
        let (header, is_cut_off) = match form {
            Form::Text | Form::Utf16 => {
                let text = &here[TEXT_NEEDLE.len()..];
                (
                    peek_text(&URL_SAFE_NO_PAD, text)?,
                    text_run(text, SHORTEST_TEXT) < SHORTEST_TEXT,
                )
            }
            Form::Binary => (peek(here)?, here.len() < OVERHEAD),
            Form::Hex => {
                let digits = here
                    .iter()
                    .take(2 * OVERHEAD)
                    .take_while(|byte| byte.is_ascii_hexdigit())
                    .count();
                (peek_hex(here)?, digits < 2 * OVERHEAD)
            }
            Form::Base64 if is_behind_prefix => return None,
            Form::Base64 => {
                let header = peek_text(&STANDARD_NO_PAD, here)
                    .or_else(|| peek_text(&URL_SAFE_NO_PAD, here))?;
                let is_digit = |byte: &&u8| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'+' | b'/')
                };
                let digits = here.iter().take(SHORTEST_TEXT).take_while(is_digit).count();
                // Base64 may continue in the next line, and the line break may be an escape
                // sequence.
                let continues = matches!(here.get(digits), Some(b'\r' | b'\n' | b'\\'));
                (header, digits < SHORTEST_TEXT && !continues)
            }
        };
        let is_plausible = match form {
            Form::Text | Form::Utf16 => true,
            Form::Binary | Form::Hex | Form::Base64 => {
                self.knows(header.tag) && header.version <= MOST_VERSIONS
            }
        };
        is_plausible.then_some(Finding {
            header,
            form,
            is_cut_off,
        })
    }
}

/// Returns ASCII as UTF-16, from the first character's byte to the last one's, which is the same in
/// both byte orders.
fn widened(text: &[u8]) -> Vec<u8> {
    let mut wide: Vec<u8> = text.iter().flat_map(|byte| [*byte, 0]).collect();
    wide.pop();
    wide
}

/// Returns the ASCII characters that UTF-16 starts with, as many as a finding depends on.
fn narrowed(wide: &[u8]) -> Vec<u8> {
    let (first, rest) = wide.split_at(wide.len().min(1));
    let more = rest
        .chunks_exact(2)
        .map_while(|pair| (pair[0] == 0).then_some(pair[1]));
    first
        .iter()
        .copied()
        .chain(more)
        .take(MOST_CHARACTERS)
        .collect()
}

fn peek_text(engine: &impl Engine, text: &[u8]) -> Option<Peek> {
    let mut bytes = [0; PEEK_LEN];
    engine
        .decode_slice(text.get(..PEEK_TEXT)?, &mut bytes)
        .ok()?;
    peek(&bytes)
}

fn peek_hex(digits: &[u8]) -> Option<Peek> {
    peek(&from_hex::<PEEK_LEN>(digits.get(..2 * PEEK_LEN)?)?)
}

#[cfg(test)]
mod tests;
