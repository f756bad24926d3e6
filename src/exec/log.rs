use crate::telemetry::log_line;

/// Writes a line to standard error. The program keeps running whether or not that is read.
pub(super) fn log(message: impl std::fmt::Display) {
    log_line(format_args!("sidekey: {message}"));
}
