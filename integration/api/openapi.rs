//! The sidecar behaves as its OpenAPI document says, checked by schemathesis, which generates
//! requests from it.

use std::collections::BTreeSet;

use serde_json::Value;
use sidekey::wire::Code;

use crate::support::harness::World;

const DOCUMENT: &str = include_str!("../../docs/openapi.json");

fn document() -> Value {
    serde_json::from_str(DOCUMENT).unwrap()
}

#[tokio::test]
async fn the_sidecar_serves_the_document() {
    let world = World::with_demo();
    let sidecar = world.start();
    let answer = sidecar
        .client()
        .await
        .send(hyper::Method::GET, "/v1/openapi.json", &[], "")
        .await
        .ok();
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.body, DOCUMENT);
}

#[test]
fn the_documents_list_every_code_with_its_status() {
    let hub = serde_json::from_str(include_str!("../../docs/hub-openapi.json")).unwrap();
    let mut documented = BTreeSet::new();
    let documents = [document(), hub];
    let responses = documents.iter().flat_map(|document| {
        document["components"]["responses"]
            .as_object()
            .unwrap()
            .values()
    });
    for response in responses {
        let schema =
            &response["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"];
        for code in schema["code"]["enum"].as_array().unwrap() {
            documented.insert((
                code.as_str().unwrap().to_owned(),
                schema["status"]["const"].as_u64().unwrap(),
            ));
        }
    }
    let codes: BTreeSet<_> = Code::ALL
        .iter()
        .map(|code| (code.as_str().to_owned(), u64::from(code.status().as_u16())))
        .collect();
    assert_eq!(documented, codes);
}
