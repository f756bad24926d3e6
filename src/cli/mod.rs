//! The command line: arguments in, text and exit codes out.

mod audit;
mod backup;
mod client;
#[cfg(feature = "local")]
mod dev;
mod exec;
mod in_place;
mod keks;
mod keyring;
mod lines;
mod output;
mod pages;
mod scan;
mod sidecar;
mod transfer;
mod watch;

use std::{path::Path, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::output::{Failure, Format, printable};

/// Holds the keys next to your applications, so that keys rotate and production does not notice.
#[derive(Debug, Parser)]
#[command(name = "sidekey", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The form of what is printed.
    #[arg(long, global = true, value_enum, default_value = "text")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a sidecar to try out, with a KEK and a keyring of its own.
    #[cfg(feature = "local")]
    Dev(dev::Dev),
    /// Start a sidecar.
    Serve(sidecar::Config),
    /// Check a config file and report everything that is wrong with it.
    Check(sidecar::Check),
    /// Make, change and inspect keyrings.
    #[command(subcommand)]
    Keyring(Box<keyring::Command>),
    /// Encrypt a file or standard input.
    Encrypt(client::Transform),
    /// Decrypt a file or standard input.
    Decrypt(client::Transform),
    /// Encrypt a ciphertext anew under the primary, or those of files in place.
    Rewrap(in_place::Rewrap),
    /// Find ciphertexts in files and count them by keyring and version.
    Scan(scan::Scan),
    /// Verify audit logs.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show the keyrings that you may use.
    Status(client::Connection),
    /// Tell of changes of keyrings and secrets as they happen.
    Watch(watch::Watch),
    /// Run a program with secrets in its environment or in files, and restart or signal it when they change.
    Exec(Box<exec::Exec>),
    /// Become a program.
    #[command(hide = true)]
    Launch(exec::Become),
    /// Print a shell's completion script.
    #[command(hide = true)]
    Completions(pages::Completions),
    /// Write the manual pages.
    #[command(hide = true)]
    Man(pages::Man),
}

impl Arguments {
    /// Whether the process's limits become those of somebody else's program.
    pub fn starts_a_program(&self) -> bool {
        matches!(self.command, Command::Exec(_) | Command::Launch(_))
    }
}

/// Does what the arguments say. Exit codes: 0 done, 1 failed, 2 usage, 3 refused by an invariant; those of `exec`
/// are its program's.
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
        Command::Serve(arguments) => arguments.serve(),
        Command::Check(arguments) => arguments.run(output),
        Command::Keyring(command) => on_one_thread(command.run(output)),
        Command::Encrypt(arguments) => on_one_thread(unless_signalled(arguments.encrypt(output))),
        Command::Decrypt(arguments) => on_one_thread(unless_signalled(arguments.decrypt(output))),
        Command::Rewrap(arguments) => on_one_thread(unless_signalled(arguments.run(output))),
        Command::Scan(arguments) => arguments.run(output),
        Command::Audit(command) => command.run(output),
        Command::Status(arguments) => on_one_thread(arguments.status(output)),
        Command::Watch(arguments) => on_one_thread(arguments.run(output)),
        Command::Completions(arguments) => arguments.run(),
        Command::Man(arguments) => arguments.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(output),
    }
}

fn on_one_thread<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("can't start: {error}")))?;
    let result = runtime.block_on(work);
    // Not waiting for file work that nobody waits for any more: its disk may hang.
    runtime.shutdown_background();
    result
}

/// Drops the work at the first signal, so that it takes back what it has written so far.
async fn unless_signalled(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(Failure::interrupted(SignalKind::interrupt())),
        _ = terminate.recv() => Err(Failure::interrupted(SignalKind::terminate())),
    }
}

/// The file at `path`, for people.
fn shown(path: &Path) -> String {
    printable(&exact(path))
}

/// The file at `path`, for programs.
fn exact(path: &Path) -> String {
    path.display().to_string()
}
