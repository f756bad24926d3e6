use crate::telemetry::log_line;

/// Writes a line to standard error. Whoever reads that, or doesn't, the program keeps running.
pub(super) fn log(message: impl std::fmt::Display) {
    log_line(format_args!("sidekey: {message}"));
}
