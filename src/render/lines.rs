//! The output of a command as log lines: short, few, and none that contains a secret.

use std::iter;

use serde::de::IgnoredAny;
use zeroize::{Zeroize, Zeroizing};

use super::source::UsedSecret;

/// How many bytes of a line are logged.
const MAX_LOGGED: usize = 512;
/// How many bytes of a line are searched for secrets.
const MAX_LINE: usize = 16 << 10;
/// How many lines are logged per stream and run.
const MAX_LINES: usize = 50;
/// Shorter secrets, or parts of one, are too common to be redacted.
const MIN_SECRET: usize = 6;
/// How many bytes of a secret are searched for, from its start.
///
/// Text that only starts like a secret is redacted, too. In return, long secrets use little memory,
/// and a secret at the end of a truncated line is found.
const PREFIX: usize = 32;

/// The secrets that must not be logged: every line of a value, and every string and number in a
/// JSON value. Stored as sorted prefixes, none of which is a prefix of another.
pub(super) struct Redactions(Vec<Zeroizing<Vec<u8>>>);

impl Redactions {
    pub(super) fn new(used: &[UsedSecret]) -> Self {
        Self::of(used.iter().flat_map(|used| {
            let decoded = used.decoded.as_ref().map(|decoded| decoded.as_slice());
            [&**used.value.bytes()].into_iter().chain(decoded)
        }))
    }

    /// Redacts every line.
    pub(super) fn everything() -> Self {
        Self(vec![Zeroizing::default()])
    }

    fn of<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut prefixes: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        let mut add = |text: &[u8]| {
            let lines = text
                .split(|byte| *byte == b'\n')
                .map(<[u8]>::trim_ascii)
                .filter(|line| line.len() >= MIN_SECRET);
            let prefix_of = |line: &[u8]| Zeroizing::new(line[..line.len().min(PREFIX)].to_vec());
            prefixes.extend(lines.map(prefix_of));
        };
        for value in values {
            add(value);
            let json = value.strip_prefix(b"\xef\xbb\xbf").unwrap_or(value);
            if serde_json::from_slice::<IgnoredAny>(json).is_ok() {
                strings(json).for_each(|text| add(&text));
                numbers(json).for_each(&mut add);
            }
        }
        prefixes.sort_unstable_by(|a, b| a.as_slice().cmp(b));
        prefixes.dedup_by(|later, former| later.starts_with(former));
        Self(prefixes)
    }

    fn matches(&self, line: &[u8]) -> bool {
        (0..=line.len()).any(|at| self.has_prefix_of(&line[at..]))
    }

    /// Whether a prefix of a secret starts the text. That can only be the last prefix that is not
    /// greater than the text: everything that sorts between it and the text starts with it, too.
    fn has_prefix_of(&self, text: &[u8]) -> bool {
        let after = self.0.partition_point(|prefix| prefix.as_slice() <= text);
        after
            .checked_sub(1)
            .is_some_and(|last| text.starts_with(&self.0[last]))
    }
}

/// Returns the strings of valid JSON text, without the names of members. One that is not Unicode is
/// returned as it is written.
fn strings(json: &[u8]) -> impl Iterator<Item = Zeroizing<Vec<u8>>> {
    let mut rest = json;
    iter::from_fn(move || {
        loop {
            let start = rest.iter().position(|byte| *byte == b'"')?;
            let text = &rest[start + 1..];
            let mut is_escaped = false;
            let length = text.iter().position(|byte| {
                let is_end = *byte == b'"' && !is_escaped;
                is_escaped = *byte == b'\\' && !is_escaped;
                is_end
            })?;
            let literal = &rest[start..start + length + 2];
            rest = &text[length + 1..];
            let is_name = rest.trim_ascii_start().starts_with(b":");
            if !is_name {
                let decoded = serde_json::from_slice::<String>(literal);
                let text = decoded.map_or_else(|_| text[..length].to_vec(), String::into_bytes);
                return Some(Zeroizing::new(text));
            }
        }
    })
}

