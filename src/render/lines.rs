//! What a command says, as lines that a log may hold: short, few, and none with a secret in it.

use zeroize::{Zeroize, Zeroizing};

use super::source::Used;

/// How much of a line is shown.
const SHOWN: usize = 512;
/// How much of a line is kept, to look for secrets in.
const KEPT: usize = 16 << 10;
/// How many lines of one stream of a run are shown.
const LINES: usize = 50;
/// A secret, or a part of one, that is shorter than this is too common a word to be looked for.
const SHORTEST: usize = 6;
/// How much of a secret is looked for, from its beginning. What only begins like one is hidden, too; in return, a secret costs little
/// however long it is, and one that a line was cut in is found.
const HEAD: usize = 32;

/// The secrets that no line may show: every line of a value, and every text and number in one that is JSON. Their beginnings, in order,
/// none of which begins with another.
pub(super) struct Guarded(Vec<Zeroizing<Vec<u8>>>);

impl Guarded {
    pub(super) fn new(used: &[Used]) -> Self {
        Self::of(used.iter().map(|used| &**used.value.bytes()))
    }

    /// No line is shown.
    pub(super) fn everything() -> Self {
        Self(vec![Zeroizing::default()])
    }

    fn of<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut heads: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        let mut add = |text: &[u8]| {
            let lines = text
                .split(|byte| *byte == b'\n')
                .map(<[u8]>::trim_ascii)
                .filter(|line| line.len() >= SHORTEST);
            heads.extend(lines.map(|line| Zeroizing::new(line[..line.len().min(HEAD)].to_vec())));
        };
        for value in values {
            add(value);
            if let Ok(json) = serde_json::from_slice(value) {
                each_text(&json, &mut add);
                numbers(value).for_each(&mut add);
            }
        }
        heads.sort_unstable_by(|a, b| a.as_slice().cmp(b));
        heads.dedup_by(|later, former| later.starts_with(former));
        Self(heads)
    }

    fn is_in(&self, line: &[u8]) -> bool {
        (0..=line.len()).any(|at| self.is_at_the_start_of(&line[at..]))
    }

    /// Of the heads, only the last that isn't greater than the text can be its beginning: whatever lies between a beginning and the
    /// text begins with it.
    fn is_at_the_start_of(&self, text: &[u8]) -> bool {
        let after = self.0.partition_point(|head| head.as_slice() <= text);
        after
            .checked_sub(1)
            .is_some_and(|last| text.starts_with(&self.0[last]))
    }
}

fn each_text(json: &serde_json::Value, add: &mut impl FnMut(&[u8])) {
    match json {
        serde_json::Value::String(text) => add(text.as_bytes()),
        serde_json::Value::Array(items) => items.iter().for_each(|item| each_text(item, add)),
        serde_json::Value::Object(members) => {
            members.values().for_each(|member| each_text(member, add))
        }
        _ => {}
    }
}

/// The numbers of a valid JSON text as they stand there, between much that is too short to be looked for.
fn numbers(json: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut is_text, mut is_escaped) = (false, false);
    json.split(move |byte| {
        if is_escaped {
            is_escaped = false;
        } else if *byte == b'"' {
            is_text = !is_text;
        } else if *byte == b'\\' {
            is_escaped = true;
        }
        is_text || !matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')
    })
}

/// Cuts one stream of a run into lines, as its bytes come.
pub(super) struct Lines<'g> {
    guarded: &'g Guarded,
    line: Zeroizing<Vec<u8>>,
    /// Whether a line has begun and not ended.
    is_open: bool,
    count: usize,
}

impl<'g> Lines<'g> {
    pub(super) fn new(guarded: &'g Guarded) -> Self {
        Self {
            guarded,
            line: Zeroizing::new(Vec::with_capacity(KEPT)),
            is_open: false,
            count: 0,
        }
    }

    pub(super) fn take(&mut self, bytes: &[u8], mut show: impl FnMut(&str)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.count >= LINES {
                // Whoever floods shall cost little.
                self.count += memchr::memchr_iter(b'\n', rest).count();
                self.is_open = !rest.ends_with(b"\n");
                return;
            }
            let end = memchr::memchr(b'\n', rest);
            let text = &rest[..end.unwrap_or(rest.len())];
            let room = KEPT - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.is_open = end.is_none();
            if end.is_some() {
                self.end(&mut show);
            }
            rest = &rest[end.map_or(rest.len(), |end| end + 1)..];
        }
    }

    /// Shows what came last without a newline, and how much was not shown.
    pub(super) fn finish(mut self, mut show: impl FnMut(&str)) {
        if self.is_open {
            self.end(&mut show);
        }
        if self.count > LINES {
            show(&format!("({} more lines)", self.count - LINES));
        }
    }

    fn end(&mut self, show: &mut impl FnMut(&str)) {
        self.count += 1;
        if self.count <= LINES {
            if self.guarded.is_in(&self.line) {
                show("(a line that holds a secret)");
            } else {
                show(&shown(&self.line));
            }
        }
        self.line.as_mut_slice().zeroize();
        self.line.clear();
    }
}

