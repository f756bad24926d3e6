use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Log, LogFormat};

/// Writes the process's log to standard error, in the configured format.
///
/// # Errors
/// Fails if the filter is invalid or logging is already set up.
pub fn init(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::builder()
        .parse(&log.filter)
        .map_err(|error| error.to_string())?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init(),
        LogFormat::Text => builder
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
    }
    .map_err(|error| error.to_string())
}
