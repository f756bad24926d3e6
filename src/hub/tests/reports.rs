//! Which reports are taken, and what they show.

use super::*;

#[tokio::test]
async fn sidecars_that_have_reported_and_not_ended_are_listed_by_name() {
    let world = World::new().await;
    for number in [2, 1] {
        let sidecar = TestSidecar::orders(number);
        assert_eq!(world.report(&sidecar, 1).await, "ok");
    }
    let first = TestSidecar::orders(1);
    let _events = world.join(&first).await;
    let listed = world.sidecars().await;
    let names: Vec<&Value> = listed.iter().map(|sidecar| &sidecar["name"]).collect();
    assert_eq!(names, ["orders-1", "orders-2"]);
    assert_eq!(listed[0]["instance"], to_hex(&first.instance));
    assert_eq!(listed[0]["received_at"], "2026-11-30T12:00:00Z");
    assert_eq!(
        [&listed[0]["connected"], &listed[1]["connected"]],
        [true, false]
    );
    assert_eq!(listed[0]["status"]["version"], "0.1.0");

    let mut last = first.report(2);
    last["final"] = json!(true);
    let answer = world
        .post_report(ORDERS, &first.key, &last.to_string())
        .await;
    assert_eq!(code(answer), "ok");
    let listed = world.sidecars().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["name"], "orders-2");
}

#[tokio::test]
async fn a_long_list_is_complete_and_in_order() {
    let world = World::new().await;
    for number in 0..=255u8 {
        assert_eq!(world.report(&TestSidecar::orders(number), 1).await, "ok");
    }
    for more in 0..44u8 {
        let mut sidecar = TestSidecar::orders(more);
        sidecar.instance[0] ^= 0xff;
        sidecar.name = format!("orders-more-{more}");
        assert_eq!(world.report(&sidecar, 1).await, "ok");
    }
    let listed = world.sidecars().await;
    let names: Vec<&str> = listed
        .iter()
        .filter_map(|sidecar| sidecar["name"].as_str())
        .collect();
    assert_eq!(names.len(), 300);
    assert!(names.is_sorted());
}

#[tokio::test]
async fn an_instance_that_was_replaced_is_not_listed_unless_it_is_connected() {
    let world = World::new().await;
    let former = TestSidecar::orders(1);
    assert_eq!(world.report(&former, 1).await, "ok");
    world.clock.advance(std::time::Duration::from_secs(60));
    let later = TestSidecar {
        instance: [9; 16],
        key: key(9),
        ..TestSidecar::orders(1)
    };
    assert_eq!(world.report(&later, 1).await, "ok");
    let instances = async || -> Vec<Value> {
        let listed = world.sidecars().await;
        listed
            .into_iter()
            .map(|mut one| one["instance"].take())
            .collect()
    };
    assert_eq!(instances().await, [to_hex(&later.instance)]);
    let _events = world.join(&former).await;
    assert_eq!(
        instances().await,
        [to_hex(&former.instance), to_hex(&later.instance)]
    );
}

#[tokio::test]
async fn an_identity_reports_only_as_what_it_may() {
    let world = World::new().await;
    let foreign_workload = TestSidecar {
        workload: "billing",
        ..TestSidecar::orders(1)
    };
    let foreign_name = TestSidecar {
        name: "billing-1".into(),
        ..TestSidecar::orders(1)
    };
    let foreign_token = TestSidecar {
        token: BILLING,
        ..TestSidecar::orders(1)
    };
    for sidecar in [foreign_workload, foreign_name, foreign_token] {
        assert_eq!(world.report(&sidecar, 1).await, "forbidden");
    }
    assert_eq!(world.sidecars().await, [] as [Value; 0]);
    // Any name will do for the other identity.
    let billing = TestSidecar {
        token: BILLING,
        workload: "billing",
        ..TestSidecar::orders(1)
    };
    assert_eq!(world.report(&billing, 1).await, "ok");
}

#[tokio::test]
async fn the_first_report_pins_key_name_and_workload() {
    let world = World::new().await;
    let sidecar = TestSidecar::orders(1);
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    let other_key = TestSidecar {
        key: key(2),
        ..TestSidecar::orders(1)
    };
    assert_eq!(world.report(&other_key, 2).await, "other_key");
    let renamed = TestSidecar {
        name: "orders-2".into(),
        ..TestSidecar::orders(1)
    };
    assert_eq!(world.report(&renamed, 2).await, "report_conflict");
    assert_eq!(world.report(&sidecar, 2).await, "ok");
}

