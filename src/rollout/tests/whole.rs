//! Rollouts in which nothing goes wrong.

use jiff::ToSpan;

use super::simulation::*;
use crate::{
    keyring::{self, Policy, State as VersionState},
    model::Span,
    rollout::*,
};

#[test]
fn waves_take_over_one_after_another_the_smallest_first() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished);
    assert_eq!(world.primaries(), [Some(2); 4]);
    let order: Vec<String> = activated(&end)
        .iter()
        .map(|text| text.split(',').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(
        order,
        [
            "wave canary",
            "wave standard",
            "wave critical",
            "every other wave"
        ]
    );
    assert_eq!(world.failed_decrypts, 0);
    assert_eq!(world.manifest().rollout, None, "the mark is removed");
}

#[test]
fn a_wave_soaks_for_its_whole_time_before_the_next() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let at_canary = |state: &State, action: &Action| {
        let _ = state;
        is_activation_of(action, "standard")
    };
    let state = world.run_until(state, actions, at_canary);
    let soak = state
        .entries
        .iter()
        .find(|entry| entry.text.starts_with("soak wave canary"))
        .expect("a soak");
    assert!(world.now.duration_since(soak.at).as_secs() >= 10);
    assert_eq!(world.primaries(), [Some(2), Some(1), Some(1), Some(1)]);
}

#[test]
fn the_old_version_is_retired_on_evidence_after_its_waits() {
    let mut world = World::new();
    let began = world.now;
    let (state, actions) = world.begin_despite_blockers(retiring());
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    let old = world.manifest().version(1).expect("listed");
    assert_eq!(old.state, VersionState::Destroyed);
    // Two soaks, the quiet period, which begins with the last activation, and the wait.
    assert!(world.now.duration_since(began).as_secs() >= 20 + 60 + 90);
    assert_eq!(world.failed_decrypts, 0);
}

#[test]
fn the_wait_ends_when_the_signer_may_destroy() {
    let mut world = World::new();
    let (began, lease) = (world.now, Span::from_secs(7200));
    world.by_hand(|current, now| {
        let policy = Policy {
            encrypt_lease: lease,
            ..current.manifest().policy.clone()
        };
        keyring::set_policy(current, policy, now)
    });
    world.pass(1);
    let (state, actions) = world.begin_despite_blockers(retiring());
    let mut tries = 0;
    let end = world.run_until(state, actions, |_, action| {
        tries += usize::from(matches!(action, Action::Write(Write::Destroy { .. })));
        false
    });
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    let old = world.manifest().version(1).expect("listed");
    assert_eq!(old.state, VersionState::Destroyed);
    assert!(world.now >= began + lease.0);
    assert_eq!(tries, 1, "the signer never said that it was too early");
}

#[test]
fn a_ledger_speaks_for_sidecars_that_are_replaced_more_often_than_the_quiet_period() {
    let mut world = World::new();
    let began = world.now;
    for sidecar in world.sidecars.values_mut() {
        sidecar.is_joined = true;
    }
    let quiet_from = began + 300.seconds();
    world.quiet_from = Some(quiet_from);
    let (state, actions) = world.begin_despite_blockers(retiring());
    let observing = world.run_until(state, actions, |state, _| state.observes_disuse());
    // Counting begins again, as after every deployment.
    let now = world.now;
    for sidecar in world.sidecars.values_mut() {
        sidecar.restart(now);
    }
    let end = world.run(observing, vec![Action::Observe]);
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    let old = world.manifest().version(1).expect("listed");
    assert_eq!(old.state, VersionState::Destroyed);
    let out_of_use = end
        .entries
        .iter()
        .find(|entry| entry.text == "the old version is out of use")
        .expect("an entry");
    assert!(out_of_use.at >= quiet_from, "{out_of_use:?}");
}

#[test]
fn without_the_word_of_a_ledger_joined_sidecars_are_no_evidence() {
    let mut world = World::new();
    for sidecar in world.sidecars.values_mut() {
        sidecar.is_joined = true;
    }
    let (state, actions) = world.begin_despite_blockers(retiring());
    let is_waiting = |state: &State, _: &Action| {
        let mut waits = state.waiting_for.iter();
        state.observes_disuse() && waits.any(|wait| wait.contains("ledger was not asked"))
    };
    let state = world.run_until(state, actions, is_waiting);
    // However long it is quiet.
    world.pass(3600);
    let (state, _) = step(state, Event::Observed(Box::new(world.observe())), world.now);
    assert!(state.observes_disuse(), "{:?}", state.phase);
}

#[test]
fn a_pending_version_can_be_adopted() {
    let mut world = World::new();
    let version = world.rotate_by_hand();
    world.pass(1);
    let (state, actions) = world.begin(quick(), Intent::Adopt { version });
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished);
    assert_eq!(world.primaries(), [Some(2); 4]);
    assert_eq!(world.manifest().newest_version(), 2, "none was generated");
}

