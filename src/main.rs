//! The `sidekey` command.

#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use sidekey::{cli, crypto, telemetry};

fn main() -> ExitCode {
    telemetry::log_panics();
    let arguments = cli::Arguments::parse();
    // Before any key is read.
    let hardened = if arguments.starts_a_program() {
        crypto::hide_process()
    } else {
        crypto::harden_process()
    };
    if let Err(error) = hardened {
        telemetry::log_line(format_args!(
            "sidekey: can't forbid core dumps, so no key will be read: {error}"
        ));
        telemetry::flush_log();
        return ExitCode::FAILURE;
    }
    let exit = cli::run(arguments);
    telemetry::flush_log();
    exit
}
