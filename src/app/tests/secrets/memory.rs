//! What responses with secrets hold.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{entry, get, get_bytes};
use crate::app::testing::World;

#[tokio::test(start_paused = true)]
async fn the_json_of_what_was_decoded_counts_beside_the_value() {
    let world = World::with_demo().await;
    // In JSON, each of these bytes takes six.
    let value = STANDARD.encode(vec![1; 360 << 10]);
    world.secret("file:db").rotate("1", value);
    let limits = "secrets.value_bytes = \"512KiB\"\n[timeouts]\nbody = \"2s\"\n\
                  [limits]\nbody = \"1MiB\"\njson_body = \"1MiB\"\nbody_memory = \"4MiB\"\n";
    let config = format!("{limits}{}", entry("db", "file:db", ""));
    let sidecar = world.start_with(&config, &["demo"]).await;
    // Responses that are left unread. A body that is sent no further would give way to a request that
    // waits for its memory.
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut connection = sidecar.raw().await;
        let head = "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\n\
                    Content-Type: application/octet-stream\r\nContent-Length: 1048576\r\n\r\n";
        connection.write(head).await;
        connection.write(&vec![0; 1 << 20]).await;
        unread.push(connection);
    }
    let answered = "sidekey_requests_total{keyring=\"demo\",operation=\"encrypt\",code=\"ok\"} 2";
    sidecar.wait_metric(answered).await;
    let mut client = sidecar.client().await;
    let decoded = get_bytes(&mut client, "db?decode=base64").await.ok();
    assert_eq!(decoded.body.len(), 360 << 10);
    let refused = world
        .pass_time_until(get(&mut client, "db?decode=base64"))
        .await;
    assert_eq!(refused.problem(), "overloaded");
    drop(unread);
    let json = world.pass_time_until(get(&mut client, "db?decode=base64"));
    assert_eq!(
        json.await.ok().json()["value"].as_str().map(str::len),
        Some(360 << 10)
    );
}
