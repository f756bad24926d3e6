//! The usage ledger of this hub, and what it says about versions.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::registry::Registry;
use crate::{
    clock::Clock,
    config::{HubSettings, Workload},
    crypto::KeyringId,
    encoding::to_hex,
    http::problem::Problem,
    keyring::Class,
    ledger::{
        self, Cause, Declared, Delivery, Gap, Ledger, Question, Superseded, Verdict, WATCHED_WITHIN,
    },
    model::{KeyringName, Span},
    wire::{
        Code,
        hub::{Barrier, EvidenceRequest, Report},
    },
};

/// How often the hub notes that it watches.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long sidecars may take to answer the barrier of a question.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The ledger of this process.
pub(super) struct Evidence {
    state: Mutex<State>,
    workloads: Vec<Workload>,
    lost_after: Span,
}

struct State {
    ledger: Ledger,
    /// The last heartbeat.
    watched_at: Timestamp,
}

impl Evidence {
    /// Begins a ledger. What was before, nothing watched; and a sidecar that was cut off then may
    /// live on unseen, until a hub that remembered it would have given it up.
    pub(super) fn new(settings: &HubSettings, now: Timestamp) -> Arc<Self> {
        let mut state = State {
            ledger: Ledger::default(),
            watched_at: now,
        };
        let lost_at = now.checked_add(settings.lost_after);
        state.add_gap(hub_down(None, lost_at.unwrap_or(Timestamp::MAX)));
        Arc::new(Self {
            state: Mutex::new(state),
            workloads: settings.workloads.clone(),
            lost_after: Span(settings.lost_after),
        })
    }

    /// Takes a report that was stored, received at `now`. `answers` is the barrier of this hub that
    /// it answers.
    pub(super) fn take(&self, report: &Report, answers: Option<u64>, now: Timestamp) {
        let mut state = self.lock();
        // The time before is over, whatever it was.
        state.watch(now);
        let delivery = Delivery {
            answers,
            ..Delivery::of(report, to_hex(&report.key), None)
        };
        // The registry has refused reports by another key.
        if let Err(error) = state.ledger.take(&delivery, now) {
            tracing::warn!(name = report.name, "{error}");
        }
    }

    /// A report of a workload was refused: what it would have said counts as a use.
    pub(super) fn miss(&self, workload: &str, now: Timestamp) {
        let is_declared = self.workloads.iter().any(|known| known.name == workload);
        // Names that no one declared could be any number.
        let workload = is_declared.then(|| workload.to_owned());
        let mut state = self.lock();
        state.watch(now);
        state.add_gap(Gap {
            until: now,
            from: None,
            workload,
            cause: Cause::Vanished,
        });
    }

    /// Answers a question, whose barrier every sidecar had the time to answer.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`]: the class is unknown.
    pub(super) fn judge(
        &self,
        request: &EvidenceRequest,
        barrier: &Barrier,
        now: Timestamp,
    ) -> Result<Verdict, Problem> {
        let class: Class = request.class.parse().map_err(|error| {
            let detail = format!("class: {error}");
            Problem::new(Code::InvalidRequest, detail)
        })?;
        let question = Question {
            keyring: KeyringId(request.id),
            version: request.version,
            class,
            quiet_period: request.quiet_period,
            destroy_after: request.destroy_after,
            encrypt_lease: request.encrypt_lease,
            lost_after: self.lost_after,
            superseded: Some(Superseded {
                at: request.superseded_at,
                generation: request.generation,
            }),
            barrier: ledger::Barrier {
                number: barrier.barrier,
                at: barrier.at,
            },
            workloads: self.declared(&request.name),
            further_uses: Vec::new(),
            statements: Vec::new(),
        };
        let mut state = self.lock();
        state.watch(now);
        Ok(ledger::judge(&state.ledger, &question))
    }

    /// The workloads that the config allows to use the keyring.
    fn declared(&self, keyring: &KeyringName) -> Vec<Declared> {
        let workloads = self.workloads.iter();
        workloads
            .filter(|workload| workload.keyrings.contains(keyring))
            .map(|workload| Declared {
                workload: workload.name.clone(),
                max_interval: workload.max_interval.map(Span),
            })
            .collect()
    }

