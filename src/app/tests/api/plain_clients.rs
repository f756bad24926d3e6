//! Clients that send all before they read, as most HTTP clients do.

use hyper::StatusCode;

use crate::app::testing::{SECOND, World, whole};

const OCTETS: &str = "application/octet-stream";

fn head(path: &str, content_type: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n\
         Content-Length: {length}\r\n\r\n"
    )
}

#[tokio::test(start_paused = true)]
async fn a_refusal_can_be_read_after_the_body_was_sent() {
    let world = World::with_demo().await;
    let app = world.start().await;
    for (path, content_type, status) in [
        ("/v1/keyrings/none/encrypt", OCTETS, "404"),
        ("/v1/nothing", OCTETS, "404"),
        ("/v1/secrets/a", OCTETS, "405"),
        ("/v1/keyrings/demo/encrypt", "text/plain", "415"),
    ] {
        let mut connection = app.raw().await;
        for length in [5, 2_000_000] {
            connection.write(head(path, content_type, length)).await;
            world.advance(SECOND).await;
            connection.write(vec![b'x'; length]).await;
            world.advance(SECOND / 10).await;
            // The connection stays usable, so the rest was read as what it is.
            let response = connection.received();
            let found = response.matches(&format!("HTTP/1.1 {status} ")).count();
            assert_eq!(found, 1, "{path}: {response}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_mebibytes_need_not_be_read_while_they_are_sent() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let length = 8 << 20;
    let mut connection = app.raw().await;
    connection
        .write(head("/v1/keyrings/demo/encrypt", OCTETS, length))
        .await;
    connection.write(vec![7; length]).await;
    connection.shut_down().await;
    let response = connection.rest().await;
    assert!(response.starts_with("HTTP/1.1 200 OK"), "{:.200}", response);
    app.wait_metric("sidekey_connections{listener=\"unix\"} 0")
        .await;
    // All of the memory is free again: as many bytes fit as before.
    let mut client = app.client().await;
    let path = "/v1/keyrings/demo/encrypt";
    let headers = [crate::app::testing::OCTETS];
    let answer = client
        .open(hyper::Method::POST, path, &headers, whole(vec![7; length]))
        .await;
    assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_announced_length_or_is_a_batch_need_not_be_read_meanwhile() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let head = |content_type: &str, length: &str| {
        format!(
            "POST /v1/keyrings/demo/encrypt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: {content_type}\r\n{length}\r\n\r\n"
        )
    };
    let mut chunked = app.raw().await;
    chunked
        .write(head(OCTETS, "Transfer-Encoding: chunked"))
        .await;
    let chunk = [&b"10000\r\n"[..], &[7; 1 << 16], b"\r\n"].concat();
    chunked.write(chunk.repeat(3 << 4)).await;
    chunked.write("0\r\n\r\n").await;
    let response = chunked.rest().await;
    assert!(response.starts_with("HTTP/1.1 200 OK"), "{response:.200}");
    assert!(response.ends_with("\r\n0\r\n\r\n"));

    let mut batch = app.raw().await;
    let item = [&1000u32.to_be_bytes()[..], &[7; 1000]].concat();
    let body = [vec![0], item.repeat(3000)].concat();
    let length = format!("Content-Length: {}", body.len());
    batch
        .write(head("application/vnd.sidekey.batch", &length))
        .await;
    batch.write(body).await;
    let response = batch.rest().await;
    assert!(response.starts_with("HTTP/1.1 200 OK"), "{response:.200}");
    assert!(response.ends_with("\r\n0\r\n\r\n"));
    app.wait_metric("sidekey_connections{listener=\"unix\"} 0")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_fails_before_the_response_began_is_a_problem() {
    let world = World::with_demo().await;
    let app = world.start().await;
    let mut client = app.client().await;
    let mut sealed = client.encrypt(&vec![7; 3 << 20]).await.ok().body.to_vec();
    *sealed.last_mut().expect("works") ^= 1;
    assert_eq!(client.decrypt(&sealed).await.problem(), "decryption_failed");
}
