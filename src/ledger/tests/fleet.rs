//! A fleet over three months: an old version is retired on evidence, although no process lives for
//! longer than a week.

use super::{super::*, *};

const NIGHTLY: &str = "nightly";
const QUARTERLY: &str = "quarterly";
const ON_DEMAND: &str = "on-demand";
/// When the last use of the old version was.
const LAST_USE: i64 = 20;

/// The days of a fleet. Version 1 was superseded on day 0.
struct Fleet {
    ledger: Ledger,
    next: u64,
    /// The pods of the deployment, with the instance of each and its last sequence.
    pods: Vec<(String, InstanceId, u64)>,
}

impl Fleet {
    fn new() -> Self {
        let mut fleet = Self {
            ledger: Ledger::default(),
            next: 0,
            pods: Vec::new(),
        };
        for workload in [NIGHTLY, QUARTERLY, ON_DEMAND] {
            fleet.run_job(workload, 0, day(-150));
        }
        fleet.redeploy(day(-150));
        fleet
    }

    fn draw(&mut self) -> InstanceId {
        self.next += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next.to_be_bytes());
        InstanceId(id)
    }

    fn delivery(member: &str, workload: &str, instance: InstanceId, sequence: u64) -> Delivery {
        Delivery {
            instance,
            owner: member.into(),
            member: Some(member.into()),
            name: member.into(),
            workload: workload.into(),
            ..report(0, sequence, 0)
        }
    }

    /// One run that uses the old version `uses` times.
    fn run_job(&mut self, workload: &str, uses: u64, at: Timestamp) {
        let instance = self.draw();
        let member = format!("{workload}-{instance}");
        self.ledger.list(&member, workload, at);
        let started = Self::delivery(&member, workload, instance, 1);
        take(&mut self.ledger, &started, at);
        let ended = Delivery {
            is_final: true,
            usage: vec![usage(uses)],
            ..Self::delivery(&member, workload, instance, 2)
        };
        take(&mut self.ledger, &ended, at);
        self.ledger.confirm_end(&member, at);
    }

    /// Replaces all 20 pods, one after the other.
    fn redeploy(&mut self, at: Timestamp) {
        let mut old = std::mem::take(&mut self.pods).into_iter();
        for _ in 0..20 {
            let instance = self.draw();
            let member = format!("pod-{instance}");
            self.ledger.list(&member, WORKLOAD, at);
            take(
                &mut self.ledger,
                &Self::delivery(&member, WORKLOAD, instance, 1),
                at,
            );
            self.pods.push((member, instance, 1));
            if let Some((member, instance, sequence)) = old.next() {
                let last = Delivery {
                    is_final: true,
                    ..Self::delivery(&member, WORKLOAD, instance, sequence + 1)
                };
                take(&mut self.ledger, &last, at);
                self.ledger.confirm_end(&member, at);
            }
        }
    }

    /// A pod crashes, and another one takes its place.
    fn crash(&mut self, at: Timestamp) {
        let (member, ..) = self.pods.remove(0);
        self.ledger.confirm_end(&member, at);
        let instance = self.draw();
        let member = format!("pod-{instance}");
        self.ledger.list(&member, WORKLOAD, at);
        take(
            &mut self.ledger,
            &Self::delivery(&member, WORKLOAD, instance, 1),
            at,
        );
        self.pods.push((member, instance, 1));
    }

    /// A day's reports, with an answer to a barrier.
    fn ask(&mut self, at: Timestamp) -> Verdict {
        let mut question = question(at);
        let declared = |workload: &str, days| Declared {
            workload: workload.into(),
            max_interval: Some(Span::from_days(days)),
        };
        question.workloads.extend([
            declared(NIGHTLY, 1),
            declared(QUARTERLY, 92),
            declared(ON_DEMAND, 30),
        ]);
        for (member, instance, sequence) in &mut self.pods {
            self.ledger.list(member, WORKLOAD, at);
            *sequence += 1;
            let answer = Delivery {
                answers: Some(question.barrier.number),
                ..Self::delivery(member, WORKLOAD, *instance, *sequence)
            };
            take(&mut self.ledger, &answer, at);
        }
        self.ledger.close_lost(Span::from_days(30), at);
        self.ledger.fold(at);
        judge(&self.ledger, &question)
    }
}

fn missing_of(verdict: &Verdict, workload: &str) -> Vec<String> {
    let mut workloads = verdict.workloads.iter();
    let found = workloads.find(|found| found.workload == workload);
    let reasons = found.expect("known").reasons.iter();
    reasons.map(|reason| reason.code.to_string()).collect()
}

#[test]
fn a_fleet_that_is_redeployed_weekly_retires_a_version() {
    let mut fleet = Fleet::new();
    let mut quiet_from = None;
    for today in -149..=120 {
        if today % 7 == 0 {
            fleet.redeploy(day(today));
        }
        fleet.run_job(NIGHTLY, u64::from(today <= LAST_USE), day(today));
        if today % 91 == 0 {
            fleet.run_job(QUARTERLY, u64::from(today < 0), day(today));
        }
        // It scales to zero for weeks.
        if today % 25 == 0 {
            fleet.run_job(ON_DEMAND, 0, day(today));
        }
        let verdict = fleet.ask(day(today));
        assert!(
            fleet.ledger.books.len() < 80,
            "{}",
            fleet.ledger.books.len()
        );
        if today == LAST_USE + 10 {
            assert_eq!(missing_of(&verdict, NIGHTLY), ["used"]);
            assert_eq!(
                missing_of(&verdict, WORKLOAD),
                [""; 0],
                "through redeployments"
            );
            assert_eq!(missing_of(&verdict, ON_DEMAND), [""; 0]);
        }
        if verdict.is_quiet() && today >= 0 {
            quiet_from.get_or_insert(today);
        } else if today > 60 {
            panic!("day {today}: {:?}", missing(&verdict));
        }
    }
    assert_eq!(quiet_from, Some(LAST_USE + 30));
}

#[test]
fn crashes_and_pods_that_never_joined_delay_by_the_quiet_period() {
    let mut fleet = Fleet::new();
    for workload in [NIGHTLY, QUARTERLY, ON_DEMAND] {
        fleet.run_job(workload, 0, day(0));
    }
    assert!(fleet.ask(day(1)).is_quiet());
    fleet.crash(day(2));
    fleet.ledger.list("pod-without-hub", WORKLOAD, day(3));
    let verdict = fleet.ask(day(5));
    assert_eq!(missing_of(&verdict, WORKLOAD), ["unwatched", "not_joined"]);
    fleet.ledger.confirm_end("pod-without-hub", day(6));
    let verdict = fleet.ask(day(7));
    assert_eq!(missing_of(&verdict, WORKLOAD), ["unwatched"]);
    assert_eq!(verdict.quiet_from(), Some(day(36)));
    assert!(!fleet.ask(day(35)).is_quiet());
    assert!(fleet.ask(day(36)).is_quiet());
}

#[test]
fn a_job_that_has_not_run_blocks_until_it_has() {
    let mut fleet = Fleet::new();
    for workload in [NIGHTLY, ON_DEMAND] {
        fleet.run_job(workload, 0, day(0));
    }
    let verdict = fleet.ask(day(60));
    assert_eq!(missing(&verdict), ["not_run"]);
    assert_eq!(missing_of(&verdict, QUARTERLY), ["not_run"]);
    fleet.run_job(QUARTERLY, 0, day(70));
    assert!(fleet.ask(day(70)).is_quiet());
}
