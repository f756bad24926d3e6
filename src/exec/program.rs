//! The program as a process.

use std::{
    borrow::Cow,
    env,
    ffi::OsStr,
    io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::Path,
    process::Command,
};

use rustix::{
    io::Errno,
    process::{
        Pid, Resource, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, getrlimit, kill_process,
        kill_process_group, wait, waitid,
    },
};

use super::{
    Plan,
    bindings::{EnvBinding, EnvSource, FILES},
    values::Values,
};
use crate::model::SecretName;

/// Itself, in whatever version it runs.
const OURSELVES: &str = "/proc/self/exe";
/// The kernel's limit for one variable with its name (execve(2)), in bytes.
const LONGEST_VARIABLE: usize = 128 << 10;

/// Why a program can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A variable can't hold everything.
    #[error(
        "secret {secret} contains a NUL byte, which the variable {name} can't hold; give it as a --file"
    )]
    Nul {
        /// The secret.
        secret: SecretName,
        /// The variable.
        name: String,
    },
    /// Nor of any length.
    #[error("secret {secret} is too long for the variable {name}; give it as a --file")]
    TooLong {
        /// The secret.
        secret: SecretName,
        /// The variable.
        name: String,
    },
    /// Everything together.
    #[error(
        "variables and arguments take {bytes} bytes of the {limit} that a process may be started with (a quarter of the limit of its \
         stack); give secrets as a --file"
    )]
    TooMuch {
        /// What they take.
        bytes: u64,
        /// What there is.
        limit: u64,
    },
    /// The system refuses a process.
    #[error("can't start a process by {OURSELVES}: {0}")]
    Spawn(io::Error),
}

/// The kernel's limits for all variables and arguments (execve(2)), in bytes.
const LEAST_ROOM: u64 = 128 << 10;
const MOST_ROOM: u64 = 6 << 20;
/// What is left for the rest: what a script's first line adds to the arguments, and what the kernel puts beside them.
const SPARE_ROOM: u64 = 4 << 10;

/// A program that runs, or has ended and was not reaped.
pub(super) struct Program {
    pid: Pid,
}

/// What the program's environment has besides ours.
///
/// # Errors
/// A variable can't hold its value.
pub(super) fn environment<'b>(
    plan: &'b Plan,
    values: &'b Values,
    folder: Option<&Path>,
) -> Result<Vec<(&'b OsStr, Cow<'b, OsStr>)>, StartError> {
    let bindings = &plan.bindings;
    let mut environment = Vec::with_capacity(bindings.env.len() + 1);
    if let Some(folder) = folder {
        environment.push((OsStr::new(FILES), folder.as_os_str().to_owned().into()));
    }
    for EnvBinding { name, source } in &bindings.env {
        let value: Cow<'_, OsStr> = match source {
            EnvSource::Secret(piece) => {
                let value: &[u8] = values.of(piece);
                let (secret, variable) = (|| piece.secret.clone(), || name.clone());
                if value.contains(&0) {
                    return Err(StartError::Nul {
                        secret: secret(),
                        name: variable(),
                    });
                }
                if name.len() + value.len() + "=\0".len() > LONGEST_VARIABLE {
                    return Err(StartError::TooLong {
                        secret: secret(),
                        name: variable(),
                    });
                }
                OsStr::from_bytes(value).into()
            }
            EnvSource::File(file) => folder
                .unwrap_or(Path::new(""))
                .join(file)
                .into_os_string()
                .into(),
        };
        environment.push((OsStr::new(name), value));
    }
    let inherited =
        env::vars_os().filter(|(name, _)| environment.iter().all(|(ours, _)| name != ours));
    let inherited = inherited.map(|(name, value)| room(name.len() + "=".len() + value.len()));
    let added = environment
        .iter()
        .map(|(name, value)| room(name.len() + "=".len() + value.len()));
    // The program is there twice: as what is run, and as an argument.
    let run = [&plan.program, &plan.program]
        .into_iter()
        .chain(&plan.arguments)
        .map(|argument| room(argument.len()));
    let bytes = inherited.chain(added).chain(run).sum();
    let stack = getrlimit(Resource::Stack).current.unwrap_or(u64::MAX);
    let limit = (stack / 4).clamp(LEAST_ROOM, MOST_ROOM) - SPARE_ROOM;
    if bytes > limit {
        return Err(StartError::TooMuch { bytes, limit });
    }
    Ok(environment)
}

/// What a text of this length takes: itself, a NUL and a pointer.
fn room(length: usize) -> u64 {
    (length + 1 + size_of::<usize>()) as u64
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Ended { exit: u8 },
    Stopped(i32),
}

impl Program {
    /// Starts it, at the head of a process group of its own.
    pub(super) fn start(
        plan: &Plan,
        values: &Values,
        folder: Option<&Path>,
        foreground: bool,
    ) -> Result<Self, StartError> {
        let mut command = Command::new(OURSELVES);
        command
            .arg0("sidekey")
            .args(["launch", "--parent", &getpid().as_raw_pid().to_string()]);
        if foreground {
            command.arg("--foreground");
        }
        command
            .arg("--")
            .arg(&plan.program)
            .args(&plan.arguments)
            .process_group(0);
        command.envs(environment(plan, values, folder)?);
        let child = command.spawn().map_err(StartError::Spawn)?;
        // Linux numbers processes from 1.
        let pid = Pid::from_raw(child.id().cast_signed())
            .ok_or_else(|| StartError::Spawn(Errno::SRCH.into()))?;
        Ok(Self { pid })
    }

    /// Its process, and the group that it leads.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Signals it alone. That it has ended already is no error.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }

    /// Signals it and those of its children that stayed in its group.
    pub(super) fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Whether it has ended. It stays unreaped, so that its number is nobody else's.
    pub(super) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid), options), Ok(Some(_)))
    }

    /// Reaps whatever ended, orphans included; tells what became of the program, if anything did.
    pub(super) fn reap(&self) -> Option<Fate> {
        let mut fate = None;
        loop {
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((pid, status))) if pid == self.pid => {
                    let code = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
                    fate = match (
                        status.exit_status(),
                        status.terminating_signal(),
                        status.stopping_signal(),
                    ) {
                        (Some(exit), ..) => Some(Fate::Ended { exit: code(exit) }),
                        (_, Some(signal), _) => Some(Fate::Ended {
                            exit: code(128 + signal),
                        }),
                        (.., Some(signal)) => Some(Fate::Stopped(signal)),
                        _ => fate,
                    };
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return fate,
            }
        }
    }
}
