//! What a sidecar's table says of its manifest at a time.

use super::*;

fn later(world: &World, seconds: i64) -> Timestamp {
    Timestamp::from_second(world.now.as_second() + seconds).expect("in range")
}

#[test]
fn roles_follow_the_schedule_and_the_states() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    let created = world.now;
    world.apply(&Step::Wait(5));
    world.apply(&Step::Activate {
        version: 2,
        wave: None,
        in_seconds: Some(10),
    });
    let table = |world: &World| world.sidecars[0].clone();
    let roles = |world: &World, at: Timestamp| {
        [1, 2].map(|version| table(world).role(version, at).map(Role::as_str))
    };
    let (before, due) = (later(&world, 9), later(&world, 10));
    assert_eq!(roles(&world, before), [Some("primary"), Some("pending")]);
    assert_eq!(roles(&world, due), [Some("decrypt-only"), Some("primary")]);
    assert_eq!(table(&world).role(3, due), None);
    assert_eq!(table(&world).primary_since(before), Some(created));
    assert_eq!(table(&world).primary_since(due), Some(due));
    assert_eq!(table(&world).next_takeover(before), Some(due));
    assert_eq!(table(&world).next_takeover(due), None);
    assert_eq!(table(&world).generation(), 3);

    world.apply(&Step::Wait(10));
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    assert_eq!(
        roles(&world, world.now),
        [Some("disabled"), Some("primary")]
    );
    world.apply(&Step::Wait(60));
    world.apply(&Step::Destroy(1));
    assert_eq!(
        roles(&world, world.now),
        [Some("destroyed"), Some("primary")]
    );
    assert_eq!(Role::Destroyed.to_string(), "destroyed");
}

#[test]
fn a_table_that_only_compromised_versions_vouch_for_is_exposed() {
    let mut world = World::new();
    assert!(!world.sidecars[0].is_exposed());
    world.apply(&Step::Compromise(1));
    assert!(
        !world.sidecars[0].is_exposed(),
        "the base trusted version 1"
    );
    world.apply(&Step::Touch);
    assert!(world.sidecars[0].is_exposed());
}

#[test]
fn a_fresh_sidecar_says_why_no_version_opens() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    let failed = UnwrapResults::from([(1, Err(NotUnwrapped::because("no right")))]);
    let refused = KeyTable::build(
        None,
        Arc::clone(&world.document),
        Succession::Newer,
        &failed,
        &BTreeMap::new(),
        wave(0),
        world.now,
    );
    let Err(Rejection::NothingUnwrapped(reasons)) = refused else {
        panic!("nothing is open");
    };
    assert_eq!(
        reasons,
        "version 1: no right; version 2: its KEKs have not answered yet"
    );
}

#[test]
fn a_backup_counts_for_the_versions_that_it_holds() {
    let mut world = World::new();
    world.rotate_to(2);
    let backup = BackupRecord {
        verified_at: world.now,
        sha256: Base64(vec![5; 32]),
        generation: 3,
        newest_version: 2,
    };
    let id = world.document.manifest().id;
    let next = record_backup(&world.document, id, &backup, world.now).expect("allowed");
    world.publish(next);
    world.rotate_to(3);
    for version in [1, 2] {
        world.apply(&Step::Disable {
            version,
            with_evidence: true,
        });
    }
    world.rotate_to(4);
    world.apply(&Step::Disable {
        version: 3,
        with_evidence: true,
    });
    world.apply(&Step::Wait(60));
    let destroyed = |version| {
        let seen = world.sightings.of(version);
        destroy(&world.document, version, None, seen, world.now)
    };
    assert!(destroyed(1).is_ok());
    assert!(destroyed(2).is_ok());
    assert!(matches!(
        destroyed(3),
        Err(Refusal::NotConfirmed { version: 3, .. })
    ));

    let declared = |versions: &[u32], confirm: Option<&str>| {
        let loss = Loss {
            versions,
            confirm,
            successor: None,
        };
        declare_lost(&world.document, loss, world.now)
    };
    assert!(matches!(
        declared(&[2], None),
        Err(Refusal::NotLostWithBackup { version: 2, .. })
    ));
    assert!(matches!(
        declared(&[3], None),
        Err(Refusal::NotConfirmed { version: 3, .. })
    ));
    let name = &world.document.manifest().name;
    assert!(declared(&[3], Some(&lost_phrase(name, &[3]))).is_ok());
    assert!(declared(&[3], Some(&doubted_loss_phrase(name, &[3]))).is_ok());
    assert!(declared(&[3], Some(&lost_phrase(name, &[2]))).is_err());
}
