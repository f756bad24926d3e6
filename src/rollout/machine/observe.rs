//! What the answers of sidecars and location mean for the present step.

use jiff::Timestamp;

use super::{Action, LOOK, Observation, SHOWN, after, baseline, shortened};
use crate::{
    keyring::{WaveSelector, primary_at},
    model::{Span, Wave},
    rollout::{
        fleet::FleetView,
        plan::Step,
        state::{Kind, PauseReason, Phase, Progress, State},
        waiting,
    },
};

impl State {
    pub(super) fn observed(&mut self, observation: &Observation, now: Timestamp) -> Vec<Action> {
        if let Phase::RollingBack(reason) = &self.phase {
            let reason = reason.clone();
            return self.observed_rollback(observation, reason, now);
        }
        if self.phase != Phase::Running {
            return Vec::new();
        }
        if let Some(reason) = self.contradiction(observation, now) {
            return self.halt(reason, now);
        }
        let fleet = &observation.fleet;
        match self.present().clone() {
            Step::Distribute { within } => {
                let missing = waiting::for_version(self, fleet);
                self.converge(fleet, &WaveSelector::Every, missing, within, now)
            }
            Step::Prove { within } => self.prove(fleet, within, now),
            Step::Activate { wave, within } if self.progress == Progress::Preparing => {
                self.prepare_activation(fleet, &wave, within, now)
            }
            Step::Activate { wave, within } => {
                let missing = waiting::for_primary(self, fleet, &wave);
                self.converge(fleet, &wave, missing, within, now)
            }
            Step::Replace { within, .. } => {
                let every = &WaveSelector::Every;
                let missing = waiting::for_primary(self, fleet, every);
                self.converge(fleet, every, missing, within, now)
            }
            Step::Soak { wave, soak } => {
                let verdict = self.judge(fleet, &wave, &soak.analysis, now);
                self.soaked(verdict, now)
            }
            Step::Observe { within } => self.observed_use(observation, within, now),
            Step::Wait => self.await_destruction(observation, now),
            _ => Vec::new(),
        }
    }

    /// Returns what shows that someone else changed what this rollout relies on.
    pub(super) fn contradiction(
        &self,
        observation: &Observation,
        now: Timestamp,
    ) -> Option<String> {
        let Ok(manifest) = &observation.manifest else {
            // The location is unavailable, which steps wait for.
            return None;
        };
        let own = manifest.id.to_string();
        let exempt = &self.plan.strategy.max_unavailable;
        for (name, sidecar) in observation.fleet.answering() {
            // An emergency waits for no one, and believes no single sidecar.
            if !self.plan.can_roll_back() || exempt.contains(name) || sidecar.keyring_id != own {
                continue;
            }
            if sidecar.generation > manifest.generation {
                return Some(format!(
                    "{name} serves generation {}, and the location has {}: it went back; see \
                     `keyring recover`",
                    sidecar.generation, manifest.generation
                ));
            }
        }
        if !self.is_marked {
            return None;
        }
        let active = manifest.rollout.as_ref().map(|mark| mark.id);
        // A compromise by hand, or its own replacement, ends the mark of an emergency.
        let is_expected = !self.plan.can_roll_back() && active.is_none();
        if active != Some(self.id) && !is_expected {
            return Some(format!(
                "generation {} no longer carries this rollout: it was changed by hand",
                manifest.generation
            ));
        }
        let version = self.version.as_ref()?.version;
        let is_flagged = manifest
            .version(version)
            .is_none_or(|found| found.compromised);
        if is_flagged {
            return Some(format!("version {version} was marked as compromised"));
        }
        let wave = self.activated_wave()?;
        let primary = primary_at(&manifest.activations, now, &wave);
        (primary != Some(version)).then(|| {
            format!("wave {wave} was given another primary by hand, in place of version {version}")
        })
    }

    /// Returns the wave that was activated last, while its soak lasts.
    pub(super) fn activated_wave(&self) -> Option<Wave> {
        match self.present() {
            Step::Soak { wave, .. } => Some(wave.clone()),
            _ => None,
        }
    }

