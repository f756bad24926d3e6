use std::{io, time::Duration};

use super::{folder::FolderError, program::StartError, values::FetchError};

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
