//! Reads typed values from TOML, and collects every problem on the way.
//!
//! A read that fails has already reported why, and returns [`Reported`]. A table is read completely
//! before its first error is returned, so that one run reports every mistake in a file.

mod diagnostics;
mod section;
mod users;
mod value;

use std::path::{Path, PathBuf};

use self::diagnostics::Diagnostics;
pub use self::diagnostics::Problem;
pub(super) use self::{
    diagnostics::Reported,
    section::Section,
    value::{INSTANT, KIB, LONGEST, MIB, Value},
};

/// The result of a read.
pub(super) type Parsed<T> = Result<T, Reported>;

/// Reads every item before it fails, where `collect` alone would stop at the first error.
pub(super) fn all<T>(items: impl Iterator<Item = Parsed<T>>) -> Parsed<Vec<T>> {
    let items: Vec<_> = items.collect();
    items.into_iter().collect()
}

/// What all reads of one file share.
pub(super) struct Context {
    diagnostics: Diagnostics,
    /// Relative paths are resolved against this folder.
    folder: PathBuf,
}

impl Context {
    /// Begins with the file's syntax errors.
    pub(super) fn new(folder: &Path, text: &str, syntax_errors: &[toml::de::Error]) -> Self {
        Self {
            diagnostics: Diagnostics::new(text, syntax_errors),
            folder: folder.to_owned(),
        }
    }

    /// Returns all problems, sorted by line. Those of one line keep the order in which they were
    /// found.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.diagnostics.into_problems()
    }
}
