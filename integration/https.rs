//! Manifests that are read from a web server.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::harness::{World, wait};

/// A web server of our own: it gives `content` with an ETag, and 304 to who has it.
fn serve(content: Arc<Mutex<Option<Vec<u8>>>>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/demo.json", listener.local_addr().unwrap());
    let unchanged = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&unchanged);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).unwrap() > 0 {}
            let body = content.lock().unwrap().clone();
            let _ = match body {
                None => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
                Some(body) => {
                    let tag = format!("\"{}\"", body.len());
                    if head.to_ascii_lowercase().contains(&format!("if-none-match: {tag}")) {
                        counted.fetch_add(1, Ordering::Relaxed);
                        write!(stream, "HTTP/1.1 304 Not Modified\r\nETag: {tag}\r\nConnection: close\r\n\r\n")
                    } else {
                        let length = body.len();
                        write!(stream, "HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
                            .and_then(|()| stream.write_all(&body))
                    }
                }
            };
        }
    });
    (url, unchanged)
}

#[tokio::test]
async fn a_manifest_is_read_from_a_web_server_and_an_unchanged_one_is_not_sent() {
    let world = World::with_demo();
    let content = Arc::new(Mutex::new(Some(fs::read(world.manifest("demo")).unwrap())));
    let (url, unchanged) = serve(Arc::clone(&content));
    let socket = world.path("one.sock");
    let config = format!(
        "[listen]\nsocket = {socket:?}\n[refresh]\npoll = \"100ms\"\nmax_backoff = \"100ms\"\n\
         [[keyring]]\nname = \"demo\"\nlocation = {url:?}\nkeks = [\"local:*\"]\n"
    );
    let sidecar = world.start_with("one", &config, &[]);
    wait("an unchanged answer", || unchanged.load(Ordering::Relaxed) > 0);
    world.keyring("rotate", "demo", &["--activate", "now"]);
    *content.lock().unwrap() = Some(fs::read(world.manifest("demo")).unwrap());
    sidecar.wait_generation(3);
    *content.lock().unwrap() = None;
    wait("the reason", || sidecar.keyring()["last_error"]["code"] == "source_missing");
    assert_eq!(sidecar.client().await.encrypt(b"x").await.ok().version(), 2);

    let refused =
        world.run(&["keyring", "init", &url, "--name", "demo", "--kek", &format!("local:{}", world.path("kek").display())]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("can only be read"), "{refused:?}");
    let plain = world.run(&["keyring", "status", "http://192.0.2.1/demo.json"]);
    assert!(String::from_utf8_lossy(&plain.stderr).contains("backends.plain_http"), "{plain:?}");
}
