//! What follows a change that was made, or was not.

use jiff::Timestamp;

use super::{Action, LONGEST_BACKOFF, WRITE_PATIENCE, WriteFailure, Written, after, sleep};
use crate::{
    keyring::Base64,
    model::Span,
    rollout::{
        plan::Step,
        state::{Kind, Phase, Progress, State},
    },
};

impl State {
    pub(super) fn written(&mut self, written: Written, now: Timestamp) -> Vec<Action> {
        self.generation = written.generation;
        self.sha256 = Base64(written.sha256.to_vec());
        self.record(now, Kind::Wrote(written.generation), "");
        self.progress = Progress::Waiting;
        match &self.phase {
            Phase::RollingBack(_) => {
                self.entered_at = now;
                return vec![Action::Push, Action::Observe];
            }
            Phase::Aborting(reason) => {
                let reason = reason.clone();
                return self.end(Phase::Aborted(reason), now);
            }
            _ => {}
        }
        match self.present() {
            Step::BackUp { .. } => self.advance(now),
            Step::Generate { .. } | Step::Adopt { .. } => {
                self.version = written.version;
                self.advance(now)
            }
            Step::Activate { .. } | Step::Replace { .. } => {
                self.entered_at = now;
                vec![Action::Push, Action::Observe]
            }
            Step::Finish => self.end(Phase::Finished, now),
            _ => self.advance(now),
        }
    }

    pub(super) fn not_written(&mut self, failure: WriteFailure, now: Timestamp) -> Vec<Action> {
        match failure {
            WriteFailure::Unavailable(reason) => self.try_again(reason, now),
            WriteFailure::NoEvidence(reason) => self.observe_again(reason, now),
            WriteFailure::NotApproved(reason) => {
                self.record(now, Kind::Anomaly, reason);
                self.attempt += 1;
                self.enter(now)
            }
            WriteFailure::Refused(reason) | WriteFailure::Preempted(reason) if self.is_late => {
                // Nothing is left to do for a rollout that is over.
                self.record(
                    now,
                    Kind::Anomaly,
                    format!("it can't be rolled back: {reason}"),
                );
                self.phase = Phase::Finished;
                Vec::new()
            }
            // Never given up: the fleet would stay half rotated.
            WriteFailure::Refused(reason) if self.phase != Phase::Running => {
                self.try_again(reason, now)
            }
            WriteFailure::TooEarly { from, reason } => {
                self.waiting_for = vec![reason];
                // The clock that decides may differ a little from the one that wakes.
                vec![Action::Sleep {
                    until: from.max(after(now, self.plan.strategy.poll)),
                }]
            }
            WriteFailure::Refused(reason) => self.fail(reason, now),
            WriteFailure::Preempted(reason) => match self.phase {
                // Someone else ended it, which was the aim.
                Phase::Aborting(_) => self.end(Phase::Aborted(reason), now),
                Phase::RollingBack(_) if !self.is_activated => {
                    self.end(Phase::RolledBack(reason), now)
                }
                _ => self.halt(reason, now),
            },
        }
    }

    /// Tries a change again after a while. A step is given up in the end; a rollback or an end is
    /// not.
    fn try_again(&mut self, reason: String, now: Timestamp) -> Vec<Action> {
        let failures = match self.progress {
            Progress::Writing { failures } => failures.saturating_add(1),
            _ => 1,
        };
        // A rollback or an end is never given up.
        let is_step = self.phase == Phase::Running;
        if is_step && now > after(self.entered_at, WRITE_PATIENCE) {
            return self.fail(format!("for {WRITE_PATIENCE}: {reason}"), now);
        }
        if failures == 1 {
            self.record(now, Kind::Retrying, reason.clone());
        }
        self.waiting_for = vec![reason];
        self.progress = Progress::Writing { failures };
        let pause = LONGEST_BACKOFF.min(1 << failures.min(6));
        vec![sleep(now, Span::from_secs(pause))]
    }

    /// Goes back to the step that collects the evidence, or waits for it.
    fn observe_again(&mut self, reason: String, now: Timestamp) -> Vec<Action> {
        let before = self.step.checked_sub(1).map(|step| &self.plan.steps[step]);
        if !matches!(before, Some(Step::Observe { .. } | Step::Wait)) {
            return self.fail(reason, now);
        }
        self.record(now, Kind::Retrying, reason);
        self.step -= 1;
        self.order = None;
        self.approvals.clear();
        self.enter(now)
    }
}
