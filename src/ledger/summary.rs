//! What is kept of processes that have ended.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Book, Unwatched, book::How};

/// The uses of one keyring by the ended processes of one workload. Its size depends on the number
/// of versions alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Summary {
    /// When the first process of the workload was seen.
    pub since: Timestamp,
    /// The last use of each version.
    pub last_uses: BTreeMap<u32, Timestamp>,
    /// The last refused use of each version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub last_refusals: BTreeMap<u32, Timestamp>,
    /// The latest time until which a process wasn't watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Unwatched>,
    /// The last whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<Run>,
}

/// A process's life that was watched from its first report to its final one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Run {
    /// When its first report was received.
    pub started_at: Timestamp,
    /// When its final report was received.
    pub ended_at: Timestamp,
    /// The generation that it served last.
    pub generation: u64,
}

impl Run {
    /// Returns the run of a book that was closed by a final report, unless that was the only one:
    /// then nothing was watched.
    pub(super) fn of(book: &Book) -> Option<Self> {
        let end = book.end.filter(|end| end.how == How::Final)?;
        if book.sequence <= book.first {
            return None;
        }
        Some(Self {
            started_at: book.opened_at,
            ended_at: end.at,
            generation: book.generation,
        })
    }
}

impl Summary {
    pub(super) fn since(since: Timestamp) -> Self {
        Self {
            since,
            last_uses: BTreeMap::new(),
            last_refusals: BTreeMap::new(),
            gap: None,
            last_run: None,
        }
    }

    /// Adds a closed book. To add it twice is harmless.
    pub(super) fn fold(&mut self, book: &Book) {
        for (version, account) in &book.accounts {
            raise(&mut self.last_uses, *version, account.last_use);
            raise(&mut self.last_refusals, *version, account.last_refusal);
        }
        self.gap = Unwatched::later(self.gap, book.gap);
        self.last_run = self.last_run.max(Run::of(book));
    }
}

fn raise(times: &mut BTreeMap<u32, Timestamp>, version: u32, time: Option<Timestamp>) {
    if let Some(time) = time {
        let entry = times.entry(version).or_insert(time);
        *entry = time.max(*entry);
    }
}
