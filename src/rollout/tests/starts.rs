//! Start orders: which begin a rollout, and what a carrier that lies can make of them.

use jiff::{Timestamp, ToSpan};

use super::simulation::*;
use crate::{
    crypto::{Dek, KeyringId, RolloutId, SigningKey},
    keyring::{Base64, Manifest, RolloutMark},
    model::{KekScope, SignerKey, Span},
    rollout::*,
};

fn person() -> SigningKey {
    Dek::generate().expect("random").succession_key()
}

fn public(key: &SigningKey) -> SignerKey {
    SignerKey(key.public_key())
}

fn rules(requester: &SigningKey) -> StartRules {
    StartRules {
        requesters: vec![public(requester)],
        approvals: None,
        backup: None,
        keks: KekScope::Only(vec!["aws-kms:*".parse().expect("a pattern")]),
        versions_per_day: 4,
    }
}

fn order(world: &World, strategy: Strategy) -> StartOrder {
    let manifest = world.manifest();
    StartOrder {
        id: RolloutId::generate().expect("random"),
        keyring: manifest.name.clone(),
        keyring_id: manifest.id,
        intent: Intent::Rotate,
        strategy,
        requester: Requester {
            name: "ann@laptop".into(),
            key: None,
        },
        not_after: after(world, 600),
    }
}

fn after(world: &World, seconds: i64) -> Timestamp {
    world.now.checked_add(seconds.seconds()).expect("in range")
}

fn quick() -> Strategy {
    Strategy::built_in("quick").expect("built in")
}

fn check(start: &SignedStart, rules: &StartRules, world: &World) -> Result<(), StartRefusal> {
    // As it comes from the network.
    let json = serde_json::to_vec(start).expect("JSON");
    let read: SignedStart = serde_json::from_slice(&json).expect("an order");
    read.check(rules, world.manifest(), world.now)
}

#[test]
fn an_order_of_a_listed_requester_is_taken() {
    let (world, ann) = (World::new(), person());
    let start = order(&world, quick()).sign(&ann);
    assert_eq!(check(&start, &rules(&ann), &world), Ok(()));
}

#[test]
fn an_invented_order_and_one_by_a_stranger_are_refused() {
    let (world, ann, eve) = (World::new(), person(), person());
    let by_eve = order(&world, quick()).sign(&eve);
    let refused = check(&by_eve, &rules(&ann), &world);
    assert!(
        matches!(refused, Err(StartRefusal::Stranger(_))),
        "{refused:?}"
    );

    // In Ann's name, but not by her key.
    let mut invented = by_eve;
    invented.order.requester.key = Some(public(&ann));
    let refused = check(&invented, &rules(&ann), &world);
    assert_eq!(refused, Err(StartRefusal::Forged));

    let mut nameless = order(&world, quick()).sign(&ann);
    nameless.order.requester.key = None;
    let refused = check(&nameless, &rules(&ann), &world);
    assert!(
        matches!(refused, Err(StartRefusal::Stranger(_))),
        "{refused:?}"
    );
}

#[test]
fn whatever_is_altered_in_an_order_voids_it() {
    let (world, ann) = (World::new(), person());
    let genuine = order(&world, quick()).sign(&ann);
    let alterations: [fn(&mut StartOrder); 7] = [
        |order| order.id = RolloutId([7; 16]),
        |order| order.intent = Intent::ReplaceCompromised { version: 1 },
        |order| order.strategy.each_wave.soak = None,
        |order| order.strategy.max_unavailable.push("a".into()),
        |order| order.strategy.on_failure = OnFailure::Halt,
        |order| order.not_after = order.not_after.checked_add(1.second()).expect("in range"),
        |order| order.requester.name = "eve@laptop".into(),
    ];
    for (index, alter) in alterations.into_iter().enumerate() {
        let mut altered = genuine.clone();
        alter(&mut altered.order);
        assert_eq!(
            check(&altered, &rules(&ann), &world),
            Err(StartRefusal::Forged),
            "alteration {index}"
        );
    }
}

#[test]
fn a_signature_of_another_kind_counts_for_nothing() {
    let (world, ann) = (World::new(), person());
    let mut order = order(&world, quick());
    order.requester.key = Some(public(&ann));
    let without_domain = serde_json_canonicalizer::to_vec(&order).expect("JSON");
    let signature = Base64(ann.sign(&without_domain).to_vec());
    let start = SignedStart { order, signature };
    assert_eq!(
        check(&start, &rules(&ann), &world),
        Err(StartRefusal::Forged)
    );
}

