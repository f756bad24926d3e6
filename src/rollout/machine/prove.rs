//! Proofs that sidecars have the key.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Action;
use crate::{
    model::Span,
    rollout::{
        fleet::FleetView,
        plan::Step,
        state::{Kind, Progress, State},
    },
};

impl State {
    pub(super) fn prove(&mut self, fleet: &FleetView, within: Span, now: Timestamp) -> Vec<Action> {
        let Progress::Proving { proved } = &self.progress else {
            return Vec::new();
        };
        let exempt = &self.plan.strategy.max_unavailable;
        let waits_for = |name: &&String| !proved.contains(*name) && !exempt.contains(name);
        let mut sidecars: Vec<String> = fleet
            .answering()
            .map(|(name, _)| name)
            .filter(|name| !proved.contains(*name))
            .cloned()
            .collect();
        let missing: Vec<String> = fleet
            .sidecars
            .iter()
            .filter(|(name, _)| waits_for(name))
            .filter_map(|(name, view)| {
                Some(format!("{name} did not answer: {}", view.as_ref().err()?))
            })
            .collect();
        if !missing.is_empty() {
            return self.wait_or_fail(missing, within, now);
        }
        sidecars.sort_unstable();
        match &self.version {
            Some(version) if !sidecars.is_empty() => vec![Action::Prove {
                version: version.version,
                sidecars,
            }],
            _ if proved.is_empty() => {
                self.wait_or_fail(vec!["no sidecar answered".into()], within, now)
            }
            _ => self.advance(now),
        }
    }

    pub(super) fn proved(
        &mut self,
        proofs: BTreeMap<String, Result<(), String>>,
        now: Timestamp,
    ) -> Vec<Action> {
        let (Step::Prove { within }, Progress::Proving { proved }) =
            (self.present().clone(), &mut self.progress)
        else {
            return Vec::new();
        };
        let exempt = &self.plan.strategy.max_unavailable;
        let mut missing = Vec::new();
        for (sidecar, proof) in proofs {
            match proof {
                Ok(()) => drop(proved.insert(sidecar)),
                Err(_) if exempt.contains(&sidecar) => {}
                Err(reason) => missing.push(format!("{sidecar}: {reason}")),
            }
        }
        let count = proved.len() as u64;
        if missing.is_empty() {
            self.record(now, Kind::Proved(count), "");
            return self.advance(now);
        }
        self.wait_or_fail(missing, within, now)
    }
}
