//! `sidekey-hub`: the arguments of the second binary.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use tokio::runtime::Builder;

use super::{
    output::{CliError, Format, path_for_display, print},
    sidecar::invalid,
};
use crate::{
    clock::Clock,
    config::{self, HubSettings},
    files::allow_connections,
    hub::{self, HubError},
    lifecycle::{Signal, Signals, notify_ready, notify_stopping, reap_orphans},
    telemetry,
};

const PROGRAM: &str = "sidekey-hub";

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  failure
  2  invalid arguments";

/// Watches a fleet of sidecars: they report what they use, and operators reach them through it.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
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
    /// Start a hub.
    Serve(File),
    /// Check a config file and report every problem in it.
    Check(File),
}

#[derive(Debug, Args)]
struct File {
    /// Config file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the command and returns its exit code: 0 is success, 1 failure, 2 a usage error.
pub fn run(arguments: Arguments) -> ExitCode {
    let Arguments { output, command } = arguments;
    let result = match command {
        Command::Serve(file) => serve(&file),
        Command::Check(file) => check(&file, output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report_as(PROGRAM, output),
    }
}

fn check(arguments: &File, format: Format) -> Result<(), CliError> {
    let file = path_for_display(&arguments.config);
    let settings = match config::load_hub(&arguments.config) {
        Ok(settings) => settings,
        Err(error) => return Err(invalid(&file, error, format)),
    };
    let (identities, operators) = (settings.identities.len(), settings.operators.len());
    let workloads = settings.workloads.len();
    print(
        format,
        &json!({
            "file": file,
            "valid": true,
            "sidecar_identities": identities,
            "operators": operators,
            "workloads": workloads,
        }),
        || {
            format!(
                "{file}: valid, {identities} sidecar identities, {operators} operators, \
                 {workloads} workloads\n"
            )
        },
    )
}

fn serve(arguments: &File) -> Result<(), CliError> {
    let settings = config::load_hub(&arguments.config)?;
    telemetry::init_logging(&settings.log).map_err(CliError::failed)?;
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_name("sidekey-hub")
        .build()
        .map_err(|error| CliError::failed(format!("can't start the runtime: {error}")))?;
    let result = runtime.block_on(run_until_stopped(&settings));
    // Abandoned file operations aren't awaited: their disk may hang.
    runtime.shutdown_background();
    result
}

async fn run_until_stopped(settings: &HubSettings) -> Result<(), CliError> {
    // First, so that an early signal doesn't kill the process.
    let mut signals = Signals::listen()
        .and_then(|signals| reap_orphans().map(|()| signals))
        .map_err(|error| CliError::failed(format!("can't install signal handlers: {error}")))?;
    allow_connections(settings.limits.connections as u64);
    let hub = hub::start(settings, Clock::system()).await?;
    notify_ready();
    while signals.next().await != Signal::Stop {
        hub.reload();
    }
    tracing::info!(drain_timeout = ?settings.drain, "stopping");
    notify_stopping();
    let second = async { while signals.next().await != Signal::Stop {} };
    hub.stop(second).await;
    Ok(())
}

impl From<HubError> for CliError {
    fn from(error: HubError) -> Self {
        Self::failed(error)
    }
}
