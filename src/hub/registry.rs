//! The instances that have reported: whose they are, and what they said last.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use super::report::Received;
use crate::{
    http::problem::Problem,
    ledger::KEEP_CLOSED,
    model::Span,
    wire::{Code, status::Status},
};

/// Names an instance: 16 random bytes that its process drew.
pub(super) type InstanceId = [u8; 16];

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is the instance's last one now.
    Taken,
    /// A later one had been taken, or the same.
    Known,
    Refused(Refusal),
}

impl Outcome {
    /// Whether the report is by the key of its instance, whatever became of it.
    pub(super) fn is_by_its_key(self) -> bool {
        !matches!(self, Self::Refused(Refusal::OtherKey | Refusal::TooMany))
    }
}

/// Why a report with a valid signature changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The instance's first report had another key.
    OtherKey,
    /// It has the sequence of another report, or another name or workload than the first.
    Conflict,
    /// The instance's last report said that it ends.
    Ended,
    /// There is no room for another instance.
    TooMany,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (code, detail) = match refusal {
            Refusal::OtherKey => (
                Code::OtherKey,
                "the first report of this instance was signed by another key; draw instance and \
                 key at the start of the process",
            ),
            Refusal::Conflict => (
                Code::ReportConflict,
                "another report has this sequence, or the first one had another name or workload",
            ),
            Refusal::Ended => (
                Code::ReportConflict,
                "this instance has sent its final report; a new process draws a new instance",
            ),
            Refusal::TooMany => (
                Code::Overloaded,
                "too many instances have come and gone; raise `limits.instances` of the hub",
            ),
        };
        let problem = Self::new(code, detail);
        match refusal {
            Refusal::TooMany => problem.retry_after(60),
            _ => problem,
        }
    }
}

/// An instance that has not ended.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) id: InstanceId,
    pub(super) name: String,
    pub(super) workload: String,
    /// When its last report was received.
    pub(super) received_at: Timestamp,
    /// The highest barrier that it has answered; 0 for none.
    pub(super) answered: u64,
    pub(super) status: Status,
}

/// How many instances are remembered, as a multiple of those that report: those that have ended,
/// or were silent for an hour, are remembered longer than they count.
const REMEMBERED: usize = 4;

/// The instances that have reported.
pub(super) struct Registry {
    state: Mutex<State>,
}

struct State {
    entries: BTreeMap<InstanceId, Entry>,
    most: usize,
    barrier: u64,
}

struct Entry {
    key: [u8; 32],
    sequence: u64,
    digest: [u8; 32],
    has_ended: bool,
    instance: Instance,
}

impl Entry {
    /// Whether it can't report any more, or hasn't for `lost_after`.
    fn is_over(&self, lost_after: Span, now: Timestamp) -> bool {
        let kept = if self.has_ended {
            KEEP_CLOSED
        } else {
            lost_after
        };
        let end = self.instance.received_at.checked_add(kept.0);
        end.is_ok_and(|end| end <= now)
    }
}

impl Registry {
    /// Creates a registry for `instances` that report. Numbers of barriers begin with the time, so
    /// that an answer to a former process of the hub answers none of them.
    pub(super) fn new(instances: usize, now: Timestamp) -> Self {
        Self {
            state: Mutex::new(State {
                entries: BTreeMap::new(),
                most: instances.saturating_mul(REMEMBERED),
                barrier: u64::try_from(now.as_millisecond()).unwrap_or_default(),
            }),
        }
    }

    /// Forgets instances that have ended a while ago, or were silent for `lost_after`.
    pub(super) fn forget(&self, lost_after: Span, now: Timestamp) {
        let mut state = self.lock();
        state
            .entries
            .retain(|_, entry| !entry.is_over(lost_after, now));
    }

    /// Returns the name and workload of an instance that has reported.
    pub(super) fn find(&self, id: &InstanceId) -> Option<(String, String)> {
        let state = self.lock();
        let instance = &state.entries.get(id)?.instance;
        Some((instance.name.clone(), instance.workload.clone()))
    }

    /// Takes reports, in their order, all or none of them durably.
    pub(super) fn take(&self, reports: &[Received]) -> Vec<Outcome> {
        let mut state = self.lock();
        reports
            .iter()
            .map(|received| state.take(received))
            .collect()
    }

    /// Returns up to `limit` instances that have not ended, by name and id, after `after`.
    pub(super) fn open(&self, after: Option<&(String, InstanceId)>, limit: usize) -> Vec<Instance> {
        let state = self.lock();
        let mut open: Vec<&Instance> = state
            .entries
            .values()
            .filter(|entry| !entry.has_ended)
            .map(|entry| &entry.instance)
            .filter(|instance| {
                let position = (&instance.name, &instance.id);
                after.is_none_or(|(name, id)| position > (name, id))
            })
            .collect();
        open.sort_by_key(|instance| (&instance.name, &instance.id));
        open.truncate(limit);
        open.into_iter().cloned().collect()
    }

    /// Returns the barrier of this process that a report answers.
    pub(super) fn answer(&self, answers: Option<u64>) -> Option<u64> {
        self.lock().answer(answers)
    }

    /// Draws the number of a barrier: higher than any before.
    pub(super) fn next_barrier(&self) -> u64 {
        let mut state = self.lock();
        state.barrier += 1;
        state.barrier
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the barrier that a report answers. One that this process hasn't set is another hub's.
    fn answer(&self, answers: Option<u64>) -> Option<u64> {
        answers.filter(|answers| *answers <= self.barrier)
    }

    fn take(&mut self, received: &Received) -> Outcome {
        let report = &received.report;
        let mut answered = self.answer(report.answers).unwrap_or(0);
        if let Some(known) = self.entries.get(&report.instance) {
            if known.key != report.key {
                return Outcome::Refused(Refusal::OtherKey);
            }
            let instance = &known.instance;
            let is_same = known.digest == received.digest;
            if report.sequence < known.sequence || report.sequence == known.sequence && is_same {
                return Outcome::Known;
            }
            if (&instance.name, &instance.workload) != (&report.name, &report.workload)
                || report.sequence == known.sequence
            {
                return Outcome::Refused(Refusal::Conflict);
            }
            if known.has_ended {
                return Outcome::Refused(Refusal::Ended);
            }
            answered = answered.max(instance.answered);
        } else if self.entries.len() >= self.most {
            return Outcome::Refused(Refusal::TooMany);
        }
        let instance = Instance {
            id: report.instance,
            name: report.name.clone(),
            workload: report.workload.clone(),
            received_at: received.at,
            answered,
            status: if report.is_final {
                // No one asks for it any more.
                without_details(&report.status)
            } else {
                report.status.clone()
            },
        };
        let entry = Entry {
            key: report.key,
            sequence: report.sequence,
            digest: received.digest,
            has_ended: report.is_final,
            instance,
        };
        self.entries.insert(report.instance, entry);
        Outcome::Taken
    }
}

fn without_details(status: &Status) -> Status {
    Status {
        keks: Vec::new(),
        keyrings: Vec::new(),
        secrets: Vec::new(),
        renders: Vec::new(),
        tls: Vec::new(),
        pending: Vec::new(),
        config: None,
        audit: None,
        ..status.clone()
    }
}
