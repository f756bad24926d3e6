//! Reads TOML values as what they should be, and notes everything that they are not.
//!
//! A read that fails has noted why and gives [`Noted`]. Whoever reads a table reads all of it before he gives up, so that one
//! look at a file finds every mistake in it.

use std::{
    cell::RefCell, collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr, time::Duration,
};

use toml::de::{DeArray, DeInteger, DeTable, DeValue};

use super::parse::Problem;
use crate::model::{Malformed, Span};

/// The reason why there is no value: a problem stands in the notes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noted(());

/// What a read gives.
pub(super) type Read<T> = Result<T, Noted>;

/// Takes every item before it gives up, where `collect` alone would stop at the first that failed.
pub(super) fn all<T>(items: impl Iterator<Item = Read<T>>) -> Read<Vec<T>> {
    let items: Vec<_> = items.collect();
    items.into_iter().collect()
}

/// The problems of one file.
pub(super) struct Notes {
    newlines: Vec<usize>,
    /// The lines with a syntax error: what the TOML parser made of them is a guess, so nothing else is said about them.
    broken: BTreeSet<usize>,
    problems: RefCell<Vec<Problem>>,
}

impl Notes {
    /// Begins with the syntax errors, the first of each line: the others follow from it.
    pub(super) fn new(text: &str, syntax_errors: &[toml::de::Error]) -> Self {
        let newlines = text.match_indices('\n').map(|(at, _)| at).collect();
        let mut notes = Self {
            newlines,
            broken: BTreeSet::new(),
            problems: RefCell::default(),
        };
        for error in syntax_errors {
            // An error at the file's end belongs to the last line that holds anything.
            let at = error
                .span()
                .map_or(0, |span| span.start.min(text.trim_end().len()));
            let line = notes.line(at);
            if notes.broken.insert(line) {
                notes.push(line, "", error.message());
            }
        }
        notes
    }

    /// The problems by line; those of one line in the order in which they were found.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    fn line(&self, at: usize) -> usize {
        self.newlines.partition_point(|newline| *newline < at) + 1
    }

    fn problem(&self, at: usize, key: &str, message: &str) -> Noted {
        let line = self.line(at);
        if !self.broken.contains(&line) {
            self.push(line, key, message);
        }
        Noted(())
    }

    /// Notes that something isn't there, unless a syntax error may have swallowed it.
    fn absence(&self, at: usize, key: &str, message: &str) -> Noted {
        if self.broken.is_empty() {
            self.push(self.line(at), key, message);
        }
        Noted(())
    }

    fn push(&self, line: usize, key: &str, message: &str) {
        let problem = Problem {
            line,
            key: key.to_owned(),
            message: one_line(message),
        };
        self.problems.borrow_mut().push(problem);
    }
}

fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for c in message.chars() {
        if c.is_control() {
            line.extend(c.escape_default())
        } else {
            line.push(c)
        }
    }
    line
}

/// A table, or one that isn't there: every key of it is then absent.
pub(super) struct Section<'t> {
    notes: &'t Notes,
    table: Option<&'t DeTable<'t>>,
    path: String,
    at: usize,
    /// The keys that were asked for, which are therefore the known ones.
    known: RefCell<Vec<&'static str>>,
}

impl<'t> Section<'t> {
    /// Reads the whole file with `read`; see [`Section::section`].
    pub(super) fn file<T>(
        notes: &'t Notes,
        table: &'t DeTable<'t>,
        read: impl FnOnce(&Self) -> Read<T>,
    ) -> Read<T> {
        Self::new(notes, Some(table), String::new(), 0).read(read)
    }

