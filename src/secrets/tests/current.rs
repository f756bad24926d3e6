//! The current value, its predecessor, and freshness.

use super::*;

#[tokio::test(start_paused = true)]
async fn after_a_rotation_the_previous_value_is_served_for_its_ttl() {
    let script = Script::new("1", "old");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("old"));
    assert_eq!(
        world.previous().await,
        Err(GetError::PreviousExpired),
        "the rotation was long ago"
    );
    let mut changes = world.shared.changes.subscribe();
    script.rotate("2", "new", world.now());
    world.pass(76).await;
    assert_eq!(world.current().await.as_deref(), Ok("new"));
    assert_eq!(world.previous().await.as_deref(), Ok("old"));
    let change = changes.try_recv().expect("announced");
    assert_eq!(
        (change.version.as_deref(), change.previous.as_deref()),
        (Some("2"), Some("1"))
    );
    let by_version = world
        .ask(VersionSelector::Version("1".into()), Freshness::Cached)
        .await
        .expect("held");
    assert_eq!((by_version.0.as_str(), by_version.1), ("old", "previous"));
    world.pass(601).await;
    assert_eq!(world.previous().await, Err(GetError::PreviousExpired));
    assert!(
        world.secret.state().expect("state").previous.is_none(),
        "it is dropped from memory"
    );
    let change = changes.try_recv().expect("its expiry is announced, too");
    assert_eq!(
        (change.version.as_deref(), change.previous),
        (Some("2"), None)
    );
    changes.try_recv().expect_err("announced once");
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_starts_after_a_rotation_reads_the_previous_value() {
    let script = Script::new("1", "old");
    let made = Timestamp::UNIX_EPOCH + Duration::from_secs(86_400 - 60);
    script.rotate("2", "new", made);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.previous().await.as_deref(), Ok("old"));
    let fetches = script.fetches();
    assert_eq!(world.previous().await.as_deref(), Ok("old"));
    assert_eq!(script.fetches(), fetches, "cached for a while");
    world.pass(600).await;
    assert_eq!(world.previous().await, Err(GetError::PreviousExpired));
}

