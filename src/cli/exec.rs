//! `sidekey exec`.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, str::FromStr};

use clap::Args;

use super::{client::Connection, output::CliError, runtime::block_on};
use crate::{
    exec::{
        self, Bindings, EnvBinding, ExecError, FieldsBinding, FileAccess, FileBinding, FolderError,
        Launch, OnChange, Plan, StartError,
    },
    model::Span,
};

const EXIT_CODES: &str = "\
Exit codes:
  1    the secrets or the sidecar are not available
  2    invalid arguments
  126  PROGRAM can't be executed
  127  PROGRAM was not found
  else the exit code of PROGRAM, or 128 plus the number of the signal that killed it";

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Exec {
    #[command(flatten)]
    connection: Connection,
    /// Set an environment variable to a secret, to a field of a JSON secret, or to a --file's path.
    #[arg(
        long,
        value_name = "NAME=secret:SECRET[?OPTIONS][#FIELD]|NAME=file:FILE"
    )]
    env: Vec<EnvBinding>,
    /// Set a variable for every field of a JSON secret: PREFIX and the field's name in capitals.
    #[arg(long, value_name = "[PREFIX=]secret:SECRET")]
    env_from: Vec<FieldsBinding>,
    /// Write a secret to a file in an in-memory directory, whose path is in SIDEKEY_FILES.
    #[arg(long, value_name = "NAME=secret:SECRET[?OPTIONS][#FIELD]")]
    file: Vec<FileBinding>,
    /// Create the in-memory directory in this tmpfs.
    ///
    /// By default, the first tmpfs among $XDG_RUNTIME_DIR, /dev/shm and /run is used.
    #[arg(long, value_name = "DIR", requires = "file")]
    dir: Option<PathBuf>,
    /// Permission bits of the files.
    #[arg(long, value_name = "MODE", default_value = "0400", value_parser = mode)]
    file_mode: u32,
    /// Owner of the files, by name or id, for a program that changes its user.
    #[arg(long, value_name = "USER", value_parser = user, requires = "file")]
    file_owner: Option<u32>,
    /// Group of the files, by name or id.
    #[arg(long, value_name = "GROUP", value_parser = group, requires = "file")]
    file_group: Option<u32>,
    /// Action after a value changed; files are updated first.
    #[arg(
        long,
        value_name = "restart|ignore|signal:NAME",
        default_value = "restart"
    )]
    on_change: Change,
    /// Time for the program to exit on a restart before it is killed.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    grace: Span,
    /// Time to wait at startup for the sidecar and the secrets.
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    wait: Span,
    /// Time without further changes before acting on a change.
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    settle: Span,
    /// Maximum random delay before acting on a change, to spread restarts of replicas.
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    splay: Span,
    /// Program to run, and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy)]
struct Change(OnChange);

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let change = match text.split_once(':') {
            None if text == "restart" => OnChange::Restart,
            None if text == "ignore" => OnChange::Ignore,
            Some(("signal", name)) => {
                OnChange::Signal(name.parse().map_err(|error| format!("{error}"))?)
            }
            _ => {
                return Err(
                    "expected `restart`, `ignore` or `signal:NAME`, such as `signal:HUP`".into(),
                );
            }
        };
        Ok(Self(change))
    }
}

/// The child process of `sidekey exec`, which replaces itself with the program.
#[derive(Debug, Args)]
pub(super) struct Become {
    #[arg(long)]
    parent: u32,
    #[arg(long)]
    foreground: bool,
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

impl From<ExecError> for CliError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Start(StartError::Spawn(_)) => Self::not_started(126, error.to_string()),
            ExecError::Folder(FolderError::Unsuitable { .. }) => {
                Self::usage(format!("--dir {error}"))
            }
            _ => Self::failed(error.to_string()),
        }
    }
}

impl Exec {
    /// Returns the program's exit code.
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let bindings = Bindings::new(self.env, self.env_from, self.file)
            .map_err(|error| CliError::usage(error.to_string()))?;
        let (program, arguments) = split(self.command)?;
        let plan = Plan {
            socket: self.connection.socket(),
            bindings,
            folder: self.dir,
            access: FileAccess {
                mode: self.file_mode,
                owner: self.file_owner,
                group: self.file_group,
            },
            on_change: self.on_change.0,
            grace: self.grace.0,
            wait: self.wait.0,
            settle: self.settle.0,
            splay: self.splay.0,
            program,
            arguments,
        };
        block_on(async { Ok(exec::run(plan).await?) }).map(ExitCode::from)
    }
}

impl Become {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let (program, arguments) = split(self.command)?;
        let error = Launch {
            parent: self.parent,
            foreground: self.foreground,
            program,
            arguments,
        }
        .run();
        Err(CliError::not_started(error.exit_code(), error.to_string()))
    }
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && mode & 0o444 != 0 => Ok(mode),
        _ => Err("expected permission bits that let someone read, such as 0440".into()),
    }
}

fn user(text: &str) -> Result<u32, String> {
    let known = || uzers::get_user_by_name(text).map(|user| user.uid());
    let id = text.parse().ok().or_else(known);
    id.ok_or_else(|| "no such user".into())
}

fn group(text: &str) -> Result<u32, String> {
    let known = || uzers::get_group_by_name(text).map(|group| group.gid());
    let id = text.parse().ok().or_else(known);
    id.ok_or_else(|| "no such group".into())
}

fn split(command: Vec<OsString>) -> Result<(OsString, Vec<OsString>), CliError> {
    let mut command = command.into_iter();
    let program = command
        .next()
        .ok_or_else(|| CliError::usage("no program given"))?;
    Ok((program, command.collect()))
}
