//! What people ask for.

use jiff::Timestamp;

use super::{Action, Verb};
use crate::rollout::{
    plan::Step,
    state::{Kind, PauseReason, Phase, Progress, State},
};

/// How the entry begins that says that a request was not taken.
pub const UNSIGNED: &str = "refused to";

impl State {
    pub(super) fn asked(&mut self, verb: Verb, by: &str, now: Timestamp) -> Vec<Action> {
        if let Some(refusal) = self.refusal(verb) {
            self.record(
                now,
                Kind::Anomaly,
                format!("{by} asked for {verb}: {refusal}"),
            );
            return self.go_on_unless_over(now);
        }
        match verb {
            Verb::Pause => self.pause(PauseReason::Operator(by.into()), now),
            Verb::Resume => {
                self.record(now, Kind::Resumed, format!("by {by}"));
                self.phase = Phase::Running;
                self.resume(now)
            }
            Verb::Promote | Verb::PromoteFull => {
                self.record(now, Kind::Promoted, format!("by {by}"));
                self.skips_soaks |= verb == Verb::PromoteFull;
                self.phase = Phase::Running;
                match self.present() {
                    Step::Soak { .. } | Step::Pause { .. } => self.advance(now),
                    _ => self.resume(now),
                }
            }
            Verb::Retry => {
                // What failed before isn't held against it again.
                self.baseline.clear();
                self.record(now, Kind::Resumed, format!("retried by {by}"));
                self.attempt += 1;
                self.phase = Phase::Running;
                self.enter(now)
            }
            Verb::Abort => {
                self.phase = Phase::Aborting(format!("by {by}"));
                self.begin_ending(now)
            }
            Verb::Rollback => {
                self.is_late = self.phase == Phase::Finished;
                self.roll_back(format!("by {by}"), now)
            }
        }
    }

    /// Says that a request was not taken, once for each attempt of a step: others may send as many
    /// as they like.
    pub(super) fn unsigned(&mut self, verb: Verb, now: Timestamp) -> Vec<Action> {
        let text = format!("{UNSIGNED} {verb}: no requester of the signer has signed it");
        self.record_once(now, Kind::Anomaly, text);
        self.go_on_unless_over(now)
    }

    /// Goes on after a pause. A soak begins again, because the wave was not watched meanwhile.
    pub(super) fn resume(&mut self, now: Timestamp) -> Vec<Action> {
        match (self.present(), &self.progress) {
            (Step::Soak { .. }, _) => {
                self.baseline.clear();
                self.enter(now)
            }
            (Step::Observe { .. } | Step::Prove { .. } | Step::Pause { .. }, _) => self.enter(now),
            (_, Progress::Writing { .. }) => {
                self.entered_at = now;
                self.write()
            }
            _ => {
                // What was waited for has its whole time again.
                self.entered_at = now;
                vec![Action::Observe]
            }
        }
    }

    pub(super) fn go_on_unless_over(&mut self, now: Timestamp) -> Vec<Action> {
        if self.phase.is_over() {
            return Vec::new();
        }
        self.go_on(now)
    }

    /// Returns why a verb makes no sense now.
    pub fn refusal(&self, verb: Verb) -> Option<String> {
        let phase = &self.phase;
        let is_ending = matches!(phase, Phase::RollingBack(_) | Phase::Aborting(_));
        let needs_approval = *phase == Phase::Paused(PauseReason::Approval);
        match verb {
            Verb::Rollback if !self.plan.can_roll_back() => {
                Some("there is no way back to a compromised version; roll forward".into())
            }
            Verb::Rollback if *phase == Phase::Finished => None,
            _ if phase.is_over() => Some(format!("the rollout {phase}")),
            Verb::Abort if matches!(phase, Phase::RollingBack(_)) => None,
            _ if is_ending => Some(format!("the rollout {phase}")),
            Verb::Pause if *phase != Phase::Running => Some(format!("the rollout {phase}")),
            Verb::Resume if !matches!(phase, Phase::Paused(_)) => {
                Some(format!("the rollout {phase}"))
            }
            Verb::Resume if *phase == Phase::Paused(PauseReason::Planned) => {
                Some("the plan pauses here; `rollout promote` goes on".into())
            }
            Verb::Resume | Verb::Promote | Verb::PromoteFull if needs_approval => {
                Some("it needs approvals (`rollout approve`)".into())
            }
            Verb::Promote | Verb::PromoteFull if matches!(phase, Phase::Halted(_)) => {
                Some("a step failed; retry it, roll back or abort".into())
            }
            Verb::Promote if !matches!(phase, Phase::Paused(_)) && !self.is_soaking() => {
                Some(format!("the rollout {phase}, and neither soaks nor pauses"))
            }
            Verb::Retry if !matches!(phase, Phase::Halted(_)) => {
                Some(format!("the rollout {phase}"))
            }
            _ => None,
        }
    }

    pub(super) fn is_soaking(&self) -> bool {
        matches!(self.present(), Step::Soak { .. } | Step::Pause { .. })
    }
}