#[tokio::test(start_paused = true)]
async fn while_a_provider_is_down_a_stale_value_is_served_within_the_bound_only() {
    for fault in [
        ErrorKind::Unavailable,
        ErrorKind::Throttled,
        ErrorKind::Denied,
    ] {
        let script = Script::new("1", "value");
        let world = World::new(&script, KEEPING);
        assert_eq!(
            world.ask(VersionSelector::Current, Freshness::Cached).await,
            Ok(("value".into(), "current", false))
        );
        script.fail(fault);
        world.pass(100).await;
        assert_eq!(
            world.ask(VersionSelector::Current, Freshness::Cached).await,
            Ok(("value".into(), "current", true))
        );
        world.pass(300).await;
        assert_eq!(world.current().await, Err(fault));
        script.fail(None);
        world.pass(30).await;
        assert_eq!(
            world.ask(VersionSelector::Current, Freshness::Cached).await,
            Ok(("value".into(), "current", false))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_counts_as_deleted_when_it_is_missing_twice_and_can_come_back() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    let mut changes = world.shared.changes.subscribe();
    script.fail(ErrorKind::NotFound);
    world.secret.request(Trigger::Signal);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        world.ask(VersionSelector::Current, Freshness::Cached).await,
        Ok(("value".into(), "current", true)),
        "missing once"
    );
    world.pass(2).await;
    assert_eq!(world.current().await, Err(ErrorKind::NotFound));
    assert_eq!(
        world
            .ask(VersionSelector::Previous, Freshness::Cached)
            .await
            .map_err(fault),
        Err(ErrorKind::NotFound)
    );
    assert_eq!(changes.try_recv().expect("announced").version, None);
    script.fail(None);
    world.pass(30).await;
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    assert_eq!(
        changes.try_recv().expect("announced").version.as_deref(),
        Some("1")
    );
}

#[tokio::test(start_paused = true)]
async fn concurrent_first_requests_share_one_read_and_a_refusal_is_remembered() {
    let script = Script::new("1", "value");
    script.stages().delay = Duration::from_secs(1);
    let world = Arc::new(World::new(&script, KEEPING));
    let ask = || {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.current().await })
    };
    let asked: Vec<_> = (0..10_000).map(|_| ask()).collect();
    for answer in asked {
        assert_eq!(answer.await.expect("joined").as_deref(), Ok("value"));
    }
    assert_eq!(script.fetches(), 1);

    let script = Script::new("1", "value");
    script.fail(ErrorKind::NotFound);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await, Err(ErrorKind::NotFound));
    let fetches = script.fetches();
    for _ in 0..1000 {
        assert_eq!(world.current().await, Err(ErrorKind::NotFound));
    }
    assert_eq!(script.fetches(), fetches);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_a_finished_read_has_met_causes_no_further_read() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    assert_eq!(script.fetches(), 1);
    // As sent by a caller that looked before the read began, and was delayed.
    world.secret.request(Trigger::OnDemand);
    world.pass(5).await;
    assert_eq!(script.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn revalidating_requests_share_reads_at_a_bounded_rate() {
    let script = Script::new("1", "old");
    let world = Arc::new(World::new(&script, KEEPING));
    assert_eq!(world.current().await.as_deref(), Ok("old"));
    script.rotate("2", "new", world.now());
    let ask = || {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            world
                .ask(VersionSelector::Current, Freshness::Revalidated)
                .await
                .map(|(text, ..)| text)
        })
    };
    let start = Instant::now();
    for _ in 0..5 {
        let asked: Vec<_> = (0..100).map(|_| ask()).collect();
        for answer in asked {
            assert_eq!(answer.await.expect("joined").as_deref(), Ok("new"));
        }
    }
    // Each round waits until a second has passed since the one before.
    assert_eq!(script.fetches(), 6);
    assert!(
        start.elapsed() >= Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    script.fail(ErrorKind::Unavailable);
    let stale = world
        .ask(VersionSelector::Current, Freshness::Revalidated)
        .await;
    assert_eq!(
        stale,
        Ok(("new".into(), "current", true)),
        "the value in memory, marked as stale"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_minimum_version_reads_only_if_the_held_version_is_lower() {
    let script = Script::new("9", "old");
    let world = World::new(&script, KEEPING);
    let at_least =
        |least: &str| world.ask(VersionSelector::Current, Freshness::AtLeast(least.into()));
    assert_eq!(
        at_least("9").await.map(|(text, ..)| text).as_deref(),
        Ok("old")
    );
    assert_eq!(
        at_least("8").await.map(|(text, ..)| text).as_deref(),
        Ok("old")
    );
    assert_eq!(script.fetches(), 1);
    assert_eq!(
        at_least("10").await,
        Err(GetError::VersionTooOld {
            version: "9".into()
        })
    );
    script.rotate("10", "new", world.now());
    assert_eq!(
        at_least("10").await.map(|(text, ..)| text).as_deref(),
        Ok("new")
    );
    assert_eq!(script.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_times_out_and_no_caller_waits_forever() {
    let script = Script::new("1", "value");
    script.stages().delay = Duration::from_secs(3600);
    let world = World::new(&script, KEEPING);
    let start = Instant::now();
    assert_eq!(world.current().await, Err(ErrorKind::Unavailable));
    assert!(
        start.elapsed() <= Duration::from_secs(12),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn two_values_of_one_version_have_different_entity_tags() {
    let script = Script::new("1", "first");
    let world = World::new(&script, KEEPING);
    let tag = async || {
        let served = world
            .secret
            .get(&SecretRequest {
                version: VersionSelector::Current,
                freshness: Freshness::Revalidated,
            })
            .await
            .expect("served");
        served.value.labels().json.clone()
    };
    let (first, again) = (tag().await, tag().await);
    script.rotate("1", "second", Timestamp::UNIX_EPOCH);
    assert_eq!(first, again);
    assert_ne!(tag().await, first);
}

#[tokio::test(start_paused = true)]
async fn a_lower_version_is_accepted_only_when_it_is_read_twice() {
    let script = Script::new("6", "old");
    script.rotate("7", "new", Timestamp::UNIX_EPOCH);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("new"));
    script.rotate("6", "old", Timestamp::UNIX_EPOCH);
    world.secret.request(Trigger::Signal);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(world.current().await.as_deref(), Ok("new"), "read once");
    world.pass(2).await;
    assert_eq!(world.current().await.as_deref(), Ok("old"), "read twice");
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_minimum_version_returns_the_providers_error() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("value"));
    script.fail(ErrorKind::Denied);
    assert_eq!(
        world
            .ask(VersionSelector::Current, Freshness::AtLeast("2".into()))
            .await
            .map_err(fault),
        Err(ErrorKind::Denied)
    );
}

#[tokio::test]
async fn a_waiting_task_uses_little_memory() {
    let script = Script::new("1", "value");
    let world = World::new(&script, KEEPING);
    let (_, requests) = tokio::sync::mpsc::channel(1);
    let task = task::Refresher::new(Arc::clone(&world.secret), requests).run();
    assert!(
        size_of_val(&task) < 1500,
        "{} bytes per secret",
        size_of_val(&task)
    );
}
