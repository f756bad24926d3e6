//! The fence of rollouts, and the changes that only a rollout makes.

use super::*;

type Marked = Result<Manifest, Refusal>;

/// Asserts that every wave has its former primary at `now` and at any time after.
pub(super) fn assert_is_back(
    next: &Manifest,
    former: &BTreeMap<WaveSelector, u32>,
    now: Timestamp,
) {
    assert_eq!(next.rollout, None);
    let times = next.activations.iter().map(|activation| activation.at);
    let times = times.filter(|at| *at > now).chain([now]);
    for at in times {
        for name in WAVES.iter().copied().chain(["other"]) {
            let name: Wave = name.parse().expect("wave");
            let expected = former
                .get(&WaveSelector::One(name.clone()))
                .or(former.get(&WaveSelector::Every));
            if let Some(expected) = expected {
                let primary = primary_at(&next.activations, at, &name);
                assert_eq!(primary, Some(*expected), "wave {name} at {at}");
            }
        }
    }
    assert_eq!(scheduled(&next.activations, now).count(), 0);
}

fn advance(world: &World, mark: RolloutMark) -> Marked {
    advance_rollout(&world.document, touch(&world.document, world.now), mark)
}

#[test]
fn a_rollout_goes_on_step_by_step_and_alone() {
    let mut world = World::new();
    let first = advance(&world, mark(1, 2, 1)).expect("none is active");
    assert_eq!(first.rollout, Some(mark(1, 2, 1)));
    world.publish(first);

    let done = |step, attempt| Refusal::RolloutStepDone {
        id: id_of(1),
        step,
        attempt,
    };
    for (step, attempt) in [(2, 1), (1, 9)] {
        assert_eq!(advance(&world, mark(1, step, attempt)), Err(done(2, 1)));
    }
    for (step, attempt) in [(2, 2), (3, 1), (9, 1)] {
        assert!(advance(&world, mark(1, step, attempt)).is_ok());
    }
    let other = Refusal::OtherRollout {
        id: id_of(1),
        step: 2,
    };
    assert_eq!(advance(&world, mark(2, 1, 1)), Err(other.clone()));
    let mut changed = mark(1, 3, 1);
    changed.plan.0[0] ^= 1;
    assert_eq!(advance(&world, changed), Err(Refusal::OtherPlan(id_of(1))));

    // It ends once, and doesn't begin again.
    assert_eq!(
        end_rollout(&world.document, id_of(2), world.now),
        Err(other)
    );
    world.apply(&Step::EndRollout(1));
    assert_eq!(world.document.manifest().rollout, None);
    let ended = Err(Refusal::RolloutEnded(id_of(1)));
    assert_eq!(end_rollout(&world.document, id_of(1), world.now), ended);
    assert_eq!(advance(&world, mark(1, 3, 1)), ended);
    let unknown = Err(Refusal::NoSuchRollout(id_of(2)));
    assert_eq!(end_rollout(&world.document, id_of(2), world.now), unknown);
    assert!(advance(&world, mark(2, 1, 1)).is_ok());
}

#[test]
fn the_last_rollouts_that_ended_are_remembered() {
    let mut world = World::new();
    for rollout in 0..20 {
        world.apply(&Step::Advance { rollout, step: 1 });
        world.apply(&Step::EndRollout(rollout));
    }
    let expected: Vec<RolloutId> = (4..20).rev().map(id_of).collect();
    assert_eq!(world.document.manifest().ended_rollouts, expected);
    assert_eq!(
        require_last_rollout(world.document.manifest(), id_of(19)),
        Ok(())
    );
    assert_eq!(
        require_last_rollout(world.document.manifest(), id_of(18)),
        Err(Refusal::NoSuchRollout(id_of(18)))
    );
}

/// Version 2 is primary for the canaries, scheduled for the rest, and its rollout is active.
fn halfway() -> World {
    let mut world = World::new();
    for step in [
        Step::Rotate,
        Step::Advance {
            rollout: 1,
            step: 1,
        },
        Step::Activate {
            version: 2,
            wave: Some(0),
            in_seconds: None,
        },
        Step::Activate {
            version: 2,
            wave: Some(1),
            in_seconds: Some(50),
        },
        Step::Activate {
            version: 2,
            wave: None,
            in_seconds: Some(100),
        },
        Step::Wait(10),
    ] {
        world.apply(&step);
    }
    world
}

fn to_version_1() -> BTreeMap<WaveSelector, u32> {
    BTreeMap::from([(WaveSelector::Every, 1)])
}

