//! What a rollout may write, and what comes in its way.

use std::collections::BTreeMap;

use crate::{
    admin::{AdminError, Bases, Memory, Signing, Takeover},
    app::testing::{HOUR, World},
    crypto::RolloutId,
    keyring::{
        self, Base64, Document, Evidence, Policy, Refusal, RolloutMark, State, WaveSelector,
    },
    model::Span,
};

fn mark(id: u8, step: u32) -> RolloutMark {
    RolloutMark {
        id: RolloutId([id; 16]),
        plan: Base64(vec![id; 32]),
        step,
        attempt: 1,
    }
}

fn stored(world: &World) -> Document {
    let bytes = world.store("demo").get().expect("a manifest");
    Document::parse(bytes).expect("valid")
}

/// What an error refuses.
fn refusal<T: std::fmt::Debug>(result: Result<T, AdminError>) -> Refusal {
    match result {
        Err(AdminError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_of_a_rollout_is_written_once() {
    let world = World::with_demo().await;
    let admin = world.admin("demo");
    let (document, version) = admin.rotate_in_rollout(&[], &mark(1, 1)).await.unwrap();
    assert_eq!(
        (document.manifest().rollout.clone(), version),
        (Some(mark(1, 1)), 2)
    );
    let activate = async |mark| {
        admin
            .change_in_rollout(&mark, |current, now| {
                keyring::activate(current, 2, WaveSelector::Every, None, now)
            })
            .await
    };
    activate(mark(1, 2)).await.unwrap();
    let before = stored(&world);
    // A runner that didn't hear the answer, an older one, and another rollout.
    let done = Refusal::RolloutStepDone {
        id: RolloutId([1; 16]),
        step: 2,
        attempt: 1,
    };
    assert_eq!(refusal(activate(mark(1, 2)).await), done);
    assert_eq!(
        refusal(admin.rotate_in_rollout(&[], &mark(1, 1)).await),
        done
    );
    let other = refusal(activate(mark(2, 1)).await);
    assert!(
        matches!(other, Refusal::OtherRollout { step: 2, .. }),
        "{other}"
    );
    assert_eq!(stored(&world).bytes(), before.bytes());
}

#[tokio::test(start_paused = true)]
async fn of_two_runners_one_writes_a_step() {
    let world = World::with_demo().await;
    let rotate = async || {
        let admin = world.admin("demo");
        admin.rotate_in_rollout(&[], &mark(1, 1)).await
    };
    let (one, other) = tokio::join!(rotate(), rotate());
    let refused = match (one, other) {
        (Ok(_), refused) | (refused, Ok(_)) => refusal(refused),
        neither => panic!("{neither:?}"),
    };
    assert!(
        matches!(refused, Refusal::RolloutStepDone { step: 1, .. }),
        "{refused}"
    );
    assert_eq!(stored(&world).manifest().newest_version(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_change_by_hand_needs_leave_while_a_rollout_is_active() {
    let world = World::with_demo().await;
    let admin = world.admin("demo");
    admin.rotate_in_rollout(&[], &mark(1, 1)).await.unwrap();
    let by_hand = refusal(admin.rotate(&[], Takeover::Later).await);
    assert!(
        matches!(by_hand, Refusal::RolloutActive { step: 1, .. }),
        "{by_hand}"
    );
    let by_hand = refusal(admin.activate(2, WaveSelector::Every, None).await);
    assert!(
        by_hand.to_string().contains("--despite-rollout"),
        "{by_hand}"
    );
    // What cron jobs do goes on.
    admin
        .change(|current, now| Ok(keyring::touch(current, now)))
        .await
        .unwrap();

    let despite = world.admin_with("demo", Signing::NoKey).with_bases(Bases {
        memory: Some(Memory::in_folder(world.path("state"))),
        trust_clock: true,
        despite_rollout: true,
        ..Bases::default()
    });
    despite
        .activate(2, WaveSelector::Every, None)
        .await
        .unwrap();
    assert_eq!(
        stored(&world).manifest().rollout,
        Some(mark(1, 1)),
        "it is still active"
    );

    admin
        .change(|current, now| keyring::compromise(current, 1, now))
        .await
        .unwrap();
    let ended = refusal(admin.rotate_in_rollout(&[], &mark(1, 2)).await);
    assert_eq!(ended, Refusal::RolloutEnded(RolloutId([1; 16])));
    admin
        .rotate(&[], Takeover::Now)
        .await
        .expect("none is active");
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_follows_a_rollout_and_its_way_back() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let admin = world.admin("demo");
    admin.rotate_in_rollout(&[], &mark(1, 1)).await.unwrap();
    let canary: WaveSelector = "canary".parse().unwrap();
    for (step, wave) in [(2, canary), (3, WaveSelector::Every)] {
        admin
            .change_in_rollout(&mark(1, step), |current, now| {
                keyring::activate(current, 2, wave.clone(), None, now)
            })
            .await
            .unwrap();
    }
    app.wait_generation(4).await;
    let former = BTreeMap::from([(WaveSelector::Every, 1)]);
    let other = refusal(admin.roll_back(RolloutId([2; 16]), &former).await);
    assert!(matches!(other, Refusal::OtherRollout { .. }), "{other}");
    admin.roll_back(RolloutId([1; 16]), &former).await.unwrap();
    app.wait_generation(5).await;
    let status = app.keyring().await;
    assert_eq!(status["active"]["primary"], 1, "{status}");
    let again = refusal(admin.end_rollout(RolloutId([1; 16])).await);
    assert_eq!(again, Refusal::RolloutEnded(RolloutId([1; 16])));
    // A rollback of what ended last is still one.
    admin.roll_back(RolloutId([1; 16]), &former).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rollout_destroys_once_the_waiting_times_are_over() {
    let world = World::new();
    let hour = Span(HOUR);
    let policy = Policy {
        encrypt_lease: hour,
        destroy_after: hour,
        ..Policy::default()
    };
    world.init_with("demo", policy).await;
    let admin = world.admin("demo");
    admin.rotate(&[], Takeover::Now).await.unwrap();
    let evidence = Evidence::Override("test".into());
    admin
        .change_in_rollout(&mark(1, 7), |current, now| {
            keyring::disable(current, 1, &evidence, now)
        })
        .await
        .unwrap();
    let phrase = keyring::backup_phrase(&"demo".parse().unwrap(), 1);
    let destroy = async |mark| admin.destroy_in_rollout(1, Some(&phrase), &mark).await;
    let early = refusal(destroy(mark(1, 8)).await);
    assert!(matches!(early, Refusal::TooEarly { .. }), "{early}");
    world.clock().advance(HOUR);
    let other = refusal(destroy(mark(2, 1)).await);
    assert!(matches!(other, Refusal::OtherRollout { .. }), "{other}");
    let document = destroy(mark(1, 8)).await.unwrap();
    assert_eq!(document.manifest().versions[0].state, State::Destroyed);
    assert_eq!(document.manifest().rollout, Some(mark(1, 8)));
}
