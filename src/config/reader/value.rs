use std::{fmt, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use toml::de::{DeArray, DeInteger, DeValue};

use super::{Context, Parsed, Reported, Section, all, users};
use crate::model::{Malformed, Span};

pub(in crate::config) const KIB: usize = 1 << 10;
pub(in crate::config) const MIB: usize = 1 << 20;

/// The shortest duration above zero.
pub(in crate::config) const INSTANT: Duration = Duration::from_nanos(1);
/// The longest duration that a [`Span`] can hold.
pub(in crate::config) const LONGEST: Duration = Span::from_days(36_525).0;

/// Every user or group id but the greatest, which chown(2) reads as "leave unchanged".
const IDS: RangeInclusive<u32> = 0..=u32::MAX - 1;

/// A value and its position.
pub(in crate::config) struct Value<'t> {
    context: &'t Context,
    value: &'t DeValue<'t>,
    path: String,
    at: usize,
}

impl<'t> Value<'t> {
    pub(super) fn new(
        context: &'t Context,
        value: &'t DeValue<'t>,
        path: String,
        at: usize,
    ) -> Self {
        Self {
            context,
            value,
            path,
            at,
        }
    }

    /// Reports a problem with this value.
    pub(in crate::config) fn problem(&self, message: impl fmt::Display) -> Reported {
        self.context
            .diagnostics
            .problem(self.at, &self.path, &message.to_string())
    }

    /// Reports that something is missing which this value requires.
    pub(in crate::config) fn missing(&self, message: impl fmt::Display) -> Reported {
        self.context
            .diagnostics
            .missing(self.at, &self.path, &message.to_string())
    }

    /// Reports that this value has the wrong type.
    pub(in crate::config) fn unexpected(&self, expected: &str) -> Reported {
        self.problem(format_args!(
            "expected {expected}, found {}",
            kind(self.value)
        ))
    }

    /// Returns the line of this value, counted from 1.
    pub(in crate::config) fn line(&self) -> usize {
        self.context.diagnostics.line(self.at)
    }

    /// Returns whether this is the string `text`.
    pub(in crate::config) fn is(&self, text: &str) -> bool {
        self.value.as_str() == Some(text)
    }

    pub(in crate::config) fn is_array(&self) -> bool {
        self.value.is_array()
    }

    pub(super) fn as_array(&self) -> Option<&'t DeArray<'t>> {
        self.value.as_array()
    }

