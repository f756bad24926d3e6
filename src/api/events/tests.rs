use std::{path::Path, pin::Pin};

use futures_util::{FutureExt, StreamExt};
use tokio::{task::unconstrained, time::sleep};

use super::*;
use crate::{
    backend,
    config::{self, Rule},
    http::account::testing::account,
    refresh::testing::ManualKeyring,
    session::testing::{empty_keyring, keyring_with, manifest, start, table},
};

const CALLER: Caller = Caller::TokenHolder;
const MINUTE: Duration = Duration::from_secs(60);

type Stream = Pin<Box<dyn futures_util::Stream<Item = Result<Bytes, Problem>> + Send>>;

fn no_secrets(clock: &Clock) -> Arc<Secrets> {
    let text = "[listen]\nsocket = \"s\"\n[[keyring]]\nname = \"demo\"\n\
                location = \"demo.json\"\nkeks = [\"local:*\"]\n";
    let settings = config::parse(Path::new("/sidekey.toml"), text).expect("a config");
    let parts = secrets::Parts {
        settings: &settings,
        clock: clock.clone(),
        registry: Arc::default(),
        audit: Default::default(),
        backends: backend::configured(&settings.backends),
    };
    Secrets::start(parts).expect("no secrets")
}

fn events_of(keyrings: &[&ManualKeyring], connections: usize, idle: Duration) -> Arc<Events> {
    let (clock, _) = Clock::manual(start());
    let keyrings = keyrings
        .iter()
        .map(|manual| Arc::clone(&manual.keyring))
        .collect();
    let secrets = no_secrets(&clock);
    Events::new(keyrings, secrets, connections, idle, clock)
}

fn no_keyrings() -> Arc<Events> {
    events_of(&[], 100, MINUTE)
}

fn everyone() -> Subscriber {
    Subscriber {
        caller: CALLER,
        account: account(1 << 20),
        policy: ActivePolicy::new(&[]),
    }
}

fn subscribe(events: &Arc<Events>, last_id: Option<&str>) -> Stream {
    let stream = events.subscribe(everyone(), last_id, CancellationToken::new());
    Box::pin(stream.unwrap_or_else(|problem| panic!("{problem:?}")))
}

fn rule(keyring: Option<&str>, operations: &[Operation], secrets: &[&str]) -> Rule {
    Rule {
        keyrings: keyring.map(|name| vec![name.parse().expect("a name")]),
        operations: operations.to_vec(),
        secrets: secrets
            .iter()
            .map(|name| name.parse().expect("a pattern"))
            .collect(),
        uids: Vec::new(),
        gids: Vec::new(),
        token: true,
    }
}

fn publish(events: &Events, count: u64) {
    for _ in 0..count {
        let subject = Subject::Secret("db".parse().expect("a name"));
        events.publish(subject, "{}");
    }
}

/// Returns the numbers of the events that are there already; comments are skipped.
fn received(stream: &mut Stream) -> Vec<u64> {
    let mut numbers = Vec::new();
    // Not constrained, so that it is ready for as long as there are events.
    let mut next = || unconstrained(stream.next()).now_or_never().flatten();
    while let Some(item) = next() {
        let item = item.expect("no problem");
        let text = std::str::from_utf8(&item).expect("text");
        if let Some(id) = text.strip_prefix("id: ") {
            let id = id.lines().next().expect("a line");
            let (_, number) = id.split_once('-').expect("an epoch and a number");
            numbers.push(number.parse().expect("a number"));
        }
    }
    numbers
}

