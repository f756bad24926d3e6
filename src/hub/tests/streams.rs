//! What sidecars are sent.

use super::*;

fn hint(generation: u64) -> Value {
    json!({ "keyring": "demo", "generation": generation })
}

#[tokio::test]
async fn a_newer_stream_takes_the_place_of_an_older_one() {
    let world = World::new().await;
    let sidecar = TestSidecar::orders(1);
    let mut older = world.join(&sidecar).await;
    let mut newer = world.join(&sidecar).await;
    assert_eq!(older.next().await, None, "a clean end");
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    let (_, hinted) = world.post(OPERATOR, "/v1/hints", &hint(2)).await;
    assert_eq!(hinted["sent"], json!(["orders-1"]));
    assert_eq!(newer.next().await, Some(("hint".into(), hint(2))));
}

#[tokio::test]
async fn hints_reach_those_that_may_not_have_the_generation() {
    let world = World::new().await;
    let [one, mut two, silent] = [1, 2, 3].map(TestSidecar::orders);
    two.generation = 5;
    let [mut to_one, mut to_two, mut to_silent] = [
        world.join(&one).await,
        world.join(&two).await,
        world.join(&silent).await,
    ];
    for sidecar in [&one, &two] {
        assert_eq!(world.report(sidecar, 1).await, "ok");
    }
    let (_, hinted) = world.post(OPERATOR, "/v1/hints", &hint(5)).await;
    assert_eq!(hinted["sent"], json!(["orders-1"]), "the other one has it");
    assert_eq!(to_one.next().await, Some(("hint".into(), hint(5))));
    let expected = Some(("hint".into(), hint(5)));
    assert_eq!(to_silent.next().await, expected, "it may serve the keyring");
    let (_, hinted) = world.post(OPERATOR, "/v1/hints", &hint(6)).await;
    assert_eq!(hinted["sent"], json!(["orders-1", "orders-2"]));
    assert_eq!(to_two.next().await, Some(("hint".into(), hint(6))));
    let other = json!({ "keyring": "other", "generation": 9 });
    let (_, hinted) = world.post(OPERATOR, "/v1/hints", &other).await;
    assert_eq!(hinted["sent"], json!([]), "none of them serves it");
}

#[tokio::test]
async fn a_sidecar_that_connects_later_is_told_once_what_it_missed() {
    let world = World::new().await;
    world.post(OPERATOR, "/v1/hints", &hint(7)).await;
    let mut sidecar = TestSidecar::orders(1);
    let mut events = world.join(&sidecar).await;
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    assert_eq!(events.next().await, Some(("hint".into(), hint(7))));
    assert_eq!(world.report(&sidecar, 2).await, "ok");
    sidecar.generation = 7;
    assert_eq!(world.report(&sidecar, 3).await, "ok");
    world.post(OPERATOR, "/v1/hints", &hint(8)).await;
    assert_eq!(events.next().await, Some(("hint".into(), hint(8))));
}

#[tokio::test]
async fn no_identity_takes_the_stream_of_another_ones_sidecar() {
    let world = World::new().await;
    let sidecar = TestSidecar::orders(1);
    // Before the first report, the hub can't know whose the instance is.
    let mut foreign = world.open(BILLING, &sidecar).await;
    assert!(foreign.next().await.is_some());
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    assert_eq!(foreign.next().await, None);
    let path = format!("/v1/stream?instance={}", to_hex(&sidecar.instance));
    assert_eq!(code(world.get(BILLING, &path).await), "forbidden");
}

#[tokio::test]
async fn a_stranger_replaces_no_stream_and_costs_none() {
    let world = World::new().await;
    let sidecar = TestSidecar {
        workload: "billing",
        token: BILLING,
        ..TestSidecar::orders(1)
    };
    let mut events = world.join(&sidecar).await;
    let path = format!("/v1/stream?instance={}", to_hex(&sidecar.instance));
    let before = world.get(ORDERS, &path).await;
    assert_eq!(code(before), "forbidden", "it was there first");
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    assert_eq!(code(world.get(ORDERS, &path).await), "forbidden");
    let (_, hinted) = world.post(OPERATOR, "/v1/hints", &hint(2)).await;
    assert_eq!(hinted["sent"], json!(["orders-1"]));
    assert_eq!(events.next().await, Some(("hint".into(), hint(2))));
}

#[tokio::test]
async fn a_wrong_hint_is_refused_or_followed_by_the_next_one() {
    let world = World::new().await;
    // Before a sidecar has reported, no generation is known to be wrong.
    let absurd = hint(1 << 60);
    world.post(OPERATOR, "/v1/hints", &absurd).await;
    let sidecar = TestSidecar::orders(1);
    let mut events = world.join(&sidecar).await;
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    assert_eq!(events.next().await, Some(("hint".into(), absurd.clone())));
    let answer = world.post(OPERATOR, "/v1/hints", &absurd).await;
    assert_eq!(code(answer), "invalid_request");

    // Another sidecar, which was away when the right one came.
    world.post(OPERATOR, "/v1/hints", &hint(2)).await;
    assert_eq!(events.next().await, Some(("hint".into(), hint(2))));
    let later = TestSidecar::orders(2);
    let mut events = world.join(&later).await;
    assert_eq!(world.report(&later, 1).await, "ok");
    assert_eq!(events.next().await, Some(("hint".into(), hint(2))));
}

