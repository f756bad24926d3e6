use std::{ffi::OsString, path::PathBuf, time::Duration};

use super::{bindings::Bindings, folder::FileAccess, signals::SignalName};
use crate::client::Socket;

/// What to run, with which secrets.
pub struct Plan {
    /// The sidecar's socket.
    pub socket: Socket,
    /// Secrets for environment variables and files.
    pub bindings: Bindings,
    /// A tmpfs for the files; None selects one.
    pub folder: Option<PathBuf>,
    /// Who may read the files.
    pub access: FileAccess,
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
