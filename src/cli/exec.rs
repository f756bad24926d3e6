//! `sidekey exec`.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, str::FromStr};

use clap::Args;

use super::{client::Connection, on_one_thread, output::Failure};
use crate::{
    exec::{
        self, Bindings, EnvBinding, ExecError, FileBinding, Launch, OnChange, Plan, StartError,
    },
    model::Span,
};

#[derive(Debug, Args)]
pub(super) struct Exec {
    #[command(flatten)]
    connection: Connection,
    /// A variable of the program's environment: a secret, one field of a secret that is a JSON object, or the path of a --file.
    #[arg(long, value_name = "NAME=secret:SECRET[#FIELD]|NAME=file:FILE")]
    env: Vec<EnvBinding>,
    /// A file in a folder in memory, which the program finds by the variable SIDEKEY_FILES.
    #[arg(long, value_name = "NAME=secret:SECRET[#FIELD]")]
    file: Vec<FileBinding>,
    /// Where that folder is made: a tmpfs. Else $XDG_RUNTIME_DIR, /dev/shm or /run, whichever is one.
    #[arg(long, value_name = "DIR", requires = "file")]
    dir: Option<PathBuf>,
    /// What is done when a value has changed; files are up to date before.
    #[arg(
        long,
        value_name = "restart|ignore|signal:NAME",
        default_value = "restart"
    )]
    on_change: Change,
    /// How long the program has to end, before it is killed, when it is restarted.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    grace: Span,
    /// How long the sidecar and the secrets are waited for at the start.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    wait: Span,
    /// How long nothing more must have changed before a change counts.
    #[arg(long, value_name = "TIME", default_value = "1s")]
    settle: Span,
    /// Let a change count later by a random part of this, so that not all replicas restart at once.
    #[arg(long, value_name = "TIME", default_value = "0s")]
    splay: Span,
    /// The program and its arguments.
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
            _ => return Err("write restart, ignore, or signal: and a name such as HUP".into()),
        };
        Ok(Self(change))
    }
}

/// What `sidekey exec` starts: the step in which the child becomes the program.
#[derive(Debug, Args)]
pub(super) struct Become {
    #[arg(long)]
    parent: u32,
    #[arg(long)]
    foreground: bool,
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

impl From<ExecError> for Failure {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Start(StartError::Spawn(_)) => Self::not_started(126, error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}

impl Exec {
    /// Gives the program's exit code.
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let bindings = Bindings::new(self.env, self.file)
            .map_err(|error| Failure::usage(error.to_string()))?;
        let (program, arguments) = split(self.command)?;
        let plan = Plan {
            socket: self.connection.socket(),
            bindings,
            folder: self.dir,
            on_change: self.on_change.0,
            grace: self.grace.0,
            wait: self.wait.0,
            settle: self.settle.0,
            splay: self.splay.0,
            program,
            arguments,
        };
        on_one_thread(async { Ok(exec::run(plan).await?) }).map(ExitCode::from)
    }
}

impl Become {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let (program, arguments) = split(self.command)?;
        let error = Launch {
            parent: self.parent,
            foreground: self.foreground,
            program,
            arguments,
        }
        .run();
        Err(Failure::not_started(error.exit(), error.to_string()))
    }
}

fn split(command: Vec<OsString>) -> Result<(OsString, Vec<OsString>), Failure> {
    let mut command = command.into_iter();
    let program = command
        .next()
        .ok_or_else(|| Failure::usage("there is no program to start"))?;
    Ok((program, command.collect()))
}