/// A line without control characters, cut short.
fn shown(line: &[u8]) -> String {
    let is_cut = line.len() > SHOWN;
    let text = String::from_utf8_lossy(&line[..line.len().min(SHOWN)]);
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

    fn lines(values: &[&str], pieces: &[&str]) -> Vec<String> {
        let guarded = Guarded::of(values.iter().map(|value| value.as_bytes()));
        let (mut lines, mut shown) = (Lines::new(&guarded), Vec::new());
        for piece in pieces {
            lines.take(piece.as_bytes(), |line| shown.push(line.to_owned()));
        }
        lines.finish(|line| shown.push(line.to_owned()));
        shown
    }

    #[test]
    fn lines_come_whole_however_they_were_cut() {
        assert_eq!(
            lines(&[], &["on", "e\ntw", "o\r\n\nthree"]),
            ["one", "two", "", "three"]
        );
        assert_eq!(lines(&[], &["\u{1b}[31mred\n"]), ["\\u{1b}[31mred"]);
    }

    #[test]
    fn a_line_that_holds_a_secret_is_not_shown() {
        let values = [
            "s3cret-token\n",
            r#"{"password":"a\"bcdefg","port":5432,"deep":[{"key":"line one\nline two!"}]}"#,
            "ok",
        ];
        let said = [
            "ok\nt=s3cret-",
            "token;\np=a\"bcdefg\n5432\n> line two!\nline t\n",
        ];
        let hidden = "(a line that holds a secret)";
        assert_eq!(
            lines(&values, &said),
            ["ok", hidden, hidden, "5432", hidden, "line t"]
        );
        // Where a line is cut, no part of a secret is left over.
        let long = format!("{}s3cret-token\n", "x".repeat(SHOWN - 5));
        assert_eq!(lines(&values, &[&long]), [hidden]);
    }

    #[test]
    fn a_secret_that_is_longer_than_what_is_kept_of_a_line_is_not_shown() {
        let long = format!("s3cret{}", "x".repeat(2 * KEPT));
        for value in [long.clone(), format!("{{\"a\": \"{long}\"}}")] {
            assert_eq!(
                lines(&[&value], &["it is ", &long, "\nfine"]),
                ["(a line that holds a secret)", "fine"]
            );
        }
    }

    #[test]
    fn a_number_in_json_is_a_secret_as_it_stands_there() {
        let values =
            [r#"{"pin":9876543210,"ratio":-1.250e10,"name\\":"\"4242424242","list":[1,123456]}"#];
        let said = "9876543210\n-1.250e10\n12345\n0123456\n4242424\ntrue\n";
        let hidden = "(a line that holds a secret)";
        assert_eq!(
            lines(&values, &[said]),
            [hidden, hidden, "12345", hidden, "4242424", "true"]
        );
    }

    /// A megabyte in one line once cost hundreds of megabytes.
    #[test]
    fn what_is_looked_for_stays_small_and_finds_the_same() {
        let one_line = "x".repeat(1 << 20);
        assert!(
            Guarded::of([one_line.as_bytes()].into_iter())
                .0
                .iter()
                .map(|head| head.len())
                .sum::<usize>()
                <= HEAD
        );
        let words = ["abcdef", "abcdefgh", "abcdeg", "bcdefg", "zzzzzz", "abcdef"];
        let guarded = Guarded::of(words.iter().map(|word| word.as_bytes()));
        assert_eq!(
            guarded
                .0
                .iter()
                .map(|head| head.as_slice())
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
            assert_eq!(guarded.is_in(line.as_bytes()), is_in, "{line}");
        }
        assert!(Guarded::everything().is_in(b"") && Guarded::everything().is_in(b"word"));
    }

    #[test]
    fn long_lines_and_many_lines_are_cut_short() {
        let long = lines(&[], &[&"x".repeat(3 * KEPT), "\n"]);
        assert_eq!(long, [format!("{}…", "x".repeat(SHOWN))]);
        for last in ["x", "x\n"] {
            let many = format!("{}{last}", "x\n".repeat(LINES + 6));
            for size in [1, 3, many.len()] {
                let pieces: Vec<_> = many
                    .as_bytes()
                    .chunks(size)
                    .map(|piece| std::str::from_utf8(piece).expect("text"))
                    .collect();
                let many = lines(&[], &pieces);
                assert_eq!(
                    (many.len(), many[LINES].as_str()),
                    (LINES + 1, "(7 more lines)")
                );
            }
        }
    }
}
