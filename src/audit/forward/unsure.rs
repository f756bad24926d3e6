//! What a connection that confirms nothing may lose when it ends.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

/// How long before the end of a connection a message may be lost with it.
const UNSURE: Duration = Duration::from_secs(30);
/// The most lines that are remembered.
const MAX_LINES: usize = 1024;
/// The most memory that they take, in bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// How often a line is repeated. Connections that all end soon hold up new lines no longer.
const MAX_REPEATS: u8 = 8;

/// The lines that may be lost.
#[derive(Default)]
pub(super) struct Unsure {
    /// First those that are to be repeated, then those that the current connection may lose, in
    /// the order in which it got them.
    lines: VecDeque<Line>,
    bytes: usize,
    /// How many are to be repeated.
    due: usize,
}

struct Line {
    written: Instant,
    repeats: u8,
    bytes: Bytes,
}

impl Unsure {
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Remembers lines that the current connection got, and forgets what has arrived or finds no
    /// room. Nothing is due.
    pub(super) fn written(&mut self, lines: &[Bytes], now: Instant) {
        for line in lines {
            self.bytes += line.len();
            self.lines.push_back(Line {
                written: now,
                repeats: 0,
                bytes: line.clone(),
            });
        }
        while self.lines.len() > MAX_LINES
            || self.bytes > MAX_BYTES
            || self.lines.front().is_some_and(|line| line.is_old(now))
        {
            self.forget_first();
        }
    }

    /// The current connection has ended: what it may have lost is due. How long the next one takes
    /// to come changes nothing about that.
    pub(super) fn ended(&mut self, now: Instant) {
        let mut due = self.due;
        self.lines.retain(|line| {
            // The connection didn't get those that are still due.
            let is_kept = due > 0 || !line.is_old(now) && line.repeats < MAX_REPEATS;
            due = due.saturating_sub(1);
            is_kept
        });
        self.bytes = self.lines.iter().map(|line| line.bytes.len()).sum();
        self.due = self.lines.len();
    }

    /// Returns the lines that are to be repeated.
    pub(super) fn due(&self) -> impl Iterator<Item = &Bytes> {
        self.lines.iter().take(self.due).map(|line| &line.bytes)
    }

    /// The current connection got the first `count` lines that were due. If it ends, the next one
    /// gets the others first.
    pub(super) fn repeated(&mut self, count: usize, now: Instant) {
        for mut line in self.lines.drain(..count).collect::<Vec<_>>() {
            line.written = now;
            line.repeats += 1;
            self.lines.push_back(line);
        }
        self.due -= count;
    }

    fn forget_first(&mut self) {
        if let Some(line) = self.lines.pop_front() {
            self.bytes -= line.bytes.len();
        }
    }
}

impl Line {
    fn is_old(&self, now: Instant) -> bool {
        now.duration_since(self.written) > UNSURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[&'static str]) -> Vec<Bytes> {
        let bytes = |text: &&'static str| Bytes::from_static(text.as_bytes());
        texts.iter().map(bytes).collect()
    }

    fn due(unsure: &Unsure) -> Vec<Bytes> {
        unsure.due().cloned().collect()
    }

    #[test]
    fn memory_is_limited_by_lines_and_by_bytes() {
        let (mut unsure, now) = (Unsure::default(), Instant::now());
        unsure.written(&vec![Bytes::from_static(b"x"); MAX_LINES + 1], now);
        unsure.ended(now);
        assert_eq!(due(&unsure).len(), MAX_LINES);

        let mut unsure = Unsure::default();
        for _ in 0..MAX_LINES {
            unsure.written(&[Bytes::from(vec![b'x'; 64 << 10])], now);
        }
        unsure.ended(now);
        assert_eq!(due(&unsure).len(), MAX_BYTES / (64 << 10));
    }

    #[test]
    fn what_counts_is_the_age_at_the_end_of_the_connection() {
        let (mut unsure, start) = (Unsure::default(), Instant::now());
        unsure.written(&lines(&["old"]), start);
        unsure.written(&lines(&["young"]), start + UNSURE / 2);
        let end = start + UNSURE + Duration::from_secs(1);
        unsure.ended(end);
        assert_eq!(due(&unsure), lines(&["young"]));
        // No connection got it meanwhile, so it is still due.
        unsure.ended(end + 10 * UNSURE);
        assert_eq!(due(&unsure), lines(&["young"]));
    }

    #[test]
    fn connections_that_end_soon_get_every_line_and_none_without_end() {
        let (mut unsure, now) = (Unsure::default(), Instant::now());
        unsure.written(&lines(&["a", "b", "c"]), now);
        unsure.ended(now);
        unsure.repeated(2, now);
        unsure.ended(now);
        assert_eq!(due(&unsure), lines(&["c", "a", "b"]), "what it didn't get");
        let mut connections = 0;
        while !unsure.is_empty() {
            unsure.repeated(1, now);
            unsure.ended(now);
            connections += 1;
        }
        assert_eq!(connections, 3 * usize::from(MAX_REPEATS) - 2);
    }
}
