//! The terminal, which belongs to the program while it runs: what is typed there, ^C included, reaches the program once and us never.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
};

use nix::sys::signal::{SigSet, Signal::SIGTTOU};
use rustix::{
    fs::OFlags,
    process::{Pid, Signal, getpgrp, getpid, getsid, kill_current_process_group},
    termios::{tcgetpgrp, tcsetpgrp},
};

/// The controlling terminal, if there is one.
pub(super) struct Terminal {
    file: Option<File>,
    own: Pid,
}

impl Terminal {
    /// Must be called on the thread that calls everything else of it.
    pub(super) fn open() -> io::Result<Self> {
        // Whoever gives the terminal away from the background is stopped by this signal, unless it is blocked.
        block_stop_by_output()?;
        Ok(Self { file: terminal(), own: getpgrp() })
    }

    /// Whether what is typed comes to us or to `program`, and so may be given to one that follows it.
    pub(super) fn is_ours(&self, program: Option<Pid>) -> bool {
        self.foreground().is_some_and(|group| group == self.own || Some(group) == program)
    }

    /// Gives the terminal to `program` if it is ours.
    pub(super) fn give(&self, program: Pid) {
        self.hand_over(self.own, program);
    }

    /// Takes it back if `program` has it.
    pub(super) fn take_back(&self, program: Pid) {
        self.hand_over(program, self.own);
    }

    /// Stops everything that a shell takes for one job with us, as the program was stopped; goes on when the shell says so. Does nothing
    /// where no shell could say it.
    pub(super) fn suspend(&self, program: Pid) -> Suspended {
        if self.file.is_none() {
            return Suspended::NobodyWatches;
        }
        if getsid(None).is_ok_and(|leader| leader == getpid()) {
            return Suspended::NobodyResumes;
        }
        self.take_back(program);
        // Fails for nobody who may signal himself.
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
            // A terminal that hung up belongs to nobody.
            let _ = tcsetpgrp(file, to);
        }
    }
}

/// What came of stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspended {
    /// There is no terminal, so the program was stopped by somebody who will resume it himself.
    NobodyWatches,
    /// We lead the session: there is no shell that could resume anybody.
    NobodyResumes,
    /// A shell stopped and resumed us.
    Resumed,
}

/// Makes this process's group the foreground of its terminal.
pub(super) fn take() -> io::Result<()> {
    block_stop_by_output()?;
    match terminal() {
        Some(file) => Ok(tcsetpgrp(file, getpgrp())?),
        None => Ok(()),
    }
}

fn terminal() -> Option<File> {
    OpenOptions::new().read(true).write(true).custom_flags(OFlags::NOCTTY.bits().cast_signed()).open("/dev/tty").ok()
}

fn block_stop_by_output() -> io::Result<()> {
    Ok(SigSet::from(SIGTTOU).thread_block()?)
}