/// Splits valid JSON text at everything but numbers. Most of the results are too short to matter.
fn numbers(json: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut is_string, mut is_escaped) = (false, false);
    json.split(move |byte| {
        if is_escaped {
            is_escaped = false;
        } else if *byte == b'"' {
            is_string = !is_string;
        } else if *byte == b'\\' {
            is_escaped = true;
        }
        is_string || !matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')
    })
}

/// Splits a stream into lines and redacts them.
pub(super) struct LineWriter<'r> {
    redactions: &'r Redactions,
    line: Zeroizing<Vec<u8>>,
    /// Whether a line has started and not ended.
    is_open: bool,
    count: usize,
}

impl<'r> LineWriter<'r> {
    pub(super) fn new(redactions: &'r Redactions) -> Self {
        Self {
            redactions,
            line: Zeroizing::new(Vec::with_capacity(MAX_LINE)),
            is_open: false,
            count: 0,
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], mut show: impl FnMut(&str)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.count >= MAX_LINES {
                // A flood of output must cost little.
                self.count += memchr::memchr_iter(b'\n', rest).count();
                self.is_open = !rest.ends_with(b"\n");
                return;
            }
            let end = memchr::memchr(b'\n', rest);
            let text = &rest[..end.unwrap_or(rest.len())];
            let room = MAX_LINE - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.is_open = end.is_none();
            if end.is_some() {
                self.end(&mut show);
            }
            rest = &rest[end.map_or(rest.len(), |end| end + 1)..];
        }
    }

    /// Shows a last line without a newline, and how many lines were dropped.
    pub(super) fn finish(mut self, mut show: impl FnMut(&str)) {
        if self.is_open {
            self.end(&mut show);
        }
        if self.count > MAX_LINES {
            show(&format!("({} more lines)", self.count - MAX_LINES));
        }
    }

    fn end(&mut self, show: &mut impl FnMut(&str)) {
        self.count += 1;
        if self.count <= MAX_LINES {
            if self.redactions.matches(&self.line) {
                show("(redacted: the line contains a secret)");
            } else {
                show(&shown(&self.line));
            }
        }
        self.line.as_mut_slice().zeroize();
        self.line.clear();
    }
}

