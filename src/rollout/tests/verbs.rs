//! What people ask for, in every state.

use super::simulation::*;
use crate::rollout::*;

fn at(world: &mut World, step: &'static str) -> State {
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    world.run_until(state, actions, |state, _| {
        state.present().describe().starts_with(step)
    })
}

#[test]
fn a_pause_stops_everything_and_a_soak_begins_again() {
    let mut world = World::new();
    let state = at(&mut world, "soak wave canary");
    world.pass(5);
    let (state, actions) = ask(state, Verb::Pause, world.now);
    assert!(actions.is_empty());
    assert_eq!(
        state.phase,
        Phase::Paused(PauseReason::Operator("ann@desk".into()))
    );
    world.pass(100);
    let resumed = world.now;
    let (state, actions) = ask(state, Verb::Resume, world.now);
    let state = world.run_until(state, actions, |_, action| {
        is_activation_of(action, "standard")
    });
    assert_eq!(state.phase, Phase::Running);
    assert!(world.now.duration_since(resumed).as_secs() >= 10);
}

#[test]
fn promote_ends_one_soak_and_promote_full_every_one() {
    let mut world = World::new();
    let state = at(&mut world, "soak wave canary");
    let before = world.now;
    let (state, actions) = ask(state, Verb::Promote, world.now);
    let state = world.run_until(state, actions, |state, _| {
        state.present().describe().starts_with("soak wave standard")
    });
    assert!(world.now.duration_since(before).as_secs() < 10);
    assert_eq!(state.phase, Phase::Running, "the next wave soaks");
    let (state, actions) = ask(state, Verb::PromoteFull, world.now);
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished);
    assert!(world.now.duration_since(before).as_secs() < 20);
}

#[test]
fn a_rollback_gives_every_wave_its_former_primary_at_any_step() {
    let steps = [
        "generate",
        "distribute",
        "prove",
        "activate wave canary",
        "soak wave canary",
        "activate wave standard",
        "soak wave critical",
        "activate every other wave",
        "finish",
    ];
    for step in steps {
        let mut world = World::new();
        let state = at(&mut world, step);
        let (state, actions) = ask(state, Verb::Rollback, world.now);
        let end = world.run(state, actions);
        let is_over = matches!(end.phase, Phase::RolledBack(_) | Phase::Aborted(_));
        assert!(is_over, "{step}: {:?}", end.phase);
        assert_eq!(world.primaries(), [Some(1); 4], "{step}");
        assert_eq!(world.manifest().rollout, None, "{step}");
        assert_eq!(world.failed_decrypts, 0, "{step}");
    }
}

#[test]
fn a_finished_rollout_can_be_rolled_back() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let state = world.run(state, actions);
    assert_eq!(state.phase, Phase::Finished);
    let (state, actions) = ask(state, Verb::Rollback, world.now);
    let end = world.run(state, actions);
    assert!(matches!(end.phase, Phase::RolledBack(_)), "{:?}", end.phase);
    assert_eq!(world.primaries(), [Some(1); 4]);
}

#[test]
fn an_abort_leaves_every_wave_as_it_is() {
    let mut world = World::new();
    let state = at(&mut world, "activate wave standard");
    let before = world.primaries();
    let (state, actions) = ask(state, Verb::Abort, world.now);
    let end = world.run(state, actions);
    assert!(matches!(end.phase, Phase::Aborted(_)));
    assert_eq!(world.primaries(), before);
    assert_eq!(world.manifest().rollout, None);
}

#[test]
fn a_failed_step_is_retried_as_another_attempt() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let state = world.run_until(state, actions, |state, _| {
        state.present().describe().starts_with("prove")
    });
    world.sidecar("b").proves = false;
    let (state, actions) = step(state, Event::Woken, world.now);
    let halted = world.run(state, actions);
    assert!(halted.is_halted());
    world.sidecar("b").proves = true;
    let (state, actions) = ask(halted, Verb::Retry, world.now);
    assert_eq!(state.attempt, 2);
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished);
    assert_eq!(
        world.manifest().newest_version(),
        2,
        "the version is used again"
    );
}

