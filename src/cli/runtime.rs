//! Running one command's future on a runtime of its own.

use std::{io, process, thread, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::sleep,
};

use super::output::CliError;

/// How long a command may take to end after a signal. It may be stuck in a write without a reader.
const GRACE: Duration = Duration::from_secs(5);

/// Runs `work` to completion on a single-threaded runtime.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime =
        runtime().map_err(|error| CliError::failed(format!("can't start the runtime: {error}")))?;
    let result = runtime.block_on(work);
    // Abandoned file operations aren't awaited: their disk may hang.
    runtime.shutdown_background();
    result
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Drops `work` on SIGINT or SIGTERM, so that partial output is removed.
pub(super) async fn unless_signalled(
    work: impl Future<Output = Result<(), CliError>>,
) -> Result<(), CliError> {
    let signalled = signalled()?;
    tokio::select! {
        result = work => result,
        Ok(signal) = signalled => Err(CliError::interrupted(signal)),
    }
}

/// Resolves on SIGINT or SIGTERM. If the process doesn't end then, it is ended.
fn signalled() -> io::Result<oneshot::Receiver<SignalKind>> {
    let (sender, receiver) = oneshot::channel();
    let runtime = runtime()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    // On a thread of its own, because `work` may block its own one.
    thread::Builder::new().spawn(move || {
        runtime.block_on(async {
            let signal = tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
            };
            // The work may have ended.
            let _ = sender.send(signal);
            sleep(GRACE).await;
            process::exit(128 + signal.as_raw_value());
        });
    })?;
    Ok(receiver)
}
