//! Waiting times, what they count from, and what passes with time: trimming and limits.

use super::*;

const DAY: i64 = 24 * 3600;

fn days(world: &World, count: i64) -> Timestamp {
    Timestamp::from_second(world.now.as_second() + count * DAY).expect("in range")
}

/// A world whose version 1 was disabled by a machine with a clock that was `slow` days behind.
fn disabled_by_a_slow_clock(slow: i64) -> World {
    let mut world = World::new();
    world.rotate_to(2);
    let now = world.now;
    let evidence = Evidence::Override("test".into());
    let stamp = days(&world, -slow);
    let next = disable(&world.document, 1, &evidence, stamp);
    world.publish(next.expect("allowed"));
    assert_eq!(world.now, now);
    world
}

fn destroyed(world: &World, seen: Sighting, now: Timestamp) -> Result<Manifest, Refusal> {
    let phrase = backup_phrase(&world.document.manifest().name, 1);
    destroy(&world.document, 1, Some(&phrase), seen, now)
}

#[test]
fn a_stamp_of_a_slow_clock_shortens_no_waiting_time() {
    let world = disabled_by_a_slow_clock(61);
    let seen = world.sightings.of(1);
    assert_eq!(seen.disabled, Some(world.now));
    let at =
        |seconds: i64| Timestamp::from_second(world.now.as_second() + seconds).expect("in range");
    let refused = destroyed(&world, seen, at(9)).expect_err("destroy_after is 10 s");
    let text = refused.to_string();
    assert!(text.contains("first seen here at"), "{text}");
    assert!(destroyed(&world, seen, at(30)).is_ok(), "the lease is 30 s");
    // Without any sighting the time counts from now.
    let unseen = destroyed(&world, Sighting::default(), days(&world, 400));
    assert!(
        matches!(unseen, Err(Refusal::TooEarly { .. })),
        "{unseen:?}"
    );
    // Another party may have seen it earlier, but never before the stamp.
    let fleet = Sighting {
        disabled: Some(days(&world, -100)),
        superseded: Some(days(&world, -100)),
        end: None,
    };
    let both = fleet.or_earlier(seen);
    assert_eq!((both.disabled, both.end), (fleet.disabled, seen.end));
    assert_eq!(seen.or_earlier(Sighting::default()), seen);
    let honest = disabled_by_a_slow_clock(0);
    assert!(destroyed(&honest, fleet, at(9)).is_err());
}

#[test]
fn the_sighting_of_a_state_ends_with_it() {
    let mut world = disabled_by_a_slow_clock(0);
    world.apply(&Step::Enable(1));
    assert_eq!(world.sightings.of(1).disabled, None);
    let superseded = world.sightings.of(1).superseded;
    assert!(superseded.is_some(), "version 2 is still the primary");
    world.apply(&Step::Wait(50));
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    assert_eq!(world.sightings.of(1).disabled, Some(world.now));
    assert_eq!(world.sightings.of(1).superseded, superseded);
    // A roll-back makes it the primary again.
    world.apply(&Step::Enable(1));
    world.apply(&Step::Activate {
        version: 1,
        wave: Some(0),
        in_seconds: None,
    });
    assert_eq!(world.sightings.of(1), Sighting::default());
    assert_eq!(world.sightings.of(2).superseded, None);
}

/// Lets a slow clock write the takeover by version 2 and the disabling of version 1.
fn assert_the_lease_counts_from_now(mut world: World) {
    let slow = days(&world, -61);
    let next = activate(&world.document, 2, WaveSelector::Every, None, slow).expect("allowed");
    world.publish(next);
    let evidence = Evidence::Override("test".into());
    world.publish(disable(&world.document, 1, &evidence, slow).expect("allowed"));
    let after = |seconds: i64| {
        let now = Timestamp::from_second(world.now.as_second() + seconds).expect("in range");
        destroyed(&world, world.sightings.of(1), now)
    };
    let refused = after(29).expect_err("the lease is 30 s").to_string();
    assert!(refused.contains("encrypt_lease (30s)"), "{refused}");
    assert!(after(30).is_ok());
}

