//! Job control: while the program runs, it owns the terminal and receives all input, including ^C.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
};

use nix::{
    sys::signal::{SigSet, Signal::SIGTTOU},
    unistd::{getpgrp, getsid},
};
use rustix::{
    fs::{FileType, OFlags, fstat},
    process::{Pid, Signal, getpid, kill_current_process_group},
    termios::{tcgetpgrp, tcsetpgrp},
};

use super::signals::is_ignored;

/// The controlling terminal, if there is one.
pub(super) struct Terminal {
    file: Option<File>,
    own: Pid,
    /// Whether other processes of a pipeline, such as `less`, may use the terminal as well. It is
    /// then given to the program only on demand.
    shared: bool,
}

impl Terminal {
    /// Must be called on the thread that uses the terminal, because it changes its signal mask.
    pub(super) fn open() -> io::Result<Self> {
        // tcsetpgrp from the background raises SIGTTOU, which stops the process unless blocked.
        block_stop_by_output()?;
        let is_pipe = fstat(io::stdout())
            .is_ok_and(|stdout| FileType::from_raw_mode(stdout.st_mode) == FileType::Fifo);
        // A program that ignores SIGTTIN, as in a shell's `$(...)`, couldn't demand the terminal.
        let shared = is_pipe && !is_ignored(Signal::TTIN);
        // A group outside this PID namespace has no number here and couldn't get the terminal back.
        let (file, own) = own_group().map_or((None, getpid()), |own| (terminal(), own));
        Ok(Self { file, own, shared })
    }

    /// Whether this process alone, or `program`, owns the terminal, so that the program's successor
    /// may own it.
    pub(super) fn is_owned(&self, program: Option<Pid>) -> bool {
        self.foreground()
            .is_some_and(|group| group == self.own && !self.shared || Some(group) == program)
    }

    /// Gives the terminal to `program` unless it is shared.
    pub(super) fn give(&self, program: Pid) {
        if !self.shared {
            self.hand_over(self.own, program);
        }
    }

    /// Gives the terminal to `program`, which was stopped because it used it. Returns whether this
    /// process owned it.
    pub(super) fn lend(&self, program: Pid) -> bool {
        let was_owned = self.foreground() == Some(self.own);
        self.hand_over(self.own, program);
        was_owned
    }

    /// Takes the terminal back if `program` owns it.
    pub(super) fn take_back(&self, program: Pid) {
        self.hand_over(program, self.own);
    }

    /// Stops the whole job, as the program was stopped, until the shell resumes it. Does nothing if
    /// no shell could resume it.
    pub(super) fn suspend(&self, program: Pid) -> Suspended {
        if self.file.is_none() {
            return Suspended::NoTerminal;
        }
        if getsid(None).is_ok_and(|leader| leader.as_raw() == getpid().as_raw_pid()) {
            return Suspended::SessionLeader;
        }
        self.take_back(program);
        // A process may always signal its own group.
        let _ = kill_current_process_group(Signal::STOP);
        Suspended::Resumed
    }

    fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(self.file.as_ref()?).ok()
    }

    fn hand_over(&self, from: Pid, to: Pid) {
        if let Some(file) = &self.file
            && self.foreground() == Some(from)
        {
            // Fails only after a hangup.
            let _ = tcsetpgrp(file, to);
        }
    }
}

/// The result of [`Terminal::suspend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspended {
    /// There is no terminal: the process that stopped the program is expected to resume it.
    NoTerminal,
    /// This process leads the session, so no shell could resume it.
    SessionLeader,
    /// The shell resumed the job.
    Resumed,
}

/// Makes this process's group the foreground group of its terminal.
pub(super) fn take() -> io::Result<()> {
    block_stop_by_output()?;
    match terminal() {
        // The parent made this process a group leader.
        Some(file) => Ok(tcsetpgrp(file, getpid())?),
        None => Ok(()),
    }
}

/// The group of this process; None if it is outside this PID namespace and reported as 0.
fn own_group() -> Option<Pid> {
    Pid::from_raw(getpgrp().as_raw())
}

fn terminal() -> Option<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open("/dev/tty")
        .ok()
}

fn block_stop_by_output() -> io::Result<()> {
    Ok(SigSet::from(SIGTTOU).thread_block()?)
}
