//! How a step begins, and the change that it orders.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Action, Authorization, Write};
use crate::rollout::{
    plan::Step,
    state::{Kind, PauseReason, Phase, Progress, State},
    strategy::Until,
};

impl State {
    /// Begins the present attempt of the present step.
    pub(super) fn enter(&mut self, now: Timestamp) -> Vec<Action> {
        self.entered_at = now;
        self.waiting_for.clear();
        self.progress = Progress::Waiting;
        let step = self.present().clone();
        let is_skipped = match &step {
            Step::Soak { .. } => self.skips_soaks,
            // One person doesn't replace the approvals of others.
            Step::Pause { until } => self.skips_soaks && *until != Until::Approval,
            _ => false,
        };
        if is_skipped {
            return self.advance(now);
        }
        self.record(now, Kind::Began, step.describe());
        match step {
            Step::Distribute { .. } => vec![Action::Push, Action::Observe],
            Step::Prove { .. } => {
                self.progress = Progress::Proving {
                    proved: BTreeSet::new(),
                };
                vec![Action::Observe]
            }
            Step::Activate { .. } => {
                self.progress = Progress::Preparing;
                vec![Action::Observe]
            }
            Step::Soak { .. } => {
                self.progress = Progress::Soaking {
                    since: now,
                    inconclusive: 0,
                };
                vec![Action::Observe]
            }
            Step::Pause { until } => match until {
                Until::Promoted => self.pause(PauseReason::Planned, now),
                Until::Approval => self.await_approval("continue", now),
                Until::Time(until) => vec![Action::Sleep { until }],
            },
            Step::Observe { .. } | Step::Wait => vec![Action::Observe],
            Step::Disable { approval: true } => self.await_approval("disable", now),
            Step::Destroy { approval: true } => self.await_approval("destroy", now),
            Step::Generate { .. } if self.version.is_some() => self.advance(now),
            Step::BackUp { .. }
            | Step::Generate { .. }
            | Step::Adopt { .. }
            | Step::Replace { .. }
            | Step::Disable { .. }
            | Step::Destroy { .. }
            | Step::Finish => self.write(),
        }
    }

    /// Goes on to the next step.
    pub(super) fn advance(&mut self, now: Timestamp) -> Vec<Action> {
        self.step += 1;
        self.attempt = 1;
        self.order = None;
        self.approvals.clear();
        self.enter(now)
    }

    /// Orders the change of the present step or phase.
    pub(super) fn write(&mut self) -> Vec<Action> {
        if !matches!(self.progress, Progress::Writing { .. }) {
            self.progress = Progress::Writing { failures: 0 };
        }
        // From now on, the manifest may show the change, whether or not the runner learns of it.
        let change = self.change();
        match &change {
            Some(Write::Generate { .. } | Write::Adopt { .. }) => self.is_marked = true,
            Some(Write::Activate { .. } | Write::Replace { .. }) => self.is_activated = true,
            _ => {}
        }
        change.map(Action::Write).into_iter().collect()
    }

    /// Returns the change of the present step or phase.
    pub(super) fn change(&self) -> Option<Write> {
        let version = self.version.as_ref().map(|version| version.version);
        match &self.phase {
            // Whether or not this state knows of an activation: it may be older than the manifest.
            Phase::RollingBack(_) => {
                return Some(Write::RollBack {
                    former: self.plan.former_primaries(),
                    version,
                });
            }
            Phase::Aborting(_) => return Some(Write::End),
            _ => {}
        }
        let authorization = self.order.clone().map(|order| {
            Box::new(Authorization {
                order,
                approvals: self.approvals.clone(),
            })
        });
        let replaced = self.plan.replaced.version;
        match self.present() {
            Step::BackUp { to } => Some(Write::BackUp(to.clone())),
            Step::Generate { keks } => Some(Write::Generate {
                keks: keks.clone(),
                preempts: !self.plan.can_roll_back(),
            }),
            Step::Adopt { version } => Some(Write::Adopt { version: *version }),
            Step::Activate { wave, .. } => Some(Write::Activate {
                version: version?,
                wave: wave.clone(),
            }),
            Step::Replace { compromised, .. } => Some(Write::Replace {
                compromised: *compromised,
                version: version?,
            }),
            Step::Disable { .. } => Some(Write::Disable {
                version: replaced,
                authorization,
            }),
            Step::Destroy { .. } => Some(Write::Destroy {
                version: replaced,
                authorization,
            }),
            Step::Finish => Some(Write::End),
            Step::Distribute { .. }
            | Step::Prove { .. }
            | Step::Soak { .. }
            | Step::Pause { .. }
            | Step::Observe { .. }
            | Step::Wait => None,
        }
    }

    /// Does again what may have been cut off, or what was waited for.
    pub(super) fn go_on(&mut self, now: Timestamp) -> Vec<Action> {
        match &self.phase {
            Phase::Paused(PauseReason::Approval) => {
                let is_void = self
                    .order
                    .as_ref()
                    .is_some_and(|order| now > order.not_after);
                if !is_void {
                    return self.sleep_until_void();
                }
                self.attempt += 1;
                self.phase = Phase::Running;
                self.enter(now)
            }
            Phase::Paused(_) | Phase::Halted(_) => Vec::new(),
            Phase::Running
                if matches!(
                    self.present(),
                    Step::Pause {
                        until: Until::Time(_)
                    }
                ) =>
            {
                self.wait_for_time(now)
            }
            _ if matches!(self.progress, Progress::Writing { .. }) => self.write(),
            _ => vec![Action::Observe],
        }
    }

    pub(super) fn wait_for_time(&mut self, now: Timestamp) -> Vec<Action> {
        match self.present() {
            Step::Pause {
                until: Until::Time(until),
            } if now < *until => vec![Action::Sleep { until: *until }],
            _ => self.advance(now),
        }
    }
}
