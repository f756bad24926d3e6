//! Manifests that are read from a web server.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    certificates::{expired, issue},
    harness::{Sidecar, World, wait},
    servers::free_port,
    small_server::{self, Reply, header},
};

/// A web server of our own: it gives `content` with an ETag, and 304 to who has it.
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
    wait("an unchanged answer", || {
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
        String::from_utf8_lossy(&refused.stderr).contains("can only be read"),
        "{refused:?}"
    );
    let plain = world.run(&["keyring", "status", "http://192.0.2.1/demo.json"]);
    assert!(
        String::from_utf8_lossy(&plain.stderr).contains("backends.plain_http"),
        "{plain:?}"
    );
}

#[tokio::test]
async fn a_manifest_that_is_too_long_or_not_for_us_is_called_so() {
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

/// A sidecar whose one keyring is read from `url`.
fn launch(world: &World, url: &str, config: &str) -> Sidecar {
    let socket = world.path("one.sock");
    let keyring =
        format!("[[keyring]]\nname = \"demo\"\nlocation = {url:?}\nkeks = [\"local:*\"]\n");
    world.launch(
        "one",
        &format!("[listen]\nsocket = {socket:?}\n{config}{keyring}"),
        &[],
    )
}

/// openssl's own web server, which gives the files in its folder; it is killed when this is dropped.
struct TlsServer(Child);

impl TlsServer {
    /// With the certificate `NAME.pem` in `folder`; clients need one of the authority `ca.pem`.
    fn start(folder: &Path, port: u16, name: &str) -> Self {
        let child = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                &format!("127.0.0.1:{port}"),
                "-WWW",
                "-quiet",
            ])
            .args([
                "-cert",
                &format!("{name}.pem"),
                "-key",
                &format!("{name}.key"),
            ])
            .args(["-Verify", "1", "-verify_return_error", "-CAfile", "ca.pem"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait("openssl's server", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self(child)
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const TLS: &str = "[web]\nca_file = \"trusted.pem\"\nclient_certificate = \"mine.pem\"\nclient_key = \"mine.key\"\n\
                   [refresh]\npoll = \"100ms\"\nmax_backoff = \"100ms\"\n";

#[test]
fn certificates_and_authorities_that_change_are_taken_up_without_a_restart() {
    let world = World::with_demo();
    let (folder, other) = (world.path(""), world.path("other"));
    fs::create_dir(&other).unwrap();
    let names = [
        ("server", "subjectAltName=IP:127.0.0.1"),
        ("client", "extendedKeyUsage=clientAuth"),
    ];
    issue(&folder, &names);
    issue(&other, &names);
    let put = |from: &str, to: &str| {
        fs::copy(world.path(from), world.path("next")).unwrap();
        fs::rename(world.path("next"), world.path(to)).unwrap();
    };
    put("ca.pem", "trusted.pem");
    let port = free_port();
    let server = TlsServer::start(&folder, port, "server");
    let sidecar = launch(&world, &format!("https://127.0.0.1:{port}/demo.json"), TLS);
    wait("the missing file's name", || {
        sidecar.ops("/readyz").1.contains("mine.pem")
    });
    // An authority that the server doesn't trust.
    put("other/client.pem", "mine.pem");
    put("other/client.key", "mine.key");
    wait("the server's refusal", || {
        sidecar.ops("/readyz").1.contains("alert")
    });
    // One file after the other: a pair that doesn't match is never taken.
    put("client.key", "mine.key");
    wait("the mismatch", || {
        sidecar.log().contains("the former ones stay")
    });
    put("client.pem", "mine.pem");
    sidecar.wait_ready();

    // The server gets its certificate from another authority, and that becomes trusted.
    drop(server);
    put("other/server.pem", "server.pem");
    put("other/server.key", "server.key");
    let _server = TlsServer::start(&folder, port, "server");
    wait("the distrust", || {
        let error = sidecar.keyring()["last_error"]["message"].clone();
        error
            .as_str()
            .is_some_and(|error| error.contains("invalid peer certificate"))
    });
    put("other/ca.pem", "trusted.pem");
    wait("the trust", || sidecar.keyring()["last_error"].is_null());
    assert_eq!(sidecar.ops("/readyz").0, 200);
    assert!(
        sidecar.log().contains("certificates were read again")
            && !sidecar.log().contains("PRIVATE"),
        "{}",
        sidecar.log()
    );
}

#[test]
fn an_expired_certificate_is_called_so() {
    let world = World::with_demo();
    let folder = world.path("");
    issue(
        &folder,
        &[
            ("server", "subjectAltName=IP:127.0.0.1"),
            ("client", "extendedKeyUsage=clientAuth"),
        ],
    );
    expired(&folder, "server", "subjectAltName=IP:127.0.0.1");
    for (from, to) in [
        ("ca.pem", "trusted.pem"),
        ("client.pem", "mine.pem"),
        ("client.key", "mine.key"),
    ] {
        fs::copy(world.path(from), world.path(to)).unwrap();
    }
    let port = free_port();
    let _server = TlsServer::start(&folder, port, "server");
    let sidecar = launch(&world, &format!("https://127.0.0.1:{port}/demo.json"), TLS);
    wait("the reason", || {
        sidecar
            .ops("/readyz")
            .1
            .contains("invalid peer certificate: Expired")
    });
}
