//! The process's log on standard error. Nothing here waits for its reader, and nothing fails
//! without one.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::Display,
    io::{self, IsTerminal, Write},
    panic,
    sync::OnceLock,
    time::Duration,
};

use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt, reload};

use super::lossy::stderr;
use crate::{
    config::{Log, LogFormat},
    files::Patient,
};

/// How long a process that ends waits for its log to be read.
const PATIENCE: Duration = Duration::from_secs(2);

type ReplaceFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// Replaces the filter of this process's log, once it is set up.
static REPLACE_FILTER: OnceLock<ReplaceFilter> = OnceLock::new();

/// Writes events to the log, in the configured format.
///
/// # Errors
/// Fails if the filter is invalid, logging is already set up, or no thread can be started.
pub fn init(log: &Log) -> Result<(), String> {
    let filter = parse(log)?;
    let writer = stderr().ok_or("can't start a thread for the log")?;
    // Internal errors would be printed with `eprintln!`, which panics.
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(writer.clone())
        .log_internal_errors(false);
    let (started, replace): (_, ReplaceFilter) = match log.format {
        LogFormat::Json => {
            let builder = builder
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .with_filter_reloading();
            let handle = builder.reload_handle();
            let replace = Box::new(move |filter| handle.reload(filter));
            (builder.try_init(), replace)
        }
        LogFormat::Text => {
            let builder = builder
                .with_ansi(io::stderr().is_terminal())
                .with_target(false)
                .with_filter_reloading();
            let handle = builder.reload_handle();
            let replace = Box::new(move |filter| handle.reload(filter));
            (builder.try_init(), replace)
        }
    };
    started.map_err(|error| error.to_string())?;
    // A second set-up would have failed above.
    let _ = REPLACE_FILTER.set(replace);
    Ok(())
}

/// Logs from now on what another config says. Does nothing if this process has set up no log.
///
/// # Errors
/// Fails if the filter is invalid.
pub fn change_filter(log: &Log) -> Result<(), String> {
    let filter = parse(log)?;
    match REPLACE_FILTER.get() {
        Some(replace) => replace(filter).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

fn parse(log: &Log) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(scoped(&log.filter))
        .map_err(|error| error.to_string())
}

/// Returns the filter of all events: a level alone is that of Sidekey's own. Libraries log what we
/// report in our own words, and details of their work; their errors would be news.
fn scoped(filter: &str) -> String {
    match filter.parse::<LevelFilter>() {
        Ok(level) => format!("error,sidekey={level}"),
        Err(_) => filter.to_owned(),
    }
}

/// Writes a line to the log of a command that has no events.
pub fn log_line(line: impl Display) {
    let line = format!("{line}\n");
    match stderr() {
        Some(writer) => writer.write(line.as_bytes()),
        // Without a thread, losing the line is the worse choice.
        None => drop(Patient::stderr().and_then(|mut out| out.write_all(line.as_bytes()))),
    }
}

/// Waits until the log is written, for a moment at most. To be called before the process ends.
pub fn flush_log() {
    if let Some(writer) = stderr() {
        writer.flush(PATIENCE);
    }
}

/// Returns how many lines of the log were lost.
pub fn lost_log_lines() -> u64 {
    stderr().map_or(0, |writer| writer.lost())
}

/// Makes panics write to the log: the default hook waits for standard error, so that a process that
/// should abort would hang instead.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        log_line(format_args!("sidekey: {panic}"));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            log_line(backtrace);
        }
        flush_log();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_that_of_our_own_events() {
        assert_eq!(scoped("info"), "error,sidekey=info");
        assert_eq!(scoped("DEBUG"), "error,sidekey=debug");
        for filter in [
            "info,sidekey=debug",
            "aws_config=trace",
            "sidekey::http=debug",
        ] {
            assert_eq!(scoped(filter), filter);
        }
        for text in ["info", "off", "warn,hyper=debug"] {
            EnvFilter::builder().parse(scoped(text)).expect(text);
        }
    }
}
