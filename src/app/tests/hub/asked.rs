//! What a hub asks for.

use hyper::StatusCode;

use super::*;
use crate::{
    crypto::KeyringId,
    wire::{
        hub::{Hint, ProofResult, Prove, ReportNow, StreamEvent},
        proof::{ProofRequest, ProvenRole},
    },
};

fn hint_with(manifest: &[u8]) -> StreamEvent {
    StreamEvent::Hint(Hint {
        keyring: "demo".parse().unwrap(),
        generation: u64::MAX,
        manifest: Some(String::from_utf8(manifest.to_vec()).unwrap()),
    })
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_a_newer_generation_refreshes() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    world.store("demo").mute();
    world
        .admin("demo")
        .rotate(&[], Takeover::Now)
        .await
        .unwrap();
    let hint = |keyring: &str, generation| {
        StreamEvent::Hint(Hint {
            keyring: keyring.parse().unwrap(),
            generation,
            manifest: None,
        })
    };
    let reads = world.store("demo").reads();
    for known in [hint("demo", 1), hint("other", 9)] {
        hub.send(&known);
    }
    world.advance(2 * SECOND).await;
    assert_eq!(world.store("demo").reads(), reads, "neither is news");
    let newest = Document::parse(world.store("demo").get().unwrap()).unwrap();
    hub.send(&hint("demo", newest.manifest().generation));
    serves(&world, &app, newest.manifest().generation).await;

    // However many there are, the location is read once a second.
    let reads = world.store("demo").reads();
    let many = (100..600).map(|generation| FakeHub::text(&hint("demo", generation)));
    hub.send_text(many.collect::<String>());
    world.advance(3 * SECOND).await;
    let more = || world.store("demo").reads() - reads;
    eventually(&world, "another read", || more() > 0).await;
    assert!(more() <= 4, "{}", more());
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_a_hub_sends_counts_like_one_of_the_location_but_confirms_nothing() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    let store = world.store("demo");
    store.mute();
    let old = store.get().unwrap();
    world
        .admin("demo")
        .rotate(&[], Takeover::Now)
        .await
        .unwrap();
    let newest = store.get().unwrap();
    store.fail();
    let confirmed = app.keyring().await["active"]["confirmed_at"].clone();
    // One that was changed on the way, one that isn't a manifest, and one that is known.
    let changed = String::from_utf8(newest.to_vec()).unwrap();
    let changed = changed.replace("\"generation\": 3", "\"generation\": 7");
    assert_ne!(changed.as_bytes(), newest);
    for bad in [changed.as_bytes(), b"{}", &old] {
        hub.send(&hint_with(bad));
        world.advance(2 * SECOND).await;
        assert_eq!(app.keyring().await["active"]["generation"], 1);
    }
    hub.send(&hint_with(&newest));
    serves(&world, &app, 3).await;
    let status = app.keyring().await;
    assert_eq!(status["active"]["confirmed_at"], confirmed);
    reported(&world, &hub, &[(1, 0, 0, 0), (2, 0, 0, 0)]).await;
    let mut client = app.client().await;
    assert_eq!(client.encrypt(b"x").await.ok().version(), 2);

    // The location confirms it once it can be read.
    store.work();
    world.advance(2 * MINUTE).await;
    app.wait_keyring("the confirmation", |keyring| {
        keyring["active"]["confirmed_at"] != confirmed && keyring["last_error"].is_null()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_fresh_sidecar_takes_no_manifest_from_a_hub() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let manifest = world.store("demo").get().unwrap();
    world.store("demo").fail();
    let app = world.launch(&hub.config(""), &["demo"]).await;
    world.wait("a stream", || hub.streams() == 1).await;
    hub.send(&hint_with(&manifest));
    world.advance(5 * SECOND).await;
    eventually(&world, "a report", || !hub.reports().is_empty()).await;
    assert!(app.keyring().await["active"].is_null());
    assert!(hub.last_report().usage.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_proof_is_given_once() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    let request = ProofRequest {
        keyring: "demo".parse().unwrap(),
        rollout: [1; 16],
        version: 1,
        nonce: [2; 32],
    };
    for id in [7, 8] {
        let request = request.clone();
        hub.send(&StreamEvent::Prove(Prove { id, request }));
    }
    world
        .wait("both answers", || hub.answers().len() == 2)
        .await;
    let mut answers = hub.answers();
    answers.sort_by_key(|answer| answer.id);
    let [first, second] = &answers[..] else {
        panic!("two answers")
    };
    let ProofResult::Proof(proof) = &first.result else {
        panic!("{first:?}")
    };
    let bytes = world.store("demo").get().unwrap();
    let id: KeyringId = Document::parse(bytes).unwrap().manifest().id;
    let key = dek(&world, 1).await.proof_key();
    assert!(key.verify(id, &request, proof));
    assert_eq!((first.id, proof.role), (7, ProvenRole::Primary));
    assert_eq!(first.instance, hub.last_report().instance);
    assert!(
        matches!(&second.result, ProofResult::Refused(why) if why.contains("used before")),
        "{second:?}"
    );
    let (_, metrics) = app.ops("/metrics").await;
    let counted = "sidekey_proofs_total{keyring=\"demo\",result=\"ok\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn a_barrier_is_answered_with_all_uses_before_it() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let app = joined(&world, &hub).await;
    let mut client = app.client().await;
    let ciphertext = client.encrypt(b"x").await.ok().body;
    world.advance(2 * SECOND).await;
    for barrier in [4, 5, 3] {
        client.decrypt(&ciphertext).await.ok();
        hub.send(&StreamEvent::ReportNow(ReportNow { barrier }));
    }
    let answered = |barrier| {
        let reports = hub.reports();
        reports.into_iter().find(|report| report.answers == barrier)
    };
    let is_there = || answered(Some(5)).is_some();
    eventually(&world, "the answer to the highest", is_there).await;
    assert_eq!(uses(&answered(Some(5)).unwrap()), [(1, 1, 3, 0)]);
    let is_there = || hub.last_report().answers.is_none();
    eventually(&world, "a report after the answer", is_there).await;

    // What the hub didn't accept is answered later.
    hub.refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    hub.send(&StreamEvent::ReportNow(ReportNow { barrier: 6 }));
    world.advance(2 * SECOND).await;
    assert!(answered(Some(6)).is_none());
    app.wait_status("the refusal", |status| {
        status["hub"]["last_error"]["code"] == "hub_refused"
    })
    .await;
    hub.refuse(None);
    let is_there = || answered(Some(6)).is_some();
    eventually(&world, "the answer, later", is_there).await;
    let log = world.log();
    assert_eq!(log.matches("doesn't accept reports").count(), 1, "{log}");
    assert_eq!(log.matches("accepts reports again").count(), 1, "{log}");
}

#[tokio::test(start_paused = true)]
async fn nothing_that_a_hub_sends_costs_more_than_the_connection() {
    let world = World::with_demo().await;
    let hub = FakeHub::start().await;
    let config = format!("{}[refresh]\nmanifest_bytes = \"64KiB\"\n", hub.config(""));
    let app = world.start_with(&config, &["demo"]).await;
    let mut client = app.client().await;
    world.wait("a stream", || hub.streams() == 1).await;
    for odd in [
        ": comment\n\n",
        "event: later\ndata: {}\n\n",
        "event: hint\ndata: {\"keyring\":7}\n\n",
        "event: hint\ndata: {\n\n",
        "event: welcome\ndata: {\"protocol\":9,\"hub\":\"x\",\"report_seconds\":4294967295}\n\n",
        "event: prove\ndata: \n\n",
        "data: {}\n\n",
        "\n\n\r\n",
    ] {
        hub.send_text(odd);
    }
    world.advance(SECOND).await;
    client.encrypt(b"x").await.ok();
    assert_eq!(hub.streams(), 1, "what isn't understood is ignored");

    // An event without end, a line without end, and one that only a manifest could make so long.
    let endless = ["data: xxxxxxx\n", "xxxxxxxxxxxxxx"].map(|text| text.repeat(20_000));
    let long = format!("event: welcome\ndata: {}\n\n", "x".repeat(20 << 10));
    for (number, costly) in endless.into_iter().chain([long]).enumerate() {
        hub.send_text(costly);
        let is_there = || hub.streams() == number + 2;
        eventually(&world, "another connection", is_there).await;
        app.client().await.encrypt(b"x").await.ok();
    }
    // More requests than may be answered at once.
    let proof = "event: prove\ndata: {\"id\":1,\"request\":{\"keyring\":\"none\",\"rollout\":\
                 \"01010101010101010101010101010101\",\"version\":1,\"nonce\":\
                 \"AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\"}}\n\n";
    hub.send_text(proof.repeat(200));
    eventually(&world, "all answers", || hub.answers().len() == 200).await;
    assert_eq!(app.ops("/readyz").await.0, 200);
}
