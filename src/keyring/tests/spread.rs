//! When sidecars unwrap a new version.

use super::*;
use crate::crypto::InstanceId;

const HOUR: i64 = 3600;

/// A keyring with a window of an hour, and version 2, which is new in it.
fn rotated() -> World {
    let mut world = World::new();
    let policy = Policy {
        spread: Some(Span::from_secs(3600)),
        ..world.document.manifest().policy.clone()
    };
    world.apply(&Step::SetPolicy(policy));
    world.apply(&Step::Rotate);
    world
}

fn instance(index: u16) -> InstanceId {
    let [high, low] = index.to_be_bytes();
    InstanceId(std::array::from_fn(|byte| match byte {
        0 => high,
        _ => low,
    }))
}

fn turn(world: &World, index: u16, now: Timestamp) -> Option<Timestamp> {
    waiting(world.document.manifest(), instance(index), now)
        .get(&2)
        .copied()
}

#[test]
fn the_turns_of_a_fleet_are_spread_over_the_window() {
    let world = rotated();
    let created = world.document.manifest().versions[1].created_at;
    let mut tenths = [0; 10];
    for index in 0..1000 {
        let turn = turn(&world, index, created).expect("it waits");
        let seconds = turn.duration_since(created).as_secs();
        assert!((0..=HOUR).contains(&seconds), "{seconds}");
        tenths[usize::try_from(seconds.min(HOUR - 1) * 10 / HOUR).expect("a tenth")] += 1;
        // It doesn't move while time passes, and ends.
        let before = Timestamp::from_millisecond(turn.as_millisecond() - 1).expect("a time");
        assert_eq!(self::turn(&world, index, before), Some(turn));
        assert_eq!(self::turn(&world, index, turn), None);
    }
    // 100 each are expected; the standard deviation is 9.5.
    let is_even = tenths.iter().all(|count| (50..150).contains(count));
    assert!(is_even, "{tenths:?}");
}

#[test]
fn what_is_about_to_be_used_or_has_no_window_waits_for_nothing() {
    let world = rotated();
    let at = world.document.manifest().versions[1].created_at;
    let waits = |world: &World, now| (0..50).any(|index| turn(world, index, now).is_some());
    assert!(waits(&world, at));
    // A clock that is days behind.
    let behind = Timestamp::from_second(at.as_second() - 48 * HOUR).expect("a time");
    assert!(!waits(&world, behind));

    let mut activated = rotated();
    let of_one_wave = activate(
        &activated.document,
        2,
        WaveSelector::One(wave(0)),
        Timestamp::from_second(at.as_second() + HOUR).ok(),
        activated.now,
    );
    activated.publish(of_one_wave.expect("allowed"));
    assert!(!waits(&activated, at), "one wave is given it in an hour");

    let mut disabled = rotated();
    disabled.apply(&Step::Disable {
        version: 2,
        with_evidence: true,
    });
    assert!(!waits(&disabled, at));

    let mut at_once = World::new();
    at_once.apply(&Step::Rotate);
    assert!(!waits(&at_once, at_once.now));
}