    /// Returns a string, which may be empty. NUL is rejected: no path, name or filter can hold it.
    pub(in crate::config) fn text(&self) -> Parsed<&'t str> {
        match self.value.as_str() {
            None => Err(self.unexpected("a string")),
            Some(text) if text.contains('\0') => {
                Err(self.problem("must not contain a NUL character"))
            }
            Some(text) => Ok(text),
        }
    }

    /// Returns a string that isn't empty.
    pub(in crate::config) fn nonempty_text(&self) -> Parsed<&'t str> {
        match self.text()? {
            "" => Err(self.problem("must not be empty")),
            text => Ok(text),
        }
    }

    /// Like [`Value::nonempty_text`], but owned.
    pub(in crate::config) fn string(&self) -> Parsed<String> {
        self.nonempty_text().map(str::to_owned)
    }

    /// Returns a path, resolved against the config file's folder.
    pub(in crate::config) fn path(&self) -> Parsed<PathBuf> {
        self.nonempty_text()
            .map(|text| self.context.folder.join(text))
    }

    /// Resolves a path that this value contains against the config file's folder.
    #[cfg(feature = "hub")]
    pub(in crate::config) fn resolved(&self, path: &str) -> PathBuf {
        self.context.folder.join(path)
    }

    /// Parses a string. A problem quotes it, so it must not hold a secret.
    pub(in crate::config) fn parsed<T: FromStr<Err = Malformed>>(&self) -> Parsed<T> {
        let text = self.text()?;
        text.parse()
            .map_err(|error| self.problem(format_args!("invalid value {text:?}: {error}")))
    }

    /// Parses a URI. A problem doesn't quote it: users put passwords and tokens into URIs.
    pub(in crate::config) fn parsed_uri<T: FromStr<Err = Malformed>>(&self) -> Parsed<T> {
        self.text()?.parse().map_err(|error| self.problem(error))
    }

    /// Returns the choice that a string names.
    pub(in crate::config) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Parsed<T> {
        let text = self.text()?;
        let chosen = choices.iter().find(|(name, _)| *name == text);
        chosen.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<_> = choices
                .iter()
                .map(|(name, _)| format!("{name:?}"))
                .collect();
            let names = match &names[..] {
                [one, other] => format!("{one} or {other}"),
                names => format!("one of {}", names.join(", ")),
            };
            self.problem(format_args!("expected {names}, found {text:?}"))
        })
    }

    pub(in crate::config) fn boolean(&self) -> Parsed<bool> {
        self.value
            .as_bool()
            .ok_or_else(|| self.unexpected("a boolean"))
    }

    /// Returns an integer within `range`.
    pub(in crate::config) fn integer<T: TryFrom<i128> + PartialOrd + fmt::Display>(
        &self,
        range: RangeInclusive<T>,
    ) -> Parsed<T> {
        let integer = whole(
            self.value
                .as_integer()
                .ok_or_else(|| self.unexpected("an integer"))?,
        );
        T::try_from(integer)
            .ok()
            .filter(|integer| range.contains(integer))
            .ok_or_else(|| self.out_of_range(range.start(), range.end()))
    }

    /// Returns a number of bytes within `range`: an integer, or a string with the suffix KiB or
    /// MiB.
    pub(in crate::config) fn size(&self, range: RangeInclusive<usize>) -> Parsed<usize> {
        let bytes = match self.value {
            DeValue::Integer(integer) => whole(integer),
            DeValue::String(text) => bytes(text)
                .ok_or_else(|| {
                    self.problem(format_args!(
                        "expected a size such as 65536, \"64KiB\" or \"1MiB\", found {text:?}"
                    ))
                })?
                .into(),
            _ => return Err(self.unexpected("an integer or a string such as \"1MiB\"")),
        };
        usize::try_from(bytes)
            .ok()
            .filter(|bytes| range.contains(bytes))
            .ok_or_else(|| self.out_of_range(size_text(*range.start()), size_text(*range.end())))
    }

    /// Returns a duration within `range`, in the form of a [`Span`].
    pub(in crate::config) fn duration(&self, range: RangeInclusive<Duration>) -> Parsed<Duration> {
        let Span(duration) = self.parsed()?;
        if range.contains(&duration) {
            Ok(duration)
        } else {
            Err(self.out_of_range(Span(*range.start()), Span(*range.end())))
        }
    }

    /// Returns permission bits, written as octal digits.
    pub(in crate::config) fn mode(&self) -> Parsed<u32> {
        if !self.value.is_str() {
            return Err(self.unexpected("a string of octal digits such as \"0660\""));
        }
        let digits = self.text()?;
        if digits.is_empty() || !digits.bytes().all(|b| matches!(b, b'0'..=b'7')) {
            let message = format!("expected octal digits such as \"0660\", found {digits:?}");
            return Err(self.problem(message));
        }
        u32::from_str_radix(digits, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| self.out_of_range("\"0000\"", "\"0777\" (permission bits only)"))
    }

    /// Returns a user's id, from a number or from the name of a user of this machine.
    pub(in crate::config) fn uid(&self) -> Parsed<u32> {
        self.id("user", users::user_id)
    }

    /// Returns a group's id, from a number or from the name of a group of this machine.
    pub(in crate::config) fn gid(&self) -> Parsed<u32> {
        self.id("group", users::group_id)
    }

    fn id(&self, kind: &str, find: impl FnOnce(&str) -> Option<u32>) -> Parsed<u32> {
        let id = if self.value.is_integer() {
            self.integer(IDS)?
        } else {
            let name = self.name()?;
            find(name).ok_or_else(|| self.problem(format_args!("no such {kind}: {name:?}")))?
        };
        if id == users::UNMAPPED {
            return Err(self.problem(format_args!(
                "{id} stands for every {kind} that this user namespace does not map, so a rule for \
                 it would admit strangers; use another {kind}"
            )));
        }
        Ok(id)
    }

    /// Returns the name or number of a user or group, without looking it up.
    pub(in crate::config) fn name_or_id(&self) -> Parsed<String> {
        if self.value.is_integer() {
            self.integer(IDS).map(|id| id.to_string())
        } else {
            self.name().map(str::to_owned)
        }
    }

    fn name(&self) -> Parsed<&'t str> {
        if self.value.is_str() {
            self.nonempty_text()
        } else {
            Err(self.unexpected("a string or an integer"))
        }
    }

    /// Reads each item of an array with `read`.
    pub(in crate::config) fn list<T>(
        &self,
        read: impl FnMut(Value<'t>) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let array = self.as_array().ok_or_else(|| self.unexpected("an array"))?;
        all(self.items(array).map(read))
    }

    /// Reads a table as [`Section::section`] does.
    pub(in crate::config) fn section<T>(
        &self,
        read: impl FnOnce(&Section<'t>) -> Parsed<T>,
    ) -> Parsed<T> {
        let table = self
            .value
            .as_table()
            .ok_or_else(|| self.unexpected("a table"))?;
        Section::new(self.context, Some(table), self.path.clone(), self.at).read(read)
    }

    pub(super) fn items(&self, array: &'t DeArray<'t>) -> impl Iterator<Item = Value<'t>> {
        array.iter().enumerate().map(|(index, item)| Value {
            context: self.context,
            value: item.get_ref(),
            path: format!("{}[{index}]", self.path),
            at: item.span().start,
        })
    }

    fn out_of_range(&self, least: impl fmt::Display, most: impl fmt::Display) -> Reported {
        let found = match self.value {
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().to_owned(),
            DeValue::Integer(integer) => whole(integer).to_string(),
            other => kind(other).to_owned(),
        };
        self.problem(format_args!(
            "must be between {least} and {most}, found {found}"
        ))
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

/// TOML integers are unbounded here. One that exceeds 128 bits is out of every range, as the
/// greatest value is.
fn whole(integer: &DeInteger<'_>) -> i128 {
    i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX)
}

fn bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20)];
    let (digits, unit) = units.into_iter().find_map(|(suffix, unit)| {
        text.strip_suffix(suffix)
            .map(|digits| (digits.trim_end(), unit))
    })?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    // A number that exceeds 64 bits is out of every range, as the greatest value is.
    all_digits.then(|| {
        digits
            .parse::<u64>()
            .unwrap_or(u64::MAX)
            .saturating_mul(unit)
    })
}

fn size_text(bytes: usize) -> String {
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
    fn a_size_requires_digits_and_a_suffix() {
        for text in [
            "", "KiB", "1", "1GiB", "1MB", "-1KiB", "+1KiB", "1.5MiB", "1 kib", "٣KiB",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
        assert_eq!(bytes("99999999999999999999999MiB"), Some(u64::MAX));
    }
}
