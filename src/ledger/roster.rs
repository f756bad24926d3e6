//! What another source says about the processes that there are, whether they report or not.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Cause, Gap};
use crate::crypto::InstanceId;

/// A process that a roster lists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listing {
    /// The workload that it serves.
    pub workload: String,
    /// When the roster listed it first.
    pub listed_at: Timestamp,
    /// When the roster listed it last.
    pub seen_at: Timestamp,
    /// The processes that reported as this one: one, or several if the roster can't tell a process
    /// from the one that follows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<InstanceId>,
    /// When the roster confirmed its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

impl Listing {
    pub(super) fn new(workload: String, now: Timestamp) -> Self {
        Self {
            workload,
            listed_at: now,
            seen_at: now,
            instances: Vec::new(),
            ended_at: None,
        }
    }

    /// Returns what nothing watched of a process that has ended without a report.
    pub(super) fn gap(&self, now: Timestamp) -> Gap {
        Gap {
            until: now,
            from: Some(self.listed_at),
            keyring: None,
            workload: Some(self.workload.clone()),
            cause: Cause::NeverJoined,
        }
    }

    /// Returns whether it may run and has never reported.
    pub fn is_silent(&self) -> bool {
        self.ended_at.is_none() && self.instances.is_empty()
    }
}
