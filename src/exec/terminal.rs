//! The terminal, which belongs to the program while it runs: what is typed there, ^C included, reaches the program once and us never.

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
    /// Others have the terminal by the same right as we: the rest of a pipeline, `less` for one. It is given away only when it is asked for.
    shared: bool,
}

impl Terminal {
    /// Must be called on the thread that calls everything else of it.
    pub(super) fn open() -> io::Result<Self> {
        // Whoever gives the terminal away from the background is stopped by this signal, unless it is blocked.
        block_stop_by_output()?;
        let is_pipe = fstat(io::stdout())
            .is_ok_and(|stdout| FileType::from_raw_mode(stdout.st_mode) == FileType::Fifo);
        // A program that ignores being stopped, as in a shell's `$(...)`, could not ask.
        let shared = is_pipe && !is_ignored(Signal::TTIN);
        // A group outside of our pid namespace has no number here: the terminal could not be given back to it.
        let (file, own) = own_group().map_or((None, getpid()), |own| (terminal(), own));
        Ok(Self { file, own, shared })
    }

    /// Whether what is typed comes to us alone or to `program`, and so may be given to one that follows it.
    pub(super) fn is_ours(&self, program: Option<Pid>) -> bool {
        self.foreground()
            .is_some_and(|group| group == self.own && !self.shared || Some(group) == program)
    }

    /// Gives the terminal to `program` if it is ours alone.
    pub(super) fn give(&self, program: Pid) {
        if !self.shared {
            self.hand_over(self.own, program);
        }
    }

    /// Gives it to `program`, which was stopped because it used it, and tells whether it was ours to give.
    pub(super) fn lend(&self, program: Pid) -> bool {
        let is_ours = self.foreground() == Some(self.own);
        self.hand_over(self.own, program);
        is_ours
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
        if getsid(None).is_ok_and(|leader| leader.as_raw() == getpid().as_raw_pid()) {
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
        // Whoever starts us makes us the head of a group.
        Some(file) => Ok(tcsetpgrp(file, getpid())?),
        None => Ok(()),
    }
}

/// The group of this process; none if it is not in our pid namespace, in which case the kernel calls it 0.
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
