//! Versions that are destroyed: what they leave, and what may be removed of them.

use super::*;
use crate::keyring::authentication::Chain;

/// Three versions: 1 and 2 are destroyed in order, 3 is the primary.
fn world_with_two_testaments() -> World {
    let mut world = World::new();
    for version in [2, 3] {
        world.rotate_to(version);
    }
    for version in [1, 2] {
        world.apply(&Step::Disable {
            version,
            with_evidence: true,
        });
        world.apply(&Step::Wait(60));
        world.apply(&Step::Destroy(version));
    }
    let states = world.document.manifest().versions.iter();
    let states: Vec<State> = states.map(|version| version.state).collect();
    assert_eq!(states, [State::Destroyed, State::Destroyed, State::Enabled]);
    world
}

#[test]
fn a_testament_names_the_versions_that_lived_and_covers_all_it_says() {
    let world = world_with_two_testaments();
    let testament = |version| {
        let version = world.document.manifest().version(version).expect("listed");
        version.testament.clone().expect("a testament")
    };
    assert_eq!((testament(1).newest, testament(1).heirs), (3, vec![2, 3]));
    assert_eq!((testament(2).newest, testament(2).heirs), (3, vec![3]));
    let edits: [fn(&mut Testament); 3] = [
        |testament| testament.generation -= 1,
        |testament| testament.newest -= 1,
        |testament| testament.heirs.truncate(1),
    ];
    for edit in edits {
        let mut manifest = touch(&world.document, world.now);
        edit(
            manifest.versions[0]
                .testament
                .as_mut()
                .expect("a testament"),
        );
        if let Some(testament) = &mut manifest.versions[0].testament
            && testament.newest == 2
        {
            testament.heirs.retain(|heir| *heir <= 2);
        }
        let edited = reread(&world.authenticate(manifest));
        assert_eq!(verify_words(&edited), Err(Rejection::Unauthenticated(1)));
    }
    // Moved to another version.
    let mut manifest = touch(&world.document, world.now);
    manifest.versions[0].testament = manifest.versions[1].testament.clone();
    let moved = reread(&world.authenticate(manifest));
    assert_eq!(verify_words(&moved), Err(Rejection::Unauthenticated(1)));
}

#[test]
fn destroyed_versions_can_be_trimmed() {
    let world = world_with_two_testaments();
    let chain = Chain::of(world.document.manifest());
    assert_ne!(
        chain.at(1),
        chain.at(2),
        "each link commits to one more version"
    );
    let long_ago = world.document.manifest().versions[1].state_changed_at;
    let now = world.now + std::time::Duration::from_secs(500 * 24 * 3600);
    let mut next = trim(&world.document, long_ago, now).expect("long enough");
    let l = chain.at(1).expect("listed").to_vec();
    let trimmed = Trimmed {
        through: 1,
        l: Base64(l),
    };
    assert_eq!(next.trimmed, Some(trimmed), "version 2 was destroyed later");
    assert_eq!(
        next.activations
            .iter()
            .map(|activation| activation.version)
            .min(),
        Some(3)
    );
    let trimmed = reread(&world.authenticate(next.clone()));
    assert_eq!(trimmed.manifest().version(1), None);
    assert_eq!(trimmed.manifest().version(3).expect("listed").version, 3);
    assert_eq!(
        Chain::of(trimmed.manifest()).at(3),
        chain.at(3),
        "the chain goes on from what was trimmed"
    );
    assert_eq!(verify_words(&trimmed), Ok(()));
    for base in world.history.iter().rev() {
        let holds_first = base.manifest().versions[0].state != State::Destroyed;
        let expected = if holds_first {
            Err(Rejection::TooFarBehind(1))
        } else {
            Ok(Succession::Newer)
        };
        assert_eq!(verdict(base, &trimmed), expected);
    }
    // A fresh reader that trusts the trimmed version by its config is told so.
    let anchored = |version: u32| {
        let listed = &world.history[0].manifest().versions[0];
        let expect = Expectations {
            anchor: Some(crate::model::Anchor {
                version,
                key: listed.key.0.as_slice().try_into().expect("32 bytes"),
            }),
            ..expectations(&trimmed)
        };
        examine(None, &trimmed, &expect)
    };
    assert_eq!(anchored(1), Err(Rejection::AnchorTrimmed(1)));
    assert_eq!(anchored(9), Err(Rejection::Vanished(9)));
    // A rotation counts on.
    let (new, _) = new_version(trimmed.manifest().id, 4);
    assert_eq!(rotate(&trimmed, new, world.now).newest_version(), 4);

    // Another past than the one that is known.
    next.trimmed = Some(Trimmed {
        through: 1,
        l: Base64(vec![7; 32]),
    });
    let forged = authenticate(next, &succession_keys(&world.deks), None).expect("keys");
    assert_eq!(
        verdict(&world.document, &forged),
        Err(Rejection::KeyReplaced(1))
    );
}

#[test]
fn a_version_without_an_heir_is_not_destroyed() {
    let mut world = World::new();
    world.rotate_to(2);
    world.apply(&Step::Compromise(2));
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    world.apply(&Step::Wait(60));
    let phrase = backup_phrase(&world.document.manifest().name, 1);
    assert_eq!(
        destroy(
            &world.document,
            1,
            Some(&phrase),
            world.sightings.of(1),
            world.now
        ),
        Err(Refusal::NoHeir(1))
    );
}

#[test]
fn a_restore_replaces_the_wraps_of_versions_that_live() {
    let world = world_with_two_testaments();
    let wrap = Wrap {
        kek: "local:/other".parse().expect("uri"),
        ciphertext: Base64(vec![1]),
        wrapped_at: world.now,
    };
    let wraps = (1..=3).map(|version| (version, vec![wrap.clone()]));
    let backup = BackupRecord {
        verified_at: Timestamp::UNIX_EPOCH,
        sha256: Base64(vec![5; 32]),
        generation: 1,
        newest_version: 3,
    };
    let restored = restore(&world.document, wraps.collect(), &backup, 40, world.now);
    let wraps: Vec<&[Wrap]> = restored
        .versions
        .iter()
        .map(|version| version.wraps.as_slice())
        .collect();
    assert_eq!(wraps, [&[][..], &[], &[wrap]]);
    assert_eq!(restored.generation, 40);
    let recorded = restored.last_backup.as_ref().expect("recorded");
    assert_eq!(recorded.verified_at, world.now);
    assert_eq!(
        verdict(
            &world.document,
            &reread(&world.authenticate(restored.clone()))
        ),
        Ok(Succession::Newer)
    );
}
