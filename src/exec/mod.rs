//! Runs a program with secrets in its environment or in files, and restarts or signals it when they change. docs/exec.md says what the
//! program gets and what it hears.
//!
//! Values of secrets pass through here: they are zeroized when they are replaced. What was handed to the program is its own.

mod bindings;
mod folder;
mod follow;
mod given;
mod launch;
mod program;
mod signals;
mod supervisor;
mod terminal;
mod values;

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
    /// The sidecar.
    pub socket: Socket,
    /// Which secret goes where.
    pub bindings: Bindings,
    /// Where the folder of the files is made; none looks for a place.
    pub folder: Option<PathBuf>,
    /// What a change does.
    pub on_change: OnChange,
    /// How long a program has to end before it is killed.
    pub grace: Duration,
    /// How long the sidecar and the secrets are waited for at the start, and a system that refuses a process at a restart.
    pub wait: Duration,
    /// How long nothing more must have changed before a change counts, so that several are one.
    pub settle: Duration,
    /// A change counts later by a random part of this, so that not all replicas restart at once.
    pub splay: Duration,
    /// The program, looked up in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// What a changed secret does. Files are up to date in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// The program is ended and started anew.
    Restart,
    /// It isn't told.
    Ignore,
    /// It gets a signal.
    Signal(SignalName),
}

/// Why nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The secrets are not to be had.
    #[error("{0}")]
    Fetch(FetchError),
    /// The same, after waiting for them.
    #[error("waited {}: {}", humantime::format_duration(*.waited), .error.as_ref().map_or("the sidecar is silent".into(), ToString::to_string))]
    Waited {
        /// How long.
        waited: Duration,
        /// What was wrong the last time; none if nothing was answered.
        error: Option<FetchError>,
    },
    /// The files have no place.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The program can't be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The system refuses what an init needs.
    #[error("can't look after a program: {0}")]
    System(#[from] io::Error),
}

/// Tells people what happens. Standard error may be gone, which is no reason for the program to end.
fn say(what: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "sidekey: {what}");
}
