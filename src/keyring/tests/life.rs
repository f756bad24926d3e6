//! The whole life of a keyring (docs/operations.md), with every attacker at every step.

use std::collections::BTreeSet;

use super::{
    attacks::{Attacker, activate_everywhere, destroy_as, following},
    *,
};

/// Goes through the life of a keyring and calls `check` after every step.
fn live(mut check: impl FnMut(&str, &World)) {
    let mut world = World::new();
    let mut step = |what: &str, change: &dyn Fn(&mut World)| {
        world.now += std::time::Duration::from_secs(40);
        change(&mut world);
        check(what, &world);
    };
    let activate = |version, wave| Step::Activate {
        version,
        wave,
        in_seconds: None,
    };
    let disable = |version| Step::Disable {
        version,
        with_evidence: true,
    };
    step("init", &|_| ());
    step("rotate", &|world| world.apply(&Step::Rotate));
    step("canary", &|world| world.apply(&activate(2, Some(0))));
    step("rollback", &|world| world.apply(&activate(1, Some(0))));
    step("everywhere", &|world| world.apply(&activate(2, None)));
    step("touch", &|world| world.apply(&Step::Touch));
    step("change the policy", &|world| {
        world.apply(&Step::SetPolicy(policies::policy(5, 20, 5, Class::Live)));
    });
    let advance = |step| Step::Advance { rollout: 1, step };
    step("begin a rollout", &|world| world.apply(&advance(1)));
    step("move it on", &|world| world.apply(&advance(2)));
    step("end it", &|world| world.apply(&Step::EndRollout(1)));
    step("roll back", &|world| world.apply(&Step::RollBack(6)));
    step("roll forward", &|world| world.apply(&activate(2, None)));
    step("rewrap", &|world| {
        let wrap = |kek: &str| Wrap {
            kek: kek.parse().expect("uri"),
            ciphertext: Base64(vec![1]),
            wrapped_at: world.now,
        };
        let wraps = (1..=2).map(|version| (version, vec![wrap("local:/kek2")]));
        let next = rewrap(&world.document, wraps.collect(), world.now).expect("allowed");
        world.publish(next);
    });
    step("backup", &|world| {
        let next = record_backup(
            &world.document,
            world.document.manifest().id,
            &backup(world),
            world.now,
        );
        world.publish(next.expect("of this keyring"));
    });
    step("compromise", &|world| world.apply(&Step::Compromise(1)));
    step("disable", &|world| world.apply(&disable(1)));
    step("enable", &|world| world.apply(&Step::Enable(1)));
    step("disable again", &|world| world.apply(&disable(1)));
    step("destroy", &|world| world.apply(&Step::Destroy(1)));
    step("second rotation", &|world| world.rotate_to(3));
    step("disable 2", &|world| world.apply(&disable(2)));
    step("destroy 2", &|world| world.apply(&Step::Destroy(2)));
    step("third rotation", &|world| world.rotate_to(4));
    step("restore", &|world| {
        let generation = world.document.manifest().generation + 1;
        let next = restore(
            &world.document,
            BTreeMap::new(),
            &backup(world),
            generation,
            world.now,
        );
        world.publish(next);
    });
    step("trim", &|world| {
        let before = world.now;
        world.now += std::time::Duration::from_secs(401 * 24 * 3600);
        let next = trim(&world.document, before, world.now).expect("long enough");
        world.publish(next);
        assert_eq!(world.document.manifest().first_version(), 3);
    });
}

fn backup(world: &World) -> BackupRecord {
    let manifest = world.document.manifest();
    BackupRecord {
        verified_at: world.now,
        sha256: Base64(vec![5; 32]),
        generation: manifest.generation,
        newest_version: manifest.newest_version(),
    }
}

/// The unflagged versions whose word a reader with this base asks for.
fn vouchers(base: &Document) -> BTreeSet<u32> {
    base.manifest()
        .live()
        .filter(|version| !version.compromised)
        .map(|version| version.version)
        .collect()
}

#[test]
fn every_reader_follows_to_the_end_of_the_life() {
    live(|what, world| {
        for base in &world.history {
            let is_trimmed = base
                .manifest()
                .live()
                .any(|version| version.version < world.document.manifest().first_version());
            match verdict(base, &world.document) {
                Ok(_) => assert!(!is_trimmed, "{what}"),
                Err(error) => {
                    assert_eq!(error.code(), "too_far_behind", "{what}");
                    assert!(is_trimmed, "{what}: {error}");
                }
            }
        }
    });
}

