//! The `sidekey` command.

use std::process::ExitCode;

use clap::Parser;
use sidekey::{cli, crypto};

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    // Before any key is read.
    let hardened = if arguments.starts_a_program() {
        crypto::hide_process()
    } else {
        crypto::harden_process()
    };
    if let Err(error) = hardened {
        eprintln!("sidekey: can't forbid core dumps, so no key will be read: {error}");
        return ExitCode::FAILURE;
    }
    cli::run(arguments)
}
