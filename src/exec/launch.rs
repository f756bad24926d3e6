//! The child process, which runs this binary again for the setup that only the child can do, and
//! then replaces itself with the program. A `pre_exec` hook would require unsafe code.

use std::{ffi::OsString, io, os::unix::process::CommandExt, process::Command};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::terminal;

/// The program to run, and its supervisor.
pub struct Launch {
    /// The supervising process. The program is killed if it dies.
    pub parent: u32,
    /// Whether the program gets the terminal.
    pub foreground: bool,
    /// The program, looked up in `PATH`.
    pub program: OsString,
    /// Arguments of the program.
    pub arguments: Vec<OsString>,
}

/// The program could not be executed.
#[derive(Debug, thiserror::Error)]
#[error("can't start {}: {error}", program.display())]
pub struct LaunchError {
    program: OsString,
    error: io::Error,
}

impl LaunchError {
    /// The exit code that shells use: 127 if the program was not found, else 126.
    pub fn exit_code(&self) -> u8 {
        if self.error.kind() == io::ErrorKind::NotFound {
            127
        } else {
            126
        }
    }
}

impl Launch {
    /// Replaces this process with the program. Returns only on failure.
    pub fn run(self) -> LaunchError {
        let error = match self.prepare() {
            // Also resets the signal mask and SIGPIPE.
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
        // The parent may have died before the death signal was set.
        if getppid().map(Pid::as_raw_pid).map(i32::cast_unsigned) != Some(self.parent) {
            return Err(io::Error::other("the supervising process died"));
        }
        if self.foreground {
            terminal::take()
        } else {
            Ok(())
        }
    }
}
