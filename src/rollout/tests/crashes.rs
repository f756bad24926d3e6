//! A runner that is killed at any action, before or after it took effect.

use super::simulation::*;
use crate::rollout::*;

/// Runs a rollout whose runner dies at its `n`th action, and a second runner that knows only the
/// stored state. Returns `None` if there are fewer actions.
fn killed_at(n: usize, took_effect: bool, strategy: &Strategy) -> Option<(World, State)> {
    let mut world = World::new();
    let (state, actions) = if strategy.destroy.is_some() {
        world.begin_despite_blockers(strategy.clone())
    } else {
        world.begin(strategy.clone(), Intent::Rotate)
    };
    let mut last = None;
    let mut count = 0;
    let state = world.run_until(state, actions, |_, action| {
        count += 1;
        last = Some(action.clone());
        count > n
    });
    if count <= n {
        return None;
    }
    if took_effect && let Some(action) = last {
        // Done, and the runner died before it learned of it.
        let _ = world.perform(&state, &action);
    }
    world.pass(5);
    let (state, actions) = step(stored(&state), Event::Resumed, world.now);
    let end = world.run(state, actions);
    Some((world, end))
}

#[test]
fn a_rollout_is_resumed_after_a_kill_at_any_action() {
    // Sidecars are asked less often, so that most actions differ.
    let slow = |strategy: Strategy| Strategy {
        poll: "10s".parse().expect("a span"),
        ..strategy
    };
    for strategy in [quick(), retiring()].map(slow) {
        for took_effect in [false, true] {
            let mut n = 0;
            while let Some((world, end)) = killed_at(n, took_effect, &strategy) {
                let context = format!("killed at action {n}, took effect: {took_effect}");
                assert_eq!(
                    end.phase,
                    Phase::Finished,
                    "{context}: {:?}",
                    end.entries.last()
                );
                assert_eq!(world.primaries(), [Some(2); 4], "{context}");
                assert_eq!(world.manifest().newest_version(), 2, "{context}");
                assert_eq!(world.failed_decrypts, 0, "{context}");
                n += 1;
            }
            assert!(n > 20, "{n} actions");
        }
    }
}

#[test]
fn a_rollback_is_resumed_after_a_kill_at_any_action() {
    for took_effect in [false, true] {
        for n in 0.. {
            let mut world = World::new();
            let (state, actions) = world.begin(quick(), Intent::Rotate);
            let state = world.run_until(state, actions, |_, action| {
                is_activation_of(action, "critical")
            });
            let (state, actions) = ask(state, Verb::Rollback, world.now);
            let (mut count, mut last) = (0, None);
            let state = world.run_until(state, actions, |_, action| {
                count += 1;
                last = Some(action.clone());
                count > n
            });
            if count <= n {
                assert!(n > 2, "{n} actions");
                break;
            }
            if took_effect && let Some(action) = last {
                let _ = world.perform(&state, &action);
            }
            let (state, actions) = step(stored(&state), Event::Resumed, world.now);
            let end = world.run(state, actions);
            assert!(
                matches!(end.phase, Phase::RolledBack(_)),
                "{n}: {:?}",
                end.phase
            );
            assert_eq!(world.primaries(), [Some(1); 4]);
        }
    }
}

#[test]
fn of_two_runners_one_is_refused() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let fork = world.run_until(state, actions, |_, action| {
        is_activation_of(action, "canary")
    });
    let (first, actions) = step(fork.clone(), Event::Resumed, world.now);
    let first = world.run(first, actions);
    assert_eq!(first.phase, Phase::Finished);
    let generation = world.manifest().generation;
    let (second, actions) = step(fork, Event::Resumed, world.now);
    let second = world.run(second, actions);
    assert!(
        matches!(second.phase, Phase::Halted(_)),
        "{:?}",
        second.phase
    );
    assert_eq!(
        world.manifest().generation,
        generation,
        "it changed nothing"
    );
}
