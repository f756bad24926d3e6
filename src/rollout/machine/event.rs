//! What a rollout learns from outside.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    keyring::{LedgerEvidence, Manifest},
    rollout::{fleet::FleetView, order::Approval, plan::NamedVersion},
};

/// Something that happened outside.
#[derive(Debug, Clone)]
pub enum Event {
    /// A runner took over a stored rollout. Nothing that was ordered before is known to have
    /// happened.
    Resumed,
    /// The time of a [`Action::Sleep`](super::Action::Sleep) has come.
    Woken,
    /// A change was made, or had been made already.
    Written(Written),
    /// A change was not made.
    NotWritten(WriteFailure),
    /// Sidecars and location were asked.
    Observed(Box<Observation>),
    /// Sidecars were asked to prove that they have the key.
    Proved(BTreeMap<String, Result<(), String>>),
    /// A person asks for something.
    Asked {
        /// What.
        verb: Verb,
        /// The person.
        by: String,
    },
    /// A person approved the order of the state.
    Approved(Approval),
    /// A request was not taken, because no requester has signed it.
    Unsigned(Verb),
    /// A request was not taken, because it can't be read.
    Malformed,
}

/// A generation that was written.
#[derive(Debug, Clone)]
pub struct Written {
    /// The generation.
    pub generation: u64,
    /// Its digest.
    pub sha256: [u8; 32],
    /// The version that was created or adopted.
    pub version: Option<NamedVersion>,
}

/// Why a change was not made.
#[derive(Debug, Clone)]
pub enum WriteFailure {
    /// A location, KEK or sidecar was unavailable.
    Unavailable(String),
    /// An invariant or a rule forbids it.
    Refused(String),
    /// The signer's own evidence is missing that a version is out of use.
    NoEvidence(String),
    /// Approvals are missing, void, or for something else.
    NotApproved(String),
    /// It is too early.
    TooEarly {
        /// When it is allowed.
        from: Timestamp,
        /// Why.
        reason: String,
    },
    /// The manifest doesn't carry this rollout's mark any more.
    Preempted(String),
}

/// What sidecars and location show.
#[derive(Debug, Clone)]
pub struct Observation {
    /// The sidecars.
    pub fleet: FleetView,
    /// The manifest, read after the sidecars were asked, or why it can't be read.
    pub manifest: Result<Manifest, String>,
    /// What the ledger of a hub says of the replaced version, while the rollout waits until that is
    /// out of use or may be destroyed. None without a hub.
    pub ledger: Option<LedgerEvidence>,
}

/// What a person can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Stop after the present change.
    Pause,
    /// Go on. A soak begins again.
    Resume,
    /// End the present soak or pause.
    Promote,
    /// End this and every later soak and pause.
    PromoteFull,
    /// Begin the step that failed again.
    Retry,
    /// Give up, and leave every wave as it is.
    Abort,
    /// Give every wave its former primary.
    Rollback,
}
