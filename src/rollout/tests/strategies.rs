//! Strategies and the plans that they become.

use super::simulation::*;
use crate::rollout::*;

#[test]
fn every_built_in_strategy_is_sound() {
    for name in Strategy::BUILT_IN {
        let strategy = Strategy::built_in(name).expect(name);
        assert_eq!(strategy.problems(), Vec::<String>::new(), "{name}");
        assert_eq!(strategy.name, name);
    }
    assert_eq!(Strategy::built_in("reckless"), None);
}

#[test]
fn contradictions_are_listed_all_at_once() {
    let wave = WaveSteps {
        name: wave("canary"),
        within: "1m".parse().expect("a span"),
        soak: None,
        pause: Some(Pause {
            until: Until::Approval,
        }),
    };
    let strategy = Strategy {
        poll: "0s".parse().expect("a span"),
        waves: vec![wave.clone(), wave],
        destroy: Some(Retire::default()),
        ..quick()
    };
    let problems = strategy.problems();
    for word in [
        "poll",
        "listed twice",
        "each_wave",
        "[disable]",
        "[approvals]",
    ] {
        assert!(
            problems.iter().any(|problem| problem.contains(word)),
            "{word}: {problems:?}"
        );
    }
}

#[test]
fn approvals_need_enough_different_people() {
    let key = crate::model::SignerKey([1; 32]);
    for (required, approvers) in [(0, vec![key]), (2, vec![key]), (1, vec![key, key])] {
        let strategy = Strategy {
            approvals: Some(ApprovalRule {
                required,
                approvers,
            }),
            ..quick()
        };
        assert!(!strategy.problems().is_empty(), "{required}");
    }
}

#[test]
fn a_plan_ends_with_every_other_wave_and_names_each_step() {
    let world = World::new();
    let (state, _) = world.begin_despite_blockers(retiring());
    let steps: Vec<String> = state.plan.steps.iter().map(Step::describe).collect();
    let begins = [
        "generate a version",
        "distribute",
        "prove",
        "activate wave canary",
        "soak wave canary for 10s",
        "activate wave standard",
        "soak wave standard",
        "activate wave critical",
        "soak wave critical",
        "activate every other wave",
        "observe",
        "disable the old version",
        "wait",
        "destroy the old version",
        "finish",
    ];
    assert_eq!(steps.len(), begins.len(), "{steps:?}");
    for (step, begin) in steps.iter().zip(begins) {
        assert!(step.starts_with(begin), "{step}");
    }
}

#[test]
fn a_plan_digest_covers_every_setting() {
    let world = World::new();
    let (state, _) = world.begin(quick(), Intent::Rotate);
    let plan = state.plan;
    let digest = plan.digest();
    assert_eq!(plan.digest(), digest);
    let mut other = plan.clone();
    other.strategy.max_unavailable.push("a".into());
    assert_ne!(other.digest(), digest);
    let mut other = plan.clone();
    other.requester.name = "eve@desk".into();
    assert_ne!(other.digest(), digest);
    let mut other = plan;
    other.steps.pop();
    assert_ne!(other.digest(), digest);
}
