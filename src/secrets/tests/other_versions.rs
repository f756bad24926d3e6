//! Other versions, and the usage of versions.

use super::*;

#[tokio::test(start_paused = true)]
async fn other_versions_are_read_once_and_cached() {
    let script = Script::new("1", "first");
    for version in 2..=20 {
        script.rotate(
            &version.to_string(),
            &format!("value {version}"),
            Timestamp::UNIX_EPOCH,
        );
    }
    let world = World::new(&script, KEEPING);
    let version = |version: u32| {
        world.ask(
            VersionSelector::Version(version.to_string()),
            Freshness::Cached,
        )
    };
    assert_eq!(version(1).await, Ok(("first".into(), "other", false)));
    let fetches = script.fetches();
    assert_eq!(version(1).await, Ok(("first".into(), "other", false)));
    assert_eq!(script.fetches(), fetches);
    for number in 2..20 {
        assert_eq!(
            version(number).await.map(|(text, ..)| text),
            Ok(format!("value {number}"))
        );
    }
    assert_eq!(version(99).await.map_err(fault), Err(ErrorKind::NotFound));
    assert_eq!(
        world
            .ask(VersionSelector::Pending, Freshness::Cached)
            .await
            .map_err(fault),
        Err(ErrorKind::NotFound)
    );
    script
        .values
        .lock()
        .expect("test")
        .insert("pending".into(), ("next".into(), world.now()));
    world.pass(31).await;
    assert_eq!(
        world.ask(VersionSelector::Pending, Freshness::Cached).await,
        Ok(("next".into(), "pending", false))
    );
}

#[tokio::test(start_paused = true)]
async fn usage_is_counted_per_version() {
    let script = Script::new("1", "old");
    let world = World::new(&script, KEEPING);
    let serve = async |version: VersionSelector| {
        let served = world
            .secret
            .get(&SecretRequest {
                version,
                freshness: Freshness::Cached,
            })
            .await
            .expect("served");
        world.secret.record_served(&served);
    };
    serve(VersionSelector::Current).await;
    script.rotate("2", "new", world.now());
    world.pass(76).await;
    serve(VersionSelector::Current).await;
    serve(VersionSelector::Previous).await;
    let usages = world.secret.usages();
    let counts: Vec<_> = usages
        .iter()
        .map(|usage| (usage.version(), usage.count()))
        .collect();
    assert_eq!(counts, [("1", 2), ("2", 1)]);
    assert_eq!(usages[0].last(), Some(world.now()));
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_abandoned_cause_no_extra_reads_and_evict_nothing() {
    let script = Script::new("1", "first");
    script.rotate("2", "second", Timestamp::UNIX_EPOCH);
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    script.stages().delay = Duration::from_secs(5);
    let before = script.fetches();
    for number in 0..60 {
        let asked = world.ask(
            VersionSelector::Version(format!("none {number}")),
            Freshness::Cached,
        );
        let _ = tokio::time::timeout(Duration::from_millis(80), asked).await;
    }
    assert!(
        script.fetches() - before <= 2,
        "{}",
        script.fetches() - before
    );
    // They do not block access to values in memory, either.
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    world.pass(200).await;
    script.stages().delay = Duration::ZERO;
    let first = || world.ask(VersionSelector::Version("1".into()), Freshness::Cached);
    assert_eq!(first().await.map(|(text, ..)| text).as_deref(), Ok("first"));
    script.stages().delay = Duration::from_secs(5);
    for number in 0..40 {
        let asked = world.ask(
            VersionSelector::Version(format!("none {number}")),
            Freshness::Cached,
        );
        let _ = tokio::time::timeout(Duration::from_millis(1), asked).await;
    }
    assert_eq!(
        first().await.map(|(text, ..)| text).as_deref(),
        Ok("first"),
        "a cached value needs no read"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_marked_every_time() {
    let script = Script::new("1", "value");
    script
        .values
        .lock()
        .expect("test")
        .insert("pending".into(), ("next".into(), Timestamp::UNIX_EPOCH));
    let world = World::new(&script, KEEPING);
    let pending = async || {
        world
            .ask(VersionSelector::Pending, Freshness::Cached)
            .await
            .map(|(_, _, stale)| stale)
    };
    assert_eq!(pending().await, Ok(false));
    script.fail(ErrorKind::Denied);
    world.pass(31).await;
    for _ in 0..3 {
        assert_eq!(pending().await, Ok(true));
    }
    world.pass(301).await;
    // The provider still refuses, and the bound is exceeded.
    assert_eq!(pending().await.map_err(fault), Err(ErrorKind::Denied));
}

#[tokio::test(start_paused = true)]
async fn usage_of_the_current_value_survives_many_other_versions() {
    let script = Script::new("1", "first");
    for version in 2..=45 {
        script.rotate(&version.to_string(), "value", Timestamp::UNIX_EPOCH);
    }
    let world = World::new(&script, KEEPING);
    let serve = async |version: VersionSelector| {
        let served = world
            .secret
            .get(&SecretRequest {
                version,
                freshness: Freshness::Cached,
            })
            .await
            .expect("served");
        world.secret.record_served(&served);
    };
    serve(VersionSelector::Current).await;
    for version in 1..=40 {
        serve(VersionSelector::Version(version.to_string())).await;
    }
    serve(VersionSelector::Current).await;
    let usages = world.secret.usages();
    let current = usages
        .iter()
        .find(|usage| usage.version() == "45")
        .expect("known");
    assert_eq!(current.count(), 2);
    assert!(usages.len() <= 32, "{}", usages.len());
}
