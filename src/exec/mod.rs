//! Runs a program with secrets in its environment or in files, and restarts or signals it when they
//! change (docs/exec.md).
//!
//! Secret values pass through here and are zeroized when replaced; what the program received is
//! beyond control.

mod bindings;
mod folder;
mod launch;
mod program;
mod signals;
mod staging;
mod supervisor;
mod terminal;
mod values;
mod watcher;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

pub use self::{
    bindings::{BindingError, Bindings, EnvBinding, FileBinding},
    folder::FolderError,
    launch::{Launch, LaunchError},
    program::StartError,
    signals::{SignalName, UnknownSignal},
    supervisor::run,
    values::FetchError,
};
use crate::client::Socket;

/// What to run, with which secrets.
pub struct Plan {
    /// The sidecar's socket.
    pub socket: Socket,
    /// Secrets for environment variables and files.
    pub bindings: Bindings,
    /// A tmpfs for the files; None selects one.
    pub folder: Option<PathBuf>,
    /// What to do after a change.
    pub on_change: OnChange,
    /// Time for the program to exit on a restart before it is killed.
    pub grace: Duration,
    /// Time to wait for the sidecar and the secrets at startup, and for resources on a restart.
    pub wait: Duration,
    /// Time without further changes before acting on a change.
    pub settle: Duration,
    /// Maximum random delay before acting on a change, to spread restarts of replicas.
    pub splay: Duration,
    /// The program, looked up in `PATH`.
    pub program: OsString,
    /// Arguments of the program.
    pub arguments: Vec<OsString>,
}

/// What to do after a change. Files are updated in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// Restart the program.
    Restart,
    /// Do nothing.
    Ignore,
    /// Send a signal to the program.
    Signal(SignalName),
}

/// An error that ends `sidekey exec`.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// A secret can't be read.
    #[error("{0}")]
    Fetch(FetchError),
    /// The secrets could not be read in time.
    #[error(
        "gave up after {}: {}",
        humantime::format_duration(*.waited),
        .error.as_ref().map_or("no response from the sidecar".into(), ToString::to_string)
    )]
    TimedOut {
        /// The configured time to wait.
        waited: Duration,
        /// The most recent error; None if there was no response.
        error: Option<FetchError>,
    },
    /// The directory for files can't be created or written.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The program can't be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The system refuses what supervision requires.
    #[error("can't supervise the process: {0}")]
    System(#[from] io::Error),
}

/// Writes a line to standard error. If that is closed, the program keeps running regardless.
fn log(message: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "sidekey: {message}");
}
