//! The `sidekey-hub` command.

#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use sidekey::{cli::hub, crypto, telemetry};

fn main() -> ExitCode {
    telemetry::log_panics();
    let arguments = hub::Arguments::parse();
    // Before any token or private key is read.
    if let Err(error) = crypto::harden_process() {
        telemetry::log_line(format_args!(
            "sidekey-hub: can't forbid core dumps, so no token will be read: {error}"
        ));
        telemetry::flush_log();
        return ExitCode::FAILURE;
    }
    let exit = hub::run(arguments);
    telemetry::flush_log();
    exit
}
