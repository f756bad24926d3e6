use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::SignalKind;

use crate::{
    admin::AdminError, app::StartError, audit::Outcome, client::SidecarError, keyring::Refusal,
};

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// Why a command did not do its work, with its exit code.
#[derive(Debug)]
pub(super) struct Failure {
    exit: u8,
    code: String,
    message: String,
}

impl Failure {
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self {
            exit: 1,
            code: "failed".into(),
            message: message.into(),
        }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: 2,
            code: "usage".into(),
            message: message.into(),
        }
    }

    /// What was asked for is not so.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self {
            exit: 3,
            code: "refused".into(),
            message: message.into(),
        }
    }

    /// A program could not be started; `exit` as shells number it.
    pub(super) fn not_started(exit: u8, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: "not_started".into(),
            message: message.into(),
        }
    }

    /// A problem that the sidecar answered with.
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

    /// What the audit log calls it.
    pub(super) fn outcome(&self) -> Outcome {
        if self.exit == 3 {
            Outcome::Refused
        } else {
            Outcome::Failed
        }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// A signal ended it.
    pub(super) fn interrupted(signal: SignalKind) -> Self {
        let number = signal.as_raw_value();
        // As shells number it.
        Self {
            exit: 128 + u8::try_from(number).unwrap_or(0),
            code: "interrupted".into(),
            message: format!("ended by signal {number}"),
        }
    }

    /// The same with a line more of what to do.
    pub(super) fn with_advice(mut self, advice: &str) -> Self {
        self.message = format!("{}\n{advice}", self.message);
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

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self {
            exit: 3,
            code: "refused".into(),
            message: format!("refused: {refusal}"),
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Refused(refusal) => refusal.into(),
            other => Self::failed(other.to_string()),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<SidecarError> for Failure {
    fn from(error: SidecarError) -> Self {
        match &error {
            SidecarError::Refused { code, .. } => Self::problem(code, error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// Prints a result: `value` as JSON, or `text`.
pub(super) fn print(
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    write_out(&render(format, value, text)?)
}

/// The same as it would be printed.
pub(super) fn render(
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<String, Failure> {
    match format {
        Format::Text => Ok(printable_lines(&text())),
        Format::Json => match serde_json::to_string_pretty(value) {
            Ok(json) => Ok(json + "\n"),
            Err(error) => Err(Failure::failed(error.to_string())),
        },
    }
}

/// Prints what was rendered.
pub(super) fn write_out(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::failed(format!("can't write to standard output: {error}")))
}

/// Text of somebody else in a line of ours, such as the name of a file: what would steer a terminal, begin a line or turn the
/// direction of writing is escaped, so that nobody writes a part of a report by naming a file.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let turns = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if turns || character.is_control() {
            shown.extend(character.escape_default())
        } else {
            shown.push(character)
        }
    }
    shown
}

/// The same of a text whose lines are ours.
fn printable_lines(text: &str) -> String {
    text.split('\n')
        .map(printable)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Rows in columns as wide as their widest cell; the first row heads them.
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
    fn what_steers_a_terminal_is_escaped_and_the_rest_stays() {
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
