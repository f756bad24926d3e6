//! What packages ship beside the binary, made from the command line's own definition: completions and manual pages.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, output::Failure, shown};

const NAME: &str = "sidekey";

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        // Into memory first: the generator panics where a write fails, and a reader that has enough closes the pipe.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), NAME, &mut script);
        Ok(io::stdout().lock().write_all(&script)?)
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The folder to write into, made if missing.
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::failed(format!("{}: {error}", shown(&self.dir)));
        fs::create_dir_all(&self.dir).map_err(failed)?;
        clap_mangen::generate_to(Arguments::command(), &self.dir).map_err(failed)
    }
}
