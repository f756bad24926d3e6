//! A manifest on its way to being published.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::timeout;

use super::Trigger;
use crate::{
    keks::UnwrapTasks,
    keyring::{Document, KeyTable, Succession, UnwrapResults},
};

/// How long a manifest waits for slow KEKs before it is published without their versions.
const GRACE: Duration = Duration::from_millis(500);

/// A manifest that passed examination and whose versions are being unwrapped.
pub(super) struct Candidate {
    pub(super) document: Arc<Document>,
    pub(super) succession: Succession,
    /// When it was read from the location; None if it didn't come from there.
    pub(super) read_at: Option<Timestamp>,
    pub(super) trigger: Trigger,
    pub(super) unwraps: UnwrapTasks,
    /// The versions that are unwrapped but not published yet, and those that failed to unwrap.
    pub(super) opened: UnwrapResults,
    /// The versions that are left for later, each with the time of its turn.
    pub(super) waiting: BTreeMap<u32, Timestamp>,
}

impl Candidate {
    /// Returns the candidate for `document`: `former` if it is for the same manifest, because its
    /// KEKs need not be asked again while they are busy.
    pub(super) fn resume(
        former: Option<Self>,
        document: Arc<Document>,
        succession: Succession,
        read_at: Option<Timestamp>,
        trigger: Trigger,
        waiting: BTreeMap<u32, Timestamp>,
    ) -> Self {
        let candidate = match former {
            Some(former) if former.document.canonical() == document.canonical() => former,
            _ => Self {
                document,
                succession,
                read_at,
                trigger,
                unwraps: UnwrapTasks::default(),
                opened: UnwrapResults::new(),
                waiting: BTreeMap::new(),
            },
        };
        Self {
            succession,
            read_at: read_at.or(candidate.read_at),
            trigger,
            waiting,
            ..candidate
        }
    }

    /// Returns whether it is of a later generation than `table`, and KEKs are being asked for it.
    pub(super) fn succeeds(&self, table: &KeyTable) -> bool {
        self.document.manifest().generation > table.generation() && !self.unwraps.is_empty()
    }

    /// Collects the results of all pending unwraps, or of those that finish within the grace.
    pub(super) async fn gather(&mut self) {
        let all = async {
            while let Some((version, result)) = self.unwraps.next().await {
                self.opened.insert(version, result);
            }
        };
        // Versions that take longer are published later.
        let _ = timeout(GRACE, all).await;
    }

    /// Waits until one pending unwrap finishes; forever if none is pending.
    pub(super) async fn gather_one(&mut self) {
        match self.unwraps.next().await {
            Some((version, result)) => {
                self.opened.insert(version, result);
            }
            None => std::future::pending().await,
        }
    }
}
