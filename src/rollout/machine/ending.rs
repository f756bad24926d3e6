//! Pauses, failures and ends.

use jiff::Timestamp;

use super::Action;
use crate::rollout::{
    plan::Step,
    state::{Kind, PauseReason, Phase, Progress, State},
};

impl State {
    /// The present step failed. Only what speaks against the version undoes its activation: the old
    /// version is retired in steps that a person can decide about.
    pub(super) fn fail(&mut self, reason: String, now: Timestamp) -> Vec<Action> {
        let is_about_the_version =
            matches!(self.present(), Step::Activate { .. } | Step::Soak { .. });
        match self.phase {
            Phase::Running
                if self.is_activated && is_about_the_version && self.plan.rolls_back() =>
            {
                self.roll_back(reason, now)
            }
            _ => self.halt(reason, now),
        }
    }

    pub(super) fn halt(&mut self, reason: String, now: Timestamp) -> Vec<Action> {
        self.record(now, Kind::Halted, reason.clone());
        self.phase = Phase::Halted(reason);
        self.waiting_for.clear();
        Vec::new()
    }

    pub(super) fn roll_back(&mut self, reason: String, now: Timestamp) -> Vec<Action> {
        self.record(now, Kind::RollingBack, reason.clone());
        self.phase = Phase::RollingBack(reason);
        self.begin_ending(now)
    }

    pub(super) fn begin_ending(&mut self, now: Timestamp) -> Vec<Action> {
        self.entered_at = now;
        self.waiting_for.clear();
        self.order = None;
        self.approvals.clear();
        self.progress = Progress::Writing { failures: 0 };
        if !self.is_marked {
            // Nothing was written, so there is no mark to remove.
            let (Phase::RollingBack(reason) | Phase::Aborting(reason)) = self.phase.clone() else {
                return Vec::new();
            };
            return self.end(Phase::Aborted(reason), now);
        }
        self.write()
    }

    pub(super) fn end(&mut self, phase: Phase, now: Timestamp) -> Vec<Action> {
        let (kind, text) = match &phase {
            Phase::Finished => (Kind::Finished, String::new()),
            Phase::RolledBack(reason) => (Kind::RolledBack, reason.clone()),
            Phase::Aborted(reason) => (Kind::Aborted, reason.clone()),
            _ => return Vec::new(),
        };
        self.record(now, kind, text);
        self.phase = phase;
        self.waiting_for.clear();
        // What only a running rollout needs isn't kept.
        self.baseline.clear();
        self.seen.clear();
        Vec::new()
    }

    pub(super) fn pause(&mut self, reason: PauseReason, now: Timestamp) -> Vec<Action> {
        self.record(now, Kind::Paused, reason.to_string());
        self.phase = Phase::Paused(reason);
        self.waiting_for.clear();
        Vec::new()
    }
}
