//! The state machine: `step(state, event, now) -> (state, actions)`. It does nothing itself.

mod action;
mod approval;
mod ending;
mod event;
mod observe;
mod prove;
mod soak;
mod steps;
mod verbs;
mod writes;

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use self::{
    action::{Action, Authorization, Write},
    event::{Event, Observation, Verb, WriteFailure, Written},
};
use super::{
    assess::Finding,
    fleet::SidecarView,
    plan::Plan,
    state::{Baseline, Kind, Phase, Progress, State},
};
use crate::{crypto::RolloutId, model::Span};

/// How long a change is tried again if its location or KEK is unavailable.
const WRITE_PATIENCE: Span = Span::from_secs(15 * 60);
/// The longest time between two tries, in seconds.
const LONGEST_BACKOFF: u64 = 60;
/// How long an order can be approved.
const APPROVAL_DAYS: i64 = 7;
/// How often a version that waits to be destroyed is looked after.
const LOOK: Span = Span::from_secs(10 * 60);
/// How many reasons are kept of what a step waits for.
const SHOWN: usize = 10;

/// Begins a rollout.
pub fn begin(
    plan: Plan,
    findings: Vec<Finding>,
    id: RolloutId,
    now: Timestamp,
) -> (State, Vec<Action>) {
    let mut state = State {
        id,
        phase: Phase::Running,
        step: 0,
        attempt: 1,
        entered_at: now,
        progress: Progress::Preparing,
        version: None,
        generation: plan.base.generation,
        sha256: plan.base.sha256.clone(),
        is_marked: false,
        is_activated: false,
        skips_soaks: false,
        baseline: BTreeMap::new(),
        seen: BTreeMap::new(),
        is_late: false,
        waiting_for: Vec::new(),
        order: None,
        approvals: Vec::new(),
        findings,
        entries: Vec::new(),
        plan,
    };
    let text = format!("by {}", state.plan.requester.name);
    state.record(now, Kind::Started, text);
    let actions = state.enter(now);
    (state, actions)
}

/// Takes an event, and returns the next state and what is to be done.
pub fn step(mut state: State, event: Event, now: Timestamp) -> (State, Vec<Action>) {
    let actions = match event {
        Event::Asked { verb, by } => state.asked(verb, &by, now),
        Event::Approved(approval) => state.approved(approval, now),
        Event::Unsigned(verb) => state.unsigned(verb, now),
        Event::Malformed => state.malformed(now),
        _ if state.phase.is_over() => Vec::new(),
        // Nothing was watched meanwhile: a soak begins again, and what was waited for has its whole
        // time again.
        Event::Resumed if state.phase == Phase::Running => state.resume(now),
        Event::Resumed | Event::Woken => state.go_on(now),
        Event::Written(written) => state.written(written, now),
        Event::NotWritten(failure) => state.not_written(failure, now),
        Event::Observed(observation) => state.observed(&observation, now),
        Event::Proved(proofs) => state.proved(proofs, now),
    };
    (state, actions)
}

impl State {
    fn poll(&self, now: Timestamp) -> Action {
        sleep(now, self.plan.strategy.poll)
    }
}

fn baseline(sidecar: &SidecarView) -> Baseline {
    Baseline {
        instance: sidecar.instance.clone(),
        counters: sidecar.counters.clone(),
    }
}

fn sleep(now: Timestamp, time: Span) -> Action {
    Action::Sleep {
        until: after(now, time),
    }
}

pub(super) fn after(time: Timestamp, span: Span) -> Timestamp {
    time.checked_add(span.0).unwrap_or(Timestamp::MAX)
}

fn shortened(items: &[String]) -> String {
    let shown = items[..items.len().min(SHOWN)].join("; ");
    match items.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
