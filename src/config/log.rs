//! `[log]`: what is logged, and how.

use tracing_subscriber::EnvFilter;

use super::reader::{Parsed, Section, Value};

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// The format of log lines.
    pub format: LogFormat,
    /// A level, or a filter in the syntax of `tracing-subscriber`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".into(),
        }
    }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

pub(super) fn log(section: &Section<'_>) -> Parsed<Log> {
    let default = Log::default();
    let format = section.or("format", default.format, |value| {
        value.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
    });
    let filter = section.or("level", default.filter, filter);
    Ok(Log {
        format: format?,
        filter: filter?,
    })
}

/// Returns the directives without the space around them: tracing-subscriber 0.3.23 misreads a
/// directive after a space, and panics on some such text.
fn filter(value: &Value<'_>) -> Parsed<String> {
    let filter = value
        .nonempty_text()?
        .split(',')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(",");
    match EnvFilter::builder().parse(&filter) {
        Ok(_) => Ok(filter),
        Err(error) => Err(value.problem(format_args!(
            "expected a level such as \"info\" or a tracing filter: {error}"
        ))),
    }
}
