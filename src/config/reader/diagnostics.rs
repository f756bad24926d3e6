use std::{cell::RefCell, collections::BTreeSet, fmt};

/// One problem in a config file, displayed as `LINE: KEY: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, counted from 1. For a missing setting, the line of the table that lacks it.
    pub line: usize,
    /// The dotted path, such as `keyring[1].location`, with indexes counted from 0. Empty for a
    /// syntax error.
    pub key: String,
    /// What is wrong and how to fix it, on one line.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, key, message } = self;
        if key.is_empty() {
            write!(f, "{line}: {message}")
        } else {
            write!(f, "{line}: {key}: {message}")
        }
    }
}

/// There is no value, and a problem has been reported that says why.
#[derive(Debug, Clone, Copy)]
pub(in crate::config) struct Reported(());

/// Collects the problems of one file.
pub(super) struct Diagnostics {
    newlines: Vec<usize>,
    /// Lines with a syntax error. What the TOML parser made of them is a guess, so no other problem
    /// is reported for them.
    broken: BTreeSet<usize>,
    problems: RefCell<Vec<Problem>>,
}

impl Diagnostics {
    /// Begins with the first syntax error of each line. Later ones follow from it.
    pub(super) fn new(text: &str, syntax_errors: &[toml::de::Error]) -> Self {
        let newlines = text.match_indices('\n').map(|(at, _)| at).collect();
        let mut diagnostics = Self {
            newlines,
            broken: BTreeSet::new(),
            problems: RefCell::default(),
        };
        for error in syntax_errors {
            // An error at the end of the file belongs to the last line that isn't blank.
            let at = error
                .span()
                .map_or(0, |span| span.start.min(text.trim_end().len()));
            let line = diagnostics.line(at);
            if diagnostics.broken.insert(line) {
                diagnostics.push(line, "", error.message());
            }
        }
        diagnostics
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    /// Returns the line of a byte offset, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.newlines.partition_point(|newline| *newline < at) + 1
    }

    /// Reports a problem at a byte offset.
    pub(super) fn problem(&self, at: usize, key: &str, message: &str) -> Reported {
        let line = self.line(at);
        if !self.broken.contains(&line) {
            self.push(line, key, message);
        }
        Reported(())
    }

    /// Reports that something is missing, unless a syntax error may have swallowed it.
    pub(super) fn missing(&self, at: usize, key: &str, message: &str) -> Reported {
        if self.broken.is_empty() {
            self.push(self.line(at), key, message);
        }
        Reported(())
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
