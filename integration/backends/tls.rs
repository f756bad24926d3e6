//! The listeners' TLS, with curl, openssl and rustls as clients.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use hyper::{Method, client::conn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use crate::support::{
    certificates::Authority,
    harness::{Client, OCTETS, PATIENCE, Sidecar, World, wait},
};

const HERE: &str = "IP:127.0.0.1,DNS:sidekey.example";
const PROMETHEUS: &str = "URI:spiffe://example.org/ns/ops/sa/prometheus";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A world, an authority, and the listener's TLS files in the world's directory `tls`.
struct Stage {
    world: World,
    authority: Authority,
}

impl Stage {
    fn new() -> Self {
        let world = World::with_demo();
        let authority = Authority::new(world.path("authority"));
        let stage = Self { world, authority };
        fs::create_dir(stage.world.path("tls")).unwrap();
        stage.put(&stage.authority.issue("server", Some(HERE)));
        fs::copy(stage.authority.ca(), stage.file("ca.crt")).unwrap();
        fs::write(stage.world.path("token"), TOKEN).unwrap();
        fs::set_permissions(stage.world.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
        stage
    }

    fn file(&self, name: &str) -> PathBuf {
        self.world.path("tls").join(name)
    }

    /// Installs a certificate and its key where the sidecar reads them.
    fn put(&self, (certificate, key): &(PathBuf, PathBuf)) {
        fs::copy(certificate, self.file("tls.crt")).unwrap();
        fs::copy(key, self.file("tls.key")).unwrap();
    }

    /// Starts a sidecar with TLS on its ops listener, with more config.
    fn ops(&self, more: &str) -> Sidecar {
        let tls =
            format!("[ops.tls]\ncertificate = \"tls/tls.crt\"\nkey = \"tls/tls.key\"\n{more}\n");
        self.world.launch("one", &tls, &["demo"])
    }

    /// Starts a sidecar with TLS on its TCP listener for applications, and an ops listener without
    /// TLS.
    fn tcp(&self, before: &str, more: &str) -> Sidecar {
        let socket = self.world.path("one.sock");
        let listen = format!(
            "[listen]\nsocket = {socket:?}\ntcp = \"127.0.0.1:0\"\ntoken_file = \"token\"\n"
        );
        let tls =
            format!("[listen.tls]\ncertificate = \"tls/tls.crt\"\nkey = \"tls/tls.key\"\n{more}\n");
        self.world
            .start_with("one", &format!("{before}\n{listen}{tls}"), &["demo"])
    }

    /// Sends `GET` with curl, and returns its exit code, the status and HTTP version, and the body.
    fn curl(&self, address: SocketAddr, path: &str, extra: &[&str]) -> (i32, String, String) {
        let output = Command::new("curl")
            .args([
                "-s",
                "--max-time",
                "60",
                "-w",
                "\n%{http_code} %{http_version}",
                "--cacert",
            ])
            .arg(self.authority.ca())
            .args(extra)
            .arg(format!("https://{address}{path}"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, line) = text.rsplit_once('\n').unwrap();
        (
            output.status.code().unwrap(),
            line.to_owned(),
            body.to_owned(),
        )
    }

    fn get(&self, sidecar: &Sidecar, path: &str, who: &[&str]) -> String {
        let (exit, line, body) = self.curl(sidecar.ops, path, who);
        assert_eq!((exit, &line[..3]), (0, "200"), "{path}: {body}");
        body
    }

    fn status(&self, sidecar: &Sidecar, who: &[&str]) -> Value {
        serde_json::from_str(&self.get(sidecar, "/status", who)).unwrap()
    }

    fn rustls(&self, client: Option<&(PathBuf, PathBuf)>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.authority.ca()).unwrap())
            .unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
                    .unwrap()
            }
        })
    }
}

/// Connects, and returns the connection and the server's certificate.
async fn connect(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> std::io::Result<(Client, Vec<u8>)> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let stream = TlsConnector::from(config)
        .connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
        .await?;
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let (sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    Ok((Client::Http1(sender), shown))
}

fn der(certificate: &Path) -> Vec<u8> {
    CertificateDer::from_pem_file(certificate).unwrap().to_vec()
}

fn as_client((certificate, key): &(PathBuf, PathBuf)) -> Vec<String> {
    [
        "--cert",
        certificate.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
    ]
    .map(String::from)
    .to_vec()
}

fn strs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

fn metric(metrics: &str, name: &str) -> f64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("{name} is not in\n{metrics}"));
    line.trim().parse().unwrap()
}

