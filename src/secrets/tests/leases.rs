//! Leases and expiry.

use futures_util::FutureExt as _;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_and_replaced_once_it_is_no_longer_extended() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(90);
    script.stages().leased = Some(Arc::clone(&lease));
    let world = World::new(
        &script,
        CachePolicy {
            revoke: true,
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    world.pass(3600).await;
    assert_eq!(
        (script.fetches(), world.current().await.as_deref()),
        (1, Ok("first"))
    );
    assert!(lease.renewed.load(Ordering::Relaxed) >= 40);
    // It approaches its maximum TTL.
    script.rotate("b", "second", world.now());
    *lease.renewal.lock().expect("test") = Ok(Duration::from_secs(20));
    while script.fetches() < 2 {
        world.pass(1).await;
    }
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    *lease.renewal.lock().expect("test") = Ok(Duration::from_secs(90));
    world.pass(21).await;
    assert_eq!(
        world.previous().await,
        Err(GetError::PreviousExpired),
        "not served beyond its lease"
    );
    assert_eq!(
        lease.revoked.load(Ordering::Relaxed),
        1,
        "it is no longer served"
    );
    world.shared.shutdown.cancel();
    world.shared.tasks.close();
    world.shared.tasks.wait().await;
    assert_eq!(
        lease.revoked.load(Ordering::Relaxed),
        2,
        "revoked at shutdown"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_revoked_elsewhere_is_replaced_for_a_revalidating_request() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(3600);
    script.stages().leased = Some(Arc::clone(&lease));
    let world = World::new(
        &script,
        CachePolicy {
            refresh: Duration::from_secs(3000),
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    script.rotate("b", "second", world.now());
    let fresh = world
        .ask(VersionSelector::Current, Freshness::Revalidated)
        .await
        .expect("served");
    assert_eq!(fresh.0, "first", "an active lease is kept");
    *lease.renewal.lock().expect("test") = Err(ErrorKind::NotFound);
    let fresh = world
        .ask(VersionSelector::Current, Freshness::Revalidated)
        .await
        .expect("served");
    assert_eq!(fresh.0, "second");
    assert_eq!(
        world.previous().await,
        Err(GetError::PreviousExpired),
        "the old credentials no longer work"
    );
}

#[tokio::test(start_paused = true)]
async fn credentials_with_an_expired_lease_are_not_served() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(90);
    script.stages().leased = Some(Arc::clone(&lease));
    let world = World::new(&script, KEEPING);
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    *lease.renewal.lock().expect("test") = Err(ErrorKind::Unavailable);
    script.fail(ErrorKind::Unavailable);
    world.pass(60).await;
    assert!(
        world
            .ask(VersionSelector::Current, Freshness::Cached)
            .await
            .expect("the lease is active")
            .2
    );
    world.pass(60).await;
    assert_eq!(world.current().await, Err(ErrorKind::Unavailable));
    script.fail(None);
    world.pass(30).await;
    assert_eq!(world.current().await.as_deref(), Ok("first"));
}

#[tokio::test(start_paused = true)]
async fn leased_credentials_are_replaced_before_rotate_after() {
    let script = Script::new("a", "first");
    script.stages().leased = Some(ScriptedLease::new(90));
    let world = World::new(
        &script,
        CachePolicy {
            rotate_after: Some(Duration::from_secs(1000)),
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    script.rotate("b", "second", world.now());
    world.pass(900).await;
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    while script.fetches() < 2 {
        world.pass(1).await;
    }
    assert!(world.now() < Timestamp::UNIX_EPOCH + Duration::from_secs(86_400 + 1000));
    assert_eq!(world.current().await.as_deref(), Ok("second"));
    world.pass(85).await;
    assert_eq!(
        world.previous().await.as_deref(),
        Ok("first"),
        "its lease was renewed once more"
    );
}

#[tokio::test(start_paused = true)]
async fn credentials_that_cannot_be_replaced_are_renewed() {
    let script = Script::new("a", "first");
    script.stages().leased = Some(ScriptedLease::new(90));
    let world = World::new(
        &script,
        CachePolicy {
            rotate_after: Some(Duration::from_secs(100)),
            ..KEEPING
        },
    );
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    script.fail(ErrorKind::Unavailable);
    for _ in 0..20 {
        world.pass(10).await;
        assert_eq!(world.current().await.as_deref(), Ok("first"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_is_read_again_around_its_expiry() {
    let script = Script::new("1", "old");
    let keeping = CachePolicy {
        refresh: Duration::from_secs(86_400),
        rotate_after: Some(Duration::from_secs(1000)),
        ..KEEPING
    };
    script.rotate(
        "2",
        "older",
        Timestamp::UNIX_EPOCH + Duration::from_secs(86_400),
    );
    let world = World::new(&script, keeping);
    assert_eq!(world.current().await.as_deref(), Ok("older"));
    world.pass(999).await;
    assert_eq!(script.fetches(), 2, "read once before it expires");
    script.rotate("3", "new", world.now());
    world.pass(3).await;
    assert_eq!(world.current().await.as_deref(), Ok("new"));
    world.pass(90).await;
    assert_eq!(script.fetches(), 3, "not read again until the next expiry");
}

#[tokio::test(start_paused = true)]
async fn an_on_demand_read_that_waits_delays_no_renewal() {
    let script = Script::new("a", "first");
    let lease = ScriptedLease::new(8);
    script.stages().leased = Some(Arc::clone(&lease));
    let mut world = World::with(&script, KEEPING, |settings| {
        settings.force_interval = Duration::from_secs(3600)
    });
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    // A caller that waits for a read, which may not start for an hour, and gives up.
    let gave_up = world
        .ask(VersionSelector::Current, Freshness::Revalidated)
        .now_or_never();
    assert!(gave_up.is_none());
    for _ in 0..100 {
        world.pass(1).await;
        assert_eq!(
            world.current().await.as_deref(),
            Ok("first"),
            "the lease is renewed in time"
        );
    }
    world.shared.shutdown.cancel();
    script.stages().leased = None;
    world = World::with(&script, KEEPING, |settings| {
        settings.force_interval = Duration::from_secs(3600)
    });
    assert_eq!(world.current().await.as_deref(), Ok("first"));
    // A revalidating request that times out gets a value that is marked as stale.
    let fresh = tokio::time::timeout(
        Duration::from_secs(3700),
        world.ask(VersionSelector::Current, Freshness::Revalidated),
    )
    .await;
    assert!(fresh.expect("bounded").is_ok());
}
