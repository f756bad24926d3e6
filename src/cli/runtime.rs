//! Running one command's future on a runtime of its own.

use tokio::signal::unix::{SignalKind, signal};

use super::output::CliError;

/// Runs `work` to completion on a single-threaded runtime.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("can't start the runtime: {error}")))?;
    let result = runtime.block_on(work);
    // Abandoned file operations aren't awaited: their disk may hang.
    runtime.shutdown_background();
    result
}

/// Drops `work` on SIGINT or SIGTERM, so that partial output is removed.
pub(super) async fn unless_signalled(
    work: impl Future<Output = Result<(), CliError>>,
) -> Result<(), CliError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(CliError::interrupted(SignalKind::interrupt())),
        _ = terminate.recv() => Err(CliError::interrupted(SignalKind::terminate())),
    }
}
