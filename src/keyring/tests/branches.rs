//! Stores that were rolled back and written again.

use super::*;

/// The generations after `from` that an operator writes who doesn't know the newer ones.
fn write_on(world: &World, from: &Document, changes: usize) -> Arc<Document> {
    let mut branch = reread(from);
    for _ in 0..changes {
        branch = reread(&world.authenticate(touch(&branch, world.now)));
    }
    branch
}

#[test]
fn readers_of_both_branches_follow_a_merge() {
    let mut world = World::new();
    world.rotate_to(2);
    world.now += std::time::Duration::from_secs(5);
    let other = write_on(&world, &world.history[1], 2);
    assert!(verdict(&world.document, &other).is_err());
    assert!(verdict(&other, &world.document).is_err());
    assert!(is_vouched_for(&world.document, &other, &[]));
    assert!(is_vouched_for(&other, &world.document, &[]));

    let merged = merge(&world.document, &[&other], world.now).expect("mergeable");
    let merged = reread(&world.authenticate(merged));
    assert_eq!(merged.manifest().generation, 5);
    for base in [
        &world.document,
        &other,
        &world.history[0],
        &world.history[1],
    ] {
        assert_eq!(verdict(base, &merged), Ok(Succession::Newer));
    }
    assert_eq!(
        primary_at(&merged.manifest().activations, world.now, &wave(0)),
        Some(2)
    );
}

#[test]
fn a_branch_keeps_its_primary_although_the_other_activated_another_version() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    let fork = Arc::clone(&world.document);
    world.apply(&Step::Activate {
        version: 2,
        wave: Some(0),
        in_seconds: None,
    });
    let chosen = reread(&world.authenticate(compromise(&fork, 2, world.now).expect("version 2")));
    let merged = merge(&chosen, &[&world.document], world.now).expect("mergeable");
    let merged = reread(&world.authenticate(merged));
    for index in 0..WAVES.len() {
        assert_eq!(
            primary_at(&merged.manifest().activations, world.now, &wave(index)),
            Some(1)
        );
    }
    assert!(verdict(&world.document, &merged).is_ok());
    // The chosen branch flagged version 2, which the other activated: its readers refuse that.
    assert_eq!(
        verdict(&chosen, &merged),
        Err(Rejection::CompromisedActivated(2))
    );
}

#[test]
fn a_forged_manifest_is_not_vouched_for() {
    let world = World::new();
    let stranger = World::new();
    let mut forged = stranger.document.manifest().clone();
    forged.id = world.document.manifest().id;
    let forged = reread(&stranger.authenticate(forged));
    assert!(!is_vouched_for(&world.document, &forged, &[]));
    assert!(!is_vouched_for(&world.document, &stranger.document, &[]));
}

#[test]
fn a_lineage_keeps_or_drops_generations_of_two_branches_together() {
    let mut world = World::new();
    for _ in 0..LINEAGE + 10 {
        world.apply(&Step::Touch);
    }
    let lineage = &world.document.manifest().lineage;
    assert_eq!(lineage.len(), LINEAGE);
    assert_eq!(
        verdict(&world.history[0], &world.document),
        Ok(Succession::Newer),
        "a reader beyond the lineage follows by the words"
    );
    let other = write_on(&world, &world.history[40], 30);
    let merged = merge(&world.document, &[&other], world.now).expect("mergeable");
    let merged = reread(&world.authenticate(merged));
    assert!(merged.manifest().lineage.len() <= LINEAGE);
    for base in world.history.iter().chain([&other]) {
        assert_eq!(verdict(base, &merged), Ok(Succession::Newer));
    }
}

#[test]
fn a_copied_check_value_does_not_make_another_key_trusted() {
    let mut world = World::new();
    let genuine = Arc::clone(&world.document);
    let (new, dek) = new_version(genuine.manifest().id, 1);
    let mut forged = genuine.manifest().clone();
    forged.versions[0].key = Base64(new.key.to_vec());
    world.deks.insert(1, dek);
    let forged = reread(&world.authenticate(forged));
    assert_eq!(verify_words(&forged), Ok(()), "consistent in itself");
    assert!(!is_vouched_for(&genuine, &forged, &[]));
}