#[test]
fn only_probes_work_without_an_allowed_client_certificate() {
    let stage = Stage::new();
    let sidecar = stage.ops(
        "client_ca = \"tls/ca.crt\"\nclient_names = [\"spiffe://example.org/ns/ops/*\", \
            \"Admin.example.com\"]",
    );
    wait("readiness", || {
        stage.curl(sidecar.ops, "/readyz", &[]).1.starts_with("200")
    });
    stage.get(&sidecar, "/livez", &[]);
    for path in ["/metrics", "/status", "/manifests/demo"] {
        let (exit, line, body) = stage.curl(sidecar.ops, path, &[]);
        assert_eq!((exit, &line[..3]), (0, "403"), "{path}");
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["code"], "forbidden", "{path}");
        assert!(
            problem["detail"]
                .as_str()
                .unwrap()
                .contains("client certificate"),
            "{body}"
        );
    }

    for (name, san) in [
        ("prometheus", PROMETHEUS),
        ("admin", "DNS:admin.example.com"),
    ] {
        let who = as_client(&stage.authority.issue(name, Some(san)));
        assert!(
            stage
                .get(&sidecar, "/metrics", &strs(&who))
                .contains("sidekey_ready 1")
        );
    }
    // From the right authority: an unlisted name, names that only resemble listed ones, and a
    // common name, which doesn't count.
    let unlisted = [
        ("other", Some("DNS:other.example.com")),
        ("longer", Some("DNS:x.admin.example.com")),
        (
            "near",
            Some("URI:spiffe://example.org/ns/ops2/sa/prometheus"),
        ),
        ("admin.example.com", None),
    ];
    for (name, san) in unlisted {
        let who = as_client(&stage.authority.issue(name, san));
        let (exit, line, body) = stage.curl(sidecar.ops, "/metrics", &strs(&who));
        assert_eq!((exit, &line[..3]), (0, "403"), "{name}");
        assert!(body.contains("client_names"), "{body}");
        stage.get(&sidecar, "/livez", &strs(&who));
    }
    sidecar.wait_log("other.example.com");

    // From another authority, or with another validity: the connection fails.
    let stranger =
        Authority::new(stage.world.path("stranger")).issue("prometheus", Some(PROMETHEUS));
    let expired = stage.authority.issue_for(
        "late",
        Some(PROMETHEUS),
        "20200101000000Z",
        "20200201000000Z",
    );
    for who in [&stranger, &expired] {
        let (exit, line, _) = stage.curl(sidecar.ops, "/livez", &strs(&as_client(who)));
        assert!(exit != 0 && line.starts_with("000"), "{exit} {line}");
    }
    // A client that doesn't know our authority refuses the server.
    let output = Command::new("curl")
        .args(["-s", &format!("https://{}/livez", sidecar.ops)])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(60), "{output:?}");

    let metrics = stage.get(
        &sidecar,
        "/metrics",
        &strs(&as_client(&stage.authority.issue("p2", Some(PROMETHEUS)))),
    );
    let failures = |reason| {
        metric(
            &metrics,
            &format!(
                "sidekey_tls_handshake_failures_total{{listener=\"ops\",reason=\"{reason}\"}}"
            ),
        )
    };
    assert_eq!(failures("client_certificate"), 2.0);
    assert_eq!(failures("refused_by_client"), 1.0);
    // Twice each: for /metrics and for /livez.
    assert_eq!(failures("client_name"), 8.0);
}

