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
    files::Patient, keyring::Refusal, orders::SignerError, runner::RunError, telemetry::log_line,
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
    is_silent: bool,
}

/// The exit code of a process that SIGPIPE killed, in shells.
const EXIT_SIGPIPE: u8 = 128 + 13;

impl CliError {
    fn new(exit: u8, code: &str, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: code.into(),
            message: message.into(),
            is_silent: false,
        }
    }

    /// Output could not be written. If its reader closed it, as `head` does, the command ends as
    /// other programs do: silently.
    pub(super) fn unwritable(what: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self {
                is_silent: true,
                ..Self::new(EXIT_SIGPIPE, "output_closed", format!("{what} was closed"))
            };
        }
        Self::failed(format!("can't write to {what}: {error}"))
    }

    pub(super) fn failed(message: impl Display) -> Self {
        Self::new(1, "failed", message.to_string())
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(2, "usage", message)
    }

    /// A check that failed, such as `scan --fail-if-version`.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::new(3, "refused", message)
    }

    /// A program that could not be started: exit code 126 or 127, as in shells.
    pub(super) fn not_started(exit: u8, message: impl Into<String>) -> Self {
        Self::new(exit, "not_started", message)
    }

    /// A problem returned by the sidecar.
    pub(super) fn problem(code: &str, message: impl Into<String>) -> Self {
        Self::new(1, code, message)
    }

    /// An audit log that was tampered with.
    pub(super) fn broken(message: impl Into<String>) -> Self {
        Self::new(3, "broken", message)
    }

    /// The outcome recorded in the audit log.
    pub(super) fn outcome(&self) -> ActOutcome {
        if self.exit == 3 {
            ActOutcome::Refused
        } else {
            ActOutcome::Failed
        }
    }

    /// Whether a signal ended the command.
    pub(super) fn is_interrupted(&self) -> bool {
        self.code == "interrupted"
    }

    /// A rollout that can't be run.
    pub(super) fn from_run(error: RunError) -> Self {
        match error {
            RunError::Admin(error) => error.into(),
            RunError::Taken { .. }
            | RunError::Changed(_)
            | RunError::Unfinished(_)
            | RunError::Untrusted(..) => Self::refused(error.to_string()),
            RunError::Journal(_) | RunError::None(_) | RunError::Stopped => Self::failed(error),
        }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Terminated by `signal`: exit code 128 plus its number, as in shells.
    pub(super) fn interrupted(signal: SignalKind) -> Self {
        let number = signal.as_raw_value();
        let exit = 128 + u8::try_from(number).unwrap_or(0);
        Self::new(
            exit,
            "interrupted",
            format!("terminated by signal {number}"),
        )
    }

    /// Appends a line that says what to do.
    pub(super) fn with_hint(mut self, hint: &str) -> Self {
        self.message = format!("{}\n{hint}", self.message);
        self
    }

    pub(super) fn report(self, format: Format) -> ExitCode {
        self.report_as("sidekey", format)
    }

    /// Prints the error of `program`.
    pub(super) fn report_as(self, program: &str, format: Format) -> ExitCode {
        match format {
            _ if self.is_silent => {}
            Format::Text => {
                log_line(format_args!(
                    "{program}: {}",
                    printable_lines(&self.message)
                ));
            }
            Format::Json => {
                log_line(json!({ "error": { "code": self.code, "message": self.message } }));
            }
        }
        ExitCode::from(self.exit)
    }
}

impl From<Refusal> for CliError {
    fn from(refusal: Refusal) -> Self {
        Self::new(3, "refused", format!("refused: {refusal}"))
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

impl From<SignerError> for CliError {
    fn from(error: SignerError) -> Self {
        Self::failed(error)
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

/// Writes a whole result to standard output. If the reader closed that, it wants no more of it,
/// which doesn't change what the command did: that is no error.
pub(super) fn write_out(text: &str) -> Result<(), CliError> {
    match Patient::stdout().and_then(|mut out| out.write_all(text.as_bytes())) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::unwritable("standard output", &error))
        }
        _ => Ok(()),
    }
}

/// Writes a line to standard error, in the course of the work. That it can't be written doesn't
/// stop the work.
pub(super) fn note(line: impl Display) {
    let line = format!("sidekey: {line}\n");
    let _ = Patient::stderr().and_then(|mut out| out.write_all(line.as_bytes()));
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
