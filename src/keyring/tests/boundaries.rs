//! Decisions at their limits, each by itself.

use super::*;
use crate::keyring::lifecycle::limit_lineage;

fn at(world: &World, seconds: i64) -> Timestamp {
    Timestamp::from_second(world.now.as_second() + seconds).expect("in range")
}

fn activation(version: u32, wave: usize, at: Timestamp) -> Activation {
    Activation {
        version,
        wave: WaveSelector::One(super::wave(wave)),
        at,
        generation: None,
    }
}

#[test]
fn a_version_is_quiet_once_its_quiet_period_is_over_to_the_millisecond() {
    let mut world = World::new();
    world.rotate_to(2);
    world.apply(&Step::Wait(100));
    let millis = |before: i64| {
        Timestamp::from_millisecond(world.now.as_millisecond() - before).expect("in range")
    };
    let disabled = |used: i64, since: i64| {
        let report = SidecarReport {
            sidecar: "pod-1".into(),
            usage: Ok(VersionUse {
                generation: world.document.manifest().generation,
                observed_since: millis(since),
                last_used: Some(millis(used)),
                open: 0,
                last_refused: None,
            }),
        };
        disable(
            &world.document,
            1,
            &Evidence::Fleet(vec![report].into()),
            world.now,
        )
        .is_ok()
    };
    assert!(disabled(20_000, 20_000));
    assert!(!disabled(19_999, 20_000));
    assert!(!disabled(20_000, 19_999));
}

#[test]
fn states_change_only_from_the_one_before() {
    let mut world = World::new();
    world.rotate_to(2);
    let enabled = enable(&world.document, 1, world.now);
    assert!(matches!(
        enabled,
        Err(Refusal::WrongState {
            version: 1,
            state: State::Enabled,
            ..
        })
    ));
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    let evidence = Evidence::Override("test".into());
    let disabled = disable(&world.document, 1, &evidence, world.now);
    assert!(matches!(
        disabled,
        Err(Refusal::WrongState {
            version: 1,
            state: State::Disabled,
            ..
        })
    ));
}

#[test]
fn where_a_compromised_version_was_scheduled_the_primary_stays_and_nowhere_else() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    world.apply(&Step::Rotate);
    for (version, wave) in [(2, 0), (3, 1)] {
        world.apply(&Step::Activate {
            version,
            wave: Some(wave),
            in_seconds: Some(50),
        });
    }
    let primaries_later = |manifest: &Manifest| {
        [0, 1, 2].map(|index| primary_at(&manifest.activations, at(&world, 60), &wave(index)))
    };
    assert_eq!(
        primaries_later(world.document.manifest()),
        [Some(2), Some(3), Some(1)]
    );
    let next = compromise(&world.document, 2, world.now).expect("possible");
    assert_eq!(primaries_later(&next), [Some(1), Some(3), Some(1)]);
    let added = &next.activations[world.document.manifest().activations.len()..];
    let expected = Activation {
        generation: Some(next.generation),
        ..activation(1, 0, world.now)
    };
    assert_eq!(added, [expected]);
}

#[test]
fn a_compromised_primary_is_not_activated_again() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    world.apply(&Step::Compromise(1));
    world.apply(&Step::Activate {
        version: 2,
        wave: Some(0),
        in_seconds: Some(50),
    });
    let next = compromise(&world.document, 2, world.now).expect("possible");
    assert_eq!(next.activations, world.document.manifest().activations);
}

#[test]
fn a_repair_keeps_the_primaries_unless_the_change_decides_them() {
    let mut world = World::new();
    world.rotate_to(2);
    let (document, past) = (&world.document, at(&world, -1000));
    let activations = &document.manifest().activations;
    let touched = repair_times(document.manifest(), touch(document, past), past);
    let [before @ .., last] = &touched.activations[..] else {
        panic!("no activation");
    };
    assert_eq!(before, &activations[..]);
    assert_eq!((last.version, last.at), (2, past));
    let latest = touched
        .versions
        .iter()
        .map(|version| version.state_changed_at)
        .max();
    assert_eq!(latest, Some(past));

    let back = activate(document, 1, WaveSelector::Every, None, past).expect("possible");
    let repaired = repair_times(document.manifest(), back.clone(), past);
    assert_eq!(repaired.activations, back.activations);
}

#[test]
fn a_generation_of_two_branches_leaves_the_lineage_as_a_whole() {
    let ancestor = |generation: usize| Ancestor {
        generation: generation as u64,
        sha256: Base64(vec![0; 32]),
    };
    let mut single: Vec<_> = (1..=LINEAGE + 1).rev().map(ancestor).collect();
    limit_lineage(&mut single);
    assert_eq!((single.len(), single[LINEAGE - 1].generation), (LINEAGE, 2));
    // The last one that has room is one of two.
    let mut merged: Vec<_> = (2..=LINEAGE).rev().map(ancestor).collect();
    merged.extend([ancestor(1), ancestor(1)]);
    limit_lineage(&mut merged);
    assert_eq!(
        (merged.len(), merged[LINEAGE - 2].generation),
        (LINEAGE - 1, 2)
    );
}

#[test]
fn a_version_commits_to_one_key_by_check_value_and_succession_key() {
    let world = World::new();
    let manifest = world.document.manifest();
    let (version, dek) = (&manifest.versions[0], &world.deks[&1]);
    assert!(version.commits_to(&manifest.id, dek));
    let other = Dek::generate().expect("random");
    assert!(!version.commits_to(&manifest.id, &other));
    let with_its_check = Version {
        check: Base64(other.check_value(&manifest.id, 1).to_vec()),
        ..version.clone()
    };
    let with_its_key = Version {
        key: Base64(other.succession_key().public_key().to_vec()),
        ..version.clone()
    };
    for half in [with_its_check, with_its_key] {
        assert!(!half.commits_to(&manifest.id, dek) && !half.commits_to(&manifest.id, &other));
    }
}

#[test]
fn a_digest_is_shown_in_hexadecimal_digits() {
    let world = World::new();
    let (digest, shown) = (world.document.digest(), world.document.digest_hex());
    assert_eq!(shown, crate::crypto::to_hex(&digest[..]));
    assert_eq!(shown.len(), 64);
}

#[test]
fn a_newer_format_is_told_from_damage() {
    assert!(is_of_another_format(br#"{"format":"sidekey-keyring/999"}"#));
    let world = World::new();
    for other in [
        &world.document.bytes()[..],
        b"{}",
        b"{\"format\":2}",
        b"damaged",
    ] {
        assert!(!is_of_another_format(other));
    }
}