#[test]
fn http_1_and_2_are_offered_and_old_tls_versions_are_not() {
    let stage = Stage::new();
    let sidecar = stage.ops("");
    assert_eq!(stage.curl(sidecar.ops, "/livez", &["--http2"]).1, "200 2");
    assert_eq!(
        stage.curl(sidecar.ops, "/livez", &["--http1.1"]).1,
        "200 1.1"
    );
    let s_client = |address: SocketAddr, arguments: &[&str]| -> Output {
        let address = address.to_string();
        let arguments = [&["s_client", "-connect", &address], arguments].concat();
        Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let said = |output: &Output| {
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };
    let old = s_client(sidecar.ops, &["-tls1_2"]);
    assert!(
        !old.status.success() && said(&old).contains("alert protocol version"),
        "{}",
        said(&old)
    );
    let new = s_client(sidecar.ops, &["-alpn", "h2"]);
    assert!(
        said(&new).contains("TLSv1.3") && said(&new).contains("ALPN protocol: h2"),
        "{}",
        said(&new)
    );
    let failures = "sidekey_tls_handshake_failures_total{listener=\"ops\",reason=\"incompatible\"}";
    assert_eq!(metric(&stage.get(&sidecar, "/metrics", &[]), failures), 1.0);
    drop(sidecar);

    let sidecar = stage.ops("min_version = \"1.2\"");
    assert_eq!(
        stage.curl(sidecar.ops, "/livez", &["--tls-max", "1.2"]).1,
        "200 2"
    );
    let older = s_client(sidecar.ops, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(!older.status.success(), "{}", said(&older));
    // Nothing is served without TLS.
    let output = Command::new("curl")
        .args(["-s", &format!("http://{}/livez", sidecar.ops)])
        .output()
        .unwrap();
    assert!(
        !output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
}

/// Writes a generation of a Secret as the kubelet does, and swaps `..data`.
fn mount(folder: &Path, generation: &str, files: &[(&str, &Path)]) {
    fs::create_dir_all(folder.join(generation)).unwrap();
    for (name, source) in files {
        fs::copy(source, folder.join(generation).join(name)).unwrap();
        if !folder.join(name).exists() {
            symlink(Path::new("..data").join(name), folder.join(name)).unwrap();
        }
    }
    symlink(generation, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_certificates_apply_to_new_connections_and_end_those_of_former_clients() {
    let stage = Stage::new();
    let folder = stage.world.path("secret");
    let (first, first_key) = stage.authority.issue("first", Some(HERE));
    let ca = stage.authority.ca();
    mount(
        &folder,
        "..1",
        &[
            ("tls.crt", &first),
            ("tls.key", &first_key),
            ("ca.crt", &ca),
        ],
    );
    let config = "[ops.tls]\ncertificate = \"secret/tls.crt\"\nkey = \"secret/tls.key\"\n\
        client_ca = \"secret/ca.crt\"\n";
    let sidecar = stage.world.launch("one", config, &["demo"]);
    let client = stage.authority.issue("client", Some(PROMETHEUS));
    let (mut open, shown) = connect(sidecar.ops, stage.rustls(Some(&client)))
        .await
        .unwrap();
    assert_eq!(shown, der(&first));
    open.send(Method::GET, "/status", &[], "").await.ok();

    // A certificate with another expiry, and another authority for clients.
    let (second, second_key) =
        stage
            .authority
            .issue_for("second", Some(HERE), "20200101000000Z", "20400101000000Z");
    let others = Authority::new(stage.world.path("others"));
    let other_client = others.issue("client", Some(PROMETHEUS));
    mount(
        &folder,
        "..2",
        &[
            ("tls.crt", &second),
            ("tls.key", &second_key),
            ("ca.crt", &others.ca()),
        ],
    );
    wait("the new certificate", || {
        sidecar.log().contains("reloaded TLS files")
    });

    let (mut new, shown) = connect(sidecar.ops, stage.rustls(Some(&other_client)))
        .await
        .unwrap();
    assert_eq!(shown, der(&second));
    let metrics = String::from_utf8(
        new.send(Method::GET, "/metrics", &[], "")
            .await
            .ok()
            .body
            .to_vec(),
    )
    .unwrap();
    let expiry = "sidekey_tls_certificate_expiry_timestamp_seconds{listener=\"ops\"}";
    assert_eq!(metric(&metrics, expiry), 2_208_988_800.0);
    assert_eq!(
        metric(
            &metrics,
            "sidekey_tls_reloads_total{listener=\"ops\",result=\"changed\"}"
        ),
        1.0
    );
    let status = new.send(Method::GET, "/status", &[], "").await.ok().json();
    assert_eq!(status["tls"][0]["listener"], "ops");
    assert_eq!(status["tls"][0]["expires_at"], "2040-01-01T00:00:00Z");

    // The authority of the first client left the list.
    wait("the end of its connection", || {
        sidecar
            .log()
            .contains("its client certificate is no longer accepted")
    });
    assert!(
        open.try_send(Method::GET, "/status", &[], "")
            .await
            .is_err()
    );

    // In TLS 1.3 the client finishes its handshake before the server checks its certificate, so the
    // refusal arrives with the first response.
    if let Ok((mut former, _)) = connect(sidecar.ops, stage.rustls(Some(&client))).await {
        assert!(
            former
                .try_send(Method::GET, "/livez", &[], "")
                .await
                .is_err()
        );
    }
}

#[test]
fn invalid_new_certificates_change_nothing() {
    let stage = Stage::new();
    let sidecar = stage.ops("client_ca = \"tls/ca.crt\"");
    let client = as_client(&stage.authority.issue("client", None));
    let who = strs(&client);
    let good = fs::read(stage.file("tls.crt")).unwrap();
    let expires = stage.status(&sidecar, &who)["tls"][0]["expires_at"].clone();
    let error = || {
        stage.status(&sidecar, &who)["tls"][0]["last_error"]["message"]
            .as_str()
            .map(str::to_owned)
    };
    let failed = |what: &str, reason: &str| {
        wait(what, || {
            error().is_some_and(|message| message.contains(reason))
        });
        let tls = stage.status(&sidecar, &who)["tls"][0].clone();
        assert_eq!(
            (&tls["expires_at"], &tls["last_error"]["code"]),
            (&expires, &"tls_files".into()),
            "{what}"
        );
    };

    fs::write(stage.file("tls.crt"), &good[..good.len() / 2]).unwrap();
    failed("a half-written certificate", "tls.crt");
    let (other, other_key) = stage.authority.issue("server2", Some(HERE));
    fs::copy(&other, stage.file("tls.crt")).unwrap();
    failed("a certificate without its key", "is not the key of");
    let key = fs::read_to_string(&other_key).unwrap();
    fs::write(stage.file("tls.key"), &key[..key.len() / 2]).unwrap();
    failed("a half-written key", "tls.key");
    let secret = &key.lines().nth(1).unwrap()[..20];
    assert!(
        key.contains("PRIVATE KEY")
            && !sidecar.log().contains(secret)
            && !error().unwrap().contains(secret)
    );
    fs::remove_file(stage.file("tls.key")).unwrap();
    failed("no key", "can't read");
    let expired =
        stage
            .authority
            .issue_for("server3", Some(HERE), "20200101000000Z", "20200201000000Z");
    stage.put(&expired);
    failed(
        "an expired certificate",
        "it expired at 2020-02-01T00:00:00Z",
    );
    stage.put(&stage.authority.issue_for(
        "server4",
        Some(HERE),
        "20480101000000Z",
        "20490101000000Z",
    ));
    failed(
        "a certificate of the future",
        "it is not valid before 2048-01-01T00:00:00Z",
    );
    fs::write(stage.file("ca.crt"), "").unwrap();
    failed("no authority", "ca.crt: the file contains no certificate");

    // Each reason was logged once, however often the files were checked.
    let tries = "sidekey_tls_reloads_total{listener=\"ops\",result=\"failed\"}";
    let before = metric(&stage.get(&sidecar, "/metrics", &who), tries);
    sidecar.signal("HUP");
    wait("another try", || {
        metric(&stage.get(&sidecar, "/metrics", &who), tries) > before
    });
    sidecar.wait_log("ca.crt: the file contains no certificate");
    assert_eq!(
        sidecar
            .log()
            .matches("ca.crt: the file contains no certificate")
            .count(),
        1,
        "{}",
        sidecar.log()
    );
    assert_eq!(
        metric(
            &stage.get(&sidecar, "/metrics", &who),
            "sidekey_tls_reload_failing{listener=\"ops\"}"
        ),
        1.0
    );

    fs::copy(stage.authority.ca(), stage.file("ca.crt")).unwrap();
    stage.put(&(other, other_key));
    wait("good files", || error().is_none());
    assert_eq!(
        metric(
            &stage.get(&sidecar, "/metrics", &who),
            "sidekey_tls_reload_failing{listener=\"ops\"}"
        ),
        0.0
    );
}

#[test]
fn all_problems_with_tls_files_are_reported_at_startup() {
    let stage = Stage::new();
    fs::write(
        stage.file("ca.crt"),
        "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let (_, other_key) = stage.authority.issue("other", None);
    let config = |name: &str, key: &str| {
        let file = stage.world.path(&format!("{name}.toml"));
        let (socket, key) = (stage.world.path("one.sock"), stage.world.path(key));
        let text = format!(
            "[listen]\nsocket = {socket:?}\n[ops]\nlisten = \"127.0.0.1:0\"\n[ops.tls]\n\
             certificate = \"tls/tls.crt\"\nkey = {key:?}\n\
             client_ca = \"tls/ca.crt\"\n[[keyring]]\nname = \"demo\"\nlocation = \"demo.json\"\n\
             keks = [\"local:*\"]\n"
        );
        fs::write(&file, text).unwrap();
        let output = stage
            .world
            .run(&["serve", "--config", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = config("missing", "tls/none.key");
    assert!(
        missing.contains("ops.tls: can't read") && missing.contains("none.key"),
        "{missing}"
    );
    let both = config("both", "tls/ca.crt");
    assert!(
        both.matches("ca.crt").count() == 2,
        "the key and the authority: {both}"
    );
    fs::copy(stage.authority.ca(), stage.file("ca.crt")).unwrap();
    fs::copy(other_key, stage.file("other.key")).unwrap();
    let other = config("other", "tls/other.key");
    assert!(other.contains("other.key is not the key of"), "{other}");
}

fn ends(mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_handshakes_do_not_crowd_out_active_clients() {
    let stage = Stage::new();
    let sidecar = stage.tcp(
        "[limits]\nconnections = 2\n[timeouts]\nheader = \"1h\"\nidle = \"1h\"",
        "",
    );
    let address = sidecar.tcp.unwrap();
    let config = stage.rustls(None);
    let bearer = format!("Bearer {TOKEN}");
    let headers = [OCTETS, ("authorization", bearer.as_str())];
    let mut silent = Vec::new();
    for round in 0..10 {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(address).unwrap();
            // Some start a handshake and stop.
            if round % 2 == 0 {
                stream.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
            }
            silent.push(stream);
        }
        let encrypt = async {
            let (mut client, _) = connect(address, Arc::clone(&config)).await.unwrap();
            let path = "/v1/keyrings/demo/encrypt";
            client.post(path, &headers, "x").await.ok();
        };
        timeout(PATIENCE, encrypt).await.expect("there is room");
    }
    ends(silent.swap_remove(0));
    let metrics = sidecar.ops("/metrics").1;
    assert!(metric(&metrics, "sidekey_connections{listener=\"tcp\"}") <= 2.0);
    assert!(
        metric(
            &metrics,
            "sidekey_connections_refused_total{listener=\"tcp\"}"
        ) >= 190.0,
        "{metrics}"
    );
}

#[test]
fn silent_handshakes_leave_room_for_operators() {
    let stage = Stage::new();
    let sidecar = stage.ops("");
    let silent: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(sidecar.ops).unwrap())
        .collect();
    for _ in 0..10 {
        stage.get(&sidecar, "/livez", &[]);
    }
    drop(silent);
}

#[test]
fn a_handshake_is_bound_by_the_header_timeout() {
    let stage = Stage::new();
    let sidecar = stage.tcp("[timeouts]\nheader = \"1s\"", "");
    let address = sidecar.tcp.unwrap();
    let mut slow = TcpStream::connect(address).unwrap();
    let silent = TcpStream::connect(address).unwrap();
    // Bytes without a complete request don't extend the time.
    let slow_writer = std::thread::spawn(move || {
        let hello = [22u8, 3, 1, 2, 0].into_iter().chain(std::iter::repeat(0));
        for byte in hello {
            if slow.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    ends(silent);
    slow_writer.join().unwrap();
    let unfinished = "sidekey_tls_handshake_failures_total{listener=\"tcp\",reason=\"unfinished\"}";
    wait("the count", || {
        metric(&sidecar.ops("/metrics").1, unfinished) >= 2.0
    });
}

#[test]
fn shutdown_does_not_wait_for_handshakes() {
    let stage = Stage::new();
    let mut sidecar = stage.tcp(
        "[timeouts]\nheader = \"1h\"\nidle = \"1h\"\ndrain_timeout = \"1h\"",
        "",
    );
    let silent = TcpStream::connect(sidecar.tcp.unwrap()).unwrap();
    wait("the connection", || {
        sidecar
            .ops("/metrics")
            .1
            .contains("sidekey_connections{listener=\"tcp\"} 1")
    });
    sidecar.signal("TERM");
    assert!(sidecar.ended().success());
    assert!(sidecar.log().contains("drained"), "{}", sidecar.log());
    drop(silent);
}

#[tokio::test]
async fn tcp_applications_need_a_certificate_and_an_allowed_name() {
    let stage = Stage::new();
    let sidecar = stage.tcp(
        "",
        "client_ca = \"tls/ca.crt\"\nclient_names = [\"app.example.com\"]",
    );
    let address = sidecar.tcp.unwrap();
    let bearer = format!("Bearer {TOKEN}");
    let headers = [OCTETS, ("authorization", bearer.as_str())];
    let path = "/v1/keyrings/demo/encrypt";
    let app = stage.authority.issue("app", Some("DNS:app.example.com"));
    let (mut client, _) = connect(address, stage.rustls(Some(&app))).await.unwrap();
    client.post(path, &headers, "Ada").await.ok();
    // The certificate doesn't replace the token.
    assert_eq!(
        client.post(path, &[OCTETS], "Ada").await.problem(),
        "unauthorized"
    );
    let other = stage
        .authority
        .issue("other", Some("DNS:other.example.com"));
    let (mut client, _) = connect(address, stage.rustls(Some(&other))).await.unwrap();
    assert_eq!(
        client.post(path, &headers, "Ada").await.problem(),
        "forbidden"
    );
    if let Ok((mut client, _)) = connect(address, stage.rustls(None)).await {
        assert!(
            client
                .try_send(Method::POST, path, &headers, "Ada")
                .await
                .is_err()
        );
    }
    let reason =
        "sidekey_tls_handshake_failures_total{listener=\"tcp\",reason=\"client_certificate\"}";
    wait("the count", || {
        metric(&sidecar.ops("/metrics").1, reason) == 1.0
    });
}

#[test]
fn evidence_is_requested_over_tls() {
    let stage = Stage::new();
    stage.put(&stage.authority.issue(
        "server",
        Some("URI:spiffe://example.org/ns/shop/sa/sidekey,DNS:sidekey.example"),
    ));
    let sidecar =
        stage.ops("client_ca = \"tls/ca.crt\"\nclient_names = [\"operator.example.com\"]");
    let client = stage
        .authority
        .issue("operator", Some("DNS:operator.example.com"));
    stage
        .world
        .keyring("rotate", "demo", &["--activate", "now"]);
    let url = format!("https://{}", sidecar.ops);
    let ca = stage.authority.ca();
    let (ca, certificate, key) = (
        ca.to_str().unwrap(),
        client.0.to_str().unwrap(),
        client.1.to_str().unwrap(),
    );
    let refused = |extra: &[&str]| {
        let output = stage.world.try_keyring(
            "disable",
            "demo",
            &[&["--version", "1", "--sidecar", &url], extra].concat(),
        );
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let stranger = refused(&[]);
    assert!(stranger.contains("--sidecar-ca"), "{stranger}");
    let trusted = ["--sidecar-ca", ca];
    let elsewhere = refused(&trusted);
    assert!(elsewhere.contains("--sidecar-name"), "{elsewhere}");
    for wrong in ["other.example", "spiffe://example.org/ns/bank/*"] {
        let wrong = refused(&[&trusted[..], &["--sidecar-name", wrong]].concat());
        assert!(wrong.contains("--sidecar-name"), "{wrong}");
    }
    for name in [
        "sidekey.example",
        "spiffe://example.org/ns/shop/sa/sidekey",
        "spiffe://example.org/ns/*",
    ] {
        let named = [&trusted[..], &["--sidecar-name", name]].concat();
        let anonymous = refused(&named);
        assert!(anonymous.contains("--sidecar-cert"), "{anonymous}");
        // The sidecar answers that it hasn't been watching for the whole quiet period.
        let known = refused(
            &[
                &named[..],
                &["--sidecar-cert", certificate, "--sidecar-key", key],
            ]
            .concat(),
        );
        assert!(known.contains("quiet"), "{known}");
    }
    // An invalid flag isn't reported as the sidecar's response.
    let output = stage.world.try_keyring(
        "disable",
        "demo",
        &["--version", "1", "--sidecar", &url, "--sidecar-ca", key],
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = stage.world.try_keyring(
        "disable",
        "demo",
        &[
            "--version",
            "1",
            "--sidecar",
            &url,
            "--sidecar-cert",
            certificate,
        ],
    );
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_push_requires_a_certificate_and_only_causes_a_refresh() {
    let stage = Stage::new();
    let real = stage.world.path("elsewhere");
    fs::create_dir(&real).unwrap();
    // The file isn't watched, because the swapped link is above it.
    fs::write(real.join("db"), "old").unwrap();
    std::os::unix::fs::symlink("elsewhere", stage.world.path("here")).unwrap();
    fs::create_dir(stage.world.path("next")).unwrap();
    fs::write(stage.world.path("next/db"), "new").unwrap();
    let secret = "[refresh]\npoll = \"1d\"\n[[secret]]\nname = \"db\"\nsource = \"file:here/db\"\n\
        refresh = \"1d\"\nrequired = true\n";
    let sidecar = stage.ops(&format!("client_ca = \"tls/ca.crt\"\n{secret}"));
    let operator = as_client(&stage.authority.issue("operator", None));
    let operator = strs(&operator);
    let push = |body: &str, who: &[&str]| {
        let (exit, line, answer) =
            stage.curl(sidecar.ops, "/push", &[&["-d", body][..], who].concat());
        assert_eq!(exit, 0);
        (
            line[..3].to_owned(),
            serde_json::from_str::<Value>(&answer).unwrap(),
        )
    };
    let secret = || stage.status(&sidecar, &operator)["secrets"][0].clone();
    wait("the secret", || secret()["version"].is_string());
    let version = secret()["version"].as_str().unwrap().to_owned();
    assert_eq!(push(r#"{"secret":"db"}"#, &[]).0, "403");
    let known = push(
        &format!(r#"{{"secret":"db","version":{version:?}}}"#),
        &operator,
    );
    assert_eq!(
        known,
        ("202".into(), serde_json::json!({ "refreshing": false }))
    );

    std::os::unix::fs::symlink("next", stage.world.path("swap")).unwrap();
    fs::rename(stage.world.path("swap"), stage.world.path("here")).unwrap();
    assert_eq!(
        push(r#"{"secret":"db"}"#, &operator),
        ("202".into(), serde_json::json!({ "refreshing": true }))
    );
    wait("the new value", || secret()["previous"] == version.as_str());
    assert_eq!(
        push(r#"{"keyring":"demo","generation":1}"#, &operator).1["refreshing"],
        false
    );
    assert_eq!(
        push(r#"{"keyring":"demo","generation":2}"#, &operator).1["refreshing"],
        true
    );
    wait("the refresh", || {
        let metrics = stage.get(&sidecar, "/metrics", &operator);
        metric(
            &metrics,
            "sidekey_refreshes_total{keyring=\"demo\",trigger=\"push\",result=\"unchanged\"}",
        ) == 1.0
    });
    for (body, status, code) in [
        (r#"{"secret":"other"}"#, "404", "secret_not_found"),
        (
            r#"{"keyring":"other","generation":1}"#,
            "404",
            "keyring_not_found",
        ),
        (r#"{"keyring":"demo"}"#, "400", "invalid_request"),
        ("", "400", "invalid_request"),
        (&"x".repeat(5000), "400", "invalid_request"),
    ] {
        let (found, problem) = push(body, &operator);
        assert_eq!(
            (found.as_str(), problem["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
    }
    assert_eq!(stage.curl(sidecar.ops, "/push", &operator).1[..3], *"405");
}