#[test]
fn an_order_is_valid_until_its_time_and_for_a_day_at_most() {
    let (mut world, ann) = (World::new(), person());
    let start = order(&world, quick()).sign(&ann);
    world.now = after(&world, 600);
    assert_eq!(check(&start, &rules(&ann), &world), Ok(()));
    world.now = after(&world, 1);
    let late = StartRefusal::Late(start.order.not_after);
    assert_eq!(check(&start, &rules(&ann), &world), Err(late));

    let mut long = order(&world, quick());
    long.not_after = after(&world, 25 * 3600);
    let refused = check(&long.sign(&ann), &rules(&ann), &world);
    assert!(
        matches!(refused, Err(StartRefusal::TooLong(_))),
        "{refused:?}"
    );
}

#[test]
fn an_order_is_for_one_keyring() {
    let (world, ann) = (World::new(), person());
    let mut other = order(&world, quick());
    other.keyring_id = KeyringId([7; 16]);
    let refused = check(&other.sign(&ann), &rules(&ann), &world);
    assert!(
        matches!(refused, Err(StartRefusal::OtherKeyring { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_replayed_order_begins_nothing() {
    let (world, ann) = (World::new(), person());
    let start = order(&world, quick()).sign(&ann);
    let check = |change: fn(&mut Manifest, RolloutId)| {
        let mut manifest = world.manifest().clone();
        change(&mut manifest, start.order.id);
        start.check(&rules(&ann), &manifest, world.now)
    };
    let active = check(|manifest, id| {
        manifest.rollout = Some(RolloutMark {
            id,
            plan: Base64(vec![0; 32]),
            step: 1,
            attempt: 1,
        });
    });
    assert_eq!(active, Err(StartRefusal::Taken));
    let ended = check(|manifest, id| manifest.ended_rollouts.push(id));
    assert_eq!(ended, Err(StartRefusal::Taken));
}

#[test]
fn versions_per_day_are_limited() {
    let (mut world, ann) = (World::new(), person());
    let one = StartRules {
        versions_per_day: 1,
        ..rules(&ann)
    };
    let start = order(&world, quick()).sign(&ann);
    let refused = check(&start, &one, &world);
    let expected = StartRefusal::TooManyVersions {
        created: 1,
        limit: 1,
    };
    assert_eq!(refused, Err(expected));
    let mut adopting = order(&world, quick());
    adopting.intent = Intent::Adopt { version: 1 };
    assert_eq!(check(&adopting.sign(&ann), &one, &world), Ok(()));

    world.now = after(&world, 24 * 3600);
    let start = order(&world, quick()).sign(&ann);
    assert_eq!(check(&start, &one, &world), Ok(()));
}

#[test]
fn what_a_strategy_names_is_the_signers_to_decide() {
    let (world, ann, ben) = (World::new(), person(), person());
    let rule = ApprovalRule {
        required: 1,
        approvers: vec![public(&ben)],
    };
    let own_rule = ApprovalRule {
        required: 1,
        approvers: vec![public(&ann)],
    };
    let backup = BackUp {
        folder: "/var/backups".into(),
        recipients_file: "/etc/sidekey/recipients".into(),
        identity_file: "/etc/sidekey/identity".into(),
    };
    let retiring = |approvals: Option<&ApprovalRule>, approval| Strategy {
        observe: Some(Observe::default()),
        disable: Some(Retire { approval }),
        destroy: Some(Retire { approval }),
        approvals: approvals.cloned(),
        ..quick()
    };
    let strict = StartRules {
        approvals: Some(rule.clone()),
        backup: Some(backup.clone()),
        ..rules(&ann)
    };
    let elsewhere = BackUp {
        recipients_file: "/tmp/recipients".into(),
        ..backup.clone()
    };
    let with_kek = |kek: &str| Strategy {
        generate: Generate {
            keks: vec![kek.parse().expect("a KEK")],
        },
        ..quick()
    };
    let with_backup = |backup: BackUp| Strategy {
        backup: Some(backup),
        ..quick()
    };
    let zero = Strategy {
        poll: Span::from_secs(0),
        ..quick()
    };
    let cases = [
        (with_kek("aws-kms:alias/app"), &strict, None),
        (with_kek("local:/tmp/kek"), &strict, Some("may not wrap")),
        (with_backup(backup.clone()), &strict, None),
        (with_backup(elsewhere), &strict, Some("[keyring.backup]")),
        (with_backup(backup), &rules(&ann), Some("[keyring.backup]")),
        (retiring(Some(&rule), true), &strict, None),
        (
            retiring(Some(&own_rule), true),
            &strict,
            Some("[approvals]"),
        ),
        (
            retiring(Some(&rule), false),
            &strict,
            Some("approval = true"),
        ),
        (
            retiring(Some(&own_rule), true),
            &rules(&ann),
            Some("destroyed by order"),
        ),
        (zero, &strict, Some("poll is zero")),
    ];
    for (strategy, rules, expected) in cases {
        let start = order(&world, strategy).sign(&ann);
        match (check(&start, rules, &world), expected) {
            (Ok(()), None) => {}
            (Err(StartRefusal::Strategy(problems)), Some(text)) => {
                assert!(problems.join("; ").contains(text), "{text}: {problems:?}");
            }
            (result, expected) => panic!("{expected:?}: {result:?}"),
        }
    }
}

fn asked(verb: Verb) -> Asked {
    Asked {
        rollout: RolloutId([1; 16]),
        step: 3,
        verb,
        by: "ann@laptop".into(),
        signature: None,
    }
}

#[test]
fn a_verb_counts_with_a_listed_signature_over_all_of_it() {
    let (ann, eve) = (person(), person());
    let listed = [public(&ann)];
    assert!(!asked(Verb::PromoteFull).is_signed_by(&listed));
    assert!(
        !asked(Verb::PromoteFull)
            .signed_by(&eve)
            .is_signed_by(&listed)
    );
    let genuine = asked(Verb::Pause).signed_by(&ann);
    assert!(genuine.is_signed_by(&listed));
    let alterations: [fn(&mut Asked); 4] = [
        |asked| asked.rollout = RolloutId([2; 16]),
        |asked| asked.step += 1,
        |asked| asked.verb = Verb::PromoteFull,
        |asked| asked.by = "ben@laptop".into(),
    ];
    for alter in alterations {
        let mut altered = genuine.clone();
        alter(&mut altered);
        assert!(!altered.is_signed_by(&listed), "{altered:?}");
    }
}

#[test]
fn an_unsigned_verb_changes_nothing_and_is_recorded_once() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let state = world.run_until(state, actions, |state, _| {
        matches!(state.present(), Step::Soak { .. })
    });
    let before = state.entries.len();
    let (state, _) = step(state, Event::Unsigned(Verb::PromoteFull), world.now);
    let (state, actions) = step(state, Event::Unsigned(Verb::PromoteFull), world.now);
    assert_eq!(state.entries.len(), before + 1);
    assert!(!state.skips_soaks && matches!(state.present(), Step::Soak { .. }));
    let end = world.run_until(state, actions, |state, _| state.phase.is_over());
    assert_eq!(end.phase, Phase::Finished);
}

#[test]
fn a_verb_is_answered_by_what_the_rollout_recorded_since() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let before = world.run_until(state, actions, |state, _| {
        matches!(state.present(), Step::Soak { .. })
    });
    let after = |state: &State, event: Event| step(state.clone(), event, world.now).0;
    let by = |verb| Event::Asked {
        verb,
        by: "ann".into(),
    };
    for verb in [Verb::Pause, Verb::Promote, Verb::Rollback, Verb::Abort] {
        assert_eq!(
            after(&before, by(verb)).answer(&before, verb, "ann"),
            Ok(())
        );
        let unsigned = after(&before, Event::Unsigned(verb));
        let again = after(&unsigned, Event::Unsigned(verb));
        for (seen, now) in [(&before, &unsigned), (&unsigned, &again)] {
            let refusal = now.answer(seen, verb, "ann").expect_err("not signed");
            assert!(refusal.contains("no requester"), "{refusal}");
        }
        let dropped = before
            .answer(&before, verb, "ann")
            .expect_err("nothing came");
        assert!(dropped.contains("was dropped"), "{dropped}");
    }
    let retried = after(&before, by(Verb::Retry));
    let refusal = retried.answer(&before, Verb::Retry, "ann");
    let refusal = refusal.expect_err("nothing failed");
    assert!(refusal.contains("ann asked for retry"), "{refusal}");
    let paused = after(&before, by(Verb::Pause));
    let resumed = after(&paused, by(Verb::Resume));
    assert_eq!(resumed.answer(&paused, Verb::Resume, "ann"), Ok(()));
    let mut other = resumed;
    other.id = RolloutId([9; 16]);
    assert!(other.answer(&paused, Verb::Resume, "ann").is_err());
}

#[test]
fn a_request_that_cannot_be_read_is_reported_once() {
    let mut world = World::new();
    let (state, actions) = world.begin(quick(), Intent::Rotate);
    let state = world.run_until(state, actions, |state, _| {
        matches!(state.present(), Step::Soak { .. })
    });
    let before = state.entries.len();
    let (state, _) = step(state, Event::Malformed, world.now);
    let (state, actions) = step(state, Event::Malformed, world.now);
    assert_eq!(state.entries.len(), before + 1);
    let end = world.run_until(state, actions, |state, _| state.phase.is_over());
    assert_eq!(end.phase, Phase::Finished);
}
