use std::cell::RefCell;

use toml::de::DeTable;

use super::{Context, Parsed, Reported, Value, all};

/// A table, or one that is missing: all its keys are then missing as well.
pub(in crate::config) struct Section<'t> {
    context: &'t Context,
    table: Option<&'t DeTable<'t>>,
    path: String,
    at: usize,
    /// The keys that were read, and are therefore known.
    known: RefCell<Vec<&'static str>>,
}

impl<'t> Section<'t> {
    /// Reads the whole file with `read`; see [`Section::section`].
    pub(in crate::config) fn file<T>(
        context: &'t Context,
        table: &'t DeTable<'t>,
        read: impl FnOnce(&Self) -> Parsed<T>,
    ) -> Parsed<T> {
        Self::new(context, Some(table), String::new(), 0).read(read)
    }

    /// Reads the table `key` with `read`, then reports every key that `read` didn't read.
    pub(in crate::config) fn section<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Section<'t>) -> Parsed<T>,
    ) -> Parsed<T> {
        match self.optional(key) {
            Some(value) => value.section(read),
            None => Self::new(self.context, None, self.path_of(key), self.at).read(read),
        }
    }

    /// Reads each table of the array `key` as [`Section::section`] does. Returns an empty list if
    /// the array is missing.
    pub(in crate::config) fn sections<T>(
        &self,
        key: &'static str,
        mut read: impl FnMut(&Section<'t>) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        self.or(key, Vec::new(), |value| match value.as_array() {
            Some(array) => all(value.items(array).map(|item| item.section(&mut read))),
            None => Err(value.unexpected(&format!("an array of tables, each headed [[{key}]]"))),
        })
    }

    /// Returns whether `key` is present, regardless of its value.
    pub(in crate::config) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Returns whether the table `table` is present and has `key`.
    pub(in crate::config) fn has_nested(&self, table: &str, key: &str) -> bool {
        let table = self.table.and_then(|own| own.get(table));
        let table = table.and_then(|table| table.get_ref().as_table());
        table.is_some_and(|table| table.contains_key(key))
    }

    /// Returns the value of `key`, if it is present.
    pub(in crate::config) fn optional(&self, key: &'static str) -> Option<Value<'t>> {
        self.known.borrow_mut().push(key);
        // The position of the key, not of the value: both begin on one line, and the value of an
        // implicit table has no position.
        let (spanned, value) = self.table?.get_key_value(key)?;
        Some(Value::new(
            self.context,
            value.get_ref(),
            self.path_of(key),
            spanned.span().start,
        ))
    }

    /// Returns the value of `key`, and reports a problem if it is missing.
    pub(in crate::config) fn required(&self, key: &'static str) -> Parsed<Value<'t>> {
        self.optional(key)
            .ok_or_else(|| self.missing(key, "is required"))
    }

    /// Reads `key` with `read`, or returns `default` if the key is missing.
    pub(in crate::config) fn or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value<'t>) -> Parsed<T>,
    ) -> Parsed<T> {
        self.optional(key).map_or(Ok(default), |value| read(&value))
    }

    /// Reads `key` with `read`, if the key is present.
    pub(in crate::config) fn maybe<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Value<'t>) -> Parsed<T>,
    ) -> Parsed<Option<T>> {
        self.or(key, None, |value| read(value).map(Some))
    }

    /// Reports a problem with the table itself.
    pub(in crate::config) fn problem(&self, message: &str) -> Reported {
        self.context
            .diagnostics
            .problem(self.at, &self.path, message)
    }

    /// Reports that `key` is missing.
    pub(in crate::config) fn missing(&self, key: &str, message: &str) -> Reported {
        self.context
            .diagnostics
            .missing(self.at, &self.path_of(key), message)
    }

    pub(super) fn new(
        context: &'t Context,
        table: Option<&'t DeTable<'t>>,
        path: String,
        at: usize,
    ) -> Self {
        Self {
            context,
            table,
            path,
            at,
            known: RefCell::default(),
        }
    }

    pub(super) fn read<T>(self, read: impl FnOnce(&Self) -> Parsed<T>) -> Parsed<T> {
        let result = read(&self);
        let known = self.known.borrow();
        for key in self.table.into_iter().flat_map(|table| table.keys()) {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                self.context.diagnostics.problem(
                    key.span().start,
                    &self.path_of(name),
                    &unknown_key(name, &known),
                );
            }
        }
        result
    }

    /// Returns the folder against which relative paths are resolved.
    pub(in crate::config) fn folder(&self) -> &'t std::path::Path {
        &self.context.folder
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
        None => format!("unknown key; expected one of: {}", known.join(", ")),
    }
}

/// Returns the similarity of two keys, from 0 to 1. A single slip counts as 1: Jaro-Winkler alone
/// finds `tpc` and `tcp` hardly similar.
fn similarity(key: &str, name: &str) -> f64 {
    let is_one_slip =
        key.len().abs_diff(name.len()) <= 1 && strsim::damerau_levenshtein(key, name) <= 1;
    if is_one_slip {
        1.0
    } else {
        strsim::jaro_winkler(key, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_key_or_with_all() {
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
            "unknown key; expected one of: socket, mode, tcp"
        );
    }
}
