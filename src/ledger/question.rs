//! What a verdict depends on beside the ledger.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{crypto::KeyringId, keyring::Class, model::Span};

/// Whether a version of a keyring is out of use.
#[derive(Debug, Clone)]
pub struct Question {
    /// The keyring.
    pub keyring: KeyringId,
    /// The version.
    pub version: u32,
    /// What shows that it isn't needed.
    pub class: Class,
    /// How long it must have been unused.
    pub quiet_period: Span,
    /// How long it must have been disabled without a request for it, if the question is whether it
    /// may be destroyed. None if the question is whether it may be disabled.
    pub destroy_after: Option<Span>,
    /// For how long a process that is cut off may encrypt with it.
    pub encrypt_lease: Span,
    /// After which silence the ledger gives up a process.
    pub lost_after: Span,
    /// Since when it is no wave's primary; None while it is one or is to become one.
    pub superseded: Option<Superseded>,
    /// The end of the time that the evidence covers.
    pub barrier: Barrier,
    /// The workloads that may use the keyring.
    pub workloads: Vec<Declared>,
    /// Uses that other sources know of. They add to those in the ledger and remove none.
    pub further_uses: Vec<FurtherUse>,
    /// What persons have stated.
    pub statements: Vec<Statement>,
}

impl Question {
    /// Returns how long the version must have been unused, or disabled without a request for it.
    pub(super) fn quiet_time(&self) -> Span {
        self.destroy_after.unwrap_or(self.quiet_period)
    }
}

/// When a version was superseded in every wave, the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superseded {
    /// The time.
    pub at: Timestamp,
    /// The first generation that says so. Later ones don't matter.
    pub generation: u64,
}

/// A request to every process for a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    /// What the reports name that answer it.
    pub number: u64,
    /// When it was set. What was used before is in the reports that answer it.
    pub at: Timestamp,
}

/// A workload that may use a keyring. Without the grant, there is nothing to declare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// Its name, as in reports.
    pub workload: String,
    /// The longest time between two of its runs; None if it runs all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<Span>,
}

/// A use that another source knows of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FurtherUse {
    /// The source, for people.
    pub source: String,
    /// When.
    pub at: Timestamp,
}

/// A statement about a version by a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Who states it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// The version.
    pub version: u32,
    /// What is stated.
    pub subject: Subject,
    /// How they know.
    pub note: String,
}

/// What a person states about a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// It isn't needed: by one workload, or by any.
    NotNeeded {
        /// The workload; None for all of them.
        workload: Option<String>,
    },
    /// A scan of every store found this many of its ciphertexts.
    Scan {
        /// The ciphertexts.
        found: u64,
    },
    /// The Kubernetes cluster has written all its objects again.
    StorageMigration,
}