#[test]
fn a_rollback_cancels_whatever_is_scheduled_in_one_generation() {
    let mut world = halfway();
    let next = roll_back(&world.document, &to_version_1(), world.now).expect("allowed");
    assert_is_back(&next, &to_version_1(), world.now);
    assert_eq!(
        next.activations.len(),
        world.document.manifest().activations.len() + 1,
        "one activation is enough for waves with one former primary"
    );
    world.publish(next);
    assert_eq!(world.document.manifest().ended_rollouts, [id_of(1)]);
}

#[test]
fn waves_go_back_to_their_own_former_primaries() {
    let world = halfway();
    let canary = WaveSelector::One(wave(0));
    let own = BTreeMap::from([(WaveSelector::Every, 1), (canary.clone(), 2)]);
    let next = roll_back(&world.document, &own, world.now).expect("allowed");
    assert_is_back(&next, &own, world.now);
    // Without a record, a wave keeps its present primary, and what was scheduled for it is off.
    let partial = BTreeMap::from([(canary, 1)]);
    let next = roll_back(&world.document, &partial, world.now).expect("allowed");
    assert_is_back(&next, &to_version_1(), world.now);
    // Also one that no activation names yet.
    let unnamed = BTreeMap::from([(WaveSelector::Every, 1), (WaveSelector::One(wave(2)), 2)]);
    let next = roll_back(&world.document, &unnamed, world.now).expect("allowed");
    assert_is_back(&next, &unnamed, world.now);
}

#[test]
fn a_former_primary_is_enabled_unless_it_can_never_encrypt_again() {
    let mut world = World::new();
    world.rotate_to(2);
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    world.apply(&Step::Wait(5));
    let next = roll_back(&world.document, &to_version_1(), world.now).expect("allowed");
    assert_eq!(next.versions[0].state, State::Enabled);
    assert_eq!(next.versions[0].state_changed_at, world.now);

    let refused = |world: &World| {
        roll_back(&world.document, &to_version_1(), world.now)
            .expect_err("refused")
            .to_string()
    };
    world.apply(&Step::Compromise(1));
    let text = refused(&world);
    assert!(text.contains("wave *: version 1"), "{text}");
    assert!(
        text.contains("is marked compromised. Roll forward"),
        "{text}"
    );
    world.apply(&Step::Wait(60));
    world.apply(&Step::Destroy(1));
    let text = refused(&world);
    assert!(text.contains("was destroyed. Roll forward"), "{text}");
}

#[test]
fn a_compromised_version_is_replaced_everywhere_in_one_generation() {
    let mut world = halfway();
    world.apply(&Step::Rotate);
    let next = replace_compromised(&world.document, 2, 3, world.now).expect("allowed");
    assert!(next.versions[1].compromised);
    assert_is_back(
        &next,
        &BTreeMap::from([(WaveSelector::Every, 3)]),
        world.now,
    );
    assert_eq!(next.ended_rollouts, [id_of(1)], "it is preempted");

    let replace = |compromised, successor| {
        replace_compromised(&world.document, compromised, successor, world.now)
    };
    assert_eq!(replace(2, 2), Err(Refusal::OwnSuccessor(2)));
    assert!(matches!(replace(2, 4), Err(Refusal::NoSuchVersion { .. })));
    assert!(matches!(replace(9, 3), Err(Refusal::NoSuchVersion { .. })));
    world.apply(&Step::Compromise(3));
    assert_eq!(
        replace_compromised(&world.document, 2, 3, world.now),
        Err(Refusal::Compromised(3))
    );
}

#[test]
fn an_emergency_goes_on_where_it_preempts_another_rollout() {
    let mut world = halfway();
    world.apply(&Step::Rotate);
    let replace = |world: &World, mark| {
        let next = replace_compromised(&world.document, 2, 3, world.now).expect("allowed");
        advance_rollout(&world.document, next, mark)
    };
    let next = replace(&world, mark(2, 1, 1)).expect("the other one ends");
    assert_eq!(next.rollout, Some(mark(2, 1, 1)));
    assert_eq!(next.ended_rollouts, [id_of(1)]);
    // As a step of the active rollout, it doesn't end that.
    let next = replace(&world, mark(1, 2, 1)).expect("its turn");
    assert_eq!(next.rollout, Some(mark(1, 2, 1)));
    assert_eq!(next.ended_rollouts, []);
    world.publish(next);
    // But it can't take the place of a step that is done.
    assert!(matches!(
        replace(&world, mark(1, 2, 1)),
        Err(Refusal::RolloutStepDone { .. })
    ));
}