#[test]
fn a_compromised_version_is_replaced_everywhere_in_one_generation() {
    let mut world = World::new();
    let intent = Intent::ReplaceCompromised { version: 1 };
    let (state, actions) = world.begin(quick(), intent);
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished);
    assert_eq!(world.primaries(), [Some(2); 4]);
    assert!(world.manifest().version(1).expect("listed").compromised);
    assert_eq!(world.writes.len(), 2, "{:?}", world.writes);
    assert_eq!(world.failed_decrypts, 0);
    let refusal = end.refusal(Verb::Rollback).expect("no way back");
    assert!(refusal.contains("roll forward"), "{refusal}");
}

#[test]
fn a_compromise_preempts_a_running_rollout() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let running = world.run_until(state, actions, |_, action| {
        is_activation_of(action, "standard")
    });
    world.pass(1);
    let intent = Intent::ReplaceCompromised { version: 2 };
    let (state, actions) = world.begin(quick(), intent);
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished);
    assert_eq!(world.primaries(), [Some(3); 4]);
    // The one that was preempted finds out, and changes nothing.
    let generation = world.manifest().generation;
    let (state, actions) = step(running, Event::Resumed, world.now);
    let state = world.run(state, actions);
    assert!(matches!(state.phase, Phase::Halted(_)), "{:?}", state.phase);
    assert_eq!(world.manifest().generation, generation);
}

/// A rollout that waits until version 1 may be destroyed.
fn waiting(world: &mut World) -> State {
    let (state, actions) = world.begin_despite_blockers(retiring());
    world.run_until(state, actions, |state, _| state.awaits_destruction())
}

fn anomalies(state: &State) -> Vec<&str> {
    let entries = state.entries.iter();
    entries
        .filter(|entry| entry.kind == Kind::Anomaly)
        .map(|entry| entry.text.as_str())
        .collect()
}

#[test]
fn a_refused_use_of_the_disabled_version_alarms_and_begins_its_wait_again() {
    let mut world = World::new();
    let state = waiting(&mut world);
    world.pass(80);
    let asked = world.now;
    world.sidecar("b").last_refused = Some(asked);
    let end = world.run(state, vec![Action::Observe]);
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    let old = world.manifest().version(1).expect("listed");
    assert_eq!(old.state, VersionState::Destroyed);
    // The world's `destroy_after`.
    assert!(old.state_changed_at >= asked + 90.seconds());
    assert_eq!(
        anomalies(&end),
        ["b asks for version 1, which is disabled"],
        "once"
    );
}

#[test]
fn a_ledger_alarms_of_a_refused_use_too() {
    let mut world = World::new();
    for sidecar in world.sidecars.values_mut() {
        sidecar.is_joined = true;
    }
    world.quiet_from = Some(world.now);
    let state = waiting(&mut world);
    let until = world.now + 3.hours();
    world.asked_until = Some(until);
    let end = world.run(state, vec![Action::Observe]);
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    let old = world.manifest().version(1).expect("listed");
    assert!(old.state_changed_at >= until);
    assert_eq!(
        anomalies(&end),
        ["workload shop asks for version 1, which is disabled"]
    );
}

#[test]
fn a_refused_use_just_before_the_destruction_is_seen_by_the_signer() {
    let mut world = World::new();
    let (state, actions) = world.begin_despite_blockers(retiring());
    let is_destroying =
        |_: &State, action: &Action| matches!(action, Action::Write(Write::Destroy { .. }));
    let state = world.run_until(state, actions, is_destroying);
    let asked = world.now;
    world.sidecar("c").last_refused = Some(asked);
    let write = state_write(&state);
    let end = world.run(state, vec![write]);
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    let old = world.manifest().version(1).expect("listed");
    assert!(old.state_changed_at >= asked + 90.seconds());
}

fn state_write(state: &State) -> Action {
    Action::Write(Write::Destroy {
        version: state.plan.replaced.version,
        authorization: None,
    })
}

#[test]
fn a_stream_under_the_old_version_keeps_it_from_being_disabled_and_destroyed() {
    let mut world = World::new();
    let (state, actions) = world.begin_despite_blockers(retiring());
    let state = world.run_until(state, actions, |state, _| state.observes_disuse());
    world.sidecar("d").open = 1;
    let named = |state: &State, _: &Action| {
        let mut waits = state.waiting_for.iter();
        waits.any(|wait| wait.starts_with("d has requests in progress that use version 1"))
    };
    let state = world.run_until(state, vec![Action::Observe], named);
    world.pass(120);
    let state = world.run_until(state, vec![Action::Observe], named);
    assert!(state.observes_disuse(), "{:?}", state.present());
    world.sidecar("d").open = 0;
    let state = world.run_until(state, vec![Action::Observe], |state, _| {
        state.awaits_destruction()
    });
    world.sidecar("d").open = 1;
    world.pass(120);
    let state = world.run_until(state, vec![Action::Observe], named);
    assert!(state.awaits_destruction(), "{:?}", state.present());
    world.sidecar("d").open = 0;
    let end = world.run(state, vec![Action::Observe]);
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
}