#[tokio::test(start_paused = true)]
async fn a_subscription_resumes_after_the_last_event_received() {
    let events = no_keyrings();
    publish(&events, 3);
    let epoch = events.epoch;
    for (last, missed) in [
        (3, vec![]),
        (2, vec![3]),
        (1, vec![2, 3]),
        (0, vec![1, 2, 3]),
    ] {
        let mut stream = subscribe(&events, Some(&format!("{epoch}-{last}")));
        assert_eq!(received(&mut stream), missed, "after {last}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_events_that_are_kept_are_resumed() {
    let events = no_keyrings();
    let epoch = events.epoch;
    let missed = |last: &str| {
        let recent = events.recent.lock().expect("test");
        events
            .missed(&recent, Some(last))
            .map(|missed| missed.len())
    };
    assert_eq!(missed(&format!("{epoch}-0")), Some(0), "nothing happened");
    publish(&events, MAX_RECENT as u64);
    assert_eq!(missed(&format!("{epoch}-0")), Some(MAX_RECENT));
    publish(&events, 1);
    assert_eq!(missed(&format!("{epoch}-0")), None, "the first is gone");
    assert_eq!(missed(&format!("{epoch}-1")), Some(MAX_RECENT));
    let newest = MAX_RECENT + 1;
    assert_eq!(missed(&format!("{epoch}-{newest}")), Some(0));
    let strange = [
        format!("{epoch}-{}", newest + 1),
        format!("{}-{newest}", epoch + 1),
        format!("{epoch}"),
        format!("{epoch}-"),
        format!("{epoch}--1"),
        format!("0{epoch}-1"),
        String::new(),
    ];
    for id in strange {
        assert_eq!(missed(&id), None, "{id:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_cannot_resume_gets_the_current_state_with_the_newest_number() {
    let keyring = keyring_with(table(manifest(1), "standard", &[]));
    let loading = empty_keyring("standard");
    let events = events_of(&[&keyring, &loading], 100, MINUTE);
    let mut early = subscribe(&events, None);
    assert_eq!(received(&mut early), [0], "a keyring has a state");
    publish(&events, 5);
    assert_eq!(received(&mut early), [1, 2, 3, 4, 5]);
    for last in [None, Some("elsewhere-1")] {
        let mut stream = subscribe(&events, last);
        assert_eq!(received(&mut stream), [5], "{last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_lags_gets_the_current_state_and_nothing_older() {
    let keyring = keyring_with(table(manifest(1), "standard", &[]));
    let events = events_of(&[&keyring], 100, MINUTE);
    let mut stream = subscribe(&events, None);
    // Published before the subscriber reads its first state, and therefore part of it.
    publish(&events, 2);
    assert_eq!(received(&mut stream), [2]);
    let newest = 2 + MAX_RECENT as u64 + 1;
    publish(&events, newest - 2);
    assert_eq!(received(&mut stream), [newest]);
    publish(&events, 1);
    assert_eq!(received(&mut stream), [newest + 1]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_has_heartbeats_before_the_connection_counts_as_idle() {
    for (idle, pause) in [(MINUTE, HEARTBEAT), (Duration::from_secs(8), MINUTE / 15)] {
        let events = events_of(&[], 100, idle);
        let mut stream = subscribe(&events, None);
        let begun = stream.next().await.expect("an item").expect("no problem");
        assert_eq!(begun, ": sidekey\n\n");
        for beat in 1..4 {
            let start = Instant::now();
            let item = stream.next().await.expect("an item").expect("no problem");
            assert_eq!(item, ":\n\n", "beat {beat}");
            assert_eq!(start.elapsed(), pause, "beat {beat}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn events_of_others_do_not_delay_a_heartbeat() {
    let events = no_keyrings();
    let hidden = Subscriber {
        caller: CALLER,
        account: account(1 << 20),
        policy: ActivePolicy::new(&[rule(None, &[], &["other"])]),
    };
    let stream = events.subscribe(hidden, None, CancellationToken::new());
    let mut stream: Stream = Box::pin(stream.unwrap_or_else(|problem| panic!("{problem:?}")));
    stream
        .next()
        .await
        .expect("its beginning")
        .expect("no problem");
    let start = Instant::now();
    let busy = async {
        loop {
            publish(&events, 1);
            sleep(HEARTBEAT / 3).await;
        }
    };
    let item = tokio::select! {
        item = stream.next() => item.expect("an item").expect("no problem"),
        () = busy => unreachable!("it publishes forever"),
    };
    assert_eq!((&item[..], start.elapsed()), (&b":\n\n"[..], HEARTBEAT));
}

#[tokio::test(start_paused = true)]
async fn half_of_the_connections_may_subscribe_and_a_slot_is_freed_with_its_stream() {
    for (connections, slots) in [(1, 1), (2, 1), (7, 3)] {
        let events = events_of(&[], connections, MINUTE);
        let mut streams: Vec<_> = (0..slots).map(|_| subscribe(&events, None)).collect();
        let refused = events.subscribe(everyone(), None, CancellationToken::new());
        let problem = refused.err().expect("no slot");
        assert_eq!(problem.code, Code::TooManyConnections, "{connections}");
        streams.pop();
        drop(subscribe(&events, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_the_listener_drains() {
    let events = no_keyrings();
    let draining = CancellationToken::new();
    let stream = events.subscribe(everyone(), None, draining.clone());
    let mut stream: Stream = Box::pin(stream.unwrap_or_else(|problem| panic!("{problem:?}")));
    stream
        .next()
        .await
        .expect("its beginning")
        .expect("no problem");
    draining.cancel();
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_state_is_not_announced_again() {
    let keyring = keyring_with(table(manifest(1), "standard", &[]));
    let events = events_of(&[&keyring], 100, MINUTE);
    let ending = CancellationToken::new();
    events.watch(&ending);
    let mut stream = subscribe(&events, None);
    tokio::task::yield_now().await;
    assert_eq!(received(&mut stream).last(), Some(&1));
    // The same manifest again, as after a refresh that unwrapped another version.
    keyring.activate(table(manifest(1), "standard", &[]), start());
    tokio::task::yield_now().await;
    assert!(received(&mut stream).is_empty());
    keyring.activate(table(manifest(2), "standard", &[]), start());
    tokio::task::yield_now().await;
    assert_eq!(received(&mut stream), [2]);
    ending.cancel();
}

#[test]
fn a_subscriber_sees_what_it_may_inspect_or_fetch() {
    let keyring = |name: &str| Subject::Keyring(name.parse().expect("a name"));
    let secret = |name: &str| Subject::Secret(name.parse().expect("a name"));
    let subscriber = |caller| {
        View::new(Subscriber {
            caller,
            account: account(1 << 20),
            policy: ActivePolicy::new(&[
                rule(Some("seen"), &[Operation::Inspect], &[]),
                rule(Some("used"), &[Operation::Encrypt], &["team-*"]),
            ]),
        })
    };
    let holder = subscriber(CALLER);
    assert!(holder.shows(&keyring("seen")) && holder.shows(&secret("team-a")));
    assert!(!holder.shows(&keyring("used")), "it may only encrypt");
    assert!(!holder.shows(&keyring("other")) && !holder.shows(&secret("other")));
    let stranger = subscriber(Caller::Process {
        uid: 1,
        gid: 1,
        pid: None,
    });
    assert!(!stranger.shows(&keyring("seen")) && !stranger.shows(&secret("team-a")));
    assert!(
        View::new(everyone()).shows(&keyring("seen"))
            && View::new(everyone()).shows(&secret("team-a"))
    );
}
