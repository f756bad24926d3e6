//! Manifests over HTTPS, from openssl's web server.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::support::{
    certificates::{expired, issue},
    harness::{World, wait},
    servers::free_port,
    web::launch,
};

/// openssl's web server, which serves the files in its directory; killed when dropped.
struct TlsServer(Child);

impl TlsServer {
    /// Uses the certificate `NAME.pem` in `folder`, and requires client certificates issued by
    /// `ca.pem`.
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

const TLS: &str = "[web]\nca_file = \"trusted.pem\"\nclient_certificate = \"mine.pem\"\n\
    client_key = \"mine.key\"\n\
    [refresh]\npoll = \"100ms\"\nmax_backoff = \"100ms\"\n";

#[test]
fn changed_certificates_are_reloaded_without_a_restart() {
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
    // A client certificate from an authority that the server doesn't trust.
    put("other/client.pem", "mine.pem");
    put("other/client.key", "mine.key");
    wait("the server's refusal", || {
        sidecar.ops("/readyz").1.contains("alert")
    });
    // The files are replaced one at a time: a mismatched pair is never loaded.
    put("client.key", "mine.key");
    wait("the mismatch", || {
        sidecar.log().contains("keeping the previous ones")
    });
    put("client.pem", "mine.pem");
    sidecar.wait_ready();

    // The server gets a certificate from another authority, which then becomes trusted.
    drop(server);
    put("other/server.pem", "server.pem");
    put("other/server.key", "server.key");
    let _server = TlsServer::start(&folder, port, "server");
    wait("the distrust", || {
        let error = sidecar.keyring()["last_error"]["message"].clone();
        error
            .as_str()
            .is_some_and(|error| error.contains("an authority that is not trusted here"))
    });
    put("other/ca.pem", "trusted.pem");
    wait("the trust", || sidecar.keyring()["last_error"].is_null());
    assert_eq!(sidecar.ops("/readyz").0, 200);
    sidecar.wait_log("certificates reloaded");
    assert!(!sidecar.log().contains("PRIVATE"), "{}", sidecar.log());
}

#[test]
fn an_expired_certificate_is_reported() {
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
            .contains("the server's certificate has expired")
    });
}
