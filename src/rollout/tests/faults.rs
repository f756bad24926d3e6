//! Faults at every step: what must halt, what must not, and what is rolled back.

use super::simulation::*;
use crate::{keyring, rollout::*};

/// Runs a rollout to the point where `stop` says so, breaks something, and goes on.
fn broken_at(
    strategy: Strategy,
    stop: impl FnMut(&State, &Action) -> bool,
    harm: impl FnOnce(&mut World),
) -> (World, State) {
    let mut world = World::new();
    let (state, actions) = world.begin(strategy, Intent::Rotate);
    let state = world.run_until(state, actions, stop);
    assert_eq!(
        state.phase,
        Phase::Running,
        "the fault comes before the end"
    );
    harm(&mut world);
    let (state, actions) = step(state, Event::Woken, world.now);
    let end = world.run(state, actions);
    (world, end)
}

fn at_step(name: &'static str) -> impl FnMut(&State, &Action) -> bool {
    move |state, _| state.present().describe().starts_with(name)
}

fn reason(state: &State) -> &str {
    match &state.phase {
        Phase::Halted(reason)
        | Phase::RolledBack(reason)
        | Phase::Paused(PauseReason::Inconclusive(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dead_sidecar_halts_before_the_first_activation() {
    for (step, word) in [
        ("distribute", "did not answer"),
        ("prove", "did not answer"),
    ] {
        let (world, end) = broken_at(quick(), at_step(step), |world| {
            world.sidecar("d").is_up = false;
        });
        assert!(end.is_halted(), "{step}: {:?}", end.phase);
        let reason = reason(&end);
        assert!(reason.contains("d ") || reason.contains("d:"), "{reason}");
        assert!(reason.contains(word), "{reason}");
        assert_eq!(world.primaries(), [Some(1); 4], "{step}");
    }
}

#[test]
fn a_sidecar_that_lags_halts_the_distribution_and_is_named() {
    let (_, end) = broken_at(quick(), at_step("distribute"), |world| {
        world.sidecar("e").refreshes = false;
        world.sidecar("e").document = World::new().document;
    });
    assert!(end.is_halted());
    let reason = reason(&end);
    assert!(reason.contains("e serves"), "{reason}");
}

#[test]
fn a_sidecar_that_cannot_unwrap_the_version_halts_the_distribution() {
    let (world, end) = broken_at(quick(), at_step("distribute"), |world| {
        world.sidecar("f").unopened = Some("the KEK denies it".into());
    });
    assert!(end.is_halted());
    assert!(reason(&end).contains("f can't unwrap version 2: the KEK denies it"));
    assert_eq!(world.primaries(), [Some(1); 4]);
}

#[test]
fn a_sidecar_without_the_key_can_not_prove_it() {
    let (world, end) = broken_at(quick(), at_step("prove"), |world| {
        world.sidecar("b").proves = false;
    });
    assert!(end.is_halted());
    assert!(reason(&end).contains("b: its proof is not by the version's key"));
    assert_eq!(world.primaries(), [Some(1); 4]);
}

#[test]
fn an_exempt_sidecar_stops_nothing() {
    let strategy = Strategy {
        max_unavailable: vec!["d".into()],
        ..quick()
    };
    let (world, end) = broken_at(strategy, at_step("distribute"), |world| {
        world.sidecar("d").is_up = false;
    });
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    assert_eq!(world.primaries(), [Some(2); 4]);
}

#[test]
fn failed_decrypts_roll_back_in_every_wave() {
    for (wave, sidecar) in [("canary", "a"), ("standard", "b"), ("critical", "d")] {
        let soak = match wave {
            "canary" => "soak wave canary",
            "standard" => "soak wave standard",
            _ => "soak wave critical",
        };
        let (world, end) = broken_at(quick(), at_step(soak), |world| {
            world.sidecar(sidecar).damage = 1;
        });
        assert!(
            matches!(end.phase, Phase::RolledBack(_)),
            "{wave}: {:?}",
            end.phase
        );
        assert!(reason(&end).contains("failed decrypts"), "{}", reason(&end));
        assert_eq!(world.primaries(), [Some(1); 4], "{wave}");
        assert_eq!(world.manifest().rollout, None);
        // What was encrypted under the new version still decrypts.
        let version = world.manifest().version(2).expect("listed");
        assert_eq!(version.state, keyring::State::Enabled);
    }
}

#[test]
fn a_strategy_may_halt_instead_of_rolling_back() {
    let strategy = Strategy {
        on_failure: OnFailure::Halt,
        ..quick()
    };
    let (mut world, end) = broken_at(strategy, at_step("soak wave canary"), |world| {
        world.sidecar("a").damage = 1;
    });
    assert!(end.is_halted());
    assert_eq!(world.primary("canary"), Some(2));
    let (state, actions) = ask(end, Verb::Rollback, world.now);
    let end = world.run(state, actions);
    assert!(matches!(end.phase, Phase::RolledBack(_)));
    assert_eq!(world.primaries(), [Some(1); 4]);
}

#[test]
fn no_traffic_pauses_and_asks() {
    let (mut world, end) = broken_at(quick(), at_step("activate wave canary"), |world| {
        for sidecar in world.sidecars.values_mut() {
            sidecar.has_traffic = false;
        }
    });
    assert!(reason(&end).contains("0 messages"), "{}", reason(&end));
    assert_eq!(world.primary("canary"), Some(2), "nothing was rolled back");
    assert_eq!(world.primary("standard"), Some(1), "and nothing goes on");
    let (state, actions) = ask(end, Verb::Promote, world.now);
    let state = world.run(state, actions);
    assert_eq!(world.primary("standard"), Some(2));
    assert!(
        matches!(state.phase, Phase::Paused(_)),
        "the next wave has none, either"
    );
}

#[test]
fn a_sidecar_that_vanishes_during_a_soak_is_inconclusive() {
    let (world, end) = broken_at(quick(), at_step("soak wave canary"), |world| {
        world.sidecar("a").is_up = false;
    });
    assert!(
        reason(&end).contains("a did not answer"),
        "{}",
        reason(&end)
    );
    assert_eq!(world.primaries()[..2], [Some(2), Some(1)]);
}

#[test]
fn a_short_silence_does_not_stop_a_soak() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let mut rounds = 0;
    let state = world.run_until(state, actions, |state, _| {
        rounds += u32::from(state.present().describe().starts_with("soak wave canary"));
        rounds == 3
    });
    world.sidecar("b").is_up = false;
    let (state, actions) = step(state, Event::Woken, world.now);
    let mut rounds = 0;
    let state = world.run_until(state, actions, |_, action| {
        rounds += u32::from(*action == Action::Observe);
        rounds == 3
    });
    world.sidecar("b").is_up = true;
    let (state, actions) = step(state, Event::Woken, world.now);
    assert_eq!(world.run(state, actions).phase, Phase::Finished);
}

#[test]
fn a_sidecar_that_restarts_counts_from_then_on() {
    let (_, end) = broken_at(quick(), at_step("soak wave canary"), |world| {
        let now = world.now;
        world.sidecar("a").restart(now);
    });
    assert_eq!(end.phase, Phase::Finished);
}

#[test]
fn failures_before_an_activation_are_not_held_against_it() {
    let mut world = World::new();
    for sidecar in world.sidecars.values_mut() {
        sidecar
            .counters
            .failed
            .insert("decryption_failed".into(), 1000);
    }
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    assert_eq!(world.run(state, actions).phase, Phase::Finished);
}

#[test]
fn a_location_or_kek_that_is_down_for_a_while_is_waited_for() {
    for (name, harm) in [
        ("store", (|world| world.has_store = false) as fn(&mut World)),
        ("keks", |world| world.has_keks = false),
    ] {
        for at in ["generate", "distribute", "activate wave standard", "finish"] {
            let mut world = World::new();
            let (state, actions) = world.begin(quick(), Intent::Rotate);
            let state = world.run_until(state, actions, at_step(at));
            harm(&mut world);
            let (state, actions) = step(state, Event::Resumed, world.now);
            let down_until = world.now.checked_add(jiff::SignedDuration::from_secs(120));
            let state = {
                let until = down_until.expect("in range");
                let mut state = state;
                let mut actions = std::collections::VecDeque::from(actions);
                while world.now < until {
                    let action = actions.pop_front().expect("it goes on trying");
                    if let Some(event) = world.perform(&state, &action) {
                        let (next, ordered) = step(state, event, world.now);
                        state = next;
                        actions = ordered.into();
                    }
                    if actions.is_empty() {
                        break;
                    }
                }
                state
            };
            world.has_store = true;
            world.has_keks = true;
            assert_eq!(
                state.phase,
                Phase::Running,
                "{name} at {at}: {:?}",
                state.entries.last()
            );
            world.pass(2);
            let (state, actions) = step(state, Event::Woken, world.now);
            let end = world.run(state, actions);
            assert_eq!(
                end.phase,
                Phase::Finished,
                "{name} at {at}: {:?}",
                end.entries.last()
            );
        }
    }
}

#[test]
fn a_location_that_stays_down_fails_the_step() {
    let (_, end) = broken_at(quick(), at_step("generate"), |world| {
        world.has_store = false
    });
    assert!(end.is_halted());
    assert!(
        reason(&end).contains("the location is down"),
        "{}",
        reason(&end)
    );
}

#[test]
fn a_location_that_went_back_halts() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let old = world.document.clone();
    let state = world.run_until(state, actions, at_step("prove"));
    for sidecar in world.sidecars.values_mut() {
        sidecar.refreshes = false;
    }
    world.document = old;
    let (state, actions) = step(state, Event::Woken, world.now);
    let end = world.run(state, actions);
    assert!(end.is_halted());
    assert!(reason(&end).contains("it went back"), "{}", reason(&end));
}

#[test]
fn changes_by_hand_halt_and_a_touch_does_not() {
    let (world, end) = broken_at(quick(), at_step("soak wave canary"), |world| {
        world.by_hand(|current, now| {
            keyring::activate(current, 1, "canary".parse().expect("a wave"), None, now)
        });
    });
    assert!(end.is_halted());
    assert!(
        reason(&end).contains("another primary by hand"),
        "{}",
        reason(&end)
    );
    assert_eq!(
        world.primary("canary"),
        Some(1),
        "the person's decision is left alone"
    );
    let (_, end) = broken_at(quick(), at_step("soak wave canary"), |world| {
        world.by_hand(|current, now| Ok(keyring::touch(current, now)));
    });
    assert_eq!(end.phase, Phase::Finished);
}

#[test]
fn a_version_that_is_flagged_during_its_rollout_halts_it() {
    let (_, end) = broken_at(quick(), at_step("soak wave standard"), |world| {
        world.by_hand(|current, now| {
            let next = keyring::compromise(current, 2, now)?;
            Ok(next)
        });
    });
    assert!(end.is_halted(), "{:?}", end.phase);
}

#[test]
fn an_old_version_that_is_still_used_is_not_retired() {
    let strategy = Strategy {
        observe: Some(Observe {
            within: Some("10m".parse().expect("a span")),
        }),
        ..retiring()
    };
    let mut world = World::new();
    let (state, actions) = world.begin_despite_blockers(strategy);
    let state = world.run_until(state, actions, at_step("observe"));
    // It doesn't learn of the new primary, and its applications go on.
    world.sidecar("f").refreshes = false;
    let stale = {
        let mut before = World::new();
        let (state, actions) = before.begin(quick(), Intent::Rotate);
        before.run_until(state, actions, at_step("prove"));
        before.document
    };
    world.sidecar("f").document = stale;
    let (state, actions) = step(state, Event::Woken, world.now);
    let end = world.run(state, actions);
    let Phase::Paused(PauseReason::StillUsed(reason)) = &end.phase else {
        panic!("{:?}", end.phase)
    };
    assert!(reason.contains('f'), "{reason}");
    let old = world.manifest().version(1).expect("listed");
    assert_eq!(old.state, keyring::State::Enabled);
}

#[test]
fn a_sidecar_of_the_wave_that_falls_back_is_inconclusive() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let state = world.run_until(state, actions, at_step("prove"));
    let before = world.document.clone();
    let (state, actions) = step(state, Event::Woken, world.now);
    let state = world.run_until(state, actions, at_step("soak wave canary"));
    // As after a restart from its cached copy, without a way to the location.
    world.sidecar("a").refreshes = false;
    world.sidecar("a").document = before;
    let (state, actions) = step(state, Event::Woken, world.now);
    let end = world.run(state, actions);
    assert!(
        reason(&end).contains("a encrypts with 1"),
        "{}",
        reason(&end)
    );
    assert_eq!(
        world.primaries()[..2],
        [Some(2), Some(1)],
        "neither on nor back"
    );
}

#[test]
fn a_refusal_to_retire_the_old_version_halts_and_rolls_nothing_back() {
    let strategy = Strategy {
        destroy: Some(Retire::default()),
        ..retiring()
    };
    let mut world = World::new();
    world.by_hand(|current, now| Ok(keyring::touch(current, now)));
    let (_, end) = {
        world.pass(1);
        let (state, actions) = world.begin_despite_blockers(strategy);
        let state = world.run_until(state, actions, at_step("destroy"));
        world.has_backup = false;
        let (state, actions) = step(state, Event::Resumed, world.now);
        (state.id, world.run(state, actions))
    };
    assert!(end.is_halted(), "{:?}", end.phase);
    assert!(
        reason(&end).contains("no verified backup"),
        "{}",
        reason(&end)
    );
    assert_eq!(world.primaries(), [Some(2); 4]);
}

#[test]
fn a_use_between_evidence_and_disable_is_waited_out() {
    let mut world = World::new();
    let (state, actions) = world.begin_despite_blockers(retiring());
    let state = world.run_until(state, actions, |_, action| {
        matches!(action, Action::Write(Write::Disable { .. }))
    });
    // The signer asks the sidecars itself, and one began to count again.
    let now = world.now;
    world.sidecar("f").restart(now);
    let (state, actions) = step(state, Event::Resumed, world.now);
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    let old = world.manifest().version(1).expect("listed");
    assert_eq!(old.state, keyring::State::Destroyed);
    assert!(
        world.now.duration_since(now).as_secs() >= 60,
        "a whole quiet period"
    );
}

#[test]
fn a_sidecar_that_leaves_the_fleet_is_inconclusive_in_a_soak_and_a_use_later() {
    let (_, end) = broken_at(quick(), at_step("soak wave canary"), |world| {
        world.sidecars.remove("b");
    });
    assert!(
        reason(&end).contains("b is no longer in the fleet"),
        "{}",
        reason(&end)
    );
    let mut world = World::new();
    let (state, actions) = world.begin_despite_blockers(retiring());
    let state = world.run_until(state, actions, at_step("observe"));
    let (state, actions) = step(state, Event::Woken, world.now);
    let mut rounds = 0;
    let state = world.run_until(state, actions, |_, action| {
        rounds += u32::from(*action == Action::Observe);
        rounds == 40
    });
    let gone = world.now;
    world.sidecars.remove("b");
    let (state, actions) = step(state, Event::Woken, world.now);
    let state = world.run_until(state, actions, at_step("disable"));
    assert_eq!(state.phase, Phase::Running);
    // It was last seen a poll before.
    assert!(world.now.duration_since(gone).as_secs() >= 58);
}

#[test]
fn an_unwatched_soak_begins_again() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let state = world.run_until(state, actions, at_step("soak wave canary"));
    world.pass(3600);
    let resumed = world.now;
    let (state, actions) = step(state, Event::Resumed, world.now);
    world.run_until(state, actions, |_, action| {
        is_activation_of(action, "standard")
    });
    assert!(world.now.duration_since(resumed).as_secs() >= 10);
}

#[test]
fn an_emergency_waits_for_no_turn() {
    let mut world = World::new();
    world.sidecar("a").unopened = Some("its turn is in an hour".into());
    world.sidecar("a").waits = true;
    let begun = world.now;
    let intent = Intent::ReplaceCompromised { version: 1 };
    let (state, actions) = world.begin(quick(), intent);
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    let took = world.now.duration_since(begun);
    assert!(took.as_secs() < 30, "{took:?}");
}

#[test]
fn no_sidecar_stops_an_emergency() {
    let mut world = World::new();
    let newer = world.document.clone();
    world.by_hand(|current, now| Ok(keyring::touch(current, now)));
    let ahead = world.document.clone();
    world.document = newer;
    world.sidecar("a").refreshes = false;
    world.sidecar("a").document = ahead;
    world.sidecar("b").is_up = false;
    let intent = Intent::ReplaceCompromised { version: 1 };
    let (state, actions) = world.begin(quick(), intent);
    let end = world.run(state, actions);
    assert_eq!(end.phase, Phase::Finished, "{:?}", end.entries.last());
    assert!(world.manifest().version(1).expect("listed").compromised);
    assert_eq!(world.primary("critical"), Some(2));
}
