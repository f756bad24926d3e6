//! Orders and their approvals.

use jiff::{Timestamp, ToSpan};

use super::{APPROVAL_DAYS, Action};
use crate::rollout::{
    order::{Approval, Base, Order},
    plan::{NamedVersion, Step},
    state::{Kind, PauseReason, Phase, State},
};

impl State {
    pub(super) fn await_approval(&mut self, action: &str, now: Timestamp) -> Vec<Action> {
        let concerns_replaced =
            matches!(self.present(), Step::Disable { .. } | Step::Destroy { .. });
        let concerned = if concerns_replaced {
            Some(&self.plan.replaced)
        } else {
            self.version.as_ref()
        };
        let Some(NamedVersion { version, key }) = concerned.cloned() else {
            return self.halt("there is no version to approve".into(), now);
        };
        let next = self.plan.steps.get(self.step + 1);
        let wave = next.and_then(|step| match step {
            Step::Activate { wave, .. } => Some(wave.clone()),
            _ => None,
        });
        let mark = self.mark();
        self.order = Some(Order {
            keyring: self.plan.keyring_id,
            rollout: self.id,
            plan: mark.plan,
            step: mark.step,
            attempt: mark.attempt,
            action: action.into(),
            version,
            key,
            wave,
            base: Base {
                generation: self.generation,
                sha256: self.sha256.clone(),
            },
            not_after: now
                .checked_add((APPROVAL_DAYS * 24).hours())
                .unwrap_or(Timestamp::MAX),
            requester: self.plan.requester.clone(),
        });
        self.approvals.clear();
        let mut actions = self.pause(PauseReason::Approval, now);
        actions.extend(self.sleep_until_void());
        actions
    }

    pub(super) fn sleep_until_void(&self) -> Vec<Action> {
        let void = self.order.as_ref().map(|order| order.not_after);
        let wake = void.and_then(|time| time.checked_add(1.second()).ok());
        wake.map(|until| Action::Sleep { until })
            .into_iter()
            .collect()
    }

    pub(super) fn approved(&mut self, approval: Approval, now: Timestamp) -> Vec<Action> {
        let (Phase::Paused(PauseReason::Approval), Some(order), Some(rule)) = (
            &self.phase,
            self.order.clone(),
            self.plan.strategy.approvals.clone(),
        ) else {
            return self.go_on_unless_over(now);
        };
        let before = order.approvers(&rule, &self.approvals, now).len();
        let mut approvals = self.approvals.clone();
        approvals.push(approval);
        let counted = order.approvers(&rule, &approvals, now);
        if counted.len() == before {
            return self.sleep_until_void();
        }
        self.approvals = approvals;
        if let Some(approver) = counted.last() {
            let text = format!("{approver}, {} of {}", counted.len(), rule.required);
            self.record(now, Kind::Approved, text);
        }
        if counted.len() < rule.required as usize {
            return self.sleep_until_void();
        }
        self.phase = Phase::Running;
        match self.present() {
            Step::Pause { .. } => self.advance(now),
            _ => self.write(),
        }
    }
}