#[test]
fn a_change_by_hand_waits_for_the_rollout() {
    let mut world = halfway();
    world.apply(&Step::Rotate);
    let (current, now) = (Arc::clone(&world.document), world.now);
    let by_hand = |next: Manifest| require_no_rollout(current.manifest(), &next);
    let refused = Err(Refusal::RolloutActive {
        id: id_of(1),
        step: 1,
    });
    let (new, _) = new_version(current.manifest().id, 4);
    assert_eq!(by_hand(rotate(&current, new, now)), refused);
    let activated = activate(&current, 3, WaveSelector::Every, None, now);
    assert_eq!(by_hand(activated.expect("allowed")), refused);
    let evidence = Evidence::Override("test".into());
    let disabled = disable(&current, 3, &evidence, now);
    assert_eq!(by_hand(disabled.expect("pending")), refused);
    let wraps = vec![Wrap {
        kek: "local:/kek2".parse().expect("uri"),
        ciphertext: Base64(vec![1]),
        wrapped_at: now,
    }];
    let rewrapped = rewrap(&current, BTreeMap::from([(1, wraps)]), now);
    assert_eq!(by_hand(rewrapped.expect("allowed")), refused);

    // What has nothing to do with it, or ends it.
    assert_eq!(by_hand(touch(&current, now)), Ok(()));
    let backup = BackupRecord {
        verified_at: now,
        sha256: Base64(vec![5; 32]),
        generation: 1,
        newest_version: 1,
    };
    let recorded = record_backup(&current, current.manifest().id, &backup, now);
    assert_eq!(by_hand(recorded.expect("allowed")), Ok(()));
    assert_eq!(
        by_hand(compromise(&current, 1, now).expect("allowed")),
        Ok(())
    );
    let ended = end_rollout(&current, id_of(1), now).expect("active");
    assert_eq!(by_hand(ended), Ok(()));
    let moved = advance_rollout(&current, touch(&current, now), mark(1, 2, 1));
    assert_eq!(by_hand(moved.expect("its turn")), Ok(()));
}

#[test]
fn readers_that_lag_follow_through_marks_and_without_them() {
    let mut world = halfway();
    world.apply(&Step::RollBack(5));
    let dropped = {
        let mut next = touch(&world.document, world.now);
        next.ended_rollouts.clear();
        next
    };
    world.publish(dropped);
    world.apply(&Step::Advance {
        rollout: 2,
        step: 1,
    });
    for lagging in &world.history {
        assert!(verdict(lagging, &world.document).is_ok());
    }
    // A mark is covered by the words.
    let mut forged = world.document.manifest().clone();
    forged.rollout = Some(mark(2, 2, 1));
    let forged = Document::parse(serde_json::to_vec(&forged).expect("JSON")).expect("consistent");
    assert!(matches!(
        verify_words(&forged),
        Err(Rejection::Unauthenticated(_))
    ));
}

#[test]
fn a_merge_and_a_restore_end_every_rollout() {
    let mut world = World::new();
    let fork = Arc::clone(&world.document);
    world.apply(&Step::Advance {
        rollout: 1,
        step: 1,
    });
    let other = advance_rollout(&fork, touch(&fork, world.now), mark(2, 1, 1));
    let other = reread(&world.authenticate(other.expect("none is active")));
    let merged = merge(&world.document, &[&other], world.now).expect("mergeable");
    assert_eq!(merged.rollout, None);
    assert_eq!(merged.ended_rollouts, [id_of(1), id_of(2)]);
    let merged = reread(&world.authenticate(merged));
    assert!(verdict(&other, &merged).is_ok());

    let backup = BackupRecord {
        verified_at: world.now,
        sha256: Base64(vec![5; 32]),
        generation: 1,
        newest_version: 1,
    };
    let restored = restore(&world.document, BTreeMap::new(), &backup, 3, world.now);
    assert_eq!(
        (restored.rollout, restored.ended_rollouts),
        (None, vec![id_of(1)])
    );
}

#[test]
fn a_rollout_id_is_written_in_lower_case_digits() {
    let id = RolloutId::generate().expect("random");
    let text = id.to_string();
    assert_eq!((text.len(), text.parse()), (32, Ok(id)));
    assert!(text.replace(|_| true, "A").parse::<RolloutId>().is_err());
    assert!("00".parse::<RolloutId>().is_err());
}
