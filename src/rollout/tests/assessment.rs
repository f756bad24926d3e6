//! What an assessment finds.

use super::simulation::*;
use crate::{keyring, model::Span, rollout::*};

fn codes(assessment: &Assessment, level: Level) -> Vec<&str> {
    let findings = assessment.findings.iter();
    findings
        .filter(|finding| finding.level == level)
        .map(|finding| finding.code.as_str())
        .collect()
}

fn blockers(world: &World) -> Vec<String> {
    let assessment = world.assess(&quick(), &Intent::Rotate);
    let codes = codes(&assessment, Level::Blocker);
    codes.into_iter().map(str::to_owned).collect()
}

#[test]
fn a_healthy_fleet_has_no_blocker() {
    assert!(blockers(&World::new()).is_empty());
}

#[test]
fn what_is_half_done_blocks() {
    let mut world = World::new();
    world.rotate_by_hand();
    world.pass(1);
    assert_eq!(blockers(&world), ["pending_version"]);
    world.by_hand(|current, now| {
        keyring::activate(current, 2, "canary".parse().expect("a wave"), None, now)
    });
    world.pass(1);
    assert_eq!(blockers(&world), ["mixed_primaries"]);
    let mut world = World::new();
    world.rotate_by_hand();
    let later = world
        .now
        .checked_add(jiff::SignedDuration::from_hours(1))
        .expect("in range");
    world.by_hand(|current, now| {
        keyring::activate(current, 2, "*".parse().expect("a wave"), Some(later), now)
    });
    world.pass(1);
    assert_eq!(blockers(&world), ["scheduled_activation"]);
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    world.run_until(state, actions, |state, _| {
        state.present().describe().starts_with("prove")
    });
    assert_eq!(blockers(&world), ["rollout_active", "pending_version"]);
}

#[test]
fn sidecars_that_can_not_take_part_block_unless_exempt() {
    let mut world = World::new();
    world.sidecar("a").is_up = false;
    assert_eq!(blockers(&world), ["sidecar_unreachable"]);
    let strategy = Strategy {
        max_unavailable: vec!["a".into()],
        ..quick()
    };
    let assessment = world.assess(&strategy, &Intent::Rotate);
    assert!(codes(&assessment, Level::Blocker).is_empty());
    assert!(codes(&assessment, Level::Warning).contains(&"sidecar_unreachable"));

    let mut world = World::new();
    world.sidecar("b").refreshes = false;
    world.by_hand(|current, now| Ok(keyring::touch(current, now)));
    world.pass(1);
    assert_eq!(blockers(&world), ["sidecar_stale"]);

    let mut world = World::new();
    let old = world.document.clone();
    world.by_hand(|current, now| Ok(keyring::touch(current, now)));
    world.pass(1);
    world.document = old;
    assert_eq!(blockers(&world), ["location_went_back"; 6]);

    let mut world = World::new();
    world.sidecars.clear();
    assert_eq!(blockers(&world), ["no_sidecars"]);
}

#[test]
fn a_wave_without_sidecars_blocks_and_an_unnamed_one_warns() {
    let strategy = Strategy {
        waves: ["canary", "cannary"]
            .map(|name| WaveSteps {
                name: wave(name),
                within: "1m".parse().expect("a span"),
                soak: None,
                pause: None,
            })
            .into(),
        each_wave: AfterActivation::default(),
        ..quick()
    };
    let assessment = World::new().assess(&strategy, &Intent::Rotate);
    assert_eq!(codes(&assessment, Level::Blocker), ["empty_wave"]);
    let warnings = codes(&assessment, Level::Warning);
    assert_eq!(
        warnings
            .iter()
            .filter(|code| **code == "wave_not_named")
            .count(),
        2
    );
}

#[test]
fn an_emergency_does_not_wait_for_sidecars_or_half_done_work() {
    let mut world = World::new();
    world.rotate_by_hand();
    world.pass(1);
    world.sidecar("a").is_up = false;
    let intent = Intent::ReplaceCompromised { version: 1 };
    let assessment = world.assess(&quick(), &intent);
    assert!(codes(&assessment, Level::Blocker).is_empty());
    assert!(codes(&assessment, Level::Warning).contains(&"sidecar_unreachable"));
    let unknown = Intent::ReplaceCompromised { version: 7 };
    let assessment = world.assess(&quick(), &unknown);
    assert_eq!(codes(&assessment, Level::Blocker), ["no_such_version"]);
}

#[test]
fn only_a_pending_version_is_adopted() {
    let world = World::new();
    for version in [1, 7] {
        let assessment = world.assess(&quick(), &Intent::Adopt { version });
        assert_eq!(
            codes(&assessment, Level::Blocker),
            ["not_adoptable"],
            "{version}"
        );
    }
}

#[test]
fn a_window_that_outlasts_the_distribution_blocks_at_the_start() {
    let mut world = World::new();
    let mut found_with = |spread: Span| {
        world.by_hand(|current, now| {
            let policy = keyring::Policy {
                spread: Some(spread),
                ..current.manifest().policy.clone()
            };
            keyring::set_policy(current, policy, now)
        });
        world.pass(1);
        [Intent::Rotate, Intent::ReplaceCompromised { version: 1 }].map(|intent| {
            let assessment = world.assess(&quick(), &intent);
            let blockers = codes(&assessment, Level::Blocker).into_iter();
            blockers.map(str::to_owned).collect::<Vec<_>>()
        })
    };
    let within = quick().distribute.within;
    let shorter = Span(within.0 - std::time::Duration::from_secs(1));
    assert_eq!(
        found_with(within),
        [vec!["spread_too_long".to_owned()], vec![]]
    );
    assert_eq!(found_with(shorter), [vec![], vec![]] as [Vec<String>; 2]);
    let assessment = world.assess(&quick(), &Intent::Rotate);
    assert!(codes(&assessment, Level::Note).contains(&"spread"));
}

#[test]
fn what_would_keep_the_old_version_from_retirement_blocks_at_the_start() {
    let mut world = World::new();
    world.by_hand(|current, now| {
        let policy = keyring::Policy {
            class: keyring::Class::Archive,
            ..current.manifest().policy.clone()
        };
        keyring::set_policy(current, policy, now)
    });
    world.pass(1);
    let assessment = world.assess(&retiring(), &Intent::Rotate);
    let found = codes(&assessment, Level::Blocker);
    assert_eq!(found, ["destroy_needs_backup", "no_use_evidence"]);
}

#[test]
fn a_name_that_two_sidecars_share_is_named() {
    let world = World::new();
    let mut view = world.view();
    let first = view.sidecars.values_mut().next().expect("a sidecar");
    first.as_mut().expect("it answers").shares_name = true;
    let assessment = assess(&world.document, &view, &quick(), &Intent::Rotate, world.now);
    assert_eq!(blockers(&world), [""; 0]);
    assert!(codes(&assessment, Level::Warning).contains(&"duplicate_name"));
}
