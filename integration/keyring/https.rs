//! Manifests read from a web server.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::support::{
    harness::{World, wait},
    small_server::{self, Reply, header},
    web::launch,
};

/// A minimal web server: it serves `content` with an ETag, and returns 304 if the client has it.
fn serve(content: Arc<Mutex<Option<Vec<u8>>>>) -> (String, Arc<AtomicUsize>) {
    let unchanged = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&unchanged);
    let url = small_server::serve(move |head| {
        let Some(body) = content.lock().unwrap().clone() else {
            return Reply::new("404 Not Found", "", "");
        };
        let tag = format!("\"{}\"", body.len());
        let headers = format!("ETag: {tag}\r\n");
        if header(head, "if-none-match") == Some(&tag) {
            counted.fetch_add(1, Ordering::Relaxed);
            return Reply::new("304 Not Modified", &headers, "");
        }
        Reply::new("200 OK", &headers, body)
    });
    (format!("{url}/demo.json"), unchanged)
}

#[tokio::test]
async fn an_unchanged_manifest_is_not_downloaded_again() {
    let world = World::with_demo();
    let content = Arc::new(Mutex::new(Some(fs::read(world.manifest("demo")).unwrap())));
    let (url, unchanged) = serve(Arc::clone(&content));
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\n[refresh]\npoll = \"100ms\"\nmax_backoff = \"100ms\"\n\
         [[keyring]]\nname = \"demo\"\nlocation = {url:?}\nkeks = [\"local:*\"]\n"
    );
    let sidecar = world.start_with("one", &config, &[]);
    wait("an unchanged response", || {
        unchanged.load(Ordering::Relaxed) > 0
    });
    world.keyring("rotate", "demo", &["--activate", "now"]);
    *content.lock().unwrap() = Some(fs::read(world.manifest("demo")).unwrap());
    sidecar.wait_generation(3);
    *content.lock().unwrap() = None;
    wait("the reason", || {
        sidecar.keyring()["last_error"]["code"] == "source_missing"
    });
    assert_eq!(sidecar.client().await.encrypt(b"x").await.ok().version(), 2);

    let refused = world.run(&[
        "keyring",
        "init",
        &url,
        "--name",
        "demo",
        "--kek",
        &format!("local:{}", world.path("kek").display()),
    ]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("is read-only"),
        "{refused:?}"
    );
    let plain = world.run(&["keyring", "status", "http://192.0.2.1/demo.json"]);
    assert!(
        String::from_utf8_lossy(&plain.stderr).contains("backends.plain_http"),
        "{plain:?}"
    );
}

#[tokio::test]
async fn oversized_and_forbidden_manifests_are_reported() {
    let world = World::with_demo();
    let answer = Arc::new(Mutex::new(("200 OK", vec![b' '; 4096])));
    let url = small_server::serve({
        let answer = Arc::clone(&answer);
        move |_| {
            let (status, body) = answer.lock().unwrap().clone();
            Reply::new(status, "", body)
        }
    });
    let sidecar = launch(
        &world,
        &url,
        "[refresh]\nmax_backoff = \"100ms\"\nmanifest_bytes = \"2KiB\"\n",
    );
    wait("the limit", || {
        sidecar.ops("/readyz").1.contains("longer than 2048 bytes")
    });
    *answer.lock().unwrap() = ("403 Forbidden", Vec::new());
    wait("the refusal", || {
        sidecar.keyring()["last_error"]["code"] == "source_denied"
    });
    *answer.lock().unwrap() = ("500 Internal Server Error", Vec::new());
    wait("the failure", || {
        sidecar.keyring()["last_error"]["code"] == "source_unavailable"
    });
}
