//! Times that weren't watched. Each counts as a use of every version at its end.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::crypto::KeyringId;

/// Why something wasn't watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The ledger was created.
    Created,
    /// No replica of the hub ran.
    HubDown,
    /// The database was restored from a backup, or lost what it had confirmed.
    Restored,
    /// The hub ran and could not store the reports that it got.
    NotStored,
    /// The roster wasn't read.
    RosterDown,
    /// The workload was seen for the first time. What its processes did before isn't known.
    FirstSeen,
    /// A process ended without a final report.
    Vanished,
    /// A process was silent until it was given up.
    Lost,
    /// A process that the roster listed ended without a report.
    NeverJoined,
    /// The counters of a process fell.
    CountersFell,
    /// A process used a sequence twice.
    SequenceReused,
    /// A process reported after its end.
    ReportedAfterEnd,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "the ledger was created",
            Self::HubDown => "no hub ran",
            Self::Restored => "the hub's database was restored",
            Self::NotStored => "reports could not be stored",
            Self::RosterDown => "the roster was not read",
            Self::FirstSeen => "the workload was seen for the first time",
            Self::Vanished => "it ended without a final report",
            Self::Lost => "it was silent until it was given up",
            Self::NeverJoined => "it ended without a report",
            Self::CountersFell => "its counters fell",
            Self::SequenceReused => "it used a sequence number twice",
            Self::ReportedAfterEnd => "it reported after its end",
        })
    }
}

/// The end of a time that wasn't watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Unwatched {
    /// Its end.
    pub until: Timestamp,
    /// Its cause.
    pub cause: Cause,
}

impl Unwatched {
    /// Returns the one that ends later.
    pub(super) fn later(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        one.max(other)
    }
}

/// A time in which a workload, a keyring or the whole fleet wasn't watched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gap {
    /// Its end.
    pub until: Timestamp,
    /// Its start, if that is known.
    pub from: Option<Timestamp>,
    /// The keyring; None if it is every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring: Option<KeyringId>,
    /// The workload; None if it is every one.
    pub workload: Option<String>,
    /// Its cause.
    pub cause: Cause,
}

impl Gap {
    /// Returns whether the workload's uses of the keyring weren't watched.
    pub(super) fn covers(&self, keyring: KeyringId, workload: &str) -> bool {
        self.keyring.is_none_or(|id| id == keyring)
            && self.workload.as_deref().is_none_or(|name| name == workload)
    }
}
