//! Lines that must not hold anyone up: a thread of their own writes them, and what it can't write
//! is counted rather than waited for.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

use crate::files::Patient;

/// How many bytes wait for the thread. It holds as many again while it writes.
const CAPACITY: usize = 256 << 10;

/// Writes lines without waiting for their reader. Clones write to the same destination.
///
/// A line is lost if its reader is so slow that there is no space for it, or if writing fails.
/// When lines can be written again, one of them says how many were lost.
#[derive(Clone)]
pub(super) struct LossyWriter(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Notified when there is something to write, and when it was written.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whole lines.
    waiting: Vec<u8>,
    is_writing: bool,
    lost: u64,
}

impl LossyWriter {
    /// Starts a thread that writes to `out`. It calls `report_lost` with the number of lines lost
    /// since the last call, from time to time when lines can be written.
    ///
    /// # Errors
    /// The thread can't be started.
    fn start(
        out: impl Write + Send + 'static,
        report_lost: impl Fn(&Self, u64) + Send + 'static,
    ) -> io::Result<Self> {
        let writer = Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        }));
        let own = writer.clone();
        thread::Builder::new()
            .name("sidekey-log".into())
            .spawn(move || own.write_all(Lines { out, is_cut: false }, &report_lost))?;
        Ok(writer)
    }

    /// Writes one or more lines, each with its line break: all of them or none.
    pub(super) fn write(&self, lines: &[u8]) {
        let mut state = self.state();
        if state.waiting.len() + lines.len() > CAPACITY {
            state.lost += count(lines);
            return;
        }
        state.waiting.extend_from_slice(lines);
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until everything was written, for `patience` at most.
    pub(super) fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        while state.is_writing || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self
                .0
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// How many lines were lost since the start.
    pub(super) fn lost(&self) -> u64 {
        self.state().lost
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut out: Lines<impl Write>, report_lost: &impl Fn(&Self, u64)) {
        let (mut lines, mut reported) = (Vec::new(), 0);
        let mut report = || {
            let lost = self.lost();
            if lost > reported {
                report_lost(self, lost - reported);
                reported = lost;
            }
        };
        // A report must not be lost as well: it needs a destination that works, and space, which
        // there is whenever lines were taken and when none are waiting.
        let mut is_working = false;
        loop {
            self.take(&mut lines);
            if is_working {
                report();
            }
            let lost = out.write(&lines);
            is_working = lost == 0;
            let mut state = self.state();
            state.is_writing = false;
            state.lost += lost;
            let is_empty = state.waiting.is_empty();
            drop(state);
            self.0.changed.notify_all();
            if is_working && is_empty {
                report();
            }
        }
    }

    /// Waits for lines and moves them to `lines`.
    fn take(&self, lines: &mut Vec<u8>) {
        lines.clear();
        let mut state = self.state();
        while state.waiting.is_empty() {
            state = self
                .0
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut state.waiting, lines);
        state.is_writing = true;
    }
}

/// Where lines are written.
struct Lines<W> {
    out: W,
    /// Whether the last line was cut off, because writing failed.
    is_cut: bool,
}

impl<W: Write> Lines<W> {
    /// Writes `lines` and returns how many of them were not written whole.
    fn write(&mut self, lines: &[u8]) -> u64 {
        if self.is_cut && self.write_part(b"\n") == 0 {
            return count(lines);
        }
        let (written, rest) = lines.split_at(self.write_part(lines));
        self.is_cut = written.last().is_some_and(|last| *last != b'\n');
        count(rest)
    }

    /// Writes as much as possible and returns how many bytes that was. What can't be written now
    /// isn't tried again.
    fn write_part(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.out.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        written
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

impl<'w> MakeWriter<'w> for LossyWriter {
    type Writer = EventWriter<'w>;

    fn make_writer(&'w self) -> EventWriter<'w> {
        EventWriter(self)
    }
}

/// Takes one event, which `tracing-subscriber` formats in memory and writes at once.
pub(super) struct EventWriter<'w>(&'w LossyWriter);

impl Write for EventWriter<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.write(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

static STDERR: OnceLock<Option<LossyWriter>> = OnceLock::new();

/// The process's log on standard error. `None` if its thread can't be started.
pub(super) fn stderr() -> Option<&'static LossyWriter> {
    let start = || LossyWriter::start(Patient::stderr().ok()?, report_lost).ok();
    STDERR.get_or_init(start).as_ref()
}

fn report_lost(writer: &LossyWriter, lost: u64) {
    const WHY: &str = "log lines were lost, because standard error failed or was read too slowly";
    if tracing::dispatcher::has_been_set() {
        warn!(lost, "{WHY}");
    } else {
        writer.write(format!("sidekey: {lost} {WHY}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests;
