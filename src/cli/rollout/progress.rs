//! Progress: a line for everything that happens, and what the rollout waits for.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::{
    cli::output::{CliError, Format, printable, write_out},
    rollout::{Entry, Phase, State},
};

/// Prints what is new in a state.
pub(super) struct Progress {
    format: Format,
    printed: usize,
    waiting: ProgressBar,
}

/// A line of JSON output.
#[derive(Serialize)]
struct Line<'a> {
    rollout: String,
    of: usize,
    #[serde(flatten)]
    entry: &'a Entry,
}

impl Progress {
    /// Begins after the first `printed` entries.
    pub(super) fn new(format: Format, printed: usize) -> Self {
        let target = if format == Format::Text && std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let waiting = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            waiting.set_style(style);
        }
        waiting.enable_steady_tick(Duration::from_millis(120));
        Self {
            format,
            printed,
            waiting,
        }
    }

    pub(super) fn show(&mut self, state: &State) {
        let entries = &state.entries;
        for entry in &entries[self.printed.min(entries.len())..] {
            let line = self.line(state, entry);
            self.waiting.suspend(|| {
                // The rollout goes on, read or unread.
                let _ = write_out(&line);
            });
        }
        self.printed = entries.len();
        self.waiting.set_message(waiting_for(state));
    }

    fn line(&self, state: &State, entry: &Entry) -> String {
        let of = state.plan.steps.len();
        match self.format {
            Format::Json => {
                let line = Line {
                    rollout: state.id.to_string(),
                    of,
                    entry,
                };
                match serde_json::to_string(&line) {
                    Ok(line) => line + "\n",
                    Err(error) => unreachable!("an entry has only string keys: {error}"),
                }
            }
            Format::Text => format!("{}\n", text(entry, of)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.waiting.finish_and_clear();
    }
}

/// Formats an entry for people.
pub(super) fn text(entry: &Entry, of: usize) -> String {
    let time = entry.at.strftime("%H:%M:%S");
    let attempt = match entry.attempt {
        0 | 1 => String::new(),
        attempt => format!(", attempt {attempt}"),
    };
    let details = match entry.text.as_str() {
        "" => String::new(),
        text => format!(": {}", printable(text)),
    };
    format!(
        "{time}  {:>2}/{of}{attempt}  {}{details}",
        entry.step, entry.kind
    )
}

fn waiting_for(state: &State) -> String {
    match state.waiting_for.first() {
        None => state.present().describe(),
        Some(first) => {
            let more = state.waiting_for.len() - 1;
            let more = if more == 0 {
                String::new()
            } else {
                format!(", and {more} more")
            };
            format!("{}: waiting for {first}{more}", state.present().describe())
        }
    }
}

/// Turns the end of a rollout into an exit code: only a rollout that did what it was asked for is a
/// success.
pub(super) fn conclude(state: &State, wanted: Wanted) -> Result<(), CliError> {
    let is_wanted = matches!(
        (&state.phase, wanted),
        (Phase::Finished, _)
            | (Phase::RolledBack(_), Wanted::Rollback)
            | (Phase::Aborted(_), Wanted::Abort | Wanted::Rollback)
    );
    if is_wanted {
        return Ok(());
    }
    let error = CliError::refused(format!("rollout {} {}", state.id, state.phase));
    Err(match state.phase {
        Phase::Halted(_) => error.with_hint(
            "decide: `rollout retry` begins the step again, `rollout rollback` gives every wave \
             its former primary, `rollout abort` leaves everything as it is",
        ),
        _ => error,
    })
}

/// What a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// That every step is done.
    Rotation,
    /// That every wave has its former primary.
    Rollback,
    /// That the rollout is given up.
    Abort,
}