#[test]
fn verbs_that_make_no_sense_are_refused_and_change_nothing() {
    let mut world = World::new();
    let state = at(&mut world, "distribute");
    for verb in [Verb::Resume, Verb::Retry, Verb::Promote] {
        assert!(state.refusal(verb).is_some(), "{verb}");
        let (after, actions) = ask(state.clone(), verb, world.now);
        assert_eq!((after.phase, after.step), (state.phase.clone(), state.step));
        assert!(!actions.is_empty(), "it goes on");
    }
    let (state, actions) = ask(state, Verb::Abort, world.now);
    let over = world.run(state, actions);
    for verb in [
        Verb::Pause,
        Verb::Resume,
        Verb::Promote,
        Verb::PromoteFull,
        Verb::Retry,
        Verb::Abort,
        Verb::Rollback,
    ] {
        assert!(over.refusal(verb).is_some(), "{verb}");
        let (after, actions) = ask(over.clone(), verb, world.now);
        assert_eq!(after.phase, over.phase);
        assert!(actions.is_empty());
    }
}

#[test]
fn a_planned_pause_ends_only_when_it_is_promoted() {
    let mut world = World::new();
    let strategy = Strategy {
        each_wave: AfterActivation {
            pause: Some(Pause {
                until: Until::Promoted,
            }),
            ..AfterActivation::default()
        },
        ..quick()
    };
    let (state, actions) = world.begin(strategy, Intent::Rotate);
    let state = world.run(state, actions);
    assert_eq!(state.phase, Phase::Paused(PauseReason::Planned));
    let (state, actions) = ask(state, Verb::Resume, world.now);
    let state = world.run(state, actions);
    assert_eq!(
        state.phase,
        Phase::Paused(PauseReason::Planned),
        "it is no resumption"
    );
    assert_eq!(world.primary("standard"), Some(1));
    let (state, actions) = ask(state, Verb::Promote, world.now);
    let state = world.run(state, actions);
    assert_eq!(world.primary("standard"), Some(2));
    assert_eq!(
        state.phase,
        Phase::Paused(PauseReason::Planned),
        "the next wave's"
    );
}

#[test]
fn a_pause_until_a_time_ends_then() {
    let mut world = World::new();
    let until = world
        .now
        .checked_add(jiff::SignedDuration::from_hours(3))
        .expect("in range");
    let strategy = Strategy {
        each_wave: AfterActivation {
            pause: Some(Pause {
                until: Until::Time(until),
            }),
            ..AfterActivation::default()
        },
        ..quick()
    };
    let (state, actions) = world.begin(strategy, Intent::Rotate);
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished);
    assert!(world.now >= until);
}

#[test]
fn promote_full_skips_no_approval() {
    let mut world = World::new();
    let key = crate::model::SignerKey([1; 32]);
    let strategy = Strategy {
        approvals: Some(ApprovalRule {
            required: 1,
            approvers: vec![key],
        }),
        each_wave: AfterActivation {
            pause: Some(Pause {
                until: Until::Approval,
            }),
            ..quick().each_wave
        },
        ..quick()
    };
    let (state, actions) = world.begin(strategy, Intent::Rotate);
    let state = world.run_until(state, actions, |state, _| {
        state.present().describe().starts_with("soak wave canary")
    });
    let (state, actions) = ask(state, Verb::PromoteFull, world.now);
    let state = world.run_until(state, actions, |_, action| {
        matches!(action, Action::Sleep { .. })
    });
    assert_eq!(state.phase, Phase::Paused(PauseReason::Approval));
    assert_eq!(world.primary("standard"), Some(1));
}

#[test]
fn a_failed_soak_is_not_promoted_and_is_retried_from_new_counts() {
    let mut world = World::new();
    let strategy = Strategy {
        on_failure: OnFailure::Halt,
        ..quick()
    };
    let (state, actions) = world.begin(strategy, Intent::Rotate);
    let state = world.run_until(state, actions, |state, _| {
        state.present().describe().starts_with("soak wave canary")
    });
    world.sidecar("a").damage = 1;
    let (state, actions) = step(state, Event::Woken, world.now);
    let halted = world.run(state, actions);
    assert!(halted.is_halted());
    for verb in [Verb::Promote, Verb::PromoteFull] {
        assert!(halted.refusal(verb).is_some(), "{verb}");
        let (after, _) = ask(halted.clone(), verb, world.now);
        assert!(after.is_halted());
    }
    world.sidecar("a").damage = 0;
    let (state, actions) = ask(halted, Verb::Retry, world.now);
    assert_eq!(world.run(state, actions).phase, Phase::Finished);
}