#[test]
fn a_store_writer_can_put_nothing_back() {
    live(|what, world| {
        let current = &world.document;
        for old in &world.history[..world.history.len() - 1] {
            let error = verdict(current, old).expect_err(what);
            assert!(
                matches!(error.code(), "behind" | "went_back"),
                "{what}: {error}"
            );
            // Nor as a new generation: no one gives a word for it.
            let mut raised = old.manifest().clone();
            raised.generation = current.manifest().generation + 1;
            let raised = Document::compose(raised, |old, _| old.authentication.clone());
            let error = verdict(current, &raised).expect_err(what);
            assert!(
                matches!(error.code(), "diverged" | "unauthenticated"),
                "{what}: {error}"
            );
        }
    });
}

/// What someone would write who wants readers of `base` to encrypt under a key of theirs.
fn takeovers(base: &Document, world: &World, attacker: &mut Attacker) -> Vec<Manifest> {
    let mut with_own = following(base, world);
    let own = attacker.add_version(&mut with_own);
    activate_everywhere(&mut with_own, own);
    let live: Vec<u32> = base
        .manifest()
        .live()
        .map(|version| version.version)
        .collect();
    let mut alone = with_own.clone();
    let mut alone_enabled = with_own.clone();
    for version in live {
        destroy_as(&mut alone, version, None);
        let index = alone_enabled.index_of(version).expect("listed");
        alone_enabled.versions[index].state = State::Disabled;
    }
    // Without the past, as a new keyring of that name and id.
    let mut fresh = with_own.clone();
    fresh.lineage.truncate(1);
    fresh.lineage[0].sha256 = Base64(vec![1; 32]);
    fresh
        .activations
        .retain(|activation| activation.version == own);
    vec![with_own, alone, alone_enabled, fresh]
}

#[test]
fn a_store_writer_with_the_right_to_wrap_takes_no_reader_over() {
    live(|what, world| {
        for base in [&world.document, &world.history[0]] {
            let mut attacker = Attacker::new(world, &BTreeSet::new());
            for forged in takeovers(base, world, &mut attacker) {
                let forged = attacker.sign(forged);
                let error = verdict(base, &forged).expect_err(what);
                assert!(
                    matches!(
                        error.code(),
                        "diverged" | "unauthenticated" | "lost_version"
                    ),
                    "{what}: {error}"
                );
                // Nor does `recover` take it for a branch.
                assert!(!is_vouched_for(base, &forged, &[]), "{what}");
            }
        }
    });
}

#[test]
fn a_leaked_key_leads_only_readers_that_have_no_other() {
    live(|what, world| {
        for leaked in world.deks.keys() {
            let leaked = BTreeSet::from([*leaked]);
            let base = &world.document;
            let mut attacker = Attacker::new(world, &leaked);
            let leads = vouchers(base).is_subset(&leaked);
            for forged in takeovers(base, world, &mut attacker) {
                let verdict = verdict(base, &attacker.sign(forged));
                assert!(leads || verdict.is_err(), "{what}: {leaked:?} {verdict:?}");
            }
        }
    });
}

#[test]
fn a_clock_that_is_wrong_destroys_nothing_early() {
    live(|what, world| {
        for version in world.document.manifest().live() {
            let number = version.version;
            let phrase = backup_phrase(&world.document.manifest().name, number);
            let seen = world.sightings.of(number);
            // A slow clock stamps; the waits count from what was seen.
            let mut slow = world.document.manifest().clone();
            for version in &mut slow.versions {
                version.state_changed_at = Timestamp::UNIX_EPOCH;
            }
            for activation in &mut slow.activations {
                activation.at = Timestamp::UNIX_EPOCH;
            }
            let slow = world.authenticate(slow);
            let just_seen = Sighting {
                disabled: seen.disabled.map(|_| world.now),
                superseded: seen.superseded.map(|_| world.now),
                end: seen.end,
            };
            let early = destroy(&slow, number, Some(&phrase), just_seen, world.now);
            assert!(early.is_err(), "{what}: version {number}");
        }
    });
}