/// Escapes control characters and truncates the line.
fn shown(line: &[u8]) -> String {
    let is_cut = line.len() > MAX_LOGGED;
    let text = String::from_utf8_lossy(&line[..line.len().min(MAX_LOGGED)]);
    let text = text.trim_end();
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
    }
    if is_cut {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(values: &[&str], chunks: &[&str]) -> Vec<String> {
        let redactions = Redactions::of(values.iter().map(|value| value.as_bytes()));
        let (mut lines, mut shown) = (LineWriter::new(&redactions), Vec::new());
        for chunk in chunks {
            lines.write(chunk.as_bytes(), |line| shown.push(line.to_owned()));
        }
        lines.finish(|line| shown.push(line.to_owned()));
        shown
    }

    #[test]
    fn strings_of_json_that_is_not_unicode_are_redacted() {
        for json in [
            r#"{"half":"\ud83d","password":"hunter2 & more"}"#,
            "\u{feff}{\"password\":\"hunter2 & more\"}",
            r#"{"a\\":"\\","password":"\u0068unter2 & more"}"#,
            r#"["\ud83d hunter2 & more"]"#,
        ] {
            let redactions = Redactions::of([json.as_bytes()].into_iter());
            let line: &[u8] = if json.starts_with('[') {
                br"the value is \ud83d hunter2 & more"
            } else {
                b"the password is hunter2 & more"
            };
            assert!(redactions.matches(line), "{json}");
            assert!(!redactions.matches(b"the password is good"), "{json}");
        }
    }

    #[test]
    fn lines_are_whole_however_the_stream_is_chunked() {
        assert_eq!(
            lines(&[], &["on", "e\ntw", "o\r\n\nthree"]),
            ["one", "two", "", "three"]
        );
        assert_eq!(lines(&[], &["\u{1b}[31mred\n"]), ["\\u{1b}[31mred"]);
    }

    #[test]
    fn a_line_that_contains_a_secret_is_redacted() {
        let values = [
            "s3cret-token\n",
            r#"{"password":"a\"bcdefg","port":5432,"deep":[{"key":"line one\nline two!"}]}"#,
            "ok",
        ];
        let output = [
            "ok\nt=s3cret-",
            "token;\np=a\"bcdefg\n5432\n> line two!\nline t\n",
        ];
        let hidden = "(redacted: the line contains a secret)";
        assert_eq!(
            lines(&values, &output),
            ["ok", hidden, hidden, "5432", hidden, "line t"]
        );
        // Where a line is truncated, no part of a secret remains.
        let long = format!("{}s3cret-token\n", "x".repeat(MAX_LOGGED - 5));
        assert_eq!(lines(&values, &[&long]), [hidden]);
    }

    #[test]
    fn a_secret_longer_than_the_searched_part_of_a_line_is_redacted() {
        let long = format!("s3cret{}", "x".repeat(2 * MAX_LINE));
        for value in [long.clone(), format!("{{\"a\": \"{long}\"}}")] {
            assert_eq!(
                lines(&[&value], &["it is ", &long, "\nfine"]),
                ["(redacted: the line contains a secret)", "fine"]
            );
        }
    }

    #[test]
    fn a_number_in_json_is_redacted_as_it_is_written() {
        let values =
            [r#"{"pin":9876543210,"ratio":-1.250e10,"name\\":"\"4242424242","list":[1,123456]}"#];
        let output = "9876543210\n-1.250e10\n12345\n0123456\n4242424\ntrue\n";
        let hidden = "(redacted: the line contains a secret)";
        assert_eq!(
            lines(&values, &[output]),
            [hidden, hidden, "12345", hidden, "4242424", "true"]
        );
    }

    /// A megabyte in one line once took hundreds of megabytes.
    #[test]
    fn redactions_stay_small_and_find_the_same() {
        let one_line = "x".repeat(1 << 20);
        assert!(
            Redactions::of([one_line.as_bytes()].into_iter())
                .0
                .iter()
                .map(|prefix| prefix.len())
                .sum::<usize>()
                <= PREFIX
        );
        let words = ["abcdef", "abcdefgh", "abcdeg", "bcdefg", "zzzzzz", "abcdef"];
        let redactions = Redactions::of(words.iter().map(|word| word.as_bytes()));
        assert_eq!(
            redactions
                .0
                .iter()
                .map(|prefix| prefix.as_slice())
                .collect::<Vec<_>>(),
            [&b"abcdef"[..], b"abcdeg", b"bcdefg", b"zzzzzz"]
        );
        for (line, is_in) in [
            ("-abcdefx", true),
            ("abcdehabcdeg", true),
            ("zzzzz", false),
            ("zzzzz{zzzzzz", true),
            ("", false),
        ] {
            assert_eq!(redactions.matches(line.as_bytes()), is_in, "{line}");
        }
        assert!(Redactions::everything().matches(b"") && Redactions::everything().matches(b"word"));
    }

    #[test]
    fn long_lines_and_many_lines_are_truncated() {
        let long = lines(&[], &[&"x".repeat(3 * MAX_LINE), "\n"]);
        assert_eq!(long, [format!("{}…", "x".repeat(MAX_LOGGED))]);
        for last in ["x", "x\n"] {
            let many = format!("{}{last}", "x\n".repeat(MAX_LINES + 6));
            for size in [1, 3, many.len()] {
                let chunks: Vec<_> = many
                    .as_bytes()
                    .chunks(size)
                    .map(|chunk| std::str::from_utf8(chunk).expect("text"))
                    .collect();
                let many = lines(&[], &chunks);
                assert_eq!(
                    (many.len(), many[MAX_LINES].as_str()),
                    (MAX_LINES + 1, "(7 more lines)")
                );
            }
        }
    }
}
