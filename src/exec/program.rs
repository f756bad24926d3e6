//! The program's process.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
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
    bindings::{Bindings, EnvBinding, EnvSource, FILES},
    plan::Plan,
    values::Values,
};
use crate::model::SecretName;

/// This binary, even if its file was replaced.
const OWN_BINARY: &str = "/proc/self/exe";
/// The kernel's limit for one variable with its name (execve(2)), in bytes.
const MAX_VARIABLE: usize = 128 << 10;

/// The program can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value that a variable can't hold.
    #[error(
        "secret {secret} contains a NUL byte, which the variable {name} can't hold; use --file"
    )]
    Nul {
        /// The secret.
        secret: SecretName,
        /// The variable.
        name: String,
    },
    /// A value that exceeds the kernel's limit for one variable.
    #[error("secret {secret} is too long for the variable {name}; use --file")]
    TooLong {
        /// The secret.
        secret: SecretName,
        /// The variable.
        name: String,
    },
    /// A field that has no variable of its own.
    #[error("field {field:?} of secret {secret} can't be the variable {name:?}: {reason}")]
    Field {
        /// The secret.
        secret: SecretName,
        /// The field.
        field: String,
        /// The variable.
        name: String,
        /// What is wrong, and what to do.
        reason: &'static str,
    },
    /// Variables and arguments that exceed the kernel's limit together.
    #[error(
        "environment and arguments take {bytes} bytes, which exceeds the limit of {limit} \
         (a quarter of the stack limit); use --file for secrets"
    )]
    TooMuch {
        /// Required bytes.
        bytes: u64,
        /// Allowed bytes.
        limit: u64,
    },
    /// The process can't be created.
    #[error("can't start a process from {OWN_BINARY}: {0}")]
    Spawn(io::Error),
}

/// The bounds of the kernel's limit for all variables and arguments (execve(2)), in bytes.
const MIN_SPACE: u64 = 128 << 10;
const MAX_SPACE: u64 = 6 << 20;
/// Bytes reserved for a script's interpreter line and the kernel's own entries.
const RESERVED_SPACE: u64 = 4 << 10;

/// A process that runs, or that exited and was not reaped.
pub(super) struct Program {
    pid: Pid,
}

/// Variables by name.
type Environment<'b> = BTreeMap<Cow<'b, OsStr>, Cow<'b, OsStr>>;

/// Returns the variables that are added to the inherited environment.
///
/// # Errors
/// A variable can't hold its value, or all together exceed the kernel's limit.
pub(super) fn environment<'b>(
    plan: &'b Plan,
    values: &'b Values,
    folder: Option<&Path>,
) -> Result<Environment<'b>, StartError> {
    let environment = variables(&plan.bindings, values, folder)?;
    require_space(plan, &environment)?;
    Ok(environment)
}

fn variables<'b>(
    bindings: &'b Bindings,
    values: &'b Values,
    folder: Option<&Path>,
) -> Result<Environment<'b>, StartError> {
    let mut variables = of_fields(bindings, values)?;
    if let Some(folder) = folder {
        let path = folder.as_os_str().to_owned();
        variables.insert(OsStr::new(FILES).into(), path.into());
    }
    for EnvBinding { name, source } in &bindings.env {
        let value = match source {
            EnvSource::Secret(secret) => held(&secret.name, name, values.get(secret))?.into(),
            EnvSource::File(file) => folder
                .unwrap_or(Path::new(""))
                .join(file)
                .into_os_string()
                .into(),
        };
        variables.insert(OsStr::new(name).into(), value);
    }
    Ok(variables)
}

