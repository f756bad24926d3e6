//! The signals that are passed on, and the one that says that a child ended.

use std::{fs, future::poll_fn, io, str::FromStr, task::Poll};

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};

/// What is passed on to the program. KILL and STOP can't be caught; ABRT, BUS, FPE, ILL, SEGV, SYS and TRAP are about the process that has
/// the fault; XCPU, XFSZ, PROF and VTALRM about its own limits; TTIN and TTOU about its own use of the terminal. Real-time signals have
/// no name by which they could be sent on.
const NAMES: [(&str, Signal); 14] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("STKFLT", Signal::STKFLT),
    ("CONT", Signal::CONT),
    ("TSTP", Signal::TSTP),
    ("URG", Signal::URG),
    ("WINCH", Signal::WINCH),
    ("IO", Signal::IO),
    ("PWR", Signal::POWER),
];

/// A signal that programs take as a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignalName(pub(super) Signal);

/// There is no such signal to send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write one of HUP, INT, QUIT, USR1, USR2, ALRM, TERM, CONT, URG, WINCH, IO, PWR")]
pub struct UnknownSignal;

impl FromStr for SignalName {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        let known = NAMES
            .iter()
            .find(|(known, signal)| *known == name && *signal != Signal::TSTP);
        known.map(|(_, signal)| Self(*signal)).ok_or(UnknownSignal)
    }
}

impl std::fmt::Display for SignalName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            NAMES
                .iter()
                .find(|(_, signal)| *signal == self.0)
                .map_or("?", |(name, _)| name),
        )
    }
}

impl std::fmt::Debug for SignalName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Some child ended or stopped, or several did.
    Child,
    /// To be passed on.
    Signal(SignalName),
}

/// Everything that is listened to.
pub(super) struct Signals {
    child: unix::Signal,
    forwarded: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    /// Listens from now on. What this process was started to ignore stays ignored, for the program as well, as `nohup` wants it.
    pub(super) fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let forwarded = NAMES
            .iter()
            .map(|(_, signal)| *signal)
            .filter(|wanted| ignored & bit(*wanted) == 0);
        let forwarded =
            forwarded.map(|wanted| Ok((wanted, signal(SignalKind::from_raw(wanted.as_raw()))?)));
        Ok(Self {
            child: signal(SignalKind::child())?,
            forwarded: forwarded.collect::<io::Result<_>>()?,
        })
    }

    /// The next one. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Heard {
        poll_fn(|cx| {
            for (signal, stream) in &mut self.forwarded {
                if stream.poll_recv(cx).is_ready() {
                    return Poll::Ready(Heard::Signal(SignalName(*signal)));
                }
            }
            self.child.poll_recv(cx).map(|_| Heard::Child)
        })
        .await
    }
}

/// The mask of signals that this process ignores (proc_pid_status(5)).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Whether this process was started to ignore a signal that it doesn't listen to.
pub(super) fn is_ignored(signal: Signal) -> bool {
    ignored() & bit(signal) != 0
}

fn bit(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_with_and_without_sig() {
        for (name, signal) in NAMES.iter().filter(|(name, _)| *name != "TSTP") {
            assert_eq!(name.parse(), Ok(SignalName(*signal)));
            assert_eq!(format!("SIG{name}").parse(), Ok(SignalName(*signal)));
            assert_eq!(SignalName(*signal).to_string(), *name);
        }
        for wrong in ["", "hup", "SIG", "1", "KILL", "STOP", "TSTP"] {
            assert_eq!(wrong.parse::<SignalName>(), Err(UnknownSignal), "{wrong}");
        }
    }
}
