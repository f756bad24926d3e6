//! How the reader of a rendered file is notified.

use std::path::PathBuf;

use rustix::process::Signal as S;

use crate::config::reader::{Parsed, Section, Value};

/// How the reader of a rendered file is notified of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A program and its arguments, run without a shell.
    Command(Vec<String>),
    /// A signal to a process.
    Signal {
        /// The signal.
        signal: Signal,
        /// The file that holds the process id.
        pid_file: PathBuf,
    },
}

/// A signal that can notify a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// The name, without SIG.
    pub name: &'static str,
    /// The number.
    pub number: S,
}

const SIGNALS: [Signal; 8] = [
    signal("HUP", S::HUP),
    signal("INT", S::INT),
    signal("QUIT", S::QUIT),
    signal("TERM", S::TERM),
    signal("USR1", S::USR1),
    signal("USR2", S::USR2),
    signal("WINCH", S::WINCH),
    signal("CONT", S::CONT),
];

const fn signal(name: &'static str, number: S) -> Signal {
    Signal { name, number }
}

pub(super) fn notice(section: &Section<'_>) -> Parsed<Option<Notice>> {
    match (
        section.optional("command"),
        section.optional("signal"),
        section.optional("pid_file"),
    ) {
        (None, None, None) => Ok(None),
        (Some(command), None, None) => Ok(Some(Notice::Command(argv(section, &command)?))),
        (None, Some(signal), Some(pid_file)) => {
            let (signal, pid_file) = (known_signal(&signal), pid_file.path());
            Ok(Some(Notice::Signal {
                signal: signal?,
                pid_file: pid_file?,
            }))
        }
        (None, Some(signal), None) => {
            let missing = section.missing(
                "pid_file",
                "is required with signal; it is the file that holds the process id",
            );
            known_signal(&signal)?;
            Err(missing)
        }
        (None, None, Some(pid_file)) => Err(pid_file.missing("requires signal")),
        (Some(command), ..) => Err(command.problem("command and signal are mutually exclusive")),
    }
}

/// Reads a command. A program with a slash is resolved against the config's folder; any other is
/// found in `PATH`.
fn argv(section: &Section<'_>, value: &Value<'_>) -> Parsed<Vec<String>> {
    if !value.is_array() {
        return Err(value.unexpected(
            "an array of a program and its arguments, such as \
             [\"systemctl\", \"reload\", \"orders\"]",
        ));
    }
    let mut argv = value.list(|item| item.text().map(str::to_owned))?;
    match argv.first_mut() {
        Some(program) if !program.is_empty() => {
            if program.contains('/')
                && let Some(path) = section.folder().join(&*program).to_str()
            {
                *program = path.to_owned();
            }
            Ok(argv)
        }
        _ => Err(value.problem("must begin with a program")),
    }
}

fn known_signal(value: &Value<'_>) -> Parsed<Signal> {
    let text = value.text()?;
    let name = text.strip_prefix("SIG").unwrap_or(text);
    SIGNALS
        .into_iter()
        .find(|signal| signal.name == name)
        .ok_or_else(|| {
            let known = SIGNALS.map(|signal| signal.name).join(", ");
            value.problem(format_args!(
                "unsupported signal {text:?}; expected one of: {known}"
            ))
        })
}