    /// Notes what sidecars have counted, then activates.
    pub(super) fn prepare_activation(
        &mut self,
        fleet: &FleetView,
        wave: &WaveSelector,
        within: Span,
        now: Timestamp,
    ) -> Vec<Action> {
        // A sidecar that can't decrypt yet must not meet the version first in live traffic.
        let missing = waiting::before_activation(self, fleet, wave);
        if !missing.is_empty() {
            return self.wait_or_fail(missing, within, now);
        }
        self.baseline = fleet
            .answering()
            .map(|(name, sidecar)| (name.clone(), baseline(sidecar)))
            .collect();
        self.write()
    }

    pub(super) fn converge(
        &mut self,
        fleet: &FleetView,
        wave: &WaveSelector,
        missing: Vec<String>,
        within: Span,
        now: Timestamp,
    ) -> Vec<Action> {
        if missing.is_empty() {
            let count = fleet.of(wave).count() as u64;
            self.record(now, Kind::Converged(count), "");
            return self.advance(now);
        }
        let is_late = now >= after(self.entered_at, within);
        if is_late && !self.plan.can_roll_back() {
            // In an emergency, sidecars that lag are named, and nothing waits for them: they fetch
            // a version that they lack when they meet it (I2).
            self.record(now, Kind::Anomaly, shortened(&missing));
            return self.advance(now);
        }
        self.wait_or_fail(missing, within, now)
    }

    pub(super) fn wait_or_fail(
        &mut self,
        missing: Vec<String>,
        within: Span,
        now: Timestamp,
    ) -> Vec<Action> {
        if now >= after(self.entered_at, within) {
            return self.fail(format!("not within {within}: {}", shortened(&missing)), now);
        }
        self.waiting_for = missing.into_iter().take(SHOWN).collect();
        vec![self.poll(now)]
    }

    pub(super) fn observed_use(
        &mut self,
        observation: &Observation,
        within: Option<Span>,
        now: Timestamp,
    ) -> Vec<Action> {
        // The ledger remembers those that have joined a hub.
        let dialled = observation.fleet.answering();
        for (name, _) in dialled.filter(|(_, sidecar)| !sidecar.is_joined) {
            self.seen.insert(name.clone(), now);
        }
        let missing = waiting::for_disuse(self, observation, now);
        if missing.is_empty() {
            let count = observation.fleet.answering().count() as u64;
            self.record(now, Kind::Converged(count), "the old version is out of use");
            return self.advance(now);
        }
        if within.is_some_and(|within| now >= after(self.entered_at, within)) {
            return self.pause(PauseReason::StillUsed(shortened(&missing)), now);
        }
        self.waiting_for = missing.into_iter().take(SHOWN).collect();
        vec![self.poll(now)]
    }

    /// Waits until the replaced version may be destroyed. Meanwhile, who asks for it is named at
    /// once, and its wait begins again.
    fn await_destruction(&mut self, observation: &Observation, now: Timestamp) -> Vec<Action> {
        let demand = waiting::demand(self, observation, now);
        for name in demand.asking {
            let replaced = self.plan.replaced.version;
            let text = format!("{name} asks for version {replaced}, which is disabled");
            self.record_once(now, Kind::Anomaly, text);
        }
        let Some(from) = waiting::for_destruction(self, observation, now) else {
            return vec![self.poll(now)];
        };
        if now >= from && demand.missing.is_empty() {
            return self.advance(now);
        }
        let end = format!("{from}, when its waiting time ends");
        let end = (now < from).then_some(end);
        let missing = end.into_iter().chain(demand.missing);
        self.waiting_for = missing.take(SHOWN).collect();
        let look = after(now, LOOK.max(self.plan.strategy.poll));
        let until = if now < from { look.min(from) } else { look };
        vec![Action::Sleep { until }]
    }

    pub(super) fn observed_rollback(
        &mut self,
        observation: &Observation,
        reason: String,
        now: Timestamp,
    ) -> Vec<Action> {
        if matches!(self.progress, Progress::Writing { .. }) {
            return self.write();
        }
        let missing = waiting::for_former_primaries(self, &observation.fleet);
        let within = self.plan.strategy.each_wave.within;
        let is_late = now >= after(self.entered_at, within);
        if !missing.is_empty() && !is_late {
            self.waiting_for = missing.into_iter().take(SHOWN).collect();
            return vec![self.poll(now)];
        }
        if !missing.is_empty() {
            self.record(now, Kind::Anomaly, shortened(&missing));
        }
        self.end(Phase::RolledBack(reason), now)
    }
}
