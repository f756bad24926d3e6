//! The last step between us and the program: this binary once more, in the child, which prepares what only the child can and then becomes
//! the program. The crate has no unsafe code, so nothing of ours runs between fork and exec.

use std::{ffi::OsString, io, os::unix::process::CommandExt, process::Command};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::terminal;

/// What to become, and for whom.
pub struct Launch {
    /// The process that looks after it. If that dies, the program does.
    pub parent: u32,
    /// Whether it gets the terminal.
    pub foreground: bool,
    /// The program, looked up in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
#[error("can't start {}: {error}", program.display())]
pub struct LaunchError {
    program: OsString,
    error: io::Error,
}

impl LaunchError {
    /// As shells number it: 127 if it isn't there, 126 if it can't be run.
    pub fn exit(&self) -> u8 {
        if self.error.kind() == io::ErrorKind::NotFound {
            127
        } else {
            126
        }
    }
}

impl Launch {
    /// Becomes the program; comes back only if it can't.
    pub fn run(self) -> LaunchError {
        let error = match self.prepare() {
            // Resets the signal mask and SIGPIPE; the environment is the program's already.
            Ok(()) => Command::new(&self.program).args(&self.arguments).exec(),
            Err(error) => error,
        };
        LaunchError {
            program: self.program,
            error,
        }
    }

    fn prepare(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have died before it could be noticed.
        if getppid().map(Pid::as_raw_pid).map(i32::cast_unsigned) != Some(self.parent) {
            return Err(io::Error::other("whoever looks after it is gone"));
        }
        if self.foreground {
            terminal::take()
        } else {
            Ok(())
        }
    }
}