    /// Reads the table `key` with `read`, then notes every key of it that `read` didn't ask for.
    pub(super) fn section<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Section<'t>) -> Read<T>,
    ) -> Read<T> {
        match self.optional(key) {
            Some(value) => value.section(read),
            None => Self::new(self.notes, None, self.path_of(key), self.at).read(read),
        }
    }

    /// Reads each table of the array `key` as [`Section::section`] does; none if the array isn't there.
    pub(super) fn sections<T>(
        &self,
        key: &'static str,
        mut read: impl FnMut(&Section<'t>) -> Read<T>,
    ) -> Read<Vec<T>> {
        self.or(key, Vec::new(), |value| match value.value {
            DeValue::Array(array) => all(value.items(array).map(|item| item.section(&mut read))),
            _ => Err(value.unexpected(&format!("an array of tables, each headed [[{key}]]"))),
        })
    }

    /// Whether there is a `key`, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// The value of `key`, if there is one.
    pub(super) fn optional(&self, key: &'static str) -> Option<Value<'t>> {
        self.known.borrow_mut().push(key);
        // The key's place and not the value's: both begin on one line, and a value that was never written has no place.
        let (spanned, value) = self.table?.get_key_value(key)?;
        Some(Value {
            notes: self.notes,
            value: value.get_ref(),
            path: self.path_of(key),
            at: spanned.span().start,
        })
    }

    /// The value of `key`; its absence is a problem.
    pub(super) fn required(&self, key: &'static str) -> Read<Value<'t>> {
        self.optional(key)
            .ok_or_else(|| self.absence(key, "is required"))
    }

    /// What `read` makes of `key`, or `default` if the key isn't there.
    pub(super) fn or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value<'t>) -> Read<T>,
    ) -> Read<T> {
        self.optional(key).map_or(Ok(default), |value| read(&value))
    }

    /// What `read` makes of `key`, if the key is there.
    pub(super) fn maybe<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Value<'t>) -> Read<T>,
    ) -> Read<Option<T>> {
        self.or(key, None, |value| read(value).map(Some))
    }

    /// Notes a problem with the table itself.
    pub(super) fn problem(&self, message: &str) -> Noted {
        self.notes.problem(self.at, &self.path, message)
    }

    /// Notes that `key` should be there.
    pub(super) fn absence(&self, key: &str, message: &str) -> Noted {
        self.notes.absence(self.at, &self.path_of(key), message)
    }

    fn new(notes: &'t Notes, table: Option<&'t DeTable<'t>>, path: String, at: usize) -> Self {
        Self {
            notes,
            table,
            path,
            at,
            known: RefCell::default(),
        }
    }

    fn read<T>(self, read: impl FnOnce(&Self) -> Read<T>) -> Read<T> {
        let result = read(&self);
        let known = self.known.borrow();
        for key in self.table.into_iter().flat_map(|table| table.keys()) {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                self.notes.problem(
                    key.span().start,
                    &self.path_of(name),
                    &unknown_key(name, &known),
                );
            }
        }
        result
    }

    fn path_of(&self, key: &str) -> String {
        let bare = !key.is_empty()
            && key
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        let key = if bare {
            key.to_owned()
        } else {
            format!("{key:?}")
        };
        if self.path.is_empty() {
            key
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    /// Below this similarity, a guess misleads more often than it helps.
    const NEAR: f64 = 0.8;

    let near = known
        .iter()
        .map(|name| (similarity(key, name), name))
        .filter(|(similarity, _)| *similarity >= NEAR);
    match near.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((_, name)) => format!("unknown key; did you mean `{name}`?"),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}

/// From 0 to 1, which a single slip keeps: Jaro-Winkler alone sees little likeness between `tpc` and `tcp`.
fn similarity(key: &str, name: &str) -> f64 {
    let one_slip =
        key.len().abs_diff(name.len()) <= 1 && strsim::damerau_levenshtein(key, name) <= 1;
    if one_slip {
        1.0
    } else {
        strsim::jaro_winkler(key, name)
    }
}

/// A value and where it stands.
pub(super) struct Value<'t> {
    notes: &'t Notes,
    value: &'t DeValue<'t>,
    path: String,
    at: usize,
}

impl<'t> Value<'t> {
    /// Notes a problem with this value.
    pub(super) fn problem(&self, message: impl fmt::Display) -> Noted {
        self.notes
            .problem(self.at, &self.path, &message.to_string())
    }

    /// Notes that this value needs something that isn't there.
    pub(super) fn absence(&self, message: impl fmt::Display) -> Noted {
        self.notes
            .absence(self.at, &self.path, &message.to_string())
    }

    /// Notes that this value is of the wrong type.
    pub(super) fn unexpected(&self, expected: &str) -> Noted {
        self.problem(format_args!(
            "expected {expected}, found {}",
            kind(self.value)
        ))
    }

    /// The line on which it stands, from 1.
    pub(super) fn line(&self) -> usize {
        self.notes.line(self.at)
    }

    /// Whether this is the string `text`.
    pub(super) fn is(&self, text: &str) -> bool {
        self.value.as_str() == Some(text)
    }

    /// Whether this is an array; for what may be an array or something else.
    pub(super) fn is_array(&self) -> bool {
        self.value.is_array()
    }

    /// Whether this is a string; for what may be a string or something else.
    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    /// Whether this is an integer; for what may be an integer or something else.
    pub(super) fn is_integer(&self) -> bool {
        self.value.is_integer()
    }

