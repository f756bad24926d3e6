//! What people ask for.

use jiff::Timestamp;

use super::{Action, Verb};
use crate::rollout::{
    plan::Step,
    state::{Kind, PauseReason, Phase, Progress, State},
};

/// Begins the entry which says that no requester has signed a verb.
const UNSIGNED: &str = "refused to";

impl State {
    /// Returns what became of a verb that `by` asked for when the state was `before`, once a runner
    /// has taken the request.
    ///
    /// # Errors
    /// Why the rollout didn't do it.
    pub fn answer(&self, before: &Self, verb: Verb, by: &str) -> Result<(), String> {
        if self.id != before.id {
            return Err(format!("rollout {} began meanwhile", self.id));
        }
        let new = &self.entries[before.entries.len().min(self.entries.len())..];
        let has = |kind: &Kind| new.iter().any(|entry| entry.kind == *kind);
        let is_done = match verb {
            Verb::Pause => has(&Kind::Paused),
            Verb::Resume | Verb::Retry => has(&Kind::Resumed),
            Verb::Promote | Verb::PromoteFull => has(&Kind::Promoted),
            Verb::Abort => matches!(self.phase, Phase::Aborting(_) | Phase::Aborted(_)),
            Verb::Rollback => has(&Kind::RollingBack),
        };
        if is_done {
            return Ok(());
        }
        let refusals = [
            format!("{UNSIGNED} {verb}:"),
            format!("{by} asked for {verb}:"),
        ];
        let is_refusal = |text: &str| refusals.iter().any(|start| text.starts_with(start));
        // One that was given before is not repeated.
        let refusal = self
            .entries
            .iter()
            .rev()
            .find(|entry| is_refusal(&entry.text));
        Err(refusal.map_or_else(
            || {
                "the request was dropped, because the rollout had gone on before, or the runner \
                 can't read it; see `rollout status`"
                    .into()
            },
            |entry| entry.text.clone(),
        ))
    }

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

    pub(super) fn unsigned(&mut self, verb: Verb, now: Timestamp) -> Vec<Action> {
        let text = format!("{UNSIGNED} {verb}: no requester of the signer has signed it");
        self.record_once(now, Kind::Anomaly, text);
        self.go_on_unless_over(now)
    }

    pub(super) fn malformed(&mut self, now: Timestamp) -> Vec<Action> {
        let text = "passed over a request that can't be read; ask with the runner's build";
        self.record_once(now, Kind::Anomaly, text.into());
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
