//! The state of a rollout: what is stored between two events.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    analysis::Verdict,
    assess::Finding,
    fleet::Counters,
    machine::Write,
    order::{Approval, Order},
    plan::{NamedVersion, Plan, Step},
};
use crate::{
    crypto::RolloutId,
    keyring::{Base64, RolloutMark},
};

/// A rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Its id.
    pub id: RolloutId,
    /// What it does.
    pub plan: Plan,
    /// Whether it runs, waits or has ended.
    pub phase: Phase,
    /// The index of the present step.
    pub step: usize,
    /// How often the present step was begun, from 1.
    pub attempt: u32,
    /// When the present attempt began.
    pub entered_at: Timestamp,
    /// How far the present step is.
    pub progress: Progress,
    /// The version that it brings in, once that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<NamedVersion>,
    /// The newest generation that it wrote, or that it began with.
    pub generation: u64,
    /// The digest of that generation.
    pub sha256: Base64,
    /// Whether a manifest may carry its mark.
    pub is_marked: bool,
    /// Whether a wave may have been given the version.
    pub is_activated: bool,
    /// Whether soaks and pauses are skipped (`rollout promote --full`).
    pub skips_soaks: bool,
    /// What the sidecars had counted before the present wave's activation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub baseline: BTreeMap<String, Baseline>,
    /// While the use of the old version is observed: when each sidecar last answered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub seen: BTreeMap<String, Timestamp>,
    /// Whether it is rolled back after it had finished.
    #[serde(default)]
    pub is_late: bool,
    /// What the present step waits for; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// The order that waits for approvals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The approvals of that order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// What was found before it began.
    pub findings: Vec<Finding>,
    /// What happened, in order.
    pub entries: Vec<Entry>,
}

/// Whether a rollout runs, waits or has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is", content = "reason")]
pub enum Phase {
    /// Steps follow each other.
    Running,
    /// It waits for a person.
    Paused(PauseReason),
    /// A step failed, and a person decides: retry, roll back or abort.
    Halted(String),
    /// Every wave is given its former primary.
    RollingBack(String),
    /// The mark is removed; everything else stays as it is.
    Aborting(String),
    /// Every step is done.
    Finished,
    /// Every wave has its former primary.
    RolledBack(String),
    /// It was given up.
    Aborted(String),
}

impl Phase {
    /// Returns whether nothing more happens by itself or by a verb but a rollback.
    pub fn is_over(&self) -> bool {
        matches!(
            self,
            Self::Finished | Self::RolledBack(_) | Self::Aborted(_)
        )
    }
}

/// Why a rollout waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "for", content = "detail")]
pub enum PauseReason {
    /// `rollout pause`.
    Operator(String),
    /// The plan pauses here until `rollout promote`.
    Planned,
    /// The order of the state needs approvals.
    Approval,
    /// A soak ended without a verdict.
    Inconclusive(String),
    /// The old version is still in use.
    StillUsed(String),
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "at")]
pub enum Progress {
    /// Sidecars are asked before anything is written.
    Preparing,
    /// A change was ordered. Whether it was made, the manifest shows.
    Writing {
        /// How often it failed since.
        failures: u32,
    },
    /// Sidecars or a time are waited for.
    Waiting,
    /// Sidecars prove that they have the key.
    Proving {
        /// Those that have.
        proved: BTreeSet<String>,
    },
    /// A wave is watched.
    Soaking {
        /// Since when.
        since: Timestamp,
        /// How many rounds were inconclusive in a row.
        inconclusive: u32,
    },
}

/// What a sidecar had counted at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// The process that counted.
    pub instance: String,
    /// Its counts.
    pub counters: Counters,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// In which step, from 1.
    pub step: u32,
    /// In which attempt.
    pub attempt: u32,
    /// What kind of thing.
    pub kind: Kind,
    /// Details.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// What kind of thing happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The rollout began.
    Started,
    /// A step began.
    Began,
    /// A generation was written.
    Wrote(u64),
    /// The sidecars that a step waited for are there: how many.
    Converged(u64),
    /// This many sidecars proved that they have the key.
    Proved(u64),
    /// A soak ended, or its verdict changed.
    Verdict(Verdict),
    /// A step failed for a while and is tried again.
    Retrying,
    /// Something a person should know.
    Anomaly,
    /// It waits for a person.
    Paused,
    /// A person let it go on.
    Resumed,
    /// A person ended a soak or pause.
    Promoted,
    /// An approval that counts.
    Approved,
    /// A step failed, and a person decides.
    Halted,
    /// A rollback began.
    RollingBack,
    /// Every wave has its former primary.
    RolledBack,
    /// It was given up.
    Aborted,
    /// Every step is done.
    Finished,
}

impl State {
    /// Returns the present step.
    pub fn present(&self) -> &Step {
        // A plan ends with `Finish`, after which `step` is not incremented.
        &self.plan.steps[self.step.min(self.plan.steps.len() - 1)]
    }

    /// Returns whether a step failed, so that a person must decide.
    pub fn is_halted(&self) -> bool {
        matches!(self.phase, Phase::Halted(_))
    }

    /// Returns whether the rollout waits until the replaced version is out of use.
    pub fn observes_disuse(&self) -> bool {
        self.phase == Phase::Running && matches!(self.present(), Step::Observe { .. })
    }

    /// Returns whether the rollout waits until the replaced version, which is disabled, may be
    /// destroyed.
    pub fn awaits_destruction(&self) -> bool {
        self.phase == Phase::Running && matches!(self.present(), Step::Wait)
    }

    /// Returns the number of the present step, from 1.
    pub fn number(&self) -> u32 {
        u32::try_from(self.step + 1).unwrap_or(u32::MAX)
    }

    /// Returns the mark of a manifest that the present step writes.
    pub fn mark(&self) -> RolloutMark {
        RolloutMark {
            id: self.id,
            plan: Base64(self.plan.digest().to_vec()),
            step: self.number(),
            attempt: self.attempt,
        }
    }

    /// Returns whether the mark of a manifest shows that a change of the present step was made,
    /// although its runner never learned of it. A version is generated once, in any attempt.
    pub fn was_made(&self, mark: &RolloutMark, write: &Write) -> bool {
        let is_same_attempt = mark.attempt == self.attempt;
        let is_marked = !matches!(
            write,
            Write::BackUp(_) | Write::End | Write::RollBack { .. } | Write::Replace { .. }
        );
        mark.id == self.id
            && mark.step == self.number()
            && is_marked
            && (is_same_attempt || matches!(write, Write::Generate { .. }))
    }

    /// Records what may come any number of times: once for each attempt of a step.
    pub(super) fn record_once(&mut self, now: Timestamp, kind: Kind, text: String) {
        let place = (self.number(), self.attempt);
        let is_known = self
            .entries
            .iter()
            .rev()
            .any(|entry| (entry.step, entry.attempt) == place && entry.text == text);
        if !is_known {
            self.record(now, kind, text);
        }
    }

    pub(super) fn record(&mut self, now: Timestamp, kind: Kind, text: impl Into<String>) {
        self.entries.push(Entry {
            at: now,
            step: self.number(),
            attempt: self.attempt,
            kind,
            text: text.into(),
        });
    }
}
