//! Results on standard output, errors on standard error, exit codes.

use std::{
    fmt::Display,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::SignalKind;

use crate::{
    admin::AdminError, app::StartError, audit::ActOutcome, client::SidecarError, config::LoadError,
    keyring::Refusal,
};

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Human-readable text.
    Text,
    /// A single JSON document.
    Json,
}

/// An error with its exit code and its stable code for JSON output.
#[derive(Debug)]
pub(super) struct CliError {
    exit: u8,
    code: String,
    message: String,
}

impl CliError {
    pub(super) fn failed(message: impl Display) -> Self {
        Self {
            exit: 1,
            code: "failed".into(),
            message: message.to_string(),
        }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: 2,
            code: "usage".into(),
            message: message.into(),
        }
    }

    /// A check that failed, such as `scan --fail-if-version`.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self {
            exit: 3,
            code: "refused".into(),
            message: message.into(),
        }
    }

    /// A program that could not be started: exit code 126 or 127, as in shells.
    pub(super) fn not_started(exit: u8, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: "not_started".into(),
            message: message.into(),
        }
    }

    /// A problem returned by the sidecar.
    pub(super) fn problem(code: &str, message: impl Into<String>) -> Self {
        Self {
            exit: 1,
            code: code.into(),
            message: message.into(),
        }
    }

    /// An audit log that was tampered with.
    pub(super) fn broken(message: impl Into<String>) -> Self {
        Self {
            exit: 3,
            code: "broken".into(),
            message: message.into(),
        }
    }

    /// The outcome recorded in the audit log.
    pub(super) fn outcome(&self) -> ActOutcome {
        if self.exit == 3 {
            ActOutcome::Refused
        } else {
            ActOutcome::Failed
        }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Terminated by `signal`: exit code 128 plus its number, as in shells.
    pub(super) fn interrupted(signal: SignalKind) -> Self {
        let number = signal.as_raw_value();
        Self {
            exit: 128 + u8::try_from(number).unwrap_or(0),
            code: "interrupted".into(),
            message: format!("terminated by signal {number}"),
        }
    }

    /// Appends a line that says what to do.
    pub(super) fn with_hint(mut self, hint: &str) -> Self {
        self.message = format!("{}\n{hint}", self.message);
        self
    }

    pub(super) fn report(self, format: Format) -> ExitCode {
        match format {
            Format::Text => eprintln!("sidekey: {}", printable_lines(&self.message)),
            Format::Json => eprintln!(
                "{}",
                json!({ "error": { "code": self.code, "message": self.message } })
            ),
        }
        ExitCode::from(self.exit)
    }
}

impl From<Refusal> for CliError {
    fn from(refusal: Refusal) -> Self {
        Self {
            exit: 3,
            code: "refused".into(),
            message: format!("refused: {refusal}"),
        }
    }
}

impl From<AdminError> for CliError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Refused(refusal) => refusal.into(),
            other => Self::failed(other),
        }
    }
}

impl From<LoadError> for CliError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Unreadable { .. } => Self::failed(error),
            LoadError::Invalid(problems) => Self::failed(format!("invalid config\n{problems}")),
        }
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        Self::failed(error)
    }
}

impl From<SidecarError> for CliError {
    fn from(error: SidecarError) -> Self {
        match &error {
            SidecarError::Refused { code, .. } => Self::problem(code, error.to_string()),
            _ => Self::failed(error),
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::failed(error)
    }
}

/// Prints a result: `value` as JSON, or `text`, depending on `format`.
pub(super) fn print(
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), CliError> {
    write_out(&render(format, value, text)?)
}

/// Like [`print()`], but returns the text.
pub(super) fn render(
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<String, CliError> {
    match format {
        Format::Text => Ok(printable_lines(&text())),
        Format::Json => match serde_json::to_string_pretty(value) {
            Ok(json) => Ok(json + "\n"),
            Err(error) => Err(CliError::failed(error)),
        },
    }
}

/// Writes rendered text to standard output.
pub(super) fn write_out(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| CliError::failed(format!("can't write to standard output: {error}")))
}

/// Escapes control characters, line breaks and bidirectional overrides in untrusted text, such as
/// file names, so that it can't forge output or control a terminal.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let is_separator_or_bidi = matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        );
        if is_separator_or_bidi || character.is_control() {
            shown.extend(character.escape_default())
        } else {
            shown.push(character)
        }
    }
    shown
}

/// Like [`printable`], but keeps line breaks.
fn printable_lines(text: &str) -> String {
    text.split('\n')
        .map(printable)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A path for people: escaped as in [`printable`].
pub(super) fn path_for_display(path: &Path) -> String {
    printable(&exact_path(path))
}

/// A path for programs: not escaped.
pub(super) fn exact_path(path: &Path) -> String {
    path.display().to_string()
}

/// Formats rows as a table; the first row is the heading.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_bidi_characters_are_escaped_and_others_kept() {
        assert_eq!(
            printable("a\u{1b}[2J\n\r\t\u{7}\u{7f}\u{9b}31m"),
            "a\\u{1b}[2J\\n\\r\\t\\u{7}\\u{7f}\\u{9b}31m"
        );
        assert_eq!(
            printable("gpj.\u{202e}txt\u{2066}"),
            "gpj.\\u{202e}txt\\u{2066}"
        );
        let name = "Büro 数据 \\ 'x' \"y\" 👩\u{200d}💻";
        assert_eq!(printable(name), name);
        assert_eq!(printable_lines("one\ntwo\u{1b}c\n"), "one\ntwo\\u{1b}c\n");
    }
}
