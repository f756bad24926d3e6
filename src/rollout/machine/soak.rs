//! Watching a wave after its activation.

use jiff::Timestamp;

use super::{Action, after, baseline};
use crate::{
    model::Wave,
    rollout::{
        analysis::{Analysis, Verdict},
        fleet::{Counters, FleetView},
        plan::Step,
        state::{Kind, PauseReason, Progress, State},
    },
};

impl State {
    pub(super) fn judge(
        &mut self,
        fleet: &FleetView,
        wave: &Wave,
        analysis: &Analysis,
        now: Timestamp,
    ) -> Verdict {
        let exempt = &self.plan.strategy.max_unavailable;
        let mut expected = self.baseline.keys().filter(|name| !exempt.contains(name));
        let silent = expected.find_map(|name| match fleet.sidecars.get(name) {
            None => Some(format!("{name} is no longer in the fleet")),
            Some(Err(reason)) => Some(format!("{name} did not answer: {reason}")),
            Some(Ok(_)) => None,
        });
        let version = self.version.as_ref().map(|version| version.version);
        let astray = fleet.answering().find_map(|(name, sidecar)| {
            let is_astray = sidecar.wave == *wave && sidecar.encrypting != version;
            let with = sidecar
                .encrypting
                .map_or("nothing".into(), |found| found.to_string());
            (is_astray && !exempt.contains(name))
                .then(|| format!("{name} encrypts with {with} again"))
        });
        let (in_wave, elsewhere) = self.counted(fleet, wave);
        let verdict = [analysis.judge(&in_wave), analysis.judge(&elsewhere)]
            .into_iter()
            .find(|verdict| matches!(verdict, Verdict::Fail(_)));
        if let Some(failure) = verdict {
            return failure;
        }
        // Neither speaks for or against the version: a KEK or a sidecar may be down.
        match (silent.or(astray), &self.progress, self.present()) {
            (Some(reason), ..) => Verdict::Inconclusive(reason),
            (None, Progress::Soaking { since, .. }, Step::Soak { soak, .. })
                if now >= after(*since, soak.time) =>
            {
                for result in analysis.dry_runs(&in_wave) {
                    self.record(now, Kind::Anomaly, format!("dry run: {result}"));
                }
                analysis.conclude(&in_wave)
            }
            _ => Verdict::Pass,
        }
    }

    /// Sums up what the wave's sidecars, and the others, counted since the activation.
    pub(super) fn counted(&mut self, fleet: &FleetView, wave: &Wave) -> (Counters, Counters) {
        let (mut in_wave, mut elsewhere) = (Counters::default(), Counters::default());
        for (name, sidecar) in fleet.answering() {
            // One that is new counted before it was known for something else.
            let known = self
                .baseline
                .entry(name.clone())
                .or_insert_with(|| baseline(sidecar));
            let counted = if known.instance == sidecar.instance {
                sidecar.counters.since(&known.counters)
            } else {
                sidecar.counters.clone()
            };
            if sidecar.wave == *wave {
                in_wave.add(&counted);
            } else {
                elsewhere.add(&counted);
            }
        }
        (in_wave, elsewhere)
    }

    pub(super) fn soaked(&mut self, verdict: Verdict, now: Timestamp) -> Vec<Action> {
        let (
            Step::Soak { soak, .. },
            Progress::Soaking {
                since,
                inconclusive,
            },
        ) = (self.present().clone(), self.progress.clone())
        else {
            return Vec::new();
        };
        let is_over = now >= after(since, soak.time);
        match verdict {
            Verdict::Fail(reason) => {
                self.record(now, Kind::Verdict(Verdict::Fail(reason.clone())), "");
                self.fail(reason, now)
            }
            Verdict::Pass if is_over => {
                self.record(now, Kind::Verdict(Verdict::Pass), "");
                self.advance(now)
            }
            Verdict::Pass => {
                self.progress = Progress::Soaking {
                    since,
                    inconclusive: 0,
                };
                self.waiting_for.clear();
                vec![self.poll(now)]
            }
            Verdict::Inconclusive(reason) => {
                let rounds = inconclusive + 1;
                if is_over || rounds > soak.analysis.inconclusive_limit {
                    let verdict = Verdict::Inconclusive(reason.clone());
                    self.record(now, Kind::Verdict(verdict), "");
                    return self.pause(PauseReason::Inconclusive(reason), now);
                }
                self.progress = Progress::Soaking {
                    since,
                    inconclusive: rounds,
                };
                self.waiting_for = vec![reason];
                vec![self.poll(now)]
            }
        }
    }
}
