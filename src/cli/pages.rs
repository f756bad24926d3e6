//! Files that packages ship with the binary, generated from the command definition.

use std::{fs, io, path::PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::output::{CliError, path_for_display, write_out};

const NAME: &str = "sidekey";

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell to generate the script for.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, mut command: Command) -> Result<(), CliError> {
        // In memory, because the generator panics on a closed pipe.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, NAME, &mut script);
        write_out(&String::from_utf8_lossy(&script))
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Directory to write to; created if missing.
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self, command: Command) -> Result<(), CliError> {
        let failed = |error: io::Error| {
            CliError::failed(format!("{}: {error}", path_for_display(&self.dir)))
        };
        fs::create_dir_all(&self.dir).map_err(failed)?;
        clap_mangen::generate_to(command, &self.dir).map_err(failed)
    }
}