#[test]
fn a_lease_passes_after_a_version_that_encrypted_is_disabled() {
    let mut world = World::new();
    world.rotate_to(2);
    world.apply(&Step::Rotate);
    // The lease since the takeover is over, but a sidecar may have fallen back to version 1.
    world.apply(&Step::Wait(100));
    for version in [1, 3] {
        world.apply(&Step::Disable {
            version,
            with_evidence: true,
        });
    }
    let manifest = world.document.manifest();
    for (version, wait, reason) in [
        (1, 30, "encrypt_lease (30s) ends after it was disabled"),
        (3, 10, "destroy_after (10s)"),
    ] {
        let after = |seconds: i64| {
            Timestamp::from_second(world.now.as_second() + seconds).expect("in range")
        };
        let destroyed = |now| {
            let phrase = backup_phrase(&manifest.name, version);
            let seen = world.sightings.of(version);
            destroy(&world.document, version, Some(&phrase), seen, now)
        };
        let early = destroyed(after(wait - 1)).expect_err("too early");
        let text = early.to_string();
        assert!(text.contains(reason), "{text}");
        assert!(destroyed(after(wait)).is_ok());
        let from = destroyable_from(manifest, version, world.now);
        assert_eq!(from, Some(after(wait)));
    }
    assert_eq!(destroyable_from(manifest, 2, world.now), None);
}

#[test]
fn a_lease_counts_from_when_the_takeover_was_seen() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    assert_the_lease_counts_from_now(world);
}

#[test]
fn a_takeover_that_is_brought_forward_was_not_seen_before() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    world.apply(&Step::Activate {
        version: 2,
        wave: None,
        in_seconds: Some(500),
    });
    assert_eq!(world.sightings.of(1).superseded, Some(world.now));
    world.apply(&Step::Wait(100));
    assert_the_lease_counts_from_now(world);
}

#[test]
fn only_what_was_destroyed_long_ago_is_trimmed() {
    let mut world = disabled_by_a_slow_clock(0);
    world.apply(&Step::Wait(60));
    world.apply(&Step::Destroy(1));
    let destroyed_at = world.document.manifest().versions[0].state_changed_at;
    assert_eq!(destroyed_at, world.now);
    let just_after = days(&world, 1);
    let trim_at = |now| trim(&world.document, just_after, now);
    assert!(matches!(
        trim_at(days(&world, 400)),
        Err(Refusal::TrimTooRecent { .. })
    ));
    let trimmed = trim_at(days(&world, 402)).expect("long enough");
    assert_eq!(trimmed.first_version(), 2);
    assert_eq!(trimmed.activations.len(), 1, "only version 2 is left");
    assert_eq!(
        trim(&world.document, destroyed_at, days(&world, 402)).map(|next| next.first_version()),
        Ok(1),
        "only the activations are dropped"
    );
    let mut long_lease = world.document.manifest().clone();
    long_lease.policy.encrypt_lease = Span::from_days(1000);
    let long_lease = world.authenticate(long_lease);
    assert!(matches!(
        trim(&long_lease, just_after, days(&world, 402)),
        Err(Refusal::TrimTooRecent { .. })
    ));
    assert!(trim(&long_lease, just_after, days(&world, 2002)).is_ok());

    world.publish(trimmed);
    assert!(matches!(
        trim(&world.document, just_after, days(&world, 402)),
        Err(Refusal::NothingToTrim { first: 2, .. })
    ));
}

#[test]
fn half_of_a_limit_is_reported_with_a_remedy() {
    let world = World::new();
    let near = |document: &Document, capacity| {
        near_limits(document, capacity)
            .iter()
            .map(NearLimit::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(near(&world.document, usize::MAX), [""; 0]);
    let length = world.document.bytes().len();
    assert_eq!(near(&world.document, 2 * length + 1), [""; 0]);
    let full = near(&world.document, 2 * length);
    assert!(
        full[0].starts_with(&format!("bytes: {length} of at most")),
        "{full:?}"
    );

    let mut large = world.document.manifest().clone();
    large.generation = 1 << 52;
    for wave in 0..255 {
        large.activations.push(Activation {
            version: 1,
            wave: WaveSelector::One(format!("wave-{wave}").parse().expect("name")),
            at: world.now,
            generation: None,
        });
    }
    let wrap = large.versions[0].wraps[0].clone();
    for kek in 1..8 {
        large.versions[0].wraps.push(Wrap {
            kek: format!("local:/kek{kek}").parse().expect("uri"),
            ..wrap.clone()
        });
    }
    let large = world.authenticate(large);
    let found = near(&large, usize::MAX).join("\n");
    for expected in [
        "waves: 256 of at most 256; use fewer wave names",
        "KEKs of one version: 8 of at most 16",
        "generation: 4503599627370496 of at most 9007199254740991",
    ] {
        assert!(found.contains(expected), "{found}");
    }
    assert!(!found.contains("activations"), "{found}");
}

#[test]
fn phrases_name_the_keyring_and_its_versions() {
    let name = "demo".parse().expect("name");
    assert_eq!(
        backup_phrase(&name, 2),
        "there is no backup of version 2 of demo"
    );
    assert_eq!(
        lost_phrase(&name, &[2]),
        "every KEK of version 2 of demo is lost"
    );
    assert_eq!(
        doubted_loss_phrase(&name, &[2, 3]),
        "no KEK of versions 2, 3 of demo will ever come back"
    );
}
