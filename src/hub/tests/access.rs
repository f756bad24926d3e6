//! Who may ask for what.

use std::collections::BTreeSet;

use hyper::header::ALLOW;

use super::*;
use crate::hub::{caller::Access, routes::ROUTES};

const NONE: &str = "";
const WRONG: &str = "orders-0123456789abcdef0123456789abcdee";

#[tokio::test]
async fn each_route_is_for_its_callers() {
    let world = World::new().await;
    for entry in &ROUTES {
        for token in [NONE, WRONG, ORDERS, VIEWER, OPERATOR, APPROVER, SIGNER] {
            let allowed: &[&str] = match entry.access {
                Access::Open => &[NONE, WRONG, ORDERS, VIEWER, OPERATOR, APPROVER, SIGNER],
                Access::Report => &[ORDERS],
                Access::Read => &[VIEWER, OPERATOR, APPROVER, SIGNER],
                Access::Act => &[OPERATOR, SIGNER],
                Access::Sign => &[SIGNER],
            };
            let response = world
                .send(token, entry.method().clone(), entry.path, &[], "not JSON")
                .await;
            let code = code(parts(response).await);
            let refused = ["unauthorized", "forbidden"].contains(&&*code);
            let expected = if [NONE, WRONG].contains(&token) {
                "unauthorized"
            } else {
                "forbidden"
            };
            let what = format!("{} with {token:?}: {code}", entry.path);
            if allowed.contains(&token) {
                assert!(!refused, "{what}");
            } else {
                assert_eq!(code, expected, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let world = World::new().await;
    for path in ["/", "/v1", "/v1/sidecars/", "/v1/reports/1"] {
        assert_eq!(code(world.get(VIEWER, path).await), "not_found", "{path}");
    }
    for entry in &ROUTES {
        let response = world
            .send(OPERATOR, Method::DELETE, entry.path, &[], "")
            .await;
        let allow = response.headers()[ALLOW].to_str().expect("text").to_owned();
        assert!(allow.contains(entry.method().as_str()), "{}", entry.path);
        assert_eq!(code(parts(response).await), "method_not_allowed");
    }
    let long = format!("/v1/sidecars?{}", "x".repeat(20 << 10));
    assert_eq!(code(world.get(VIEWER, &long).await), "headers_too_large");
}

#[tokio::test]
async fn malformed_requests_of_operators_are_problems() {
    let world = World::new().await;
    for path in ["/v1/hints", "/v1/proofs", "/v1/barriers", "/v1/evidence"] {
        for body in [json!(null), json!([]), json!({})] {
            let answer = world.post(OPERATOR, path, &body).await;
            assert_eq!(code(answer), "invalid_request", "{path} {body}");
        }
        let long = json!("x".repeat(5 << 20));
        assert_eq!(
            code(world.post(OPERATOR, path, &long).await),
            "body_too_large"
        );
    }
    let long = json!({ "wait_seconds": 31 });
    let answer = world.post(OPERATOR, "/v1/barriers", &long).await;
    assert_eq!(code(answer), "invalid_request");
    for query in ["", "?instance=", "?instance=01", "?other=1"] {
        let answer = world.get(ORDERS, &format!("/v1/stream{query}")).await;
        assert_eq!(code(answer), "invalid_request", "{query}");
    }
}

#[tokio::test]
async fn the_document_lists_the_routes() {
    let world = World::new().await;
    let (_, document) = world.get(NONE, "/v1/openapi.json").await;
    let documented: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods");
            methods
                .keys()
                .map(|method| (path.clone(), method.to_uppercase()))
        })
        .collect();
    let routes = ROUTES
        .iter()
        .map(|entry| (entry.path.to_owned(), entry.method().to_string()))
        .collect();
    assert_eq!(documented, routes);
}

#[tokio::test]
async fn metrics_name_requests_and_reports() {
    let world = World::new().await;
    let sidecar = TestSidecar::orders(1);
    let _events = world.join(&sidecar).await;
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    assert_eq!(world.report(&sidecar, 1).await, "ok");
    let response = world.send(VIEWER, Method::GET, "/metrics", &[], "").await;
    let bytes = response.into_body().collect().await.expect("a body");
    let text = String::from_utf8(bytes.to_bytes().to_vec()).expect("text");
    for line in [
        "sidekey_hub_reports_total{result=\"taken\"} 1",
        "sidekey_hub_reports_total{result=\"known\"} 1",
        "sidekey_hub_streams 1",
        "sidekey_hub_requests_total{route=\"/v1/reports\",code=\"ok\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(!text.contains(ORDERS), "no token");
}