#[tokio::test]
async fn resent_and_reordered_reports_do_no_harm_and_contradictions_are_refused() {
    let world = World::new().await;
    let mut sidecar = TestSidecar::orders(1);
    for sequence in [5, 5, 4, 1, 6] {
        assert_eq!(world.report(&sidecar, sequence).await, "ok", "{sequence}");
    }
    sidecar.generation = 2;
    assert_eq!(world.report(&sidecar, 6).await, "report_conflict");
    assert_eq!(world.report(&sidecar, 7).await, "ok");
    let mut last = sidecar.report(8);
    last["final"] = json!(true);
    for _ in 0..2 {
        let answer = world
            .post_report(ORDERS, &sidecar.key, &last.to_string())
            .await;
        assert_eq!(code(answer), "ok", "its answer may be lost");
    }
    assert_eq!(world.report(&sidecar, 9).await, "report_conflict");
}

#[tokio::test]
async fn a_report_that_is_not_one_is_refused() {
    let world = World::with("[limits]\nreport = \"64KiB\"\nbody_memory = \"1MiB\"").await;
    let sidecar = TestSidecar::orders(1);
    let with = |member: &str, value: Value| {
        let mut report = sidecar.report(1);
        report[member] = value;
        report.to_string()
    };
    for body in [
        String::new(),
        "{".into(),
        "[]".into(),
        with("protocol", json!(2)),
        with("sequence", json!(0)),
        with("sequence", json!(u64::MAX)),
        with("name", json!("")),
        with("name", json!("a\nb")),
        with("workload", json!("x".repeat(254))),
        with("key", json!("AA==")),
        with("status", json!({})),
    ] {
        let answer = world.post_report(ORDERS, &sidecar.key, &body).await;
        assert_eq!(code(answer), "invalid_request", "{body}");
    }
    let body = sidecar.report(1).to_string();
    let answer = world.post_report(ORDERS, &key(2), &body).await;
    assert_eq!(code(answer), "invalid_signature");
    let answer = world.post(ORDERS, "/v1/reports", &sidecar.report(1)).await;
    assert_eq!(code(answer), "invalid_request", "no signature");
    let long = with("later", json!("x".repeat(64 << 10)));
    let answer = world.post_report(ORDERS, &sidecar.key, &long).await;
    assert_eq!(code(answer), "body_too_large");
    assert_eq!(world.sidecars().await, [] as [Value; 0]);
    let newer = with("later", json!({"unknown": []}));
    let answer = world.post_report(ORDERS, &sidecar.key, &newer).await;
    assert_eq!(code(answer), "ok", "unknown members are ignored");
}

#[tokio::test]
async fn instances_are_shared_by_identity() {
    let world = World::with("[limits]\ninstances = 4").await;
    for number in 0..3 {
        assert_eq!(world.report(&TestSidecar::orders(number), 1).await, "ok");
    }
    let fourth = TestSidecar::orders(3);
    assert_eq!(world.report(&fourth, 1).await, "overloaded");
    let other = TestSidecar {
        token: BILLING,
        workload: "billing",
        ..TestSidecar::orders(9)
    };
    assert_eq!(world.report(&other, 1).await, "ok");
    assert_eq!(world.report(&TestSidecar::orders(0), 2).await, "ok");
    for number in [1, 2] {
        let ending = TestSidecar::orders(number);
        let mut last = ending.report(2);
        last["final"] = json!(true);
        let answer = world
            .post_report(ORDERS, &ending.key, &last.to_string())
            .await;
        assert_eq!(code(answer), "ok");
    }
    assert_eq!(world.report(&fourth, 1).await, "ok");
}

#[tokio::test]
async fn the_inventory_counts_the_sidecars_that_hold_each_version() {
    let world = World::new().await;
    let time = "2026-11-30T11:00:00Z";
    for (number, role, uses) in [(1, "primary", 2), (2, "decrypt-only", 3)] {
        let sidecar = TestSidecar::orders(number);
        let mut report = sidecar.report(1);
        report["status"]["keyrings"] = json!([{
            "name": "demo", "location": "file:demo.json", "wave": format!("wave-{number}"),
            "observed_since": time, "last_refresh": time, "last_error": null,
            "active": {
                "id": KEYRING_ID, "generation": 4, "updated_at": time, "primary": 1,
                "encrypting": 1, "primary_since": time, "confirmed_at": time,
                "encrypt_until": time,
                "versions": [{
                    "version": 1, "state": "enabled", "role": role, "compromised": false,
                    "created_at": time, "last_used": null,
                    "uses": {"encrypted": uses, "decrypted": 0},
                }],
            },
        }]);
        let answer = world
            .post_report(ORDERS, &sidecar.key, &report.to_string())
            .await;
        assert_eq!(code(answer), "ok");
    }
    let (_, inventory) = world.get(VIEWER, "/v1/keyrings").await;
    let keys = inventory["keys"].as_array().expect("a list");
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0]["generations"], json!({"4": 2}));
    assert_eq!(
        keys[0]["roles"],
        json!({"wave-1": "primary", "wave-2": "decrypt-only"})
    );
    assert_eq!(keys[0]["uses"]["encrypted"], 5);
}
