//! Forwarded signals, and SIGCHLD.

use std::{fs, future::poll_fn, io, str::FromStr, task::Poll};

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};

/// The signals forwarded to the program. Others are not: KILL and STOP can't be caught; ABRT, BUS,
/// FPE, ILL, SEGV, SYS and TRAP report a fault of the receiving process; XCPU, XFSZ, PROF and
/// VTALRM its limits; TTIN and TTOU its use of the terminal. Real-time signals have no names.
const FORWARDED: [(&str, Signal); 14] = [
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

/// A signal that programs handle as a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignalName(pub(super) Signal);

/// The name of a signal that is unknown or can't be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of HUP, INT, QUIT, USR1, USR2, ALRM, TERM, CONT, URG, WINCH, IO, PWR")]
pub struct UnknownSignal;

impl FromStr for SignalName {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        let known = FORWARDED
            .iter()
            .find(|(known, signal)| *known == name && *signal != Signal::TSTP);
        known.map(|(_, signal)| Self(*signal)).ok_or(UnknownSignal)
    }
}

impl std::fmt::Display for SignalName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            FORWARDED
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

/// A received signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// SIGCHLD: one or more children exited or stopped.
    Child,
    /// A signal to forward.
    Forward(SignalName),
}

/// Streams of all signals that are handled.
pub(super) struct Signals {
    child: unix::Signal,
    forwarded: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    /// Installs the handlers. Signals that this process was started to ignore stay ignored, also
    /// for the program, as `nohup` requires.
    pub(super) fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let forwarded = FORWARDED
            .iter()
            .map(|(_, signal)| *signal)
            .filter(|signal| ignored & bit(*signal) == 0);
        let forwarded =
            forwarded.map(|number| Ok((number, signal(SignalKind::from_raw(number.as_raw()))?)));
        Ok(Self {
            child: signal(SignalKind::child())?,
            forwarded: forwarded.collect::<io::Result<_>>()?,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub(super) async fn next(&mut self) -> Received {
        poll_fn(|cx| {
            for (signal, stream) in &mut self.forwarded {
                if stream.poll_recv(cx).is_ready() {
                    return Poll::Ready(Received::Forward(SignalName(*signal)));
                }
            }
            self.child.poll_recv(cx).map(|_| Received::Child)
        })
        .await
    }
}

/// The mask of signals that this process ignores (`SigIgn` in proc_pid_status(5)).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Whether this process was started to ignore `signal`, which must not be a handled one.
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
        for (name, signal) in FORWARDED.iter().filter(|(name, _)| *name != "TSTP") {
            assert_eq!(name.parse(), Ok(SignalName(*signal)));
            assert_eq!(format!("SIG{name}").parse(), Ok(SignalName(*signal)));
            assert_eq!(SignalName(*signal).to_string(), *name);
        }
        for wrong in ["", "hup", "SIG", "1", "KILL", "STOP", "TSTP"] {
            assert_eq!(wrong.parse::<SignalName>(), Err(UnknownSignal), "{wrong}");
        }
    }
}