/// The variables of fields, except those that are bound by name.
fn of_fields<'b>(
    bindings: &'b Bindings,
    values: &'b Values,
) -> Result<Environment<'b>, StartError> {
    let mut variables = Environment::new();
    for binding in &bindings.fields {
        let secret = &binding.secret.name;
        for (field, value) in values.fields(&binding.secret) {
            let name = binding.variable(field);
            if bindings.env.iter().any(|bound| bound.name == name) {
                continue;
            }
            let reason = match name.as_str() {
                "" => Some("it has no name; give the variables a prefix"),
                FILES => Some("it is reserved for the directory of the files"),
                _ if variables.contains_key(OsStr::new(&name)) => {
                    Some("another field has it; give one a prefix, or use --env")
                }
                _ => None,
            };
            if let Some(reason) = reason {
                return Err(StartError::Field {
                    secret: secret.clone(),
                    field: field.into(),
                    name,
                    reason,
                });
            }
            let value = held(secret, &name, value)?;
            variables.insert(OsString::from(name).into(), value.into());
        }
    }
    Ok(variables)
}

/// The value as a variable can hold it.
fn held<'v>(secret: &SecretName, name: &str, value: &'v [u8]) -> Result<&'v OsStr, StartError> {
    let (secret, variable) = (secret.clone(), name.to_owned());
    if value.contains(&0) {
        return Err(StartError::Nul {
            secret,
            name: variable,
        });
    }
    if name.len() + value.len() + "=\0".len() > MAX_VARIABLE {
        return Err(StartError::TooLong {
            secret,
            name: variable,
        });
    }
    Ok(OsStr::from_bytes(value))
}

fn require_space(plan: &Plan, environment: &Environment<'_>) -> Result<(), StartError> {
    let inherited = env::vars_os().filter(|(name, _)| !environment.contains_key(name.as_os_str()));
    let inherited = inherited.map(|(name, value)| space(name.len() + "=".len() + value.len()));
    let added = environment
        .iter()
        .map(|(name, value)| space(name.len() + "=".len() + value.len()));
    // The program counts twice: as the path to execute and as the first argument.
    let run = [&plan.program, &plan.program]
        .into_iter()
        .chain(&plan.arguments)
        .map(|argument| space(argument.len()));
    let bytes = inherited.chain(added).chain(run).sum();
    let stack = getrlimit(Resource::Stack).current.unwrap_or(u64::MAX);
    let limit = (stack / 4).clamp(MIN_SPACE, MAX_SPACE) - RESERVED_SPACE;
    if bytes > limit {
        return Err(StartError::TooMuch { bytes, limit });
    }
    Ok(())
}

/// The bytes that a string takes: its content, a NUL and a pointer.
fn space(length: usize) -> u64 {
    (length + 1 + size_of::<usize>()) as u64
}

/// A change of the process's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessStatus {
    /// Exited with a code, or 128 + N if signal N killed it.
    Exited { code: u8 },
    /// Stopped by this signal.
    Stopped(i32),
}

impl Program {
    /// Starts the program as the leader of a new process group.
    pub(super) fn start(
        plan: &Plan,
        values: &Values,
        folder: Option<&Path>,
        foreground: bool,
    ) -> Result<Self, StartError> {
        let mut command = Command::new(OWN_BINARY);
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

    /// The ID of the process and of the group that it leads.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Signals the process alone. Does nothing if it exited.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }

    /// Signals the process group.
    pub(super) fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Whether the process exited. It isn't reaped, so that its ID isn't reused.
    pub(super) fn has_exited(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid), options), Ok(Some(_)))
    }

    /// Reaps all exited processes, including orphans. Returns the program's status if it changed.
    pub(super) fn reap(&self) -> Option<ProcessStatus> {
        let mut result = None;
        loop {
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((pid, status))) if pid == self.pid => {
                    let code = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
                    result = match (
                        status.exit_status(),
                        status.terminating_signal(),
                        status.stopping_signal(),
                    ) {
                        (Some(exit), ..) => Some(ProcessStatus::Exited { code: code(exit) }),
                        (_, Some(signal), _) => Some(ProcessStatus::Exited {
                            code: code(128 + signal),
                        }),
                        (.., Some(signal)) => Some(ProcessStatus::Stopped(signal)),
                        _ => result,
                    };
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return result,
            }
        }
    }
}