#[test]
fn a_branch_that_lost_or_destroyed_a_version_is_vouched_for() {
    let mut world = World::new();
    world.rotate_to(2);
    let fork = Arc::clone(&world.document);
    let phrase = lost_phrase(&fork.manifest().name, &[1]);
    let loss = Loss {
        versions: &[1],
        confirm: Some(&phrase),
        successor: None,
    };
    let lost = declare_lost(&fork, loss, world.now).expect("allowed");
    let lost = reread(&world.authenticate(lost));
    assert!(!is_vouched_for(&fork, &lost, &[2]));
    assert!(is_vouched_for(&fork, &lost, &[1]));

    // The other branch destroys version 1 in a generation that this one has reached otherwise.
    let here = write_on(&world, &fork, 9);
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    world.apply(&Step::Wait(60));
    world.apply(&Step::Destroy(1));
    assert!(world.document.manifest().generation < here.manifest().generation);
    assert!(is_vouched_for(&here, &world.document, &[]));
}

#[test]
fn a_primary_that_the_other_branch_gave_up_makes_the_branches_unmergeable() {
    let mut world = World::new();
    world.rotate_to(2);
    // Here, version 1 is the primary again.
    let fork = Arc::clone(&world.document);
    let here = activate(&fork, 1, WaveSelector::Every, None, world.now).expect("enabled");
    let here = reread(&world.authenticate(here));

    let flagged = compromise(&fork, 1, world.now).expect("version 1");
    let flagged = reread(&world.authenticate(flagged));
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    world.apply(&Step::Wait(60));
    world.apply(&Step::Destroy(1));
    for other in [&flagged, &world.document] {
        assert_eq!(
            merge(&here, &[other], world.now),
            Err(Refusal::Unmergeable {
                version: 1,
                wave: WaveSelector::Every
            })
        );
    }
}

#[test]
fn a_branch_with_another_key_of_one_number_is_left_out() {
    let mut world = World::new();
    world.rotate_to(2);
    let here = Arc::clone(&world.document);
    let edits: [fn(&mut Manifest); 3] = [
        |manifest| manifest.versions[1].check = Base64(vec![1; 32]),
        |manifest| manifest.versions[1].key = Base64(vec![1; 32]),
        |manifest| {
            manifest.versions.remove(0);
            manifest
                .activations
                .retain(|activation| activation.version == 2);
            manifest.trimmed = Some(Trimmed {
                through: 1,
                l: Base64(vec![1; 32]),
            });
        },
    ];
    for edit in edits {
        let mut other = here.manifest().clone();
        edit(&mut other);
        let other = reread(&world.authenticate(other));
        let merged = merge(&here, &[&other], world.now).expect("without the other");
        let lists = |document: &Document| {
            let digest = document.digest();
            merged
                .lineage
                .iter()
                .any(|ancestor| ancestor.sha256.0 == digest)
        };
        assert!(lists(&here));
        assert!(!lists(&other));
        assert_eq!(merged.versions, here.manifest().versions);
    }
}

#[test]
fn a_merge_has_the_versions_and_decisions_of_both_branches_once() {
    let mut world = World::new();
    world.rotate_to(2);
    let here = write_on(&world, &world.document, 1);
    let before = here.manifest().activations.clone();
    world.apply(&Step::Rotate);
    world.apply(&Step::Activate {
        version: 3,
        wave: Some(0),
        in_seconds: None,
    });
    let merged = merge(&here, &[&world.document], world.now).expect("mergeable");
    assert_eq!(merged.newest_version(), 3);
    let decided: Vec<(u32, String)> = merged
        .activations
        .iter()
        .skip(before.len())
        .map(|activation| (activation.version, activation.wave.to_string()))
        .collect();
    let expected = [(3, "canary"), (2, "*"), (2, "canary")];
    assert_eq!(
        decided,
        expected.map(|(version, wave)| (version, wave.to_owned()))
    );
    assert_eq!(merged.activations[..before.len()], before);
}