    /// A string. NUL is refused: no path, name or filter can hold it.
    pub(super) fn text(&self) -> Read<&'t str> {
        match self.value.as_str() {
            None => Err(self.unexpected("a string")),
            Some(text) if text.contains('\0') => {
                Err(self.problem("must not contain a NUL character"))
            }
            Some(text) => Ok(text),
        }
    }

    /// A string that isn't empty.
    pub(super) fn some_text(&self) -> Read<&'t str> {
        match self.text()? {
            "" => Err(self.problem("must not be empty")),
            text => Ok(text),
        }
    }

    /// A string that is the text of a `T`.
    pub(super) fn parsed<T: FromStr<Err = Malformed>>(&self) -> Read<T> {
        self.text()?.parse().map_err(|why| self.problem(why))
    }

    /// One of a few strings, each with what it stands for.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Read<T> {
        let text = self.text()?;
        choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, choice)| *choice)
            .ok_or_else(|| {
                let names: Vec<_> = choices
                    .iter()
                    .map(|(name, _)| format!("{name:?}"))
                    .collect();
                self.problem(format_args!(
                    "expected {}, found {text:?}",
                    names.join(" or ")
                ))
            })
    }

    /// A boolean.
    pub(super) fn boolean(&self) -> Read<bool> {
        self.value
            .as_bool()
            .ok_or_else(|| self.unexpected("a boolean"))
    }

    /// An integer within `range`.
    pub(super) fn integer<T: TryFrom<i128> + PartialOrd + fmt::Display>(
        &self,
        range: RangeInclusive<T>,
    ) -> Read<T> {
        let integer = whole(
            self.value
                .as_integer()
                .ok_or_else(|| self.unexpected("an integer"))?,
        );
        T::try_from(integer)
            .ok()
            .filter(|integer| range.contains(integer))
            .ok_or_else(|| self.out_of(range.start(), range.end()))
    }

    /// A number of bytes within `range`: an integer, or a string with the suffix KiB or MiB.
    pub(super) fn size(&self, range: RangeInclusive<usize>) -> Read<usize> {
        let bytes = match self.value {
            DeValue::Integer(integer) => whole(integer),
            DeValue::String(text) => bytes(text)
                .ok_or_else(|| self.problem("write a size such as 65536, \"64KiB\" or \"1MiB\""))?
                .into(),
            _ => return Err(self.unexpected("an integer or a string such as \"1MiB\"")),
        };
        usize::try_from(bytes)
            .ok()
            .filter(|bytes| range.contains(bytes))
            .ok_or_else(|| self.out_of(size_text(*range.start()), size_text(*range.end())))
    }

    /// A duration within `range`, written as [`Span`] reads it.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Read<Duration> {
        let Span(duration) = self.parsed()?;
        if range.contains(&duration) {
            Ok(duration)
        } else {
            Err(self.out_of(Span(*range.start()), Span(*range.end())))
        }
    }

    /// What `read` makes of each item of an array.
    pub(super) fn list<T>(&self, read: impl FnMut(Value<'t>) -> Read<T>) -> Read<Vec<T>> {
        let array = self
            .value
            .as_array()
            .ok_or_else(|| self.unexpected("an array"))?;
        all(self.items(array).map(read))
    }

    /// Reads a table as [`Section::section`] does.
    pub(super) fn section<T>(&self, read: impl FnOnce(&Section<'t>) -> Read<T>) -> Read<T> {
        let table = self
            .value
            .as_table()
            .ok_or_else(|| self.unexpected("a table"))?;
        Section::new(self.notes, Some(table), self.path.clone(), self.at).read(read)
    }

    fn items(&self, array: &'t DeArray<'t>) -> impl Iterator<Item = Value<'t>> {
        array.iter().enumerate().map(|(index, item)| Value {
            notes: self.notes,
            value: item.get_ref(),
            path: format!("{}[{index}]", self.path),
            at: item.span().start,
        })
    }

    fn out_of(&self, least: impl fmt::Display, most: impl fmt::Display) -> Noted {
        self.problem(format_args!("must be from {least} to {most}"))
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a datetime",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// TOML's integers have no bound here; one beyond 128 bits is out of every range, as the greatest is.
fn whole(integer: &DeInteger<'_>) -> i128 {
    i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX)
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) =
        [("KiB", 1 << 10), ("MiB", 1 << 20)]
            .into_iter()
            .find_map(|(suffix, unit)| {
                text.strip_suffix(suffix)
                    .map(|digits| (digits.trim_end(), unit))
            })?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    // More digits than 64 bits hold are out of every range, as the greatest size is.
    all_digits.then(|| {
        digits
            .parse::<u64>()
            .unwrap_or(u64::MAX)
            .saturating_mul(unit)
    })
}

fn size_text(bytes: usize) -> String {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    match bytes {
        _ if bytes >= MIB && bytes.is_multiple_of(MIB) => format!("{}MiB", bytes / MIB),
        _ if bytes >= KIB && bytes.is_multiple_of(KIB) => format!("{}KiB", bytes / KIB),
        _ => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for (text, size) in [
            ("8KiB", 8 << 10),
            ("1MiB", 1 << 20),
            ("1024MiB", 1 << 30),
            ("1025KiB", 1025 << 10),
        ] {
            assert_eq!(bytes(text), Some(size));
            assert_eq!(size_text(usize::try_from(size).expect("64 bits")), text);
        }
        assert_eq!(bytes("2 MiB"), Some(2 << 20));
    }

    #[test]
    fn a_size_needs_digits_and_a_suffix() {
        for text in [
            "", "KiB", "1", "1GiB", "1MB", "-1KiB", "+1KiB", "1.5MiB", "1 kib", "٣KiB",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(bytes("99999999999999999999999MiB"), Some(u64::MAX));
    }

    #[test]
    fn a_far_key_gets_the_list_and_a_near_one_a_guess() {
        let known = ["socket", "mode", "tcp"];
        assert_eq!(
            unknown_key("sockt", &known),
            "unknown key; did you mean `socket`?"
        );
        assert_eq!(
            unknown_key("modus", &known),
            "unknown key; did you mean `mode`?"
        );
        assert_eq!(
            unknown_key("workers", &known),
            "unknown key; known here: socket, mode, tcp"
        );
    }
}
