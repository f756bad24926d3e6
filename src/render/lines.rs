//! What a command says, as lines that a log may hold: short, few, and none with a secret in it.

use aho_corasick::AhoCorasick;
use zeroize::Zeroizing;

use super::source::Used;

/// How much of a line is shown.
const SHOWN: usize = 512;
/// How much of a line is kept, to look for secrets in.
const KEPT: usize = 16 << 10;
/// How many lines of one run are shown.
const LINES: usize = 50;
/// A secret, or a part of one, that is shorter than this is too common a word to be looked for.
const SHORTEST: usize = 6;

/// The secrets that no line may show: every line of a value, and every text in one that is JSON.
pub(super) struct Guarded(Option<AhoCorasick>);

impl Guarded {
    pub(super) fn new(used: &[Used]) -> Self {
        Self::of(used.iter().map(|used| &**used.value.bytes()))
    }

    fn of<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut texts: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        let mut add = |text: &[u8]| {
            let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| line.len() >= SHORTEST);
            texts.extend(lines.map(|line| Zeroizing::new(line.to_vec())));
        };
        for value in values {
            add(value);
            if let Ok(json) = serde_json::from_slice(value) {
                each_text(&json, &mut add);
            }
        }
        // More than the library can hold is more than can be looked for: then no line is shown.
        Self(AhoCorasick::new(texts.iter().map(|text| text.as_slice())).ok())
    }

    fn is_in(&self, line: &[u8]) -> bool {
        self.0.as_ref().is_none_or(|searcher| searcher.is_match(line))
    }
}

fn each_text(json: &serde_json::Value, add: &mut impl FnMut(&[u8])) {
    match json {
        serde_json::Value::String(text) => add(text.as_bytes()),
        serde_json::Value::Array(items) => items.iter().for_each(|item| each_text(item, add)),
        serde_json::Value::Object(members) => members.values().for_each(|member| each_text(member, add)),
        _ => {}
    }
}

/// Cuts one stream of a run into lines, as its bytes come.
pub(super) struct Lines<'g> {
    guarded: &'g Guarded,
    line: Zeroizing<Vec<u8>>,
    count: usize,
}

impl<'g> Lines<'g> {
    pub(super) fn new(guarded: &'g Guarded) -> Self {
        Self { guarded, line: Zeroizing::new(Vec::with_capacity(KEPT)), count: 0 }
    }

    pub(super) fn take(&mut self, bytes: &[u8], mut show: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_whole) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let room = KEPT - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if is_whole {
                self.end(&mut show);
            }
        }
    }

    /// Shows what came last without a newline, and how much was not shown.
    pub(super) fn finish(mut self, mut show: impl FnMut(&str)) {
        if !self.line.is_empty() {
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
        zeroize::Zeroize::zeroize(&mut *self.line);
    }
}

/// A line without control characters, cut short.
fn shown(line: &[u8]) -> String {
    let is_cut = line.len() > SHOWN;
    let text = String::from_utf8_lossy(&line[..line.len().min(SHOWN)]);
    let text = text.trim_end();
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' { shown.extend(c.escape_default()) } else { shown.push(c) }
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
        assert_eq!(lines(&[], &["on", "e\ntw", "o\r\n\nthree"]), ["one", "two", "", "three"]);
        assert_eq!(lines(&[], &["\u{1b}[31mred\n"]), ["\\u{1b}[31mred"]);
    }

    #[test]
    fn a_line_that_holds_a_secret_is_not_shown() {
        let values = ["s3cret-token\n", r#"{"password":"a\"bcdefg","port":5432,"deep":[{"key":"line one\nline two!"}]}"#, "ok"];
        let said = ["ok\nt=s3cret-", "token;\np=a\"bcdefg\n5432\n> line two!\nline t\n"];
        let hidden = "(a line that holds a secret)";
        assert_eq!(lines(&values, &said), ["ok", hidden, hidden, "5432", hidden, "line t"]);
        // Where a line is cut, no part of a secret is left over.
        let long = format!("{}s3cret-token\n", "x".repeat(SHOWN - 5));
        assert_eq!(lines(&values, &[&long]), [hidden]);
    }

    #[test]
    fn long_lines_and_many_lines_are_cut_short() {
        let long = lines(&[], &[&"x".repeat(3 * KEPT), "\n"]);
        assert_eq!(long, [format!("{}…", "x".repeat(SHOWN))]);
        let many = lines(&[], &["x\n".repeat(LINES + 7).as_str()]);
        assert_eq!((many.len(), many[LINES].as_str()), (LINES + 1, "(7 more lines)"));
    }
}
