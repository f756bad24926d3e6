//! Approvals: whose count, for what, and for how long.

use jiff::ToSpan;

use super::simulation::*;
use crate::{
    crypto::{Dek, SigningKey},
    keyring,
    model::SignerKey,
    rollout::*,
};

fn person() -> SigningKey {
    Dek::generate().expect("random").succession_key()
}

fn public(key: &SigningKey) -> SignerKey {
    SignerKey(key.public_key())
}

/// A rollout that waits for two of three approvals before it disables.
fn waiting(people: &[SigningKey; 3]) -> (World, State) {
    let mut world = World::new();
    let strategy = Strategy {
        approvals: Some(ApprovalRule {
            required: 2,
            approvers: people.iter().map(public).collect(),
        }),
        disable: Some(Retire { approval: true }),
        destroy: None,
        ..retiring()
    };
    assert_eq!(strategy.problems(), Vec::<String>::new());
    let (state, actions) = world.begin(strategy, Intent::Rotate);
    let state = world.run_until(state, actions, |state, _| {
        state.phase == Phase::Paused(PauseReason::Approval)
    });
    (world, state)
}

fn approve(world: &mut World, state: State, approval: Approval) -> State {
    let (state, actions) = step(state, Event::Approved(approval), world.now);
    world.run_until(state, actions, |state, _| {
        state.phase == Phase::Paused(PauseReason::Approval)
    })
}

fn order(state: &State) -> Order {
    state.order.clone().expect("an order")
}

#[test]
fn two_different_approvers_are_needed() {
    let people = [person(), person(), person()];
    let (mut world, state) = waiting(&people);
    let first = order(&state).approve(&people[0]);
    let state = approve(&mut world, state, first.clone());
    let state = approve(&mut world, state, first);
    assert_eq!(
        state.phase,
        Phase::Paused(PauseReason::Approval),
        "one person twice"
    );
    let second = order(&state).approve(&people[1]);
    let end = approve(&mut world, state, second);
    assert_eq!(end.phase, Phase::Finished);
    let old = world.manifest().version(1).expect("listed");
    assert_eq!(old.state, keyring::State::Disabled);
}

#[test]
fn strangers_and_other_orders_do_not_count() {
    let people = [person(), person(), person()];
    let (mut world, state) = waiting(&people);
    let genuine = order(&state);
    let others = [
        Order {
            step: genuine.step + 1,
            ..genuine.clone()
        },
        Order {
            attempt: 2,
            ..genuine.clone()
        },
        Order {
            action: "destroy".into(),
            ..genuine.clone()
        },
        Order {
            version: 2,
            ..genuine.clone()
        },
    ];
    let mut state = approve(&mut world, state, genuine.approve(&person()));
    for other in others {
        state = approve(&mut world, state, other.approve(&people[0]));
        state = approve(&mut world, state, other.approve(&people[1]));
    }
    assert_eq!(state.phase, Phase::Paused(PauseReason::Approval));
    assert!(state.approvals.is_empty());
}

#[test]
fn the_requester_does_not_approve_their_own_rollout() {
    let people = [person(), person(), person()];
    let (_, state) = waiting(&people);
    let rule = state.plan.strategy.approvals.clone().expect("a rule");
    let order = Order {
        requester: Requester {
            name: "ann@desk".into(),
            key: Some(public(&people[0])),
        },
        ..order(&state)
    };
    let approvals = [order.approve(&people[0]), order.approve(&people[1])];
    let now = state.entered_at;
    assert_eq!(
        order.approvers(&rule, &approvals, now),
        [public(&people[1])]
    );
    assert!(!order.is_approved(&rule, &approvals, now));
}

#[test]
fn an_order_becomes_void_and_is_made_again() {
    let people = [person(), person(), person()];
    let (mut world, state) = waiting(&people);
    let old = order(&state);
    world.now = old.not_after.checked_add(1.hour()).expect("in range");
    let (state, _) = step(state, Event::Woken, world.now);
    let new = order(&state);
    assert_eq!((new.attempt, new.step), (old.attempt + 1, old.step));
    assert!(new.not_after > world.now);
    let rule = state.plan.strategy.approvals.clone().expect("a rule");
    let approvals = [old.approve(&people[0]), old.approve(&people[1])];
    assert!(!old.is_approved(&rule, &approvals, world.now));
    assert!(!new.is_approved(&rule, &approvals, world.now));
}

#[test]
fn neither_promote_nor_resume_replaces_approvals() {
    let people = [person(), person(), person()];
    let (world, state) = waiting(&people);
    for verb in [Verb::Promote, Verb::PromoteFull, Verb::Resume] {
        let refusal = state.refusal(verb).expect("refused");
        assert!(refusal.contains("approvals"), "{refusal}");
        let (after, _) = ask(state.clone(), verb, world.now);
        assert_eq!(after.phase, Phase::Paused(PauseReason::Approval));
    }
}
