//! The hub's process.

use hyper::Method;
use serde_json::json;

use crate::support::hub::{HubWorld, Reporter};

#[tokio::test]
async fn a_hub_takes_reports_answers_operators_and_stops() {
    let world = HubWorld::new();
    let mut hub = world.start();
    let reporter = Reporter::new(1);
    reporter.report(&hub, 1, false).await.ok();
    let listed = hub.sidecars().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["instance"], reporter.instance());
    reporter.report(&hub, 2, true).await.ok();
    assert!(hub.sidecars().await.is_empty());
    assert!(hub.terminate().success());
}

#[tokio::test]
async fn a_closed_log_stops_no_hub() {
    let world = HubWorld::new();
    let mut hub = world.start();
    hub.close_log();
    for generation in 1..100 {
        let hint = json!({ "keyring": "demo", "generation": generation });
        hub.ask(Method::POST, "/v1/hints", &hint).await.ok();
    }
    assert!(hub.terminate().success());
}
