use std::io::{self, Write};

/// Writes a line to standard error. If that is closed, the program keeps running regardless.
pub(super) fn log(message: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "sidekey: {message}");
}