#[tokio::test]
async fn streams_end_cleanly_when_the_hub_stops() {
    let mut world = World::new().await;
    let mut events = world.join(&TestSidecar::orders(1)).await;
    let hub = world.hub.take().expect("it runs");
    let (end, ()) = tokio::join!(events.next(), hub.stop(std::future::pending()));
    assert_eq!(end, None);
    let refused = TcpStream::connect(world.address).await;
    refused.expect_err("it accepts no connections");
}

#[tokio::test]
async fn a_barrier_is_answered_by_reports_and_names_those_who_did_not() {
    let world = World::new().await;
    let [mut one, mut two, absent] = [1, 2, 3].map(TestSidecar::orders);
    for sidecar in [&one, &two, &absent] {
        assert_eq!(world.report(sidecar, 1).await, "ok");
    }
    let mut streams = [world.join(&one).await, world.join(&two).await];
    let body = json!({ "wait_seconds": 30 });
    let barrier = world.post(OPERATOR, "/v1/barriers", &body);
    let reporting = async {
        for (events, sidecar) in streams.iter_mut().zip([&mut one, &mut two]) {
            let (name, data) = events.next().await.expect("an event");
            assert_eq!(
                (name.as_str(), &data),
                ("report-now", &json!({"barrier": FIRST_BARRIER}))
            );
            sidecar.answers = FIRST_BARRIER;
            assert_eq!(world.report(sidecar, 2).await, "ok");
        }
    };
    let ((_, barrier), ()) = tokio::join!(barrier, reporting);
    let expected = json!({
        "barrier": FIRST_BARRIER, "at": "2026-11-30T12:00:00Z", "unanswered": ["orders-3"],
    });
    assert_eq!(barrier, expected);
    let mut late = world.join(&absent).await;
    let expected = Some(("report-now".into(), json!({"barrier": FIRST_BARRIER})));
    assert_eq!(
        late.next().await,
        expected,
        "who connects later answers, too"
    );
}

#[tokio::test]
async fn streams_are_shared_by_identity() {
    let world = World::with("[limits]\nconnections = 16").await;
    // Twelve places, of which one identity may have nine.
    let mut streams = Vec::new();
    for number in 0..9 {
        streams.push(world.join(&TestSidecar::orders(number)).await);
    }
    let path = format!("/v1/stream?instance={}", "ab".repeat(16));
    let answer = world.get(ORDERS, &path).await;
    assert_eq!(code(answer), "too_many_connections");
    let other = TestSidecar {
        token: BILLING,
        ..TestSidecar::orders(200)
    };
    world.join(&other).await;
    drop(streams);
}

#[tokio::test]
async fn evidence_ends_at_a_barrier_and_names_what_is_missing() {
    let world = World::with("[[workload]]\nname = \"orders\"\nkeyrings = [\"demo\"]").await;
    let mut sidecar = TestSidecar::orders(1);
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    let mut events = world.join(&sidecar).await;
    let body = json!({
        "name": "demo", "id": KEYRING_ID, "version": 1, "class": "live", "quiet_period": "1d",
        "superseded_at": "2026-11-30T12:00:00Z", "generation": 2, "encrypt_lease": "1d",
    });
    let asked = world.post(OPERATOR, "/v1/evidence", &body);
    let reporting = async {
        let event = events.next().await.expect("an event");
        assert_eq!(event.0, "report-now");
        sidecar.answers = FIRST_BARRIER;
        assert_eq!(world.report(&sidecar, 2).await, "ok");
    };
    let ((status, verdict), ()) = tokio::join!(asked, reporting);
    assert_eq!(status, StatusCode::OK, "{verdict}");
    assert_eq!(verdict["barrier"]["number"], FIRST_BARRIER);
    let workload = &verdict["workloads"][0];
    assert_eq!(
        (&workload["workload"], &workload["running"]),
        (&json!("orders"), &json!(1))
    );
    let codes: Vec<&str> = workload["reasons"]
        .as_array()
        .expect("reasons")
        .iter()
        .map(|reason| reason["code"].as_str().expect("a code"))
        .collect();
    // The hub has just started, the version was used, and the sidecar lags.
    assert_eq!(codes, ["used", "unwatched", "behind"]);

    let mut other = body.clone();
    other["class"] = json!("dead");
    let (_, problem) = world.post(OPERATOR, "/v1/evidence", &other).await;
    assert_eq!(problem["code"], "invalid_request", "{problem}");
}