    /// Notes that the hub watches, until `ending`, and gives up what was silent for too long.
    pub(super) async fn keep(
        self: Arc<Self>,
        registry: Arc<Registry>,
        clock: Clock,
        ending: CancellationToken,
    ) {
        let mut ticks = interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let forever = async {
            loop {
                ticks.tick().await;
                let now = clock.now();
                self.tidy(now);
                registry.forget(self.lost_after, now);
            }
        };
        ending.run_until_cancelled(forever).await;
    }

    fn tidy(&self, now: Timestamp) {
        let mut state = self.lock();
        state.watch(now);
        state.ledger.close_lost(self.lost_after, now);
        state.ledger.fold(now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A hub that was stopped or suspended, or whose clock went on without it, watched nothing.
    fn watch(&mut self, now: Timestamp) {
        let unwatched = now.duration_since(self.watched_at);
        if unwatched.unsigned_abs() > WATCHED_WITHIN {
            self.add_gap(hub_down(Some(self.watched_at), now.max(self.watched_at)));
        }
        self.watched_at = now;
    }

    /// The last one of a workload is enough: they count by their end.
    fn add_gap(&mut self, gap: Gap) {
        let gaps = &mut self.ledger.gaps;
        let same = |known: &Gap| known.workload == gap.workload;
        if gaps
            .iter()
            .any(|known| same(known) && known.until >= gap.until)
        {
            return;
        }
        gaps.retain(|known| !same(known));
        gaps.push(gap);
    }
}

/// A time in which no hub ran.
fn hub_down(from: Option<Timestamp>, until: Timestamp) -> Gap {
    Gap {
        until,
        from,
        workload: None,
        cause: Cause::HubDown,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jiff::ToSpan;

    use super::*;
    use crate::{config, ledger::Code as Lacks, wire::hub::KeyringUsage, wire::hub::VersionUsage};

    const CONFIG: &str = "state_dir = \"state\"\nlost_after = \"1d\"\n\
        [[sidecar_identity]]\ntoken_file = \"t\"\nworkloads = [\"shop\"]\n\
        [[workload]]\nname = \"shop\"\nkeyrings = [\"orders\"]\n";

    fn start() -> Timestamp {
        "2026-11-30T12:00:00Z".parse().expect("a time")
    }

    fn evidence() -> Arc<Evidence> {
        let settings = config::parse_hub(Path::new("/hub.toml"), CONFIG).expect("valid");
        Evidence::new(&settings, start())
    }

    fn report(instance: u8, sequence: u64, decrypted: u64, answers: Option<u64>) -> Report {
        let version = |version, decrypted| VersionUsage {
            version,
            encrypted: 0,
            decrypted,
            refused: 0,
            open: 0,
        };
        Report {
            protocol: 1,
            instance: [instance; 16],
            key: [instance; 32],
            sequence,
            is_final: false,
            answers,
            name: "shop-0".into(),
            workload: "shop".into(),
            usage: vec![KeyringUsage {
                name: "orders".parse().expect("a name"),
                id: [7; 16],
                generation: 3,
                versions: vec![version(1, decrypted), version(2, 9)],
                mac_version: None,
                mac: None,
            }],
            status: serde_json::from_value(serde_json::json!({
                "version": "0.1.0", "started_at": "2026-11-24T12:00:00Z", "ready": true,
                "pending": [], "keks": [], "keyrings": [],
                "key_memory": {"locked_bytes": 0, "unlocked_bytes": 0, "limit_bytes": null},
            }))
            .expect("a status"),
        }
    }

    fn request() -> EvidenceRequest {
        EvidenceRequest {
            name: "orders".parse().expect("a name"),
            id: [7; 16],
            version: 1,
            class: "live".into(),
            quiet_period: Span::from_days(1),
            superseded_at: start(),
            generation: 3,
            encrypt_lease: Span::from_days(1),
            destroy_after: None,
        }
    }

    fn take(evidence: &Evidence, report: Report, now: Timestamp) {
        evidence.take(&report, report.answers, now);
    }

    fn lacks(evidence: &Evidence, number: u64, at: Timestamp) -> Vec<Lacks> {
        let barrier = Barrier {
            barrier: number,
            at,
            unanswered: Vec::new(),
        };
        let verdict = evidence.judge(&request(), &barrier, at).expect("a verdict");
        verdict.all_reasons().map(|reason| reason.code).collect()
    }

    /// Heartbeats until `end`, from where the last one was.
    fn watch_until(evidence: &Evidence, end: Timestamp) {
        let mut now = evidence.lock().watched_at;
        while now < end {
            now = end.min(now + 10.seconds());
            evidence.tidy(now);
        }
    }

    #[test]
    fn a_start_of_the_hub_counts_as_a_use_and_then_quiet_time_passes() {
        let evidence = evidence();
        take(&evidence, report(1, 1, 0, None), start());
        // It is as long as nothing watched, and one that was cut off before may live.
        watch_until(&evidence, start() + 23.hours());
        take(&evidence, report(1, 2, 0, None), start() + 23.hours());
        let before = start() + 46.hours();
        watch_until(&evidence, before);
        take(&evidence, report(1, 3, 0, Some(1)), before);
        assert_eq!(lacks(&evidence, 1, before), [Lacks::Unwatched]);
        let after = start() + 49.hours();
        watch_until(&evidence, after);
        assert_eq!(lacks(&evidence, 2, after), [Lacks::Silent], "no answer");
        take(&evidence, report(1, 4, 0, Some(2)), after);
        assert_eq!(lacks(&evidence, 2, after), []);
    }

    #[test]
    fn a_use_and_a_time_without_heartbeats_begin_the_quiet_period_again() {
        let evidence = evidence();
        take(&evidence, report(1, 1, 0, None), start());
        for (sequence, hours) in [(2, 20), (3, 40)] {
            watch_until(&evidence, start() + hours.hours());
            take(
                &evidence,
                report(1, sequence, 0, None),
                start() + hours.hours(),
            );
        }
        let used = start() + 45.hours();
        watch_until(&evidence, used);
        take(&evidence, report(1, 4, 1, None), used);
        let later = start() + 50.hours();
        watch_until(&evidence, later);
        take(&evidence, report(1, 5, 1, Some(1)), later);
        assert_eq!(lacks(&evidence, 1, later), [Lacks::Used]);
        // The machine is suspended.
        let resumed = later + 30.hours();
        take(&evidence, report(1, 6, 1, Some(2)), resumed);
        assert_eq!(lacks(&evidence, 2, resumed), [Lacks::Unwatched]);
    }

    #[test]
    fn a_report_that_was_refused_counts_as_a_use() {
        let evidence = evidence();
        for hours in [0, 20, 40] {
            let (now, sequence) = (start() + hours.hours(), hours as u64 + 1);
            watch_until(&evidence, now);
            take(&evidence, report(1, sequence, 0, None), now);
        }
        let later = start() + 49.hours();
        watch_until(&evidence, later);
        take(&evidence, report(1, 90, 0, Some(1)), later);
        assert_eq!(lacks(&evidence, 1, later), []);
        evidence.miss("shop", later);
        assert_eq!(lacks(&evidence, 1, later), [Lacks::Unwatched]);
    }

    #[test]
    fn a_workload_that_is_declared_and_never_reports_is_missing() {
        let evidence = evidence();
        let later = start() + 49.hours();
        watch_until(&evidence, later);
        assert_eq!(lacks(&evidence, 1, later), [Lacks::NoInstances]);
        let of_another = EvidenceRequest {
            name: "billing".parse().expect("a name"),
            ..request()
        };
        let barrier = Barrier {
            barrier: 1,
            at: later,
            unanswered: Vec::new(),
        };
        let verdict = evidence.judge(&of_another, &barrier, later);
        let verdict = verdict.expect("a verdict");
        assert_eq!(verdict.reasons[0].code, Lacks::NoWorkloads);
        let unknown = EvidenceRequest {
            class: "dead".into(),
            ..request()
        };
        let problem = evidence.judge(&unknown, &barrier, later);
        assert_eq!(
            problem.expect_err("no such class").code,
            Code::InvalidRequest
        );
    }
}
