//! The command line: parses arguments, prints results and sets exit codes.

mod audit;
mod client;
mod decrypt_args;
#[cfg(feature = "local")]
mod dev;
mod exec;
mod fleet;
#[cfg(feature = "hub")]
pub mod hub;
mod in_place;
mod keyring;
mod lines;
mod output;
mod pages;
mod record;
mod rollout;
mod runtime;
mod scan;
mod sidecar;
mod signer;
mod target;
mod transfer;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::{
    output::Format,
    runtime::{block_on, unless_signalled},
};

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  failure
  2  invalid arguments
  3  refused by a safety check, or a check failed";

/// A sidecar that encrypts, decrypts and serves secrets for applications.
#[derive(Debug, Parser)]
#[command(
    name = "sidekey",
    version,
    arg_required_else_help = true,
    after_help = EXIT_CODES
)]
pub struct Arguments {
    /// Output format.
    #[arg(long, global = true, value_enum, default_value = "text")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a sidecar to try out, with its own KEK, keyring and secret.
    #[cfg(feature = "local")]
    Dev(dev::Dev),
    /// Start a sidecar.
    Serve(sidecar::Serve),
    /// Check a config file and report every problem in it.
    Check(sidecar::Check),
    /// Create, change and inspect keyrings.
    #[command(subcommand)]
    Keyring(Box<keyring::Command>),
    /// List the sidecars of a fleet, and the key versions that they hold.
    #[command(subcommand)]
    Fleet(fleet::Command),
    /// Rotate a keyring over a fleet, wave by wave, and watch it.
    #[command(subcommand)]
    Rollout(rollout::Command),
    /// Run the rollouts that people order through a hub, with the rights to keys that they lack.
    Signer(signer::Signer),
    /// Encrypt a file or standard input.
    Encrypt(client::Transform),
    /// Decrypt a file or standard input.
    Decrypt(client::Transform),
    /// Encrypt a ciphertext again under the primary, or all ciphertexts in files in place.
    Rewrap(in_place::Rewrap),
    /// Find ciphertexts in files and count them by keyring and version.
    Scan(scan::Scan),
    /// Verify audit logs.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show the keyrings that you may use.
    Status(client::Connection),
    /// Print changes of keyrings and secrets as they happen.
    Watch(watch::Watch),
    /// Run a program with secrets as environment variables or files, and restart or signal it on
    /// changes.
    Exec(Box<exec::Exec>),
    /// Replace this process with a program; used by `exec`.
    #[command(hide = true)]
    Launch(exec::Become),
    /// Print a shell completion script.
    #[command(hide = true)]
    Completions(pages::Completions),
    /// Write the manual pages.
    #[command(hide = true)]
    Man(pages::Man),
}

impl Arguments {
    /// Whether this process runs another program, which inherits its resource limits.
    pub fn starts_a_program(&self) -> bool {
        matches!(self.command, Command::Exec(_) | Command::Launch(_))
    }
}

/// Runs the command and returns its exit code.
///
/// 0 is success, 1 failure, 2 a usage error and 3 a refusal by a safety check; `exec` returns the
/// exit code of its program.
pub fn run(arguments: Arguments) -> ExitCode {
    let Arguments { output, command } = arguments;
    let result = match command {
        Command::Exec(arguments) => {
            return arguments
                .run()
                .unwrap_or_else(|failure| failure.report(output));
        }
        Command::Launch(arguments) => {
            return arguments
                .run()
                .unwrap_or_else(|failure| failure.report(output));
        }
        #[cfg(feature = "local")]
        Command::Dev(arguments) => arguments.run(),
        Command::Serve(arguments) => arguments.run(),
        Command::Check(arguments) => arguments.run(output),
        Command::Keyring(command) => block_on(command.run(output)),
        Command::Fleet(command) => block_on(command.run(output)),
        Command::Rollout(command) => block_on(command.run(output)),
        Command::Signer(arguments) => arguments.run(output),
        Command::Encrypt(arguments) => block_on(unless_signalled(arguments.encrypt(output))),
        Command::Decrypt(arguments) => block_on(unless_signalled(arguments.decrypt(output))),
        Command::Rewrap(arguments) => block_on(unless_signalled(arguments.run(output))),
        Command::Scan(arguments) => arguments.run(output),
        Command::Audit(command) => command.run(output),
        Command::Status(arguments) => block_on(arguments.status(output)),
        Command::Watch(arguments) => block_on(arguments.run(output)),
        Command::Completions(arguments) => arguments.run(Arguments::command()),
        Command::Man(arguments) => arguments.run(Arguments::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(output),
    }
}
